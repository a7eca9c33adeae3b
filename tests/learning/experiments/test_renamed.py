"""A parameter that is renamed: everything that has its old name is still read."""

from __future__ import annotations

import json

import pytest

from lt_pipeline.io.conf_loader import ConfLoader
from lt_pipeline.io.datasets import TypedDataset
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.experiments.renamed import RENAMED, renamed
from lt_pipeline.learning.experiments.store import KEPT, Store
from lt_pipeline.learning.schema import UserError
from lt_pipeline.settings import CONFIG_LOADER_ARGS
from toys import PROJECT, toy_card

OLD = {"training.epoch": "training.epochs", "more.options.A": "more.options.amplitude"}
MODEL = "lt_pipeline.learning.experiments.config.ExperimentConfig"


@pytest.fixture
def table(monkeypatch):
    for old, new in OLD.items():
        monkeypatch.setitem(RENAMED, old, new)


def config(**given):
    return ExperimentConfig.resolve("more", {"training": {"epochs": 7}, **given})


def as_before(params):
    values = params.model_dump(mode="json")
    values["training"]["epoch"] = values["training"].pop("epochs")
    values["options"]["A"] = values["options"].pop("amplitude")
    return values


def test_every_target_is_a_parameter_that_there_is():
    for new in RENAMED.values():
        block, *_ = new.split(".")
        config = ExperimentConfig.resolve(block if ".options." in new else "ce", {})
        values = config.model_dump(mode="json")
        if ".options." in new:
            values[block] = {"options": dict(config.options)}
        for part in new.split("."):
            values = values[part]


def test_values_move_to_where_they_are_now_and_nothing_else_does(table):
    given = {"training": {"epoch": 3, "batch_size": 2}, "more": {"options": {"A": 1}}, "seed": 4}
    assert renamed(given) == {
        "training": {"epochs": 3, "batch_size": 2},
        "more": {"options": {"amplitude": 1}},
        "seed": 4,
    }
    assert given["training"] == {"epoch": 3, "batch_size": 2}, "what was given stays as it was"
    assert renamed({"training": 3, "more": None}) == {"training": 3, "more": None}


def test_a_value_that_is_called_otherwise_now_is_translated():
    assert renamed({"model": {"pretrained": True}}) == {"model": {"weights": "default"}}
    assert renamed({"model": {"pretrained": False}}) == {"model": {"weights": "none"}}
    assert renamed({"training": {"compile": False}}) == {"training": {"step": "auto"}}
    assert renamed({"training": {"compile": True}}) == {"training": {"step": "compiled"}}
    assert renamed({"model": {"pretrained": [1]}}) == {"model": {"weights": [1]}}


def test_both_names_at_once_are_refused(table):
    with pytest.raises(UserError, match=r"training\.epoch is called training\.epochs now, and"):
        renamed({"training": {"epoch": 3, "epochs": 4}})


def test_conf_and_the_command_line_take_the_old_name(table, tmp_path):
    for folder, text in {
        "base": "training: {epochs: 60}\nmore: {options: {amplitude: 2.0}}\n",
        "mine": "training: {epoch: 5}\n",
    }.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "parameters.yml").write_text(text)
    told = {"more": {"options": {"A": 0.5}}}
    loader = ConfLoader(str(tmp_path), "mine", runtime_params=told, **CONFIG_LOADER_ARGS)
    assert loader["parameters"] == {
        "training": {"epochs": 5},
        "more": {"options": {"amplitude": 0.5}},
    }
    assert loader.as_written()["training"] == {"epochs": 5}


def test_a_saved_configuration_is_read_by_its_old_names(table, tmp_path):
    wanted = config(more={"options": {"amplitude": 0.5}})
    path = tmp_path / "config.json"
    path.write_text(json.dumps(as_before(wanted)))
    assert TypedDataset(str(path), model=MODEL).load() == wanted
    assert ExperimentConfig.model_validate(as_before(wanted)) == wanted


def test_a_kept_run_is_found_under_its_old_names(table, tmp_path):
    experiment = Experiment(config(), toy_card())
    store = Store(tmp_path)
    store.keep(experiment, {"test/accuracy": 0.5})
    file = store.folder_of(experiment) / KEPT
    kept = json.loads(file.read_text())
    file.write_text(json.dumps({**kept, "config": as_before(experiment.config)}))
    assert store.metrics(experiment) == {"test/accuracy": 0.5}
    assert store.metrics(Experiment(config(seed=1), toy_card())) is None


def test_without_an_entry_conf_is_what_it_was():
    loader = ConfLoader(str(PROJECT / "conf"), "smoke", **CONFIG_LOADER_ARGS)
    assert loader["parameters"]["training"]["epochs"] == 2
