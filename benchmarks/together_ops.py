"""Operations that a step of K networks calls: each its own, by vmap, and as grouped layers.

    python benchmarks/together_ops.py --networks 4 8 --out FILE.csv

Counted as in step_ops.py, of a method's first stage on batches that are there already: forward,
backward and the optimizer. ``apart`` are K steps, each of its own; ``vmap`` is one forward and one
backward of K stacked networks, of which PyTorch makes grouped convolutions and takes BatchNorm
apart; ``grouped`` is that with BatchNorm as one operation on [K C] channels, which is the least
that a step written for K networks would ask for. All in float32: autocast does not reach what is
called inside of vmap, whose convolutions would stay in it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

PROJECT = Path(__file__).parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "benchmarks")]

from benchmarks.gpu.steps import Training  # noqa: E402

from lt_pipeline.learning.data.batches import Batch  # noqa: E402
from lt_pipeline.learning.engine.device import autocast  # noqa: E402
from lt_pipeline.learning.engine.optim import build_optimizer, trained_parameters  # noqa: E402
from lt_pipeline.learning.experiments.config import ExperimentConfig, updated  # noqa: E402
from step_ops import IMAGES, Calls, as_on_a_gpu, noise, parts  # noqa: E402
from variants import Variant, parameters  # noqa: E402

WAYS = ("apart", "vmap", "grouped")
batch_norm = F.batch_norm


class GroupedNorm(torch.autograd.Function):
    """BatchNorm whose batched form is one operation, each network's statistics its own."""

    generate_vmap_rule = False

    @staticmethod
    def forward(
        x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, *how: Any
    ) -> Tensor:
        """Return what F.batch_norm does."""
        return batch_norm(x, mean, variance, weight, bias, *how)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing: the batched form is differentiated as what it calls."""

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, *given: Any) -> tuple[Tensor, int]:
        """Return the same of K networks, with their number as the second dimension."""
        of_all = [one.reshape(-1) if isinstance(one, Tensor) else one for one in given]
        normalized = batch_norm(x.movedim(dims[0], 1).flatten(1, 2), *of_all)
        return normalized.unflatten(1, (info.batch_size, -1)), 1


def grouped(x: Tensor, mean: Any, variance: Any, *rest: Any, **more: Any) -> Any:
    normalized: Any = GroupedNorm.apply(x, mean, variance, *rest, *more.values())  # type: ignore[no-untyped-call]
    return normalized


def stack(parts: Sequence[Any]) -> Any:
    """Return K values of whatever depth as one, its tensors ``[K, ...]``."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.stack(parts)
    if isinstance(first, tuple):
        columns = [stack(column) for column in zip(*parts, strict=True)]
        return getattr(first, "_make", tuple)(columns)
    return first


class Stacked:
    """The step of K networks as one: what learns and what is kept is ``[K, ...]``."""

    def __init__(self, trainings: Sequence[Training]) -> None:
        self.first = trainings[0]
        method, stage = self.first.method, self.first.taken.loss.stage
        states = [
            {**dict(t.method.named_parameters()), **dict(t.method.named_buffers())}
            for t in trainings
        ]
        learning = [name for name, _ in trained_parameters(method, stage)]
        buffers = [name for name, _ in method.named_buffers()]
        self.held = {
            name: torch.stack([state[name].detach() for state in states])
            for name in (*learning, *buffers)
        }
        learns = {name: self.held[name].requires_grad_() for name in learning}
        config, device = self.first.config, self.first.device
        self.optimizer = build_optimizer(learns, method, stage, config, device)
        for group in self.optimizer.param_groups:
            group["fused"] = True

    def __call__(self, batch: Batch) -> None:
        """Take a step on a batch that has a leading dimension more."""
        self.optimizer.zero_grad(set_to_none=True)
        taken, exact = self.first.taken, self.first.taken.objective.needs_float32
        # what is the same for all is no tensor
        given = {n: part for n, part in batch._asdict().items() if part is not None}

        def one(held: Mapping[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
            named = {f"method.{name}": tensor for name, tensor in held.items()}
            terms: Any = torch.func.functional_call(taken.loss, named, (Batch(**own), 0.5))
            return terms

        with autocast(self.first.config, self.first.device, exact=exact):
            terms = torch.vmap(one, randomness="different")(self.held, given)
        torch.stack(list(terms.values())).sum().backward()
        self.optimizer.step()


@contextmanager
def as_one_operation(wanted: bool) -> Iterator[None]:
    """Let BatchNorm be grouped inside, if ``wanted``."""
    with patch.object(F, "batch_norm", grouped) if wanted else patch.object(F, "elu", F.elu):
        yield


def few(training: Training) -> Batch:
    """Return some images of a batch: what is called does not depend on how many."""
    (batch,) = training.batches(1)
    part, _ = next(parts(batch, max(len(batch.labels) // IMAGES, 1)))
    return training.taken.objective.prepare(part)


def count(way: str, trainings: Sequence[Training]) -> dict[str, int]:
    """Return what a step of all ``trainings`` calls, behind a first one."""
    batches = [few(training) for training in trainings]
    for training in trainings:
        for group in training.taken.optimizer.param_groups:
            group["fused"] = True

    if way == "apart":

        def step() -> None:
            for training, batch in zip(trainings, batches, strict=True):
                training.taken(batch, 0.5)

    else:
        stacked, together = Stacked(trainings), stack(batches)

        def step() -> None:
            stacked(together)

    with as_on_a_gpu(), as_one_operation(way == "grouped"):
        step()
        with Calls() as made:
            step()
    return {name: made.count[name] for name in ("operations", "launches")}


def rows(
    environment: str, asked: Sequence[str], networks: Sequence[int], changes: list[str]
) -> pd.DataFrame:
    """Return a row a method, way and number of networks."""
    base = parameters(environment, ["training.precision=float32", "device=cpu", *changes])
    data, lines = noise(base), []
    for variant in asked:
        label, method, own = Variant.parse(variant)
        config = ExperimentConfig.resolve(method, updated(base, own))
        for number in (1, *networks):
            for way in WAYS if number > 1 else WAYS[:1]:
                configs = [config.model_copy(update={"seed": k}) for k in range(number)]
                torch.manual_seed(0)
                trainings = [Training(each, data) for each in configs]
                row = {"method": label, "networks": number, "way": way}
                lines.append({**row, **count(way, trainings)})
                print(lines[-1], flush=True)
    table = pd.DataFrame(lines)
    single = table[table["networks"] == 1].set_index("method")["launches"]
    table["launches_over_one"] = (table["launches"] / table["method"].map(single)).round(2)
    return table.assign(environment=environment, torch=torch.__version__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="cifar100_lt")
    parser.add_argument("--methods", nargs="+", default=["ce", "dbm", "more"])
    parser.add_argument("--networks", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--params", nargs="*", default=[])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    table = rows(arguments.env, arguments.methods, arguments.networks, arguments.params)
    table.to_csv(arguments.out, index=False)


if __name__ == "__main__":
    main()
