"""Losses as pure functions: logits ``[B, C]`` and labels ``[B]`` to unreduced losses ``[B]``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log softmax(logits)_y, ``[B]``."""
    return F.cross_entropy(logits, labels, reduction="none")


def weighted_cross_entropy(logits: Tensor, labels: Tensor, class_weight: Tensor) -> Tensor:
    """Return w_y times the cross-entropy, ``[B]``, for ``class_weight`` ``[C]``."""
    return class_weight[labels] * cross_entropy(logits, labels)


def logit_adjusted(logits: Tensor, labels: Tensor, log_prior: Tensor, tau: float) -> Tensor:
    """Return the cross-entropy of logits + tau * log prior, ``[B]``, for ``log_prior`` ``[C]``.

    Menon et al., Long-tail learning via logit adjustment (ICLR 2021), equation 10; tau = 1 is
    Fisher consistent for the balanced error.
    """
    return cross_entropy(logits + tau * log_prior, labels)


def balanced_softmax(logits: Tensor, labels: Tensor, class_counts: Tensor) -> Tensor:
    """Return -log(n_y e^(z_y) / sum_c n_c e^(z_c)), ``[B]``, for ``class_counts`` ``[C]``.

    Ren et al., Balanced meta-softmax for long-tailed visual recognition (NeurIPS 2020),
    equation 4. It equals logit adjustment at tau = 1.
    """
    return cross_entropy(logits + class_counts.log(), labels)


def class_balanced_weight(class_counts: Tensor, beta: float) -> Tensor:
    """Return class weights (1 - beta) / (1 - beta^n_c), scaled to sum to C, ``[C]``.

    Cui et al., Class-balanced loss based on effective number of samples (CVPR 2019), section 4.
    ``class_counts`` is float64 ``[C]``: in single precision 1 - beta^n has no digits left.
    """
    weight = (1 - beta) / (1 - torch.pow(beta, class_counts))
    return weight * (len(class_counts) / weight.sum())
