"""What a stage resumes from."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from lt_pipeline.learning.experiments.config import ExperimentConfig, updated
from lt_pipeline.learning.experiments.experiment import Experiment, Sets
from lt_pipeline.learning.experiments.run import Start, run_experiment, train_stages
from lt_pipeline.learning.experiments.store import Store
from toys import toy_card, toy_images

TRAINING = {
    "epochs": 1, "batch_size": 25, "learning_rate": 0.05, "warmup_epochs": 0,
    "augment": {"crop_padding": 0, "flip": 0.0},
}  # fmt: skip
SHORT = {"model": {"backbone": "resnet8"}, "training": TRAINING, "device": "cpu"}


def crt(**options):
    own = {"crt": {"options": {"classifier": {"epochs": 2}, **options}}}
    return ExperimentConfig.resolve("crt", {**SHORT, **own})


def train(config, name, progress, *checkpoints):
    experiment = Experiment(config, toy_card())
    stage = {stage.name: stage for stage in experiment.stages}[name]
    nothing = toy_images((0, 0, 0, 0))
    sets = Sets(toy_images(), nothing, toy_images(seed=1), nothing)
    start = Start(dict(zip(stage.start, checkpoints, strict=True)))
    (trained,) = train_stages(experiment, [stage], sets, start, progress)
    return trained


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
    other = updated(crt().model_dump(mode="json"), {"training": {"learning_rate": 0.01}})
    other = ExperimentConfig.model_validate(other)
    assert train(other, "pretrain", tmp_path)[1] != history


def test_an_arm_or_trial_draws_nothing(tmp_path, monkeypatch):
    def drawn(*arguments, **named):
        raise AssertionError("a picture that nobody looks at")

    monkeypatch.setattr(Figure, "__init__", drawn)
    config = ExperimentConfig.resolve("ce", {**SHORT, "evaluation": {"ood": False}})
    nothing = toy_images((0, 0, 0, 0))
    sets = Sets(toy_images(), nothing, toy_images(seed=1), nothing)
    result = run_experiment(Experiment(config, toy_card()), sets, tmp_path, Store(tmp_path))
    assert 0 < result["geometry/angle_mean/all"] < 180
