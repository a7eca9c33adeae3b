"""Run an experiment, stage by stage: what the DAG, studies, sweeps and the contract tests call."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import pandas as pd
import torch
from torch import Tensor

from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.parallel import alone, results, side_by_side
from lt_pipeline.learning.engine.predict import predict
from lt_pipeline.learning.engine.protocol import objective_of
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.engine.trainer import History, Report, fit
from lt_pipeline.learning.experiments.evaluate import as_column, evaluate
from lt_pipeline.learning.experiments.experiment import Experiment, Sets
from lt_pipeline.learning.experiments.geometry import geometry
from lt_pipeline.learning.experiments.landscape import RiskByGroup
from lt_pipeline.learning.experiments.ood import examine, summary_metrics
from lt_pipeline.learning.experiments.stages import measure_stages, stage_numbers
from lt_pipeline.learning.experiments.store import Store, stage_resume
from lt_pipeline.learning.methods.families.base import Method
from lt_pipeline.learning.models.merging import StateDict
from lt_pipeline.learning.models.network import parameter_count
from lt_pipeline.learning.progress import shown
from lt_pipeline.learning.schema import UserError, numbers

Values = dict[str, Any]


class Trained(NamedTuple):
    """What a stage that trains gives: its checkpoint and its history."""

    checkpoint: StateDict
    history: History


class Start(NamedTuple):
    """What a stage starts from: earlier stages' checkpoints, and the subsets where it sees one."""

    checkpoints: Mapping[str, StateDict] = {}
    subsets: pd.DataFrame | None = None

    def seen(self, stage: Stage, train: Images) -> Images:
        """Return the training images that ``stage`` sees.

        Raises:
            UserError: if the subsets are of another training set.
        """
        if self.subsets is None:
            return train
        names = [stage.name] if stage.trains else stage.start
        drawn = self.subsets[self.subsets["subset"].isin(names)]
        positions = torch.from_numpy(drawn["position"].to_numpy(copy=True))
        known = [str(label) for label in drawn["label"]]
        if not (positions < len(train)).all() or known != _written(train.labels[positions]):
            raise UserError("the subsets were drawn from other images: run the node subsets first")
        return train[positions if stage.trains else positions.unique()]


def groups(stages: Iterable[Stage]) -> Iterator[list[Stage]]:
    """Yield the stages that are one step of the DAG: one, or a group that is trained together."""
    for _, members in groupby(stages, lambda stage: stage.group or stage.name):
        yield list(members)


def draw_subsets(experiment: Experiment, train: Images) -> pd.DataFrame:
    """Return which training images each stage with a subset sees: a row an image and subset."""
    drawn = {
        stage.name: stage.subset.draw(train.labels, experiment.config.seed)
        for stage in experiment.stages
        if stage.subset and stage.trains
    }
    parts = [
        pd.DataFrame({"subset": name, "position": p.numpy(), "label": as_column(train.labels[p])})
        for name, p in drawn.items()
    ]
    return pd.concat(parts, ignore_index=True)


def _written(labels: Tensor) -> list[str]:
    """Return ``labels`` as a table has them that was read back."""
    return [str(label) for label in as_column(labels)]


def train_stages(
    experiment: Experiment,
    stages: Sequence[Stage],
    sets: Sets,
    start: Start,
    folder: Path,
    report: Report | None = None,
) -> list[Trained]:
    """Train ``stages``, one or a group; one that was killed goes on from its file in ``folder``.

    The stages of a group have one start and are trained side by side. ``report`` is called after
    every epoch.

    Raises:
        UserError: if images do not suit the augmentation, or as ``fit`` says; of a group's stages
            once the others have come to their ends.
    """
    config, method = experiment.config, experiment.begun(stages[0], start.checkpoints)
    if not experiment.on_features:
        config.training.augment.check(sets.train.shape)
    if objective_of(method, stages[0]).views:
        config.training.views.check(sets.train.shape)
    watched = {"validation": experiment.seen(sets.validation)}
    if config.training.monitor_test:
        watched["test"] = experiment.seen(sets.test)
    whole, beside = (experiment.seen(s, training=True) for s in (sets.train, sets.auxiliary))
    monitors = {name: data for name, data in watched.items() if len(data)}

    def train(own: Method, stage: Stage, report_epoch: Report | None) -> Trained:
        seen = experiment.seen(start.seen(stage, sets.train), training=True)
        risk = config.training.monitor_risk
        history = fit(
            own,
            stage,
            seen,
            config.training,
            seed=_seed(experiment, stage),
            device=experiment.device,
            monitors=monitors,
            auxiliary=beside,
            resume=stage_resume(experiment, stage, start.checkpoints, seen, folder),
            report=report_epoch,
            measure=RiskByGroup(experiment, own, whole) if risk else None,
        )
        return Trained(dict(own.state_dict()), history)

    if len(stages) == 1:
        return [train(method, stages[0], report)]
    own = [copy.deepcopy(method) for _ in stages]
    epochs = sum(stage.passes(config.training.epochs) for stage in stages)
    with shared_progress(stages[0].group, epochs, report) as report_epoch:
        tasks = [partial(train, *one, report_epoch) for one in zip(own, stages, strict=True)]
        return results(side_by_side(tasks, experiment.device))


@contextmanager
def shared_progress(title: str, epochs: int, report: Report | None = None) -> Iterator[Report]:
    """Show how many of the ``epochs`` of several trainings are over; yield what they report to.

    It passes every epoch on to ``report``.
    """
    with shown(title, epochs, patience=0) as progress:

        def report_epoch(stage: str, epoch: int, values: Mapping[str, float]) -> None:
            progress.advance()
            if report:
                report(stage, epoch, values)

        yield report_epoch


def _seed(experiment: Experiment, stage: Stage) -> int:
    """Return a seed that does not depend on which other stages there are."""
    return experiment.config.seed + (crc32(stage.name.encode()) if stage.start else 0)


def take_step(
    experiment: Experiment, stage: Stage, train: Images, start: Start
) -> tuple[StateDict, Values]:
    """Do ``stage``, which has no gradients; return its checkpoint and what it found."""
    method = experiment.build()
    seen = experiment.seen(start.seen(stage, train), training=True)
    values = method.step(stage, start.checkpoints, seen, experiment.device)
    return dict(method.state_dict()), values


def finish(
    experiment: Experiment,
    train: Images,
    validation: Images,
    test: Images,
    checkpoint: StateDict,
) -> tuple[StateDict, Values]:
    """Do what follows the last stage, merge, and return the deployable weights and what it did."""
    train, validation, test = map(experiment.seen, (train, validation, test))
    method, device = experiment.behind(checkpoint), experiment.device
    finished = method.post_process(train, validation, device)
    still = sum(parameter.numel() for parameter in method.net.kept.values())
    parameters = parameter_count(method) - still
    diagnosed, series = method.diagnose(train, test, device), method.training_curves()
    notes = [*method.notes(), *method.remarks(diagnosed)]
    before = predict(method.to(device), method.score, test, device=device)
    method.merge_for_inference()
    after = predict(method, method.score, test, device=device)
    deployed = experiment.deployed(method)
    return dict(deployed.state_dict()), {
        "parameters_trained": parameters,
        "parameters_deployed": parameter_count(deployed),
        # in place, as each has a number an image and class
        "largest_score_change": float(after.sub_(before).abs_().max()),
        "finished": finished,
        "diagnostics": diagnosed,
        "series": series,
        "notes": notes,
    }


def run_stages(
    experiment: Experiment,
    stages: Sequence[Stage],
    sets: Sets,
    folder: Path,
    store: Store,
    report: Report | None = None,
) -> tuple[dict[str, StateDict], list[History]]:
    """Return the checkpoint of each of ``stages`` by name, and the histories of those that train.

    ``report`` is called after the epochs that are trained now; ``folder`` is this run's own.
    What several runs have in common is kept in ``store``: arms that differ in later stages only
    train the first ones once.
    """
    checkpoints: dict[str, StateDict] = {}
    histories: list[History] = []
    needed = any(stage.subset for stage in stages)
    subsets = draw_subsets(experiment, sets.train) if needed else None
    for members in groups(stages):
        first = members[0]
        before = {name: checkpoints[name] for name in first.start}
        start = Start(before, subsets if first.subset else None)
        if not first.trains:
            checkpoints[first.name] = take_step(experiment, first, sets.train, start)[0]
            continue
        shared = store.shared(experiment, first)
        # of several that are at work, one trains it
        with alone(shared.path) if shared else nullcontext():
            kept = shared.load() if shared else None
            if kept:
                trained = [Trained(*one) for one in kept["trained"]]
            else:
                trained = train_stages(experiment, members, sets, start, folder, report)
                if shared:
                    shared.save({"trained": [tuple(one) for one in trained]})
        checkpoints |= {s.name: one.checkpoint for s, one in zip(members, trained, strict=True)}
        histories += [one.history for one in trained]
    return checkpoints, histories


def run_experiment(
    experiment: Experiment,
    sets: Sets,
    raw_folder: Path,
    store: Store,
    report: Report | None = None,
) -> dict[str, float]:
    """Train, finish and evaluate; return the metrics, named as in ``test/accuracy``.

    ``raw_folder`` is where OOD sets with files are. The metrics are kept in ``store`` and not
    computed a second time; a training that was killed resumes from there. Of equal experiments that
    are run at once, one is trained.
    """
    with alone(store.folder_of(experiment)):
        kept = store.metrics(experiment)
        return _run(experiment, sets, raw_folder, store, report) if kept is None else kept


def _run(
    experiment: Experiment, sets: Sets, raw_folder: Path, store: Store, report: Report | None
) -> dict[str, float]:
    stages, folder, images = experiment.stages, store.folder_of(experiment), sets
    train, *others = sets
    sets = Sets(experiment.seen(train, training=True), *map(experiment.seen, others))
    checkpoints, histories = run_stages(experiment, stages, sets, folder, store, report)
    train, validation, test, _ = sets
    model, finished = finish(experiment, train, validation, test, checkpoints[stages[-1].name])
    metrics, evaluated = evaluate(experiment, model, train, validation, test, finished, histories)
    shape, _ = geometry(experiment, model, test, pictures=False)
    ood = examine(experiment, model, images.train, images.test, raw_folder)
    result = numbers({**metrics, "geometry": shape, "ood": summary_metrics(ood)})
    if len(stages) > 1:
        every = [checkpoints[stage.name] for stage in stages]
        result |= stage_numbers(measure_stages(experiment, validation, test, every)[0])
    store.keep(experiment, result, evaluated.answers)
    return result
