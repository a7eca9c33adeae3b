"""How far classes lie apart in feature space, by Fisher's criterion (DBM, table 6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.schema import UserError

# what is worth its time: as many operations take about ten seconds on one core
MAX_OPERATIONS = 1.3e11
# others that each class is measured against where not all are: at least, and at most
FEWEST_OTHERS, MOST_OTHERS = 8, 100
MAX_NUMBERS = 2**27  # 1 GiB of float64 for the covariances [C, F, F]
CHUNK_NUMBERS = 2**20  # 8 MiB of float64 for the [P, F, F] of one chunk of pairs
# J of pairs of classes [P]
Criterion = Callable[[Tensor, Tensor], Tensor]


def measured_against(labels: Tensor, classes: int, features: int) -> int:
    """Return how many others ``class_separability`` measures each class with images against.

    All of them, where ``MAX_OPERATIONS`` are enough: a pair is counted as s^2 F + 50 s F + 2e4, s
    being the features F or, where that is less, the images of both. Else as many as they are enough
    for, up to ``MOST_OTHERS``; 0 is too few to say something, or too much memory.
    """
    counts = torch.bincount(labels.cpu(), minlength=classes)
    return _others([n for n in counts.tolist() if n > 1], features)


def _others(images: Sequence[int], features: int, shrinkage: bool = True) -> int:
    classes = len(images)
    side = min(sum(sorted(images)[-2:]) if shrinkage else features, features)
    if side == features and classes * features**2 > MAX_NUMBERS:
        return 0
    each = side**2 * features + 50 * side * features + 2e4
    if classes * (classes - 1) / 2 * each <= MAX_OPERATIONS:
        return classes - 1
    others = min(2 * int(MAX_OPERATIONS / each / classes), MOST_OTHERS)
    return others if FEWEST_OTHERS <= others < classes - 1 else 0


def class_separability(
    features: Tensor, labels: Tensor, classes: int, *, unit: bool = True, shrinkage: bool = True
) -> Tensor:
    """Return S_i of every class, float64 ``[classes]`` (equations 12 and 13).

    ``features`` ``[N, F]`` and ``labels`` ``[N]`` are the test images'. S_i is the mean over the
    other classes j of Fisher's criterion J of the projection that maximises it,
    w = (Sigma_i + Sigma_j)^-1 (mu_i - mu_j), which is
    J = (mu_i - mu_j)^T (Sigma_i + Sigma_j)^-1 (mu_i - mu_j).
    It has no unit and does not change when the features are rotated or scaled.

    ``unit`` scales every feature vector to length 1, the space of a cosine classifier and of
    figure 4; the paper does not say in which space it measured.

    ``shrinkage`` estimates each class's covariance by oracle approximating shrinkage (Chen et
    al. 2010; scikit-learn's ``OAS``), False by the plain unbiased one; both divide by n - 1. Why,
    from trials on Gaussian classes of different spread and on scikit-learn's digits, 64 features:

    - A plain covariance of about F images is nearly singular, and J explodes: with 36 images a
      class S came out 17 times too high, with 100 images 1.5 times.
    - One shrunk covariance pooled over the classes says that all are equally compact, which is
      half of what J measures, and is not equation 12: with 36 images its S followed the true one
      over the classes with a correlation of 0.2 to 0.96, that of shrinkage by class 0.95 to 0.99.
    - Ledoit-Wolf shrinkage by class is as good from 36 images on, but too weak below (with 5
      images S was 1.7 to 2.0 times too high, with ``OAS`` 1.3 to 1.5) and none at all with 2.

    Where all pairs are too many for ``MAX_OPERATIONS``, as ``measured_against`` says, the mean is
    over some other classes: those that stand next to it in a random order, the same for equal
    numbers of classes. Both sides of a pair count it, and a class has as many as another.

    What remains is that the means of few images lie too far apart: compare S between methods on
    the same test images, never between test sets.

    A class with fewer than 2 images has no covariance: its S is nan, and it is left out of the
    others' mean; so is everything when only one class remains. Under ``shrinkage``, variances
    get a floor at the rounding error of float32 features, (1.2e-7 of their root mean square)^2:
    classes collapsed to distinct points thus have a very large but finite S, and classes
    collapsed to one common point have S = 0.

    Raises:
        UserError: for a label outside [0, classes), for features that are not finite, and,
            without ``shrinkage``, for a pair of classes whose covariances' sum is singular.
    """
    _check(features, labels, classes)
    labels = labels.cpu()
    counts = torch.bincount(labels, minlength=classes)
    usable = counts.ge(2).nonzero().squeeze(1)
    separability = torch.full((classes,), torch.nan, dtype=torch.float64)
    if len(usable) < 2:
        return separability
    ordered = features.detach().cpu()[labels.argsort(stable=True)].double()
    if unit:
        F.normalize(ordered, dim=1, eps=torch.finfo(ordered.dtype).tiny, out=ordered)
    whole = ordered.split(counts.tolist())
    members = [whole[c] for c in usable]
    means = torch.stack([x.mean(0) for x in members])  # [U, F]
    images, width = [len(x) for x in members], features.shape[1]
    if shrinkage and sum(sorted(images)[-2:]) < width:
        criterion, numbers = _of_few(means, members, ordered), 2 * max(images) * width
    else:
        covariances = _shrunk(members, ordered) if shrinkage else _plain(members, usable.tolist())
        criterion, numbers = partial(_fisher, means, covariances), width**2
    # who asks for what is not worth it gets it
    others = _others(images, width, shrinkage) or len(usable) - 1
    size = max(1, CHUNK_NUMBERS // numbers)
    separability[usable] = _mean_over_others(criterion, len(usable), others, size)
    return separability


def _check(features: Tensor, labels: Tensor, classes: int) -> None:
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        raise UserError(
            f"labels must lie in [0, {classes}), but lie in "
            f"[{int(labels.min())}, {int(labels.max())}]"
        )
    if not features.isfinite().all():
        raise UserError("features must be finite, but some are nan or infinite")


def _shrunk(members: Sequence[Tensor], features: Tensor) -> Tensor:
    """Return each class's shrunk covariance ``[U, F, F]``, at least rounding error on all axes."""
    # here, because scikit-learn takes a second to import
    from sklearn.covariance import OAS

    floor = _rounding(features) * torch.eye(features.shape[1], dtype=torch.float64)
    shrink = OAS(store_precision=False)
    covariances = floor.new_empty(len(members), *floor.shape)
    for place, x in zip(covariances, members, strict=True):
        estimate = torch.from_numpy(shrink.fit(x.numpy()).covariance_)
        torch.add(estimate * len(x) / (len(x) - 1), floor, out=place)
    return covariances


def _rounding(features: Tensor) -> float:
    """Return the least variance: the square of float32's rounding error of the features."""
    mean_square = float(features.norm()) ** 2 / features.numel()
    return torch.finfo(torch.float32).eps ** 2 * mean_square or 1.0


def _of_few(means: Tensor, members: Sequence[Tensor], features: Tensor) -> Criterion:
    """Return what gives J of pairs of classes with fewer images than features.

    What ``_fisher`` gives for ``_shrunk`` covariances, without a factor of F x F a pair: with Z the
    centred images of both classes, scaled, Sigma_i + Sigma_j = Z^T Z + c I, and by Woodbury's
    identity J = (|d|^2 - v^T (Z Z^T + c I)^-1 v) / c for the gap d and v = Z d.
    """
    images, floor, levels = torch.tensor([len(x) for x in members]), _rounding(features), []
    # the last row fills up classes of fewer images than others, and changes nothing
    z = means.new_zeros(int(images.sum()) + 1, means.shape[1])
    parts = z[:-1].split(images.tolist())
    for x, mean, own in zip(members, means, parts, strict=True):
        torch.sub(x, mean, out=own)
        shrinkage, variance = _oas(own)
        own *= ((1 - shrinkage) / (len(x) - 1)) ** 0.5
        levels.append(shrinkage * variance * len(x) / (len(x) - 1) + floor)
    level = means.new_tensor(levels)
    first, place = images.cumsum(0) - images, torch.arange(int(images.max()))
    rows = torch.where(place < images[:, None], first[:, None] + place, len(z) - 1)  # [U, n]

    def criterion(i: Tensor, j: Tensor) -> Tensor:
        both, gap = z[torch.cat([rows[i], rows[j]], 1)], means[i] - means[j]
        sums = level[i] + level[j]
        inner = both @ both.mT + sums[:, None, None] * torch.eye(both.shape[1], dtype=z.dtype)
        white = torch.linalg.solve_triangular(
            torch.linalg.cholesky(inner), both @ gap[:, :, None], upper=False
        )
        values: Tensor = (gap.square().sum(1) - white.square().sum((1, 2))).clamp(min=0) / sums
        return values

    return criterion


def _oas(centred: Tensor) -> tuple[float, float]:
    """Return scikit-learn's ``OAS`` shrinkage of ``[n, F]`` and the mean variance.

    Without the covariance, F x F: the squares of X^T X add up to those of X X^T (Chen et al. 2010,
    equation 23).
    """
    images, features = centred.shape
    gram = centred @ centred.T / images
    variance, square = float(gram.trace()) / features, float(gram.square().sum()) / features**2
    spread = (images + 1) * (square - variance**2 / features)
    shrinkage = min((square + variance**2) / spread, 1.0) if spread > 0 else 1.0
    return shrinkage, variance


def _plain(members: Sequence[Tensor], names: Sequence[int]) -> Tensor:
    """Return each class's unbiased covariance ``[U, F, F]``; refuse pairs with a singular sum."""
    features = members[0].shape[1]
    covariances = torch.stack([x.T.cov().reshape(features, features) for x in members])
    for i, j in _pairs(len(members), max(1, CHUNK_NUMBERS // features**2)):
        factors, failed = torch.linalg.cholesky_ex(covariances[i] + covariances[j])
        pivots = factors.diagonal(dim1=1, dim2=2).square()  # [P, F]
        noise = features * torch.finfo(torch.float64).eps
        singular = failed.bool() | (pivots.amin(1) <= 10 * noise * pivots.amax(1))
        if singular.any():
            first = int(singular.nonzero()[0])
            a, b = int(i[first]), int(j[first])
            raise UserError(
                f"the covariances of classes {names[a]} and {names[b]} add up to a singular matrix "
                f"({len(members[a])} and {len(members[b])} images, {features} features); use "
                f"shrinkage, more images or fewer features"
            )
    return covariances


def _pairs(classes: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """Return all pairs i < j, ``size`` at a time, so that their matrices have bounded memory."""
    first, second = torch.triu_indices(classes, classes, offset=1)
    return list(zip(first.split(size), second.split(size), strict=True))


def _fisher(means: Tensor, covariances: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Return J of the pairs ``i``, ``j``, ``[P]``, of ``[U, F]`` and ``[U, F, F]``."""
    factors = torch.linalg.cholesky(covariances[i] + covariances[j])  # [P, F, F]
    gaps = (means[i] - means[j]).unsqueeze(2)  # [P, F, 1]
    white: Tensor = torch.linalg.solve_triangular(factors, gaps, upper=False)
    return white.square().sum((1, 2))


def _mean_over_others(criterion: Criterion, classes: int, others: int, size: int) -> Tensor:
    """Return each class's mean of ``criterion`` over ``others``; ``size`` pairs at a time."""
    if others == classes - 1:
        matrix = torch.zeros(classes, classes, dtype=torch.float64)
        for i, j in _pairs(classes, size):
            matrix[i, j] = matrix[j, i] = criterion(i, j)
        return matrix.sum(1) / others
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(classes, dtype=torch.float64)
    for step in range(1, others // 2 + 1):
        for i, j in zip(order.split(size), order.roll(-step).split(size), strict=True):
            values = criterion(i, j)
            total[i] += values
            total[j] += values
    return total / others


def separability_by_group(separability: Tensor, longtail: LongTail) -> dict[str, float]:
    """Return the mean of S_i ``[C]`` over the classes of each group and over all (table 6).

    Classes whose S is nan are left out, and so are groups without any other.
    """
    groups = {**longtail.groups, "all": range(longtail.classes)}
    known = {name: separability[list(classes)] for name, classes in groups.items()}
    known = {name: values[~values.isnan()] for name, values in known.items()}
    return {name: float(values.mean()) for name, values in known.items() if len(values)}
