"""How far classes lie apart in feature space, by Fisher's criterion (DBM, table 6)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_pipeline.learning.data.longtail import LongTail
from lt_pipeline.learning.schema import UserError

MAX_OPERATIONS = 1e13
CHUNK_NUMBERS = 2**20  # 8 MiB of float64 for the [P, F, F] of one chunk of pairs


def affordable(classes: int, features: int) -> bool:
    """Say whether ``class_separability`` of C ``classes`` and F ``features`` is worth its time.

    It factorises C(C-1)/2 matrices of F x F, and is worth it up to ``MAX_OPERATIONS`` = 1e13
    operations, counted as C(C-1)/2 F^3: some minutes on one core. CIFAR-100 with 64 features
    needs 1.3e9, ImageNet-LT with 2,048 needs 4e15 (and 34 GB for the covariances).
    """
    return classes * (classes - 1) / 2 * features**3 <= MAX_OPERATIONS


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
    features, labels = features.detach().double().cpu(), labels.cpu()
    if unit:
        features = F.normalize(features, dim=1, eps=torch.finfo(features.dtype).tiny)
    usable = torch.bincount(labels, minlength=classes).ge(2).nonzero().squeeze(1).tolist()
    separability = torch.full((classes,), torch.nan, dtype=torch.float64)
    if len(usable) > 1:
        members = [features[labels == c] for c in usable]
        means = torch.stack([x.mean(0) for x in members])  # [U, F]
        if shrinkage and sum(sorted(map(len, members))[-2:]) < features.shape[1]:
            criterion = _fisher_of_few(means, members, features)  # [U, U]
        else:
            covariances = _shrunk(members, features) if shrinkage else _plain(members, usable)
            criterion = _fisher(means, covariances)
        separability[usable] = criterion.sum(1) / (len(usable) - 1)
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
    estimates = [torch.from_numpy(shrink.fit(x.numpy()).covariance_) for x in members]
    return torch.stack(
        [s * len(x) / (len(x) - 1) + floor for x, s in zip(members, estimates, strict=True)]
    )


def _rounding(features: Tensor) -> float:
    """Return the least variance: the square of float32's rounding error of the features."""
    return torch.finfo(torch.float32).eps ** 2 * float(features.square().mean()) or 1.0


def _fisher_of_few(means: Tensor, members: Sequence[Tensor], features: Tensor) -> Tensor:
    """Return J of all pairs, ``[U, U]``, of classes with fewer images than features.

    What ``_fisher`` gives for ``_shrunk`` covariances, without a factor of F x F a pair: with Z the
    centred images of both classes, scaled, Sigma_i + Sigma_j = Z^T Z + c I, and by Woodbury's
    identity J = (|d|^2 - v^T (Z Z^T + c I)^-1 v) / c for the gap d and v = Z d.
    """
    from sklearn.covariance import OAS

    shrink, scaled, level = OAS(store_precision=False), [], []
    for x, mean in zip(members, means, strict=True):
        estimate, degrees = shrink.fit(x.numpy()), len(x) - 1
        variance = float(estimate.covariance_.trace()) / x.shape[1]
        scaled.append(((1 - estimate.shrinkage_) / degrees) ** 0.5 * (x - mean))
        level.append(estimate.shrinkage_ * variance * len(x) / degrees + _rounding(features))
    z, ends = torch.cat(scaled), [0, *accumulate(map(len, members))]
    gram, projected = z @ z.T, z @ means.T  # [N, N], [N, U]
    criterion = torch.zeros(len(means), len(means), dtype=means.dtype)
    for i, j in combinations(range(len(means)), 2):
        rows = torch.cat([torch.arange(ends[k], ends[k + 1]) for k in (i, j)])
        both, gap = level[i] + level[j], (means[i] - means[j]).square().sum()
        v = (projected[rows, i] - projected[rows, j])[:, None]
        inner = gram[rows][:, rows] + both * torch.eye(len(rows), dtype=gram.dtype)
        white = torch.linalg.solve_triangular(torch.linalg.cholesky(inner), v, upper=False)
        criterion[i, j] = criterion[j, i] = (gap - white.square().sum()).clamp(min=0) / both
    return criterion


def _plain(members: Sequence[Tensor], names: Sequence[int]) -> Tensor:
    """Return each class's unbiased covariance ``[U, F, F]``; refuse pairs with a singular sum."""
    features = members[0].shape[1]
    covariances = torch.stack([x.T.cov().reshape(features, features) for x in members])
    for i, j in _pairs(len(members), features):
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


def _pairs(classes: int, features: int) -> list[tuple[Tensor, Tensor]]:
    """Return all pairs i < j, in chunks whose ``[P, F, F]`` matrices have bounded memory."""
    first, second = torch.triu_indices(classes, classes, offset=1)
    size = max(1, CHUNK_NUMBERS // features**2)
    return list(zip(first.split(size), second.split(size), strict=True))


def _fisher(means: Tensor, covariances: Tensor) -> Tensor:
    """Return J of all pairs, ``[U, U]`` with a zero diagonal, of ``[U, F]`` and ``[U, F, F]``."""
    criterion = torch.zeros(len(means), len(means), dtype=means.dtype)
    for i, j in _pairs(*means.shape):
        factors = torch.linalg.cholesky(covariances[i] + covariances[j])  # [P, F, F]
        gaps = (means[i] - means[j]).unsqueeze(2)  # [P, F, 1]
        white = torch.linalg.solve_triangular(factors, gaps, upper=False)
        criterion[i, j] = criterion[j, i] = white.square().sum((1, 2))
    return criterion


def separability_by_group(separability: Tensor, longtail: LongTail) -> dict[str, float]:
    """Return the mean of S_i ``[C]`` over the classes of each group and over all (table 6).

    Classes whose S is nan are left out, and so are groups without any other.
    """
    groups = {**longtail.groups, "all": range(longtail.classes)}
    known = {name: separability[list(classes)] for name, classes in groups.items()}
    known = {name: values[~values.isnan()] for name, values in known.items()}
    return {name: float(values.mean()) for name, values in known.items() if len(values)}
