"""A copy of the project in a temporary folder, and `kedro` processes in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

import warm
from lt_pipeline.io.conf_loader import ConfLoader
from lt_pipeline.io.datasets import TypedDataset
from lt_pipeline.io.own_folders import differences, folder
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.reports.command_line import read, split
from lt_pipeline.settings import CONFIG_LOADER_ARGS

PROJECT = Path(__file__).parents[2]

COPIED = ("conf", "src", "pyproject.toml", ".telemetry", ".dvc", ".dvcignore", "dvc.yaml")


@dataclass(frozen=True)
class Project:
    """A project folder and the commands a user would type there."""

    folder: Path

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.tracking_uri)

    @property
    def runs(self) -> list[Run]:
        """All runs that MLflow has, the newest first."""
        return runs_at(self.tracking_uri)

    def environment(self, **extra: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        binaries = str(Path(sys.executable).parent)
        return {
            **kept,
            "PATH": f"{binaries}{os.pathsep}{kept['PATH']}",
            "PYTHONPATH": str(self.folder / "src"),
            "DO_NOT_TRACK": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            **extra,
        }

    def start(
        self, *command: str, cwd: Path | None = None, cold: bool = False, **extra: str
    ) -> subprocess.Popen[str] | warm.Process:
        """Start ``command``, where it is Python without its first seconds; ``cold``: with them.

        What DVC starts is without them, too.
        """
        folder, environment = cwd or self.folder, self.environment(**extra)
        if warm.is_python(command) and not cold:
            # what stands here is imported in the folder, and may not depend on what is told to one
            here = cwd is None and all(name.startswith("MLFLOW_") for name in extra)
            server = warm.of_project(folder, self.environment()) if here else None
            return warm.Process(command, folder, environment, server)
        if command[0] == "dvc":
            environment["PATH"] = f"{warm.programs()}{os.pathsep}{environment['PATH']}"
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str, cold: bool = False, **given: Any) -> tuple[int, str]:
        process = self.start(*command, cold=cold, **given)
        try:
            output, _ = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return process.returncode, output

    def kedro(self, *arguments: str, **given: Any) -> str:
        code, output = self.run("kedro", "run", *arguments, **given)
        assert code == 0, output
        return output

    def file(self, *parts: str) -> Path:
        return self.folder.joinpath("data", *parts)


def runs_at(uri: str) -> list[Run]:
    """Return all runs of a store, the newest first."""
    client = MlflowClient(tracking_uri=uri)
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


def own(params: str, env: str = "smoke") -> str:
    """Return the folder that a run with these ``--params`` writes to."""
    conf = ConfLoader(conf_source=str(PROJECT / "conf"), env=env, **CONFIG_LOADER_ARGS)
    return folder(env, differences(read(split(params)), conf.as_written()))


def copy_project(folder: Path, database: Path | None) -> Project:
    for name in COPIED:
        source, target = PROJECT / name, folder / name
        if source.is_dir():
            # what is compiled comes along: it is of the same bytes and times
            ignored = shutil.ignore_patterns("tmp", "cache", "*.egg-info")
            shutil.copytree(source, target, ignore=ignored)
        else:
            shutil.copy(source, target)
    if database:
        shutil.copy(database, folder / "mlflow.db")
    return Project(folder)


def experiment_of(project: Project, method: str, env: str = "smoke") -> Experiment:
    """The experiment that the files of a finished run say it was."""
    experiments = [
        TypedDataset(str(project.file(*parts)), f"lt_pipeline.learning.{kind}").load()
        for kind, *parts in (
            ("experiments.config.ExperimentConfig", "06_models", env, method, "config.json"),
            ("data.prepare.DataCard", "03_primary", env, "data_card.json"),
        )
    ]
    return Experiment(*experiments)
