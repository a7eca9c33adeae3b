"""A captured step, replayed on the CPU as a CUDA graph is, and on a GPU where there is one.

The tape stands in for the graph: it keeps each operation with the tensors, and the numbers, that it
was called with, and calls them again on the same memory. What a step reads on the host is not seen
again, and what it puts in another place is not found.
"""

from __future__ import annotations

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from time import sleep

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lt_pipeline.learning.engine.captured import WARM_UP, Captured, step_for
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.freeze import with_frozen
from lt_pipeline.learning.engine.loader import Stream
from lt_pipeline.learning.engine.optim import set_trainable
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.engine.steps import Compiled, Plain
from lt_pipeline.learning.engine.trainer import Trainer, fit, stage_config
from lt_pipeline.learning.experiments.config import ExperimentConfig, updated
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.methods.families.base import Method
from lt_pipeline.learning.methods.families.options import MethodOptions
from lt_pipeline.learning.models.network import ModelConfig
from lt_pipeline.learning.schema import UserError
from lt_pipeline.learning.transforms.augment import AugmentConfig
from toys import PROJECT, toy_card, toy_images

sys.path[:0] = [str(PROJECT), str(PROJECT / "benchmarks")]

import step_ops  # noqa: E402

CPU = torch.device("cpu")
CONF = PROJECT / "conf" / "base"
# one of each family, and what draws, swaps weights or keeps state in its loss
FAMILIES = (
    *("cdb_ce", "ldam_drw", "more", "bcl", "dbm", "darl", "lgla", "dqroute", "sade", "ride"),
    *("btm", "gml", "mixup", "oe", "energy_oe", "lift"),
)
# and what of their options changes how their steps go: the method, into how many phases, options
VARIANTS = {
    "adapts": ("more", 2, {"freeze_general_after": 0.5}),
    "statistics": ("more", 1, {"update_batchnorm": True, "schedule": "cos"}),
    "energies": ("darl", 1, {"ambiguity": "class_means"}),
    "halves": ("darl", 1, {"mix": {"both": "halves"}, "mixed": 0.6}),
    "warm-up": ("dqroute", 2, {"warmup": 0.5}),
    "tempered": ("ride", 2, {"temperature_start": 0.5, "criterion": {"start": 0.5}}),
    "outliers": ("oe", 2, {"start": 0.5}),
}
EPOCHS = 6
TRAINING = {
    **{"epochs": EPOCHS, "batch_size": 8, "warmup_epochs": 1, "learning_rate": 0.02},
    **{"precision": "float32", "monitor_every": 0},
    "augment": AugmentConfig(crop_padding=0, flip=0.5),
}


@pytest.fixture(autouse=True)
def ways_of_a_gpu():
    """Have no labels looked at on the way, and every augmentation on all images."""
    with step_ops.as_on_a_gpu():
        yield


class Tape(TorchDispatchMode):
    """Keeps what is called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in step_ops.WAITS, f"a step reads what {name} gives"
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, kept in self.calls:
            result = func(*args, **kwargs)
            for old, new in zip(tree_leaves(kept), tree_leaves(result), strict=True):
                if isinstance(old, Tensor) and old is not new:
                    old.copy_(new)


class Taped(Captured):
    """Captured steps whose graph is a tape; the steps of a proof are not counted."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        for group in self.optimizer.param_groups:
            group["fused"] = True  # as on a GPU
        self.made = Counter()
        self.places = {}

    def warm_up(self, batch, progress):
        self.made["plain"] += 1
        return Plain.__call__(self, batch, progress)

    def record(self, batch):
        self.made["recorded"] += 1
        with Tape() as tape:
            terms = Plain.__call__(self, batch, self.progress)

        def replay():
            self.made["replayed"] += 1
            tape.replay()

        return terms, replay

    def prove(self, *given):
        super().prove(*given)
        self.made.subtract(["plain", "replayed"])

    def __call__(self, batch, progress):
        """Take a step, and see that no tensor is in another place behind it."""
        recorded = self.made["recorded"]
        terms = super().__call__(batch, progress)
        if self.made["recorded"] == recorded and self.graphs:
            assert self.where() == self.places
        self.places = self.where()
        return terms

    def where(self):
        """Return where everything is that steps read and write."""
        held = [*self.method.parameters(), *self.method.buffers()]
        held += tree_leaves(list(self.optimizer.state.values()))
        held += [self.progress, *self.rate_tensors, *(self.average.means if self.average else ())]
        held += [tensor for taken in self.graphs.values() for tensor in taken.batch]
        return [(id(x), x.data_ptr()) for x in held if isinstance(x, Tensor)]


def experiment(name, options=None, **training):
    """An experiment on toys; ``options`` are over those of conf/."""
    block = yaml.safe_load(Path(CONF, f"parameters_{name}.yml").read_text())
    changes = {name: {"options": options or {}}}
    given = updated({"model": {"backbone": "resnet8"}, **block}, changes)
    config = ExperimentConfig.resolve(name, given)
    mine = {"device": "cpu", "training": TrainingConfig(**{**TRAINING, **training})}
    return Experiment(config.model_copy(update=mine), toy_card())


def stages(one):
    """Return one stage of each role, six epochs long."""
    by_role = {stage.role: stage for stage in one.stages if stage.trains}
    return [replace(stage, epochs=EPOCHS) for stage in by_role.values()]


def trained(one, kind, stage, device=CPU, **given):
    """Return how ``kind`` takes the steps of ``stage``, its states and its history."""
    method, data = one.build(), toy_images((12, 6, 4, 3))
    config = stage_config(one.config.training, stage)
    step = kind(method, with_frozen(method, stage, config), config, device)
    seen = data[stage.subset.draw(data.labels, 0)] if stage.subset else data
    trainer = Trainer(step, stage, seen, 3, toy_images(seed=9))
    trainer.run({}, **given)
    return step, {n: value.cpu() for n, value in method.state_dict().items()}, trainer.history


def compared(one, stage, kind=Taped, device=CPU):
    """Return captured steps that have given what plain ones give."""
    _, *expected = trained(one, Plain, stage, device)
    step, *captured_run = trained(one, kind, stage, device)
    assert not step.given_up
    # a GPU adds up in another order every time
    near = (1e-4, 1e-5) if device == CPU else (5e-2, 5e-3)
    torch.testing.assert_close(captured_run[0], expected[0], rtol=near[0], atol=near[1])
    for name, points in expected[1].items():
        if name not in ("train/seconds", "train/images_per_second"):
            here, there = ([point["value"] for point in p] for p in (captured_run[1][name], points))
            assert here == pytest.approx(there, rel=10 * near[0], abs=10 * near[1]), name
    return step


@pytest.mark.parametrize("name", ["ce", "more"])
def test_a_captured_step_learns_what_a_plain_one_does(name):
    one = experiment(name)
    step = compared(one, *stages(one))
    assert step.made == {"plain": WARM_UP, "recorded": 1, "replayed": EPOCHS * 3 - WARM_UP}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_captured_step_of_every_family_learns_what_a_plain_one_does(name):
    one = experiment(name)
    for stage in stages(one):
        assert compared(one, stage).made["replayed"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "phases", "options"), VARIANTS.values(), ids=VARIANTS)
def test_steps_are_captured_anew_where_they_change_and_only_there(name, phases, options):
    one = experiment(name, options)
    step = compared(one, one.stages[0])
    assert step.made["recorded"] == phases
    assert step.made["plain"] == phases * WARM_UP


@pytest.mark.parametrize(
    "training",
    [
        {"optimizer": {"name": "adamw", "ema": 0.9}, "learning_rate": 0.001},
        {"optimizer": {"ema": 0.9}, "gradient_clip": 0.5, "nesterov": True},
        {"optimizer": {"accumulate": 2}, "momentum": 0.0},
    ],
    ids=["adamw", "average", "parts"],
)
def test_all_of_a_step_is_captured(training):
    one = experiment("ce", **training)
    assert compared(one, *stages(one)).made["replayed"] > 0


def test_a_last_smaller_batch_has_a_graph_of_its_own():
    one = experiment("ce")
    (stage,) = stages(one)
    step = compared(one, replace(stage, remainder=True))
    assert [taken.batch[0].shape[0] for taken in step.graphs.values()] == [8, 1]
    assert step.made["plain"] == 2 * WARM_UP


class Deaf(Taped):
    """Replays without being told anything but the batch."""

    def __call__(self, batch, progress):
        for rate in [*self.rate_tensors, self.progress]:
            rate.fill_ = lambda value: None
        return super().__call__(batch, progress)


class Baked(Taped):
    """Records the rate as a number."""

    def _as_tensors(self):
        return nullcontext()


@pytest.mark.parametrize("kind", [Deaf, Baked])
def test_what_is_baked_into_a_graph_is_found_before_it_is_used(kind, monkeypatch, caplog):
    one = experiment("ce")
    step, *_ = trained(one, kind, *stages(one))
    assert step.given_up
    assert "not captured: the weights of a replayed step are" in caplog.text
    # and these tests see it by themselves
    monkeypatch.setattr(kind, "prove", lambda *given: None)
    with pytest.raises(AssertionError, match="not close"):
        compared(one, *stages(one), kind)


def test_a_proof_leaves_everything_where_it_was():
    one = experiment("ce", optimizer={"ema": 0.9})
    (stage,) = stages(one)
    unproven = type("Unproven", (Taped,), {"prove": lambda *given: None})
    _, expected, history = trained(one, unproven, stage)
    _, captured, points = trained(one, Taped, stage)
    assert all(torch.equal(captured[name], expected[name]) for name in expected)
    assert points["train/cross_entropy"] == history["train/cross_entropy"]


class Rebinding(Method):
    """Counts its steps in a buffer that is another tensor each time."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.register_buffer("seen", torch.zeros(()))

    def loss(self, batch, progress):
        self.seen = self.seen + 1
        return super().loss(batch, progress)


class Counting(Rebinding):
    """Counts its steps in an attribute."""

    steps = 0

    def loss(self, batch, progress):
        self.steps += 1
        return Method.loss(self, batch, progress)


def own(kind):
    return kind(MethodOptions(), ModelConfig(), toy_card())


def steps_of(method, count=6, kind=Taped, **training):
    config = TrainingConfig(**TRAINING, **training)
    step, stage = kind(method, Stage("train"), config, CPU), Stage("train")
    step.begin(Stream(stage, toy_images(), config, views=0, seed=0, device=CPU))
    set_trainable(method, stage)
    for _, batch in zip(range(count), step.stream.epoch(0.0), strict=False):
        step(batch, 0.5)
    return step


@pytest.mark.parametrize(("kind", "name"), [(Rebinding, "seen"), (Counting, "steps")])
def test_a_step_that_changes_what_a_graph_takes_for_given_is_not_captured(kind, name, caplog):
    with caplog.at_level("WARNING"):
        step = steps_of(own(kind))
    assert caplog.messages == [
        f"Steps of stage train are not captured: a step changes or replaces {name}"
    ]
    assert step.made == {"plain": 6}
    with pytest.raises(UserError, match=f"step=captured cannot be had in stage 'train': .*{name};"):
        steps_of(own(kind), step="captured")


def test_what_cannot_be_captured_in_the_end_is_taken_plainly(monkeypatch, caplog):
    def refuse(self, batch):
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernels")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(Taped, "record", refuse)
    assert steps_of(own(Method)).made == {"plain": 6}
    assert caplog.messages == [
        "Steps of stage train are not captured: operation not permitted when stream is capturing"
    ]


def test_threads_capture_one_after_the_other():
    at_work, most = [], []

    class Slow(Taped):
        def warm_up(self, batch, progress):
            return self.watched(super().warm_up, batch, progress)

        def record(self, batch):
            return self.watched(super().record, batch)

        def watched(self, work, *given):
            at_work.append(self)
            most.append(len(at_work))
            sleep(0.01)
            result = work(*given)
            at_work.remove(self)
            return result

    with ThreadPoolExecutor(2) as pool:
        steps = list(pool.map(lambda _: steps_of(own(Method), kind=Slow), range(2)))
    assert [step.made for step in steps] == [{"plain": 3, "recorded": 1, "replayed": 3}] * 2
    assert most == [1] * 10


def test_a_training_goes_on_where_another_kind_of_step_stopped(tmp_path):
    one = experiment("ce", optimizer={"ema": 0.9}, checkpoint_every=0)
    (stage,) = stages(one)
    _, expected, _ = trained(one, Plain, stage)
    for first, second in ((Plain, Taped), (Taped, Plain)):
        file = Halfway(tmp_path / first.__name__)
        with pytest.raises(KeyboardInterrupt):
            trained(one, first, stage, resume=file)
        _, resumed, _ = trained(one, second, stage, resume=file)
        torch.testing.assert_close(resumed, expected, rtol=1e-4, atol=1e-5)


class Halfway:
    """Keeps the state behind the third epoch, where the process is stopped."""

    def __init__(self, path) -> None:
        self.path = path

    def load(self):
        return torch.load(self.path, weights_only=True) if self.path.exists() else None

    def save(self, state) -> None:
        if not self.path.exists() and state["epoch"] == 3:
            torch.save(state, self.path)
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("step", "device", "kind"),
    [
        ("auto", "cpu", Plain),
        ("plain", "cuda", Plain),
        ("compiled", "cpu", Compiled),
        ("auto", "cuda", Captured),
        ("captured", "cuda", Captured),
    ],
)
def test_a_step_is_captured_on_a_gpu_unless_told_otherwise(step, device, kind, monkeypatch):
    # what is chosen, without the device
    monkeypatch.setattr(Plain, "__init__", lambda self, *args: None)
    monkeypatch.setattr(Captured, "__init__", lambda self, *args: None)
    monkeypatch.setattr(Compiled, "__init__", lambda self, *args: None)
    config = TrainingConfig(step=step)
    chosen = step_for(own(Method), Stage("train"), config, torch.device(device))
    assert type(chosen) is kind


def test_captured_steps_without_a_gpu_are_refused_in_one_line():
    config = TrainingConfig(step="captured")
    with pytest.raises(UserError, match=r"^training.step=captured .* 'train': only CUDA.*cpu; set"):
        fit(own(Method), Stage("train"), toy_images(), config, seed=0, device=CPU)
    with pytest.raises(UserError, match=r"training.step=captured .* device is cpu"):
        ExperimentConfig(method="ce", device="cpu", training=config).check_device()


def test_what_draws_for_each_part_of_a_batch_is_not_captured(caplog, monkeypatch):
    monkeypatch.setattr(Plain, "__init__", lambda self, *args: None)
    one = experiment("darl", optimizer={"accumulate": 2})
    with caplog.at_level("INFO"):
        step = step_for(one.build(), one.stages[0], one.config.training, torch.device("cuda"))
    assert type(step) is Plain
    assert "Steps of stage train are not captured: optimizer.accumulate is above 1" in caplog.text


# on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["ce", *FAMILIES])
def test_on_a_gpu_a_graph_learns_what_plain_steps_do(name):
    one = experiment(name)
    for stage in stages(one):
        step = compared(one, stage, Captured, torch.device("cuda"))
        assert step.graphs


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["ce", *FAMILIES])
def test_on_a_gpu_nothing_waits_in_a_whole_epoch(name):
    class Watched(Captured):
        def epoch(self, epoch, tick):
            torch.cuda.set_sync_debug_mode("error" if epoch >= 4 else "default")
            try:
                return super().epoch(epoch, tick)
            finally:
                torch.cuda.set_sync_debug_mode("default")

    one = experiment(name)
    for stage in stages(one):
        step, *_ = trained(one, Watched, stage, torch.device("cuda"))
        assert step.graphs


@pytest.mark.gpu
def test_on_a_gpu_what_cannot_be_captured_is_taken_plainly_and_draws_go_on(caplog):
    class Waiting(Method):
        def loss(self, batch, progress):
            terms = super().loss(batch, progress)
            (value,) = terms.values()
            return {"kept": nn.functional.dropout(value, 0.1) * float(value.detach() > 0)}

    one = experiment("ce")
    method, device, config = own(Waiting), torch.device("cuda"), one.config.training
    step = Captured(method, one.stages[0], config, device)
    Trainer(step, one.stages[0], toy_images(), 0).run({})
    assert step.given_up
    assert "Steps of stage train are not captured: " in caplog.text


@pytest.mark.gpu
def test_on_a_gpu_dropout_draws_anew_in_every_replay():
    class Dropping(Method):
        def loss(self, batch, progress):
            ones = torch.ones(1000, device=batch.images.device)
            kept = nn.functional.dropout(ones, 0.5).mean()
            return {**super().loss(batch, progress), "kept": 0.0 * kept + kept.detach()}

    method, device = own(Dropping), torch.device("cuda")
    config, stage = TrainingConfig(**TRAINING), Stage("train")
    step = Captured(method, stage, config, device)
    step.begin(Stream(stage, toy_images(), config, views=0, seed=0, device=device))
    set_trainable(method, stage)
    batches = list(step.stream.epoch(0.0))[:1] * 12
    drawn = [float(step(batch, 0.5)["kept"]) for batch in batches]
    assert step.graphs
    assert len({*drawn}) > 8
