"""Losses as pure functions: logits ``[B, C]`` and labels ``[B]`` to unreduced losses ``[B]``.

Labels out of range are refused where that can be seen without waiting for the device: on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lt_pipeline.learning.schema import UserError

NO_LABEL = torch.iinfo(torch.int64).min


def at_least_float32(values: Tensor) -> Tensor:
    """Return ``values`` in float32, or in float64 if they are: half precision has too few digits.

    What is rounded already stays so: it is for sums and exponentials of values, not for small
    differences of large ones.
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log softmax(logits)_y, ``[B]`` (DBM, equation 1).

    Raises:
        ValueError: if a label names no class.
    """
    check_labels(labels, logits.shape[1])
    # torch would pass over labels of -100 and call their loss 0
    return F.cross_entropy(logits, labels, reduction="none", ignore_index=NO_LABEL)


def weighted_cross_entropy(logits: Tensor, labels: Tensor, class_weight: Tensor) -> Tensor:
    """Return w_y times the cross-entropy, ``[B]``, for ``class_weight`` ``[C]``."""
    return cross_entropy(logits, labels) * class_weight[labels]


def logit_adjusted(logits: Tensor, labels: Tensor, log_prior: Tensor, tau: float) -> Tensor:
    """Return the cross-entropy of logits + tau * log prior, ``[B]``, for ``log_prior`` ``[C]``.

    Menon et al., Long-tail learning via logit adjustment (ICLR 2021), equation 10; tau = 1 is
    Fisher consistent for the balanced error.
    """
    return cross_entropy(logits + tau * log_prior, labels)


def balanced_softmax(logits: Tensor, labels: Tensor, log_prior: Tensor) -> Tensor:
    """Return -log(p_y e^(z_y) / sum_c p_c e^(z_c)), ``[B]``, for ``log_prior`` ``[C]`` = log p.

    Ren et al., Balanced meta-softmax for long-tailed visual recognition (NeurIPS 2020),
    equation 4 (DBM, equation 4). It equals logit adjustment at tau = 1.
    """
    return logit_adjusted(logits, labels, log_prior, 1.0)


def focal(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Return -(1 - p_y)^gamma log p_y, ``[B]``, with p the softmax of ``logits``.

    Lin et al., Focal loss for dense object detection (ICCV 2017), equation 4, over softmax
    probabilities; gamma = 0 is cross-entropy.
    """
    loss = cross_entropy(logits, labels)
    # 1 - p without cancellation; a certain image would have an infinite slope for gamma < 1
    doubt = -torch.expm1(-loss)
    return doubt.clamp(min=torch.finfo(loss.dtype).eps) ** gamma * loss


def class_balanced_weight(class_counts: Tensor, beta: float) -> Tensor:
    """Return class weights (1 - beta) / (1 - beta^n_c), scaled to sum to C, ``[C]``.

    Cui et al., Class-balanced loss based on effective number of samples (CVPR 2019), section 4
    (DBM, equation 3). ``class_counts`` is float64 ``[C]``: in single precision 1 - beta^n has no
    digits left.

    Raises:
        UserError: if a class has no image.
    """
    check_counts(class_counts)
    weight = (1 - beta) / (1 - torch.pow(beta, class_counts))
    return weight * (len(class_counts) / weight.sum())


def cdb_weight(class_accuracy: Tensor, known: Tensor, tau: float | None = None) -> Tensor:
    """Return weights (1 - accuracy_c)^tau, scaled to sum to C, ``[C]``; all 1 if all are right.

    ``class_accuracy`` is ``[C]``; a class that is not ``known``, bool ``[C]``, counts as the mean
    of those that are. At least one must be.

    Sinha et al., Class-wise difficulty-balanced loss for solving class-imbalance (ACCV 2020).
    Without ``tau`` it is their dynamic one, 2 / (1 + exp(-b)) with the bias
    b = max accuracy / (min accuracy + 0.01) - 1: near 1 for equal accuracies, towards 2 for others.
    """
    accuracy = torch.where(known, class_accuracy, class_accuracy[known].mean())
    difficulty = 1 - accuracy
    if tau is None:
        bias = accuracy.max() / (accuracy.min() + 0.01) - 1
        difficulty = difficulty ** (2 * torch.sigmoid(bias))
    else:
        difficulty = difficulty**tau
    total = difficulty.sum()
    scaled = difficulty * (len(difficulty) / total.clamp(min=torch.finfo(total.dtype).tiny))
    return torch.where(total > 0, scaled, torch.ones_like(scaled))


def balanced_contrastive(
    projections: Tensor, labels: Tensor, prototypes: Tensor, temperature: float
) -> Tensor:
    """Return the balanced contrastive loss of every image, ``[B]``, the mean over its views.

    Zhu et al., Balanced contrastive learning for long-tailed visual recognition (CVPR 2022),
    equation 6. ``projections`` ``[V, B, D]`` are V views of B images and ``prototypes`` ``[C, D]``
    one for each class (class complement: every class is in every batch); all of unit length. A
    view is drawn to the other members of its class, its prototype among them. In the denominator
    each class counts by the mean over its members, not their sum (class averaging); the anchor is
    no member of its own.
    """
    views, images, width = projections.shape
    check_labels(labels, len(prototypes))
    anchors = projections.reshape(views * images, width)
    own = labels.repeat(views)
    members = torch.cat([anchors, prototypes])
    classes = torch.cat([own, torch.arange(len(prototypes), device=labels.device)])
    similarity = anchors @ members.T / temperature
    same = own[:, None] == classes
    self_pair = torch.eye(len(anchors), len(members), dtype=torch.bool, device=labels.device)
    positive = same & ~self_pair
    # the number of members by which a class's exponentials are averaged, [V B, V B + C]
    ones = torch.ones_like(classes, dtype=similarity.dtype)
    sizes = ones.new_zeros(len(prototypes)).index_add_(0, classes, ones)
    averaged = similarity - (sizes[classes] - same.to(ones.dtype)).clamp(min=1).log()
    log_denominator = averaged.masked_fill(self_pair, -torch.inf).logsumexp(1)
    drawn = (similarity * positive).sum(1) / positive.sum(1)
    return (log_denominator - drawn).view(views, images).mean(0)


def check_counts(class_counts: Tensor) -> None:
    """Refuse counts ``[C]`` with a class that has no image.

    Raises:
        UserError: naming the first such class.
    """
    empty = (class_counts < 1).nonzero()
    if len(empty):
        raise UserError(
            f"every class needs at least one training image, but class {int(empty[0])} has "
            f"{float(class_counts[empty[0]]):g}"
        )


def check_labels(labels: Tensor, classes: int) -> None:
    """Refuse labels ``[B]`` on the CPU that name no class; on a GPU this would be a wait a step.

    In a compiled step labels have no values to look at, and pass.

    Raises:
        ValueError: naming the range.
    """
    if torch.compiler.is_compiling():
        return
    if labels.device.type != "cpu" or not len(labels):
        return
    low, high = (int(value) for value in torch.aminmax(labels))
    if low < 0 or high >= classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, but range from {low} to {high}")
