"""Operations that a training step of each method calls, and how often it waits for the device.

    python benchmarks/step_ops.py --env cifar100_lt --out FILE.csv

Counted on a CPU, below autograd, of a method's first stage on images of noise, in the numbers that
the environment has: forward, backward and the optimizer. What goes another way on a GPU goes so
here (augmentation, checks of labels, the fused optimizer); unless told it is in bfloat16, as there.

``operations`` are all calls; ``launches`` those that compute something, no views and no empty
tensors: about the kernels of a GPU. ``waits`` read a value or a size back from the device, as
``.item()`` and ``nonzero()`` do, and ``constants`` make tensors of Python's numbers, a copy to the
device each. ``captured_launches`` are those of a captured step's graph, and ``beside`` the calls
that are left outside of it: the batch is copied, rates and progress are written, and what is drawn
for the batch is drawn. Input is a batch as it is made for the step: images, augmentation and views.
Methods whose first stage has no gradients (LIFT's class means, logistic regression) are left out.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

PROJECT = Path(__file__).parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "benchmarks")]

from benchmarks.gpu.steps import Training  # noqa: E402
from benchmarks.gpu.tiles import Prepared  # noqa: E402

from lt_pipeline.learning import methods  # noqa: E402
from lt_pipeline.learning.data.batches import Batch  # noqa: E402
from lt_pipeline.learning.data.images import ImageSet  # noqa: E402
from lt_pipeline.learning.data.prepare import expected, facts  # noqa: E402
from lt_pipeline.learning.engine.captured import WARM_UP, Captured  # noqa: E402
from lt_pipeline.learning.engine.protocol import Progress  # noqa: E402
from lt_pipeline.learning.engine.steps import Plain, Terms, parts  # noqa: E402
from lt_pipeline.learning.experiments.config import (  # noqa: E402
    ExperimentConfig,
    data_config,
    updated,
)
from lt_pipeline.learning.experiments.experiment import Sets  # noqa: E402
from lt_pipeline.learning.losses import functional, margins  # noqa: E402
from lt_pipeline.learning.transforms import augment, views  # noqa: E402
from variants import Variant, parameters  # noqa: E402

# what gives no values: memory only, or other names of it
EMPTY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach")
# what a GPU's result must be known for before Python goes on
WAITS = (
    *("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "bincount"),
    *("_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"),
)
# of a batch that is counted on
IMAGES = 16
CONSTANTS = ("lift_fresh", "lift_fresh_copy")


class Calls(TorchDispatchMode):
    """Counts what is called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count["operations"] += 1
        self.count["launches"] += not (func.is_view or name in (*EMPTY, *CONSTANTS))
        if name in WAITS or (name.startswith("index") and _masked(args)):
            self.waits[name] += 1
        self.count["waits"] = self.waits.total()
        self.count["constants"] += name in CONSTANTS
        return func(*args, **(kwargs or {}))


def _masked(args: Any) -> bool:
    """Return whether an index is a mask, whose places are to be found first."""
    written = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
    return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in written)


def noise(base: dict[str, Any], outliers: int = 1024) -> Prepared:
    """Return images of noise, as many by class as the data of the parameters ``base`` have."""
    config = data_config(base)
    card, shape = expected(config), facts(config).shape

    def images(labels: Tensor) -> ImageSet:
        pixels = torch.randint(256, (len(labels), *shape), dtype=torch.uint8)
        return ImageSet(pixels, labels, card.longtail.class_names)

    every = torch.arange(card.longtail.classes)
    train = images(every.repeat_interleave(torch.tensor(card.longtail.class_counts)))
    few, beside = images(every), images(torch.zeros(outliers, dtype=torch.int64))
    return Prepared(Sets(train, few, few, beside), card)


class Beside(Captured):
    """Captured steps without their graph; what would be in it is counted as ``inside``."""

    def warm_up(self, batch: Batch, progress: Progress) -> Terms:  # noqa: D102
        return Plain.__call__(self, batch, progress)

    def record(self, batch: Batch) -> tuple[Terms, Callable[[], object]]:  # noqa: D102
        with Calls() as self.inside:
            return Plain.__call__(self, batch, self.progress), lambda: None

    def prove(self, *_: Any) -> None:
        """Ask for nothing: there is no graph that could take a step."""


def of_step(training: Training) -> dict[str, Any]:
    """Return what a step calls, behind a first one: the optimizer's state is there."""
    for group in training.taken.optimizer.param_groups:
        group["fused"] = True
    (batch,) = training.batches(1)
    # of some images: what is called does not depend on how many
    few, _ = next(parts(batch, max(len(batch.labels) // IMAGES, 1)))
    with as_on_a_gpu():
        training.taken(few, 0.5)
        with Calls() as made:
            training.taken(few, 0.5)
        beside = Beside(training.method, training.stage, training.config, training.device)
        for _ in range(WARM_UP + 1):
            beside(few, 0.5)
        with Calls() as left:
            beside(few, 0.5)
    return {
        **made.count,
        "captured_launches": beside.inside.count["launches"],
        "beside": left.count["operations"],
        "waits_of": named(made.waits),
    }


def named(waits: Counter[str]) -> str:
    """Return which they are, as in ``nonzero:2``."""
    return " ".join(f"{name}:{count}" for name, count in sorted(waits.items()))


def of_input(training: Training) -> dict[str, Any]:
    """Return what an epoch's batches call, a step's share, where tables are there already."""
    next(training.batches(1))
    with as_on_a_gpu(), Calls() as made:
        steps = sum(1 for _ in training.stream.epoch(0.0))
    shares = {f"input_{name}": round(count / steps, 1) for name, count in made.count.items()}
    return {**shares, "input_waits_of": named(made.waits)}


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Take the ways inside that the code, and PyTorch, go on a GPU only."""
    with ExitStack() as stack:
        for module, name, there in (
            # labels are looked at on a CPU
            (functional, "check_labels", lambda labels, classes: None),
            (margins, "check_labels", lambda labels, classes: None),
            (F, "one_hot", _one_hot),
            # each augmentation has its own images on a CPU, and all of them elsewhere
            (augment, "has_triton", lambda device: True),
            (augment, "in_a_kernel", _launched),
            (views, "in_a_kernel", _launched),
            (views, "by_group", views.by_mask),
            (views, "SMALL", views.LARGE),
        ):
            stack.enter_context(patch.object(module, name, there))
        yield


def _launched(images: Tensor, *drawn: object) -> Tensor:
    return images.clone()  # as many calls as of a kernel: one


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    encoded = labels.new_zeros(*labels.shape, num_classes)
    return encoded.scatter_(-1, labels.unsqueeze(-1), 1)


def rows(environment: str, asked: list[str], changes: list[str]) -> pd.DataFrame:
    """Return a row a method, or variant of one."""
    base = parameters(environment, ["training.precision=bfloat16", "device=cpu", *changes])
    data, inputs, table = noise(base), dict[Any, dict[str, Any]](), list[dict[str, Any]]()
    for variant in asked:
        label, method, own = Variant.parse(variant)
        torch.manual_seed(0)
        training = Training(ExperimentConfig.resolve(method, updated(base, own)), data)
        stage, how = training.stream.stage, training.config
        if not stage.trains:
            continue
        # methods that see alike images are not counted anew
        key = repr((stage.pair, stage.mix, stage.outliers, training.stream.views, how.augment))
        if key not in inputs:
            inputs[key] = of_input(training)
        table.append({"method": label, "stage": stage.name, **of_step(training), **inputs[key]})
        print(table[-1], flush=True)
    return pd.DataFrame(table).assign(environment=environment, torch=torch.__version__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="cifar100_lt")
    parser.add_argument("--methods", nargs="+", default=methods.available())
    parser.add_argument("--params", nargs="*", default=[])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows(arguments.env, arguments.methods, arguments.params).to_csv(arguments.out, index=False)


if __name__ == "__main__":
    main()
