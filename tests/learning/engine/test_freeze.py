from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.freeze import with_frozen
from lt_pipeline.learning.engine.optim import set_trainable, trained_parameters
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.engine.trainer import fit
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.experiments.experiment import Experiment, Sets
from lt_pipeline.learning.experiments.run import run_stages
from lt_pipeline.learning.experiments.store import Store
from lt_pipeline.learning.methods.families.base import Method, MethodOptions
from lt_pipeline.learning.models.network import ModelConfig
from lt_pipeline.learning.schema import UserError
from lt_pipeline.learning.transforms.augment import AugmentConfig
from toys import COUNTS, toy_card, toy_images

CPU = torch.device("cpu")
STAGE = Stage("train")


def config(**values):
    return TrainingConfig(
        epochs=2, batch_size=25, learning_rate=0.05, warmup_epochs=0,
        augment=AugmentConfig(crop_padding=0), **values,
    )  # fmt: skip


def method(backbone="resnet8"):
    torch.manual_seed(0)
    options = MethodOptions.model_validate({"criterion": {"name": "cross_entropy"}})
    return Method(options, ModelConfig(backbone=backbone), toy_card()).double()


def changed(before, after):
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def after_training(training, backbone="resnet8", size=8):
    trained = method(backbone)
    before = copy.deepcopy(trained.state_dict())
    # large ones are a batch
    images = toy_images(COUNTS if size == 8 else (10, 5, 5, 5), size=size)
    fit(trained, STAGE, images, training, seed=0, device=CPU)
    return before, trained.state_dict()


@pytest.mark.parametrize(
    ("freeze", "fixed"),
    [
        (1, ("stem", "bn")),
        (2, ("stem", "bn", "stage1")),
        (["backbone.stage1", "backbone.stage2.0.conv1"], ("stage1", "stage2.0.conv1")),
        ("backbone", ("",)),
    ],
)
def test_what_is_frozen_stays_to_the_digit_with_its_batchnorm_and_the_rest_learns(freeze, fixed):
    before, after = after_training(config(freeze=freeze, optimizer={"name": "adamw", "ema": 0.5}))
    starts = tuple(f"net.backbone.{name}" for name in fixed)
    stays = {name for name in before if name.startswith(starts) and name != "net.normalize"}
    constants = {name for name in before if "normalize" in name}
    assert changed(before, after) == before.keys() - stays - constants


def test_a_name_alone_is_a_list_of_one():
    assert config(freeze="backbone").freeze == ("backbone",)


@pytest.mark.parametrize(
    ("backbone", "layers"),
    [("test_resnet", 2), ("test_efficientnet", 3), ("test_convnext", 2), ("resnet18", 3)],
)
def test_leading_layers_of_any_librarys_network(backbone, layers):
    pytest.importorskip("timm")
    trained = method(backbone)
    first = {id(p) for layer in trained.net.layers[:layers] for p in layer}
    names = {name for name, p in trained.named_parameters() if id(p) in first}
    before, after = after_training(config(freeze=layers), backbone, size=32)
    moved = changed(before, after)
    assert not moved & names
    assert {name for name, _ in trained.named_parameters()} - moved == names
    norms = [n.rpartition(".")[0] for n, m in trained.named_modules() if n.endswith("running_mean")]
    assert not {f"{n}.running_mean" for n in norms if f"{n}.weight" in names} & moved


@pytest.mark.parametrize("backbone", ["resnet8", "test_efficientnet"])
def test_frozen_batchnorm_neither_moves_nor_learns_and_all_else_does(backbone):
    trained = method(backbone)
    norms = [n for n, m in trained.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    before, after = after_training(config(freeze_batchnorm=True), backbone, size=32)
    moved = changed(before, after)
    assert not any(name.startswith(tuple(norms)) for name in moved)
    rest = {n for n, _ in trained.named_parameters() if n.rpartition(".")[0] not in norms}
    assert moved == rest


def test_frozen_is_eval_and_not_in_the_optimizer_also_where_batchnorm_would_adapt():
    trained = method()
    stage = Stage("train", trainable=("net.head",), adapts=("net.backbone",))
    stage = with_frozen(trained, stage, config(freeze=2))
    set_trainable(trained, stage)
    backbone = trained.net.backbone
    assert not any(m.training for m in (backbone.stem, backbone.bn, *backbone.stage1.modules()))
    assert backbone.stage2[0].bn1.training
    learning = {name for name, _ in trained_parameters(trained, stage)}
    assert learning == {"net.head.weight", "net.head.bias"}


def test_weight_decay_leaves_frozen_weights_alone():
    values = {"freeze": ["head"], "weight_decay": 0.1}
    before, after = after_training(config(**values))
    assert not any("head" in name for name in changed(before, after))


def test_frozen_low_rank_factors_have_no_gradient_in_loras_second_half():
    options = {"freeze_general_after": 0.5, "amplitude": 0.0}
    experiment = ExperimentConfig.resolve("more", {"more": {"options": options}})
    trained = Experiment(experiment, toy_card()).build()
    stage = with_frozen(trained, STAGE, config(freeze=3))
    for epoch in range(2):
        set_trainable(trained, stage)
        trained.start_epoch(epoch, 2)
        learns = {n for n, p in trained.named_parameters() if p.requires_grad}
        assert learns <= {n for n, _ in trained_parameters(trained, stage)}


@pytest.mark.parametrize("name", ["crt", "mislas", "more", "sade", "dqroute", "btm", "bcl"])
def test_methods_of_every_kind_keep_a_frozen_backbone(name, tmp_path):
    options = {
        "crt": {"classifier": {"epochs": 1}},
        "mislas": {"classifier": {"epochs": 1}},
        "btm": {"branches": {"sets": 2, "epochs": 1, "batch_size": 8, "images": 4},
                "classifier": {"epochs": 1}, "interpolate": 0},
    }  # fmt: skip
    block = {"options": options.get(name, {})}
    training = config(freeze=1, freeze_batchnorm=True).model_dump() | {"epochs": 1}
    settings = ExperimentConfig.resolve(name, {name: block, "training": training})
    experiment, data = Experiment(settings, toy_card()), toy_images()
    fresh = experiment.build()
    first = {id(p) for p in fresh.net.layers[0]}
    fixed = tuple(n for n, p in fresh.named_parameters() if id(p) in first)
    fixed += tuple(
        n for n, m in fresh.named_modules()
        if isinstance(m, nn.BatchNorm2d) and "net.backbone" in n
    )  # fmt: skip
    nothing = data[torch.arange(0)]
    sets = Sets(data, nothing, nothing, None)
    result = run_stages(experiment, experiment.stages, sets, tmp_path, Store(tmp_path))[0]
    start = fresh.state_dict()
    for checkpoint in result.values():
        moved = changed({n: v for n, v in start.items() if n in checkpoint}, checkpoint)
        assert not any(n.startswith(fixed) for n in moved)
        assert any("net.backbone" in n for n in moved), "what is left of it learned"


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (["backbon"], "unknown part of the network 'backbon': did you mean 'backbone'"),
        (["backbone.stage4"], ".*did you mean 'backbone.stage[123]'"),
        (9, "must be at most the backbone's 4 layers, but is 9"),
        (["backbone", "head"], "nothing is left to learn in stage 'train'"),
    ],
)
def test_what_is_not_there_or_all_there_is_is_refused(freeze, message):
    with pytest.raises(UserError, match=f"^training.freeze: {message}"):
        with_frozen(method(), STAGE, config(freeze=freeze))
    with pytest.raises(UserError, match=message):
        fit(method(), STAGE, toy_images(), config(freeze=freeze), seed=0, device=CPU)


def test_of_features_there_is_nothing_more_to_freeze():
    trained = method()
    with pytest.raises(UserError, match="^training.freeze: must be 0: features=cached freezes"):
        with_frozen(trained, STAGE, config(freeze=1, features="cached"))
    assert with_frozen(trained, STAGE, config(freeze=0, features="cached")) == STAGE


def test_a_second_stage_of_which_nothing_is_left_is_refused_before_the_first():
    settings = ExperimentConfig.resolve("crt", {"training": {"freeze": ["head"]}})
    with pytest.raises(UserError, match="nothing is left to learn in stage 'classifier'"):
        settings._check_fit(toy_card(), (1, 8, 8))
