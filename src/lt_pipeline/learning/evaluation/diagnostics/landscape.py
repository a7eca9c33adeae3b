"""The loss landscape: extreme eigenvalues and trace of a loss's Hessian (MORE, table 6).

The Hessian is only ever multiplied with vectors, by differentiating twice: no matrix of P x P is
there. Every estimate costs a number of products that is known before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Part = Callable[[], Tensor]


class Hessian:
    """The second derivatives of the sum of ``parts``, as products with vectors ``[P]``.

    ``parts`` are functions that compute scalars of the P numbers in ``parameters``; one part's
    graph is in memory at a time. ``products`` counts what was asked for.
    """

    def __init__(self, parts: Sequence[Part], parameters: Iterable[Tensor]) -> None:
        self.parts, self.parameters = parts, list(parameters)
        self.size = sum(p.numel() for p in self.parameters)
        self.products = 0

    def __matmul__(self, vector: Tensor) -> Tensor:
        """Return H v, ``[P]``, of ``vector`` v ``[P]``."""
        self.products += 1
        sizes = [p.numel() for p in self.parameters]
        shaped = [v.view_as(p) for v, p in zip(vector.split(sizes), self.parameters, strict=True)]
        product = torch.zeros_like(vector)
        for part in self.parts:
            along = torch.stack(
                [(g * v).sum() for g, v in zip(self._gradient(part()), shaped, strict=True)]
            ).sum()
            # a linear loss has a gradient that nothing changes
            if along.requires_grad:
                product += torch.cat([h.flatten() for h in self._gradient(along, keep=False)])
        return product

    def draw(self, generator: torch.Generator, count: int = 1) -> Tensor:
        """Return random signs, ``[P, count]``, where the parameters are."""
        signs = torch.randint(0, 2, (self.size, count), generator=generator, dtype=torch.int8)
        first = self.parameters[0]
        return (2 * signs - 1).to(first.device, first.dtype)

    def _gradient(self, value: Tensor, *, keep: bool = True) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            value, self.parameters, create_graph=keep, materialize_grads=True
        )


class Extremes(NamedTuple):
    """The smallest and the largest eigenvalue, and whether both are within the tolerance."""

    smallest: float
    largest: float
    converged: bool


def extreme_eigenvalues(
    hessian: Hessian, start: Tensor, steps: int, tolerance: float = 0.0
) -> Extremes:
    """Return the ends of the spectrum by at most ``steps`` of Lanczos' method, a product each.

    The Ritz values lie inside of the spectrum: the smallest comes from above, the largest from
    below. It ends early when both residuals are within ``tolerance`` times their values. The basis
    is not kept, nor made orthogonal again: that repeats eigenvalues and moves none (Paige, Accuracy
    and effectiveness of the Lanczos algorithm, 1980); three vectors ``[P]`` are in memory.
    ``start`` ``[P]`` is where the Krylov space begins.
    """
    from scipy.linalg import eigh_tridiagonal  # a tenth of a second, which every start would wait

    before, current = torch.zeros_like(start), start / start.norm()
    diagonal, beside, width = list[float](), list[float](), 0.0
    while True:
        image = hessian @ current - width * before
        diagonal.append(float(image @ current))
        image -= diagonal[-1] * current
        width = float(image.norm())
        values, vectors = eigh_tridiagonal(diagonal, beside)
        ends, residuals = values[[0, -1]], width * abs(vectors[-1, [0, -1]])
        # where the space is exhausted, what is left of the image is rounding
        whole = width <= torch.finfo(start.dtype).eps * abs(values).max()
        converged = bool(whole or (residuals <= tolerance * abs(ends)).all())
        if converged or len(diagonal) == steps:
            return Extremes(float(ends[0]), float(ends[1]), converged)
        beside.append(width)
        before, current = current, image / width


def trace(hessian: Hessian, signs: Tensor) -> float:
    """Return an estimate of the trace by Hutch++, of 3 m products for ``signs`` ``[P, 2 m]``.

    Meyer et al., Hutch++: optimal stochastic trace estimation (SOSA 2021), algorithm 1: the trace
    on the range of H S, S the first m columns, exactly, and on the rest Hutchinson's mean over the
    others. A loss of C classes has few large eigenvalues, on which that mean alone would depend.
    """
    sketch, probes = signs.chunk(2, dim=1)
    basis = torch.linalg.qr(_times(hessian, sketch)).Q
    inside = (basis * _times(hessian, basis)).sum()
    rest = probes - basis @ (basis.T @ probes)
    return float(inside + (rest * _times(hessian, rest)).sum() / rest.shape[1])


def _times(hessian: Hessian, columns: Tensor) -> Tensor:
    return torch.stack([hessian @ column for column in columns.unbind(1)], 1)


class Curvature(NamedTuple):
    """What table 6 has of a class: lambda_min, lambda_max, the trace, gamma; and the loss itself.

    ``gamma`` is |lambda_min / lambda_max|, 0 where there is no curvature at all.
    """

    risk: float
    lambda_min: float
    lambda_max: float
    trace: float
    gamma: float
    converged: bool


def curvature(
    hessian: Hessian, generator: torch.Generator, steps: int, probes: int, tolerance: float
) -> Curvature:
    """Return the curvature of a loss: at most ``steps`` + 3 ``probes`` products."""
    with torch.no_grad():
        risk = float(torch.stack([part() for part in hessian.parts]).sum())
    start = hessian.draw(generator)[:, 0]
    ends = extreme_eigenvalues(hessian, start, steps, tolerance)
    gamma = abs(ends.smallest / ends.largest) if ends.largest else 0.0
    total = trace(hessian, hessian.draw(generator, 2 * probes))
    return Curvature(risk, ends.smallest, ends.largest, total, gamma, ends.converged)


# what is compared between the classes
COMPARED = ("lambda_min", "lambda_max", "trace", "gamma")


def imbalance(values: Sequence[float]) -> float | None:
    """Return the largest over the smallest absolute value (table 6), None where that is 0."""
    sizes = [abs(value) for value in values]
    return max(sizes) / min(sizes) if min(sizes) else None
