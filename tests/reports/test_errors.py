"""What is said of every kind of error in one line, and which ones are bugs."""

from __future__ import annotations

import json
import re
import sqlite3

import mlflow
import pandas as pd
import pytest
import torch
from kedro.io import DatasetError
from kedro_datasets.json import JSONDataset
from kedro_datasets.matplotlib import MatplotlibDataset
from kedro_datasets.pandas import CSVDataset
from matplotlib.figure import Figure
from mlflow.exceptions import MlflowException

from full_disk import tiny_disk
from lt_pipeline.io.datasets import ImageSetDataset, StateDictDataset
from lt_pipeline.learning.engine.checkpoint import ResumeFile
from lt_pipeline.learning.schema import MissingFileError, UnwritableError, UserError
from lt_pipeline.reports.errors import in_one_line
from toys import toy_images


def raised(call, *arguments):
    with pytest.raises(Exception) as error:  # noqa: PT011
        call(*arguments)
    return error.value


@pytest.mark.parametrize("kind", [UserError, MissingFileError, UnwritableError])
def test_what_a_person_can_put_right_is_said_as_it_is(kind):
    assert in_one_line(kind("file.x is missing: put it there")) == "file.x is missing: put it there"


@pytest.mark.parametrize(
    "bug",
    [
        ValueError("zip() argument 2 is shorter than argument 1"),
        TypeError("unsupported operand"),
        KeyError("branch_3"),
        RuntimeError("shape '[2]' is invalid"),
        FileNotFoundError(2, "No such file or directory", "file.x"),
        DatasetError("a dataset is misused"),
    ],
)
def test_a_bug_is_not_said_in_one_line(bug):
    assert in_one_line(bug) is None


def test_a_bug_beneath_kedro_is_none_either(tmp_path):
    error = raised(JSONDataset(filepath=str(tmp_path / "a.json")).save, {"a": object()})
    assert isinstance(error, DatasetError)
    assert in_one_line(error, "a.json") is None


def test_a_bug_while_a_refusal_is_handled_is_a_bug():
    def handle():
        try:
            raise UserError("refused")
        except UserError:
            raise KeyError("bug")  # noqa: B904

    assert in_one_line(raised(handle)) is None


def test_a_missing_file_is_named_with_the_node_that_makes_it(tmp_path):
    for dataset in (
        JSONDataset(filepath=str(tmp_path / "gone")),
        CSVDataset(filepath=str(tmp_path / "gone")),
        StateDictDataset(str(tmp_path / "gone")),
        ImageSetDataset(str(tmp_path / "gone")),
    ):
        error = raised(dataset.load)
        assert in_one_line(error, "data/gone", "ce.train") == (
            "data/gone is missing; node ce.train makes it"
        )
        # without a place Kedro's own words have the file, in one line
        alone = in_one_line(error)
        assert str(tmp_path / "gone") in alone
        assert alone.endswith(" is missing")
        assert "\n" not in alone


@pytest.mark.parametrize("content", ["", "{", '{"a": 1'])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "card.json").write_text(content)
    error = raised(JSONDataset(filepath=str(tmp_path / "card.json")).load)
    line = in_one_line(error, "card.json", "data_prep.make_sets")
    assert line.startswith("card.json is damaged (")
    assert line.endswith("); node data_prep.make_sets makes it")


def test_other_damage_is_named_too(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "ragged.csv").write_text("a\n1,2\n3,4,5\n")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\xfd")
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 20)
    for dataset in (
        CSVDataset(filepath=str(tmp_path / "empty.csv")),
        CSVDataset(filepath=str(tmp_path / "ragged.csv")),
        JSONDataset(filepath=str(tmp_path / "binary.json")),
    ):
        assert " is damaged (" in in_one_line(raised(dataset.load), "file")
    error = raised(StateDictDataset(str(tmp_path / "model.safetensors")).load)
    assert "model.safetensors cannot be read" in in_one_line(error, "file")


def test_a_folder_where_a_file_should_be_is_said(tmp_path):
    (tmp_path / "card.json").mkdir()
    error = raised(JSONDataset(filepath=str(tmp_path / "card.json")).load)
    assert in_one_line(error, "card.json") == "card.json cannot be read or written: Is a directory"


BIG = {"weight": torch.zeros(2**18)}


def figure():
    drawn = Figure(figsize=(20, 20))
    drawn.subplots().imshow(torch.rand(400, 400))
    return drawn


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dataset", "data"),
    [
        ("t.csv", lambda p: CSVDataset(filepath=p), pd.DataFrame({"a": range(10**5)})),
        ("t.json", lambda p: JSONDataset(filepath=p), list(range(10**5))),
        ("t.png", lambda p: MatplotlibDataset(filepath=p, save_args={"dpi": 200}), figure()),
        ("t.safetensors", StateDictDataset, BIG),
        ("t.images", ImageSetDataset, toy_images((4000, 4000, 4000))),
    ],
)
def test_a_full_disk_is_said_with_the_file(tmp_path, name, dataset, data):
    with tiny_disk(tmp_path / "disk", "64k") as disk:
        error = raised(dataset(str(disk / name)).save, data)
        line = in_one_line(error, f"disk/{name}")
    assert "no space left on device" in line.lower()
    assert name in line
    assert "\n" not in line


@pytest.mark.slow
def test_a_full_disk_is_said_where_pytorch_says_something_else(tmp_path):
    with tiny_disk(tmp_path / "disk", "64k") as disk:
        error = raised(ResumeFile(disk / "train.pt", "run").save, BIG)
        left = list(disk.iterdir())
    assert isinstance(error, UnwritableError)
    assert in_one_line(error) == (
        f"cannot write {disk / 'train.pt'}: No space left on device; the file before it, if there "
        f"was one, is kept"
    )
    assert left == []


@pytest.mark.slow
def test_mlflows_artifacts_on_a_full_disk_are_named(tmp_path):
    (tmp_path / "big.bin").write_bytes(bytes(2**18))
    with tiny_disk(tmp_path / "disk", "64k") as disk:
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
        try:
            experiment_id = mlflow.create_experiment("e", artifact_location=str(disk))
            with mlflow.start_run(experiment_id=experiment_id):
                error = raised(mlflow.log_artifact, str(tmp_path / "big.bin"))
            line = in_one_line(error, "data/metrics.json")
        finally:
            mlflow.set_tracking_uri(None)
    assert re.fullmatch(f"no space left on device: {disk}/.*/artifacts cannot be written; .*", line)


@pytest.mark.slow
def test_a_database_on_a_full_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "postgresql://me:secret@host/runs")
    with tiny_disk(tmp_path / "disk", "64k") as disk:
        connection = sqlite3.connect(disk / "mlflow.db")
        connection.execute("create table t (x)")
        insert = "insert into t values (zeroblob(1000000))"
        error = raised(lambda: (connection.execute(insert), connection.commit()))
        connection.close()
    for failure in (error, MlflowException(f"(sqlite3.OperationalError) {error} [SQL: ...]")):
        line = in_one_line(failure)
        assert line.startswith("no space left on device: postgresql://me:***@host/runs cannot be")


def test_an_error_that_came_of_a_full_disk_is_one():
    def write():
        try:
            raise OSError(28, "No space left on device", "mlflow.db-journal")
        except OSError:
            raise MlflowException("cannot end the run")  # noqa: B904

    assert in_one_line(raised(write), "elsewhere") == (
        "no space left on device: mlflow.db-journal cannot be written; make room and run again"
    )


def test_json_is_a_kind_of_damage_only_beneath_kedro():
    with pytest.raises(json.JSONDecodeError) as error:
        json.loads("{")
    assert in_one_line(error.value) is None
