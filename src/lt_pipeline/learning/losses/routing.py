"""What DQRoute computes: class difficulty, its weights, routing, and the losses of OOD heads.

Wei, Ouyang, Ye: Divide, Weight, and Route (2025). Equations are theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lt_pipeline.learning.losses.functional import check_counts, class_balanced_weight
from lt_pipeline.learning.schema import UserError

OodLoss = Literal["entropy", "bce", "focal", "margin"]
Quantity = Literal["inverse", "square_root", "effective_number"]


def class_difficulty(entropy: Tensor, accuracy: Tensor, balance: float) -> Tensor:
    """Return d_c ``[C]`` in [0, 1]: equation 1, divided by 1 + lambda so that it stays there.

    ``entropy`` ``[C]`` in nats is over its maximum log C, ``accuracy`` ``[C]`` over 1; ``balance``
    is lambda >= 0.
    """
    certain = entropy / math.log(len(entropy))
    return (certain + balance * (1 - accuracy)) / (1 + balance)


def updated_log_weight(log_weight: Tensor, difficulty: Tensor, gamma: float, keep: float) -> Tensor:
    """Return log w of the next epoch, ``[C]``, with w summing to 1: equation 2 in log space.

    The product of equation 2 grows without bound, exp(gamma t d) after t epochs, and a weight that
    reaches 0 in single precision never comes back; its logarithm has no such end. ``keep`` < 1
    forgets: log w tends to softmax(gamma d / (1 - keep)).
    """
    return (keep * log_weight + gamma * difficulty).log_softmax(0)


def quantity_weight(class_counts: Tensor, kind: Quantity) -> Tensor:
    """Return q_c ``[C]`` with mean 1 for float64 ``class_counts`` ``[C]``: more for rarer classes.

    Raises:
        UserError: if a class has no image.
    """
    check_counts(class_counts)
    if kind == "effective_number":
        return class_balanced_weight(class_counts, 0.9999)
    weight = class_counts ** (-0.5 if kind == "square_root" else -1.0)
    return weight * (len(weight) / weight.sum())


def difficulty_weight(log_weight: Tensor) -> Tensor:
    """Return w ``[C]`` with mean 1, none below the dtype's eps times the largest.

    ``log_weight`` itself has no such floor: a class may fall as far as equation 2 takes it, and
    comes back as it says, but its images never lose their last say in the loss.
    """
    least = log_weight.max() + math.log(torch.finfo(log_weight.dtype).eps)
    return log_weight.clamp(min=least).softmax(0) * len(log_weight)


def mixed_weight(log_weight: Tensor, quantity: Tensor, alpha: float) -> Tensor:
    """Return alpha w + (1 - alpha) q, ``[C]``: equation 3, with both of mean 1 over the classes."""
    return alpha * difficulty_weight(log_weight) + (1 - alpha) * quantity


def effective_classes(log_weight: Tensor) -> Tensor:
    """Return exp(entropy of w), a scalar in [1, C]: how many classes share the weight."""
    return (-(log_weight.exp() * log_weight).sum()).exp()


def expert_classes(
    class_counts: Sequence[int], medium_below: int, tail_below: int
) -> tuple[Tensor, str]:
    """Return the classes of E_G, E_M, E_T, bool ``[3, C]``, and the rule in words (section 3.2).

    E_G has all classes, E_M those with fewer than ``medium_below`` (tau_m) training images, E_T
    those with fewer than ``tail_below`` (tau_t). Where E_M or E_T would have none, or E_M all,
    they get the two thirds and the third of the classes with the fewest images, at least one each.

    Raises:
        UserError: unless tail_below < medium_below.
    """
    if tail_below >= medium_below:
        raise UserError(f"tail_below must be < medium_below, but is {tail_below} >= {medium_below}")
    counts = torch.tensor(class_counts)
    classes = len(counts)
    medium, tail = counts < medium_below, counts < tail_below
    rule = f"below {medium_below} and {tail_below} training images"
    if not tail.any() or medium.all():
        rank = counts.argsort(descending=True, stable=True).argsort()
        medium, tail = (rank >= classes - max(1, n * classes // 3) for n in (2, 1))
        rule = f"two thirds and a third by rank, for want of classes {rule}"
    members = torch.stack([torch.ones_like(tail), medium, tail])
    sizes = " / ".join(str(int(n)) for n in members.sum(1))
    return members, f"experts have {sizes} classes ({rule})"


def routing_weight(confidence: Tensor) -> Tensor:
    """Return alpha_k = s_k / sum s, ``[B, K]``, of ``confidence`` ``[B, K]`` in [0, 1]: (5).

    Where all are exactly 0, the experts are alike; an expert with s_k = 0 beside any other has no
    say.
    """
    total = confidence.sum(1, keepdim=True)
    nothing = total == 0
    # the inner where keeps 0 / 0 out of the gradient
    weights = confidence / torch.where(nothing, 1.0, total)
    return torch.where(nothing, 1 / confidence.shape[1], weights)


def fused_log_probability(logits: Tensor, routing: Tensor) -> Tensor:
    """Return log sum_k alpha_k softmax(f_k), ``[B, C]``: equation 6 on probabilities.

    ``logits`` are ``[B, K, C]``, ``routing`` ``[B, K]``; an expert with alpha_k = 0 has no say. A
    logit of -inf is a class that an expert does not know; one that no expert with a say knows gets
    the smallest finite number.
    """
    fused = torch.logsumexp(logits.log_softmax(2) + routing.log()[:, :, None], 1)
    return fused.clamp(min=torch.finfo(fused.dtype).min)


def fused_logits(logits: Tensor, routing: Tensor) -> Tensor:
    """Return sum_k alpha_k f_k, ``[B, C]``: equation 6 on ``logits`` ``[B, K, C]``.

    A class that an expert does not know, with a logit of -inf, is left to the others: alpha_k of
    ``routing`` ``[B, K]`` is then normalised over them.
    """
    known = logits != -torch.inf
    weights = routing[:, :, None] * known
    weights = weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    return (weights * logits.masked_fill(~known, 0.0)).sum(1)


def ood_loss(
    kind: OodLoss, gates: Tensor, member: Tensor, logits: Tensor, uniform: float
) -> Tensor:
    """Return L_OOD^(k) ``[B, K]`` (equation 7 and table 6) of the OOD heads' logits ``gates``.

    ``gates`` are u_k ``[B, K]`` with s_k = sigmoid(u_k), ``member`` ``[B, K]`` is b_k = [y in C_k],
    ``logits`` ``[B, K, C]`` are the experts'. The paper writes out the first only:

    - ``bce``: -b log s - (1 - b) log(1 - s).
    - ``entropy``: that plus ``uniform`` times the cross-entropy between the uniform distribution
      and an expert's prediction for images outside its classes: outliers get high entropy.
    - ``focal``: -b (1 - s)^2 log s - (1 - b) s^2 log(1 - s).
    - ``margin``: b max(0, 1 - u) + (1 - b) max(0, 1 + u): satisfied at s = 0.73 and 0.27.
    """
    inside = member.to(gates.dtype)
    if kind == "margin":
        return inside * F.relu(1 - gates) + (1 - inside) * F.relu(1 + gates)
    loss = F.binary_cross_entropy_with_logits(gates, inside, reduction="none")
    if kind == "focal":
        return torch.expm1(-loss).square() * loss
    if kind == "entropy":
        loss = loss - uniform * (1 - inside) * logits.log_softmax(2).mean(2)
    return loss
