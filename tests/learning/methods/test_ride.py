from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.engine.trainer import fit
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.losses import experts as losses
from lt_pipeline.learning.losses.functional import class_balanced_weight
from lt_pipeline.learning.methods.ride import RideOptions, Router, RoutingDiverseExperts
from lt_pipeline.learning.models.network import ModelConfig
from lt_pipeline.learning.transforms.augment import AugmentConfig
from toys import COUNTS, toy_card, toy_images

CPU = torch.device("cpu")
MODEL = ModelConfig(backbone="resnet8", head="cosine", scale=30.0)
LINEAR = ModelConfig(backbone="resnet8")
GROUPS = {"many", "medium", "few", "all"}


def create(model=MODEL, seed=0, **options):
    torch.manual_seed(seed)
    return RoutingDiverseExperts(RideOptions.model_validate(options), model, toy_card())


def batch():
    data = toy_images()
    index = torch.arange(0, len(data), 3)
    return Batch(data.images[index], data.labels[index], index)


def train(method, stage, rate=0.05):
    config = TrainingConfig(
        epochs=3, batch_size=25, learning_rate=rate, warmup_epochs=0,
        schedule="constant", augment=AugmentConfig(crop_padding=0, flip=0.0),
    )  # fmt: skip
    return fit(method, stage, toy_images(), config, seed=0, device=CPU)


def state(method):
    return {name: value.clone() for name, value in method.state_dict().items()}


def gated(method, bias):
    """Make the router say the same of every image."""
    with torch.no_grad():
        method.router.output.weight.zero_()
        method.router.output.bias.fill_(bias)
    return method


# The experts' loss


def margins_and_weights():
    margin = 0.5 * (torch.tensor(COUNTS).double() / min(COUNTS)) ** -0.25
    return margin, class_balanced_weight(torch.tensor(COUNTS).double(), 0.9999)


def expert_losses(logits, labels, weight):
    """LDAM of each expert, one after the other, in double precision."""
    margin, _ = margins_and_weights()
    shifted = logits - 30 * margin[labels][:, None, None] * F.one_hot(labels, 4)[:, None]
    return [F.cross_entropy(shifted[:, k], labels, weight=weight) for k in range(3)]


@pytest.mark.parametrize(("epoch", "late"), [(0, False), (159, False), (160, True)])
def test_without_diversity_the_loss_is_the_sum_of_the_experts_criteria(epoch, late):
    method = create(diversity=0).train()
    method.start_epoch(epoch, 200)
    terms = method.loss(batch(), 0.5)
    assert list(terms) == ["class_balanced"]
    with torch.no_grad():
        logits = method.net(batch().images).double()
    weight = margins_and_weights()[1] if late else None
    wanted = sum(expert_losses(logits, batch().labels, weight))
    assert terms["class_balanced"].item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("target", ["mean", "others"])
@pytest.mark.parametrize(("epoch", "late"), [(159, False), (160, True)])
def test_diversity_is_rewarded_by_class_temperature_from_epoch_160_of_200(target, epoch, late):
    method = create(diversity=0.3, diversity_target=target, temperature=1.5).train()
    method.start_epoch(epoch, 200)
    terms = method.loss(batch(), 0.5)
    with torch.no_grad():
        logits = method.net(batch().images).double()
    temperature = torch.full((4,), 1.5).double()
    if late:
        counts = torch.tensor(COUNTS).double()
        beta = 0.05 * counts / counts.mean() + 0.95
        temperature = 1.5 * beta / beta.max()
    wanted = -0.3 * losses.diversity(logits, temperature, target).sum(1).mean()
    assert wanted < 0
    assert terms["diversity"].item() == pytest.approx(wanted.item(), rel=1e-4)


def test_the_paper_s_temperatures_are_a_choice():
    method = create(temperature_rule="shift", temperature_gamma=0.2, temperature_start=0)
    counts = torch.tensor(COUNTS).double()
    beta = 0.2 * counts / counts.mean() + 0.8
    torch.testing.assert_close(method.class_temperature.double(), beta + 1 - beta.max())
    assert method.tempered


def test_more_diversity_makes_experts_differ_more():
    apart = []
    for weight in (0.0, 2.0):
        method = create(diversity=weight, criterion={"name": "cross_entropy"})
        train(method, Stage("train", epochs=12))
        method.eval()
        with torch.no_grad():
            logits = method.net(toy_images().images)
        apart.append(losses.diversity(logits, torch.ones(4), "others").mean())
    assert apart[1] > 1.5 * apart[0]


@pytest.mark.parametrize(
    "criterion", [{"name": "balanced_softmax", "margin": {"name": "dbm"}}, {"name": "focal"}]
)
def test_any_criterion_on_logits_will_do(criterion):
    method = create(criterion=criterion, diversity=0).train()
    method.start_epoch(0, 2)
    (value,) = method.loss(batch(), 0.5).values()
    logits = method.net(batch().images)
    alone = [method.criterion(logits[:, k], batch().labels).mean() for k in range(3)]
    torch.testing.assert_close(value, sum(alone), rtol=1e-4, atol=1e-4)


# The router


def stages(**options):
    return RoutingDiverseExperts.stages(RideOptions(**options))


def test_the_router_has_a_stage_of_its_own():
    experts, router = stages()
    assert (experts.name, experts.passes(200), experts.trainable) == ("train", 200, ("",))
    assert (router.name, router.passes(200), router.trainable) == ("router", 20, ("router",))
    assert stages(router_share=0.025)[1].passes(200) == 5
    assert router.passes(1) == 1
    labels, generator = toy_images().labels, torch.Generator().manual_seed(0)
    drawn = torch.cat([labels[router.sampler(labels, generator, 0.0)] for _ in range(20)])
    assert torch.bincount(drawn).min() > 0.8 * len(drawn) / 4


@pytest.mark.parametrize("criterion", ["class_balanced", "difficulty_balanced"])
def test_each_stage_leaves_the_other_s_part_as_it_is_bit_for_bit(criterion):
    method = create(criterion={"name": criterion})
    start = state(method)
    experts, router = method.stages(method.options)
    history = train(method, experts)
    assert set(history) >= {f"train/{criterion}", "train/diversity"}
    assert "train/routing" not in history
    middle = state(method)
    history = train(method, router)
    assert "train/routing" in history
    assert not {f"train/{criterion}", "train/diversity"} & set(history)
    end = state(method)
    for name, value in start.items():
        moved_first, moved_then = (
            not torch.equal(value, middle[name]), not torch.equal(middle[name], end[name])
        )  # fmt: skip
        if name.startswith("router."):
            assert not moved_first, name
            assert moved_then, name
        else:
            assert not moved_then, name
    assert not torch.equal(start["net.head.weight"], middle["net.head.weight"])


def test_the_router_s_stage_needs_no_hold_out():
    options = {"name": "difficulty_balanced", "difficulty": "validation"}
    method = create(criterion=options)
    method.routing.end_epoch(10, None, CPU)
    with pytest.raises(ValueError, match="data.validation"):
        method.end_epoch(10, None, CPU)


def test_the_routing_loss_trains_the_router_alone():
    method = create().train()
    method.routing.loss(batch(), 0.5)["routing"].backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) == name.startswith("router."), name


def test_the_routing_loss_is_that_of_the_gates_and_labels():
    method = create(router_weight=7.0).train()
    loss = method.routing.loss(batch(), 0.5)["routing"]
    features = method.net.features(batch().images)
    logits = method.net.head(features)
    gates, needed = method.router(features, logits), losses.needs_more(logits, batch().labels)
    assert needed.any()
    assert not needed.all()
    torch.testing.assert_close(loss, losses.routing_loss(gates, needed, 7.0).mean())


@pytest.mark.parametrize("scale", [None, 30.0])
def test_the_router_sees_unit_features_and_the_largest_logits_so_far(scale):
    torch.manual_seed(0)
    router = Router(3, 5, 4, 2, scale)
    features, logits = torch.randn(6, 3, 5), 10 * torch.randn(6, 3, 7)
    gates = router(features, logits)
    assert gates.shape == (6, 2)
    for b in range(6):
        for k in range(2):
            hidden = router.hidden[k](features[b, k] / features[b, k].norm()).relu()
            so_far = logits[b, : k + 1].mean(0) / (scale or 1)
            seen = torch.cat([so_far.sort(descending=True).values[:2], hidden])
            assert gates[b, k].item() == pytest.approx(router.output(seen).item(), rel=1e-5)


def test_the_router_learns_which_images_need_more():
    torch.manual_seed(0)
    router = Router(3, 8, 16, 4, 30.0)
    features, logits = torch.randn(256, 3, 8), 30 * torch.rand(256, 3, 4)
    sure = losses.running_mean(logits)[:, :-1].amax(2) > 20
    needed = (features[:, :-1, 0] > 0) & ~sure  # one part is in the features, one in the logits
    optimizer = torch.optim.SGD(router.parameters(), 0.1, momentum=0.9)
    for _ in range(400):
        loss = losses.routing_loss(router(features, logits), needed, 1.0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert ((router(features, logits) > 0) == needed).float().mean() > 0.9


@pytest.mark.parametrize(("bias", "used"), [(9.0, 3), (-9.0, 1)])
def test_the_router_decides_how_many_experts_score(bias, used):
    method = gated(create(route=True), bias).eval()
    images = toy_images().images[:9]
    with torch.no_grad():
        logits = method.net(images)
        torch.testing.assert_close(method.score(images), logits[:, :used].mean(1))
        answer = method.predictions(images)
        torch.testing.assert_close(answer["probabilities"], method.score(images).softmax(1))
        assert answer["experts_used"].tolist() == [used] * 9
    diagnosis = method.diagnose(toy_images(), toy_images(seed=2), CPU)
    assert diagnosis["experts_used"] == dict.fromkeys(GROUPS, float(used))


def test_without_route_the_score_is_the_mean_and_the_router_is_folded_away():
    method = gated(create(), -9.0).eval()
    images = toy_images().images[:9]
    with torch.no_grad():
        torch.testing.assert_close(method.score(images), method.net(images).mean(1))
        assert list(method.predictions(images)) == ["probabilities"]
    method.merge_for_inference()
    assert all(name.startswith("net.") for name in method.state_dict())
    kept = create(route=True)
    kept.merge_for_inference()
    assert {name.split(".")[0] for name in kept.state_dict()} == {"net", "router"}


def test_diagnosis_counts_experts_and_what_is_right():
    method = create()
    for stage in method.stages(method.options):
        train(method, replace(stage, epochs=2))
    test = toy_images((6, 6, 6, 6), seed=2)
    diagnosis = method.diagnose(toy_images(), test, CPU)
    assert set(diagnosis) == {"experts_used", "accuracy_routed", "accuracy_mean"}
    assert all(set(values) == GROUPS for values in diagnosis.values())
    assert all(1 <= value <= 3 for value in diagnosis["experts_used"].values())
    with torch.no_grad():
        features = method.net.features(test.images)
        logits = method.net.head(features)
        gates = method.router(features, logits)
    right = (losses.routed(logits, gates).argmax(1) == test.labels).double()
    assert diagnosis["accuracy_routed"]["few"] == pytest.approx(right[18:].mean().item())
    used = losses.experts_used(gates).double()
    assert diagnosis["experts_used"]["many"] == pytest.approx(used[:12].mean().item())
    assert len(method.notes()) == 1


def test_bfloat16_gives_float32_terms():
    method = create().train()
    with torch.autocast("cpu", torch.bfloat16):
        terms = method.loss(batch(), 0.5) | method.routing.loss(batch(), 0.5)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert all(torch.isfinite(term) for term in terms.values())


def test_a_linear_head_does_with_a_criterion_of_logits():
    method = create(LINEAR, criterion={"name": "cross_entropy"}).train()
    assert method.router.scale == 1
    assert set(method.loss(batch(), 0.5)) == {"cross_entropy", "diversity"}
    assert set(method.routing.loss(batch(), 0.5)) == {"routing"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": {"name": "balanced_contrastive"}}, "choose one that reads logits only"),
        ({"experts": 1}, "ride.options.experts"),
        ({"diversity": -1}, "ride.options.diversity"),
        ({"diversity_target": "median"}, "ride.options.diversity_target"),
        ({"temperature_rule": "none"}, "ride.options.temperature_rule"),
        ({"router_share": 0}, "ride.options.router_share"),
        ({"temperature": 0}, "ride.options.temperature"),
        ({}, "the margin 'ldam' is of angles and needs model.head = cosine"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ExperimentConfig.resolve("ride", {"ride": {"options": options}})


def test_temperatures_below_zero_are_refused():
    with pytest.raises(ValueError, match="lower temperature_gamma"):
        create(temperature_rule="shift", temperature_gamma=1.0)
