"""Trainings of one architecture from one start, at once: as one batched computation.

They give what ``fit`` gives one after the other, but for the order of sums in floating point.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch
from torch import Tensor

from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.checkpoint import ResumeFile
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.device import without_tf32
from lt_pipeline.learning.engine.freeze import with_frozen
from lt_pipeline.learning.engine.protocol import Learner, objective_of
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.engine.steps import Compiled, Plain, Step, Terms
from lt_pipeline.learning.engine.trainer import History, Measure, Report, Trainer, stage_config
from lt_pipeline.learning.engine.vmapped import Vmapped
from lt_pipeline.learning.schema import UserError


def fit_together(
    method: Learner,
    stages: Sequence[Stage],
    sets: Sequence[Images],
    config: TrainingConfig,
    *,
    seeds: Sequence[int],
    device: torch.device,
    monitors: Mapping[str, Images] | None = None,
    resume: ResumeFile | None = None,
    report: Report | None = None,
    measure: Measure | None = None,
    vmap: bool | Literal["auto"] = "auto",
) -> list[tuple[dict[str, Tensor], History]]:
    """Train K networks at once; return the state and the history of each.

    All start from the state of ``method``, which it has again at the end. Network k becomes what
    ``fit`` makes of a copy of ``method`` with ``stages[k]``, ``sets[k]`` and ``seeds[k]``, batch
    by batch, to float tolerance. Its ``train/seconds`` are its share, 1 / K of the whole; the
    ``train/images_per_second`` are those of all together.

    With ``vmap``, which ``auto`` is on a GPU, all networks are one forward and one backward pass:
    memory is that of a batch K times as large, what training changes must be parameters, or
    buffers written in place, and ``config.step`` and ``channels_last`` do not apply. On a CPU,
    where grouped convolutions are slower than single ones, as many networks as torch has threads
    are trained side by side, each on one. Dropout draws other masks than in ``fit``.

    ``resume`` keeps the state of all in one file; ``monitors``, ``measure`` and ``report`` are as
    in ``fit``, the last called for each network by its stage's name.

    Raises:
        UserError: if the arguments are not K each, the stages differ in more than the name or
            ask for pairs, outliers or views, the sets are not of one shape or do not fill one
            batch, or a loss, a weight or a monitored score is no longer finite.
    """
    _check(method, stages, sets, seeds)
    config = stage_config(config, stages[0])
    stages = [with_frozen(method, stage, config) for stage in stages]
    stage = stages[0]
    if vmap is True or (vmap == "auto" and device.type != "cpu"):
        stacked = Vmapped(method, len(stages), stage, config, device)
        trainer = Trainer([stacked], stages, sets, seeds)
    else:
        kind = Compiled if config.step == "compiled" else Plain
        alone = [kind(copy.deepcopy(method), stage, config, device) for _ in stages]
        trainer = Trainer(alone, stages, sets, seeds, each=in_threads)
    trainer.run(monitors or {}, resume, report, measure)
    states = [{n: value.clone() for n, value in state.items()} for state in trainer.states()]
    return list(zip(states, trainer.histories, strict=True))


def in_threads(epoch: Callable[[Step], Terms], steps: Sequence[Step]) -> list[Terms]:
    """Return ``epoch`` of each step, as many at a time as torch has threads.

    Torch keeps to one thread in each.
    """
    count = torch.get_num_threads()
    try:
        # a switch of the process: not one thread's to turn back while another needs it
        with (
            without_tf32(steps[0].objective.needs_float32),
            ThreadPoolExecutor(count, "", torch.set_num_threads, (1,)) as pool,
        ):
            return list(pool.map(epoch, steps))
    finally:
        torch.set_num_threads(count)


def _check(
    method: Learner, stages: Sequence[Stage], sets: Sequence[Images], seeds: Sequence[int]
) -> None:
    if not len(stages) == len(sets) == len(seeds) > 0:
        raise UserError(
            f"each network needs a stage, a set and a seed, but there are {len(stages)}, "
            f"{len(sets)} and {len(seeds)}"
        )
    first, shape, alone = (
        stages[0],
        [len(sets[0]), *sets[0].shape],
        "train them one after the other",
    )
    for name in ("pair", "outliers", "views"):
        if getattr(objective_of(method, first) if name == "views" else first, name):
            raise UserError(
                f"networks trained together see images and their mixtures, but stage "
                f"{first.name!r} asks for {name}: {alone}"
            )
    for stage, data in zip(stages, sets, strict=True):
        for name in (field.name for field in dataclasses.fields(Stage)):
            here, there = getattr(stage, name), getattr(first, name)
            if name not in ("name", "subset") and here != there:
                raise UserError(
                    f"stages trained together differ in the name only, but {name} is {there!r} "
                    f"in {first.name!r} and {here!r} in {stage.name!r}: {alone}"
                )
        if [len(data), *data.shape] != shape:
            raise UserError(
                f"sets trained on together have one shape, but that of {first.name!r} has "
                f"{shape} and that of {stage.name!r} {[len(data), *data.shape]}: {alone}"
            )
