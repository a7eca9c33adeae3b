"""How sure a difference or an accuracy is: paired runs, and images drawn again by class."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from lt_pipeline.learning.data.distribution import MANY_CLASSES
from lt_pipeline.learning.schema import UserError

# what intervals cover, and the share of studies in which a difference that is there is found
LEVEL, POWER = 0.95, 0.8
# more pairs than anybody has: a difference that needs them is 0 but for rounding
MOST = 2**30


def paired_difference(
    first: Sequence[float], second: Sequence[float], level: float = LEVEL
) -> dict[str, Any]:
    """Return mean and standard deviation of ``first - second`` and what Student's t says of them.

    The runs stand in the same order, each pair with the same seed and the same images. Beside
    ``pairs``, ``mean`` and ``sd`` these are the two-sided interval ``low`` to ``high`` that covers
    ``level``, the test's ``statistic`` and ``p_value``, and the ``pairs_needed`` for a difference
    of this size. ``sd`` and all that needs it are None with fewer than two pairs; the latter is
    None, too, where all differences are the same number, as they then have no spread to judge by.

    Raises:
        UserError: if there is no pair, one of them is not whole, or a number is not finite.
    """
    if not first or len(first) != len(second):
        raise UserError(
            f"pairs need as many runs on both sides and at least one, but there are {len(first)} "
            f"and {len(second)}"
        )
    differences = np.subtract(first, second, dtype=float)
    if not np.isfinite(differences).all():
        raise UserError(f"pairs need finite numbers, but their differences are {differences}")
    summary: dict[str, Any] = {"pairs": len(differences), "mean": float(differences.mean())}
    summary |= dict.fromkeys(("sd", "low", "high", "statistic", "p_value", "pairs_needed"))
    if len(differences) > 1:
        summary["sd"] = float(differences.std(ddof=1))
        if np.ptp(differences) > np.finfo(float).eps * np.abs(differences).max():
            from scipy import stats  # a second to import, and every run comes by here

            tested = stats.ttest_rel(first, second)
            low, high = tested.confidence_interval(level)
            summary |= {"low": float(low), "high": float(high)}
            summary |= {"statistic": float(tested.statistic), "p_value": float(tested.pvalue)}
            summary["pairs_needed"] = pairs_needed(summary["mean"], summary["sd"], 1 - level)
    return summary


def pairs_needed(
    difference: float, sd: float, alpha: float = 1 - LEVEL, power: float = POWER
) -> int | None:
    """Return the fewest pairs whose two-sided t test finds ``difference`` with chance ``power``.

    ``sd`` is the standard deviation of the differences between pairs, in the same unit, taken for
    the true one; ``alpha`` is the chance to find one that is not there. The statistic then has a
    noncentral t distribution with n - 1 degrees of freedom and noncentrality
    sqrt(n) difference / sd (Cohen 1988, chapter 2). None is where no number of pairs is enough, or
    ``MOST`` are not: a difference of 0 but for rounding.

    Raises:
        UserError: if there is no spread.
    """
    if not sd > 0:
        raise UserError(f"sd must be > 0 to say how many pairs are needed, but is {sd}")
    chance = partial(_power, effect=difference / sd, alpha=alpha)
    enough = 2
    while chance(enough) < power:
        enough *= 2
        if enough > MOST:
            return None
    return bisect_left(range(enough), power, lo=max(enough // 2, 2), key=chance)


def _power(pairs: int, effect: float, alpha: float) -> float:
    """Return the chance that the two-sided t test of ``pairs`` finds a mean of ``effect`` sd."""
    from scipy import stats

    freedom, shift = pairs - 1, math.sqrt(pairs) * abs(effect)
    limit = stats.t.isf(alpha / 2, freedom)
    # of the wrong sign; scipy has nan where that is below 1e-14
    wrong = np.nan_to_num(stats.nct.cdf(-limit, freedom, shift))
    return float(stats.nct.sf(limit, freedom, shift) + wrong)


def recall_interval(
    recalls: Sequence[float],
    images: Sequence[int],
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the bootstrap interval of the accuracy over the classes' test images.

    ``recalls`` ``[C]`` are fractions of 1 of ``images`` ``[C]``. Each class's images are drawn
    again with replacement; the number found among them is then binomial, so that is what is
    drawn. The interval is of percentiles (Efron 1979). It says how far another test set of the
    same size may lead, nothing about another training.

    Raises:
        UserError: if there is no image.
    """
    counts = np.asarray(images, dtype=np.int64)
    if counts.sum() == 0:
        raise UserError("an interval of the accuracy needs test images, but there are none")
    generator = np.random.default_rng(seed)
    rates = np.clip(np.asarray(recalls, dtype=float), 0, 1)
    if len(counts) > MANY_CLASSES:
        # a sum of binomials with one share is binomial
        rates, place = np.unique(rates, return_inverse=True)
        counts = np.bincount(place, counts).astype(np.int64)
    drawn = generator.binomial(counts, rates, size=(resamples, len(counts)))
    accuracies = drawn.sum(1) / counts.sum()
    low, high = np.quantile(accuracies, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
