from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from hypothesis import settings

from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.data.prepare import DataCard
from toys import COUNTS, PROJECT, toy_card, toy_images

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("KEDRO_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# half of what is usual, on top of what Hypothesis chooses for CI
settings.register_profile("half", settings(), max_examples=50)
settings.load_profile("half")


@pytest.fixture
def card() -> DataCard:
    return toy_card()


@pytest.fixture
def train() -> ImageSet:
    return toy_images()


@pytest.fixture
def test_set() -> ImageSet:
    return toy_images((10,) * len(COUNTS), seed=1)


@pytest.fixture(scope="session")
def raw_cifar() -> Path:
    """The folder with the real CIFAR files; tests that need them are skipped without."""
    folder = PROJECT / "data" / "01_raw"
    if not (folder / "cifar-100-python").exists() or not (folder / "cifar-10-batches-py").exists():
        pytest.skip("the CIFAR files are not in data/01_raw")
    return folder


@pytest.fixture
def two_threads() -> Iterator[None]:
    """What works side by side on a CPU does so by as many threads as torch has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_server_is_left() -> Iterator[None]:
    """A test that chooses a tracking server does not choose it for those behind it."""
    yield
    if "mlflow" in sys.modules:
        mlflow = sys.modules["mlflow"]
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri("")
        # what set_experiment leaves, in the module and in the environment
        sys.modules["mlflow.tracking.fluent"]._active_experiment_id = None
        for name in ("REGISTRY_URI", "EXPERIMENT_ID", "EXPERIMENT_NAME", "RUN_ID"):
            os.environ.pop(f"MLFLOW_{name}", None)


@pytest.fixture(scope="session")
def of_all_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what takes long to make: the first worker that needs it makes it for all."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def empty_database(of_all_workers: Path) -> Path:
    """An MLflow database with its tables: making one takes ten seconds."""
    import mlflow  # takes a second, which tests of the science need not

    path = of_all_workers / "empty.db"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that at the end no worker waits for another's."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if "gpu" in item.keywords and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
