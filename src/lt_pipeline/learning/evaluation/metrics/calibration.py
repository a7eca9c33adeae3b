"""Whether probabilities mean what they say."""

from __future__ import annotations

import torch
from torch import Tensor

from lt_pipeline.learning.evaluation.metrics.finite import check_finite_scores

# images
AT_ONCE = 1024


def expected_calibration_error(scores: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return the mean of |accuracy - confidence| over equally wide bins, weighted by their images.

    Guo et al., On calibration of modern neural networks (ICML 2017), equation 3. ``scores``
    ``[N, C]`` are logits; confidence is the highest softmax probability. ``labels`` is ``[N]``, or
    ``[N, C]``: of several labels every one is looked at, by how probable it is that it is there.

    Raises:
        UserError: if a score is nan or infinite.
    """
    check_finite_scores(scores)
    if labels.ndim == 2:
        by_bin = reliability(scores, labels, bins)
        rows = zip(by_bin["images"], by_bin["confidence"], by_bin["accuracy"], strict=True)
        return sum(n * abs(c - a) for n, c, a in rows) / labels.numel()
    # here, because importing it takes a second that the start of a run can spare
    from torchmetrics.functional.classification import multiclass_calibration_error

    # torchmetrics puts a confidence of exactly 1 into a bin of its own behind the last one
    # (https://github.com/Lightning-AI/torchmetrics/issues/3510), and confident float32 scores get
    # there; the largest number below 1 stays in the last bin.
    below_one = 1 - torch.finfo(torch.float32).eps / 2
    error = multiclass_calibration_error(
        scores.float().softmax(1).clamp(max=below_one),
        labels,
        num_classes=scores.shape[1],
        n_bins=bins,
        norm="l1",
    )
    return float(error)


def reliability(scores: Tensor, labels: Tensor, bins: int = 15) -> dict[str, list[float]]:
    """Return images, mean confidence and accuracy of every bin that has images, by its left edge.

    Bins are [k / bins, (k + 1) / bins), the last one with 1, as in the error above. ``scores``
    ``[N, C]`` are logits, ``labels`` is as above; of several each counts as an image.

    Raises:
        UserError: if a score is nan or infinite.
    """
    check_finite_scores(scores)
    if labels.ndim == 2:
        confidence, right = scores.double().sigmoid().flatten(), labels.double().flatten()
    else:
        # some at a time, as a copy of all in double precision may be gigabytes
        parts = [part.double().softmax(1).max(1) for part in scores.split(AT_ONCE)]
        confidence, predicted = (torch.cat(column) for column in zip(*parts, strict=True))
        right = (predicted == labels).double()
    place = (confidence * bins).long().clamp(max=bins - 1)
    images = torch.bincount(place, minlength=bins)
    used = images > 0
    counts = images[used].double()
    return {
        "left_edge": (used.nonzero().squeeze(1).double() / bins).tolist(),
        "width": [1 / bins] * int(used.sum()),
        "images": counts.tolist(),
        "confidence": (torch.bincount(place, confidence, minlength=bins)[used] / counts).tolist(),
        "accuracy": (torch.bincount(place, right, minlength=bins)[used] / counts).tolist(),
    }
