"""Where a training stands: all that a step changes, copied, put back and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# how far two steps may end from one another, over the way that one goes
TOLERANCE = 0.05

# what a step changes, by kind
Held = Mapping[str, list[Tensor]]


@dataclass(frozen=True)
class Place:
    """Copies of all that a step changes, and the state of the device's generator, on a GPU."""

    tensors: Held
    device: torch.device
    generator: Tensor | None

    @classmethod
    def of(cls, held: Held, device: torch.device) -> Place:
        """Return where ``held`` is."""
        copies = {kind: [tensor.clone() for tensor in tensors] for kind, tensors in held.items()}
        cuda = device.type == "cuda"
        return cls(copies, device, torch.cuda.get_rng_state(device) if cuda else None)

    @torch.no_grad()
    def put_back(self, held: Held) -> None:
        """Put ``held`` to where it was."""
        for kind, tensors in held.items():
            torch._foreach_copy_(tensors, self.tensors[kind])
        if self.generator is not None:
            torch.cuda.set_rng_state(self.generator, self.device)

    def way_apart(self, replayed: Place, plain: Place) -> str:
        """Return what lies too far apart where a replayed and a plain step from here end, or ""."""
        for kind, start in self.tensors.items():
            off = _distance(replayed.tensors[kind], plain.tensors[kind])
            way, length = _distance(plain.tensors[kind], start), _distance(start, None)
            if not off <= TOLERANCE * way + 1e-6 * length:
                return (
                    f"the {kind} of a replayed step are {off:.3g} away from a plain one's, which "
                    f"go {way:.3g}"
                )
        return ""


def _distance(here: Sequence[Tensor], there: Sequence[Tensor] | None) -> float:
    """Return the length of what lies between, or of ``here``; whole numbers are left out."""
    pairs = zip(here, there or [torch.zeros_like(t) for t in here], strict=True)
    between = [(a - b).float() for a, b in pairs if a.is_floating_point()]
    lengths = torch._foreach_norm(between) if between else []
    return float(torch.stack(list(lengths)).norm()) if lengths else 0.0
