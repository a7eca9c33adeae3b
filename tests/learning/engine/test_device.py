from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.device import autocast, without_tf32
from lt_pipeline.learning.engine.parallel import fit_together
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.engine.trainer import fit
from lt_pipeline.learning.methods._base import Method, MethodOptions
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

    generate_vmap_rule = True

    @staticmethod
    def forward(logits):
        return logits.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

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


@pytest.mark.parametrize("way", ["alone", "stacked", "in threads"])
@pytest.mark.parametrize(
    ("kind", "forward"),
    [(Seeing, (True, True, True)), (Exact, (False, False, False))],
)
def test_a_step_is_as_exact_as_the_method_asks_forward_and_backward(way, kind, forward, before):
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    method = kind(MethodOptions(), ModelConfig(backbone="resnet8"), toy_card())
    config = TrainingConfig(epochs=1, batch_size=25, warmup_epochs=0, precision="bfloat16")
    phase, data = Stage("train", epochs=1), toy_images()
    if way == "alone":
        fit(method, phase, data, config, seed=0, device=CPU)
    else:
        given = [phase] * 2, [data] * 2, config
        fit_together(method, *given, seeds=[0, 1], device=CPU, vmap=way == "stacked")
    assert Seeing.forward_pass == forward
    assert Seeing.backward == forward[1:]
    assert switches() == (True, True)
