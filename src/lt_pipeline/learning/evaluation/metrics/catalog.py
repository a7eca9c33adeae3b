"""The one table of metrics: how each is computed, named and shown.

A new metric is a function and a row. What draws or prints asks here which metrics it shows, and
how they are written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from lt_pipeline.learning.data.distribution import GROUP_NAMES
from lt_pipeline.learning.evaluation.metrics import ranking, recalls, several
from lt_pipeline.learning.evaluation.metrics.calibration import expected_calibration_error
from lt_pipeline.learning.evaluation.metrics.recalls import Recalls
from lt_pipeline.learning.evaluation.metrics.several import Decided

if TYPE_CHECKING:
    import pandas as pd

# Where a metric is shown. On the screen: the tables of a "run" and of its "stages", the sentence
# about a "sweep"'s best trial, and what the "screen" has of a "comparison", which is in files. A
# table of a "study" has a "column" where the study asks for it. "first" is in a file of its own:
# what runs are told apart by at a glance.
Place = Literal["first", "run", "stages", "sweep", "comparison", "screen", "study", "column"]
# the unit of fractions of 1
PERCENT = "%"


@dataclass(frozen=True)
class Metric:
    """A number that runs have, and how people are shown it.

    Attributes:
        key: its name among a run's metrics, as in MLflow, where ``{detector}`` stands for the one
            that tables show, the first.
        heading: of a table's column, without the unit.
        places: where it is shown.
        unit: what values are shown in; ``%`` is that of fractions of 1.
        digits: decimals.
        better: which values are; None is neither.
        words: what it is, at an axis and in sentences.
        by_group: the key of the same of one ``{group}``'s classes, where there is one.
        picture: the file of the picture of it by group and arm, where there is one.
        from_recalls: how it follows from the confusion matrix, None where it is left out.
        from_decided: likewise, where images have several labels, from what is decided on each.
        from_scores: how it follows from scores ``[N, C]``, labels ``[N]`` and a number of bins.
        from_detection: how it follows from scores ``[N]`` of test images and others' ``[M]``.
    """

    key: str
    heading: str
    places: frozenset[Place] = frozenset()
    unit: str = PERCENT
    digits: int = 1
    better: Literal["higher", "lower"] | None = "higher"
    words: str = ""
    by_group: str = ""
    picture: str = ""
    from_recalls: Callable[[Recalls], float | None] | None = None
    from_decided: Callable[[Decided], float | None] | None = None
    from_scores: Callable[[Tensor, Tensor, int], float] | None = None
    from_detection: Callable[[Tensor, Tensor], float] | None = None

    @property
    def name(self) -> str:
        """Return the last part of its key."""
        return self.key.rpartition("/")[2]

    @property
    def plain(self) -> str:
        """Return its name as words."""
        return self.name.replace("_", " ")

    @property
    def short(self) -> str:
        """Return its heading, whatever detector it is of."""
        return self.heading.partition(" {")[0]

    @property
    def column(self) -> str:
        """Return its heading with the unit."""
        return f"{self.heading} {self.unit}".rstrip()

    @property
    def axis(self) -> str:
        """Return what an axis says of it, with the unit."""
        words = self.words or self.heading
        return f"{words}, {self.unit}" if self.unit else words

    @property
    def factor(self) -> int:
        """Return what a value is multiplied by to be shown."""
        return 100 if self.unit == PERCENT else 1

    def number(self, value: float, more_digits: int = 0) -> str:
        """Return ``value`` as it is shown, without the unit."""
        return f"{self.factor * value:,.{self.digits + more_digits}f}"

    def with_unit(self, value: float) -> str:
        """Return ``value`` as it is shown, with the unit."""
        return f"{self.number(value)} {self.unit}".rstrip()

    def change(self, value: float, more_digits: int = 0) -> str:
        """Return a difference with its sign, without the unit."""
        return f"{self.factor * value:+,.{self.digits + more_digits}f}"

    def scaled(self, values: Iterable[float]) -> list[float]:
        """Return ``values`` in the unit."""
        return [self.factor * value for value in values]

    def gain(self, value: float) -> float:
        """Return ``value`` so that higher is better."""
        return -value if self.better == "lower" else value

    def best_first(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return ``rows`` in the order of it, equal ones as they stand."""
        return rows.sort_values(self.key, ascending=self.better == "lower", kind="stable")

    def of(self, detector: str) -> Metric:
        """Return the metric of ``detector``."""
        texts = {
            name: getattr(self, name).replace("{detector}", detector)
            for name in ("key", "heading", "words", "by_group")
        }
        return replace(self, **texts)

    def keys_by_group(self) -> dict[str, str]:
        """Return the keys of all classes and of each group, by their names."""
        return {"all": self.key, **{g: self.by_group.replace("{group}", g) for g in GROUP_NAMES}}


_MAIN: frozenset[Place] = frozenset({"first", "run", "comparison", "screen", "study"})
_MEANS: frozenset[Place] = frozenset({"run", "stages", "comparison"})
_COMPARED: frozenset[Place] = frozenset({"comparison"})
_STUDIED: frozenset[Place] = frozenset({"study"})
_ASKED: frozenset[Place] = frozenset({"column"})
# the metric that models and trials are chosen by; of images with several labels the second
OBJECTIVES = ("validation/mean_recall", "validation/mean_average_precision")
OBJECTIVE = OBJECTIVES[0]
# what stands for a run on the test set, likewise
HEADLINES = ("test/accuracy", "test/mean_average_precision")
# and where the test set is not balanced, and accuracy mostly the head's
MEAN_RECALL = "test/mean_recall"
# the parts of a study's table, in order
_STUDY = ("validation", "test", "ood", "best_epoch", "cost")

_TABLE = (
    Metric(
        "test/accuracy", "accuracy", _MAIN | {"stages", "sweep"}, from_recalls=recalls.accuracy,
        words="accuracy on the test set", by_group="test/{group}", picture="accuracy",
    ),
    Metric("test/mean_recall", "mean recall", from_recalls=recalls.mean_recall),
    # of the 95 % interval (metrics.intervals)
    Metric("test/mean_recall_low", "mean recall, low"),
    Metric("test/mean_recall_high", "mean recall, high"),
    # of a study over folds, in which every image is tested once
    Metric("pooled/mean_recall", "pooled mean recall"),
    Metric("pooled/accuracy", "pooled accuracy"),
    Metric("pooled/macro_f1", "pooled macro F1"),
    Metric("pooled/micro_f1", "pooled micro F1"),
    Metric("test/groups", "groups", unit="", digits=0, better=None),
    Metric(
        "test/classes", "classes", unit="", digits=0, better=None, from_recalls=recalls.classes,
        from_decided=several.classes,
    ),
    # of images with several labels, in the place of what is above and below
    Metric(
        "test/mean_average_precision", "mAP", _MAIN | {"stages", "sweep"},
        words="mean average precision on the test set", by_group="test/mAP_{group}",
        picture="mean_average_precision", from_decided=several.mean_average_precision,
    ),
    *(
        Metric(
            f"test/mAP_{g}", f"mAP {g}", _MAIN,
            from_decided=partial(several.group_average_precision, group=g),
        )
        for g in GROUP_NAMES
    ),
    Metric("test/macro_f1", "macro F1", _MEANS | _STUDIED, from_decided=several.macro_f1),
    Metric("test/micro_f1", "micro F1", _MEANS, from_decided=several.micro_f1),
    Metric(
        "test/ranking_loss", "ranking loss", frozenset({"run", "comparison"}), better="lower",
        from_decided=several.ranking_loss,
    ),
    Metric(
        "test/coverage_error", "coverage error", _COMPARED, unit="", digits=2, better="lower",
        from_decided=several.coverage_error,
    ),
    *(
        Metric(f"test/{g}", g, _MAIN, from_recalls=partial(recalls.group_recall, group=g))
        for g in GROUP_NAMES
    ),
    Metric(
        "test/harmonic_mean", "harm. mean", _MAIN | _MEANS | {"sweep"},
        words="harmonic mean of the recalls", from_recalls=recalls.harmonic_mean,
    ),
    Metric(
        "test/geometric_mean", "geom. mean", _MEANS | {"sweep", "column"},
        words="geometric mean of the recalls", from_recalls=recalls.geometric_mean,
    ),
    Metric(
        "test/lowest_recall", "lowest recall", _MEANS | {"first", "column"},
        from_recalls=recalls.lowest_recall,
    ),
    Metric(
        "test/zero_recall_classes", "classes at zero", _COMPARED, unit="", better="lower",
        words="classes with zero recall", from_recalls=recalls.zero_recall_classes,
    ),
    Metric(
        "test/expected_calibration_error", "ECE", frozenset({"run", "comparison"}), better="lower",
        words="expected calibration error", from_scores=expected_calibration_error,
    ),
    Metric(
        OBJECTIVE, "hold-out mean recall", frozenset({"comparison", "screen", "study"}),
        words="mean recall on the hold-out",
    ),
    Metric(
        OBJECTIVES[1], "hold-out mAP", frozenset({"comparison", "screen", "study"}),
        words="mean average precision on the hold-out",
    ),
    Metric(
        "cost/training_seconds", "training", frozenset({"comparison", "screen", "study"}),
        unit="s", better="lower",
    ),
    Metric("cost/training_images_per_second", "training", _COMPARED, unit="images/s", digits=0),
    Metric("cost/scoring_images_per_second", "scoring", _COMPARED, unit="images/s", digits=0),
    Metric(
        "cost/parameters_trained", "parameters trained", _COMPARED, unit="", digits=0,
        better="lower",
    ),
    Metric(
        "cost/parameters_deployed", "parameters deployed", frozenset({"comparison", "screen"}),
        unit="", digits=0, better="lower",
    ),
    Metric("cost/peak_memory_mib", "peak", _COMPARED, unit="MiB", digits=0, better="lower"),
    Metric(
        "geometry/angle_mean/all", "angle", unit="degrees", better=None, picture="angle",
        words="mean angle to the class centre", by_group="geometry/angle_mean/{group}",
    ),
    *(
        Metric(f"geometry/separability/{g}", f"S {g}", _ASKED, unit="", digits=2)
        for g in GROUP_NAMES
    ),
    Metric(
        "geometry/separability/all", "S all", _ASKED, unit="", digits=2, picture="separability",
        words="separability S (equation 13)", by_group="geometry/separability/{group}",
    ),
    # of each class's Hessian, the largest over the smallest absolute value (MORE, table 6)
    *(
        Metric(f"landscape/imbalance/{name}", f"Imb. {short}", _ASKED, unit="", better="lower")
        for name, short in (
            ("lambda_min", "lambda min"), ("lambda_max", "lambda max"), ("trace", "Tr"),
            ("gamma", "gamma"),
        )
    ),
    # of the class with the fewest training images
    Metric("landscape/rarest/lambda_min", "lambda min, rarest", _ASKED, unit="", digits=3),
    Metric(
        "landscape/rarest/gamma", "gamma, rarest", _ASKED, unit="", digits=4, better="lower"
    ),
    *(
        Metric(f"landscape/risk/{g}", f"risk {g}", _ASKED, unit="", digits=3, better="lower")
        for g in GROUP_NAMES
    ),
    Metric(
        "landscape/risk/all", "risk all", _ASKED, unit="", digits=3, better="lower",
        words="empirical risk, mean over the classes", by_group="landscape/risk/{group}",
        picture="risk",
    ),
    Metric(
        "landscape/unconverged_classes", "unconverged classes", unit="", digits=0, better="lower"
    ),
    Metric(
        "ood/{detector}/mean/auroc", "AUROC {detector}", _COMPARED | _STUDIED,
        words="AUROC of {detector}, mean over the OOD sets", picture="auroc",
        by_group="ood/{detector}/mean/auroc_{group}", from_detection=ranking.auroc,
    ),
    Metric(
        "ood/{detector}/mean/fpr95", "FPR95 {detector}", _COMPARED | _STUDIED, better="lower",
        by_group="ood/{detector}/mean/fpr95_{group}", from_detection=ranking.fpr95_of_ood,
    ),
    Metric(
        "ood/{detector}/mean/fpr95_in", "FPR95 in", better="lower", from_detection=ranking.fpr95
    ),
    Metric("ood/{detector}/mean/aupr_in", "AUPR in", from_detection=ranking.aupr_in),
    Metric("ood/{detector}/mean/aupr_out", "AUPR out", from_detection=ranking.aupr_out),
    Metric("ood/{detector}/of_7/auroc", "AUROC {detector}, 7 sets", _STUDIED),
    Metric("ood/{detector}/of_7/fpr95", "FPR95 {detector}, 7 sets", _STUDIED, better="lower"),
    Metric("best_epoch/test/accuracy", "best test epoch", _STUDIED),
)  # fmt: skip
METRICS: dict[str, Metric] = {metric.key: metric for metric in _TABLE}
# of one class, in the table of classes
RECALL = Metric("recall", "recall", words="recall on the test set")
PRECISION = Metric(
    "average_precision", "average precision", words="average precision on the test set"
)


def of_task(which: Sequence[str], columns: Iterable[object]) -> Metric:
    """Return of ``which``, for one label and for several, the metric of runs with ``columns``."""
    names = set(map(str, columns))
    return METRICS[next((key for key in which if key in names), which[0])]


def first_detector(columns: Iterable[object]) -> str | None:
    """Return the OOD detector that comes first among metrics' names, None if there is none."""
    matches = (re.fullmatch(r"ood/([^/]+)/mean/auroc", str(column)) for column in columns)
    return next((match[1] for match in matches if match), None)


def named(key: str) -> Metric:
    """Return the metric that is called ``key``, of whichever detector."""
    detector = re.match(r"ood/([^/]+)/", key)
    if not detector:
        return METRICS[key]
    return METRICS[key.replace(detector[0], "ood/{detector}/")].of(detector[1])


def placed(place: Place) -> list[Metric]:
    """Return the metrics that are shown at ``place``, in order."""
    return [metric for metric in METRICS.values() if place in metric.places]


def among(rows: Iterable[Metric], columns: Iterable[object]) -> dict[str, Metric]:
    """Return, by key, those of ``rows`` that are in ``columns``, OOD's of the first detector."""
    names = list(map(str, columns))
    metrics = [metric.of(first_detector(names) or "") for metric in rows]
    return {metric.key: metric for metric in metrics if metric.key in names}


def shown(place: Place, columns: Iterable[object]) -> dict[str, Metric]:
    """Return, by key, what is shown at ``place`` of runs that have ``columns``."""
    return among(placed(place), columns)


def shown_by_study(
    columns: Iterable[object], asked: Sequence[str], *, natural: bool = False
) -> dict[str, Metric]:
    """Return, by key, what the table of a study shows that has ``columns`` and ``asked`` for some.

    What is chosen by stands first, what is asked for behind the test set's, and costs last. Of a
    ``natural`` test set the mean recall stands before the accuracy.
    """
    usual = placed("study")
    parts = {part: [m for m in usual if m.key.startswith(f"{part}/")] for part in _STUDY}
    if natural:
        parts["test"].insert(0, METRICS[MEAN_RECALL])
    parts["test"] += [m for name in asked for m in placed("column") if m.key.split("/")[1] == name]
    return among([m for part in parts.values() for m in part], columns)


def pictured(columns: Iterable[object]) -> list[Metric]:
    """Return the metrics that there are pictures of, by group, for runs that have ``columns``."""
    names = set(map(str, columns))
    metrics = [m.of(first_detector(columns) or "") for m in METRICS.values() if m.picture]
    return [metric for metric in metrics if names & set(metric.keys_by_group().values())]


def askable() -> list[str]:
    """Return the names of the metrics that a study may ask for."""
    return list(dict.fromkeys(metric.key.split("/")[1] for metric in placed("column")))


def sortable() -> list[str]:
    """Return the names of the test set's metrics that a comparison can be in the order of."""
    return [
        metric.name
        for metric in placed("comparison")
        if metric.key.startswith("test/") and metric.unit == PERCENT and metric.better
    ]
