"""What a stage resumes from, and what a study's nodes are given: without a Kedro run."""

from __future__ import annotations

import pytest
import torch
from kedro.io import DataCatalog, MemoryDataset

from lt_pipeline.hooks.parameters import keep_to_the_study
from lt_pipeline.learning.experiments.config import ExperimentConfig, merged
from lt_pipeline.learning.studies.config import Arm, StudyConfig
from lt_pipeline.pipelines.method.nodes import stages_of, train_group
from toys import toy_card, toy_images

TRAINING = {
    "epochs": 1, "batch_size": 25, "learning_rate": 0.05, "warmup_epochs": 0,
    "augment": {"crop_padding": 0, "flip": 0.0},
}  # fmt: skip
SHORT = {"model": {"backbone": "resnet8"}, "training": TRAINING, "device": "cpu"}


def crt(**options):
    own = {"crt": {"options": {"classifier": {"epochs": 2}, **options}}}
    return ExperimentConfig.resolve("crt", {**SHORT, **own}).model_dump(mode="json")


def train(config, name, progress, *checkpoints):
    stage = {stage.name: stage for stage in stages_of(config)}[name]
    nothing = toy_images((0, 0, 0, 0))
    sets = (toy_images(), nothing, toy_images(seed=1), nothing)
    return train_group([stage])(config, toy_card().to_json(), *sets, progress, *checkpoints)


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def test_a_finished_stage_is_taken_up_only_on_top_of_the_same_weights(tmp_path):
    config = crt()
    first, _ = train(config, "pretrain", tmp_path)
    kept, history = train(config, "classifier", tmp_path, first)
    again, same_history = train(config, "classifier", tmp_path, first)
    assert same(kept, again)
    assert same_history == history, "not trained again: even its seconds are those of before"
    other = {name: value.clone() for name, value in first.items()}
    other["source.net.backbone.stem.weight"] += 0.1
    moved, new_history = train(config, "classifier", tmp_path, other)
    assert torch.equal(
        moved["source.net.backbone.stem.weight"], other["source.net.backbone.stem.weight"]
    )
    assert new_history != history


def test_a_first_stage_is_taken_up_whatever_follows_it(tmp_path):
    _, history = train(crt(), "pretrain", tmp_path)
    longer = crt(classifier={"epochs": 3})
    assert train(longer, "pretrain", tmp_path)[1] == history
    other = merged(crt(), {"training": {"learning_rate": 0.01}})
    assert train(other, "pretrain", tmp_path)[1] != history


def test_a_study_keeps_the_blocks_of_what_its_methods_stand_on():
    parameters = {
        "seed": 0, "crt": {"options": {"pretrain": "more"}}, "more": {"options": {"rank": 0.2}},
        "ce": {"options": {}}, "studies": {"one": {}, "two": {}},
    }  # fmt: skip
    catalog = DataCatalog({"parameters": MemoryDataset(parameters)})
    study = StudyConfig(title="one", arms={"a": Arm(method="crt")})
    keep_to_the_study(catalog, "one", list(study.experiments(parameters).values()))
    kept = catalog.load("parameters")
    assert kept["more"] == parameters["more"]
    assert "ce" not in kept
    assert list(kept["studies"]) == ["one"]


def test_a_criterion_of_another_name_begins_anew():
    base = {"criterion": {"name": "label_aware_smoothing", "head": 0.3, "tail": 0.0}}
    over = {"criterion": {"name": "geometric_mean"}}
    assert merged(base, over) == over
    assert merged(base, {"criterion": {"tail": 0.1}})["criterion"] == {
        "name": "label_aware_smoothing", "head": 0.3, "tail": 0.1,
    }  # fmt: skip
    assert merged({"sampler": {"name": "reverse", "defer": 0.5}}, {"sampler": {"name": "x"}}) == {
        "sampler": {"name": "x", "defer": 0.5}
    }


@pytest.mark.parametrize("env", ["base", "cifar10_lt_btm", "cifar100_lt_btm", "smoke"])
def test_every_study_can_be_read_in_every_environment(env):
    from kedro.config import OmegaConfigLoader

    from lt_pipeline.settings import CONFIG_LOADER_ARGS
    from toys import PROJECT

    loader = OmegaConfigLoader(conf_source=str(PROJECT / "conf"), env=env, **CONFIG_LOADER_ARGS)
    found = loader["parameters"]
    for name, block in found["studies"].items():
        assert StudyConfig.read(name, block).experiments(found)
