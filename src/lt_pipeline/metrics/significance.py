"""How sure a difference or an accuracy is: paired runs, and images drawn again by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def paired_difference(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Return mean and standard deviation of ``first - second`` and Student's t test of the pairs.

    The runs stand in the same order, each pair with the same seed and the same images. ``sd`` and
    what the test gives are None with fewer than two pairs; the test is None, too, where all
    differences are the same number, as they then have no spread to judge by.

    Raises:
        ValueError: if there is no pair, or one of them is not whole.
    """
    if not first or len(first) != len(second):
        raise ValueError(
            f"pairs need as many runs on both sides and at least one, but there are {len(first)} "
            f"and {len(second)}"
        )
    differences = np.subtract(first, second, dtype=float)
    found: dict[str, Any] = {
        "pairs": len(differences),
        "mean": float(differences.mean()),
        "sd": None,
        "statistic": None,
        "p_value": None,
    }
    if len(differences) > 1:
        found["sd"] = float(differences.std(ddof=1))
        if np.ptp(differences) > np.finfo(float).eps * np.abs(differences).max():
            from scipy import stats  # a second to import, and every run comes by here

            tested = stats.ttest_rel(first, second)
            found |= {"statistic": float(tested.statistic), "p_value": float(tested.pvalue)}
    return found


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
        ValueError: if there is no image.
    """
    counts = np.asarray(images, dtype=np.int64)
    if counts.sum() == 0:
        raise ValueError("an interval of the accuracy needs test images, but there are none")
    generator = np.random.default_rng(seed)
    shares = np.clip(np.asarray(recalls, dtype=float), 0, 1)
    drawn = generator.binomial(counts, shares, size=(resamples, len(counts)))
    accuracies = drawn.sum(1) / counts.sum()
    low, high = np.quantile(accuracies, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
