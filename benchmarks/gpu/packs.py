"""What travels: studies with all that their arms are told, resolved, and where their images are."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu.tiles import Prepared, prepared
from pydantic import BaseModel

from lt_pipeline.learning.data.prepare import DataConfig, expected
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.experiments.store import key
from lt_pipeline.learning.schema import UserError, unknown
from lt_pipeline.learning.studies.config import StudyConfig
from lt_pipeline.learning.studies.plan import Plan

PLAN = "plan.json"
# what a machine with PyTorch, torchvision, scikit-learn, torchmetrics, pandas, rich, safetensors
# and matplotlib lacks
WHEELS = (
    *("pydantic", "pydantic-core", "annotated-types", "typing-extensions", "typing-inspection"),
    "pytorch-ood",
)
# the study of all methods, or of those that were named
METHODS = "methods"


class Entry(BaseModel):
    """A study as an environment of conf/ has it, on one set of data."""

    study: str
    env: str
    block: StudyConfig
    data: DataConfig
    data_hash: str
    arms: dict[str, ExperimentConfig]

    @property
    def title(self) -> str:
        """Return what its table is called."""
        return f"{self.study} · {self.env} · {self.data.title}"

    @property
    def plan(self) -> Plan:
        """Return it as a study's tables take it."""
        return Plan(self.study, self.block, self.arms, 0)

    def prepared(self, pack: Path) -> Prepared:
        """Return its images, which are in ``pack``."""
        return prepared(pack, self.data.model_dump_json(), self.data_hash)

    def experiment(self, label: str, seed: int, device: str) -> Experiment:
        """Return a run without its pixels' mean and deviation, as planning takes it."""
        config = self.arms[label].model_copy(update={"seed": seed, "device": device})
        return Experiment(config, replace(expected(self.data), data_hash=self.data_hash))


class Pack(BaseModel):
    """The studies of a pack."""

    commit: str
    command: str
    entries: list[Entry]

    @classmethod
    def read(cls, folder: Path) -> Pack:
        """Return the pack in ``folder``.

        Raises:
            UserError: if there is none.
        """
        if not (folder / PLAN).is_file():
            raise UserError(f"there is no {folder / PLAN}: python -m benchmarks.gpu pack makes it")
        return cls.model_validate_json((folder / PLAN).read_bytes())

    def asked(
        self, studies: Sequence[str], envs: Sequence[str], ratios: Sequence[float], arms: set[str]
    ) -> list[Entry]:
        """Return the entries that are asked for, in that order, with ``arms`` only; none is all.

        A study goes by its own name or by that of a paper's table.

        Raises:
            UserError: if there is no such study or arm.
        """
        known = {name for entry in self.entries for name in _names(entry)}
        for name in studies:
            if name not in known:
                raise UserError(unknown("study of this pack", name, sorted(known)))
        jobs = [
            entry
            for name in studies
            for entry in self.entries
            if name in _names(entry)
            and (not envs or entry.env in envs)
            and (not ratios or entry.data.imbalance_ratio in ratios)
        ]
        if not jobs:
            raise UserError(f"the pack has {', '.join(studies)} in no such environment or ratio")
        labels = {label for entry in jobs for label in entry.arms}
        for label in arms - labels:
            raise UserError(unknown("arm", label, sorted(labels)))
        return [
            entry.model_copy(update={"arms": {n: a for n, a in entry.arms.items() if n in arms}})
            if arms
            else entry
            for entry in jobs
        ]


class Job(NamedTuple):
    """An arm with a seed, and what stands for all that decides its result."""

    entry: Entry
    label: str
    seed: int
    key: str

    @property
    def title(self) -> str:
        """Return what it is called."""
        return f"{self.label} · IR {self.entry.data.imbalance_ratio:g} · seed {self.seed}"


def jobs(entries: Sequence[Entry], seeds: Sequence[int], device: str) -> list[Job]:
    """Return the runs of all ``entries``, seed by seed; what several have is there once."""
    known: dict[str, Job] = {}
    for seed in seeds:
        for entry in entries:
            for label in entry.arms:
                name = key(entry.experiment(label, seed, device))
                known.setdefault(name, Job(entry, label, seed, name))
    return list(known.values())


def command() -> str:
    """Return the line that was typed."""
    return shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]])


def _names(entry: Entry) -> Iterator[str]:
    yield from (entry.study, *entry.block.tables)
