"""Merging: arithmetic on the state dicts of networks that share one start.

Balanced Training and Merging (Yu, Du and Wu, Reviving undersampling for long-tailed learning):
the average (algorithm 1), the line between two networks (equations 2 and 3), and the other
strategies of table 6, adaptive ratio and greedy soup (Wortsman et al., Model soups, ICML 2022).

Floating tensors are averaged, running means and variances of BatchNorm among them. An average of
variances is not the variance that the merged network sees; only a pass over data gives that one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from lt_pipeline.learning.schema import UserError

StateDict = Mapping[str, Tensor]


def check_same(states: Sequence[StateDict], names: Sequence[str] | None = None) -> None:
    """Refuse networks that cannot be merged: their tensors differ in name, shape or dtype.

    All are compared with the first; the order of the tensors does not matter.

    Args:
        states: One state dict a network.
        names: What the error calls the networks; their positions, from 0, unless told.

    Raises:
        UserError: With the first difference and the two networks; or there is no network.
    """
    if not states:
        raise UserError("expected at least one network to merge, but got none")
    called = names or [f"network {i}" for i in range(len(states))]
    for state, name in zip(states, called, strict=True):
        if difference := _first_difference(states[0], state, called[0], name):
            raise UserError(
                f"cannot merge {called[0]} and {name}: {difference}; "
                f"only networks fine-tuned from the same start can be merged"
            )


def _first_difference(one: StateDict, other: StateDict, one_name: str, other_name: str) -> str:
    for key in {**one, **other}:
        if key not in other:
            return f"{other_name} lacks the tensor {key!r}"
        if key not in one:
            return f"{other_name} has the tensor {key!r}, which {one_name} lacks"
        a, b = one[key], other[key]
        if a.shape != b.shape:
            return f"{key!r} is {list(a.shape)} in {one_name}, but {list(b.shape)} in {other_name}"
        if a.dtype != b.dtype:
            return f"{key!r} is {a.dtype} in {one_name}, but {b.dtype} in {other_name}"
    return ""


def average(
    states: Sequence[StateDict], weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Return the weighted mean of N networks (algorithm 1: 1/N each), in new tensors.

    A floating tensor is summed in float64 and has the dtype and device of the first network's.
    Where all networks agree, their value is kept bit for bit. Integer and bool tensors, such as
    BatchNorm's counter of batches, are the first network's.

    Args:
        states: One state dict a network.
        weights: Relative ones, one a network, equal unless told. They are divided by their sum;
            a network of weight 0 has no influence, even when it is not finite.

    Raises:
        UserError: The networks differ (``check_same``), or the weights are not one a network,
            finite, >= 0 and with a positive sum.
    """
    check_same(states)
    given = [1.0] * len(states) if weights is None else weights
    if len(given) != len(states):
        raise UserError(
            f"expected one weight for each of the {len(states)} networks, but got {len(given)}"
        )
    if not (all(weight >= 0 for weight in given) and 0 < sum(given) < math.inf):
        raise UserError(
            f"weights must be finite, >= 0 and have a positive sum, but are {list(given)}"
        )
    merged = [(s, w / sum(given)) for s, w in zip(states, given, strict=True) if w > 0]
    return {
        key: _mean([(s[key], weight) for s, weight in merged], tensor.device)
        if tensor.is_floating_point()
        else tensor.clone()
        for key, tensor in states[0].items()
    }


@torch.no_grad()
def _mean(terms: Sequence[tuple[Tensor, float]], device: torch.device) -> Tensor:
    """Return sum of weight * tensor; the terms' own value where they agree, or there is but one."""
    first = terms[0][0].to(device)
    if len(terms) == 1:
        return first.clone()
    total = torch.zeros_like(first, dtype=torch.float64)
    agree = torch.ones_like(first, dtype=torch.bool)
    for tensor, weight in terms:
        total.add_(tensor.to(total), alpha=weight)
        agree &= tensor.to(device) == first
    return torch.where(agree, first, total.to(first.dtype))


def interpolate(start: StateDict, end: StateDict, weight: float) -> dict[str, Tensor]:
    """Return (1 - weight) * start + weight * end, in new tensors (equations 2 and 3).

    At weight 0 and 1 it is ``start`` and ``end`` bit for bit. Between the two, integer and bool
    tensors are those of ``start``.

    Raises:
        UserError: ``weight`` is outside of [0, 1], or the networks differ.
    """
    if not 0 <= weight <= 1:
        raise UserError(f"weight must lie in [0, 1], from start to end, but got {weight}")
    check_same([start, end], ["start", "end"])
    return average([end]) if weight == 1 else average([start, end], [1 - weight, weight])


def adaptive_weights(scores: Sequence[float]) -> list[float]:
    """Return each network's score over the sum of all (table 6, "adaptive ratio").

    Raises:
        UserError: There is no score, or one is not finite and > 0.
    """
    if not scores or not all(0 < score < math.inf for score in scores):
        raise UserError(
            f"scores must be finite and > 0, one a network, to become weights, but are "
            f"{list(scores)}; put a floor under scores of 0, or average with equal weights"
        )
    total = sum(scores)
    return [score / total for score in scores]


def greedy_soup(
    states: Sequence[StateDict],
    score: Callable[[StateDict], float],
    order: Literal["sorted", "given"] = "sorted",
) -> tuple[dict[str, Tensor], list[int]]:
    """Average the networks that help: one is kept when the score with it is no lower than without.

    Wortsman et al. (2022), recipe 1. The first network tried is always in.

    Args:
        states: One state dict a network, N in all.
        score: How good a network is, higher is better. Called 2N - 1 times for "sorted", N times
            for "given".
        order: Try the best by its own score first, the earlier of equals ("sorted", the paper of
            the soups), or in the order given (the released code of BTM).

    Returns:
        The average, and the positions of the networks in it in the order they were added.

    Raises:
        UserError: The networks differ, or the own score of one that decides the order is nan.
    """
    check_same(states)
    singles = [score(state) for state in (states if order == "sorted" else states[:1])]
    if any(math.isnan(single) for single in singles):
        raise UserError(
            f"a soup starts from networks with a score, but theirs are {singles}; "
            f"leave out those whose training diverged"
        )
    ranked = sorted(range(len(singles)), key=lambda i: -singles[i])
    kept, best = ranked[:1], singles[ranked[0]]
    soup = average([states[kept[0]]])
    for position in [*ranked[1:], *range(len(singles), len(states))]:
        tried = average([states[i] for i in [*kept, position]])
        reached = score(tried)
        if reached >= best:
            soup, kept, best = tried, [*kept, position], reached
    return soup, kept
