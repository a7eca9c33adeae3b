"""The pictures that only one method has: ``<method>.py`` draws them, where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from matplotlib.figure import Figure

from lt_pipeline.learning.data.distribution import LongTail


def draw(
    method: str, report: Mapping[str, Any], longtail: LongTail, title: str
) -> dict[str, Figure]:
    """Return the pictures of ``method``, by name.

    ``report`` holds what ``Method.diagnose`` and ``Method.training_curves`` returned, under
    ``diagnostics`` and ``series``.
    """
    home = f"{__name__}.{method}"
    if find_spec(home) is None:
        return {}
    drawn: dict[str, Figure] = import_module(home).draw(report, longtail, title)
    return drawn
