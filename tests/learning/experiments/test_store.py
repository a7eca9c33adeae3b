"""What is finished is found again, and nothing else is taken for it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from types import NoneType

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lt_pipeline.learning import methods
from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.experiments.config import ExperimentConfig, data_config, updated
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.experiments.store import KEPT, Store, data_key, key, run_key, stage_resume
from lt_pipeline.learning.schema import Config, canonical, kinds
from toys import PROJECT, toy_card, toy_images

METRICS = {"test/accuracy": 0.1 + 0.2, "test/few": float("nan")}


@cache
def conf():
    params = {}
    for name in methods.available():
        text = (PROJECT / f"conf/base/parameters_{name}.yml").read_text()
        params = updated(params, yaml.safe_load(text))
    return params


@cache
def config(method):
    return ExperimentConfig.resolve(method, conf())


def experiment(method="crt", data_hash="a", **parameters):
    config = ExperimentConfig.resolve(method, updated(conf(), parameters))
    return Experiment(config, replace(toy_card(), data_hash=data_hash))


# the key


def alternatives(config, path=()):
    """Yield places in ``config`` and other values that may stand there."""
    for name, kind in kinds(type(config)).items():
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from alternatives(value, (*path, name))
        others = [None] * (NoneType in kind.types) + list(kind.names)
        others += [not value] if isinstance(value, bool) else []
        if isinstance(value, int | float) and not isinstance(value, bool):
            others += [value + 1, value * 2, value / 2]
        chosen = (b.model_fields["name"] for b in kind.blocks if "name" in b.model_fields)
        others += [{"name": field.default} for field in chosen]
        yield from (((*path, name), other) for other in others if other != value)


def changed(config, path, value):
    """Return ``config`` with another value, or itself where that cannot be."""
    values = config.model_dump(mode="json")
    block = values
    for name in path[:-1]:
        block = block[name]
    block[path[-1]] = value
    try:
        return ExperimentConfig.model_validate(values)
    except ValidationError:
        return config


def decisive(config):
    """Return ``config`` with what no result depends on the same in all."""
    training = config.training.model_copy(update={"checkpoint_every": 0.0})
    return config.model_copy(update={"device": "", "training": training})


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_configurations_are_equal_where_what_is_not_at_its_default_is(data):
    """Of every method, with parameters, criteria and methods below it changed by chance."""
    pair = [config(data.draw(st.sampled_from(methods.available())))] * 2
    for place in data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=4)):
        choices = list(alternatives(pair[place]))
        pair[place] = changed(pair[place], *data.draw(st.sampled_from(choices)))
    one, other = pair
    assert (canonical(one) == canonical(other)) == (one == other)
    card = toy_card()
    assert (key(Experiment(one, card)) == key(Experiment(other, card))) == (
        decisive(one) == decisive(other)
    )
    read = ExperimentConfig.model_validate_json(json.dumps(canonical(one)))
    assert read == one


def test_every_method_has_a_key_of_its_own():
    keys = {key(experiment(name)) for name in methods.available()}
    assert len(keys) == len(methods.available())


@pytest.mark.parametrize("method", methods.available())
def test_a_key_says_nothing_of_defaults(method):
    plain = experiment(method)
    spelled = ExperimentConfig.model_validate(plain.config.model_dump(mode="json"))
    assert key(replace(plain, config=spelled)) == key(plain)
    assert "momentum" not in canonical(spelled).get("training", {})


def test_what_is_judged_is_in_the_key_of_a_result_and_not_in_that_of_a_training():
    one, other = experiment(), experiment(evaluation={"recall_floor": 0.5})
    data = data_config({})
    assert key(one) != key(other)
    assert run_key(one.config, data) == run_key(other.config, data)
    assert run_key(one.config, data) != run_key(experiment(seed=1).config, data)
    more = data_config({"data": {"validation": 0.2}})
    assert run_key(one.config, data) != run_key(one.config, more)
    assert data_key(data) != data_key(more)
    assert key(experiment(device="cpu")) == key(experiment(device="auto"))


# metrics of whole runs


def kept_file(store, one):
    return store.folder_of(one) / KEPT


def test_metrics_are_kept_by_what_was_run_and_on_which_data(tmp_path):
    store, one = Store(tmp_path), experiment()
    assert store.metrics(one) is None
    store.keep(one, METRICS)
    assert store.metrics(one) == pytest.approx(METRICS, abs=0, rel=0, nan_ok=True)
    assert store.metrics(experiment(device="cpu")) is not None
    for other in (
        experiment(data_hash="b"), experiment(seed=1), experiment("ce"),
        experiment(training={"epochs": 7}), experiment(evaluation={"ood_limit": 7}),
        experiment(crt={"options": {"classifier": {"epochs": 7}}}),
    ):  # fmt: skip
        assert store.metrics(other) is None
        store.keep(other, {"test/accuracy": 0.0})
    assert store.metrics(one)["test/accuracy"] == METRICS["test/accuracy"]


def test_a_parameter_that_is_new_throws_nothing_away(tmp_path):
    store, one = Store(tmp_path), experiment()
    store.keep(one, METRICS)
    path = kept_file(store, one)
    before = json.loads(path.read_text())
    for block, name in (
        ("training", "gradient_clip"),
        ("model", "scale"),
        ("options", "criterion"),
    ):
        del before["config"][block][name]
    path.write_text(json.dumps(before))
    assert store.metrics(one) is not None


def with_momentum(monkeypatch, value):
    """An experiment at the defaults, of which one is another from now on."""
    block = TrainingConfig(momentum=value)
    monkeypatch.setattr(TrainingConfig.model_fields["momentum"], "default", value)
    monkeypatch.setattr(ExperimentConfig.model_fields["training"], "default", block)
    return experiment(training={"momentum": value})


def test_a_default_that_has_changed_is_another_run(tmp_path, monkeypatch):
    store, one = Store(tmp_path), experiment()
    store.keep(one, METRICS)
    usual, before = one.config.training.momentum, key(one)
    now = with_momentum(monkeypatch, 0.5)
    assert key(now) == before, "it says nothing of defaults"
    assert store.metrics(now) is None
    assert store.metrics(experiment(training={"momentum": usual})) is not None


@pytest.mark.parametrize(
    "text",
    [
        "", "no JSON", "[]", "{}", "null", '"text"', '{"metrics": {}}', '{"config": 3}', "\udcff",
        '{"config": {}, "metrics": [], "data_hash": "a"}',
        '{"config": [], "metrics": {}, "data_hash": "a"}',
        '{"config": {}, "metrics": {"test/accuracy": "high"}, "data_hash": "a"}',
    ],
)  # fmt: skip
def test_a_file_that_is_no_runs_is_one_line(tmp_path, text):
    store, one = Store(tmp_path), experiment()
    store.keep(one, METRICS)
    kept_file(store, one).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"metrics\.json is not what .* keeps.*delete it") as error:
        store.metrics(one)
    assert "\n" not in str(error.value)


def test_a_run_whose_parameters_no_longer_are_is_not_used(tmp_path):
    store, one = Store(tmp_path), experiment()
    store.keep(one, METRICS)
    path = kept_file(store, one)
    for change in ({"training": {"gone": 1}}, {"method": "gone"}, {"training": 3}):
        kept = json.loads(path.read_text())
        path.write_text(json.dumps({**kept, "config": updated(kept["config"], change)}))
        assert store.metrics(one) is None
        path.write_text(json.dumps(kept))
        assert store.metrics(one) is not None


# trainings that go on


def resume(one, folder):
    """Where the first stage of ``one`` goes on."""
    return stage_resume(one, one.stages[0], {}, toy_images(), folder)


def test_a_training_goes_on_where_a_parameter_is_new(tmp_path):
    one = experiment()
    for file in (resume(one, tmp_path), Store(tmp_path).shared(one, one.stages[0])):
        file.save({"epoch": 3})
        saved = torch.load(file.path, weights_only=True)
        assert saved["values"].pop("training.gradient_clip", 3) is None
        assert saved["values"].pop("model.scale") is not None
        torch.save(saved, file.path)
        assert file.load() == {"epoch": 3}


def test_a_training_of_other_defaults_or_data_does_not_go_on(tmp_path, monkeypatch):
    one = experiment()
    for file in (resume(one, tmp_path), Store(tmp_path).shared(one, one.stages[0])):
        file.save({"epoch": 3})

    def states_of(other):
        files = (resume(other, tmp_path), Store(tmp_path).shared(other, other.stages[0]))
        return [file.load() for file in files]

    assert states_of(one) == [{"epoch": 3}] * 2
    assert states_of(experiment(device="cpu", evaluation={"ood_limit": 7})) == [{"epoch": 3}] * 2
    assert states_of(experiment(data_hash="b")) == [None] * 2
    assert states_of(experiment(training={"epochs": 7})) == [None] * 2
    before = resume(one, tmp_path).fingerprint
    now = with_momentum(monkeypatch, 0.5)
    assert resume(now, tmp_path).fingerprint == before
    assert states_of(now) == [None] * 2


def test_a_later_stage_goes_on_only_from_the_same_weights_and_images(tmp_path):
    one = experiment("btm")
    stage = next(stage for stage in one.stages if stage.name == "branch_0")
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)

    def file(weight=1.0, pixel=0, name="a"):
        seen = ImageSet(images + pixel, torch.tensor([0, 1]), ("x", "y"))
        before = {"pretrain": {name: torch.tensor([weight])}}
        return stage_resume(one, stage, before, seen, tmp_path)

    file().save({"epoch": 3})
    assert file().load() == {"epoch": 3}
    assert [file(2.0).load(), file(pixel=1).load(), file(name="b").load()] == [None] * 3


@pytest.mark.parametrize("method", methods.available())
def test_arms_may_share_what_is_trained_first_and_nothing_that_is_their_own(tmp_path, method):
    one, store = experiment(method), Store(tmp_path)
    first, *others = one.stages
    own = others[-1:] if one.config.options.built_on else one.stages
    assert all(store.shared(one, stage) is None for stage in own)
    if others and one.config.options.built_on:
        other = experiment(method, **{method: {"options": {"criterion": {"name": "focal"}}}})
        assert store.shared(one, first) == store.shared(other, first) is not None
        assert key(one) != key(other)


def test_how_often_a_state_is_kept_decides_nothing(tmp_path):
    """Earlier versions kept one after so many epochs, and their runs say so."""
    often = experiment(training={"checkpoint_every": 1})
    assert often.config != experiment().config
    assert key(often) == key(experiment())
    one, other = resume(often, tmp_path), resume(experiment(), tmp_path)
    assert (one.fingerprint, one.values) == (other.fingerprint, other.values)
    store = Store(tmp_path)
    store.keep(often, {"test/accuracy": 0.5})
    assert store.metrics(experiment()) == {"test/accuracy": 0.5}
