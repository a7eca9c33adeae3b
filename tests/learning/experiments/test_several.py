"""Images of several labels from training to what is said of them."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch

from lt_pipeline.learning import methods
from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.data.distribution import (
    LongTail,
    SplitGroups,
    class_counts,
    of_each_label,
)
from lt_pipeline.learning.data.prepare import DataConfig
from lt_pipeline.learning.data.samplers import SAMPLERS, SamplerConfig
from lt_pipeline.learning.evaluation.diagnostics.logit_shift import changed_predictions, logit_shift
from lt_pipeline.learning.experiments import evaluate as evaluating
from lt_pipeline.learning.experiments.config import EvaluationConfig, ExperimentConfig
from lt_pipeline.learning.experiments.experiment import Experiment, Sets
from lt_pipeline.learning.experiments.ood import evaluate_ood, summary_metrics
from lt_pipeline.learning.experiments.run import (
    Start,
    draw_subsets,
    finish,
    run_experiment,
    run_stages,
)
from lt_pipeline.learning.experiments.stages import evaluate_stages
from lt_pipeline.learning.experiments.store import Store
from lt_pipeline.learning.methods.more import discrepancy, image_weight, rebalancing_weight
from lt_pipeline.learning.schema import UserError
from toys import seeded, toy_card, toy_labels

# as conf/mosaics has them
TOLD = {
    "bce": {},
    "more": {"criterion": {"name": "bce"}},
    "crt": {"pretrain": "bce", "criterion": {"name": "bce"}, "classifier": {"epochs": 1}},
    "btm": {
        "pretrain": "bce",
        "criterion": {"name": "bce"},
        "classifier": {"epochs": 1},
        "branches": {"sets": 2, "epochs": 2},
        "interpolate": 3,
    },
}
MOSAICS = DataConfig(source="mosaics")


def resolved(method, epochs=2, **options):
    """Return the experiment's configuration, short."""
    told = {
        "model": {"backbone": "resnet8"},
        "device": "cpu",
        "training": {"epochs": epochs, "batch_size": 32, "warmup_epochs": 1},
        "evaluation": {"ood_made": 100},
        method: {"options": {**TOLD.get(method, {}), **options}},
    }
    return ExperimentConfig.resolve(method, told)


def card_of(images):
    counts = class_counts(images.labels, len(images.class_names)).tolist()
    groups = SplitGroups(rule="split", sizes=(1, 2, 1))
    longtail = replace(LongTail.from_counts(counts, images.class_names, groups), images=len(images))
    return replace(toy_card(), longtail=longtail)


@pytest.fixture(scope="module")
def sets():
    train = toy_labels()
    nothing = train[torch.arange(0)]
    return Sets(train, toy_labels(40, seed=1), toy_labels(60, seed=2), nothing)


@pytest.mark.parametrize("method", TOLD)
def test_a_method_learns_several_labels_and_is_judged(method, sets, tmp_path):
    experiment = Experiment(resolved(method, epochs=8), card_of(sets.train))
    finished = run_experiment(experiment, sets, tmp_path, Store(tmp_path))
    # by chance it is the mean share of the images that have a label, 0.5
    assert finished["test/mean_average_precision"] > 0.75
    assert finished["validation/mean_average_precision"] > 0.7
    assert {"test/mAP_many", "test/mAP_few", "test/macro_f1", "test/ranking_loss"} <= {*finished}
    assert "test/accuracy" not in finished
    assert "geometry/angle_mean/all" in finished
    if method == "more":
        shares = [finished[f"diagnostics/changed_predictions/{g}"] for g in ("many", "few", "all")]
        assert all(0 <= share <= 1 for share in shares)
    if method == "crt":
        assert finished["stages/classifier/mean_average_precision"] > 0.75


def test_labels_are_said_from_the_hold_outs_thresholds_on_and_pictures_drawn(sets, tmp_path):
    experiment = Experiment(resolved("crt"), card_of(sets.train))
    train, validation, test, _ = sets
    made, histories = run_stages(experiment, experiment.stages, sets, tmp_path, Store(tmp_path))
    weights, report = finish(experiment, train, validation, test, made["classifier"])
    metrics, judged = evaluating.evaluate(
        experiment, weights, train, validation, test, report, histories
    )
    method = experiment.finished(weights)
    _, chosen = evaluating.evaluate_hold_out(experiment, method, validation)
    assert metrics["thresholds"] == chosen.sigmoid().tolist()
    scores = method.score(test.images)
    said = (scores.double() >= chosen).long()
    assert judged.table["predicted_images"].tolist() == said.sum(0).tolist()
    row = said[3].nonzero().squeeze(1).tolist()
    assert judged.answers["predicted"][3] == ";".join(map(str, row))
    assert (
        evaluating.first_of_all(metrics)["hold_out"]
        == metrics["validation"]["mean_average_precision"]
    )
    nothing = validation[torch.arange(0)]
    thresholds, without = evaluating.evaluate_hold_out(experiment, method, nothing)
    assert thresholds == {}
    assert without.tolist() == [0] * 4
    figures = evaluating.draw(
        experiment, judged.table, judged.confusion, judged.reliability, report, histories
    )
    assert {"average_precision_by_class.png", "confusion.png", "reliability.png"} <= {*figures}
    table, _, drawn = evaluate_stages(experiment, validation, test, list(made.values()))
    assert {"mean_average_precision", "validation_mean_average_precision"} <= {*table}
    assert "recall_profiles.png" in drawn


def test_a_class_without_a_test_image_is_left_out_and_named(sets):
    experiment = Experiment(resolved("bce"), card_of(sets.train))
    method, test = experiment.build(), sets.test
    method.merge_for_inference()
    labels = test.labels.clone()
    labels[:, 2] = 0
    weights = dict(method.state_dict())
    metrics, table, *_ = evaluating.evaluate_again(
        experiment, weights, sets.train, sets.validation, replace(test, labels=labels)
    )
    assert metrics["notes"] == ["no test image has class 2: left out of means"]
    assert metrics["test"]["classes"] == 3
    assert table["average_precision"].isna().tolist() == [False, False, True, False]


def test_logistic_regression_solves_for_each_label(sets, tmp_path):
    train, validation, test, _ = sets
    labels = train.labels.clone()
    labels[:, 3] = 0
    labels[0, 3] = 1
    few = Sets(replace(train, labels=labels), validation, test, train[torch.arange(0)])
    experiment = Experiment(resolved("logistic_regression", standardize=False), card_of(few.train))
    finished = run_experiment(experiment, few, tmp_path, Store(tmp_path))
    assert finished["test/mAP_many"] > 0.75
    method = experiment.build()
    with torch.no_grad():
        features = method.eval().net.features(train.images).double()
    method.fit([], few.train, torch.device("cpu"))
    # at the minimum of the penalised loss the gradient by the weights is 0
    weight = method.net.prototypes.detach().double()
    logits = features @ weight.T + method.net.head.bias.detach().double()
    residual = logits.sigmoid() - labels.double()
    gradient = residual.T @ features + weight
    assert gradient.abs().max() < 0.1


# ---- images of no class


def judged(sets, folder, caplog, **evaluation):
    """Return the report of a trained method, its pictures and what was said."""
    config = resolved("bce", epochs=8)
    told = {"ood": ("uniform_noise", "no_label"), "ood_made": 100, **evaluation}
    config = config.model_copy(update={"evaluation": EvaluationConfig(**told)})
    experiment = Experiment(config, card_of(sets.train))
    made, _ = run_stages(experiment, experiment.stages, sets, folder, Store(folder))
    weights, _ = finish(experiment, *sets[:3], made["train"])
    with caplog.at_level("INFO"):
        report, figures = evaluate_ood(experiment, weights, sets.train, sets.test, folder)
    return experiment.finished(weights), report, figures


def test_images_without_a_label_are_told_from_those_with_some(sets, tmp_path, caplog):
    asked = ("odin", "energy", "msp", "max_logit", "knn", "react", "own", "vim")
    told = {"detectors": asked, "detector": {"knn": 5}}
    method, report, figures = judged(sets, tmp_path, caplog, **told)
    assert "Left out, as they are of one label an image: odin, vim" in caplog.text
    assert report["averaged_over"] == ["uniform_noise", "no_label"]
    has = sets.test.labels.bool().any(1)
    assert 0 < (~has).sum() < len(has)
    with torch.no_grad():
        logits = method.eval().score(sets.test.images).double()
    wanted = {
        "energy": logits.exp().log1p().sum(1),
        "msp": logits.sigmoid().amax(1),
        "max_logit": logits.amax(1),
        "own": logits.sigmoid().amax(1),
    }
    for name, score in wanted.items():
        inside, outside = score[has], score[~has]
        area = (inside[:, None] > outside).double().mean()
        area += (inside[:, None] == outside).double().mean() / 2
        assert report["detectors"][name]["no_label"]["auroc"] == pytest.approx(
            float(area), abs=1e-6
        )
    assert set(report["detectors"]) == {*asked} - {"odin", "vim"}
    assert report["energy"]["no_label"] == pytest.approx(
        -float(wanted["energy"][~has].mean()), 1e-4
    )
    metrics = summary_metrics(report)
    assert {"auroc_many", "auroc_few"} < {*metrics["energy"]["mean"]}
    assert set(figures) == {"detection.png", "groups.png"}
    assert metrics["sets"] == 2


def test_without_an_image_of_no_label_that_set_is_left_out(sets, tmp_path, caplog):
    some = sets.test.labels.bool().any(1)
    _, report, _ = judged(sets._replace(test=sets.test[some]), tmp_path, caplog)
    assert report["averaged_over"] == ["uniform_noise"]
    assert report["left_out"] == {"no_label": "no test image is without a label"}


def test_detectors_of_one_label_alone_are_refused_in_a_line():
    config = resolved("bce").model_copy(
        update={"evaluation": EvaluationConfig(detectors=("odin", "vim"))}
    )
    with pytest.raises(
        UserError, match="odin, vim rest on a softmax.*: choose among energy, max_l"
    ):
        config.check_data(MOSAICS)
    config.model_copy(update={"evaluation": EvaluationConfig(ood=False)}).check_data(MOSAICS)


# ---- which methods


@pytest.mark.parametrize("method", sorted({*methods.available()} - {"bce", "logistic_regression"}))
def test_every_other_method_has_a_reason_as_it_comes(method):
    kind = methods.get(method)
    assert len(kind.why_one_label(kind.Options())) > 20


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("ce", "cross_entropy is of a softmax"),
        ("mixup", "by its lam"),
        # before what else is missing
        ("oe", "images of no class"),
        ("cdb_ce", "is of a softmax"),
        ("btm", "branches.mix=null does not"),
        ("more", "logit_adjustment is of a softmax.*more.options.criterion.name=bce"),
    ],
)
def test_it_is_said_in_a_line(method, reason):
    config = ExperimentConfig.resolve(method, {"model": {"backbone": "resnet8"}})
    line = f"{method} takes images of one label, and those of mosaics, exp.* have several: .*"
    with pytest.raises(UserError, match=line + reason) as raised:
        config.check_data(MOSAICS)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("method", TOLD)
def test_what_takes_them_is_checked_as_ever(method):
    resolved(method, epochs=1).check_data(MOSAICS)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"merge": {"strategy": "greedy"}}, "merge.strategy=greedy goes by recalls"),
        ({"branches": {"mix": {}}}, "its fine-tunings mix the one label of an image"),
        ({"branches": {"short": "fill"}}, "branches.short=fill repeats"),
        ({"criterion": {"name": "cross_entropy"}}, "cross_entropy is of a softmax"),
    ],
)
def test_what_of_btm_is_of_one_label_is_said(options, reason):
    with pytest.raises(UserError, match=reason):
        resolved("btm", **options).check_data(MOSAICS)


def test_btm_averages_what_it_learned_of_balanced_subsets_of_several_labels(sets, tmp_path):
    experiment = Experiment(resolved("btm"), card_of(sets.train))
    made, _ = run_stages(experiment, experiment.stages, sets, tmp_path, Store(tmp_path))
    name = "source.net.head.weight"
    mean = (made["branch_0"][name] + made["branch_1"][name]) / 2
    torch.testing.assert_close(made["merge"][name], mean)
    assert not torch.equal(made["branch_0"][name], made["branch_1"][name])
    subsets = draw_subsets(experiment, sets.train)
    subsets.to_csv(tmp_path / "subsets.csv", index=False)
    stage = next(stage for stage in experiment.stages if stage.name == "branch_1")
    seen = Start({}, pd.read_csv(tmp_path / "subsets.csv")).seen(stage, sets.train)
    assert len(seen) == (subsets["subset"] == "branch_1").sum()
    assert (seen.labels.sum(0) >= 10).all()
    other = replace(sets.train, labels=sets.train.labels.flip(1))
    with pytest.raises(UserError, match="drawn from other images"):
        Start({}, subsets).seen(stage, other)
    table, between, drawn = evaluate_stages(
        experiment, sets.validation, sets.test, list(made.values())
    )
    assert "mean_average_precision" in table
    assert len(between) == 6
    assert "between_branch_0_and_branch_1.png" in drawn
    (note,) = [note for note in experiment.build().notes() if "subsets" in note]
    assert "10 images of a label" in note


def test_what_is_trained_first_must_take_them_too():
    config = resolved("crt", pretrain="ce")
    with pytest.raises(
        UserError, match="ce, which is trained first: cross_entropy is of a softmax"
    ):
        config.check_data(MOSAICS)


# ---- MORE, equation 4


def test_the_weight_of_an_image_is_the_mean_prior_of_its_labels():
    generator = seeded()
    labels = torch.randint(2, (30, 4), generator=generator).to(torch.uint8)
    labels[0] = 0
    full, general = torch.randn(2, 30, 4, generator=generator, dtype=torch.float64)
    counts = labels.sum(0).tolist()
    longtail = replace(LongTail.from_counts(counts), images=30)
    wanted = 0.0
    for n in range(30):
        gap = sum(float(full[n, c] - general[n, c]) ** 2 for c in range(4))
        active = [j for j in range(4) if labels[n, j]]
        prior = [counts[j] / sum(counts) for j in active]
        wanted += sum(p / len(active) for p in prior) * gap / 30
    # A' = 1 / C is A = 1
    weight = image_weight(rebalancing_weight(longtail, 1 / 4).double(), labels)
    discrepancies = (weight * discrepancy(full, general, "l2")).mean()
    assert float(discrepancies) == pytest.approx(wanted, rel=1e-6)
    assert weight[0] == 0


def test_one_label_an_image_has_the_weight_of_its_class():
    weight, labels = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([2, 0, 1])
    one_hot = torch.eye(3, dtype=torch.uint8)[labels]
    assert torch.equal(image_weight(weight, labels), image_weight(weight, one_hot))


def test_the_divergence_of_several_labels_is_the_sum_of_each_ones():
    full, general = torch.randn(2, 6, 3, generator=seeded(), dtype=torch.float64)
    p, q = full.sigmoid(), general.sigmoid()
    wanted = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(1)
    torch.testing.assert_close(discrepancy(full, general, "kl", several=True), wanted)


def test_the_rebalancing_term_counts_no_image_without_a_label(sets):
    method = Experiment(resolved("more"), card_of(sets.train)).build()
    for name, parameter in method.named_parameters():
        if name.endswith(".up"):
            torch.nn.init.normal_(parameter)
    index = torch.arange(8)
    labels = sets.train.labels[:8]
    assert method.loss(Batch(sets.train.images[:8], labels, index), 0.5)["rebalancing"] > 0
    batch = Batch(sets.train.images[:8], labels * 0, index)
    assert method.loss(batch, 0.5)["rebalancing"].item() == 0


def test_shift_and_decisions_are_of_labels():
    full = torch.tensor([[1.0, -1.0, 2.0, 0.5], [0.5, 0.5, -0.5, 1.0]])
    general = torch.tensor([[-1.0, -1.0, 1.0, 0.5], [0.5, -0.5, -0.5, 1.0]])
    labels = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.uint8)
    groups = SplitGroups(rule="split", sizes=(1, 2, 1))
    longtail = replace(LongTail.from_counts([4, 3, 2, 1], groups=groups), images=5)
    assert logit_shift(full, general, labels, longtail) == {"many": 2.0, "medium": 1.0}
    changes = changed_predictions(full, general, labels, longtail)
    assert changes == {"many": 0.5, "medium": 0.25, "few": 0.0, "all": 0.25}


# ---- samplers


def test_images_of_several_labels_are_drawn_by_each():
    labels = toy_labels(400).labels
    labels[:20] = 0
    label = of_each_label(labels)[1]
    assert torch.equal(torch.bincount(label), labels.sum(0))
    for name in SAMPLERS:
        order = SamplerConfig(name=name).build()(labels, seeded(), 0.5)
        assert len(order) == 400
        drawn = labels[order]
        if name == "instance_balanced":
            assert order.sort().values.tolist() == list(range(400))
            continue
        assert drawn.bool().any(1).all()
    rare = labels[SAMPLERS["class_balanced"](labels, seeded(), 0.0)].double().mean(0)
    assert rare[3] > 2 * labels.double().mean(0)[3]
    # a quarter of the draws are for each class, and more bring it by the way
    assert (rare > 0.2).all()


def test_one_label_as_one_hot_is_drawn_as_one_label():
    labels = torch.randint(4, (200,), generator=seeded())
    one_hot = torch.eye(4, dtype=torch.uint8)[labels]
    for name, sampler in SAMPLERS.items():
        both = (sampler(given, seeded(1), 0.5) for given in (labels, one_hot))
        assert torch.equal(*both), name
