from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from pipeline_projects import Project, copy_project


@pytest.fixture(autouse=True)
def no_server_is_left() -> Iterator[None]:
    """A test that chooses a tracking server does not choose it for those behind it."""
    yield
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri("")
    os.environ.pop("MLFLOW_REGISTRY_URI", None)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables: making one takes ten seconds."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def project(tmp_path: Path, empty_database: Path) -> Project:
    folder = tmp_path / "project"
    folder.mkdir()
    return copy_project(folder, empty_database)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """A fresh project after its first `kedro run --pipeline=more`, and what that printed."""
    project = copy_project(tmp_path_factory.mktemp("finished"), database=None)
    return project, project.kedro("--pipeline=more", "--env=smoke")
