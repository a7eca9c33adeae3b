"""Whether other images' losses pull the classification head against the ID loss (DARL, eq. 1-5).

DARL: Zhang, Chin et al., Mitigating gradient conflicts in long-tailed out-of-distribution
learning, MM 2025.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.evaluation.diagnostics.logit_shift import by_group_and_all
from lt_pipeline.learning.models.heads import l2_normalize

CHUNK_NUMBERS = 2**22  # 32 MiB of float64 for the [n, M] cosines of one chunk of images


@dataclass(frozen=True)
class Readout:
    """A classification head: linear without ``scale``, cosine with it.

    A linear head's logits are z_c = <w_c, f> + b_c, of ``weight`` ``[C, F]`` and ``bias`` ``[C]``
    or None; a cosine head's are z_c = s <w_c / |w_c|, f / |f|>, s being ``scale``.

    Raises:
        ValueError: for shapes that do not fit, and for a cosine head with a bias.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is no head."""
        if self.weight.ndim != 2:
            raise ValueError(f"weight must be [C, F], but is {list(self.weight.shape)}")
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise ValueError(
                f"bias must be [{len(self.weight)}], one a class, but is {list(self.bias.shape)}"
            )
        if self.bias is not None and self.scale is not None:
            raise ValueError("a cosine head has no bias: give either bias or scale")

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits, float64 ``[N, C]``, of ``features`` ``[N, F]``."""
        weight, features = self.weight.detach().double(), features.detach().double()
        bias = None if self.bias is None else self.bias.detach().double()
        if self.scale is None:
            return F.linear(features, weight, bias)
        return self.scale * F.linear(l2_normalize(features), l2_normalize(weight))


def residual(logits: Tensor, targets: Tensor) -> Tensor:
    """Return r = p - q, the gradient of the cross-entropy to ``targets`` by the logits.

    ``logits`` and ``targets`` are ``[N, C]``, each target q a distribution; r is float64
    ``[N, C]``. One-hot q make the classification loss, 1/C for all classes outlier exposure
    (L_OE), two-hot q the loss of mixed images (equation 3). Where a loss adds something to the
    logits, as a logit adjustment does, add it before.

    Equation 1 has a slip of sign: its factor (1/C - p(x')) is the gradient of -L_OE. That of L_OE
    is p(x') - 1/C, and with it the product is negative as equation 2 says.

    Raises:
        ValueError: when the shapes differ or a target does not sum to 1.
    """
    if logits.shape != targets.shape:
        raise ValueError(
            f"targets must have the logits' shape {list(logits.shape)}, but have "
            f"{list(targets.shape)}"
        )
    targets = targets.detach().double()
    if not torch.allclose(targets.sum(1), targets.new_ones(()), rtol=0, atol=1e-5):
        raise ValueError("every target must sum to 1 over the classes; divide it by its sum")
    probability = logits.detach().double().softmax(1)
    difference = probability - targets / targets.sum(1, keepdim=True)
    # r sums to 0: for the likeliest class, p - 1 would lose all its digits where p is nearly 1.
    likeliest = probability.argmax(1, keepdim=True)
    rest = difference.scatter(1, likeliest, 0.0).sum(1, keepdim=True)
    return difference.scatter(1, likeliest, -rest)


def gradient_products(
    residual_a: Tensor, features_a: Tensor, residual_b: Tensor, features_b: Tensor, head: Readout
) -> Tensor:
    """Return the inner products of all pairs of gradients by the head (equation 1).

    ``residual_a`` ``[N, C]`` and ``features_a`` ``[N, F]`` describe N losses, as ``residual``
    found them, and the b's M others; the products are float64 ``[N, M]``. A gradient is
    sum_c r_c dz_c/dtheta, over the weights and, where the head has one, the bias:

    - linear: <g, g'> = <r, r'> (<f, f'> + 1), without the 1 when there is no bias;
    - cosine: dz_c/dw_c = s / |w_c| (f - <f, u_c> u_c) of unit vectors f and u_c, so <g, g'> =
      sum_c s^2 / |w_c|^2 r_c r'_c (<f, f'> - <f, u_c> <f', u_c>).

    Equations 2 and 5 are no identities. Under a linear head and with f' = f, (2) holds exactly
    when p_y > |p|^2: surely where y is the likeliest class, but p_y > 1/C, which the paper asks
    for, is too little. (5) fails where the mixed image is taken for its class too surely, as
    with p_y well above q_y.

    Raises:
        ValueError: when shapes do not fit the head.
    """
    return _factors(residual_a, features_a, head).products(_factors(residual_b, features_b, head))


def gradient_cosines(
    residual_a: Tensor, features_a: Tensor, residual_b: Tensor, features_b: Tensor, head: Readout
) -> Tensor:
    """Return the cosines of all pairs of gradients by the head, float64 ``[N, M]``.

    The arguments are those of ``gradient_products``. A gradient of length 0 has no direction: its
    cosines are 0.

    Raises:
        ValueError: when shapes do not fit the head.
    """
    first = _factors(residual_a, features_a, head).directions()
    return first.products(_factors(residual_b, features_b, head).directions())


def paired_cosines(
    residual_a: Tensor, features_a: Tensor, residual_b: Tensor, features_b: Tensor, head: Readout
) -> Tensor:
    """Return the cosine of each image's gradient and its partner's, float64 ``[N]``.

    The partner is the one in the same row, as an image and its own mixture in equation 5.

    Raises:
        ValueError: when a partner is missing, or shapes do not fit the head.
    """
    if len(residual_a) != len(residual_b):
        raise ValueError(
            f"pairs need as many partners as images, but there are {len(residual_b)} and "
            f"{len(residual_a)}"
        )
    first = _factors(residual_a, features_a, head).directions()
    return first.paired(_factors(residual_b, features_b, head).directions())


def conflict_by_group(
    residual: Tensor,
    features: Tensor,
    labels: Tensor,
    other_residual: Tensor,
    other_features: Tensor,
    head: Readout,
    longtail: LongTail,
) -> dict[str, dict[str, float]]:
    """Return how ID gradients agree with the others', by group of the ID image's class.

    ``residual`` ``[N, C]``, ``features`` ``[N, F]`` and ``labels`` ``[N]`` are the ID images',
    ``other_residual`` ``[M, C]`` and ``other_features`` ``[M, F]`` the other images', for
    instance OOD images under outlier exposure. Over all N M pairs, ``cosine`` is the mean cosine
    and ``negative_share`` the share below 0, in [0, 1]: {statistic: {group: value}} with the
    groups that have images and ``all``. Memory is bounded: pairs are made a chunk at a time.

    Raises:
        ValueError: when either side has no image, or shapes do not fit the head.
    """
    _need_images(residual, other_residual)
    first = _factors(residual, features, head).directions()
    second = _factors(other_residual, other_features, head).directions()
    means, negative = [], []
    for chunk in first.chunks(max(1, CHUNK_NUMBERS // len(other_residual))):
        cosines = chunk.products(second)
        means.append(cosines.mean(1))
        negative.append((cosines < 0).double().mean(1))
    return _summary(torch.cat(means), torch.cat(negative), labels, longtail)


def paired_conflict_by_group(
    residual: Tensor,
    features: Tensor,
    labels: Tensor,
    other_residual: Tensor,
    other_features: Tensor,
    head: Readout,
    longtail: LongTail,
) -> dict[str, dict[str, float]]:
    """Return the same as ``conflict_by_group``, but of each ID image and its partner alone.

    All sides have N rows; the partner of an image is in the same row.

    Raises:
        ValueError: when there is no image or a partner is missing, or shapes do not fit the head.
    """
    _need_images(residual, other_residual)
    cosines = paired_cosines(residual, features, other_residual, other_features, head)
    return _summary(cosines, (cosines < 0).double(), labels, longtail)


@dataclass(frozen=True)
class _Factors:
    """N gradients g, kept as what their inner products need.

    <g, g'> = <r, r'> <f, f'> - <k, k'>: of ``r`` ``[N, C]`` weighted residuals, ``f`` ``[N, F]``
    features, and ``k`` what a cosine head's unit weights take away, ``[N, C]``, else ``[N, 0]``.
    """

    r: Tensor
    f: Tensor
    k: Tensor

    def products(self, other: _Factors) -> Tensor:
        """Return the inner products of all pairs, ``[N, M]``."""
        return (self.r @ other.r.T).mul_(self.f @ other.f.T).sub_(self.k @ other.k.T)

    def paired(self, other: _Factors) -> Tensor:
        """Return the inner product of each row with the same row of ``other``, ``[N]``."""
        return (self.r * other.r).sum(1) * (self.f * other.f).sum(1) - (self.k * other.k).sum(1)

    def directions(self) -> _Factors:
        """Return the gradients at length 1; those of length 0 stay."""
        squares = self.paired(self)
        # Below its own rounding error, a difference of squares is 0.
        noise = torch.finfo(squares.dtype).eps * (self.r.square().sum(1) * self.f.square().sum(1))
        inverse = torch.where(squares > 4 * noise, squares.rsqrt(), 0.0)[:, None]
        return _Factors(self.r * inverse, self.f, self.k * inverse)

    def chunks(self, size: int) -> Iterator[_Factors]:
        """Return the gradients, ``size`` at a time."""
        for start in range(0, len(self.r), size):
            rows = slice(start, start + size)
            yield _Factors(self.r[rows], self.f[rows], self.k[rows])


def _factors(residual: Tensor, features: Tensor, head: Readout) -> _Factors:
    classes, width = head.weight.shape
    if residual.shape[1:] != (classes,) or features.shape != (len(residual), width):
        raise ValueError(
            f"residual and features must be [N, {classes}] and [N, {width}], as the head's weight "
            f"says, but are {list(residual.shape)} and {list(features.shape)}"
        )
    residual, features = residual.detach().double(), features.detach().double()
    if head.scale is None:
        ones = features.new_ones(len(features), 0 if head.bias is None else 1)
        return _Factors(residual, torch.cat([features, ones], 1), residual[:, :0])
    weight = head.weight.detach().double()
    length = weight.norm(dim=1).clamp(min=torch.finfo(weight.dtype).eps)
    residual, features = residual * (head.scale / length), l2_normalize(features)
    return _Factors(residual, features, residual * F.linear(features, l2_normalize(weight)))


def _need_images(residual: Tensor, other_residual: Tensor) -> None:
    if not len(residual) or not len(other_residual):
        raise ValueError(
            f"gradients need images on both sides, but there are {len(residual)} ID images and "
            f"{len(other_residual)} others"
        )


def _summary(
    cosines: Tensor, negative: Tensor, labels: Tensor, longtail: LongTail
) -> dict[str, dict[str, float]]:
    labels = labels.to(cosines.device)
    return {
        name: by_group_and_all(values, labels, longtail)
        for name, values in (("cosine", cosines), ("negative_share", negative))
    }
