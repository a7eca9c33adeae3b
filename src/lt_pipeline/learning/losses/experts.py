"""What RIDE and SADE compute on the logits of K experts, ``[B, K, C]``.

RIDE: Wang et al., Long-tailed recognition by routing diverse distribution-aware experts (ICLR
2021). SADE: Zhang et al., Self-supervised aggregation of diverse experts for test-agnostic
long-tailed recognition (NeurIPS 2022).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lt_pipeline.learning.losses.functional import check_counts, cross_entropy
from lt_pipeline.learning.schema import UserError

TemperatureRule = Literal["ratio", "shift"]
DiversityTarget = Literal["mean", "others"]


def inverse_prior(prior: Tensor) -> Tensor:
    """Return the class frequencies ``prior`` ``[C]`` with their ranks reversed, ``[C]``.

    The most frequent class gets the rarest one's frequency, the second the second rarest's, and so
    on, in whatever order the classes stand. Classes of one frequency share the mean of what they
    would get, so that equals stay equal; the sum stays 1.
    """
    mirrored = torch.empty_like(prior)
    mirrored[prior.argsort()] = prior.sort(descending=True).values
    level = prior.unique(return_inverse=True)[1]  # [C], the same for classes of one frequency
    total = torch.zeros_like(prior).index_add_(0, level, mirrored)
    members = torch.zeros_like(prior).index_add_(0, level, torch.ones_like(prior))
    return (total / members.clamp(min=1))[level]


def skill_shift(prior: Tensor, tau: float) -> Tensor:
    """Return what SADE adds to the logits of its three experts in training, ``[3, C]``.

    With p = ``prior`` ``[C]`` and q its inverse: 0 (softmax), log p (balanced softmax) and
    log p - tau log q (inverse softmax).
    """
    log_prior = prior.log()
    inverse = log_prior - tau * inverse_prior(prior).log()
    return torch.stack([torch.zeros_like(log_prior), log_prior, inverse])


def by_expert(logits: Tensor, labels: Tensor) -> Tensor:
    """Return every expert's cross-entropy, ``[B, K]``, of ``logits`` ``[B, K, C]``.

    Raises:
        UserError: if one of the ``labels`` ``[B]`` names no class.
    """
    experts = logits.shape[1]
    loss = cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(experts))
    return loss.view(-1, experts)


def prediction_stability(one: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    """Return the cosine of the predictions for two views of every image, ``[B]``, in [0, 1].

    ``one`` and ``other`` are the experts' logits ``[B, K, C]`` of the views. A prediction is
    softmax(sum_k w_k z_k) for ``weight`` w ``[K]``: SADE's objective of test-time aggregation.
    """
    first, second = ((weight[:, None] * seen).sum(1).softmax(1) for seen in (one, other))
    return F.cosine_similarity(first, second, dim=1)


def class_temperature(
    class_counts: Tensor, alpha: float, gamma: float, rule: TemperatureRule
) -> Tensor:
    """Return RIDE's temperature of every class, ``[C]``: lower for rarer ones, at most alpha.

    With beta_c = gamma n_c / mean(n) + 1 - gamma for float64 ``class_counts`` n ``[C]``, ``shift``
    is the paper's alpha (beta_c + 1 - max beta) and ``ratio`` the released code's
    alpha beta_c / max beta.

    Raises:
        UserError: if a class has no image, or a temperature would not be positive.
    """
    check_counts(class_counts)
    beta = gamma * class_counts / class_counts.mean() + 1 - gamma
    largest = beta.max()
    temperature = alpha * (beta / largest if rule == "ratio" else beta + 1 - largest)
    if temperature.min() <= 0:
        raise UserError(
            f"the rarest class's temperature must be > 0, but is {float(temperature.min()):g}: "
            f"lower temperature_gamma, which is {gamma:g}, or use the rule ratio"
        )
    return temperature


def diversity(logits: Tensor, temperature: Tensor, target: DiversityTarget) -> Tensor:
    """Return how far each expert is from the rest, ``[B, K]``; RIDE maximises it.

    ``temperature`` ``[C]`` divides the ``logits`` ``[B, K, C]`` class by class before the softmax:

    - ``others`` is the paper's sum_{j != i} KL(p_i || p_j) / (K - 1), with gradients through both.
    - ``mean`` is the released code's mean(T)^2 KL(m || p_i): m is the softmax of the experts' mean
      logits, without a gradient. It takes linear instead of quadratic time in K.
    """
    log_p = (logits / temperature).log_softmax(2)
    if target == "others":
        p = log_p.exp()
        cross = torch.einsum("bic,bjc->bi", p, log_p)
        experts = logits.shape[1]
        return (experts * (p * log_p).sum(2) - cross) / (experts - 1)
    log_m = (logits.detach().mean(1) / temperature).log_softmax(1)[:, None]
    return temperature.mean() ** 2 * (log_m.exp() * (log_m - log_p)).sum(2)


def running_mean(logits: Tensor) -> Tensor:
    """Return, as its k-th ``[B, C]``, the mean logits of the first k experts: ``[B, K, C]``."""
    count = torch.arange(1, logits.shape[1] + 1, device=logits.device, dtype=logits.dtype)
    return logits.cumsum(1) / count[:, None]


def needs_more(logits: Tensor, labels: Tensor) -> Tensor:
    """Return whether an image needs more than the first k experts, bool ``[B, K - 1]``.

    It does if the mean of their ``logits`` ``[B, K, C]`` is wrong, but that of some larger number
    of experts is right; ``labels`` are ``[B]``.
    """
    right = running_mean(logits).argmax(2) == labels[:, None]
    later = right.flip(1).cummax(1).values.flip(1)  # right with k or some larger number of experts
    return ~right[:, :-1] & later[:, 1:]


def routing_loss(gates: Tensor, needed: Tensor, weight: float) -> Tensor:
    """Return -w y log s(g) - (1 - y) log(1 - s(g)), ``[B, K - 1]``: RIDE's routing loss.

    ``gates`` g ``[B, K - 1]`` are the router's logits, s the sigmoid, ``needed`` y the bool labels
    of the same shape, and ``weight`` w (the paper's omega_on) the weight of those that are true.
    """
    positive = gates.new_tensor(weight)
    return F.binary_cross_entropy_with_logits(
        gates, needed.to(gates.dtype), pos_weight=positive, reduction="none"
    )


def experts_used(gates: Tensor) -> Tensor:
    """Return how many experts an image gets, int64 ``[B]`` in 1..K, by ``gates`` ``[B, K - 1]``.

    The first gate that is not above 0 (probability 1/2) stops; those behind it have no say.
    """
    return 1 + (gates > 0).long().cumprod(1).sum(1)


def routed(logits: Tensor, gates: Tensor) -> Tensor:
    """Return the mean logits of the experts an image gets, ``[B, C]``.

    ``logits`` are ``[B, K, C]``, ``gates`` ``[B, K - 1]``.
    """
    last = experts_used(gates) - 1
    return running_mean(logits)[torch.arange(len(logits), device=logits.device), last]
