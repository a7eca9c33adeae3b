from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
import yaml
from kedro.io import DatasetError
from safetensors.torch import save_file

from lt_pipeline.io.datasets import (
    FolderDataset,
    ImageSetDataset,
    StateDictDataset,
    TypedDataset,
)
from lt_pipeline.learning import methods
from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.data.protocol import content_hash
from lt_pipeline.learning.experiments.config import ExperimentConfig, updated
from lt_pipeline.learning.studies.plan import Plan
from lt_pipeline.reports.errors import in_one_line
from toys import PROJECT, toy_card


def test_an_image_set_comes_back_whole(tmp_path, train):
    dataset = ImageSetDataset(str(tmp_path / "deep" / "train.safetensors"))
    assert not dataset.exists()
    dataset.save(train)
    loaded = dataset.load()
    assert dataset.exists()
    assert content_hash(loaded) == content_hash(train)


def test_equal_sets_are_equal_files_and_another_key_is_another(tmp_path, train):
    path = tmp_path / "train.safetensors"

    def saved(key):
        dataset = ImageSetDataset(str(path))
        dataset.key = key
        dataset.save(train)
        return path.read_bytes()

    assert len({saved("a") for _ in range(20)}) == 1, "DVC knows files by their bytes"
    assert saved("b") != saved("a")


def test_a_set_of_an_earlier_version_is_read(tmp_path, train):
    path = tmp_path / "train.safetensors"
    tensors = {"images": train.images, "labels": train.labels}
    save_file(tensors, path, metadata={"class_names": json.dumps(train.class_names)})
    dataset = ImageSetDataset(str(path))
    dataset.key = "a"
    assert content_hash(dataset.load()) == content_hash(train)


def test_an_empty_hold_out_can_be_saved(tmp_path, train):
    dataset = ImageSetDataset(str(tmp_path / "validation.safetensors"))
    dataset.save(train[torch.zeros(0, dtype=torch.long)])
    assert len(dataset.load()) == 0
    assert dataset.load().shape == train.shape


def test_weights_come_back_whatever_their_memory_format(tmp_path):
    weight = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    state = {"weight": weight, "tracked": torch.tensor(3)}
    dataset = StateDictDataset(str(tmp_path / "model.safetensors"))
    dataset.save(state)
    loaded = dataset.load()
    assert loaded.keys() == state.keys()
    assert torch.equal(loaded["weight"], weight)
    assert torch.equal(loaded["tracked"], torch.tensor(3))


def test_a_write_that_breaks_off_keeps_the_file_before_it(tmp_path, monkeypatch):
    dataset = StateDictDataset(str(tmp_path / "model.safetensors"))
    dataset.save({"weight": torch.ones(2)})

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("lt_pipeline.io.datasets.save_file", full)
    with pytest.raises(DatasetError, match="No space left on device"):
        dataset.save({"weight": torch.zeros(2)})
    assert torch.equal(dataset.load()["weight"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x00" * 20)
    with pytest.raises(DatasetError, match=r"model\.safetensors cannot be read .*run the node"):
        StateDictDataset(str(path)).load()


def test_a_folder_loads_as_its_path_and_is_no_output(tmp_path):
    dataset = FolderDataset(str(tmp_path))
    assert dataset.load() == tmp_path
    with pytest.raises(DatasetError, match="not allowed"):
        dataset.save(None)


CONFIG = "lt_pipeline.learning.experiments.config.ExperimentConfig"
CARD = "lt_pipeline.learning.data.prepare.DataCard"
PLAN = "lt_pipeline.learning.studies.plan.Plan"


def conf():
    params = {"seed": 0}
    for name in methods.available():
        text = (PROJECT / f"conf/base/parameters_{name}.yml").read_text()
        params = updated(params, yaml.safe_load(text))
    return params


@pytest.mark.parametrize("method", methods.available())
def test_a_configuration_comes_back_and_is_the_json_that_it_always_was(tmp_path, method):
    config = ExperimentConfig.resolve(method, conf())
    dataset = TypedDataset(str(tmp_path / "deep" / "config.json"), CONFIG)
    dataset.save(config)
    loaded = dataset.load()
    assert loaded == config
    assert type(loaded.options) is methods.get(method).Options
    text = (tmp_path / "deep" / "config.json").read_text()
    assert text == json.dumps(config.model_dump(mode="json"), indent=2)


def test_a_card_comes_back_and_is_the_json_that_it_always_was(tmp_path):
    card = toy_card(channels=3)
    whole = LongTail((3, 2, 1), ("a", "b", "c"), ("many", "medium", "few"), "by hand")
    for one in (card, replace(card, longtail=whole, mean=(0.1 + 0.2,))):
        dataset = TypedDataset(str(tmp_path / "card.json"), CARD)
        dataset.save(one)
        assert dataset.load() == one
        assert (tmp_path / "card.json").read_text() == json.dumps(asdict(one), indent=2)


def test_a_plan_comes_back(tmp_path):
    arms = {name: {"method": name} for name in methods.available()}
    plan = Plan.of("s", {**conf(), "studies": {"s": {"title": "every method", "arms": arms}}})
    dataset = TypedDataset(str(tmp_path / "plan.json"), PLAN)
    dataset.save(plan)
    assert dataset.load() == plan
    assert dataset.load().runs == plan.runs


FOREIGN = [
    "",
    "plain text",
    "{}",
    "[]",
    "null",
    "3",
    '{"name": "of another program"}',
    "\udcff\udcfe",
]


@pytest.mark.parametrize("text", FOREIGN)
@pytest.mark.parametrize("model", [CONFIG, CARD, PLAN])
def test_a_file_of_something_else_is_one_line(tmp_path, model, text):
    path = tmp_path / "file.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DatasetError) as error:
        TypedDataset(str(path), model).load()
    line = in_one_line(error.value)
    assert line.startswith(f"{path} is no {model.rpartition('.')[-1]} (")
    assert line.endswith("; run the node that makes it")
    assert "\n" not in line


@pytest.mark.parametrize("text", ["", "plain text", "[]", "null", "3", "\udcff"])
def test_a_block_of_json_is_a_block_of_json(tmp_path, text):
    path = tmp_path / "file.json"
    dataset = TypedDataset(str(path))
    dataset.save({"accuracy": 0.1 + 0.2, "none": None, "left": float("nan")})
    loaded = dataset.load()
    assert (loaded["accuracy"], loaded["none"]) == (0.1 + 0.2, None)
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DatasetError) as loaded:
        dataset.load()
    assert "\n" not in in_one_line(loaded.value)
    assert f"{path} is no block of JSON" in in_one_line(loaded.value)


@pytest.mark.parametrize(
    ("field", "value"), [("data_hash", None), ("mean", "0.5"), ("longtail", {}), ("channels", "x")]
)
def test_a_card_that_was_edited_is_one_line(tmp_path, field, value):
    path = tmp_path / "card.json"
    path.write_text(json.dumps({**asdict(toy_card()), field: value}))
    with pytest.raises(DatasetError) as error:
        TypedDataset(str(path), CARD).load()
    assert f"{path} is no DataCard" in in_one_line(error.value)
    assert field in in_one_line(error.value)


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    path = tmp_path / "config.json"
    for dataset in (TypedDataset(str(path), CONFIG), StateDictDataset(str(path))):
        with pytest.raises(DatasetError) as error:
            dataset.load()
        assert in_one_line(error.value, str(path), "ce.configure") == (
            f"{path} is missing; node ce.configure makes it"
        )


def test_a_file_says_what_it_was_made_of_and_is_loaded_for_nothing_else(tmp_path, train):
    for dataset, value in (
        (TypedDataset(str(tmp_path / "a.json")), {"a": 1}),
        (StateDictDataset(str(tmp_path / "b.safetensors")), {"a": torch.ones(2)}),
        (ImageSetDataset(str(tmp_path / "c.safetensors")), train),
    ):
        dataset.save(value)
        dataset.key = "one"
        dataset.check()  # of a version that knew no key
        dataset.save(value)
        dataset.check()
        assert dataset.load() is not None
        dataset.key, dataset.node = "other", "ce.train"
        with pytest.raises(ValueError, match="of other parameters or other data.*run ce.train"):
            dataset.check()
        with pytest.raises(DatasetError) as error:
            dataset.load()
        assert "run ce.train first" in in_one_line(error.value)
