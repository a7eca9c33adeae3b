from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock
from pipeline_projects import Project, copy_project


@pytest.fixture
def project(tmp_path: Path, empty_database: Path) -> Project:
    folder = tmp_path / "project"
    folder.mkdir()
    return copy_project(folder, empty_database)


@pytest.fixture(scope="session")
def untouched(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Project:
    """A project for all runs that are refused: none of them may leave anything in it."""
    return copy_project(tmp_path_factory.mktemp("untouched"), empty_database)


@pytest.fixture(scope="session")
def finished(of_all_workers: Path) -> tuple[Project, str]:
    """A fresh project after its first `kedro run --pipeline=more`, and what that printed.

    Its model is registered. It is as from a shell in all: other runs begin with imports done. What
    a test changes it changes in a copy.
    """
    folder, said = of_all_workers / "finished", of_all_workers / "finished.txt"
    words = ("--pipeline=more", "--env=smoke", "--params=tracking.register=true")
    with FileLock(f"{folder}.lock"):
        if not said.exists():
            folder.mkdir()
            said.write_text(copy_project(folder, database=None).kedro(*words, cold=True))
    return Project(folder), said.read_text()
