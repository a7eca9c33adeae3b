from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.engine.checkpoint import ResumeFile
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.optim import (
    begin_momentum,
    build_optimizer,
    trained_parameters,
)
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.engine.steps import parts
from lt_pipeline.learning.engine.trainer import fit
from lt_pipeline.learning.methods.families.base import Method, MethodOptions
from lt_pipeline.learning.models.backbones import build_backbone
from lt_pipeline.learning.models.experts import build_expert_network
from lt_pipeline.learning.models.low_rank import add_low_rank
from lt_pipeline.learning.models.network import ModelConfig
from lt_pipeline.learning.schema import canonical
from lt_pipeline.learning.transforms.augment import AugmentConfig
from lt_pipeline.learning.transforms.mix import MixConfig, mix
from toys import toy_card, toy_images

CPU = torch.device("cpu")
KINDS = {
    "adamw": {"name": "adamw"},
    "ema": {"ema": 0.8},
    "accumulate": {"accumulate": 3},
    "layer_decay": {"layer_decay": 0.5, "backbone_rate": 0.7},
    "all": {"name": "adamw", "ema": 0.8, "accumulate": 2, "layer_decay": 0.5},
}
each_kind = pytest.mark.parametrize("optimizer", KINDS.values(), ids=KINDS)


class Plainest(Method):
    """Its loss needs no more than the images."""

    def loss(self, batch, progress):
        return {"plain": F.cross_entropy(self.net(batch.images), batch.labels)}


class Undecayed(Plainest):
    def no_weight_decay(self):
        return [self.net.backbone.stem.weight]


def config(optimizer, **values):
    defaults = {
        "epochs": 2, "batch_size": 25, "learning_rate": 0.02, "warmup_epochs": 0,
        "schedule": "cosine", "weight_decay": 1e-2, "augment": AugmentConfig(crop_padding=1),
    }  # fmt: skip
    return TrainingConfig(**{**defaults, "optimizer": optimizer, **values})


def method(kind=Plainest, seed=0, **model):
    torch.manual_seed(seed)
    model = {"backbone": "resnet8", **model}
    return kind(MethodOptions(), ModelConfig(**model), toy_card()).double()


def without_batchnorm(trained):
    for module in list(trained.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    return trained


def run(trained, training, **extra):
    stage = extra.pop("stage", None) or Stage("train")
    return fit(trained, stage, toy_images(), training, seed=3, device=CPU, **extra)


def state_after(trained, training, **extra):
    run(trained, training, **extra)
    return trained.state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# groups


def groups(trained, training, stage=None):
    """Return rate and decay of every parameter, by name."""
    stage = stage or Stage("train")
    learning = dict(trained_parameters(trained, stage))
    names = {id(p): name for name, p in learning.items()}
    optimizer = build_optimizer(learning, trained, stage, training, CPU)
    return optimizer, {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }


def test_adamw_decays_neither_norms_nor_biases():
    trained = method(Undecayed)
    rates, by_name = groups(trained, config({"name": "adamw", "beta2": 0.99}, momentum=0.8))
    assert isinstance(rates, torch.optim.AdamW)
    assert rates.defaults["betas"] == (0.8, 0.99)
    norms = {f"{n}." for n, m in trained.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, (rate, decay) in by_name.items():
        free = name == "net.head.bias" or name.startswith(tuple(norms))
        free = free or name == "net.backbone.stem.weight"
        assert (rate, decay) == (0.02, 0.0 if free else 0.01), name
    assert sum(decay > 0 for _, decay in by_name.values()) == 7, (
        "six convolutions of seven, and the head"
    )
    _, of_sgd = groups(method(), config({}))
    assert {decay for _, decay in of_sgd.values()} == {0.01}


def test_what_begins_to_learn_later_does_not_stop_a_fused_optimizer():
    def weights(begin, **kind):
        early, late = (torch.ones(3, requires_grad=True) for _ in range(2))
        optimizer = torch.optim.SGD([early, late], lr=0.1, momentum=0.9, nesterov=True, **kind)
        begin(optimizer)
        for step in range(4):
            optimizer.zero_grad()
            (early.square().sum() + (late**3).sum() * (step > 1)).backward()
            late.grad = late.grad if step > 1 else None
            optimizer.step()
        return early.detach(), late.detach()

    learned = weights(begin_momentum, fused=True)
    torch.testing.assert_close(learned, weights(lambda optimizer: None))
    with pytest.raises(TypeError, match="NoneType"):  # of torch: once it is not, this can go
        weights(lambda optimizer: None, fused=True)


def test_biases_of_experts_are_matrices_and_biases():
    trained = method()
    trained.net = expert_network(ModelConfig(backbone="resnet8"), "stage1")
    _, by_name = groups(trained, config({"name": "adamw"}))
    assert trained.net.head.bias.ndim == 2
    assert by_name["net.head.bias"][1] == 0
    assert by_name["net.head.weight"][1] == 0.01


def test_a_step_of_adamw_is_the_sign_of_the_gradient_and_a_decay_beside_it():
    class Linear(Method):
        def loss(self, batch, progress):
            return {"sum": 3.0 * self.net.head.weight.sum() - 0.2 * self.net.head.bias.sum()}

    trained = method(Linear)
    weight, bias = trained.net.head.weight.clone(), trained.net.head.bias.clone()
    run(trained, config({"name": "adamw"}, epochs=1, batch_size=75))
    expected = weight * (1 - 0.02 * 0.01) - 0.02
    torch.testing.assert_close(trained.net.head.weight, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(trained.net.head.bias, bias + 0.02, rtol=0, atol=1e-8)


# depth


def expert_network(model, shared):
    card = toy_card()
    return build_expert_network(
        model, experts=2, shared=shared, classes=4, channels=1, mean=card.mean, std=card.std
    )


def test_rates_fall_from_layer_to_layer_and_the_head_has_the_whole():
    trained, stage = method(), Stage("train", rates={"net.backbone.stage1": 0.5})
    _, by_name = groups(trained, config({"layer_decay": 0.8}), stage)
    wanted = {"stem": 0.8**4, "bn": 0.8**4, "stage1": 0.5 * 0.8**3, "stage2": 0.8**2, "stage3": 0.8}
    for name, (rate, _) in by_name.items():
        part = name.split(".")[2]
        assert rate == pytest.approx(0.02 * wanted.get(part, 1.0)), name
    history = run(method(), config({"layer_decay": 0.8}, schedule="constant"))
    assert history["train/learning_rate"][0]["value"] == 0.02, "the head's"


@pytest.mark.parametrize(
    ("backbone", "layers"),
    [("resnet8", 4), ("resnet32", 16), ("resnet18", 9), ("resnet50", 17)],
)
@pytest.mark.parametrize("kind", ["plain", "low rank", "stage1", "all"])
def test_every_parameter_of_a_backbone_is_in_one_layer(backbone, layers, kind):
    model = ModelConfig(backbone=backbone)
    if kind in ("stage1", "all"):
        net = expert_network(model, kind)
    else:
        net = Method(MethodOptions(), model, toy_card()).net
    if kind == "low rank":
        add_low_rank(net, 0.1)
    assert len(net.layers) == layers
    held = [id(p) for layer in net.layers for p in layer]
    assert sorted(held) == sorted(id(p) for p in net.backbone.parameters())
    copied = copy.deepcopy(net)
    own = {id(p) for p in copied.parameters()}
    assert all(id(p) in own for layer in copied.layers for p in layer)


@pytest.mark.parametrize(
    ("name", "layers"), [("vit_tiny_patch16_224", 13), ("convnext_atto", 14), ("resnet26", 9)]
)
def test_layers_of_timms_networks_are_as_timm_groups_them(name, layers):
    pytest.importorskip("timm")
    net = Method(MethodOptions(), ModelConfig(backbone=name), toy_card()).net
    assert len(net.layers) == layers
    held = [id(p) for layer in net.layers for p in layer]
    assert sorted(held) == sorted(id(p) for p in net.backbone.parameters())
    names = {id(p): name for name, p in net.named_parameters()}
    first = {names[id(p)] for p in net.layers[0]}
    assert any("stem" in n or "patch_embed" in n or "conv1" in n for n in first)


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [("caformer_s18", "stem", "head"), ("pit_ti_224", "pos_embed", "norm")],
)
def test_layers_of_which_timm_does_not_say_are_the_parts_in_order(name, first, last):
    pytest.importorskip("timm")
    with torch.device("meta"):
        backbone = build_backbone(name)
    assert not hasattr(backbone.net, "group_matcher")
    names = {id(p): name for name, p in backbone.net.named_parameters()}
    layers = [[names[id(p)] for p in layer] for layer in backbone.layers]
    assert sorted(name for layer in layers for name in layer) == sorted(names.values())
    assert layers[0][0].startswith(first)
    assert layers[-1][0].startswith(last)
    assert len(layers) > 4


def test_the_backbone_has_a_rate_of_its_own_under_that_of_its_layers():
    values = {"layer_decay": 0.8, "backbone_rate": 0.1}
    _, by_name = groups(method(), config(values))
    wanted = {"stem": 0.8**4, "bn": 0.8**4, "stage1": 0.8**3, "stage2": 0.8**2, "stage3": 0.8}
    for name, (rate, _) in by_name.items():
        factor = 0.1 * wanted[name.split(".")[2]] if "backbone" in name else 1.0
        assert rate == pytest.approx(0.02 * factor), name
    _, whole = groups(method(), config({"backbone_rate": 0.1}))
    rates = {name: rate for name, (rate, _) in whole.items()}
    assert rates["net.backbone.stem.weight"] == pytest.approx(0.002)
    assert rates["net.head.weight"] == 0.02


def test_adamw_leaves_what_timm_says_alone_and_sgd_as_ever_does_not():
    pytest.importorskip("timm")
    trained = method(backbone="vit_tiny_patch16_224")
    free = {"net.backbone.net.pos_embed", "net.backbone.net.cls_token"}
    for name, decayed in (("adamw", 0), ("sgd", 2)):
        _, by_name = groups(trained, config({"name": name}))
        assert sum(by_name[one][1] > 0 for one in free) == decayed
    assert by_name.keys() > free
    _, by_name = groups(trained, config({"name": "adamw"}))
    matrices = {n for n, p in trained.named_parameters() if p.ndim > 1} - free
    assert {n for n, (_, decay) in by_name.items() if decay} == matrices


def test_layers_are_in_the_order_of_the_computation():
    backbone, seen = build_backbone("resnet18"), []
    for depth, layer in enumerate(backbone.layers):
        for module in layer:
            module.register_forward_hook(lambda *_, depth=depth: seen.append(depth))
    backbone.eval()(torch.zeros(1, 3, 32, 32))
    assert seen == [0, *range(9)]


# accumulation


@pytest.mark.parametrize("count", [2, 3])
def test_a_batch_in_parts_is_a_batch_where_nothing_else_sees_it_whole(count):
    # 20 images in three parts are 7, 7 and 6
    training = [config(optimizer, batch_size=20) for optimizer in ({}, {"accumulate": count})]
    whole, halves = (state_after(without_batchnorm(method()), one) for one in training)
    assert not same(whole, method().state_dict())
    for name, value in whole.items():
        torch.testing.assert_close(halves[name], value, rtol=1e-9, atol=1e-11, msg=name)


def test_batchnorm_sees_parts():
    ends = []
    for count in (1, 2):
        trained = method()
        history = run(trained, config({"accumulate": count}))
        ends.append((trained.state_dict(), history["train/plain"][0]["value"]))
    tracked = "net.backbone.bn.num_batches_tracked"
    assert (int(ends[0][0][tracked]), int(ends[1][0][tracked])) == (6, 12)
    assert ends[0][1] == pytest.approx(ends[1][1], rel=0.2), "terms are means, not sums"


def batch(images, **more):
    data = toy_images()[torch.arange(images)]
    return Batch(data.images, data.labels, torch.arange(images), **more)


def test_parts_have_all_that_a_batch_brings():
    one = batch(5)
    mixed = mix(
        one.images, one.labels, one.images.flip(0), one.labels.flip(0), MixConfig(),
        torch.Generator().manual_seed(0),
    )  # fmt: skip
    views, outliers = (one.images + 1, one.images + 2), toy_images().images[:3]
    given = batch(5, views=views, pair=batch(5), outliers=outliers, mixed=mixed)
    halves = list(parts(given, 2))
    assert [share for _, share in halves] == [0.6, 0.4]
    both = [part for part, _ in halves]
    assert [len(part.labels) for part in both] == [3, 2]
    assert [len(part.outliers) for part in both] == [2, 1]
    for name in ("images", "labels", "positions", "outliers"):
        joined = torch.cat([getattr(part, name) for part in both])
        assert torch.equal(joined, getattr(given, name))
    for k, view in enumerate(views):
        assert torch.equal(torch.cat([part.views[k] for part in both]), view)
    assert torch.equal(torch.cat([p.pair.labels for p in both]), given.pair.labels)
    for name, value in mixed._asdict().items():
        assert torch.equal(torch.cat([getattr(p.mixed, name) for p in both]), value)


@pytest.mark.parametrize(("images", "outliers", "count"), [(2, None, 2), (5, 1, 1), (1, None, 1)])
def test_no_part_is_empty(images, outliers, count):
    more = {} if outliers is None else {"outliers": toy_images().images[:outliers]}
    halves = list(parts(batch(images, **more), 4))
    assert len(halves) == count
    assert sum(share for _, share in halves) == 1


# the average


class Watching(Plainest):
    """Keeps what it has before every step, and what it is judged with."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.seen, self.tested = [], []

    def loss(self, batch, progress):
        self.seen.append({n: v.clone() for n, v in self.state_dict().items()})
        return super().loss(batch, progress)

    def score(self, images):
        self.tested.append(self.net.head.weight.detach().clone())
        return super().score(images)


AVERAGED = ("net.head.weight", "net.backbone.stem.weight", "net.backbone.bn.running_var")


def closed_form(values, decay):
    """a_T = d^(T-1) w_1 + (1 - d) sum_(t>1) d^(T-t) w_t."""
    steps = len(values)
    rest = sum(decay ** (steps - t) * v for t, v in enumerate(values, 1) if t > 1)
    return decay ** (steps - 1) * values[0] + (1 - decay) * rest


def test_a_stage_ends_with_the_average_and_trains_without():
    plain, averaged = method(Watching), method(Watching)
    histories = [run(plain, config({})), run(averaged, config({"ema": 0.8}))]
    assert histories[0]["train/plain"] == histories[1]["train/plain"]
    assert all(same(a, b) for a, b in zip(plain.seen, averaged.seen, strict=True))
    after = [*plain.seen[1:], plain.state_dict()]
    for name in AVERAGED:
        wanted = closed_form([state[name] for state in after], 0.8)
        torch.testing.assert_close(averaged.state_dict()[name], wanted, rtol=1e-12, atol=1e-14)
        assert not torch.allclose(wanted, after[-1][name], rtol=1e-3)
    tracked = "net.backbone.bn.num_batches_tracked"
    assert averaged.state_dict()[tracked] == 6


def test_monitors_judge_the_average():
    trained = method(Watching)
    run(trained, config({"ema": 0.8}), monitors={"validation": toy_images(seed=5)})
    first = [state["net.head.weight"] for state in trained.seen[1:4]]
    torch.testing.assert_close(trained.tested[0], closed_form(first, 0.8), rtol=1e-12, atol=1e-14)
    assert torch.equal(trained.tested[-1], trained.net.head.weight)


def test_what_is_frozen_and_what_a_method_keeps_is_not_averaged():
    class Counting(Plainest):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.register_buffer("told", torch.zeros(1))

        def end_epoch(self, epochs, validation, device):
            self.told += 1

    assert state_after(method(Counting), config({"ema": 0.9}))["told"] == 2


# all of them


class Interrupted(Exception):
    pass


@each_kind
def test_a_run_that_broke_off_ends_with_the_same_bits(tmp_path, optimizer):
    training = config(optimizer, epochs=3, checkpoint_every=0)
    whole = state_after(method(), training)

    def break_off(stage, epoch, values):
        if epoch == 2:
            raise Interrupted

    resume = ResumeFile(tmp_path / "train.pt", "run")
    with pytest.raises(Interrupted):
        run(method(), training, resume=resume, report=break_off)
    assert resume.load()["epoch"] == 2
    assert same(state_after(method(seed=99), training, resume=resume), whole)
    # one that had ended
    assert same(state_after(method(seed=98), training, resume=resume), whole)


# parameters


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": {"name": "adamw"}, "nesterov": True}, "is sgd's: must be false with opt"),
        ({"optimizer": {"accumulate": 9}, "batch_size": 8}, "accumulate must be <= training.batch"),
        ({"optimizer": {"ema": 1.0}}, "less than 1"),
        ({"optimizer": {"layer_decay": 0}}, "greater than 0"),
        ({"optimizer": {"name": "adam"}}, "did you mean 'adamw'"),
        ({"optimizer": "adamw"}, "block of parameters"),
    ],
)
def test_what_does_not_go_together_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**values)


def test_a_configuration_of_before_is_the_same_and_has_the_same_key():
    saved = TrainingConfig().model_dump()
    del saved["optimizer"]
    assert TrainingConfig(**saved) == TrainingConfig()
    kept = canonical(TrainingConfig(**{**saved, "momentum": 0.8, "nesterov": True}))
    assert kept == {"momentum": 0.8, "nesterov": True}
