from __future__ import annotations

from pathlib import Path

import pytest
from pipeline_projects import Project, copy_project


@pytest.fixture
def project(tmp_path: Path, empty_database: Path) -> Project:
    folder = tmp_path / "project"
    folder.mkdir()
    return copy_project(folder, empty_database)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """A fresh project after its first `kedro run --pipeline=more`, and what that printed.

    Its model is registered. It is as from a shell in all: other runs begin with imports done.
    """
    project = copy_project(tmp_path_factory.mktemp("finished"), database=None)
    words = ("--pipeline=more", "--env=smoke", "--params=tracking.register=true")
    return project, project.kedro(*words, cold=True)
