"""MORE's two passes, one after the other and as one: time, traffic and launches of a step.

    python benchmarks/passes_cost.py --batches 128 256 --out FILE.csv
    python benchmarks/passes_cost.py --device cuda --batches 256 --turns 50 --out FILE.csv

As one, activations have the channels of both passes: the first convolution, whose images both see,
gives them, all others are grouped by pass, and BatchNorm is one for both. Weights are merged once a
step either way. On a GPU ``streams`` is a third way, both passes as they are, each on a stream.

Rows are a training step of MORE on a CIFAR ResNet, captured where it can be, and forward and
backward of its convolutions and BatchNorm by themselves: on a GPU these have the launches that a
captured step does not pay for. Ways take turns in one run, so that a busy machine slows all; a
ratio is the median over the turns. On a CPU times are those of the process on all of its cores,
which other work on the machine changes less.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

PROJECT = Path(__file__).parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "benchmarks")]

from benchmarks.gpu.steps import Needs, Training  # noqa: E402
from benchmarks.gpu.tiles import Prepared  # noqa: E402

from lt_pipeline.learning.data.batches import Batch  # noqa: E402
from lt_pipeline.learning.engine.captured import WARM_UP  # noqa: E402
from lt_pipeline.learning.engine.device import choose_device, without_tf32  # noqa: E402
from lt_pipeline.learning.experiments.config import ExperimentConfig  # noqa: E402
from lt_pipeline.learning.losses.criteria import Outputs  # noqa: E402
from lt_pipeline.learning.models.batchnorm import frozen_batchnorm_statistics  # noqa: E402
from lt_pipeline.learning.models.low_rank import general_weights  # noqa: E402
from lt_pipeline.learning.models.resnet_cifar import BasicBlock  # noqa: E402
from step_ops import noise, of_step  # noqa: E402
from variants import parameters  # noqa: E402

# channels in and out, pixels a side and stride of a CIFAR ResNet's convolutions
SHAPES = (
    *((3, 16, 32, 1), (16, 16, 32, 1), (16, 32, 32, 2)),
    *((32, 32, 16, 1), (32, 64, 16, 2), (64, 64, 8, 1)),
)
FORMATS = {True: torch.channels_last, False: torch.contiguous_format}
Work = Callable[[], object]


class AsOne:
    """Both passes of a method MORE, on the channels of both: of W, then of W^g."""

    def __init__(self, method: Any) -> None:
        self.net = method.net
        self.statistics = {}
        for layer in self.net.backbone.modules():
            if isinstance(layer, nn.BatchNorm2d):
                both = {n: layer.get_buffer(n).repeat(2) for n in ("running_mean", "running_var")}
                for name, values in both.items():
                    # those of W^g are nobody's
                    layer._buffers[name] = values.chunk(2)[0]
                self.statistics[layer] = tuple(both.values())
        method.outputs, method._general_logits = self.outputs, lambda batch: self.general

    def outputs(self, batch: Batch) -> Outputs:
        """Return the pass with W; that with W^g is kept."""
        full, self.general = self.logits(batch.images)
        return Outputs(full)

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of both passes."""
        body = self.net.backbone
        x = convolution(body.stem, self.net.normalize(images), groups=1)
        x = F.relu(self.normalized(body.bn, x))
        for block in (*body.stage1, *body.stage2, *body.stage3):
            x = self.block(block, x)
        full, general = self.net.head(x.mean((2, 3)).unflatten(1, (2, -1))).unbind(1)
        return full, general

    def block(self, block: BasicBlock, x: Tensor) -> Tensor:
        """Return what ``block`` makes of both."""
        out = F.relu(self.normalized(block.bn1, convolution(block.conv1, x)))
        out = self.normalized(block.bn2, convolution(block.conv2, out))
        shortcut = x
        if block.added:
            shortcut = torch.cat([block._shortcut(half) for half in x.chunk(2, 1)], 1)
        return F.relu(out + shortcut)

    def normalized(self, layer: nn.BatchNorm2d, x: Tensor) -> Tensor:
        """Return ``x`` normalised by its batch, each pass by its own."""
        layer.get_buffer("num_batches_tracked").add_(1)
        learned = layer.weight.repeat(2), layer.bias.repeat(2)
        mean, variance = self.statistics[layer]
        return F.batch_norm(x, mean, variance, *learned, True, layer.momentum or 0.0, layer.eps)


class OnStreams:
    """Both passes of a method MORE side by side, that with W^g on a stream of its own."""

    def __init__(self, method: Any) -> None:
        self.net, self.once = method.net, method.outputs
        method.outputs, method._general_logits = self.outputs, lambda batch: self.general
        self.side = torch.cuda.Stream()

    def outputs(self, batch: Batch) -> Outputs:
        """Return the pass with W; that with W^g is kept."""
        here = torch.cuda.current_stream()
        self.side.wait_stream(here)
        frozen = frozen_batchnorm_statistics(self.net)
        with torch.cuda.stream(self.side), general_weights(self.net), frozen:
            self.general = self.once(batch).logits
        outputs: Outputs = self.once(batch)
        here.wait_stream(self.side)
        self.general.record_stream(here)
        return outputs


def convolution(layer: Any, x: Tensor, groups: int = 2) -> Tensor:
    """Return the convolutions with W and with W^g, of ``x`` that has the channels of both."""
    weights = torch.cat([layer.weight, layer.parametrizations.weight.original])
    return F.conv2d(x, weights, None, layer.stride, layer.padding, groups=groups)


WAYS: dict[str, Callable[[Any], object]] = {
    "two": lambda method: None,
    "one": AsOne,
    "streams": OnStreams,
}


def steps(config: ExperimentConfig, data: Prepared, ways: Sequence[str]) -> dict[str, Training]:
    """Return the training from one start in each of ``ways``."""
    trainings = {}
    for way in ways:
        torch.manual_seed(0)
        trainings[way] = Training(config, data)
        WAYS[way](trainings[way].method)
    return trainings


def layers(
    batch: int, device: torch.device, channels_last: bool
) -> Iterator[tuple[str, dict[str, Work]]]:
    """Yield forward and backward of a layer in both ways, by the name of its shape."""
    how: Any = {"device": device}

    def made(*shape: int) -> Tensor:
        tensor = torch.randn(shape, **how)
        tensor = tensor.to(memory_format=FORMATS[channels_last]) if len(shape) == 4 else tensor
        return tensor.requires_grad_()

    for before, after, side, stride in SHAPES:
        first = before == SHAPES[0][0]
        called = partial(F.conv2d, stride=stride, padding=1)
        weights = [made(after, before, 3, 3) for _ in range(2)]
        x = made(batch, before, side, side).requires_grad_(not first)
        halves = [x, x] if first else [made(batch, before, side, side) for _ in range(2)]
        whole = x if first else made(batch, 2 * before, side, side)
        grouped = partial(called, groups=1 if first else 2)
        name = f"convolution {before} to {after} at {side}, stride {stride}"
        both = made(2 * after, before, 3, 3)
        yield name, in_both_ways(called, zip(halves, weights, strict=True), grouped, (whole, both))
    for _, after, side, _ in SHAPES[1::2]:
        called = partial(F.batch_norm, running_mean=None, running_var=None, training=True)
        halves = [made(batch, after, side, side) for _ in range(2)]
        whole = made(batch, 2 * after, side, side)
        name = f"BatchNorm of {after} at {side}"
        yield name, in_both_ways(called, [(half,) for half in halves], called, (whole,))


def in_both_ways(
    apart: Callable[..., Tensor], given: Any, grouped: Callable[..., Tensor], of_both: Any
) -> dict[str, Work]:
    """Return forward and backward, one after the other and as one."""
    given = list(given)

    def run(call: Callable[..., Tensor], tensors: Sequence[Tensor], gradient: Tensor) -> object:
        learning = [tensor for tensor in tensors if tensor.requires_grad]
        return torch.autograd.grad(call(*tensors), learning, gradient)

    gradients = [torch.ones_like(apart(*one)) for one in given]
    of_all = torch.ones_like(grouped(*of_both))
    return {
        "two": lambda: [run(apart, *each) for each in zip(given, gradients, strict=True)],
        "one": lambda: run(grouped, of_both, of_all),
    }


def rows(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row a piece of work, batch size, memory format and way."""
    device = choose_device(arguments.device)
    for batch, channels_last in product(arguments.batches, (True, False)):
        where = {"batch": batch, "channels_last": channels_last}
        changes = {
            "device": arguments.device,
            "model.backbone": arguments.backbone,
            "training.batch_size": batch,
            "training.channels_last": str(channels_last).lower(),
        }
        base = parameters(arguments.env, [f"{key}={value}" for key, value in changes.items()])
        ways = [way for way in WAYS if way != "streams" or device.type == "cuda"]
        trainings = steps(ExperimentConfig.resolve("more", base), noise(base), ways)
        work = {way: training.step() for way, training in trainings.items()}
        for row in taken(work, arguments.turns, device):
            yield {"what": "step", **where, **row, **calls(trainings[row["way"]], device)}
        with without_tf32():
            for name, pieces in layers(batch, device, channels_last):
                for row in taken(pieces, arguments.turns, device):
                    yield {"what": name, **where, **row}


def calls(training: Training, device: torch.device) -> dict[str, object]:
    """Return what the step moves and, unless it is on a GPU, calls, plainly and captured."""
    moved = Needs.of(training.one_by_one() or training.step()).bytes
    images, graphs = training.config.batch_size, getattr(training.taken, "graphs", {})
    counts = {"megabytes_an_image": round(moved / 1e6 / images, 1), "captured": bool(graphs)}
    counted = {} if device.type == "cuda" else of_step(training)
    return counts | {n: counted.get(n) for n in ("launches", "captured_launches")}


def taken(work: Mapping[str, Work], turns: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield the milliseconds of each way, and the ratio to the first, turn by turn."""
    seconds: dict[str, list[float]] = {way: [] for way in work}
    now = time.perf_counter if device.type == "cuda" else time.process_time
    # a captured step is there behind its warm-up
    for number in range(-WARM_UP - 1, turns):
        for way, piece in work.items():
            started = now()
            piece()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number >= 0:
                seconds[way].append(now() - started)
    for way, turn in seconds.items():
        ratios = [one / two for one, two in zip(turn, seconds["two"], strict=True)]
        yield {
            "way": way,
            "milliseconds": round(1e3 * statistics.median(turn), 3),
            "over_two": round(statistics.median(ratios), 3),
            "lowest": round(min(ratios), 3),
            "highest": round(max(ratios), 3),
            "load": round(os.getloadavg()[0], 1),
        }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="cifar100_lt")
    parser.add_argument("--backbone", default="resnet32")
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    table_rows = []
    for row in rows(arguments):
        table_rows.append(row)
        print(row, flush=True)
    device = choose_device(arguments.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    table = pd.DataFrame(table_rows).assign(
        environment=arguments.env,
        backbone=arguments.backbone,
        turns=arguments.turns,
        device=name,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(arguments.out, index=False)


if __name__ == "__main__":
    main()
