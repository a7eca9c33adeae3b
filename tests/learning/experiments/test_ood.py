from __future__ import annotations

import copy
import json
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.data.mixtures import Mixtures
from lt_pipeline.learning.data.ood import OOD_SETS, InDistribution, load_ood
from lt_pipeline.learning.data.protocol import take
from lt_pipeline.learning.evaluation.detectors import DETECTORS
from lt_pipeline.learning.evaluation.metrics.ood import mean_report
from lt_pipeline.learning.experiments import ood as module
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.experiments.ood import CONFLICTS, evaluate_ood, summary_metrics
from lt_pipeline.learning.schema import numbers
from toys import COUNTS, toy_card, toy_images

GROUPS = ("many", "medium", "few")
MADE = ("gaussian_noise", "uniform_noise", "permuted_pixels", "blurred")
MIXED = ("mixed", "own_mixture", "own_mixture_as_outlier")
CLASSES = len(COUNTS)


class Run:
    """A finished toy method, and the node on it."""

    def __init__(self, folder, method="ce", model=None, per_class=6, **evaluation):
        parameters = {
            "model": {"backbone": "resnet8", **(model or {})},
            "evaluation": {
                "ood": MADE[:2],
                "ood_made": 200,
                "detectors": ("msp", "energy"),
                **evaluation,
            },
            "device": "cpu",
            "seed": 3,
        }
        self.experiment = Experiment(ExperimentConfig.resolve(method, parameters), toy_card())
        self.train, self.test = toy_images(), toy_images((per_class,) * CLASSES, seed=1)
        self.folder = folder
        made = self.experiment.build()
        made.merge_for_inference()
        # a head that is sure of something, so that gradients differ
        for parameter in made.net.head.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        self.weights = dict(made.state_dict())

    def judge(self):
        return evaluate_ood(self.experiment, self.weights, self.train, self.test, self.folder)

    @property
    def method(self):
        return self.experiment.finished(self.weights)

    @property
    def settings(self):
        return self.experiment.card.settings

    @property
    def seed(self):
        return self.experiment.config.seed

    def with_seed(self, seed):
        """The same weights, looked at with another seed."""
        other = copy.copy(self)
        config = self.experiment.config.model_copy(update={"seed": seed})
        other.experiment = replace(self.experiment, config=config)
        return other

    def outside(self, name):
        seed, made = self.settings["seed"], self.experiment.config.evaluation.ood_made
        context = InDistribution(self.folder, self.test, "digits", seed, made=made)
        return load_ood([name], context)[0][name]


# which sets


def test_a_set_that_is_missing_is_named_with_what_to_put_where_and_the_mean_is_of_the_others(
    tmp_path, caplog
):
    run = Run(tmp_path, ood=("svhn", "uniform_noise", "digits", "folder:mine", "blurred"))
    with caplog.at_level(logging.INFO, logger=module.__name__):
        report, figures = run.judge()
    assert report["averaged_over"] == ["uniform_noise", "blurred"]
    assert list(report["left_out"]) == ["svhn", "digits", "folder:mine"]
    assert "test_32x32.mat" in report["left_out"]["svhn"]
    assert str(tmp_path) in report["left_out"]["svhn"]
    assert report["left_out"]["digits"] == "is the in-distribution source"
    said = [record.getMessage() for record in caplog.records if record.name == module.__name__]
    assert len(said) == 3
    for name, line in zip(report["left_out"], said, strict=True):
        assert line == f"OOD set {name} is left out: {report['left_out'][name]}"
    for sets in report["detectors"].values():
        assert list(sets) == ["uniform_noise", "blurred", "mean"]
        assert sets["mean"] == pytest.approx(mean_report([sets["uniform_noise"], sets["blurred"]]))
        assert sets["uniform_noise"] != sets["blurred"]
    assert figures


@pytest.mark.parametrize("method", ["ce", "oe"])
@pytest.mark.parametrize(
    ("auxiliary", "judged"),
    [
        ("gaussian_noise", ["uniform_noise", "textures10"]),
        ("folder:textures10", ["gaussian_noise", "uniform_noise"]),
        ("textures", ["gaussian_noise", "uniform_noise"]),
        ("folder:other", ["gaussian_noise", "uniform_noise", "textures10"]),
    ],
)
def test_what_is_there_to_train_on_is_no_test_for_any_method(tmp_path, method, auxiliary, judged):
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 16, 16), dtype=np.uint8)
    (tmp_path / "ood").mkdir()
    np.savez(tmp_path / "ood" / "textures10.npz", images=images)
    run = Run(tmp_path, method, ood=(*MADE[:2], "textures10"))
    run.settings["auxiliary"] = {"name": auxiliary, "images": 10}
    report, _ = run.judge()
    assert report["averaged_over"] == judged
    assert all("to be trained on" in line for line in report["left_out"].values())
    assert {*judged, *report["left_out"]} == {*MADE[:2], "textures10"}


def test_the_papers_means_are_of_all_its_sets_or_not_there():
    sets = {name: {"auroc": 0.1 * place} for place, name in enumerate(module.PAPER_SETS)}
    assert module._paper_means({**sets, "blurred": {"auroc": 1.0}}) == {
        "of_7": {"auroc": pytest.approx(0.3)},
        # 0 to 0.4, and 0.55 of 0.5 and 0.6
        "of_6": {"auroc": pytest.approx(1.55 / 6)},
    }
    del sets["svhn"]
    assert module._paper_means(sets) == {}


@pytest.mark.parametrize("there", [True, False])
def test_the_papers_means_are_in_the_headline_where_they_are_there(there):
    means = {"of_7": {"auroc": 0.3, "auroc_few": 0.2}} if there else {}
    report = {
        "detectors": {"odin": {"svhn": {"auroc": 0.3, "fpr95": 0.5}, "mean": {"auroc": 0.4}}},
        "paper_means": {"odin": means},
        "conflict": {},
        "conflict_adjusted": {},
        "averaged_over": ["svhn"],
    }
    metrics = numbers({"ood": summary_metrics(report)})
    assert metrics.get("ood/odin/of_7/auroc_few") == (0.2 if there else None)
    assert metrics["ood/odin/mean/auroc"] == 0.4


@pytest.mark.parametrize("none", [(), False, ("svhn",)])
def test_without_a_set_there_are_no_numbers_and_a_picture_says_so(tmp_path, none):
    report, figures = Run(tmp_path, ood=none).judge()
    assert list(figures) == ["detection.png"], "an empty set of pictures cannot be saved"
    said = figures["detection.png"].texts[-1].get_text()
    assert ("svhn" in said) == bool(none)
    assert report["averaged_over"] == []
    assert set(report["left_out"]) == set(none or ())
    assert set(report) == {"averaged_over", "left_out"}
    assert summary_metrics(report) == {}


def test_true_is_every_set_that_is_known(tmp_path):
    report, _ = Run(tmp_path, ood=True, per_class=3).judge()
    assert report["averaged_over"] == list(MADE)
    assert {*report["averaged_over"], *report["left_out"]} == set(OOD_SETS)


def test_a_set_is_of_at_most_so_many_images_and_a_made_one_of_fewer(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 16, 16), dtype=np.uint8)
    (tmp_path / "ood").mkdir()
    np.savez(tmp_path / "ood" / "mine.npz", images=images)
    seen, whole = [], module.extract_outputs

    def extract_outputs(method, images, *rest):
        seen.append(tuple(take(images, torch.arange(len(images))).shape))
        return whole(method, images, *rest)

    monkeypatch.setattr(module, "extract_outputs", extract_outputs)
    run = Run(tmp_path, ood=("folder:mine", "uniform_noise"), ood_limit=4, ood_made=3)
    report, _ = run.judge()
    assert report["averaged_over"] == ["folder:mine", "uniform_noise"]
    # the test images, so many of each set, the mixtures
    assert seen == [(24, 1, 8, 8), (4, 1, 8, 8), (3, 1, 8, 8), (24, 1, 8, 8)]


# what is reported


def test_the_report_has_every_detector_and_set_and_goes_through_json(tmp_path):
    run = Run(tmp_path, detectors=("max_logit", "own"))
    report, figures = run.judge()
    assert json.loads(json.dumps(report)) == report
    assert set(report) == {
        *("detectors", "paper_means", "energy", "conflict", "conflict_adjusted"),
        *("embedding", "averaged_over", "left_out"),
    }
    assert list(report["detectors"]) == ["max_logit", "own"]
    for sets in report["detectors"].values():
        assert list(sets) == [*MADE[:2], "mean"]
        for values in sets.values():
            assert {f"auroc_{group}" for group in GROUPS} < set(values)
            assert all(0 <= value <= 1 for value in values.values())
    assert list(report["energy"]) == [*GROUPS, "mixed", *MADE[:2]]
    for key in CONFLICTS:
        assert list(report[key]) == [*MADE[:2], *MIXED]
        for values in report[key].values():
            assert set(values) == {"cosine", "negative_share"}
            assert set(values["cosine"]) == {*GROUPS, "all"}
    assert set(figures) == {"detection.png", "groups.png", *(f"{key}.png" for key in CONFLICTS)}


def test_the_numbers_are_those_of_the_methods_own_scores(tmp_path):
    run = Run(tmp_path)
    report, _ = run.judge()
    with torch.no_grad():
        logits = run.method.score(run.test.images)
        strange = run.method.score(run.outside("uniform_noise"))
    inside, outside = (x.double().softmax(1).amax(1) for x in (logits, strange))
    above = (inside[:, None] > outside).double() + 0.5 * (inside[:, None] == outside)
    metrics = report["detectors"]["msp"]["uniform_noise"]
    assert metrics["auroc"] == pytest.approx(float(above.mean()), abs=1e-3)
    few = run.test.labels == 3
    assert metrics["auroc_few"] == pytest.approx(float(above[few].mean()), abs=5e-3)
    energies = -logits.double().logsumexp(1)
    assert report["energy"]["few"] == pytest.approx(float(energies[few].mean()), rel=1e-4)
    wanted = float(-strange.double().logsumexp(1).mean())
    assert report["energy"]["uniform_noise"] == pytest.approx(wanted, rel=1e-4)


def test_the_same_run_gives_the_same_report_and_another_seed_other_mixtures(tmp_path):
    run = Run(tmp_path)
    one, two = (run.judge()[0] for _ in range(2))
    assert one == two
    other = run.with_seed(run.seed + 1).judge()[0]
    assert other["energy"]["few"] == one["energy"]["few"]
    assert other["energy"]["mixed"] != one["energy"]["mixed"]


@pytest.mark.parametrize("asked", [0, 2])
def test_features_are_drawn_in_the_plane_only_where_asked(tmp_path, monkeypatch, asked):
    seen, whole = [], module.tsne

    def placed(features, seed):
        seen.append((len(features), seed))
        return whole(features, seed)

    monkeypatch.setattr(module, "tsne", placed)
    _, figures = Run(tmp_path, embedding=asked).judge()
    assert ("embedding.png" in figures) == bool(asked)
    # two of each of three groups, two mixtures, two of each of two sets
    assert seen == ([(3 * asked + asked + 2 * asked, 3)] if asked else [])


def test_the_headline_is_small_and_has_no_more_than_metrics(tmp_path):
    run = Run(tmp_path)
    report, _ = run.judge()
    shown = summary_metrics(report)
    values = numbers({"ood": shown})
    sets = 2
    of_the_mean = 5 + 2 * len(GROUPS)
    # detectors * (the mean whole, two of every set), two cosines for every set and the mixtures,
    # and how many sets there are
    assert len(values) == 2 * (of_the_mean + 2 * sets) + 2 * (sets + 3) + 1
    assert values["ood/sets"] == sets
    assert all(math.isfinite(value) for value in values.values())
    assert shown["energy"]["mean"] == report["detectors"]["energy"]["mean"]
    assert set(shown["msp"]["uniform_noise"]) == {"auroc", "fpr95"}
    for key, name in CONFLICTS.items():
        assert values[f"ood/{name}/mixed"] == report[key]["mixed"]["cosine"]["all"]
    # what studies put into their tables
    assert "ood/msp/mean/auroc" in values
    assert "ood/msp/mean/fpr95" in values


def test_every_detector_is_judged(tmp_path):
    told = {"knn": 3, "nnguide": 4}
    run = Run(tmp_path, detectors=tuple(DETECTORS), detector=told, per_class=4)
    report, figures = run.judge()
    assert list(report["detectors"]) == list(DETECTORS)
    assert "groups.png" in figures


def test_some_rows_are_from_all_over():
    rows = torch.arange(11)
    assert module._some(rows, 3).tolist() == [0, 5, 10]
    assert torch.equal(module._some(rows, 11), rows)
    assert torch.equal(module._some(rows, 20), rows)
    assert module._some(rows, 1).tolist() == [0]


# how gradients conflict


def gradients(method, images, targets, shift=0.0):
    """Gradients of the cross-entropy by the head's own parameters, one image at a time."""
    parameters = list(method.net.head.parameters())
    with torch.no_grad():
        features = method.net.features(images)
    rows = []
    for f, q in zip(features, targets, strict=True):
        loss = F.cross_entropy(method.net.head(f[None]).double() + shift, q[None])
        gradient = torch.autograd.grad(loss, parameters)
        rows.append(torch.cat([g.flatten() for g in gradient]).double())
    rows = torch.stack(rows)
    return rows / rows.norm(dim=1, keepdim=True)


def by_group(values, labels):
    masks = LongTail.group_members(toy_card().longtail, labels)
    means = {name: float(values[mask].mean()) for name, mask in masks.items()}
    return {**means, "all": float(values.mean())}


@pytest.mark.parametrize("key", CONFLICTS)
def test_conflicts_of_a_linear_head_are_those_of_autograd(tmp_path, key):
    run = Run(tmp_path)
    report, _ = run.judge()
    method, test, one_hot = run.method, run.test, torch.eye(CLASSES).double()
    shift = method.card.longtail.log_prior if key == "conflict_adjusted" else 0.0
    own = gradients(method, test.images, one_hot[test.labels], shift)
    outside = run.outside("uniform_noise")
    level = torch.full((len(outside), CLASSES), 1 / CLASSES).double()
    pairs = own @ gradients(method, outside, level).T
    conflict = report[key]["uniform_noise"]
    assert conflict["cosine"] == pytest.approx(by_group(pairs.mean(1), test.labels), abs=1e-4)
    conflicts = (pairs < 0).double().mean(1)
    assert conflict["negative_share"] == pytest.approx(by_group(conflicts, test.labels), abs=2e-3)

    mixed = Mixtures(test, run.seed)
    images = take(mixed, torch.arange(len(mixed)))
    lam = mixed.lam[:, None].double()
    target = lam * one_hot[mixed.first] + (1 - lam) * one_hot[mixed.second]
    blended = gradients(method, images, target, shift)
    conflict = report[key]["mixed"]["cosine"]
    assert conflict == pytest.approx(by_group((own @ blended.T).mean(1), test.labels), abs=1e-4)
    pushed = gradients(method, images, torch.full_like(target, 1 / CLASSES))
    conflict = report[key]["own_mixture_as_outlier"]["cosine"]
    assert conflict == pytest.approx(by_group((own * pushed).sum(1), test.labels), abs=1e-4)
    partners = (own * blended).sum(1)
    conflict = report[key]["own_mixture"]
    assert conflict["cosine"] == pytest.approx(by_group(partners, test.labels), abs=1e-4)
    conflicts = by_group((partners < 0).double(), test.labels)
    assert conflict["negative_share"] == pytest.approx(conflicts, abs=1e-6)
    # neither all alike nor all at odds, which wrong targets could give as well
    assert 0 < conflicts["all"] < 1


def test_a_head_without_a_bias_has_no_gradient_of_one(tmp_path):
    run = Run(tmp_path, "balanced_softmax", {"head": "cosine", "scale": 4.0})
    report, _ = run.judge()
    method, test = run.method, run.test
    outside = run.outside("uniform_noise")
    weight = 4 * F.normalize(method.net.head.weight.detach().double(), dim=1)

    def outer(images, targets):
        with torch.no_grad():
            unit = F.normalize(method.net.features(images).double(), dim=1)
        rest = (unit @ weight.T).softmax(1) - targets
        return F.normalize((rest[:, :, None] * unit[:, None]).flatten(1), dim=1)

    own = outer(test.images, torch.eye(CLASSES).double()[test.labels])
    level = torch.full((len(outside), CLASSES), 1 / CLASSES).double()
    wanted = by_group((own @ outer(outside, level).T).mean(1), test.labels)
    assert report["conflict"]["uniform_noise"]["cosine"] == pytest.approx(wanted, abs=1e-4)


def test_only_so_many_images_are_compared(tmp_path, monkeypatch):
    sizes = []
    whole = module.gradient_conflict.conflict_by_group

    def watched(own, features, labels, pushed, others, head, longtail):
        sizes.append((len(own), len(pushed)))
        return whole(own, features, labels, pushed, others, head, longtail)

    monkeypatch.setattr(module.gradient_conflict, "conflict_by_group", watched)
    monkeypatch.setattr(module, "COMPARED", 4)
    Run(tmp_path).judge()
    assert sizes == [(12, 4), (12, 4), (12, 12)] * 2


@pytest.mark.parametrize("name", ["sade", "dqroute", "lgla", "darl"])
def test_experts_are_judged(tmp_path, name):
    report, figures = Run(tmp_path, name, {"head": "cosine"}, detectors=("odin", "energy")).judge()
    assert all(math.isfinite(value) for value in numbers({"ood": summary_metrics(report)}).values())
    assert len(figures) == 4
