from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.engine.checkpoint import ResumeFile
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.engine.trainer import fit
from lt_pipeline.learning.figures.methods import draw
from lt_pipeline.learning.losses import routing
from lt_pipeline.learning.methods.dqroute import EXPERTS, DQRoute, DqrouteOptions
from lt_pipeline.learning.models.network import ModelConfig
from lt_pipeline.learning.transforms.augment import AugmentConfig
from toys import COUNTS, toy_card, toy_images

CPU = torch.device("cpu")
MODEL = ModelConfig(backbone="resnet8", head="cosine", scale=30.0)
# toy classes have 40, 20, 10 and 5 images
GROUPS = {"medium_below": 15, "tail_below": 8}
CLASSES = {"E_G": [0, 1, 2, 3], "E_M": [2, 3], "E_T": [3]}
EPOCHS = 10


def create(seed=0, **options):
    torch.manual_seed(seed)
    given = DqrouteOptions.model_validate({**GROUPS, "warmup": 0.0, **options})
    return DQRoute(given, MODEL, toy_card()).train()


def batch():
    data = toy_images()
    index = torch.arange(0, len(data), 3)
    return Batch(data.images[index], data.labels[index], index)


def parts(method, given):
    features = method.net.features(given.images)
    return method.net.head(features), method.gates(features).squeeze(2)


def distinct(method):
    """Let the experts' gates and the classes' difficulty weights differ much."""
    with torch.no_grad():
        method.gates.bias.copy_(torch.tensor([[1.5], [-0.7], [0.4]]))
        method.difficulty.log_weight.copy_(torch.tensor([0.1, 0.4, 0.2, 0.3]).log())
    return method


def routed(gates):
    return gates.sigmoid() / gates.sigmoid().sum(1, keepdim=True)


def within(logits):
    """Return every expert's probabilities among its classes alone, ``[B, K, C]``."""
    masked = torch.zeros_like(logits)
    for k, classes in enumerate(CLASSES.values()):
        masked[:, k, classes] = logits[:, k, classes].softmax(1)
    return masked


def one_class(label):
    data = toy_images()
    index = torch.where(data.labels == label)[0]
    return Batch(data.images[index], data.labels[index], index)


def training(**values):
    plain = AugmentConfig(crop_padding=0, flip=0.0)
    given = {"epochs": 3, "batch_size": 25, "learning_rate": 0.05, "warmup_epochs": 1}
    return TrainingConfig(**{**given, "schedule": "cosine", "augment": plain, **values})


def cross_entropy(z, y, classes):
    """Return the loss of one image with logits z among the classes."""
    return torch.logsumexp(z[classes], 0) - z[y]


def ood_by_hand(options, u, z, inside):
    s = u.sigmoid()
    if options.ood_loss == "margin":
        return (1 - u if inside else 1 + u).clamp(min=0)
    sure = s if inside else 1 - s
    if options.ood_loss == "focal":
        return -((1 - sure) ** 2) * sure.log()
    loss = -sure.log()
    if options.ood_loss == "entropy" and not inside:
        loss = loss - options.uniform_weight * z.log_softmax(0).mean()
    return loss


def terms_by_hand(method, given):
    """Return L_cls and lambda L_OOD image by image and expert by expert."""
    options, labels = method.options, given.labels.tolist()
    logits, gates = parts(method, given)
    weight = method.class_weight()[given.labels]
    by_weight, count = weight.sum() if options.weighted_mean else len(labels), len(labels)
    classified = outside = 0.0
    for k, own in enumerate(CLASSES.values()):
        mine = total = 0.0
        for z, u, y, w in zip(logits, gates, labels, weight, strict=True):
            if options.group_mode == "soft":
                alpha = u[k].sigmoid() / u.sigmoid().sum()
                classified += alpha * w / by_weight * cross_entropy(z[k], y, CLASSES["E_G"])
            elif y in own:
                among = own if options.group_mode == "masked" else CLASSES["E_G"]
                mine += w * cross_entropy(z[k], y, among)
                total += w if options.weighted_mean else 1
            w = w / by_weight if options.weighted_ood else 1 / count
            outside += options.ood_weight * w * ood_by_hand(options, u[k], z[k], y in own)
        if options.group_mode != "soft":
            classified += mine / total / 3
    return classified, outside


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weighted_mean": False},
        {"alpha": None},
        {"alpha": 1.0},
        {"ood_loss": "bce"},
        {"ood_loss": "focal"},
        {"ood_loss": "margin"},
        {"uniform_weight": 0.7},
        {"ood_weight": 0.6},
        {"weighted_ood": False},
        {"weighted_ood": False, "weighted_mean": False},
        {"group_mode": "hard"},
        {"group_mode": "hard", "weighted_mean": False},
        {"group_mode": "masked"},
        {"group_mode": "masked", "weighted_mean": False},
    ],
    ids=str,
)
def test_the_loss_is_equations_4_to_10_image_by_image(options):
    method, given = distinct(create(**options)), batch()
    terms = method.loss(given, 0.5)
    classified, outside = terms_by_hand(method, given)
    torch.testing.assert_close(terms["classification"], classified)
    torch.testing.assert_close(terms["ood"], outside)


def test_a_criterion_s_own_weights_multiply_with_the_class_weights():
    given = batch()
    plain, weighing = (
        distinct(create(group_mode="soft", weighted_mean=False, criterion=criterion))
        for criterion in (
            {"name": "cross_entropy"},
            {"name": "class_balanced", "beta": 0.99, "weighted_mean": False},
        )
    )
    weighing.start_epoch(0, EPOCHS)
    logits, gates = parts(plain, given)
    effective = [(1 - 0.99**n) / (1 - 0.99) for n in COUNTS]
    more = torch.tensor([4 / e / sum(1 / f for f in effective) for e in effective])
    weight = (plain.class_weight() * more)[given.labels]
    each = torch.stack(
        [F.cross_entropy(z, given.labels, reduction="none") for z in logits.unbind(1)], 1
    )
    wanted = (weight * (routed(gates) * each).sum(1)).mean()
    torch.testing.assert_close(weighing.loss(given, 0.5)["classification"], wanted)


@pytest.mark.parametrize("mode", ["hard", "masked"])
def test_a_batch_without_an_experts_classes_has_a_finite_loss(mode):
    method = create(group_mode=mode)
    terms = method.loss(one_class(0), 0.5)
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_alpha_0_is_the_quantity_weight_and_1_the_difficulty_weight():
    quantity, difficulty, none = create(alpha=0.0), create(alpha=1.0), create(alpha=None)
    for method in (quantity, difficulty, none):
        method.loss(batch(), 0.5)
        method.end_epoch(EPOCHS, None, CPU)
    torch.testing.assert_close(
        quantity.class_weight(),
        routing.quantity_weight(quantity.card.longtail.counts, "inverse").float(),
    )
    weights = difficulty.difficulty.log_weight
    assert torch.equal(difficulty.class_weight(), routing.difficulty_weight(weights))
    torch.testing.assert_close(difficulty.class_weight(), weights.exp() * 4)
    assert not torch.equal(difficulty.class_weight(), torch.ones(4))
    assert torch.equal(none.class_weight(), torch.ones(4))


@pytest.mark.parametrize(
    ("quantity", "wanted"),
    [
        ("inverse", [1 / n for n in COUNTS]),
        ("square_root", [n**-0.5 for n in COUNTS]),
        ("effective_number", [1 / (1 - 0.9999**n) for n in COUNTS]),
    ],
)
def test_the_quantity_weight_is_a_choice(quantity, wanted):
    weights = create(alpha=0.0, quantity=quantity).class_weight()
    assert weights.tolist() == pytest.approx([4 * w / sum(wanted) for w in wanted])


def test_400_epochs_of_an_extreme_class_leave_every_weight_positive():
    method = create(alpha=1.0, gamma=1.0, smoothing=0.0)
    for _ in range(400):
        # class 0 is certain and right, the others are neither
        blind = math.log(4)
        method.difficulty.sums.copy_(
            torch.tensor([[8.0] * 4, [0.0, 8 * blind, 8 * blind, 8 * blind], [8.0, 0, 0, 0]])
        )
        method.end_epoch(EPOCHS, None, CPU)
        weight = method.class_weight()
        assert weight.isfinite().all()
        assert (weight > 0).all()
        assert weight.mean().item() == pytest.approx(1)
    assert method.difficulty.log_weight[0] < -390, "equation 2 itself has no floor"
    assert (weight[0] / weight[1]).item() == pytest.approx(torch.finfo(torch.float32).eps)


def seen(method, given):
    """Return mean entropy and accuracy of the fused prediction by class."""
    with torch.no_grad():
        logits, gates = parts(method, given)
    p = (routed(gates)[:, :, None] * logits.softmax(2)).sum(1)
    entropy = -(p * p.log()).sum(1)
    right = (p.argmax(1) == given.labels).float()
    classes = given.labels.unique()
    by = [[v[given.labels == c].mean() for c in classes] for v in (entropy, right)]
    return torch.tensor(by)


@pytest.mark.parametrize("balance", [0.0, 1.0, 3.0])
def test_difficulty_is_measured_on_the_fused_predictions_of_the_epoch(balance):
    method, given = distinct(create(smoothing=0.0, gamma=0.3, balance=balance)), batch()
    before = method.difficulty.log_weight.clone()
    entropy, accuracy = seen(method, given)
    method.loss(given, 0.5)
    method.end_epoch(EPOCHS, None, CPU)
    torch.testing.assert_close(method.difficulty.entropy, entropy)
    torch.testing.assert_close(method.difficulty.accuracy, accuracy)
    d = (entropy / math.log(4) + balance * (1 - accuracy)) / (1 + balance)
    torch.testing.assert_close(method.difficulty.log_weight.exp(), (before + 0.3 * d).softmax(0))
    assert not method.difficulty.sums.any()


@pytest.mark.parametrize(
    ("epochs", "total", "gamma"), [(10, 4.0, 0.4), (200, 4.0, 0.02), (50, 10.0, 0.2)]
)
def test_gamma_fits_the_number_of_epochs_where_the_total_is_given(epochs, total, gamma):
    assert DqrouteOptions().gamma_total == 4
    gates = []
    for options in ({"gamma_total": total}, {"gamma": gamma}):
        method = create(**options)
        method.loss(batch(), 0.5)
        method.end_epoch(epochs, None, CPU)
        gates.append(method.difficulty.log_weight)
    torch.testing.assert_close(*gates)
    assert gates[0].std() > 0


def test_keep_forgets_the_weights_of_the_epochs_before():
    method, given = distinct(create(smoothing=0.0, gamma=0.3, keep=0.5)), batch()
    before = method.difficulty.log_weight.clone()
    entropy, accuracy = seen(method, given)
    method.loss(given, 0.5)
    method.end_epoch(EPOCHS, None, CPU)
    d = (entropy / math.log(4) + 1 - accuracy) / 2
    wanted = (0.5 * before + 0.3 * d).softmax(0)
    torch.testing.assert_close(method.difficulty.log_weight.exp(), wanted)


def test_entropy_and_accuracy_are_smoothed_from_the_first_epoch_on_warm_up_or_not():
    for warmup in (0.0, 0.5):
        method, given = create(warmup=warmup, smoothing=0.75), batch()
        method.start_epoch(0, EPOCHS)
        entropy, right = torch.full((4,), math.log(4)), torch.zeros(4)
        for _ in range(3):
            method.loss(given, 0.5)
            images, *totals = method.difficulty.sums.clone()
            entropy = 0.75 * entropy + 0.25 * totals[0] / images
            right = 0.75 * right + 0.25 * totals[1] / images
            method.end_epoch(EPOCHS, None, CPU)
        torch.testing.assert_close(method.difficulty.entropy, entropy)
        torch.testing.assert_close(method.difficulty.accuracy, right)
        still = torch.equal(method.difficulty.log_weight, torch.full((4,), -math.log(4)))
        assert still == (warmup > 0)


def test_a_class_keeps_what_it_had_and_one_never_seen_is_as_hard_as_the_others():
    method = create(smoothing=0.9)
    method.loss(one_class(0), 0.5)
    _, entropy, right = (method.difficulty.sums / method.difficulty.sums[0].clamp(min=1)).unbind()
    method.end_epoch(EPOCHS, None, CPU)
    first = [0.9 * math.log(4) + 0.1 * entropy[0].item(), 0.1 * right[0].item()]
    assert method.difficulty.entropy.tolist() == pytest.approx([first[0]] * 4)
    assert method.difficulty.accuracy.tolist() == pytest.approx([first[1]] * 4)
    assert method.difficulty.log_weight.exp().tolist() == pytest.approx([0.25] * 4)
    method.loss(one_class(1), 0.5)
    _, entropy, right = (method.difficulty.sums / method.difficulty.sums[0].clamp(min=1)).unbind()
    method.end_epoch(EPOCHS, None, CPU)
    for values, had, now in (
        (method.difficulty.entropy, first[0], entropy[1].item()),
        (method.difficulty.accuracy, first[1], right[1].item()),
    ):
        second = 0.9 * had + 0.1 * now
        mean = (had + second) / 2
        assert values.tolist() == pytest.approx([had, second, mean, mean])


def test_difficulty_of_the_hold_out_is_its_own_and_not_the_training_s():
    method = distinct(create(difficulty="validation", smoothing=0.0, gamma=0.5, shrinkage=2.0))
    before = method.difficulty.log_weight.clone()
    method.loss(batch(), 0.5)
    assert not method.difficulty.sums.any()
    held_out = toy_images((6, 5, 4), seed=5, noise=200.0)  # none of the rarest class and group
    method.end_epoch(EPOCHS, held_out, CPU)
    confidences = seen(method, Batch(held_out.images, held_out.labels, torch.arange(15)))
    many = (
        6 * confidences[:, 0] + 5 * confidences[:, 1]
    ) / 11  # classes 0 and 1 are a group, 2 is one
    for c, images in ((0, 6), (1, 5)):
        confidences[:, c] = (images * confidences[:, c] + 2 * many) / (images + 2)
    confidences = torch.cat([confidences, confidences.mean(1, keepdim=True)], 1)
    torch.testing.assert_close(method.difficulty.entropy, confidences[0])
    torch.testing.assert_close(method.difficulty.accuracy, confidences[1])
    d = (confidences[0] / math.log(4) + 1 - confidences[1]) / 2
    torch.testing.assert_close(method.difficulty.log_weight.exp(), (before + 0.5 * d).softmax(0))


def test_the_warm_up_routes_alike_and_keeps_the_weights():
    method, given = create(warmup=0.3), batch()
    for epoch in range(5):
        method.start_epoch(epoch, EPOCHS)
        logits, _ = parts(method, given)
        terms = method.loss(given, 0.5)
        each = torch.stack(
            [F.cross_entropy(z, given.labels, reduction="none") for z in logits.unbind(1)], 1
        )
        weight = method.class_weight()[given.labels]
        alike = (weight * each.mean(1)).sum() / weight.sum()
        before = method.difficulty.log_weight.clone()
        method.end_epoch(EPOCHS, None, CPU)
        warming = epoch < 3
        assert torch.isclose(terms["classification"], alike, rtol=1e-5).item() == warming
        assert torch.equal(method.difficulty.log_weight, before) == warming


def test_the_deployed_model_routes_by_s_k_and_answers_as_the_trained_one():
    trained, images = distinct(create(warmup=0.5)).eval(), batch().images
    deployed = create(seed=1, warmup=0.5)
    with torch.no_grad():
        wanted = trained.predictions(images)
        torch.testing.assert_close(wanted["routing"], routed(parts(trained, batch())[1]))
        trained.merge_for_inference()
        deployed.merge_for_inference()
        deployed.load_state_dict(trained.state_dict())
        predictions = deployed.eval().predictions(images)
    assert set(predictions) == {"probabilities", "routing"}
    for name, values in predictions.items():
        torch.testing.assert_close(values, wanted[name])
        torch.testing.assert_close(values.sum(1), torch.ones(len(images)))


def test_gradients_reach_the_heads_through_the_ood_loss_only_unless_told():
    for detach, reached in ((True, False), (False, True)):
        method = create(detach_routing=detach)
        method.loss(batch(), 0.5)["classification"].backward()
        assert (method.gates.weight.grad is not None) == reached


def test_without_routing_the_experts_are_alike():
    method, given = create(route=False), batch()
    assert set(method.loss(given, 0.5)) == {"classification"}
    method.eval()
    with torch.no_grad():
        logits, _ = parts(method, given)
        alphas = method.predictions(given.images)["routing"]
        torch.testing.assert_close(alphas, torch.full_like(alphas, 1 / 3))
        torch.testing.assert_close(method.score(given.images).exp(), logits.softmax(2).mean(1))


@pytest.mark.parametrize("fuse", ["probabilities", "logits"])
def test_scores_fuse_what_is_routed(fuse):
    method, given = distinct(create(fuse=fuse)).eval(), batch()
    with torch.no_grad():
        logits, gates = parts(method, given)
        alphas = routed(gates)
        probabilities = method.score(given.images).softmax(1)
        answer = method.predictions(given.images)
        mixed = method.classify(method.net.features(given.images))
    torch.testing.assert_close(answer["routing"], alphas)
    torch.testing.assert_close(answer["probabilities"], probabilities)
    values = logits.softmax(2) if fuse == "probabilities" else logits
    fused = (alphas[:, :, None] * values).sum(1)
    wanted = fused if fuse == "probabilities" else fused.softmax(1)
    torch.testing.assert_close(probabilities, wanted)
    torch.testing.assert_close(mixed, (alphas[:, :, None] * logits).sum(1))


def test_masked_experts_have_no_say_on_classes_of_others():
    method, given = distinct(create(group_mode="masked")).eval(), batch()
    with torch.no_grad():
        logits, gates = parts(method, given)
        scores = method.score(given.images)
        mixed = method.classify(method.net.features(given.images))
    alphas = routed(gates)
    torch.testing.assert_close(scores.exp(), (alphas[:, :, None] * within(logits)).sum(1))
    for c in range(4):
        own = [k for k, classes in enumerate(CLASSES.values()) if c in classes]
        total = sum(alphas[:, k] for k in own)
        wanted = sum(alphas[:, k] * logits[:, k, c] for k in own) / total
        torch.testing.assert_close(mixed[:, c], wanted)


def test_a_class_that_no_expert_with_a_say_knows_has_a_finite_score():
    method = create(group_mode="masked").eval()
    with torch.no_grad():
        method.gates.bias.copy_(torch.tensor([[-1000.0], [-1000.0], [1.0]]))
        scores = method.score(batch().images)
        mixed = method.classify(method.net.features(batch().images))
        assert scores.isfinite().all()
        assert mixed.isfinite().all()
        assert (scores.argmax(1) == 3).all()
        method.difficulty.watch(scores, batch().labels)
    assert method.difficulty.sums.isfinite().all()


def test_masked_experts_are_masked_in_difficulty_and_diagnosis_too():
    method, given = distinct(create(group_mode="masked", smoothing=0.0)), batch()
    with torch.no_grad():
        logits, gates = parts(method, given)
    p = (routed(gates)[:, :, None] * within(logits)).sum(1)
    method.loss(given, 0.5)
    method.end_epoch(EPOCHS, None, CPU)
    for c in range(4):
        mine = p[given.labels == c]
        wanted = -(mine * mine.log()).sum(1).mean().item()
        assert method.difficulty.entropy[c].item() == pytest.approx(wanted, rel=1e-4)
    diagnosis = method.diagnose(toy_images(), toy_images(seed=3), CPU)
    assert diagnosis["accuracy_E_T"] == {"many": 0, "medium": 0, "few": 1, "all": 5 / 75}
    assert diagnosis["accuracy_E_M"]["many"] == 0


@pytest.mark.parametrize("difficulty", ["training", "validation"])
def test_resume_keeps_every_statistic(tmp_path, difficulty):
    held_out = {"validation": toy_images((6, 6, 6, 6), seed=5, noise=200.0)}
    options = {"difficulty": difficulty, "gamma": 0.5}
    stage = Stage("train", epochs=4)
    whole, broken, resumed = (create(**options) for _ in range(3))
    arguments = (stage, toy_images(), training(epochs=4, checkpoint_every=0))
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
        fit(create(difficulty="validation"), Stage("train", epochs=1), toy_images(),
            training(epochs=1), seed=0, device=CPU)  # fmt: skip
    assert DqrouteOptions(difficulty="validation").wants_validation
    assert not DqrouteOptions().wants_validation


def test_the_weights_over_training_are_kept_for_the_pictures():
    method = create(gamma=1.0, alpha=1.0)
    stage = Stage("train", epochs=4)
    history = fit(method, stage, toy_images(), training(epochs=4), seed=0, device=CPU)
    series = method.training_curves()
    weight, (effective,) = torch.tensor(series["class_weight"]), series["effective_classes"]
    assert weight.shape == (51, 4)
    assert torch.equal(weight[0], torch.ones(4))
    assert torch.equal(weight[11], torch.ones(4))
    assert not torch.equal(weight[13], torch.ones(4)), "the second of four epochs"
    torch.testing.assert_close(weight.mean(1), torch.ones(51))
    alphas = weight / 4  # with alpha = 1
    torch.testing.assert_close(torch.tensor(effective), (-(alphas * alphas.log()).sum(1)).exp())
    followed = [point["value"] for point in history["difficulty/effective_classes"]]
    assert effective[13] == pytest.approx(followed[0])
    report = {"series": series, "diagnostics": method.diagnose(toy_images(), toy_images(), CPU)}
    drawn = draw("dqroute", report, method.card.longtail, "dqroute")
    (correlation,) = series["size_correlation"]
    followed = [point["value"] for point in history["difficulty/size_correlation"]]
    assert [correlation[place] for place in (11, 13, 25, 38)] == pytest.approx([0, *followed[:3]])
    assert any(followed)
    assert set(drawn) == {"class_weights", "effective_classes", "size_correlation", "routing"}
    for name, values in (("effective_classes", effective), ("size_correlation", correlation)):
        line = drawn[name].axes[0].lines[0]
        assert line.get_ydata().tolist() == pytest.approx(values)


def test_what_is_followed_is_by_group():
    method = distinct(create(alpha=0.25))
    method.difficulty.entropy.copy_(torch.tensor([0.1, 0.3, 0.5, 0.7]))
    quantity = torch.tensor([1 / n for n in COUNTS])
    weight = torch.tensor([0.1, 0.4, 0.2, 0.3]) + 3 * quantity / quantity.sum()
    metrics = method.epoch_metrics()
    assert metrics == {
        "difficulty/effective_classes": pytest.approx(
            math.exp(-sum(w * math.log(w) for w in (0.1, 0.4, 0.2, 0.3)))
        ),
        "difficulty/size_correlation": 0,
        "difficulty/weight_many": pytest.approx(weight[:2].mean().item()),
        "difficulty/weight_medium": pytest.approx(weight[2].item()),
        "difficulty/weight_few": pytest.approx(weight[3].item()),
        "difficulty/entropy_many": pytest.approx(0.2),
        "difficulty/entropy_medium": pytest.approx(0.5),
        "difficulty/entropy_few": pytest.approx(0.7),
    }


def run_epochs(method, difficulties):
    """Let epochs pass in which one of ten images is wrong for every tenth of difficulty."""
    for wrong in difficulties:
        images = torch.full((4,), 10.0)
        method.difficulty.sums.copy_(
            torch.stack([images, torch.zeros(4), 10 - torch.tensor(wrong)])
        )
        method.end_epoch(EPOCHS, None, CPU)


HARD_TAIL, HARD_HEAD = [1.0, 2, 3, 4], [4.0, 3, 2, 1]


def test_difficulty_and_class_size_are_followed_and_a_turn_is_noted_where_it_does_harm():
    method = create(smoothing=0.0)
    for epochs, value in ((1, -1.0), (1, 1.0)):
        run_epochs(method, [HARD_TAIL if value < 0 else HARD_HEAD] * epochs)
        assert method.epoch_metrics()["difficulty/size_correlation"] == pytest.approx(
            value, abs=1e-5
        )
    assert "of +1.00 with class size (turned in epoch 2, -1.00 at the" in method.notes()[-1]
    for quiet in ({"alpha": None}, {"alpha": 0.0}):
        method = create(smoothing=0.0, **quiet)
        run_epochs(method, [HARD_TAIL, HARD_HEAD])
        assert not any("class size" in note for note in method.notes())
    assert not create(difficulty="validation").difficulty.size_correlation.warns


def test_a_run_says_what_say_difficulty_had():
    method = distinct(create(alpha=0.0))
    rule, said = method.notes()
    assert rule == "experts have 4 / 2 / 1 classes (below 15 and 8 training images)"
    assert said == (
        "difficulty weights leave 3.60 of 4 effective classes, and have a share alpha of 0 in "
        "class weights that end at 0.27 to 2.1"
    )
    assert create(alpha=None).notes()[1] == "classes have no weights (alpha is null)"


def test_diagnosis_is_that_of_every_fusion_by_group():
    method, test = distinct(create()), toy_images(seed=3)
    diagnosis = method.diagnose(toy_images(), test, CPU)
    with torch.no_grad():
        logits, gates = parts(method, Batch(test.images, test.labels, torch.arange(75)))
    alphas, p = routed(gates), logits.softmax(2)
    wanted = {
        "routed_probabilities": (alphas[:, :, None] * p).sum(1),
        "routed_logits": (alphas[:, :, None] * logits).sum(1),
        "equal_probabilities": p.mean(1),
        **{name: logits[:, k] for k, name in enumerate(EXPERTS)},
    }
    masks = {"many": test.labels <= 1, "medium": test.labels == 2, "few": test.labels == 3}
    seen = set()
    for name, scores in wanted.items():
        right = (scores.argmax(1) == test.labels).double()
        groups = {group: right[mask].mean().item() for group, mask in masks.items()}
        assert diagnosis[f"accuracy_{name}"] == {**groups, "all": right.mean().item()}
        seen.add(tuple(groups.values()))
    assert len(seen) >= 5, "the fusions can be told apart"
    for k, name in enumerate(EXPERTS):
        assert diagnosis[f"routing_{name}"] == {
            group: pytest.approx(alphas[mask, k].mean().item()) for group, mask in masks.items()
        }


def remarked(alone, routed, **options):
    accuracy = {
        f"accuracy_{name}": {"all": value} for name, value in zip(EXPERTS, alone, strict=True)
    }
    fused = {
        "accuracy_routed_probabilities": {"all": routed},
        "accuracy_routed_logits": {"all": 1.0},
    }
    return create(**options).remarks({**accuracy, **fused})


def test_routing_that_adds_hardly_anything_to_the_best_expert_is_remarked_on():
    (said,) = remarked([0.239, 0.213, 0.158], 0.2414)
    assert said == (
        "routing adds +0.24 points, less than 0.5, to what E_G alone gets right of the test images "
        "(23.9 %), the best of the experts on them"
    )
    assert "adds -1.00 points" in remarked([0.1, 0.25, 0.158], 0.24)[0]
    assert "what E_M alone" in remarked([0.1, 0.25, 0.158], 0.24)[0]
    assert remarked([0.239, 0.213, 0.158], 0.2441) == []
    assert remarked([0.239, 0.213, 0.158], 0.2414, fuse="logits") == [], "what is deployed counts"
    assert remarked([0.239, 0.213, 0.158], 0.2414, route=False) == [], "nothing is routed"


def test_the_remark_is_of_what_was_diagnosed():
    method, test = distinct(create()), toy_images(seed=3)
    diagnosis = method.diagnose(toy_images(), test, CPU)
    best = max(diagnosis[f"accuracy_{name}"]["all"] for name in EXPERTS)
    gain = diagnosis["accuracy_routed_probabilities"]["all"] - best
    assert bool(method.remarks(diagnosis)) == (100 * gain < 0.5)


def test_one_expert_is_a_network_of_its_own_with_the_class_weights():
    method, given = create(experts=1, route=False, reduced=False), batch()
    assert method.net(given.images).shape == (len(given.labels), 1, 4)
    assert method.net.width == 64
    method.difficulty.log_weight.copy_(torch.tensor([0.1, 0.4, 0.2, 0.3]).log())
    weight = method.class_weight()[given.labels]
    each = F.cross_entropy(method.net(given.images)[:, 0], given.labels, reduction="none")
    terms = method.loss(given, 0.5)
    assert set(terms) == {"classification"}
    torch.testing.assert_close(terms["classification"], (weight * each).sum() / weight.sum())
    method.eval()
    with torch.no_grad():
        alone = method.net(given.images)[:, 0].softmax(1)
        torch.testing.assert_close(method.predictions(given.images)["probabilities"], alone)
    assert method.notes()[0] == "one expert has all classes"
    diagnosed = method.diagnose(toy_images(), toy_images(seed=3), CPU)
    report = {"series": method.training_curves(), "diagnostics": diagnosed}
    assert "routing" in draw("dqroute", report, method.card.longtail, "dqroute")
    assert method.remarks(diagnosed) == []


def test_the_folded_network_keeps_no_statistics():
    method = create()
    method.merge_for_inference()
    assert {name.split(".")[0] for name in method.state_dict()} == {"net", "gates", "member"}


def test_wrong_options_are_refused():
    for wrong in (
        {"experts": 2},
        {"experts": 4},
        {"shrinkage": -1},
        {"gamma_total": -1},
        {"alpha": 2},
        {"keep": 1.5},
        {"ood_loss": "hinge"},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DqrouteOptions.model_validate(wrong)
    with pytest.raises(ValueError, match="choose one that reads logits only"):
        DqrouteOptions.model_validate({"criterion": {"name": "balanced_contrastive"}})
    with pytest.raises(ValueError, match="nothing else trains the OOD heads"):
        DqrouteOptions(ood_weight=0)
    for trained in ({"route": False}, {"detach_routing": False}):
        assert DqrouteOptions(ood_weight=0, **trained).ood_weight == 0
    with pytest.raises(ValueError, match="route must be false with experts: 1"):
        DqrouteOptions(experts=1)
    with pytest.raises(ValueError, match="gamma is of one epoch and gamma_total of all"):
        DqrouteOptions(gamma=0.1, gamma_total=2.0)
    with pytest.raises(ValueError, match="fuse must be probabilities with group_mode: masked"):
        DqrouteOptions(group_mode="masked", fuse="logits")
    with pytest.raises(ValueError, match="tail_below must be < medium_below"):
        create(medium_below=5, tail_below=8)
