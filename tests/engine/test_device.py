from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lt_pipeline.engine.config import TrainingConfig
from lt_pipeline.engine.device import autocast, without_tf32
from lt_pipeline.engine.loop import fit
from lt_pipeline.engine.phase import Phase
from lt_pipeline.methods._base import Method, MethodOptions
from lt_pipeline.models.network import ModelConfig
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


class Seeing(Method):
    """Notes in what precision its loss and its gradient are computed."""

    needs_float32 = False

    def loss(self, batch, progress):
        logits = self.net(batch.images)
        self.seen = {"forward": (logits.dtype, *switches())}
        logits.register_hook(lambda _: self.seen.update(backward=switches()))
        return {"loss": F.cross_entropy(logits, batch.labels)}


class Exact(Seeing):
    needs_float32 = True


@pytest.mark.parametrize(
    ("kind", "forward"),
    [(Seeing, (torch.bfloat16, True, True)), (Exact, (torch.float32, False, False))],
)
def test_a_step_is_as_exact_as_the_method_asks_forward_and_backward(kind, forward, before):
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    method = kind(MethodOptions(), ModelConfig(backbone="resnet8"), toy_card())
    config = TrainingConfig(epochs=1, batch_size=25, warmup_epochs=0, precision="bfloat16")
    fit(method, Phase("train", 1), toy_images(), config, seed=0, device=CPU)
    assert method.seen == {"forward": forward, "backward": forward[1:]}
