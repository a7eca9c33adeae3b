"""Published figures beside ours: where a run's parameters are those of the paper."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from pydantic import Field, TypeAdapter, create_model, model_validator

from lt_pipeline.learning.data.distribution import GROUP_NAMES
from lt_pipeline.learning.evaluation.metrics.catalog import METRICS, sortable
from lt_pipeline.learning.schema import Config, UserError, flatten, one_line_errors

Values = dict[str, Any]
# what papers print, by the names in papers.yml; of images of no class it is what DARL does:
# ODIN's, as the mean over its own seven sets
_PRINTED = {
    **{name: f"test/{name}" for name in sortable()},
    **{
        name: f"ood/odin/of_7/{name}"
        for name in ("auroc", *(f"auroc_{group}" for group in GROUP_NAMES), "fpr95")
    },
    **{
        key.removeprefix("landscape/").replace("/", "_"): key
        for key in METRICS
        if key.startswith(("landscape/imbalance/", "landscape/rarest/"))
    },
}
# blocks whose parameters depend on a method or a rule: not every setting has all
_OF_A_KIND = ("options.", "data.groups.", "data.profile.")


class _Figures(Config):
    """A row of a paper's table, shares in per cent, and why a run is not there.

    Attributes:
        method: the title of the runs beside which ``compare`` shows them; None: studies only.
        where: what the row's setting has beside the table's, as in ``model.head``.
        reason: why a run is not there.
    """

    method: str | None = None
    where: dict[str, Any] = Field(default_factory=dict)
    reason: str | None = None

    def by_metric(self) -> dict[str, float]:
        """Return the figures that are there by metric, shares as fractions of 1."""
        given = self.model_dump(exclude={"method", "where", "reason"}, exclude_none=True)
        return {_PRINTED[name]: value / _factor(_PRINTED[name]) for name, value in given.items()}


def _factor(key: str) -> int:
    # of what there is no row of, the AUROC of a group
    return METRICS[key].factor if key in METRICS else 100


_FIELDS: dict[str, Any] = dict.fromkeys(_PRINTED, (float | None, None))
Figures: Any = create_model("Figures", __base__=_Figures, **_FIELDS)


class PaperTable(Config):
    """A table or figure of a paper and the parameters of its setting, by dotted name.

    Attributes:
        study: the study whose arms the ``rows`` are, by the same names.
        where: the setting.
        rows: of the table, by name.
    """

    paper: str
    table: str | None = None
    figure: str | None = None
    study: str
    where: dict[str, Any] = Field(min_length=1)
    rows: dict[str, Figures]

    @model_validator(mode="after")
    def _one_place(self) -> PaperTable:
        if (self.table is None) == (self.figure is None):
            raise UserError("needs table or figure, and not both: where the figures are printed")
        return self

    @property
    def source(self) -> str:
        """Return where the figures are printed."""
        place = f"table {self.table}" if self.table else f"figure {self.figure}"
        return f"{self.paper}, {place}"


def read_papers(tables: Any) -> list[PaperTable]:
    """Return the checked figures of conf/base/papers.yml.

    Raises:
        UserError: in one line, naming every entry that is wrong and what would be right.
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
        UserError: if a setting names a parameter that there is not.
    """
    configs = {
        label: json.loads(text) for label, text in zip(runs["label"], runs["config"], strict=True)
    }
    given = [(table, of, of.method) for table in papers for of in table.rows.values()]
    return _beside(summary, "title", configs, given, data)


def beside_arms(
    study: str,
    configs: Mapping[str, Mapping[str, Any]],
    summary: pd.DataFrame,
    papers: Sequence[PaperTable],
    data: Mapping[str, Any],
) -> list[Values]:
    """Return, as ``beside_papers`` does, what papers say of the arms of ``study``.

    ``configs`` are the arms' experiments, ``summary`` has a row an arm; both go by ``label``.

    Raises:
        UserError: if a setting names a parameter that there is not.
    """
    given = [(table, of, name) for table in papers for name, of in table.rows.items()]
    return _beside(summary, "label", configs, [g for g in given if g[0].study == study], data)


def _beside(
    summary: pd.DataFrame,
    column: str,
    configs: Mapping[str, Mapping[str, Any]],
    given: Sequence[tuple[PaperTable, _Figures, str | None]],
    data: Mapping[str, Any],
) -> list[Values]:
    """Return a row a figure that is of a row's setting and of what it has in ``column``."""
    rows: list[Values] = []
    for own in summary.to_dict("records"):
        setting = dict(flatten({**configs[own["label"]], "data": data}, "."))
        for table, figures, name in given:
            if name == own[column]:
                rows += _gaps(own, setting, table, figures)
    return rows


def why_none(
    study: str,
    configs: Mapping[str, Mapping[str, Any]],
    papers: Sequence[PaperTable],
    data: Mapping[str, Any],
) -> str | None:
    """Return in a sentence what the nearest setting of ``study`` in ``papers`` has otherwise.

    None is where nothing is published of ``study``, or an arm has a paper's setting.
    """
    candidates = []
    for table in papers:
        for label, figures in table.rows.items():
            if table.study == study and label in configs:
                setting = dict(flatten({**configs[label], "data": data}, "."))
                candidates.append((_differing(table, figures, setting), table.source, label))
    if not candidates or not all(differing for differing, *_ in candidates):
        return None
    differing, source, label = min(candidates, key=lambda one: len(one[0]))
    return f"No figure of {source} is beside ours, as of {label} {', '.join(differing)}"


def _differing(table: PaperTable, figures: _Figures, setting: Mapping[str, Any]) -> list[str]:
    """Return what ``setting`` has otherwise than the row of ``table``, in words.

    Raises:
        UserError: if the row names a parameter that there is not.
    """
    wanted = {**table.where, **figures.where}
    for name in wanted:
        if name not in setting and not name.startswith(_OF_A_KIND):
            raise UserError(
                f"papers.yml: {table.source}: where names {name!r}, which no run has; it takes "
                f"names as in training.epochs, data.source or options.pretrain"
            )
    return [
        f"{name} is {setting.get(name)}, not {value}"
        for name, value in wanted.items()
        if setting.get(name) != value
    ]


def _gaps(
    own: Mapping[Any, Any], setting: Mapping[str, Any], table: PaperTable, figures: _Figures
) -> list[Values]:
    """Return a row a figure that ``own`` has, too; none in another setting than the paper's."""
    if _differing(table, figures, setting):
        return []
    return [
        {
            "label": own["label"],
            "metric": metric,
            "ours": own[metric],
            "paper": value,
            "source": table.source,
            "reason": figures.reason,
        }
        for metric, value in figures.by_metric().items()
        if metric in own and pd.notna(own[metric])
    ]
