"""BTM: algorithm 1 as stages, balanced subsets, the merge, and what each stage leaves alone."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from scipy import stats
from torch import nn

from lt_pipeline.learning.data.batches import Batch, mixed_with_itself
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.loader import Stream
from lt_pipeline.learning.engine.optim import trained_parameters
from lt_pipeline.learning.engine.protocol import objective_of
from lt_pipeline.learning.engine.trainer import fit, stage_config
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.experiments.store import MadeOf
from lt_pipeline.learning.methods.btm import FC_STAGE, BalancedTrainingAndMerging, BtmOptions
from lt_pipeline.learning.models.network import ModelConfig
from lt_pipeline.learning.transforms.augment import AugmentConfig
from lt_pipeline.learning.transforms.mix import MixConfig
from lt_pipeline.pipelines.method.pipeline import create_pipeline
from toys import toy_card, toy_images

CPU = torch.device("cpu")
RESNET8 = ModelConfig(backbone="resnet8")
TRAINING = TrainingConfig(
    epochs=3,
    batch_size=32,
    learning_rate=0.05,
    warmup_epochs=1,
    augment=AugmentConfig(crop_padding=0, flip=0.0),
)
FEW = {"sets": 3, "images": 6, "epochs": 4, "batch_size": 16, "learning_rate": 0.05}
SHORT = {"branches": FEW, "classifier": {"epochs": 2, "head_rate": 0.2, "scale": True}}
LAST = {"classifier": {"epochs": 2, "scale": True, "shift_batchnorm": True}}


def btm(seed=0, model=RESNET8, counts=(40, 20, 10, 5), **options):
    torch.manual_seed(seed)
    return BalancedTrainingAndMerging(BtmOptions(**options), model, toy_card(counts))


def dag(**options):
    phases = BalancedTrainingAndMerging.stages(BtmOptions(**options))
    return {stage.name: stage.start for stage in phases}


def stage_of(method, name):
    return {stage.name: stage for stage in method.stages(method.options)}[name]


def copied(method):
    return {name: value.clone() for name, value in method.state_dict().items()}


def same(one, two, under=""):
    names = [n for n in one if n.startswith(under)]
    assert names
    return all(torch.equal(one[n], two[n]) for n in names)


def train(name, checkpoints, data=None, seed=0, **options):
    """Do one stage as its node does, on top of ``checkpoints``; return method and state."""
    data, method = data or toy_images(), btm(**options)
    stage = stage_of(method, name)
    given = {start: checkpoints[start] for start in stage.start}
    seen = data[stage.subset.draw(data.labels, 0)] if stage.subset else data
    if stage.trains:
        method.load_weights(stage, given)
        fit(method, stage, seen, TRAINING, seed=seed, device=CPU)
    else:
        method.step(stage, given, seen, CPU)
    return method, copied(method)


def train_all(**options):
    checkpoints = {}
    for number, name in enumerate(dag(**options)):
        checkpoints[name] = train(name, checkpoints, seed=number, **options)[1]
    return checkpoints


@pytest.fixture(scope="module")
def trained():
    return train_all(**SHORT)


# ---- stages

BRANCHES = ("branch_0", "branch_1")


def on(start):
    return dict.fromkeys(BRANCHES, (start,))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (
            {},
            {"pretrain": (), **on("pretrain"), "union": ("pretrain",), "stage_2": ("pretrain",)}
            | {"merge": BRANCHES, "post_train": ("merge",)},
        ),
        (
            {"references": False},
            {"pretrain": (), **on("pretrain"), "merge": BRANCHES, "post_train": ("merge",)},
        ),
        (
            {"fc": True},
            {"pretrain": (), "fc": ("pretrain",), **on("fc"), "union": ("fc",), "stage_2": ("fc",)}
            | {"merge": BRANCHES, "post_train": ("merge",)},
        ),
        (
            {"when": "after"},
            {"pretrain": (), "post_train": ("pretrain",), **on("post_train")}
            | {"union": ("post_train",), "merge": BRANCHES},
        ),
        (
            {"when": "after", "fc": True, "references": False},
            {"pretrain": (), "fc": ("pretrain",), "post_train": ("fc",), **on("post_train")}
            | {"merge": BRANCHES},
        ),
        (
            {"pretrain": "crt", "fc": False, "references": False},
            {"pretrain": (), "pretrain_classifier": ("pretrain",), **on("pretrain_classifier")}
            | {"merge": BRANCHES, "post_train": ("merge",)},
        ),
    ],
)
def test_stages_are_those_of_algorithm_1(options, wanted):
    phases = dag(**options, branches={"sets": 2})
    assert phases == wanted
    assert list(phases) == list(wanted), "in an order in which they can run"


@pytest.mark.parametrize(
    ("when", "fc", "references", "together"),
    list(product(("between", "after"), (True, False), (True, False), (True, False))),
)
def test_any_combination_is_a_pipeline_with_a_node_for_each_fine_tuning(
    when, fc, references, together
):
    options = BtmOptions(
        when=when, fc=fc, references=references, branches={"sets": 4, "together": together}
    )
    stages = BalancedTrainingAndMerging.stages(options)
    branches = [stage for stage in stages if stage.role == "branch"]
    assert [b.name for b in branches] == [f"branch_{k}" for k in range(4)]
    assert len({b.start for b in branches}) == 1
    assert {b.group for b in branches} == {"branches" if together else ""}
    assert all(not s.group for s in stages if s.role != "branch")
    assert {s.name for s in stages if s.role == "reference"} == (
        set() if not references else {"union"} if when == "after" else {"union", "stage_2"}
    )
    assert {s.name for s in stages if s.subset} == {b.name for b in branches} | {"merge"} | (
        {"union"} if references else set()
    )
    assert [s.name for s in stages if not s.trains] == ["merge"]
    assert stages[-1].name == ("merge" if when == "after" else "post_train")
    nodes = {node.name: node for node in create_pipeline("btm", options).nodes}
    wanted = {"btm.branches"} if together else {f"btm.{b.name}" for b in branches}
    assert {name for name in nodes if name.startswith("btm.branch")} == wanted
    for name in wanted:
        assert f"btm.{branches[0].start[0]}_checkpoint" in nodes[name].inputs
    assert f"btm.{stages[-1].name}_checkpoint" in nodes["btm.finish"].inputs


@pytest.mark.parametrize(
    ("pretrain", "wanted"),
    [("ce", False), ("mixup", False), ("balanced_softmax", True), ("more", True), ("ride", True)],
)
def test_the_classifier_forgets_first_where_the_method_handles_imbalance(pretrain, wanted):
    for fc, anew in (("auto", wanted), (True, True), (False, False)):
        options = BtmOptions(pretrain=pretrain, fc=fc)
        assert options.has_fc is anew
        assert ("fc" in dag(pretrain=pretrain, fc=fc)) is anew


def test_a_criterion_that_handles_imbalance_counts_whatever_the_method():
    assert BtmOptions(pretrain="mixup", pretrain_options={"criterion": {"name": "focal"}}).has_fc


def test_interpolations_are_those_of_figures_1_and_2():
    def paths(**options):
        return BalancedTrainingAndMerging.paths(BtmOptions(**options))

    assert paths() == (("pretrain", "branch_0", 11), ("branch_0", "branch_1", 11))
    assert paths(fc=True, interpolate=3)[0] == ("fc", "branch_0", 3)
    assert paths(when="after", fc=True, interpolate=3)[0] == ("post_train", "branch_0", 3)
    assert paths(interpolate=0) == ()


# ---- what each stage does


def stages(**options):
    return {s.name: s for s in BalancedTrainingAndMerging.stages(BtmOptions(**options))}


SHARED = TrainingConfig(epochs=200, batch_size=128, learning_rate=0.1, weight_decay=2e-4)
# of the recipe for CIFAR-100 (conf/base/globals.yml); the defaults are the digits'
PAPER = {
    "branches": {"batch_size": 256},
    "fc_classifier": FC_STAGE.model_copy(update={"batch_size": 256}).model_dump(),
}


@pytest.mark.parametrize("name", ["branch_0", "branch_9", "union"])
def test_fine_tuning_is_as_in_the_paper(name):
    stage = stages(**PAPER)[name]
    config = stage_config(SHARED, stage)
    assert stage.epochs == 30
    assert (config.batch_size, config.learning_rate, config.weight_decay) == (256, 5e-3, 5e-4)
    assert (config.schedule, config.warmup_epochs, config.momentum) == ("cosine", 0, 0.9)
    assert stage.mix == MixConfig(cutmix=False, alpha=1.0), "the augmentation of the first stage"
    labels = torch.arange(949) % 7
    order = stage.sampler(labels, torch.Generator().manual_seed(0), 0.0)
    assert order.sort().values.tolist() == list(range(949)), "each image once"
    images = toy_images((949,), size=4)
    stream = Stream(stage, images, config, views=0, seed=0, device=CPU)
    assert stream.steps == 4, "an epoch's last step has what is left"


def test_the_rates_follow_a_cosine_from_the_first_step(trained):
    method = btm(**SHORT)
    stage, given = stage_of(method, "branch_0"), {"pretrain": trained["pretrain"]}
    method.load_weights(stage, given)
    history = fit(method, stage, toy_images((6, 6, 6, 5)), TRAINING, seed=0, device=CPU)
    rates = [point["value"] for point in history["train/learning_rate"]]
    assert rates == pytest.approx([0.05 * 0.5 * (1 + q) for q in (0.5**0.5, 0, -(0.5**0.5), -1)])


def test_the_last_training_is_the_second_stage_of_mislas():
    for options, epochs in (({}, 10), ({"fc": True}, 40)):
        phases = stages(**options)
        for name in ("post_train", "stage_2"):
            stage, config = phases[name], stage_config(SHARED, phases[name])
            assert stage.epochs == epochs
            assert (config.batch_size, config.weight_decay) == (128, 2e-4), "as in training"
            assert (config.learning_rate, config.schedule) == (0.1, "cosine")
            assert config.warmup_epochs == 0
            assert set(stage.trainable) == {"source.net.head", "scale"}
            assert stage.rates == {"source.net.head": 0.2}
            assert stage.adapts == ("source.net.backbone",)
            assert stage.mix is None
            # balanced: as many of each class as of any other
            labels = toy_images().labels
            drawn = labels[stage.sampler(labels, torch.Generator().manual_seed(0), 0.0)]
            counts = torch.bincount(drawn)
            assert len(drawn) == len(labels)
            assert counts.max() - counts.min() <= 4
    told = stages(fc=True, classifier={"epochs": 3})
    assert told["post_train"].epochs == told["stage_2"].epochs == 3
    criterion = BtmOptions().criterion
    assert (criterion.name, criterion.head, criterion.tail) == ("label_aware_smoothing", 0.4, 0.1)


def test_the_classifier_forgets_in_ten_epochs_on_all_images():
    stage = stages(fc=True)["fc"]
    assert stage.epochs == 10
    assert stage.trainable == ("source.net.head",)
    assert stage.adapts == ()
    assert stage.rates == {"source.net.head": 1.0}
    labels = toy_images().labels
    order = stage.sampler(labels, torch.Generator().manual_seed(0), 0.0)
    assert order.sort().values.tolist() == list(range(len(labels)))


def test_the_classifier_forgets_as_it_is_fine_tuned_unless_told():
    """ "We use the same training strategy for the first two steps" (section 4.1)."""

    def recipe(stage):
        config = stage_config(SHARED, stage).model_dump()
        names = ("batch_size", "learning_rate", "weight_decay", "schedule", "warmup_epochs")
        return [config[name] for name in names]

    usual = stages(fc=True, **PAPER)
    assert recipe(usual["fc"]) == recipe(usual["branch_0"]) == [256, 5e-3, 5e-4, "cosine", 0]
    told = {"learning_rate": 0.1, "batch_size": None, "weight_decay": None}
    as_mislas = stages(fc=True, fc_classifier=told)
    assert recipe(as_mislas["fc"]) == recipe(as_mislas["stage_2"]) == [128, 0.1, 2e-4, "cosine", 0]


def test_the_budget_is_that_of_the_method_that_is_trained_first():
    assert [s.name for s in stages().values() if s.trains and s.passes(7) == 7] == ["pretrain"]


def test_factors_of_the_logits_are_left_to_the_last_training():
    with pytest.raises(ValueError, match=r"fc_classifier\.scale must be false"):
        BtmOptions(fc_classifier={"scale": True})


def test_mixtures_follow_the_method_that_is_trained_first_unless_told():
    halves = {"alpha": 0.2, "both": "halves"}
    follows = {"pretrain": "mixup", "pretrain_options": {"mix": halves}}
    assert stages(**follows)["branch_3"].mix == MixConfig(alpha=0.2, both="halves")
    assert stages(pretrain="ce")["branch_0"].mix is None
    assert stages(pretrain="mixup", branches={"mix": None})["branch_0"].mix is None
    told = stages(pretrain="ce", branches={"mix": {"alpha": 0.4}})["branch_0"]
    assert told.mix == MixConfig(alpha=0.4)


# ---- subsets


def subsets(labels, seed, **options):
    subsets_drawn = stages(**options).values()
    return {s.name: s.subset.draw(labels, seed) for s in subsets_drawn if s.subset and s.trains}


def test_subsets_are_balanced_seeded_and_different():
    labels, own = toy_images().labels, {"sets": 4, "images": 5}
    drawn, again = (subsets(labels, 1, branches=own) for _ in range(2))
    branches = [drawn[f"branch_{k}"] for k in range(4)]
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)
    assert all(torch.bincount(labels[p]).tolist() == [5, 5, 5, 5] for p in branches)
    assert all(len(p.unique()) == len(p) for p in branches)
    assert len({tuple(p.sort().values.tolist()) for p in branches}) == 4
    other = subsets(labels, 2, branches=own)
    assert not any(torch.equal(drawn[f"branch_{k}"], other[f"branch_{k}"]) for k in range(4))
    assert drawn["union"].tolist() == sorted(set(torch.cat(branches[:2]).tolist()))
    # two images of the largest class in both are rare, all of the smallest class are a must
    assert torch.bincount(labels[drawn["union"]])[3] == 5
    more = subsets(labels, 1, branches={"sets": 7, "images": 5})
    assert all(torch.equal(more[name], drawn[name]) for name in drawn), "however many there are"
    assert set(subsets(labels, 1, references=False)) == {f"branch_{k}" for k in range(10)}


def test_a_class_with_fewer_images_gives_all_or_is_filled_up():
    labels = toy_images().labels
    own = set((labels == 3).nonzero().flatten().tolist())
    for short, size in (("keep", 5), ("fill", 8)):
        options = {"branches": {"sets": 3, "images": 8, "short": short}}
        for name, positions in subsets(labels, 0, **options).items():
            if name == "union":
                continue
            assert torch.bincount(labels[positions]).tolist() == [8, 8, 8, size]
            drawn = positions[labels[positions] == 3]
            assert set(drawn.tolist()) == own, "all of its images are there"
        assert (
            f"each of 3 subsets has {24 + size} images, {size} to 8 a class, and 1 of 4 classes "
            f"give all of them the same images"
        ) in btm(**options).notes()


def test_notes_say_how_many_steps_a_fine_tuning_is_and_what_one_an_epoch_means():
    def said(**branches):
        return btm(branches=branches).notes()[1]

    # 35 images: ten of three classes and all five of the last
    assert said(batch_size=9) == "a fine-tuning is 120 steps, 4 an epoch"
    assert said(batch_size=35, epochs=7).startswith("a fine-tuning is 7 steps, 1 an epoch: a batch")
    assert "batch_size=9 makes it 4 an epoch" in said(batch_size=256)
    assert said(batch_size=35, short="fill") == "a fine-tuning is 60 steps, 2 an epoch"


def test_notes_say_that_the_classifier_forgets():
    assert not any("forgets" in note for note in btm().notes())
    assert any("more handles imbalance" in note for note in btm(pretrain="more").notes())


# ---- fine-tuning


def test_every_fine_tuning_starts_from_the_same_weights_classifier_included(trained):
    for name in ("branch_0", "branch_2", "union", "stage_2"):
        method = btm(seed=7, **SHORT)
        method.load_weights(stage_of(method, name), {"pretrain": trained["pretrain"]})
        assert same(trained["pretrain"], method.state_dict(), "source.net.")
        assert torch.equal(method.scale, torch.ones(4))


def test_fine_tunings_behind_more_start_from_its_merged_network():
    source = btm(pretrain="more")
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    method = btm(seed=7, pretrain="more")
    method.load_weights(stage_of(method, "fc"), {"pretrain": copied(source)})
    images = toy_images().images
    with torch.no_grad():
        wanted = source.source.eval().score(images)
        torch.testing.assert_close(method.eval().score(images), wanted, rtol=1e-4, atol=1e-4)
    assert not [name for name in method.state_dict() if "parametrizations" in name]
    later = btm(seed=8, pretrain="more")
    later.load_weights(stage_of(later, "branch_0"), {"fc": copied(method)})
    assert same(copied(method), later.state_dict())


def mixed_batch():
    data = toy_images()
    index = torch.arange(0, len(data), 3)
    made = Batch(data.images[index], data.labels[index], index)
    return mixed_with_itself(made, MixConfig(cutmix=False), torch.Generator().manual_seed(0))


def nll(logits, labels):
    logits = logits.double()
    return logits.logsumexp(1) - logits[torch.arange(len(labels)), labels]


def test_the_loss_of_a_fine_tuning_is_cross_entropy_on_mixtures(trained):
    made = mixed_batch()
    for mix, name in (("pretrain", "branch_0"), (None, "union"), ("pretrain", "union")):
        method = btm(branches={**FEW, "mix": mix}, **LAST)
        stage = stage_of(method, name)
        method.load_weights(stage, {"pretrain": trained["pretrain"]})
        method.eval()
        with torch.no_grad():
            terms = objective_of(method, stage).loss(made, 0.5)
            mixed = made.mixed
            logits = method.net(mixed.images if mix else made.images)
        lam = mixed.lam.double() if mix else torch.ones(len(made.labels)).double()
        wanted = lam * nll(logits, made.labels) + (1 - lam) * nll(logits, mixed.second)
        assert list(terms) == ["cross_entropy"]
        assert terms["cross_entropy"].item() == pytest.approx(wanted.mean().item(), rel=1e-5)
    assert 0 < mixed.lam[0] < 1
    assert not torch.equal(mixed.first, mixed.second)


def test_mixtures_that_are_due_and_missing_are_asked_for(trained):
    method = btm(**SHORT)
    stage = stage_of(method, "branch_0")
    method.load_weights(stage, {"pretrain": trained["pretrain"]})
    with pytest.raises(ValueError, match="must bring mixtures"):
        objective_of(method, stage).loss(mixed_batch()._replace(mixed=None), 0.5)


def test_the_classifier_forgets_with_cross_entropy_and_no_mixtures(trained):
    method = btm(fc=True, **SHORT)
    stage = stage_of(method, "fc")
    method.load_weights(stage, {"pretrain": trained["pretrain"]})
    made = mixed_batch()
    with torch.no_grad():
        terms = objective_of(method.eval(), stage).loss(made, 0.5)
        wanted = nll(method.net(made.images), made.labels).mean()
    assert terms["cross_entropy"].item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("where", ["backbone", "classifier", "both"])
def test_what_does_not_learn_is_left_bit_for_bit(trained, where):
    options = {**SHORT, "branches": {**FEW, "where": where}}
    state = train("branch_1", trained, **options)[1]
    start = trained["pretrain"]
    assert same(start, state, "source.net.head.") is (where == "backbone")
    assert same(start, state, "source.net.backbone.") is (where == "classifier")
    statistics = [n for n in start if n.endswith("running_var")]
    assert all(torch.equal(start[n], state[n]) for n in statistics) is (where == "classifier")
    changed = [n for n, value in state.items() if not torch.equal(start.get(n, value), value)]
    assert changed
    assert torch.equal(state["scale"], torch.ones(4))


def test_forgetting_leaves_the_backbone_bit_for_bit(trained):
    state = train("fc", trained, fc=True, **SHORT)[1]
    assert same(trained["pretrain"], state, "source.net.backbone.")
    assert not same(trained["pretrain"], state, "source.net.head.")


# ---- post-training


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("name", ["post_train", "stage_2"])
def test_the_last_training_leaves_the_backbone_bit_for_bit(trained, shift, name):
    classifier = {"epochs": 2, "scale": True, "shift_batchnorm": shift, "head_rate": 0.2}
    method, state = train(name, trained, branches=FEW, classifier=classifier)
    start = trained["merge" if name == "post_train" else "pretrain"]
    backbone = [n for n, _ in method.named_parameters() if n.startswith("source.net.backbone.")]
    assert len(backbone) > 10
    assert all(torch.equal(start[n], state[n]) for n in backbone)
    assert same(start, state, "source.net.backbone.") is not shift, "BatchNorm's statistics"
    assert not torch.equal(start["source.net.head.weight"], state["source.net.head.weight"])
    assert not torch.equal(torch.ones(4), state["scale"])


def test_after_the_second_stage_its_factors_stay_as_they_are():
    trained = train_all(when="after", references=False, **SHORT)
    assert not torch.equal(trained["post_train"]["scale"], torch.ones(4))
    for name in ("branch_0", "branch_1", "merge"):
        assert torch.equal(trained[name]["scale"], trained["post_train"]["scale"])


# ---- merging


def states(trained):
    return {name: trained[name] for name in ("branch_0", "branch_1", "branch_2")}


def merge(given, data=None, **options):
    """Return the merged state and the report, for N networks."""
    method = btm(branches={**FEW, "sets": len(given)}, merge=options, **LAST)
    report = method.step(stage_of(method, "merge"), given, data or toy_images(), CPU)
    return copied(method), report


def mean64(given, shares):
    return {
        name: sum(share * s[name].double() for s, share in zip(given, shares, strict=True))
        for name, value in given[0].items()
        if value.is_floating_point()
    }


def assert_is(result, wanted):
    for name, value in wanted.items():
        torch.testing.assert_close(result[name].double(), value, rtol=1e-6, atol=1e-7)


def test_the_merge_is_the_average_of_all_that_floats(trained):
    given = list(states(trained).values())
    merged, report = merge(states(trained))
    assert_is(merged, mean64(given, [1 / 3] * 3))
    assert any(n.endswith("running_var") for n in mean64(given, [1 / 3] * 3))
    for name in ("source.net.backbone", "source.net.head"):
        assert not same(given[0], given[1], name), "there was something to average"
    assert list(report["shares"].values()) == pytest.approx([1 / 3] * 3)
    assert list(report["shares"]) == list(states(trained))
    assert report["scores"] == {}
    assert same(trained["merge"], merged), "it is what the pipeline's own stage gave"


@pytest.mark.parametrize("strategy", ["average", "adaptive", "greedy"])
def test_merging_copies_of_one_network_changes_nothing(trained, strategy):
    one = trained["branch_1"]
    merged, _ = merge({f"branch_{k}": one for k in range(3)}, strategy=strategy)
    assert merged.keys() == one.keys()
    assert same(one, merged)


def own_score(state, data, kind):
    """Score a state without the method's own evaluation."""
    method = btm(branches=FEW, **LAST)
    method.load_weights(method.END, {"merge": state})
    method.eval()
    with torch.no_grad():
        logits = torch.cat([method.net(image[None]) for image in data.images]).argmax(1)
    recalls = [(logits[data.labels == c] == c).double().mean().item() for c in range(4)]
    return kind([max(r, 1e-3) for r in recalls])


MEANS = {"harmonic_mean": stats.hmean, "geometric_mean": stats.gmean}


def uneven(trained):
    """Return networks of different worth, in no order: one was spoilt, one a little."""
    weights = {name: dict(state) for name, state in states(trained).items()}
    generator = torch.Generator().manual_seed(0)
    for name, noise in (("branch_0", 0.35), ("branch_2", 3.0)):
        head = weights[name]["source.net.head.weight"]
        weights[name]["source.net.head.weight"] = head + noise * torch.randn(
            head.shape, generator=generator
        )
    return weights


@pytest.mark.parametrize("score", MEANS)
def test_adaptive_weights_are_the_scores_over_their_sum(trained, score):
    data, given = toy_images((12, 12, 12, 12), seed=5), uneven(trained)
    scores = [own_score(state, data, MEANS[score]) for state in given.values()]
    assert len(set(scores)) == 3
    shares = [s / sum(scores) for s in scores]
    merged, report = merge(given, data, strategy="adaptive", score=score)
    assert list(report["scores"].values()) == pytest.approx(scores)
    assert list(report["shares"].values()) == pytest.approx(shares)
    assert_is(merged, mean64(list(given.values()), shares))


@pytest.mark.parametrize("score", MEANS)
@pytest.mark.parametrize("order", ["sorted", "given"])
def test_the_greedy_soup_is_that_of_brute_force(trained, score, order):
    data, given = toy_images((12, 12, 12, 12), seed=5), list(uneven(trained).values())
    given = [given[2], given[0], given[1]]  # the worst first
    alone = [own_score(state, data, MEANS[score]) for state in given]
    ranked = [0, 1, 2] if order == "given" else sorted(range(3), key=lambda k: -alone[k])
    kept, best = [ranked[0]], alone[ranked[0]]
    for k in ranked[1:]:
        tried = [*kept, k]
        mean = mean64([given[j] for j in tried], [1 / len(tried)] * len(tried))
        state = {n: mean[n].float() if n in mean else v for n, v in given[0].items()}
        reached = own_score(state, data, MEANS[score])
        if reached >= best:
            kept, best = tried, reached
    named = {f"branch_{k}": state for k, state in enumerate(given)}
    merged, report = merge(named, data, strategy="greedy", order=order, score=score)
    shares = [1 / len(kept) if k in kept else 0.0 for k in range(3)]
    assert list(report["shares"].values()) == pytest.approx(shares)
    assert_is(merged, mean64(given, shares))
    assert (shares[0] > 0) == (order == "given"), "the worst is in only if it comes first"
    assert list(report["scores"].values()) == pytest.approx(alone)


def test_batchnorm_is_estimated_anew_in_one_pass_over_all_subsets(trained):
    data = toy_images((20, 20, 9, 5), seed=4)
    averaged, _ = merge(states(trained), data)
    method = btm(branches={**FEW, "batch_size": 256}, merge={"batchnorm": "reestimated"}, **LAST)
    method.step(stage_of(method, "merge"), states(trained), data, CPU)
    network = copied(method)
    reference = btm(branches=FEW, **LAST)
    reference.load_weights(reference.END, {"merge": averaged})
    reference.train()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        reference.net(data.images)
    for name, value in reference.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(network[name], value, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(network[name], averaged[name], rtol=1e-3)
        elif "num_batches" not in name:
            assert torch.equal(network[name], averaged[name])


def test_batches_for_the_statistics_are_of_all_classes(trained):
    """The images come class by class; within one, they vary less than all of them do."""
    data = toy_images((24, 24, 24, 24), noise=5.0)
    batches = {}
    for size in (8, 256):
        branches = {**FEW, "batch_size": size}
        method = btm(branches=branches, merge={"batchnorm": "reestimated"}, **LAST)
        method.step(stage_of(method, "merge"), states(trained), data, CPU)
        batches[size] = copied(method)
    (last, *_) = [n for n in reversed(batches[8]) if n.endswith("running_var")]
    ratio = (batches[8][last] / batches[256][last]).median().item()
    assert 0.85 < ratio < 1.15


def test_networks_that_differ_are_not_merged_and_the_first_difference_is_named(trained):
    other = btm(model=ModelConfig(backbone="resnet20"), branches=FEW, **LAST)
    other.load_weights(stage_of(other, "branch_1"), {})
    given = {**states(trained), "branch_1": copied(other)}
    first = next(n for n in given["branch_1"] if n not in given["branch_0"])
    with pytest.raises(ValueError, match="cannot merge branch_0 and branch_1") as error:
        merge(given)
    assert repr(first) in str(error.value)
    wide = {**trained["branch_2"], "source.net.head.weight": torch.zeros(5, 64)}
    with pytest.raises(ValueError, match=r"head\.weight' is \[4, 64\] in branch_0, but \[5, 64\]"):
        merge({**states(trained), "branch_2": wide})


def test_merging_does_not_touch_the_networks(trained):
    before = {name: dict(copy.deepcopy(state)) for name, state in states(trained).items()}
    merge(states(trained), strategy="greedy", batchnorm="reestimated")
    assert all(same(before[name], trained[name]) for name in before)


def test_on_top_of_it_the_same_networks_are_merged_by_the_same_shares(trained):
    """What a method on top has of its own is in no network that is merged."""
    options = BtmOptions(**SHORT).model_dump()
    above = ExperimentConfig.resolve("crt", {
        "model": {"backbone": "resnet8"},
        "crt": {"options": {"pretrain": "btm", "pretrain_options": options}},
    })  # fmt: skip
    method = Experiment(above, toy_card()).build()
    (stage,) = (s for s in method.stages(method.options) if s.name == "pretrain_merge")
    assert stage.start == tuple(f"pretrain_branch_{k}" for k in range(3))
    given = {
        f"pretrain_{name}": {f"source.{n}": value for n, value in state.items()}
        for name, state in states(trained).items()
    }
    report = method.step(stage, given, toy_images(), CPU)
    assert list(report["shares"]) == list(states(trained))
    weights = method.source.state_dict()
    assert {*weights} == {*trained["merge"]}
    assert same(trained["merge"], weights)


# ---- the whole


def test_equal_seeds_give_equal_bits(trained):
    again = train_all(**SHORT)
    assert trained.keys() == again.keys()
    assert all(same(trained[stage], again[stage]) for stage in trained)


@pytest.mark.parametrize("pretrain", ["mislas", "crt"])
def test_on_a_method_of_two_stages_the_whole_network_is_fine_tuned(pretrain):
    method = btm(pretrain=pretrain, branches=FEW)
    method.load_weights(stage_of(method, "branch_0"), {})
    wanted = {id(p) for p in method.net.parameters()}
    assert {id(p) for _, p in trained_parameters(method, stage_of(method, "branch_0"))} == wanted
    head = {id(p) for p in method.net.head.parameters()}
    assert {id(p) for _, p in trained_parameters(method, stage_of(method, "fc"))} == head


# ---- what may be shared


def made_of(name, **options):
    """What decides the stage ``name`` of BTM with ``options``, and its key."""
    given = {"model": {"backbone": "resnet8"}, "btm": {"options": options}}
    experiment = Experiment(ExperimentConfig.resolve("btm", given), toy_card())
    (stage,) = (s for s in experiment.stages if s.name == name)
    made = MadeOf(experiment, stage)
    return made.values, made.fingerprint


def assert_differ(one, other):
    """Assert that neither what decides the stages nor their keys are alike."""
    assert all(a != b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {"branches": {"sets": 4}},
        {"merge": {"strategy": "greedy"}},
        {"criterion": {"name": "cross_entropy"}},
        {"classifier": {"epochs": 3}},
        {"references": False},
        {"interpolate": 0},
    ],
)
def test_what_follows_a_fine_tuning_does_not_decide_it(change):
    assert made_of("branch_1", **change) == made_of("branch_1")
    assert_differ(made_of("post_train", **change), made_of("post_train"))


@pytest.mark.parametrize(
    "change",
    [
        {"branches": {"images": 4}},
        {"branches": {"short": "fill"}},
        {"branches": {"where": "backbone"}},
        {"branches": {"mix": None}},
        {"branches": {"learning_rate": 1e-3}},
        {"pretrain": "ce"},
        {"pretrain_options": {"mix": {"alpha": 0.2}}},
        {"fc": True},
        {"when": "after"},
    ],
)
def test_what_decides_a_fine_tuning_is_in_its_recipe(change):
    assert_differ(made_of("branch_1", **change), made_of("branch_1"))


def test_behind_the_second_stage_fine_tunings_depend_on_it():
    for change in ({"criterion": {"name": "cross_entropy"}}, {"classifier": {"epochs": 3}}):
        after = made_of("branch_1", when="after", **change)
        assert_differ(after, made_of("branch_1", when="after"))


def test_branches_trained_together_depend_on_how_many_there_are():
    one, other = (made_of("branch_0", branches={"together": True, "sets": n}) for n in (3, 4))
    assert_differ(one, other)


def test_forgetting_does_not_depend_on_the_subsets():
    one = made_of("fc", fc=True)
    assert one == made_of("fc", fc=True, branches={"images": 3})
    assert_differ(one, made_of("fc", fc=True, fc_classifier={"epochs": 3}))


def test_the_first_stage_is_the_first_methods_own():
    options = BtmOptions()
    stage, *_ = BalancedTrainingAndMerging.stages(options)
    assert (stage.recipe.method, stage.recipe.options) == ("mixup", options.pretrain_options)
    assert made_of("pretrain")[0]["method"] == "mixup"


# What arms with other later stages may share


GML = {"criterion": {"name": "geometric_mean"}, "classifier": {"epochs": 1}}


def test_fine_tunings_of_an_arm_with_another_last_stage_can_be_merged(trained):
    """Their checkpoints have that arm's factors and criterion; none of it was trained."""
    method = btm(**{**SHORT, **GML})
    stage = stage_of(method, "merge")
    method.step(stage, {name: trained[name] for name in stage.start}, toy_images(), CPU)
    inner = {n: v for n, v in method.state_dict().items() if n.startswith("source.")}
    assert same(inner, trained["merge"])
    assert method.criterion.log_prior.isfinite().all()
    method = btm(**{**SHORT, **GML})
    method.load_weights(stage_of(method, "post_train"), {"merge": trained["merge"]})
    assert method.scale is None


def test_the_smoothing_is_this_arms_own(trained):
    own = {"criterion": {"name": "label_aware_smoothing", "head": 0.2, "tail": 0.0}}
    wanted = btm(**{**SHORT, **own}).criterion.smoothing
    for name, start in (("post_train", "merge"), ("stage_2", "pretrain"), ("branch_0", "pretrain")):
        method = btm(**{**SHORT, **own})
        method.load_weights(stage_of(method, name), {start: trained[start]})
        assert torch.equal(method.criterion.smoothing, wanted)
    method, _ = train("post_train", trained, **SHORT)
    other = btm(**SHORT)
    other.load_weights(other.END, {"post_train": copied(method)})
    assert torch.equal(other.scale, method.scale)
    assert not torch.equal(other.scale, torch.ones(4))


@pytest.mark.parametrize(("name", "block"), [("fc", "fc_classifier"), ("post_train", "classifier")])
def test_a_classifier_restarts_in_any_stage_that_is_told_to(name, block):
    options = {**SHORT, "fc": True}
    method = btm(seed=3, **options)
    start = stage_of(method, name).start[0]
    given = copied(method)
    kept, fresh = btm(seed=4, **options), btm(seed=4, **{**options, block: {"restart": True}})
    for one in (kept, fresh):
        one.load_weights(stage_of(one, name), {start: given})
    assert torch.equal(kept.net.head.weight, given["source.net.head.weight"])
    assert not torch.equal(fresh.net.head.weight, given["source.net.head.weight"])


def test_one_subset_has_no_union_and_no_way_between_two():
    options = {**SHORT, "branches": {**FEW, "sets": 1}}
    assert "union" not in dag(**options)
    assert dag(**options)["merge"] == ("branch_0",)
    paths = BalancedTrainingAndMerging.paths(BtmOptions(**options))
    assert [path[:2] for path in paths] == [("pretrain", "branch_0")]
    assert set(subsets(toy_images().labels, 0, **options)) == {"branch_0"}


def test_one_network_between_two_is_no_picture():
    with pytest.raises(ValueError, match="interpolate must be 0, for no picture, or at least 2"):
        BtmOptions(interpolate=1)
