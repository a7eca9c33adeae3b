from __future__ import annotations

import copy
import os
import subprocess
import sys
from functools import partial
from threading import Barrier, Thread

import pytest
import torch
from torch.nn import functional as F

from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.device import autocast, enough_threads, memory_format, without_tf32
from lt_pipeline.learning.engine.parallel import results, side_by_side
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.engine.trainer import fit
from lt_pipeline.learning.methods.families.base import Method, MethodOptions
from lt_pipeline.learning.models.network import ModelConfig
from toys import toy_card, toy_images

CPU = torch.device("cpu")


def switches():
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.fixture(params=[(True, False), (True, True), (False, False)])
def before(request):
    kept = switches()
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = request.param
    yield request.param
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept


def test_tf32_is_off_inside_the_block_and_as_before_afterwards(before):
    with without_tf32():
        assert switches() == (False, False)
    assert switches() == before
    with pytest.raises(RuntimeError, match="mine"), without_tf32():
        raise RuntimeError("mine")
    assert switches() == before


def test_tf32_is_off_until_no_thread_wants_it_off(before):
    both, one_is_out = Barrier(2), Barrier(2)
    seen = []

    def first():
        with without_tf32():
            both.wait(5)
        one_is_out.wait(5)

    def second():
        with without_tf32():
            both.wait(5)
            one_is_out.wait(5)
            seen.append(switches())

    threads = [Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [(False, False)]
    assert switches() == before


def test_tf32_stays_where_it_may(before):
    with without_tf32(False):
        assert switches() == before


@pytest.mark.parametrize(
    ("precision", "exact", "wanted"),
    [
        ("bfloat16", False, torch.bfloat16),
        ("bfloat16", True, torch.float32),
        ("float32", False, torch.float32),
        ("auto", False, torch.float32),
    ],
)
def test_autocast_is_what_the_precision_says_unless_it_must_be_exact(precision, exact, wanted):
    x = torch.ones(2, 2)
    with autocast(TrainingConfig(precision=precision), CPU, exact=exact):
        assert (x @ x).dtype == wanted


class Noting(torch.autograd.Function):
    """Passes logits on, and notes the switches in the backward pass."""

    @staticmethod
    def forward(ctx, logits):
        return logits.clone()

    @staticmethod
    def backward(ctx, gradient):
        Seeing.backward = switches()
        return gradient


class Seeing(Method):
    """Notes in what precision its loss and its gradient are computed."""

    needs_float32 = False

    def loss(self, batch, progress):
        logits = self.net(batch.images)
        Seeing.forward_pass = (torch.is_autocast_enabled("cpu"), *switches())
        return {"loss": F.cross_entropy(Noting.apply(logits), batch.labels)}


class Exact(Seeing):
    needs_float32 = True


@pytest.mark.parametrize("way", ["alone", "in threads"])
@pytest.mark.parametrize(
    ("kind", "forward"),
    [(Seeing, (True, True, True)), (Exact, (False, False, False))],
)
def test_a_step_is_as_exact_as_the_method_asks_forward_and_backward(way, kind, forward, before):
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    method = kind(MethodOptions(), ModelConfig(backbone="resnet8"), toy_card())
    config = TrainingConfig(epochs=1, batch_size=25, warmup_epochs=0, precision="bfloat16")
    stage, data = Stage("train", epochs=1), toy_images()
    methods = [method] if way == "alone" else [method, copy.deepcopy(method)]
    tasks = [partial(fit, m, stage, data, config, seed=0, device=CPU) for m in methods]
    results(side_by_side(tasks, CPU))
    assert Seeing.forward_pass == forward
    assert Seeing.backward == forward[1:]
    assert switches() == (True, True)


@pytest.mark.parametrize(
    ("shape", "threads"),
    [((64, 1, 8, 8), 1), ((256, 1, 8, 8), 2), ((64, 3, 32, 32), 4), ((64, 2048), 1)],
)
def test_threads_are_as_many_as_a_batch_is_worth_and_no_more_than_there_were(shape, threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        with enough_threads(CPU, shape):
            assert torch.get_num_threads() == threads
        with pytest.raises(RuntimeError, match="mine"), enough_threads(CPU, shape):
            raise RuntimeError("mine")
        assert torch.get_num_threads() == 4
        torch.set_num_threads(1)
        with enough_threads(CPU, shape):
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_threads_that_wait_sleep_unless_it_is_said_otherwise():
    show = "import lt_pipeline, os; print(os.environ['OMP_WAIT_POLICY'])"
    for given, policy in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        rest = {name: v for name, v in os.environ.items() if name != "OMP_WAIT_POLICY"}
        said = subprocess.run(
            [sys.executable, "-c", show], env=rest | given, check=True, capture_output=True
        )
        assert said.stdout.decode().strip() == policy


@pytest.mark.parametrize(
    ("values", "device", "there", "wanted"),
    [
        ({}, "cpu", True, torch.channels_last),
        ({}, "cpu", False, torch.contiguous_format),
        ({}, "cuda", False, torch.channels_last),
        ({}, "mps", True, torch.contiguous_format),
        ({"features": "cached"}, "cpu", True, torch.contiguous_format),
        ({"channels_last": False}, "cuda", True, torch.contiguous_format),
        ({"channels_last": True}, "cpu", False, torch.channels_last),
    ],
)
def test_images_lie_channels_last_where_convolutions_are_faster_so(
    monkeypatch, values, device, there, wanted
):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: there)
    assert memory_format(TrainingConfig(**values), torch.device(device)) == wanted


def test_channels_last_is_the_same_training_to_noise():
    trained = []
    for channels_last in ("auto", False):
        torch.manual_seed(0)
        method = Method(MethodOptions(), ModelConfig(backbone="resnet8"), toy_card())
        config = TrainingConfig(epochs=1, warmup_epochs=0, channels_last=channels_last)
        fit(method, Stage("train", epochs=1), toy_images(), config, seed=0, device=CPU)
        trained.append(method.state_dict())
    layout = trained[0]["net.backbone.stem.weight"]
    assert layout.is_contiguous(memory_format=torch.channels_last)
    for name, value in trained[1].items():
        torch.testing.assert_close(trained[0][name], value, rtol=1e-3, atol=1e-5, msg=name)
