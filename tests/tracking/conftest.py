from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def database(tmp_path: Path, empty_database: Path) -> Path:
    """A file with MLflow's tables, of the test's own."""
    return Path(shutil.copy(empty_database, tmp_path / "m.db"))
