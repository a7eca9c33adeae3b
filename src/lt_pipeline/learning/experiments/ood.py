"""Show a method images of no class: which detector tells them apart, and why."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lt_pipeline.learning.data.mixtures import Mixtures
from lt_pipeline.learning.data.ood import PAPER_SETS, InDistribution, load_ood, same_images
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.device import choose_device
from lt_pipeline.learning.evaluation.detectors import (
    ModelOutputs,
    build_detectors,
    extract_outputs,
    joint_energy,
    linear_readout,
    of_several,
)
from lt_pipeline.learning.evaluation.diagnostics import gradient_conflict
from lt_pipeline.learning.evaluation.diagnostics.embedding import sample_by_group, tsne
from lt_pipeline.learning.evaluation.diagnostics.logit_shift import by_group
from lt_pipeline.learning.evaluation.metrics.catalog import placed
from lt_pipeline.learning.evaluation.metrics.ood import mean_report, ood_report
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.figures import ood as figures
from lt_pipeline.learning.losses.ambiguity import energy
from lt_pipeline.learning.methods.families.base import Method
from lt_pipeline.learning.models.merging import StateDict
from lt_pipeline.learning.progress import track

LOGGER = logging.getLogger(__name__)
Values = dict[str, Any]
# Gradients are compared of this many images a group, with as many of every OOD set.
COMPARED = 200
# Conflicts of the report, and what the headline calls their cosines.
CONFLICTS = {"conflict": "gradient_cosine", "conflict_adjusted": "gradient_cosine_adjusted"}


def evaluate_ood(
    experiment: Experiment,
    model: StateDict,
    train: Images,
    test: Images,
    raw_folder: Path,
) -> tuple[Values, dict[str, Figure]]:
    """Return what every detector makes of every OOD set, and pictures.

    A set whose files are not there is left out with a line that says what to put where, and
    ``averaged_over`` names those that the means are of.
    """
    report = examine(experiment, model, train, test, raw_folder)
    return report, _pictures(experiment, report)


def examine(
    experiment: Experiment,
    model: StateDict,
    train: Images,
    test: Images,
    raw_folder: Path,
) -> Values:
    """Return the report of ``evaluate_ood``, all that its pictures are drawn from."""
    config, method = experiment.config, experiment.finished(model, whole=True)
    sets, left_out = _sets(config, method, test, raw_folder)
    for name, reason in left_out.items():
        LOGGER.info("OOD set %s is left out: %s", name, reason)
    if not sets:
        return {"left_out": left_out, "averaged_over": []}
    device = experiment.device
    method.to(device)
    if method.card.longtail.several:
        _say_left_out(config.evaluation.detectors)
        test = test[test.labels.bool().any(1)]  # one without a label is of no class itself
    id_outputs = extract_outputs(method, test, device)
    ood_outputs = {name: extract_outputs(method, images, device) for name, images in sets.items()}
    report = _detect(config, method, train, id_outputs, ood_outputs, test)
    common = {
        "detectors": report,
        "paper_means": {name: _paper_means(of) for name, of in report.items()},
        "averaged_over": list(sets),
        "left_out": left_out,
    }
    if method.card.longtail.several:
        # gradients are those of a cross-entropy, and a mixture's lam is of one label each
        energies = _energies(joint_energy, id_outputs, ood_outputs, test, method)
        return {**common, "energy": energies}
    mixed = Mixtures(test, config.seed)
    mixed_outputs = extract_outputs(method, mixed, device)
    seen = (method, id_outputs, ood_outputs, (mixed, mixed_outputs), test, config.seed)
    log_prior = method.card.longtail.log_prior
    return {
        **common,
        "energy": _energies(
            energy, id_outputs, {"mixed": mixed_outputs, **ood_outputs}, test, method
        ),
        "conflict": _conflict(*seen, torch.zeros_like(log_prior)),
        "conflict_adjusted": _conflict(*seen, log_prior),
        "embedding": _embedding(config, method, id_outputs, ood_outputs, mixed_outputs, test),
    }


def _say_left_out(asked: Sequence[str]) -> None:
    """Say which of the detectors that were ``asked`` for have no form for several labels."""
    kept = of_several(asked)
    if others := [name for name in asked if name not in kept]:
        LOGGER.info("Left out, as they are of one label an image: %s", ", ".join(others))


def _pictures(experiment: Experiment, report: Values) -> dict[str, Figure]:
    title = experiment.title
    if not report["averaged_over"]:
        # an empty set of pictures cannot be saved
        return {"detection.png": figures.no_set(report["left_out"], title)}
    detectors = report["detectors"]
    first = next(iter(detectors))
    drawn = {
        "detection": figures.ood_by_set(detectors, title),
        "groups": figures.ood_by_group(detectors[first], first, title),
    }
    if "conflict" in report:
        adjusted = report["conflict_adjusted"], f"{title}, adjusted logits"
        drawn["conflict"] = figures.conflict(report["conflict"], title)
        drawn["conflict_adjusted"] = figures.conflict(*adjusted)
    if plane := report.get("embedding"):
        ood_points, mixed = (
            {name: torch.tensor(points) for name, points in plane[key].items()}
            for key in ("outside", "mixed")
        )
        id_points, labels = torch.tensor(plane["inside"]), torch.tensor(plane["labels"])
        longtail = experiment.card.longtail
        drawn["embedding"] = figures.embedding(
            id_points, labels, longtail, ood_points, mixed, title
        )
    return {f"{name}.png": figure for name, figure in drawn.items()}


def summary_metrics(report: Values) -> Values:
    """Return what tables and MLflow show of ``evaluate_ood``'s report: what a reader can take in.

    AUROC and FPR95 of every detector and set, the means whole, those over a paper's sets among
    them, and mean gradient cosines.
    """
    if not report["averaged_over"]:
        return {}
    metrics = [metric for metric in placed("comparison") if metric.from_detection]
    shown: Values = {
        name: {
            where: values if where == "mean" else {m.name: values[m.name] for m in metrics}
            for where, values in sets.items()
        }
        | report["paper_means"][name]
        for name, sets in report["detectors"].items()
    }
    for key, shown_as in CONFLICTS.items():
        of_sets = report.get(key, {}).items()
        shown[shown_as] = {name: values["cosine"]["all"] for name, values in of_sets}
    return {**shown, "sets": len(report["averaged_over"])}


def _sets(
    config: ExperimentConfig, method: Method, test: Images, raw_folder: Path
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the sets to look at, and why others are not.

    What methods may train on is no test for any of them, so that their means are of the same sets.
    """
    data, evaluation = method.card.config, config.evaluation
    auxiliary = data.auxiliary.name if data.auxiliary else ""
    to_train_on = {
        name: f"its images are there to be trained on (data.auxiliary.name = {auxiliary})"
        for name in evaluation.ood_names
        if same_images(name, auxiliary)
    }
    names = [name for name in evaluation.ood_names if name not in to_train_on]
    limits = evaluation.ood_limit, evaluation.ood_made
    context = InDistribution(raw_folder, test, data.source, data.seed, *limits)
    sets, missing = load_ood(names, context)
    return sets, {**to_train_on, **missing}


def _detect(
    config: ExperimentConfig,
    method: Method,
    train: Images,
    id_outputs: ModelOutputs,
    ood_outputs: dict[str, ModelOutputs],
    test: Images,
) -> dict[str, dict[str, dict[str, float]]]:
    """Return {detector: {set: report}}, each with the mean over the sets."""
    evaluation, device = config.evaluation, choose_device(config.device)
    detectors = build_detectors(evaluation.detectors, method, train, evaluation.detector, device)
    result = {}
    for name, detector in track(detectors.items(), "detectors", len(detectors)):
        id_score = detector(id_outputs)
        result[name] = {
            where: ood_report(id_score, detector(seen), test.labels, method.card.longtail)
            for where, seen in track(ood_outputs.items(), f"{name} on OOD sets", len(ood_outputs))
        }
        result[name]["mean"] = mean_report(list(result[name].values()))
    return result


def _paper_means(sets: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the means over the DARL paper's seven sets, and over six with LSUN's two as one.

    The paper says six and lists seven. Nothing is returned unless all of them are there.
    """
    if not set(PAPER_SETS) <= sets.keys():
        return {}
    lsun = mean_report([sets["lsun_crop"], sets["lsun_resize"]])
    others = [sets[name] for name in PAPER_SETS if not name.startswith("lsun")]
    return {
        "of_7": mean_report([sets[name] for name in PAPER_SETS]),
        "of_6": mean_report([*others, lsun]),
    }


def _some(features: Tensor, count: int) -> Tensor:
    """Return at most ``count`` rows, from all over: sets with files are sorted by their classes."""
    return features[torch.linspace(0, len(features) - 1, min(count, len(features))).long()]


def _energies(
    energies: Callable[[Tensor, float], Tensor],
    id_outputs: ModelOutputs,
    others: dict[str, ModelOutputs],
    test: Images,
    method: Method,
) -> dict[str, float]:
    """Return mean ``energies`` at temperature 1, of the test images by group."""
    return {
        **by_group(energies(id_outputs.logits, 1.0), test.labels.cpu(), method.card.longtail),
        **{name: float(energies(seen.logits, 1.0).mean()) for name, seen in others.items()},
    }


def _conflict(
    method: Method,
    id_outputs: ModelOutputs,
    ood_outputs: dict[str, ModelOutputs],
    mixtures: tuple[Mixtures, ModelOutputs],
    test: Images,
    seed: int,
    shift: Tensor,
) -> dict[str, dict[str, dict[str, float]]]:
    """Return how gradients by the readout agree with those of the test images (equations 1 to 5).

    All losses are cross-entropies of the method's logits as they are at test, those to labels with
    ``shift`` ``[C]`` added: nothing, or the log prior of equation 7, as in training, which section
    3.2 says makes tail classes suffer more. Outlier exposure has no labels to adjust for. The other
    images are, in all pairs, those of each set under outlier exposure and the mixtures under the
    loss of their two labels (``mixed``); and paired with the first image in it, each mixture under
    the latter (``own_mixture``) and under outlier exposure (``own_mixture_as_outlier``): that pair
    differs in the loss alone. The readout is linear: in features of unit length under a cosine
    head, and in those of all experts.
    """
    longtail, labels = method.card.longtail, test.labels.cpu()
    chosen = sample_by_group(labels, longtail, COMPARED, seed)
    readout = method.net.head
    features, weight, bias = linear_readout(readout, id_outputs.features[chosen])
    head = gradient_conflict.Readout(weight, bias if hasattr(readout, "bias") else None)
    classes = longtail.classes
    one_hot = torch.eye(classes, dtype=torch.float64)
    own = gradient_conflict.residual(head.logits(features) + shift, one_hot[labels[chosen]])
    result = {}
    for name, seen in ood_outputs.items():
        others = linear_readout(readout, _some(seen.features, COMPARED))[0]
        level = torch.full((len(others), classes), 1 / classes)
        pushed = gradient_conflict.residual(head.logits(others), level)
        result[name] = gradient_conflict.conflict_by_group(
            own, features, labels[chosen], pushed, others, head, longtail
        )
    mixed, mixed_outputs = mixtures
    lam = mixed.lam[chosen, None].double()
    target = lam * one_hot[mixed.first[chosen]] + (1 - lam) * one_hot[mixed.second[chosen]]
    others = linear_readout(readout, mixed_outputs.features[chosen])[0]
    pulled = gradient_conflict.residual(head.logits(others) + shift, target)
    pushed = gradient_conflict.residual(head.logits(others), torch.full_like(target, 1 / classes))
    given = (own, features, labels[chosen])
    rest = (others, head, longtail)
    paired = gradient_conflict.paired_conflict_by_group
    return {
        **result,
        "mixed": gradient_conflict.conflict_by_group(*given, pulled, *rest),
        "own_mixture": paired(*given, pulled, *rest),
        "own_mixture_as_outlier": paired(*given, pushed, *rest),
    }


def _embedding(
    config: ExperimentConfig,
    method: Method,
    id_outputs: ModelOutputs,
    ood_outputs: dict[str, ModelOutputs],
    mixed_outputs: ModelOutputs,
    test: Images,
) -> Values:
    """Return t-SNE positions of test images, mixtures and OOD images (figures 2, 6), if asked."""
    size, longtail, labels = config.evaluation.embedding, method.card.longtail, test.labels.cpu()
    if not size:
        return {}
    chosen = sample_by_group(labels, longtail, size, config.seed)
    parts = [id_outputs.features[chosen], _some(mixed_outputs.features[chosen], size)]
    parts += [_some(seen.features, size) for seen in ood_outputs.values()]
    flat = [linear_readout(method.net.head, part)[0] for part in parts]
    positions = tsne(torch.cat(flat), config.seed).split([len(part) for part in flat])
    points = [part.tolist() for part in positions]
    return {
        "inside": points[0],
        "labels": labels[chosen].tolist(),
        "mixed": {"mixed": points[1]},
        "outside": dict(zip(ood_outputs, points[2:], strict=True)),
    }
