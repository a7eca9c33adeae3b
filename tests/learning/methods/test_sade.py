from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.methods.sade import (
    AggregationConfig,
    SadeOptions,
    SelfSupervisedAggregation,
    learn_aggregation,
)
from lt_pipeline.learning.models.network import ModelConfig
from toys import toy_card, toy_images

CPU = torch.device("cpu")
MODEL = ModelConfig(backbone="resnet8", head="cosine", scale=30.0)
STILL = {"crop_padding": 1, "flip": 0.0}


def create(counts=(40, 20, 10, 5), model=MODEL, **options):
    torch.manual_seed(0)
    options = {"aggregation": {"augment": STILL, "batch_size": 16}, **options}
    return SelfSupervisedAggregation(SadeOptions.model_validate(options), model, toy_card(counts))


def batch():
    data = toy_images()
    index = torch.arange(0, len(data), 3)
    return Batch(data.images[index], data.labels[index], index)


def test_each_expert_has_its_loss():
    method = create(counts=(10, 40, 5, 20)).train()
    terms = method.loss(batch(), 0.5)
    with torch.no_grad():
        logits = method.net(batch().images).double()
    prior = [n / 75 for n in (10, 40, 5, 20)]
    inverse = [n / 75 for n in (20, 5, 40, 10)]
    shifts = {
        "softmax": [0.0] * 4,
        "balanced_softmax": [math.log(p) for p in prior],
        "inverse_softmax": [
            math.log(p) - 2 * math.log(q) for p, q in zip(prior, inverse, strict=True)
        ],
    }
    assert list(terms) == list(shifts)
    for k, (name, shift) in enumerate(shifts.items()):
        wanted = F.cross_entropy(logits[:, k] + torch.tensor(shift).double(), batch().labels)
        assert terms[name].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_with_equal_counts_all_three_are_cross_entropy():
    method = create(counts=(10, 10, 10, 10)).train()
    terms = method.loss(batch(), 0.5)
    logits = method.net(batch().images)
    for k, term in enumerate(terms.values()):
        torch.testing.assert_close(term, F.cross_entropy(logits[:, k], batch().labels))


def test_a_margin_stands_in_front_of_all_three():
    plain = create().train()
    method = create(criterion={"margin": {"name": "cosface", "size": 0.2}}).train()
    terms, logits = method.loss(batch(), 0.5), plain.net(batch().images)
    logits = logits - 6 * F.one_hot(batch().labels, 4)[:, None]  # s * 0.2
    for k, term in enumerate(terms.values()):
        wanted = F.cross_entropy(logits[:, k] + method.skill_shift[k], batch().labels)
        torch.testing.assert_close(term, wanted)


def test_bfloat16_gives_float32_terms():
    method = create(model=ModelConfig(backbone="resnet8")).train()
    with torch.autocast("cpu", torch.bfloat16):
        terms = method.loss(batch(), 0.5)
    assert {term.dtype for term in terms.values()} == {torch.float32}


def test_scores_are_the_mean_without_any_shift():
    method = create().eval()
    images = toy_images().images[:5]
    with torch.no_grad():
        torch.testing.assert_close(method.score(images), method.net(images).mean(1))


# Aggregation

STEADY, NOISY = 0, 1


def passes(steps=20, scale=4.0, seed=0):
    """Views of images for which expert 0 is sure and constant, and two others guess anew."""
    generator = torch.Generator().manual_seed(seed)

    def views():
        for _ in range(steps):
            classes = torch.randint(5, (32,), generator=generator)
            sure = scale * F.one_hot(classes, 5).float()
            noise = scale * torch.randn(2, 2, 32, 5, generator=generator)
            yield tuple(torch.stack([sure, *pair], 1) for pair in noise)

    return views


def test_aggregation_prefers_the_stable_expert():
    weight = learn_aggregation(passes(), 3, AggregationConfig(learning_rate=0.1))
    assert weight.argmax() == STEADY
    assert weight[STEADY] > 0.8
    assert (weight > 0).all()
    assert weight.sum().item() == pytest.approx(1)


def test_experts_that_do_not_differ_stay_alike():
    def alike():
        z = torch.randn(16, 1, 5, generator=torch.Generator().manual_seed(1))
        yield z.expand(-1, 3, -1), (z + 0.1).roll(1, 2).expand(-1, 3, -1)

    torch.testing.assert_close(learn_aggregation(alike, 3, AggregationConfig()), torch.ones(3) / 3)


@pytest.mark.parametrize(("stop_below", "epochs"), [(0.0, 7), (0.3, 1)])
def test_aggregation_stops_once_an_expert_is_out(stop_below, epochs):
    seen, views = [], passes(steps=30)

    def counted():
        seen.append(1)
        return views()

    config = AggregationConfig(epochs=7, stop_below=stop_below)
    assert learn_aggregation(counted, 3, config).min() < 0.3
    assert len(seen) == epochs


def test_no_epoch_leaves_the_experts_alike():
    config = AggregationConfig(epochs=0)
    torch.testing.assert_close(learn_aggregation(passes(), 3, config), torch.ones(3) / 3)


def test_the_steps_are_nesterov_s_with_weight_decay():
    rate, momentum, decay = 0.3, 0.8, 0.5
    given = list(passes(steps=4)())
    config = AggregationConfig(
        epochs=2, learning_rate=rate, momentum=momentum, weight_decay=decay, stop_below=0
    )
    weights = learn_aggregation(lambda: given, 3, config)
    raw, velocity = torch.zeros(3).double(), torch.zeros(3).double()
    for one, other in given * 2:
        point = raw.clone().requires_grad_()
        weight = point.softmax(0)[:, None]
        p, q = ((weight * seen.double()).sum(1).softmax(1) for seen in (one, other))
        cosine = (p * q).sum(1) / (p.norm(dim=1) * q.norm(dim=1))
        (gradient,) = torch.autograd.grad(-cosine.mean(), point)
        gradient = gradient + decay * raw
        velocity = momentum * velocity + gradient
        raw = raw - rate * (gradient + momentum * velocity)
    torch.testing.assert_close(weights.double(), raw.softmax(0), rtol=1e-5, atol=1e-6)


def recorded(seed, augment):
    """Return the images that the aggregation looked at, in order."""
    method = create(aggregation={"augment": augment, "batch_size": 16, "epochs": 2, "seed": seed})
    seen = []

    class Net(torch.nn.Module):
        def forward(self, images):
            seen.append(images)
            return torch.zeros(len(images), 3, 4)

    method.net = Net()
    method.aggregation_weight(toy_images(), CPU)
    return torch.cat(seen)


@pytest.mark.parametrize("augment", [{"crop_padding": 0, "flip": 0.0}, STILL])
def test_the_seed_is_that_of_the_order_and_of_the_views(augment):
    first, again, other = (recorded(seed, augment) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_network_s_own_noise_is_found():
    """An expert whose logits follow the position of the crop gets less than those that do not."""
    method = create(aggregation={"augment": STILL, "batch_size": 16, "learning_rate": 0.5})

    class Net(torch.nn.Module):
        def forward(self, images):
            steady = 6 * F.one_hot(torch.arange(len(images)) % 4, 4).float()
            edge = images[:, 0, [0, -1, 0, -1], [0, 0, -1, -1]].float() / 10  # padding or not
            return torch.stack([steady, edge, steady], 1)

    method.net = Net()
    weight = method.aggregation_weight(toy_images(), CPU)
    assert weight[1] < 0.2
    torch.testing.assert_close(weight[0], weight[2])


def test_diagnosis_uses_no_label_to_weight_the_experts():
    method = create()
    test = toy_images((6, 6, 6, 6), seed=2)
    shuffled = ImageSet(test.images, test.labels.flip(0), test.class_names)
    first, second = (method.diagnose(test, data, CPU) for data in (test, shuffled))
    assert first["aggregation_weight"] == second["aggregation_weight"]
    assert list(first["aggregation_weight"]) == ["expert 1", "expert 2", "expert 3"]
    assert sum(first["aggregation_weight"].values()) == pytest.approx(1)


def test_the_aggregated_accuracy_is_that_of_the_weighted_logits():
    method = create()
    test = toy_images((6, 6, 6, 6), seed=2)
    diagnosis = method.diagnose(test, test, CPU)
    weight = torch.tensor(list(diagnosis["aggregation_weight"].values()))
    with torch.no_grad():
        logits = method.net(test.images)
    right = (torch.einsum("k,bkc->bc", weight, logits).argmax(1) == test.labels).double()
    groups = {"many": right[:12], "medium": right[12:18], "few": right[18:], "all": right}
    assert diagnosis["aggregated_accuracy"] == {
        name: pytest.approx(part.mean().item()) for name, part in groups.items()
    }
    alone = (logits[:, 2].argmax(1) == test.labels).double().mean().item()
    assert diagnosis["accuracy_expert_3"]["all"] == pytest.approx(alone)


def test_contrast_can_be_added_to_the_views():
    strong = {"augment": STILL, "contrast": {"crop_scale": (0.5, 1.0), "blur_sigma": (0.1, 1.0)}}
    mild, hard = create(), create(aggregation=strong)
    images = toy_images()
    assert not torch.equal(
        mild.aggregation_weight(images, CPU), hard.aggregation_weight(images, CPU)
    )


def test_folding_leaves_the_network():
    method = create()
    method.merge_for_inference()
    assert all(name.startswith("net.") for name in method.state_dict())


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="sade.options.experts: SADE has 3 experts, one each for"):
        ExperimentConfig.resolve("sade", {"sade": {"options": {"experts": 4}}})
    with pytest.raises(ValueError, match="criterion.name"):
        ExperimentConfig.resolve("sade", {"sade": {"options": {"criterion": {"name": "focal"}}}})
    with pytest.raises(ValueError, match="tau"):
        SadeOptions(tau=-1)
    for wrong in ({"stop_below": 1}, {"learning_rate": 0}, {"batch_size": 0}, {"momentum": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            AggregationConfig(**wrong)


def test_views_that_would_be_all_padding_are_refused():
    method = create(aggregation={"augment": {"crop_padding": 8}})
    with pytest.raises(ValueError, match="crop_padding must be smaller than the image"):
        method.diagnose(toy_images(), toy_images(), CPU)
