"""Energies with bounds (Liu et al., Energy-based Out-of-distribution Detection, NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from lt_pipeline.learning.losses.ambiguity import energy
from lt_pipeline.learning.losses.outliers import energy_margin
from lt_pipeline.learning.methods.families.outliers import OutlierMethod, OutlierOptions
from lt_pipeline.learning.schema import UserError


class EnergyOptions(OutlierOptions):
    """What it can be told.

    Attributes:
        start: the authors train without outliers first and tune for a tenth as long.
        inside_below: m_in, the energy that training images should not exceed: -23 on CIFAR-10, -27
            on CIFAR-100.
        outside_above: m_out, the energy that outliers should not fall below.
    """

    symbols: ClassVar[Mapping[str, str]] = {
        **OutlierOptions.symbols,
        "m_in": "inside_below",
        "m_out": "outside_above",
    }

    start: float = Field(default=0.9, ge=0, lt=1)
    weight: PositiveFloat = 0.1
    inside_below: float = -27.0
    outside_above: float = -5.0

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.inside_below > self.outside_above:
            raise UserError(
                f"inside_below must be <= outside_above, but they are {self.inside_below:g} and "
                f"{self.outside_above:g}"
            )
        return self


class EnergyOutlierExposure(OutlierMethod):
    """Energies of training images are pushed below a bound, those of outliers above another."""

    Options = EnergyOptions
    options: EnergyOptions

    def exposure(self, id_logits: Tensor, ood_logits: Tensor) -> Tensor:
        """Return the squared distances to the bounds (equations 8 and 9), a scalar."""
        below, above = self.options.inside_below, self.options.outside_above
        kept, away = energy_margin(energy(id_logits, 1.0), energy(ood_logits, 1.0), below, above)
        return kept.mean() + away.mean()
