"""Outlier exposure: what images of no class add to a loss.

OE is Hendrycks et al., Deep anomaly detection with outlier exposure (ICLR 2019); EnergyOE is Liu et
al., Energy-based out-of-distribution detection (NeurIPS 2020). Both add their weight times the mean
of these terms to the loss of the images with labels.

pytorch-ood's ``OutlierExposureLoss`` waits for the device (``any()``, indexing by a mask) and
refuses bfloat16 and float64 logits; its ``EnergyRegularizedLoss`` takes the energy in the logits'
own type, and always adds plain cross-entropy. So both are written out here and tested against them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lt_pipeline.learning.schema import UserError


def uniform_loss(logits: Tensor) -> Tensor:
    """Return the cross-entropy of the uniform distribution and softmax(z), ``[M]``, in nats: OE.

    For ``logits`` z ``[M, C]`` this is logsumexp z - mean z, at least log C; in at least float32.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -wide.log_softmax(1).mean(1)


def energy_margin(
    id_energies: Tensor, ood_energies: Tensor, m_in: float, m_out: float
) -> tuple[Tensor, Tensor]:
    """Return max(0, E - m_in)^2, ``[B]``, and max(0, m_out - E)^2, ``[M]``: EnergyOE.

    ``id_energies`` ``[B]`` and ``ood_energies`` ``[M]`` are those (``ambiguity.energy`` at tau = 1)
    of images with a class, to be below ``m_in``, and of outliers, to be above ``m_out``.

    Raises:
        UserError: if m_in > m_out.
    """
    if m_in > m_out:
        raise UserError(
            f"m_in must be <= m_out, as classes have lower energies than outliers, but they are "
            f"{m_in:g} and {m_out:g}"
        )
    return (id_energies - m_in).relu().square(), (m_out - ood_energies).relu().square()
