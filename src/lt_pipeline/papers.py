"""Published figures beside ours: where a run's parameters are those of the paper."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from pydantic import Field, TypeAdapter

from lt_pipeline.comparison import flat
from lt_pipeline.schema import Config, one_line_errors

Values = dict[str, Any]


class Figures(Config):
    """What a paper says of a method, in per cent, and why a run is not there."""

    accuracy: float | None = None
    many: float | None = None
    medium: float | None = None
    few: float | None = None
    harmonic_mean: float | None = None
    geometric_mean: float | None = None
    lowest_recall: float | None = None
    reason: str | None = None

    def by_metric(self) -> dict[str, float]:
        """Return the figures that are there, as fractions of 1 by metric."""
        given = self.model_dump(exclude={"reason"}, exclude_none=True)
        return {f"test/{name}": value / 100 for name, value in given.items()}


class PaperTable(Config):
    """A table of a paper and the parameters that its setting has, by dotted name."""

    paper: str
    table: str
    where: dict[str, Any] = Field(min_length=1)
    methods: dict[str, Figures]

    @property
    def source(self) -> str:
        """Return where the figures are printed."""
        return f"{self.paper}, table {self.table}"


def read_papers(tables: Any) -> list[PaperTable]:
    """Return the checked figures of conf/base/papers.yml.

    Raises:
        ValueError: in one line, naming every entry that is wrong and what would be right.
    """
    with one_line_errors("papers.yml"):
        return TypeAdapter(list[PaperTable]).validate_python(tables or [])


def beside_papers(
    runs: pd.DataFrame, summary: pd.DataFrame, papers: Sequence[PaperTable], data: Mapping[str, Any]
) -> list[Values]:
    """Return, a row a figure, what papers say of the methods whose setting is theirs.

    ``data`` is the block of that name. A row has ``label``, ``metric``, ``ours`` and ``paper`` as
    fractions of 1, ``source`` and ``reason`` (None where papers.yml has none).

    Raises:
        ValueError: if a setting names a parameter that there is not.
    """
    configs = dict(zip(runs["label"], runs["config"], strict=True))
    settings = {label: flat({**json.loads(text), "data": data}) for label, text in configs.items()}
    rows: list[Values] = []
    for own in summary.to_dict("records"):
        for table in papers:
            figures = table.methods.get(own["title"])
            if figures is None or not _same_setting(table, settings[own["label"]]):
                continue
            for metric, value in figures.by_metric().items():
                if metric in own and pd.notna(own[metric]):
                    rows.append(
                        {
                            "label": own["label"],
                            "metric": metric,
                            "ours": own[metric],
                            "paper": value,
                            "source": table.source,
                            "reason": figures.reason,
                        }
                    )
    return rows


def _same_setting(table: PaperTable, setting: Mapping[str, Any]) -> bool:
    for name, value in table.where.items():
        if name not in setting and not name.startswith("options."):
            raise ValueError(
                f"papers.yml: {table.source}: where names {name!r}, which no run has; it takes "
                f"names as in training.epochs, data.source or options.pretrain"
            )
        if setting.get(name) != value:
            return False
    return True
