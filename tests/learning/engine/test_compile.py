"""With ``training.step=compiled`` a step's loss is one graph, made once for all of an epoch."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from lt_pipeline.learning.engine.captured import step_for
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.loader import Stream
from lt_pipeline.learning.engine.protocol import objective_of
from lt_pipeline.learning.engine.steps import Loss
from lt_pipeline.learning.experiments.config import ExperimentConfig, updated
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.transforms.augment import AugmentConfig
from toys import PROJECT, toy_card, toy_images

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
CONF = PROJECT / "conf" / "base"
# one of each family, and what draws, swaps weights or keeps state in its loss
METHODS = (
    *("ce", "cdb_ce", "ldam_drw", "more", "bcl", "dbm", "darl", "lgla", "dqroute", "sade"),
    *("ride", "btm", "gml", "mixup", "oe", "lift"),
)
TRAINING = {
    **{"epochs": 6, "batch_size": 32, "warmup_epochs": 1},
    "augment": AugmentConfig(crop_padding=0, flip=0.0),
}


def experiment(name, **training):
    own = yaml.safe_load(Path(CONF, f"parameters_{name}.yml").read_text())
    config = ExperimentConfig.resolve(name, updated({"model": {"backbone": "resnet8"}, **own}, {}))
    mine = {"device": "cpu", "training": TrainingConfig(**TRAINING, **training)}
    return Experiment(config.model_copy(update=mine), toy_card())


def stages(name):
    """Return one stage of each role."""
    by_role = {stage.role: stage for stage in experiment(name).stages if stage.trains}
    return list(by_role.values())


def batches_of(method, stage):
    """Return three batches of what the stage sees, all full: a last smaller one is a graph, too."""
    data, objective = toy_images(), objective_of(method, stage)
    seen = data[stage.subset.draw(data.labels, 0)] if stage.subset else data
    stream = Stream(
        *(stage, seen, experiment("ce").config.training),
        **{"views": objective.views, "seed": 2, "device": CPU, "auxiliary": toy_images(seed=9)},
    )
    full = [batch for batch in stream.epoch(0.5) if len(batch.labels) == TRAINING["batch_size"]]
    return (full * 3)[:3]


def after_three_steps(method, stage, *, compiled):
    config = experiment("ce", step="compiled" if compiled else "plain").config.training
    torch.manual_seed(0)
    objective_of(method, stage).start_epoch(0, config.epochs)
    step = step_for(method, stage, config, CPU)
    method.train()
    for number, batch in enumerate(batches_of(method, stage), 1):
        terms = step(batch, number / 10)
    return {**method.state_dict(), **terms}


@pytest.mark.parametrize("name", METHODS)
def test_a_compiled_step_is_one_graph_and_learns_the_same(name, monkeypatch):
    compiled = []

    def compile(loss):
        compiled.append(loss.stage.name)
        nn.Module.compile(loss, backend="eager", fullgraph=True)

    monkeypatch.setattr(Loss, "compile", compile)
    for stage in stages(name):
        torch._dynamo.reset()
        method = experiment(name).build()
        expected = after_three_steps(copy.deepcopy(method), stage, compiled=False)
        with torch._dynamo.config.patch(error_on_recompile=True):
            steps = after_three_steps(method, stage, compiled=True)
        torch.testing.assert_close(steps, expected, rtol=1e-4, atol=1e-5)
    assert compiled == [stage.name for stage in stages(name)]
