"""Our functions against values that released code gave, one file of numbers a function.

Each file names its ``source``, which is in the test's id. Losses are means over the images,
gradients are with respect to the inputs. Values have nine digits; most sources compute in float32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lt_pipeline.learning import methods
from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.data.prepare import DataConfig, prepare
from lt_pipeline.learning.data.profiles import Exponential, Step, profile_counts
from lt_pipeline.learning.data.sources import Source, load_source
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.schedule import rate_factor
from lt_pipeline.learning.evaluation.metrics.calibration import expected_calibration_error
from lt_pipeline.learning.evaluation.metrics.ood import ood_report
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.losses import config as criteria
from lt_pipeline.learning.losses import functional, margins, outliers
from lt_pipeline.learning.losses.ambiguity import energy
from lt_pipeline.learning.losses.criteria import Head
from lt_pipeline.learning.losses.decoupled import class_smoothing
from lt_pipeline.learning.losses.experts import inverse_prior
from toys import toy_card

FLOAT32 = 1e-5
PRINTED = 2e-8  # nine digits
FILES = {path.stem: json.loads(path.read_text()) for path in Path(__file__).parent.glob("*.json")}
USED = set[str]()


def golden(name: str, *cases: Any) -> Callable[[Any], Any]:
    """Give a test the ``inputs`` and what is ``expected``, once or for each of the ``cases``."""
    USED.add(name)
    file = FILES[name]
    expected = file["expected"]
    if not cases:
        return pytest.mark.parametrize(
            ("inputs", "expected"), [(file["inputs"], expected)], ids=[file["source"]]
        )
    return pytest.mark.parametrize(
        ("inputs", "expected", "case"),
        [(file["inputs"], expected[case], case) for case in cases],
        ids=[f"{file['source']}: {case}" for case in cases],
    )


def names_of(name: str) -> list[str]:
    return list(FILES[name]["expected"])


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(result: Any, expected: Any, tolerance: float = FLOAT32) -> None:
    """Assert that the largest error is below ``tolerance`` times the largest value."""
    result, expected = (torch.as_tensor(x).double().cpu() for x in (result, expected))
    assert result.shape == expected.shape
    assert float((result - expected).abs().max()) <= tolerance * float(expected.abs().max())


def close_with_gradient(
    loss: Callable[[Tensor], Tensor], at: Any, expected: dict[str, Any], prefix: str = ""
) -> None:
    """Assert a scalar ``loss`` of the values ``at``, and its gradient there."""
    point = tensor(at).requires_grad_()
    value = loss(point)
    (gradient,) = torch.autograd.grad(value, point)
    close(value.detach(), tensor(expected[f"{prefix}loss"]))
    close(gradient, tensor(expected[f"{prefix}gradient"]))


def by_criterion(
    config: criteria.CriterionBase, inputs: dict[str, Any], scale: float | None = None
) -> Callable[[Tensor], Tensor]:
    """Return the mean loss of logits, or of the cosines of a head of ``scale``."""
    counts = inputs.get("class_counts", [1] * 10)
    criterion = config.build(LongTail.from_counts(counts), Head(8, scale)).double()
    labels = torch.tensor(inputs["labels"])
    return lambda logits: criterion((scale or 1.0) * logits, labels).mean()


def method_of(name: str, counts: list[int], scale: float, **options: Any) -> Any:
    """Return the method ``name`` with cosine heads of ``scale`` for classes of ``counts``."""
    if name not in methods.available():  # a method may be deleted
        pytest.skip(f"there is no {name}")
    values = {
        "model": {"backbone": "resnet8", "head": "cosine", "scale": scale},
        name: {"options": options},
    }
    config = ExperimentConfig.resolve(name, values)
    return methods.get(name)(config.options, config.model, toy_card(counts))


def experts_first(logits: Tensor) -> Tensor:
    """Turn ``[K, B, C]`` into our ``[B, K, C]``, or back."""
    return logits.transpose(0, 1)


def test_no_file_is_unused():
    assert set(FILES) == USED


# losses


@golden("balanced_softmax")
def test_balanced_softmax(inputs, expected):
    loss = by_criterion(criteria.BalancedSoftmaxConfig(), inputs)
    close_with_gradient(loss, inputs["logits"], expected)


@golden("logit_adjustment", *names_of("logit_adjustment"))
def test_logit_adjustment(inputs, expected, case):
    config = criteria.LogitAdjustmentConfig(tau=float(case.removeprefix("tau_")))
    close(by_criterion(config, inputs)(tensor(inputs["logits"])), expected)


@golden("focal", *names_of("focal"))
def test_focal(inputs, expected, case):
    config = criteria.FocalConfig(gamma=float(case.removeprefix("gamma_")))
    close(by_criterion(config, inputs)(tensor(inputs["logits"])), expected)


@golden("label_aware_smoothing", *names_of("label_aware_smoothing"))
def test_label_aware_smoothing(inputs, expected, case):
    shape, power = case.split("_")
    config = criteria.LabelAwareSmoothingConfig(
        head=inputs["head"], tail=inputs["tail"], shape=shape, power=float(power) or 1.0
    )
    counts = tensor(inputs["class_counts"])
    smoothing = class_smoothing(counts, config.head, config.tail, shape, config.power)
    close(smoothing, tensor(expected["smoothing"]))
    close(by_criterion(config, inputs)(tensor(inputs["logits"])), expected["loss"])


@golden("geometric_mean")
def test_geometric_mean_at_p_1(inputs, expected):
    loss = by_criterion(criteria.GeometricMeanConfig(), inputs)
    close_with_gradient(loss, inputs["logits"], expected)


@golden("balanced_contrastive")
def test_balanced_contrastive(inputs, expected):
    labels, prototypes = torch.tensor(inputs["labels"]), tensor(inputs["prototypes"])
    close_with_gradient(
        lambda features: functional.balanced_contrastive(
            features.transpose(0, 1), labels, prototypes, inputs["temperature"]
        ).mean(),
        inputs["features_BVD"],
        expected,
    )


@golden("cdb_weights", *names_of("cdb_weights"))
def test_difficulty_balanced_weights_at_a_fixed_tau(inputs, expected, case):
    accuracy = tensor(inputs["accuracy"])
    known = torch.ones_like(accuracy, dtype=torch.bool)
    tau = float(case.removeprefix("tau_"))
    close(functional.cdb_weight(accuracy, known, tau), tensor(expected))


# margins, of cosines


@golden("ldam")
def test_ldam_and_its_deferred_weights(inputs, expected):
    margin = margins.LdamConfig(largest=inputs["largest"])
    plain = criteria.CrossEntropyConfig(margin=margin)
    drw = criteria.ClassBalancedConfig(beta=inputs["drw_beta"], margin=margin)
    for prefix, config in (("", plain), ("drw_", drw)):
        loss = by_criterion(config, inputs, inputs["scale"])
        close_with_gradient(loss, inputs["cosines"], expected, prefix)


@golden("dbm", *names_of("dbm"))
def test_dbm_in_front_of_two_losses(inputs, expected, case):
    _, k, _, tau = case.split("_")
    margin = margins.DbmConfig(K=float(k), tau=float(tau))
    for name, kind in (("ce", criteria.CrossEntropyConfig), ("bs", criteria.BalancedSoftmaxConfig)):
        loss = by_criterion(kind(margin=margin), inputs, inputs["scale"])
        values = {"loss": expected[name], "gradient": expected[f"{name}_gradient"]}
        close_with_gradient(loss, inputs["cosines"], values)


FACES = {
    "arcface": lambda size: margins.ArcFaceConfig(size=size),
    "cosface": lambda size: margins.CosFaceConfig(size=size),
    "sphereface": lambda size: margins.SphereFaceConfig(factor=size),
}


@golden("face_margins", *names_of("face_margins"))
def test_the_margins_of_faces_below_pi(inputs, expected, case):
    name, size = case.split("_m_")
    config = criteria.CrossEntropyConfig(margin=FACES[name](float(size.replace("_", "."))))
    few = {**inputs, "class_counts": [1] * len(inputs["cosines"][0])}
    close(by_criterion(config, few, inputs["scale"])(tensor(inputs["cosines"])), expected)


# experts


@golden("sade_loss")
def test_sade(inputs, expected):
    counts, labels = inputs["class_counts"], torch.tensor(inputs["labels"])
    sade = method_of("sade", counts, 30.0, tau=inputs["tau"])

    def loss(logits):
        sade.net.forward = lambda _: experts_first(logits)
        batch = type("Batch", (), {"images": None, "labels": labels})
        return sum(sade.loss(batch, 0.0).values())

    # the method takes float32, and theirs adds 1e-9 to the prior
    close_with_gradient(loss, inputs["logits_KBC"], expected)
    prior = LongTail.from_counts(counts).prior
    close(inverse_prior(prior), tensor(expected["inverse_prior"]))


@golden("ride_loss", *names_of("ride_loss"))
def test_ride(inputs, expected, case):
    labels = torch.tensor(inputs["labels"])
    ride = method_of(
        "ride",
        inputs["class_counts"],
        float(inputs["s"]),
        diversity=inputs["diversity"],
        temperature_gamma=inputs["reweight_factor"],
        criterion={
            "name": "class_balanced",
            "start": 0.8,
            "margin": {"name": "ldam", "largest": inputs["max_m"]},
        },
    )
    ride.start_epoch(int(case.removeprefix("epoch_")) - 1, 200)
    close_with_gradient(
        lambda logits: sum(ride._expert_terms(experts_first(logits), labels).values()),
        inputs["logits_KBC"],
        expected,
    )


@golden("lgla_loss")
def test_lgla(inputs, expected):
    labels = torch.tensor(inputs["labels"])
    lgla = method_of(
        "lgla", inputs["class_counts"], float(inputs["s"]), tau_global=inputs["tau_global"]
    )
    assert lgla.member.tolist() == expected["groups"]

    def loss(logits):
        logits = experts_first(logits)
        return lgla.expert_losses(logits, logits + lgla.shift, labels).mean(0).sum()

    close_with_gradient(loss, inputs["logits_KBC"], expected)


# outliers, calibration, OOD


@golden("outlier_exposure")
def test_outlier_exposure_and_bounded_energies(inputs, expected):
    inside = len(inputs["inside"])

    def oe(both):
        return inputs["oe_weight"] * outliers.uniform_loss(both[inside:]).mean()

    def bounded(both):
        energies = energy(both, 1.0)
        kept, away = outliers.energy_margin(
            energies[:inside], energies[inside:], inputs["m_in"], inputs["m_out"]
        )
        return inputs["energy_weight"] * (kept.mean() + away.mean())

    for name, loss in (("oe", oe), ("energy", bounded)):
        values = {"loss": expected[name], "gradient": expected[f"{name}_gradient"]}
        close_with_gradient(loss, inputs["inside"] + inputs["outside"], values)


@golden("ece", *range(len(FILES["ece"]["expected"])))
def test_the_calibration_error(inputs, expected, case):
    given = inputs["cases"][case]
    error = expected_calibration_error(tensor(given["logits"]), torch.tensor(given["labels"]), 15)
    close(error, expected)


@golden("ood_metrics", *range(len(FILES["ood_metrics"]["expected"])))
def test_ood_metrics_with_average_precision(inputs, expected, case):
    inside, outside = (tensor(inputs["cases"][case][side]) for side in ("inside", "outside"))
    labels = torch.zeros(len(inside), dtype=torch.int64)
    measured = ood_report(inside, outside, labels, LongTail.from_counts([1]))
    for ours, theirs in (
        ("auroc", "auroc"),
        ("fpr95", "fpr95"),
        ("aupr_out", "aupr_out_hendrycks"),
    ):
        close(measured[ours], expected[theirs], PRINTED)
    # the trapezoid is another number: what is called AUPR here is not it
    assert abs(measured["aupr_out"] - expected["aupr_out_openood"]) > 1e-3


# weights after training, schedules


@golden("tau_norm", *names_of("tau_norm"))
def test_tau_normalisation(inputs, expected, case):
    weight = tensor(inputs["weight"])
    method = methods.get("tau_norm")
    config = ExperimentConfig.resolve("tau_norm", {"model": {"backbone": "resnet8"}})
    plain = method(config.options, config.model, toy_card())
    plain.net.head = nn.Linear(*weight.T.shape).double()
    with torch.no_grad():
        plain.net.head.weight.copy_(weight)
    plain.change(float(case.removeprefix("tau_")))
    close(plain.net.head.weight.detach(), tensor(expected))
    assert not plain.net.head.bias.any()


@golden("schedules", "ldam_drw", "mislas_stage1")
def test_the_rate_of_every_epoch_behind_the_warm_up(inputs, expected, case):
    # the first five epochs are a stair there and a ramp here
    config = TrainingConfig(
        epochs=inputs["epochs"],
        learning_rate=inputs["base"],
        schedule="step",
        milestones=(0.8, 0.9),
        decay={"ldam_drw": 0.01, "mislas_stage1": 0.1}[case],
        warmup_epochs=5,
    )
    per_epoch = 7
    steps = config.epochs * per_epoch
    for epoch in range(5, config.epochs):
        for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            rates = inputs["base"] * rate_factor(config, step, steps, per_epoch)
            assert rates == pytest.approx(expected[epoch], rel=1e-12), epoch


# long tails


@golden("longtail_counts", *names_of("longtail_counts"))
def test_the_images_of_every_class(inputs, expected, case):
    name, profile, ratio = case.split("_")
    classes = int(name.removeprefix("cifar"))
    per_class = profile_counts(
        {"exp": Exponential(), "step": Step()}[profile],
        classes=classes,
        max_per_class=inputs["images"] // classes,
        imbalance_ratio=float(ratio),
    )
    assert per_class == expected


def index_of(ratio: int, source: Any) -> Tensor:
    config = DataConfig(imbalance_ratio=ratio, index="published", seed=0)
    return prepare(source, config).train_index


def sorted_source(classes: int) -> Source:
    """The 50,000 labels of CIFAR one class after the other, with images of one pixel."""
    labels = torch.arange(classes).repeat_interleave(50_000 // classes)
    names = tuple(str(c) for c in range(classes))
    blank = torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8)
    return Source(ImageSet(blank, labels, names), ImageSet(blank[:0], labels[:0], names))


SUBSETS = ("published_subset_cifar10_ir100", "published_subset_cifar100_ir100")


def published(test: Any) -> Any:
    """Give a test both published subsets."""
    USED.update(SUBSETS)
    files = [FILES[name] for name in SUBSETS]
    return pytest.mark.parametrize(
        ("inputs", "expected"),
        [(file["inputs"], file["expected"]) for file in files],
        ids=[f"{file['source']}: {file['inputs']['set']}" for file in files],
    )(test)


@published
def test_the_published_shuffles_of_every_class(inputs, expected):
    """Shuffles move places: of images in another stored order they choose the same ranks.

    So the published positions, ranked within their class, are ours of labels that are sorted.
    """
    source = sorted_source(int(inputs["set"].removeprefix("cifar")))
    ours, theirs = index_of(inputs["imbalance_ratio"], source), torch.tensor(expected["index"])
    assert len(ours) == len(theirs)
    sizes = torch.bincount(source.train.labels[ours]).tolist()
    for mine, other in zip(ours.split(sizes), theirs.split(sizes), strict=True):
        assert torch.equal(mine.argsort(), other.argsort())


@published
def test_the_published_positions_in_the_real_files(inputs, expected, raw_cifar):
    real = load_source(inputs["set"], raw_cifar)
    assert index_of(inputs["imbalance_ratio"], real).tolist() == expected["index"]
    for ratio, sha256 in expected["sha256_of_int64_le"].items():
        positions = index_of(int(ratio), real)
        assert len(positions) == expected["images"][ratio]
        assert hashlib.sha256(positions.numpy().astype("<i8").tobytes()).hexdigest() == sha256
