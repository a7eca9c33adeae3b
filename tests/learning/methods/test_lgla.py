from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.engine.trainer import fit
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.figures.methods import draw
from lt_pipeline.learning.methods.lgla import LGLA, SNAPSHOTS, LglaOptions
from lt_pipeline.learning.models.network import ModelConfig, parameter_count
from toys import toy_card, toy_images

CPU = torch.device("cpu")
MODEL = ModelConfig(backbone="resnet8", head="cosine", scale=30.0)
COUNTS = (10, 40, 5, 20)


def create(counts=COUNTS, model=MODEL, **options):
    torch.manual_seed(0)
    return LGLA(LglaOptions.model_validate(options), model, toy_card(counts)).train()


def batch():
    data = toy_images(COUNTS)
    index = torch.arange(0, len(data), 3)
    return Batch(data.images[index], data.labels[index], index)


def written_out(logits, labels, tau_global, angular, scale=30.0):
    """The three experts' mean losses, image by image."""
    prior = torch.tensor(COUNTS).double() / 75
    # from fewest: 5 + 10 + 20 <= 37.5 < 75, so that class 1 crosses and stays: the upper group
    # would be empty, and gets class 1 for itself
    groups = [{1}, {0, 2, 3}]
    own = []
    for k in range(3):
        if k < 2:
            shift = [math.log(prior[c]) if c in groups[k] else math.log(40 / 75) for c in range(4)]
        else:
            shift = [tau_global * math.log(p) for p in prior]
        z = logits[:, k].double()
        losses = F.cross_entropy(z + torch.tensor(shift).double(), labels, reduction="none")
        if angular:
            angle = torch.acos(z.gather(1, labels[:, None]).squeeze(1) / scale)
            weight = []
            for i, y in enumerate(labels.tolist()):
                mine = next(g for g in groups if y in g)
                mates = [j for j, other in enumerate(labels.tolist()) if other in mine]
                mean = sum(angle[j] for j in mates) / len(mates)
                weight.append(1 + max(0.0, float(angle[i] - mean)))
            losses = losses * torch.tensor(weight)
        own.append(losses.mean().item())
    return own


@pytest.mark.parametrize("angular", [True, False])
@pytest.mark.parametrize("tau_global", [1.0, 2.5])
def test_the_losses_are_those_of_two_local_experts_and_a_global_one(angular, tau_global):
    method = create(angular=angular, tau_global=tau_global)
    with torch.no_grad():
        terms = method.loss(batch(), 0.5)
        logits = method.net(batch().images)
    assert list(terms) == ["local_1", "local_2", "global"]
    wanted = written_out(logits, batch().labels, tau_global, angular)
    assert [term.item() for term in terms.values()] == pytest.approx(wanted, rel=1e-5)


def test_a_margin_moves_the_adjusted_logits_and_not_the_angles():
    plain, method = create(), create(criterion={"margin": {"name": "cosface", "size": 0.2}})
    logits, labels = plain.net(batch().images).detach(), batch().labels
    losses = method.expert_losses(logits, logits + method.shift, labels)
    moved = logits - 6 * F.one_hot(labels, 4)[:, None]  # s * 0.2
    unweighted = create(angular=False).expert_losses(logits, moved + method.shift, labels)
    weight = plain.expert_losses(logits, logits, labels) / create(angular=False).expert_losses(
        logits, logits, labels
    )
    torch.testing.assert_close(losses, unweighted * weight, rtol=1e-4, atol=1e-5)


def test_scores_are_the_mean_of_raw_logits():
    method = create().eval()
    with torch.no_grad():
        wanted = method.net(batch().images).mean(1)
        torch.testing.assert_close(method.score(batch().images), wanted)


@pytest.mark.parametrize(("classes", "wanted"), [(100, 1_362_064), (10, 1_344_784)])
def test_the_network_has_the_authors_size(classes, wanted):
    card = toy_card((5,) * classes, channels=3)
    model = ModelConfig(backbone="resnet32", head="cosine", scale=30.0)
    assert parameter_count(LGLA(LglaOptions(), model, card).net) == wanted


def test_angles_on_a_linear_head_are_refused_when_parameters_are_read():
    with pytest.raises(
        ValueError, match="lgla.options.angular: weights by angle need model.head = cosine"
    ):
        ExperimentConfig.resolve("lgla", {"model": {"head": "linear"}})
    ExperimentConfig.resolve("lgla", {"lgla": {"options": {"angular": False}}})


def test_energies_by_class_are_followed_over_the_run():
    method = create(angular=False, tau=2.0)
    config = TrainingConfig(
        epochs=2, batch_size=25, learning_rate=0.05, warmup_epochs=1, schedule="cosine",
        augment={"crop_padding": 0, "flip": 0.0},
    )  # fmt: skip
    seen = []
    once = method._watch
    method._watch = lambda *given: (seen.append([g.clone() for g in given]), once(*given))
    history = fit(method, Stage("train", epochs=2), toy_images(COUNTS), config, seed=0, device=CPU)
    energies, _, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
    by_epoch = [(energies[:75], labels[:75]), (energies[75:], labels[75:])]
    series = torch.tensor(method.training_curves()["energy"])
    assert series.shape == (SNAPSHOTS, 4)
    for row, (values, own) in zip((0, -1), by_epoch, strict=True):
        for c in range(4):
            assert series[row, c].item() == pytest.approx(values[own == c].mean().item(), rel=1e-5)
    assert torch.equal(series[0], series[24])
    assert torch.equal(series[25], series[-1])
    assert not torch.equal(series[0], series[-1])
    # many > 15: classes 1 and 3
    last = history["ambiguity/energy_many"][-1]["value"]
    assert last == pytest.approx((series[-1, 1] + series[-1, 3]).item() / 2, rel=1e-5)
    report = {"series": method.training_curves()}
    assert set(draw("lgla", report, method.card.longtail, "t")) == {"energy"}


def test_the_followed_energy_is_equation_8_at_tau():
    method = create(tau=2.0)
    with torch.no_grad():
        method.loss(batch(), 0.5)
        logits = create(tau=2.0).net(batch().images)
    wanted = (-2.0 * (logits / 2.0).logsumexp(2)).mean(1)
    mine = batch().labels == 1
    torch.testing.assert_close(method.sums[1, 1], wanted[mine].sum())
    assert method.sums[0].tolist() == torch.bincount(batch().labels).tolist()


def test_each_experts_accuracy_is_reported_by_group():
    method = create()
    diagnosis = method.diagnose(toy_images(COUNTS), toy_images((6, 6, 6, 6), seed=2), CPU)
    test = toy_images((6, 6, 6, 6), seed=2)
    with torch.no_grad():
        right = method.net(test.images).argmax(2) == test.labels[:, None]
    assert list(diagnosis) == ["accuracy_local_1", "accuracy_local_2", "accuracy_global"]
    for k, values in enumerate(diagnosis.values()):
        assert values["all"] == pytest.approx(right[:, k].double().mean().item())
        many = right[(test.labels == 1) | (test.labels == 3), k]
        assert values["many"] == pytest.approx(many.double().mean().item())


def test_a_note_says_how_the_classes_are_cut():
    assert "1 classes and 3 classes" in create().notes()[0]


def test_more_local_experts_than_classes_are_refused():
    with pytest.raises(ValueError, match="options.experts must be at most 3, .* but is 4"):
        create(counts=(5, 5), experts=4)
    assert create(counts=(5, 5), experts=3).member.tolist() == [[True, False], [False, True]]
