"""Features in the plane, to be looked at (DARL, figures 2 and 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.schema import UserError

LEAST_POINTS = 5


def tsne(features: Tensor, seed: int, perplexity: float = 30) -> Tensor:
    """Return the plane positions, float32 ``[N, 2]``, that t-SNE finds for ``features`` ``[N, F]``.

    Van der Maaten and Hinton, Visualizing data using t-SNE, 2008, by scikit-learn, started from
    the principal components. Put all sets that are to be compared into one call: positions of two
    calls have nothing to do with each other. ``perplexity`` is about the number of neighbours a
    point has; it is lowered to (N - 1) / 3 where there are few points.

    Raises:
        UserError: for fewer than 5 points, fewer than 2 features, features that are not finite
            or the same for all points.
    """
    points = features.detach().float().cpu()
    if points.ndim != 2 or len(points) < LEAST_POINTS or points.shape[1] < 2:
        raise UserError(
            f"t-SNE needs features [N, F] of at least {LEAST_POINTS} points and 2 features, but "
            f"got {list(features.shape)}"
        )
    if not points.isfinite().all():
        raise UserError("features must be finite, but some are nan or infinite")
    if bool((points == points[0]).all()):
        raise UserError("features must differ between points, but all are the same")
    usable = min(perplexity, (len(points) - 1) / 3)
    # here, because scikit-learn takes a second to import
    from sklearn.manifold import TSNE

    positions = TSNE(init="pca", perplexity=usable, random_state=seed).fit_transform(points.numpy())
    return torch.from_numpy(positions)


def sample_by_group(labels: Tensor, longtail: LongTail, per_group: int, seed: int) -> Tensor:
    """Return positions in ``labels`` ``[N]`` of at most ``per_group`` images of each group.

    The images are drawn evenly without replacement; the positions, int64 ``[K]``, ascend.

    Raises:
        UserError: when ``per_group`` is below 1.
    """
    if per_group < 1:
        raise UserError(f"per_group must be at least 1 image, but is {per_group}")
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.empty(0, dtype=torch.int64)]
    for mask in longtail.group_members(labels.cpu()).values():
        members = mask.nonzero().squeeze(1)
        drawn.append(members[torch.randperm(len(members), generator=generator)[:per_group]])
    return torch.cat(drawn).sort().values
