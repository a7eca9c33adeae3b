"""Numbers that a training which diverged leaves behind, and what to do about it."""

from __future__ import annotations

from torch import Tensor

from lt_pipeline.learning.schema import UserError

ADVICE = "lower training.learning_rate, or set training.gradient_clip"


def check_finite_scores(scores: Tensor) -> None:
    """Refuse ``scores`` ``[N, ...]`` of N images that are no numbers.

    The highest of a row of nan is its first, so that without this they are a metric like others:
    the recall of class 0, a chance level.

    Raises:
        UserError: saying of how many images a score is nan or infinite, and what to do.
    """
    finite = scores.isfinite()
    if finite.all():
        return
    images = int((~finite).reshape(len(scores), -1).any(1).sum())
    raise UserError(
        f"scores must be finite, but those of {images} of {len(scores)} images are nan or "
        f"infinite: the training diverged; {ADVICE}"
    )
