from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
import yaml
from sklearn.neighbors import NearestCentroid
from torch.nn import functional as F

from lt_pipeline.learning import methods
from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.optim import build_optimizer, trained_parameters
from lt_pipeline.learning.engine.protocol import objective_of
from lt_pipeline.learning.engine.stage import Recipe
from lt_pipeline.learning.engine.trainer import fit
from lt_pipeline.learning.experiments.config import ExperimentConfig, updated
from lt_pipeline.learning.transforms.augment import AugmentConfig
from toys import COUNTS, PROJECT, toy_card, toy_images

CPU = torch.device("cpu")
LINEAR = {"backbone": "resnet8", "head": "linear"}
SECOND = "classifier"


@lru_cache
def conf():
    params = {}
    for name in methods.available():
        text = (PROJECT / f"conf/base/parameters_{name}.yml").read_text()
        params = updated(params, yaml.safe_load(text))
    return params


def configured(name, model=None, **options):
    given = updated(conf(), {name: {"options": options, "model": model or {}}})
    return ExperimentConfig.resolve(name, {**given, "model": {"backbone": "resnet8"}})


def create(name, seed=0, model=None, **options):
    config = configured(name, model, **options)
    torch.manual_seed(seed)
    return methods.get(name)(config.options, config.model, toy_card())


def training(epochs=1, **extra):
    return TrainingConfig(**{
        "epochs": epochs, "batch_size": 32, "learning_rate": 0.05, "warmup_epochs": 1,
        "schedule": "cosine", "augment": AugmentConfig(crop_padding=1, flip=0.5), **extra,
    })  # fmt: skip


def ready(make, stage, checkpoints):
    """Return a new method as it is at the start of ``stage``."""
    method = make()
    method.load_weights(stage, {name: checkpoints[name] for name in stage.start})
    return method


def train(make, epochs=1, until=None):
    """Train the stages one after the other, each in a method of its own, as the pipeline does."""
    checkpoints = {}
    for number, stage in enumerate(make().stages(make().options)):
        if stage.name == until:
            break
        method = ready(make, stage, checkpoints)
        fit(method, stage, toy_images(), training(epochs), seed=number, device=CPU)
        checkpoints[stage.name] = state(method)
    return checkpoints


def finished(make, checkpoints):
    """Return the method behind its last stage."""
    last = list(checkpoints)[-1]
    method = make()
    method.load_weights(method.END, {last: checkpoints[last]})
    return method


def state(method):
    return {name: value.clone() for name, value in method.state_dict().items()}


def moved(before, after):
    return {name for name in after if not torch.equal(before[name], after[name])}


def second_stage(name, epochs=1, **options):
    """Return the states at the start and end of the classifier's stage, and what made them."""

    def make():
        return create(name, classifier={"epochs": 2}, **options)

    checkpoints = train(make, epochs)
    stage = make().stages(make().options)[-1]
    assert stage.name == SECOND
    return state(ready(make, stage, checkpoints)), checkpoints, make


HEAD = {"source.net.head.weight", "source.net.head.bias"}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


# The first stage is the other method's


@pytest.mark.parametrize(
    ("outer", "inner"),
    [("crt", "ce"), ("lws", "ce"), ("mislas", "mixup"), ("gml", "mixup"), ("tau_norm", "ce"),
     ("crt", "ride")],
)  # fmt: skip
def test_the_first_stage_gives_the_weights_of_the_method_by_itself_bit_for_bit(outer, inner):
    own = {} if inner in ("ce", "mixup") else {"pretrain": inner}
    mine = train(lambda: create(outer, **own), until=SECOND)
    alone = train(lambda: create(inner))
    folded = create(inner)
    folded.load_weights(folded.END, alone)
    folded.merge_for_inference()
    method = finished(lambda: create(outer, **own), mine)
    assert len(mine) == len(alone)
    wanted = state(folded)
    assert state(method.source).keys() == wanted.keys()
    assert not moved(wanted, state(method.source))
    # and it was trained at all
    assert len(moved(state(create(inner)), list(alone.values())[-1])) > 10


def test_the_stages_before_the_last_are_the_other_methods_with_its_names():
    method, alone = create("crt", pretrain="ride"), create("ride")
    inner, mine = alone.stages(alone.options), method.stages(method.options)
    assert [stage.name for stage in mine] == ["pretrain", "pretrain_router", SECOND]
    assert [stage.start for stage in mine] == [(), ("pretrain",), ("pretrain_router",)]
    assert [stage.passes(40) for stage in mine] == [40, inner[1].passes(40), 10]
    assert [stage.trainable for stage in mine[:2]] == [("source",), ("source.router",)]
    assert objective_of(method, mine[0]) is method.source
    assert type(objective_of(method, mine[1])) is type(objective_of(method.source, inner[1]))
    assert objective_of(method, mine[2]) is method
    assert [stage.folded for stage in mine] == [(), (), ("source",)]


def test_more_is_folded_behind_the_first_stage():
    def make():
        return create("crt", pretrain="more", classifier={"epochs": 1})

    checkpoints = train(make)
    plain = {f"source.{name}" for name, _ in create("ce").named_parameters()}
    assert any("low_rank" in n or n not in plain for n in checkpoints["pretrain"])
    method = ready(make, make().stages(make().options)[-1], checkpoints)
    assert {name for name, _ in method.named_parameters()} == plain
    assert {n for n in checkpoints[SECOND] if n.startswith("source.net.")} == {
        f"source.{n}" for n in create("ce").state_dict()
    }
    # folding keeps what the backbone says
    unfolded = create("more")
    unfolded.load_state_dict(
        {n.removeprefix("source."): v for n, v in checkpoints["pretrain"].items()
         if n.startswith("source.")}
    )  # fmt: skip
    images = toy_images().images[:9]
    with torch.no_grad():
        wanted = unfolded.eval().net.features(images)
        torch.testing.assert_close(method.eval().net.features(images), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("outer", "inner"), [("crt", "ce"), ("mislas", "mixup"), ("crt", "ride"), ("crt", "more")]
)
def test_what_decides_the_first_stage_is_the_other_methods_own_configuration(outer, inner):
    mine, alone = configured(outer, pretrain=inner).options, configured(inner).options
    kind = methods.get(outer)
    *first, last = kind.stages(mine)
    for stage in first:
        assert stage.recipe == Recipe(inner, alone, above=1, shared=True)
    assert last.recipe == Recipe(), "all of its own, and nothing else's"


def test_the_recipe_does_not_depend_on_the_second_stage():
    def first(**options):
        return methods.get("crt").stages(configured("crt", **options).options)[0]

    one, two = ({"classifier": {"epochs": n}} for n in (3, 4))
    assert first(**one) == first(**two)
    margin = {"criterion": {"margin": {"name": "ldam"}}}
    other = first(pretrain_options=margin, model={"head": "cosine"})
    assert replace(other, recipe=first().recipe) == first()
    assert other.recipe != first().recipe


# The second stage


@pytest.mark.parametrize(("name", "wanted"), [("crt", HEAD), ("lws", {"scale"}), ("gml", HEAD)])
def test_the_classifier_stage_changes_nothing_else_bit_for_bit(name, wanted):
    before, checkpoints, _ = second_stage(name)
    assert moved(before, checkpoints[SECOND]) == wanted
    assert ("scale" in before) == (name == "lws")
    if name != "crt":  # the start is the representation as it was
        assert not moved(
            {n: v for n, v in before.items() if n in checkpoints["pretrain"]},
            {n: v for n, v in checkpoints["pretrain"].items() if n in before},
        )


def test_mislas_shifts_the_running_statistics_too_and_no_other_weight():
    before, checkpoints, _ = second_stage("mislas")
    changed = moved(before, checkpoints[SECOND])
    statistics = {n for n in before if n.split(".")[-1] in STATISTICS}
    assert statistics
    assert changed == HEAD | {"scale"} | statistics


def test_where_the_statistics_shift_to_is_that_of_the_batches_seen():
    seen = []

    def make():
        return create("mislas", classifier={"epochs": 1})

    first = train(make, until=SECOND)
    stage = make().stages(make().options)[-1]
    method, reference = (ready(make, stage, first) for _ in range(2))
    plain = method.loss
    method.loss = lambda batch, progress: seen.append(batch) or plain(batch, progress)
    fit(method, method.stages(method.options)[-1], toy_images(), training(), seed=3, device=CPU)
    reference.train()
    with torch.no_grad():
        for batch in seen:
            reference.net.features(batch.images)
    wanted = {n: v for n, v in reference.state_dict().items() if n.split(".")[-1] in STATISTICS}
    for name, value in wanted.items():
        torch.testing.assert_close(method.state_dict()[name], value)


def test_crt_starts_from_a_new_classifier_on_the_old_representation():
    before, checkpoints, make = second_stage("crt")
    pretrained = checkpoints["pretrain"]
    initial = state(create("crt"))
    for name in HEAD:
        assert (before[name] - pretrained[name]).abs().max() > 1e-2
        assert (before[name] - initial[name]).abs().max() > 1e-2
    rest = {n: v for n, v in before.items() if n not in HEAD}
    assert not moved({n: pretrained[n] for n in rest}, rest)
    # the bound of a new linear layer
    assert before["source.net.head.weight"].abs().max() <= make().net.width ** -0.5
    # and what was trained is not forgotten again
    assert not moved(checkpoints[SECOND], state(finished(make, checkpoints)))


@pytest.mark.parametrize(
    ("name", "balanced"), [("crt", True), ("lws", True), ("mislas", True), ("gml", False)]
)
def test_batches_are_class_balanced_but_for_gml(name, balanced):
    method = create(name)
    stage = method.stages(method.options)[-1]
    assert (stage.name, stage.epochs) == (SECOND, 10)
    labels, generator = toy_images().labels, torch.Generator().manual_seed(0)
    draws = [labels[stage.sampler(labels, generator, k / 40)] for k in range(40)]
    share = torch.bincount(torch.cat(draws)) / (40 * len(labels))
    wanted = torch.full((4,), 0.25) if balanced else torch.tensor(COUNTS) / sum(COUNTS)
    torch.testing.assert_close(share, wanted, rtol=0, atol=0.03)
    assert stage.remainder
    assert stage.mix is None


def test_its_schedule_is_a_cosine_from_its_own_rate_with_own_batches_and_decay():
    own = {"epochs": 4, "batch_size": 50, "weight_decay": 0.0, "learning_rate": 0.3}

    def make():
        return create("crt", classifier=own)

    method = ready(make, make().stages(make().options)[-1], train(make, until=SECOND))
    shared = training(9, schedule="step", warmup_epochs=5)
    history = fit(
        method, method.stages(method.options)[-1], toy_images(), shared, seed=0, device=CPU
    )
    rates = [point["value"] for point in history["train/learning_rate"]]
    wanted = [0.15 * (1 + torch.tensor(k / 4 * torch.pi).cos().item()) for k in (1, 2, 3, 4)]
    assert rates == pytest.approx(wanted, abs=1e-7)
    plain = create("crt")
    assert plain.stages(plain.options)[-1].training.keys() == {
        "learning_rate", "schedule", "warmup_epochs"
    }  # fmt: skip


def smoothed(logits, labels):
    """MiSLAS's loss of each image, in a loop, concave from 0.1 to 0.4."""
    total = 0.0
    for row, label in zip(logits, labels.tolist(), strict=True):
        rank = (COUNTS[label] - min(COUNTS)) / (max(COUNTS) - min(COUNTS))
        e = 0.1 + 0.3 * torch.sin(torch.tensor(rank * torch.pi / 2)).item()
        log_p = row - row.exp().sum().log()
        total = total - (1 - e) * log_p[label] - e * log_p.mean()
    return total / len(logits)


def test_a_step_of_mislas_is_one_of_sgd_at_its_two_rates():
    own = {"epochs": 1, "batch_size": 80, "weight_decay": 0.05}

    def make():
        return create("mislas", classifier=own)

    method = ready(make, make().stages(make().options)[-1], train(make, until=SECOND))
    with torch.no_grad():
        method.scale.copy_(torch.tensor([0.5, 1.5, 1.0, 2.0]))
    seen, plain = [], method.loss
    method.loss = lambda batch, progress: seen.append(batch) or plain(batch, progress)
    head = method.net.head
    old = [p.detach().clone().double() for p in (head.weight, head.bias, method.scale)]
    kept = state(method)
    exact = training(augment=AugmentConfig(crop_padding=0, flip=0.0), momentum=0.9)
    history = fit(
        method, method.stages(method.options)[-1], toy_images(), exact, seed=0, device=CPU
    )
    (batch,) = seen
    assert len(batch.labels) == 75, "fewer images than a batch are one, too"
    reference = make()
    reference.load_weights(reference.END, {})
    reference.load_state_dict(kept)
    reference.train()
    with torch.no_grad():
        features = reference.net.features(batch.images).double()
    weight, bias, scale = (p.clone().requires_grad_(True) for p in old)
    loss = smoothed(scale * (features @ weight.T + bias), batch.labels)
    loss.backward()
    assert history["train/label_aware_smoothing"][0]["value"] == pytest.approx(
        loss.item(), rel=1e-5
    )
    for p, now, rate in ((weight, head.weight, 0.02), (bias, head.bias, 0.02),
                         (scale, method.scale, 0.1)):  # fmt: skip
        wanted = p - rate * (p.grad + 0.05 * p)
        torch.testing.assert_close(now.detach().double(), wanted.detach(), rtol=1e-4, atol=1e-6)
        assert (now - p).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["lws", "mislas"])
def test_logits_are_scaled_by_class_bias_and_all(name):
    method = create(name).eval()
    assert torch.equal(method.scale, torch.ones(4))
    with torch.no_grad():
        method.scale.copy_(torch.tensor([1.0, 2.0, 3.0, -4.0]))
        method.net.head.bias.copy_(torch.tensor([1.0, -1.0, 2.0, 0.5]))
        images = toy_images().images[:6]
        method.load_weights(method.END, {})
        features = method.net.features(images)
        wanted = F.linear(features, method.net.head.weight, method.net.head.bias) * method.scale
        torch.testing.assert_close(method.score(images), wanted)


def test_gml_learns_its_own_loss_on_images_as_they_are():

    def make():
        return create("gml", classifier={"epochs": 1})

    method = ready(make, make().stages(make().options)[-1], train(make, until=SECOND)).eval()
    data = toy_images()
    index = torch.arange(0, 75, 2)
    batch = Batch(data.images[index], data.labels[index], index)
    ((name, loss),) = method.loss(batch, 0.5).items()
    assert name == "geometric_mean"
    with torch.no_grad():
        logits = method.score(batch.images).double() + torch.tensor(COUNTS).double().log()
    p = logits.softmax(1)
    recall = [p[batch.labels == c, c].mean() for c in range(4)]
    wanted = -torch.stack(recall).log().mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)


# A method on one that stands on another


def test_a_classifier_on_top_of_a_classifier_on_top_of_a_method():
    small = {"epochs": 1}

    def make():
        below = {"classifier": small}
        return create("crt", pretrain="mislas", pretrain_options=below, classifier=small)

    checkpoints = train(make)
    assert list(checkpoints) == ["pretrain", "pretrain_classifier", SECOND]
    alone = train(lambda: create("mislas", classifier=small))
    inner = {n.removeprefix("source."): v for n, v in checkpoints["pretrain_classifier"].items()}
    mine = {name: inner[name] for name in alone[SECOND]}
    assert not moved(alone[SECOND], mine)
    before = state(ready(make, make().stages(make().options)[-1], checkpoints))
    learned = {f"source.{name}" for name in HEAD}
    assert moved(before, checkpoints[SECOND]) == learned
    # of MiSLAS's classifier nothing is left, nor of its factors
    was = checkpoints["pretrain_classifier"]
    assert moved({n: was[n] for n in before if n in was}, before) == learned | {"source.scale"}
    assert torch.equal(before["source.scale"], torch.ones(4))
    method = finished(make, checkpoints).eval()
    images = toy_images().images[:6]
    with torch.no_grad():
        torch.testing.assert_close(method.score(images), method.net(images))
        method.merge_for_inference()
        torch.testing.assert_close(method.score(images), method.net(images))


def test_factors_and_statistics_are_found_on_top_of_two_methods():
    def make():
        return create("mislas", pretrain="crt", classifier={"epochs": 1}, pretrain_options={
            "classifier": {"epochs": 1}})  # fmt: skip

    checkpoints = train(make)
    before = state(ready(make, make().stages(make().options)[-1], checkpoints))
    statistics = {n for n in before if n.split(".")[-1] in STATISTICS}
    wanted = {f"source.{name}" for name in HEAD} | {"scale"} | statistics
    assert moved(before, checkpoints[SECOND]) == wanted
    method = make()
    last = method.stages(method.options)[-1]
    learning = dict(trained_parameters(method, last))
    config = TrainingConfig(learning_rate=0.1)
    groups = build_optimizer(learning, method, last, config, CPU).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rates[id(method.net.head.weight)] == pytest.approx(0.02)
    assert rates[id(method.scale)] == pytest.approx(0.1)


# tau-normalisation


def with_weights(name, weight, bias=None, **options):
    method = create(name, **options).eval()
    method.load_weights(method.END, {})
    with torch.no_grad():
        method.net.head.weight.copy_(weight)
        if bias is not None:
            method.net.head.bias.copy_(bias)
    return method


@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0])
def test_lengths_become_a_power_and_directions_stay(tau):
    torch.manual_seed(1)
    weight = torch.randn(4, 64) * torch.tensor([5.0, 2.0, 1.0, 0.1])[:, None]
    method = with_weights("tau_norm", weight, torch.randn(4), tau=tau)
    body = {n: v for n, v in state(method).items() if "head" not in n}
    assert method.post_process(toy_images(), toy_images()[torch.arange(0)], CPU) == {"tau": tau}
    weights, exact = method.net.head.weight.double(), weight.double()
    length = exact.square().sum(1).sqrt()
    torch.testing.assert_close(weights.norm(dim=1), length ** (1 - tau), rtol=1e-6, atol=0)
    torch.testing.assert_close(F.cosine_similarity(weights, exact), torch.ones(4).double())
    assert not method.net.head.bias.any()
    if tau == 0:
        assert torch.equal(method.net.head.weight, weight)
    assert not moved(body, {n: v for n, v in state(method).items() if n in body})
    assert method.notes() == []
    images = toy_images().images[:5]
    with torch.no_grad():
        torch.testing.assert_close(
            method.score(images).double(),
            method.net.features(images).double() @ weights.T,
            rtol=1e-5,
            atol=1e-4,
        )


def test_a_class_without_weights_keeps_none():
    method = with_weights("tau_norm", torch.zeros(4, 64))
    method.post_process(toy_images(), toy_images(), CPU)
    assert not method.net.head.weight.any()


def test_each_experts_weights_are_normalised_by_themselves():
    options = {"criterion": {"name": "cross_entropy"}}
    config = ExperimentConfig.resolve("tau_norm", {"model": LINEAR, "tau_norm": {"options": {
        "pretrain": "ride", "tau": 1.0, "pretrain_options": options}}})  # fmt: skip
    torch.manual_seed(0)
    method = methods.get("tau_norm")(config.options, config.model, toy_card())
    method.load_weights(method.END, {})
    before = method.net.prototypes.detach().clone()
    assert before.ndim == 3
    method.post_process(toy_images(), toy_images(), CPU)
    wanted = before / before.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(method.net.prototypes.detach(), wanted)


def test_the_best_tau_on_the_hold_out_is_that_of_trying_all():
    torch.manual_seed(3)
    held_out = toy_images((12, 9, 6, 3), seed=9, noise=90.0)
    start = train(lambda: create("ce"), 3)["train"]
    candidates = [0.0, 0.25, 0.5, 0.75, 1.0]

    def ready_for(**options):
        method = create("tau_norm", **options)
        method.load_weights(method.END, {"pretrain": {f"source.{n}": v for n, v in start.items()}})
        return method

    method = ready_for(tau=None, candidates=candidates).eval()
    with torch.no_grad():
        # directions that tell the classes apart, and lengths that differ, so that tau matters
        seen, data = method.net.features(toy_images().images), toy_images()
        means = torch.stack([seen[data.labels == c].mean(0) for c in range(4)])
        lengths = torch.tensor([9.0, 5.0, 2.0, 1.0])[:, None]
        method.net.head.weight.copy_(lengths * F.normalize(means - means.mean(0)))
        features = method.net.features(held_out.images).double()
        weight = method.net.head.weight.double().clone()
    recalls = {}
    for tau in candidates:
        guess = (features @ (weight / weight.norm(dim=1, keepdim=True) ** tau).T).argmax(1)
        right = (guess == held_out.labels).double()
        recalls[tau] = sum(right[held_out.labels == c].mean().item() for c in range(4)) / 4
    assert len({round(r, 6) for r in recalls.values()}) > 2, recalls
    report = method.post_process(toy_images(), held_out, CPU)
    best = max(recalls.values())
    assert recalls[report["tau"]] == pytest.approx(best)
    assert best > max(recalls[0.0], recalls[1.0]) or report["tau"] in (0.0, 1.0)
    assert report["validation_mean_recall"] == {
        str(tau): pytest.approx(r, abs=1e-6) for tau, r in recalls.items()
    }
    wanted = weight / weight.norm(dim=1, keepdim=True) ** report["tau"]
    torch.testing.assert_close(method.net.head.weight.double(), wanted, rtol=1e-5, atol=1e-7)
    (note,) = method.notes()
    assert note.startswith(f"tau = {report['tau']:g} ")
    assert "hold-out" in note
    with pytest.raises(ValueError, match="set data.validation > 0"):
        ready_for(tau=None).post_process(toy_images(), toy_images()[torch.arange(0)], CPU)


def test_tau_needs_a_hold_out_only_where_it_is_chosen_and_a_linear_head():
    assert configured("tau_norm", tau=None).options.wants_validation
    assert not configured("tau_norm").options.wants_validation
    with pytest.raises(ValueError, match=r"tau_norm.options.tau: a cosine .*model.head = linear"):
        configured("tau_norm", model={"head": "cosine"})
    for wrong in ({"tau": 1.5}, {"tau": -0.1}, {"candidates": [0.5, 2]}, {"candidates": []}):
        with pytest.raises(ValueError, match=r"tau|candidates"):
            configured("tau_norm", **wrong)


# The nearest class mean


@pytest.mark.parametrize("inner", ["ce", "ride", "sade"])
def test_the_class_is_that_of_the_nearest_mean_on_the_sphere(inner):

    def make():
        return create("ncm", pretrain=inner)

    method = finished(make, train(make))
    data, test = toy_images(), toy_images((20, 20, 20, 20), seed=3, noise=90.0)
    assert method.post_process(data, data[torch.arange(0)], CPU) == {}
    method.eval()
    with torch.no_grad():
        seen, features = (method.net.features(d.images).double() for d in (data, test))
        scores = method.score(test.images).double()
    if inner != "ce":  # each expert's own at unit length, side by side
        assert seen.ndim == 3
        seen, features = (F.normalize(f, dim=2).flatten(1) for f in (seen, features))
    means = torch.stack([seen[data.labels == c].mean(0) for c in range(4)])
    torch.testing.assert_close(method.means.double(), means, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(method.class_prototypes().double(), means, rtol=1e-5, atol=1e-6)
    units, points = (x / x.norm(dim=1, keepdim=True) for x in (means, features))
    torch.testing.assert_close(scores, 16 * points @ units.T, rtol=1e-4, atol=1e-4)
    # two points on either side of a mean have it as their centroid
    apart = 1e-3 * torch.randn(units.shape, dtype=torch.float64)
    pairs = torch.cat([units + apart, units - apart])
    judge = NearestCentroid().fit(pairs.numpy(), [*range(4), *range(4)])
    assert scores.argmax(1).tolist() == judge.predict(points.numpy()).tolist()
    assert len(set(scores.argmax(1).tolist())) > 1
    # what the means were found of is what is deployed
    images = test.images[:5]
    with torch.no_grad():
        before = method.score(images)
        method.merge_for_inference()
        assert torch.equal(method.score(images), before)


def test_the_scale_changes_probabilities_and_no_class():

    def make(scale):
        return create("ncm", scale=scale)

    checkpoints = train(lambda: make(1.0))
    scores = []
    for scale in (1.0, 40.0):
        method = finished(lambda scale=scale: make(scale), checkpoints)
        method.post_process(toy_images(), toy_images(), CPU)
        with torch.no_grad():
            scores.append(method.eval().score(toy_images().images))
    torch.testing.assert_close(scores[1], 40 * scores[0])


# What is usual, and what is refused


@pytest.mark.parametrize("name", ["mixup", "crt", "lws", "mislas", "gml", "tau_norm", "ncm"])
def test_what_conf_shows_is_what_holds_without_it(name):
    shown = configured(name).options.model_dump(exclude={"pretrain_options"})
    assert methods.get(name).Options().model_dump(exclude={"pretrain_options"}) == shown


@pytest.mark.parametrize("inner", ["ncm", "tau_norm"])
@pytest.mark.parametrize("outer", ["crt", "ncm", "btm"])
def test_nothing_stands_on_a_method_that_replaces_its_classifier(outer, inner):
    if outer == inner:
        return
    with pytest.raises(ValueError, match=f"pretrain: {inner} replaces its classifier"):
        configured(outer, pretrain=inner)


def test_a_contrastive_criterion_has_no_views_in_the_second_stage():
    with pytest.raises(ValueError, match="contrasts views of images, and the second stage has"):
        configured("crt", criterion={"name": "balanced_contrastive"})


def test_the_first_methods_wishes_are_known():
    energy = configured("crt", pretrain="energy_oe").options
    assert energy.wants_auxiliary
    assert energy.built_on == ("energy_oe",)
    assert energy.handles_imbalance
    assert configured("crt", pretrain="energy_oe").title == "crt on energy_oe"
    assert configured("crt").title == "crt"
    assert configured("mislas").title == "mislas"
    assert not configured("crt").options.wants_auxiliary
    asks = {"criterion": {"difficulty": "validation"}}
    waits = configured("crt", pretrain="cdb_ce", pretrain_options=asks).options
    assert waits.wants_validation
    assert not configured("crt", pretrain="cdb_ce").options.wants_validation
    nested = configured("crt", pretrain="mislas").options
    assert nested.built_on == ("mislas", "mixup")


def test_the_stage_without_shifting_has_no_part_that_adapts():
    def last(**classifier):
        return methods.get("crt").stages(configured("crt", classifier=classifier).options)[-1]

    assert last(shift_batchnorm=True).adapts == ("source.net.backbone",)
    assert last(head_rate=0.5).rates == {"source.net.head": 0.5}
    assert last().adapts == ()
