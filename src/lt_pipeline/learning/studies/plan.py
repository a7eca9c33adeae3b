"""The runs of a study, and what it says before it trains them: which, and for how long."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

from lt_pipeline.learning.data.prepare import DataConfig
from lt_pipeline.learning.experiments.config import ExperimentConfig, data_config
from lt_pipeline.learning.experiments.store import KEY_DIGITS, run_key
from lt_pipeline.learning.studies.config import StudyConfig

# of a method on a backbone
Paces = dict[tuple[str, str], float]


class Run(NamedTuple):
    """An arm and a seed of it, on one fold of the data where there are folds."""

    label: str
    config: ExperimentConfig
    fold: int | None = None

    @property
    def title(self) -> str:
        """Return what it is called."""
        fold = "" if self.fold is None else f" · fold {self.fold}"
        return f"{self.label} · seed {self.config.seed}{fold}"


@dataclass(frozen=True)
class Plan:
    """A study with its arms' experiments, by label, its seeds and folds, all of it resolved."""

    name: str
    study: StudyConfig
    experiments: dict[str, ExperimentConfig]
    first_seed: int
    folds: tuple[int, ...] = ()

    @classmethod
    def of(cls, name: str, parameters: Mapping[str, Any]) -> Plan:
        """Return the plan of the study ``name``.

        Raises:
            UserError: in one line, naming the arm and the parameter that is wrong.
        """
        study = StudyConfig.read(parameters["studies"][name], f"studies.{name}")
        folds = data_config(parameters).each_fold
        return cls(name, study, study.experiments(parameters), parameters["seed"], folds)

    @property
    def arms(self) -> list[ExperimentConfig]:
        """Return the arms' experiments."""
        return list(self.experiments.values())

    def key(self, data: DataConfig) -> str:
        """Return what stands for all that decides the study's results."""
        keys = [run_key(run.config, data) for run in self.runs.values()]
        return sha256("".join([self.name, *keys]).encode()).hexdigest()[:KEY_DIGITS]

    @property
    def runs(self) -> dict[str, Run]:
        """Return the runs by the names of their nodes, in the order of seeds, folds and arms."""
        names = self.study.run_names(self.first_seed, self.folds)
        return {
            name: Run(label, self.experiments[label].model_copy(update={"seed": seed}), fold)
            for name, (label, seed, fold) in names.items()
        }

    def in_words(self, kept: Collection[str], paces: Paces) -> str:
        """Return in a sentence which runs are there, and which are trained, for how long.

        ``kept`` are the names of those that are finished.
        """
        runs = self.runs
        missing = [run for name, run in runs.items() if name not in kept]
        there = f"{len(runs)} runs, {len(runs) - len(missing)} of them there"
        if not missing:
            return f"{self.name}: {there}; nothing is trained"
        configs = [run.config for run in missing]
        epochs = sum(config.training.epochs for config in configs)
        seeds: dict[str, list[str]] = {}
        for label, config, fold in missing:
            own = str(config.seed) if fold is None else f"{config.seed} fold {fold}"
            seeds.setdefault(label, []).append(own)
        between = ", " if self.folds else " "
        named = ", ".join(f"{label} (seed {between.join(own)})" for label, own in seeds.items())
        return (
            f"{self.name}: {there}; {len(missing)} to train, {epochs:,} epochs, "
            f"{_how_long(configs, paces)}: {named}"
        )


def _how_long(configs: Sequence[ExperimentConfig], paces: Paces) -> str:
    keys = [(config.method, config.model.backbone) for config in configs]
    unknown = ", ".join(
        sorted({method for method, backbone in keys if (method, backbone) not in paces})
    )
    both = [(config, key) for config, key in zip(configs, keys, strict=True) if key in paces]
    if not both:
        return f"for how long is not known, as there is no run yet of {unknown}"
    seconds = sum(config.training.epochs * paces[key] for config, key in both)
    known = f"{_in_words(seconds)} at the pace of earlier runs"
    return f"{known} and what {unknown} takes, of which there is none yet" if unknown else known


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"
