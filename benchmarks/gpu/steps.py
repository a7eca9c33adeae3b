"""An arm's first training, piece by piece, and what the device it is on can do at best."""

from __future__ import annotations

import copy
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from benchmarks.gpu.tiles import Prepared
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.engine.captured import WARM_UP, step_for
from lt_pipeline.learning.engine.freeze import with_frozen
from lt_pipeline.learning.engine.loader import Stream
from lt_pipeline.learning.engine.optim import set_trainable
from lt_pipeline.learning.engine.predict import predict
from lt_pipeline.learning.engine.protocol import objective_of
from lt_pipeline.learning.engine.steps import Compiled, Plain
from lt_pipeline.learning.engine.trainer import stage_config
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.experiments.experiment import Experiment

# elements a side of a matrix, and bytes that are copied, on a GPU and elsewhere
MATRIX = {"cuda": 8192, "cpu": 1024}
COPIED = {"cuda": 2**32, "cpu": 2**26}


class Training:
    """The first stage of an experiment, as the engine trains it: its batches and its steps."""

    def __init__(self, config: ExperimentConfig, data: Prepared) -> None:
        experiment = Experiment(config, data.card)
        self.method, stage = experiment.build(), experiment.stages[0]
        self.config = stage_config(config.training, stage)
        self.stage = stage = with_frozen(self.method, stage, self.config)
        self.method.load_weights(stage, {})
        self.device, objective = experiment.device, objective_of(self.method, stage)
        self.taken = step_for(self.method, stage, self.config, self.device)
        train, auxiliary = data.sets.train, data.sets.auxiliary
        self.stream = Stream(
            stage,
            train,
            self.config,
            views=objective.views,
            seed=0,
            device=self.device,
            auxiliary=auxiliary,
        )
        self.taken.begin(self.stream)
        set_trainable(self.method, stage)
        objective.start_epoch(0, self.config.epochs)

    def batches(self, count: int) -> Iterator[Batch]:
        """Yield ``count`` batches as an epoch has them, or all that one has."""
        return islice(self.stream.epoch(0.0), count)

    def step(self) -> Callable[[], object]:
        """Return a training step on a batch that is there already."""
        return partial(self.taken, next(self.batches(1)), 0.5)

    def one_by_one(self) -> Callable[[], object] | None:
        """Return a step whose operations can be counted, None where the loss is compiled."""
        if isinstance(self.taken, Compiled):
            return None
        return partial(Plain.__call__, self.taken, next(self.batches(1)), 0.5)

    def input(self) -> Callable[[], object]:
        """Return what makes all batches of an epoch."""
        return lambda: deque(self.stream.epoch(0.0), maxlen=0)

    def scoring(self) -> Callable[[], object]:
        """Return what scores a batch, as evaluation does, with what is deployed."""
        images = next(self.batches(1)).images
        self.method.net.to(memory_format=torch.contiguous_format)
        self.method.merge_for_inference()
        score = self.method.score
        return partial(predict, self.method, score, images, device=self.device, batch_size=10**6)

    def network(self) -> nn.Module:
        """Return a copy of the network, for images in 0..255."""
        return copy.deepcopy(self.method.net)


class Needs(NamedTuple):
    """What a piece of work takes of a device that runs its operations one by one."""

    operations: float
    bytes: float

    @classmethod
    def of(cls, work: Callable[[], object]) -> Needs:
        """Count the floating-point operations of ``work``, and what its kernels read and write."""
        with FlopCounterMode(display=False) as counted, _Traffic() as moved:
            work()
        return cls(counted.get_total_flops(), moved.bytes)


class Ceilings(NamedTuple):
    """What a device can do, measured: a matrix product and a copy, by the second."""

    operations: float
    bytes: float

    @classmethod
    def of(cls, device: torch.device) -> Ceilings:
        """Measure them: bf16 on a GPU, float32 elsewhere; a copied byte is read and written."""
        side, size = MATRIX[device.type], COPIED[device.type]
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        product = _median(partial(torch.mm, one, other), device)
        copy = _median(partial(target.copy_, source), device)
        return cls(2 * side**3 / product, 2 * size / copy)

    def least(self, needs: Needs) -> float:
        """Return the seconds that ``needs`` take at least."""
        return max(needs.operations / self.operations, needs.bytes / self.bytes)


class _Traffic(TorchDispatchMode):
    """Counts the bytes of tensors that operations take and give; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            leaves = tree_leaves((args, kwargs, result))
            self.bytes += sum(x.nbytes for x in leaves if isinstance(x, Tensor))
        return result


def plain_loop(
    data: Prepared, batch: int, device: torch.device, network: nn.Module
) -> Callable[[], object]:
    """Return an epoch of a loop as one writes it by hand: crop, flip, cross-entropy and SGD."""
    size = data.sets.train.shape[1]
    network.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=2e-4)
    images = data.sets.train.to(device)
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")

    def epoch() -> None:
        for order in torch.randperm(len(images), device=device).split(batch):
            if len(order) < batch:
                return
            x = F.pad(images.images[order].float(), (4, 4, 4, 4))
            top, left = torch.randint(9, (2,)).tolist()
            x = x[..., top : top + size, left : left + size]
            x = torch.where(torch.rand(batch, 1, 1, 1, device=device) < 0.5, x.flip(3), x)
            with bf16:
                logits = network(x.contiguous(memory_format=torch.channels_last))
                loss = F.cross_entropy(logits, images.labels[order])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return epoch


def take_turns(
    work: Mapping[str, Callable[[], object]], turns: int, device: torch.device
) -> dict[str, list[float]]:
    """Return the seconds of every piece of work, turn by turn, after four that do not count.

    A busy machine slows all of them: a ratio is to be the median over the turns.
    """
    seconds: dict[str, list[float]] = {label: [] for label in work}
    for turn in range(-WARM_UP - 1, turns):  # a captured step is there then
        for label, piece in work.items():
            took = clock(piece, device)
            if turn >= 0:
                seconds[label].append(took)
    return seconds


def clock(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of ``work``, what the device does of it included."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def shortened(config: ExperimentConfig, epochs: int) -> ExperimentConfig:
    """Return ``config`` with no stage longer than ``epochs``, without warm-up and monitors."""
    values = _shortened(config.model_dump(mode="json"), epochs)
    values["training"] |= {"warmup_epochs": 0, "monitor_every": 0}
    return ExperimentConfig.model_validate(values)


def _shortened(values: Any, epochs: int) -> Any:
    if not isinstance(values, dict):
        return values
    return {
        name: min(value, epochs)
        if name == "epochs" and isinstance(value, int)
        else _shortened(value, epochs)
        for name, value in values.items()
    }


def _median(work: Callable[[], object], device: torch.device, turns: int = 10) -> float:
    return statistics.median(take_turns({"": work}, turns, device)[""])
