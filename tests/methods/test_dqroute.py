from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from lt_pipeline.data.augment import AugmentConfig
from lt_pipeline.data.batches import Batch
from lt_pipeline.engine.checkpoint import ResumeFile
from lt_pipeline.engine.config import TrainingConfig
from lt_pipeline.engine.loop import fit
from lt_pipeline.engine.phase import Phase
from lt_pipeline.losses import routing
from lt_pipeline.methods.dqroute import DQRoute, DqrouteOptions
from lt_pipeline.models.network import ModelConfig
from toys import toy_card, toy_images

CPU = torch.device("cpu")
MODEL = ModelConfig(backbone="resnet8", head="cosine", scale=30.0)
# toy classes have 40, 20, 10 and 5 images
GROUPS = {"medium_below": 15, "tail_below": 8}
PHASE = Phase("train", 10)


def create(**options):
    torch.manual_seed(0)
    given = DqrouteOptions.model_validate({**GROUPS, "warmup": 0.0, **options})
    return DQRoute(given, MODEL, toy_card()).train()


def batch():
    data = toy_images()
    index = torch.arange(0, len(data), 3)
    return Batch(data.images[index], data.labels[index], index)


def parts(method, given):
    features = method.net.features(given.images)
    return method.net.head(features), method.gates(features).squeeze(2)


def training(**values):
    plain = AugmentConfig(crop_padding=0, flip=0.0)
    given = {"epochs": 3, "batch_size": 25, "learning_rate": 0.05, "warmup_epochs": 1}
    return TrainingConfig(**{**given, "schedule": "cosine", "augment": plain, **values})


def weights(method, labels, weighted_mean):
    weight = method.class_weight()[labels]
    return weight / weight.mean() if weighted_mean else weight


@pytest.mark.parametrize("weighted_mean", [True, False])
def test_the_loss_is_equations_7_to_10_image_by_image(weighted_mean):
    method, given = create(weighted_mean=weighted_mean, ood_loss="bce"), batch()
    logits, gates = parts(method, given)
    terms = method.loss(given, 0.5)
    weight = weights(method, given.labels, weighted_mean)
    groups = {0: (0,), 1: (0,), 2: (0, 1), 3: (0, 1, 2)}
    classified = outside = 0.0
    for z, u, y, w in zip(logits, gates, given.labels.tolist(), weight, strict=True):
        s = u.sigmoid()
        for k in range(3):
            classified += s[k] / s.sum() * w * F.cross_entropy(z[k], torch.tensor(y))
            b = k in groups[y]
            outside += w * -(s[k].log() if b else (1 - s[k]).log())
    size = len(given.labels)
    torch.testing.assert_close(terms["classification"], classified / size)
    torch.testing.assert_close(terms["ood"], 0.1 * outside / size)


def test_an_experts_own_images_are_those_of_its_classes():
    method, given = create(group_mode="hard", alpha=None), batch()
    logits, _ = parts(method, given)
    each = torch.stack(
        [F.cross_entropy(z, given.labels, reduction="none") for z in logits.unbind(1)]
    )
    rare, rarest = given.labels >= 2, given.labels == 3
    wanted = (each[0].mean() + each[1][rare].mean() + each[2][rarest].mean()) / 3
    torch.testing.assert_close(method.loss(given, 0.5)["classification"], wanted)
    masked = create(group_mode="masked", alpha=None)
    logits, _ = parts(masked, given)
    among = [
        F.cross_entropy(logits[:, 0], given.labels),
        F.cross_entropy(logits[rare, 1][:, 2:], given.labels[rare] - 2),
        torch.tensor(0.0),  # one class only
    ]
    torch.testing.assert_close(masked.loss(given, 0.5)["classification"], sum(among) / 3)


@pytest.mark.parametrize("mode", ["hard", "masked"])
def test_a_batch_without_an_experts_classes_has_a_finite_loss(mode):
    method = create(group_mode=mode)
    data = toy_images()
    head = data.labels == 0
    terms = method.loss(Batch(data.images[head], data.labels[head], torch.where(head)[0]), 0.5)
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_alpha_0_is_the_quantity_weight_and_1_the_difficulty_weight():
    quantity, difficulty, none = create(alpha=0.0), create(alpha=1.0), create(alpha=None)
    for method in (quantity, difficulty, none):
        method.loss(batch(), 0.5)
        method.end_epoch(PHASE, None, CPU)
    torch.testing.assert_close(
        quantity.class_weight(),
        routing.quantity_weight(quantity.card.longtail.counts, "inverse").float(),
    )
    assert torch.equal(difficulty.class_weight(), difficulty.log_weight.exp() * 4)
    assert not torch.equal(difficulty.class_weight(), torch.ones(4))
    assert torch.equal(none.class_weight(), torch.ones(4))


def test_difficulty_is_measured_on_the_fused_predictions_of_the_epoch():
    method, given = create(smoothing=0.0, gamma=0.3), batch()
    with torch.no_grad():
        logits, gates = parts(method, given)
    method.loss(given, 0.5)
    method.end_epoch(PHASE, None, CPU)
    share = gates.sigmoid() / gates.sigmoid().sum(1, keepdim=True)
    p = (share[:, :, None] * logits.softmax(2)).sum(1)
    for c in range(4):
        mine = p[given.labels == c]
        entropy = -(mine * mine.log()).sum(1).mean()
        assert method.entropy[c].item() == pytest.approx(entropy.item(), rel=1e-4)
        right = (mine.argmax(1) == c).float().mean()
        assert method.accuracy[c].item() == pytest.approx(right.item())
    d = (method.entropy / math.log(4) + 1 - method.accuracy) / 2
    torch.testing.assert_close(method.log_weight.exp(), (0.3 * d).softmax(0))
    assert not method.sums.any()


def test_smoothing_and_classes_that_were_not_seen():
    method = create(smoothing=0.9)
    data = toy_images()
    head = data.labels == 0
    method.loss(Batch(data.images[head], data.labels[head], torch.where(head)[0]), 0.5)
    _, entropy, right = (method.sums / method.sums[0].clamp(min=1)).unbind()
    method.end_epoch(PHASE, None, CPU)
    start = math.log(4)
    assert method.entropy.tolist() == pytest.approx(
        [0.9 * start + 0.1 * entropy[0].item(), start, start, start]
    )
    assert method.accuracy.tolist() == pytest.approx([0.1 * right[0].item(), 0, 0, 0])


def test_the_warm_up_routes_alike_and_keeps_the_weights():
    method, given = create(warmup=0.3), batch()
    for epoch in range(5):
        method.start_epoch(PHASE, epoch)
        logits, _ = parts(method, given)
        terms = method.loss(given, 0.5)
        each = torch.stack(
            [F.cross_entropy(z, given.labels, reduction="none") for z in logits.unbind(1)], 1
        )
        weight = weights(method, given.labels, weighted_mean=True)
        alike = (weight * each.mean(1)).mean()
        before = method.log_weight.clone()
        method.end_epoch(PHASE, None, CPU)
        warming = epoch < 3
        assert torch.isclose(terms["classification"], alike, rtol=1e-5).item() == warming
        assert torch.equal(method.log_weight, before) == warming
    method.eval()
    with torch.no_grad():
        assert not torch.allclose(method.answer(given.images)["routing"], torch.tensor(1 / 3))


def test_gradients_reach_the_heads_through_the_ood_loss_only_unless_told():
    for detach, reached in ((True, False), (False, True)):
        method = create(detach_routing=detach, ood_weight=0.0)
        sum(method.loss(batch(), 0.5).values()).backward()
        assert (method.gates.weight.grad is not None) == reached


def test_without_routing_the_experts_are_alike():
    method, given = create(route=False), batch()
    assert set(method.loss(given, 0.5)) == {"classification"}
    method.eval()
    with torch.no_grad():
        logits, _ = parts(method, given)
        share = method.answer(given.images)["routing"]
        torch.testing.assert_close(share, torch.full_like(share, 1 / 3))
        torch.testing.assert_close(method.score(given.images).exp(), logits.softmax(2).mean(1))


@pytest.mark.parametrize("fuse", ["probabilities", "logits"])
def test_scores_fuse_what_is_routed(fuse):
    method, given = create(fuse=fuse).eval(), batch()
    with torch.no_grad():
        logits, gates = parts(method, given)
        share = gates.sigmoid() / gates.sigmoid().sum(1, keepdim=True)
        found = method.score(given.images).softmax(1)
        torch.testing.assert_close(method.answer(given.images)["routing"], share)
    values = logits.softmax(2) if fuse == "probabilities" else logits
    fused = (share[:, :, None] * values).sum(1)
    wanted = fused if fuse == "probabilities" else fused.softmax(1)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("difficulty", ["training", "validation"])
def test_resume_keeps_every_statistic(tmp_path, difficulty):
    held_out = {"validation": toy_images((6, 6, 6, 6), seed=5, noise=200.0)}
    options = {"difficulty": difficulty, "gamma": 0.5}
    phase = Phase("train", 4)
    whole, broken, resumed = (create(**options) for _ in range(3))
    arguments = (phase, toy_images(), training(epochs=4))
    common = {"seed": 0, "device": CPU, "monitors": held_out}
    history = fit(whole, *arguments, **common)
    assert len(history["difficulty/effective_classes"]) == 4
    assert history["difficulty/effective_classes"][-1]["value"] < 4
    file = ResumeFile(tmp_path / "state.pt", "mark")

    def stop(name, epoch, values):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(broken, *arguments, **common, resume=file, report=stop)
    fit(resumed, *arguments, **common, resume=file)
    one, two = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_hold_out_is_needed_where_difficulty_is_measured_on_it():
    with pytest.raises(ValueError, match="set data.validation > 0"):
        fit(create(difficulty="validation"), Phase("train", 1), toy_images(), training(epochs=1),
            seed=0, device=CPU)  # fmt: skip
    assert DqrouteOptions(difficulty="validation").wants_validation
    assert not DqrouteOptions().wants_validation


def test_the_weights_over_training_are_kept_for_the_picture():
    method = create(gamma=1.0, alpha=1.0)
    fit(method, Phase("train", 4), toy_images(), training(epochs=4), seed=0, device=CPU)
    history = torch.tensor(method.series()["class_weight"])
    assert history.shape == (51, 4)
    assert torch.equal(history[0], torch.ones(4))
    assert torch.equal(history[11], torch.ones(4))
    assert not torch.equal(history[13], torch.ones(4)), "the second of four epochs"
    torch.testing.assert_close(history.mean(1), torch.ones(51))


def test_diagnosis_is_by_group_and_its_shares_add_up():
    method = create()
    found = method.diagnose(toy_images(), toy_images(seed=3), CPU)
    for group in ("many", "medium", "few"):
        shares = [found[f"routing_{name}"][group] for name in ("E_G", "E_M", "E_T")]
        assert sum(shares) == pytest.approx(1)
    test = toy_images(seed=3)
    with torch.no_grad():
        right = (method.score(test.images).argmax(1) == test.labels).double().mean()
    assert found["accuracy_routed_probabilities"]["all"] == pytest.approx(right.item())


def test_the_folded_network_keeps_no_statistics():
    method = create()
    method.fold()
    assert {name.split(".")[0] for name in method.state_dict()} == {"net", "gates", "member"}


def test_wrong_options_are_refused():
    for wrong in ({"experts": 4}, {"alpha": 2}, {"keep": 1.5}, {"ood_loss": "hinge"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DqrouteOptions.model_validate(wrong)
    with pytest.raises(ValueError, match="tail_below must be < medium_below"):
        create(medium_below=5, tail_below=8)
