"""Ambiguity-aware logit adjustment: energy, the weight made from it, the adjusted logits.

Zhang, Chin et al., DARL: Mitigating gradient conflicts in long-tailed out-of-distribution learning
(ACM MM 2025), section 4. Equations are theirs. Here ``...`` stands for any leading dimensions.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lt_pipeline.learning.losses.functional import at_least_float32
from lt_pipeline.learning.schema import UserError

Ambiguity = Literal["softmax", "scaled_softmax", "class_means", "constant", "none"]


def energy(logits: Tensor, tau: float) -> Tensor:
    """Return E(z) = -tau log sum_c exp(z_c / tau), ``[...]``, of ``logits`` ``[..., C]``: (8).

    In the unit of the logits, and in at least float32; higher is more ambiguous. It falls from
    -max z (tau towards 0) to about -tau log C - mean z (large tau).

    Raises:
        UserError: unless tau > 0.
    """
    _check_tau(tau)
    return -tau * (at_least_float32(logits) / tau).logsumexp(-1)


def energy_terms(logits: Tensor, q: Tensor, tau: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return tau KL(q || p), tau H(q) and E_q[z], each ``[...]``; their sum is -E(z): (6).

    ``logits`` z and ``q``, a distribution over the classes, are ``[..., C]``. The paper does not
    say which p: the identity needs softmax(z / tau), the output only at tau = 1. For a fixed
    E_q[z], more label entropy H(q) therefore *lowers* E.

    Raises:
        UserError: unless tau > 0.
    """
    _check_tau(tau)
    logits = at_least_float32(logits)
    entropy = torch.special.entr(q).sum(-1)
    cross_entropy = -(q * (logits / tau).log_softmax(-1)).sum(-1)
    return tau * (cross_entropy - entropy), tau * entropy, (q * logits).sum(-1)


def ambiguity_weight(
    energies: Tensor,
    mode: Ambiguity,
    *,
    constant: float = 2.0,
    class_energy: Tensor | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """Return E_hat, the factor of every sample's adjustment, of the shape of ``energies``.

    ``energies`` are ``[B]``, or ``[B, K]`` for K experts, each of which is normalised by itself:

    - ``softmax``: 1 + softmax(E) over the B samples, the paper's words. Its mean is 1 + 1 / B.
    - ``scaled_softmax``: 1 + B softmax(E). Its mean is 2 for any B.
    - ``class_means``: 1 + C softmax(``class_energy``) over the classes, at the samples' ``labels``
      int64 ``[B]`` (the first ones of two-hot samples). Its mean over the classes is 2.
      ``class_energy``, from ``class_mean_energy``, is ``[C]``, or ``[K, C]`` for K experts.
    - ``constant``: ``constant``, the control of the two with mean 2.
    - ``none``: 1, which leaves plain logit adjustment.

    It passes gradients on to ``energies`` in the first two modes; detach these to have none, as
    otherwise a network can lower its loss by moving its energies.

    Raises:
        ValueError: if ``class_energy`` or ``labels`` are wanting for ``class_means``.
    """
    if mode == "class_means":
        if class_energy is None or labels is None:
            raise ValueError("the mode class_means needs class_energy and labels: give both")
        classes = class_energy.shape[-1]
        return 1 + classes * class_energy.softmax(-1)[..., labels].movedim(-1, 0)
    if mode == "softmax":
        return 1 + energies.softmax(0)
    if mode == "scaled_softmax":
        return 1 + len(energies) * energies.softmax(0)
    return torch.full_like(energies, constant if mode == "constant" else 1.0)


def mean_weight(mode: Ambiguity, constant: float) -> float:
    """Return the mean E_hat, for ``softmax`` that of a large batch."""
    return {"softmax": 1.0, "constant": constant, "none": 1.0}.get(mode, 2.0)


def class_mean_energy(
    previous: Tensor, energies: Tensor, labels: Tensor, momentum: float
) -> Tensor:
    """Return momentum * previous + (1 - momentum) * the batch's mean energy of every class.

    ``energies`` are ``[B]`` or ``[B, K]``, ``labels`` int64 ``[B]``, ``previous`` and the result
    ``[C]`` or ``[K, C]``, without a gradient. A class that is absent keeps its value. Mixed images
    are of no one class: leave them out. Start with the energy of zero logits, -tau log C, which is
    near that of an untrained network; 0 would look like the highest ambiguity.
    """
    moved = energies.detach().to(previous.dtype)
    total = torch.zeros_like(previous).index_add_(-1, labels, moved.movedim(0, -1))
    count = torch.zeros_like(previous).index_add_(-1, labels, torch.ones_like(moved).movedim(0, -1))
    mean = total / count.clamp(min=1)
    return torch.where(count > 0, torch.lerp(mean, previous, momentum), previous)


def adjusted_logits(logits: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    """Return z + E_hat a, ``[B, K, C]``: equation 9, with which cross-entropy is taken.

    ``logits`` z are ``[B, K, C]``, ``weight`` E_hat ``[B, K]``, and ``shift`` a ``[K, C]``, or
    ``[B, K, C]`` by sample, what each expert adds without ambiguity, such as the log prior.
    """
    return logits + weight[..., None] * shift


def _check_tau(tau: float) -> None:
    if not tau > 0:
        raise UserError(f"tau must be > 0, but is {tau:g}")
