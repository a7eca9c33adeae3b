"""The loss of each class, as it is measured of a finished method and followed in training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.data.protocol import take
from lt_pipeline.learning.evaluation.metrics.catalog import METRICS
from lt_pipeline.learning.experiments import evaluate as evaluating
from lt_pipeline.learning.experiments.config import EvaluationConfig, ExperimentConfig
from lt_pipeline.learning.experiments.experiment import Experiment, Sets
from lt_pipeline.learning.experiments.landscape import (
    ClassSample,
    RiskByGroup,
    base_criterion,
    hessian_of,
    landscape,
)
from lt_pipeline.learning.experiments.run import finish, run_stages
from lt_pipeline.learning.experiments.store import Store
from lt_pipeline.learning.schema import numbers
from toys import COUNTS, seeded, toy_card, toy_images, toy_labels

SMALL = {"images": 3, "steps": 4, "probes": 1}
TRAINING = {
    "epochs": 2, "batch_size": 25, "learning_rate": 0.05, "warmup_epochs": 0,
    "augment": {"crop_padding": 0, "flip": 0.0},
}  # fmt: skip


def experiment(method="logit_adjustment", several=False, training=None, **how):
    given = {
        "model": {"backbone": "resnet8"}, "device": "cpu",
        "training": {**TRAINING, **(training or {})},
        "evaluation": {"ood": False, "landscape": SMALL | how},
    }  # fmt: skip
    if several and method == "more":
        given["more"] = {"options": {"criterion": {"name": "bce"}}}
    card = toy_card()
    if several:
        labels = toy_labels().labels
        counts = labels.sum(0).tolist()
        card = replace(card, longtail=replace(LongTail.from_counts(counts), images=len(labels)))
    return Experiment(ExperimentConfig.resolve(method, given), card)


def built(experiment):
    """A network that is not trained, folded, whose BatchNorm has seen images."""
    method = experiment.build()
    method.train()
    with torch.no_grad():
        method.score(toy_images().images)
    method.merge_for_inference()
    return method


@pytest.mark.parametrize(("name", "several"), [("more", False), ("bce", True)])
def test_the_numbers_are_those_of_the_classes_and_the_same_twice(name, several):
    made, train = experiment(name, several), toy_labels() if several else toy_images()
    method = built(made)
    state = {name: value.clone() for name, value in method.state_dict().items()}
    extremes, columns = landscape(made, method, train)
    assert landscape(made, method, train) == (extremes, columns)
    kept = method.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in state.items()), "it only looks"
    for name, values in columns.items():
        assert len(values) == 4, name
        if ratio := extremes["imbalance"].get(name):
            assert ratio == max(map(abs, values)) / min(map(abs, values)) > 1
    rarest = int(made.card.longtail.counts.argmin())
    assert extremes["rarest"]["lambda_min"] == columns["lambda_min"][rarest]
    assert extremes["rarest"]["gamma"] == columns["gamma"][rarest]
    assert extremes["unconverged_classes"] == columns["converged"].count(False)
    assert {f"landscape/{key}" for key in numbers(extremes)} <= METRICS.keys()


def test_a_class_has_the_hessian_of_its_own_images():
    made, train = experiment(images=3, steps=12), toy_images()
    method = built(made)
    _, columns = landscape(made, method, train)
    sample = ClassSample.draw(train.labels, 3, 0)
    chosen = sample.position[sample.label == 2]
    images, labels = take(train, chosen), train.labels[chosen]
    assert labels.tolist() == [2, 2, 2]
    with torch.no_grad():
        shifted = method.score(images) + made.card.longtail.log_prior.float()
    wanted = F.cross_entropy(shifted, labels)
    assert columns["risk"][2] == pytest.approx(float(wanted), rel=1e-5), "the base loss: LA"
    criterion = base_criterion(made, method)
    hessian = hessian_of(method, criterion, images, labels, 2)
    # the largest eigenvalue is the largest quotient: power iteration comes to it, too
    vector = hessian.draw(seeded(3))[:, 0]
    for _ in range(20):
        vector = hessian @ vector
        vector /= vector.norm()
    assert float(vector @ (hessian @ vector)) == pytest.approx(columns["lambda_max"][2], rel=0.02)


def test_another_seed_is_other_images():
    method = built(experiment())
    ends = [landscape(experiment(seed=k), method, toy_images())[1]["lambda_max"] for k in (0, 1)]
    assert ends[0] != ends[1]


def test_it_does_not_matter_how_many_images_are_in_memory():
    train = toy_images()
    risks = []
    for batch in (2, 64):
        made = experiment(batch=batch)
        risks.append(landscape(made, built(made), train)[1])
    for name in ("risk", "lambda_max", "trace"):
        assert risks[0][name] == pytest.approx(risks[1][name], rel=1e-3)


def test_a_sample_has_so_many_images_of_each_class_or_all():
    sample = ClassSample.draw(toy_images().labels, 8, 0)
    assert torch.bincount(sample.label).tolist() == [min(n, 8) for n in COUNTS]
    assert torch.equal(toy_images().labels[sample.position], sample.label)
    labels = toy_labels().labels
    several = ClassSample.draw(labels, 8, 0)
    assert torch.bincount(several.label).tolist() == [8] * 4
    assert labels[several.position, several.label].all(), "each image has the label it is for"
    assert not torch.equal(several.position, ClassSample.draw(labels, 8, 1).position)


def test_without_images_there_is_none():
    made = experiment(images=0)
    assert EvaluationConfig().landscape.images == 0, "which is the default"
    assert landscape(made, built(made), toy_images()) == ({}, {})


def test_scores_that_hang_on_nothing_are_left_out_and_named():
    made = experiment("ce")
    method = built(made)
    method.score = lambda images: torch.ones(len(images), 4)
    values, columns = landscape(made, method, toy_images())
    assert values == {"left_out": "landscape: the scores depend on no parameter"}
    assert columns == {}


def test_metrics_table_and_pictures_have_it_and_the_risk_over_the_epochs(tmp_path):
    made = experiment("more", training={"monitor_risk": 4})
    nothing = toy_images((0, 0, 0, 0))
    train, test = toy_images(), toy_images(seed=1)
    store = Store(tmp_path)
    trained, histories = run_stages(
        made, made.stages, Sets(train, nothing, test, nothing), tmp_path, store
    )
    (history,) = histories
    names = {f"risk/{group}" for group in ("many", "medium", "few", "all")}
    assert names <= history.keys()
    assert [p["step"] for p in history["risk/all"]] == [1, 2]
    weights, report = finish(made, train, nothing, test, trained["train"])
    metrics, judged = evaluating.evaluate(made, weights, train, nothing, test, report, histories)
    assert {"lambda_min", "lambda_max", "trace", "gamma", "risk"} <= {*judged.table}
    assert metrics["landscape"]["rarest"]["gamma"] == judged.table["gamma"][3]
    drawn = evaluating.draw(
        made, judged.table, judged.confusion, judged.reliability, report, histories
    )
    assert {"landscape.png", "risk_curves.png"} <= {*drawn}
    for name in ("landscape.png", "risk_curves.png"):
        drawn[name].savefig(tmp_path / name)
    again, table, *_ = evaluating.evaluate_again(made, weights, train, nothing, test)
    assert again["landscape"] == metrics["landscape"]
    assert table["trace"].tolist() == judged.table["trace"].tolist()


def test_the_risk_of_a_group_is_the_mean_over_its_classes():
    made = experiment("cb", training={"monitor_risk": 4})
    method = built(made)
    risks = RiskByGroup(made, method, toy_images())(method, method.score)
    sample = ClassSample.draw(toy_images().labels, 4, 0)
    with torch.no_grad():
        scores = method.score(take(toy_images(), sample.position))
    losses = F.cross_entropy(scores, sample.label, reduction="none")
    means = [float(losses[sample.label == c].mean()) for c in range(4)]
    many, medium, few = (made.card.longtail.groups[g] for g in ("many", "medium", "few"))
    assert risks["risk/all"] == pytest.approx(sum(means) / 4)
    for name, classes in (("many", many), ("medium", medium), ("few", few)):
        assert risks[f"risk/{name}"] == pytest.approx(sum(means[c] for c in classes) / len(classes))
