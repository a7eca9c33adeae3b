"""benchmarks/passes_cost.py at toy size."""

from __future__ import annotations

import sys
from argparse import Namespace
from contextlib import nullcontext

import pytest
import torch

from lt_pipeline.learning.experiments.config import ExperimentConfig
from toys import PROJECT

sys.path[:0] = [str(PROJECT), str(PROJECT / "benchmarks")]

import passes_cost  # noqa: E402
from step_ops import noise  # noqa: E402
from variants import parameters  # noqa: E402


class Stream:
    """Stands for a stream where there is none."""

    def wait_stream(self, other):
        assert isinstance(other, Stream)


@pytest.fixture
def streams(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)


def trainings(way, device="cpu"):
    """MORE with both passes one after the other, and in another way, in float64."""
    changes = ["model.backbone=resnet8", "training.batch_size=24", "training.step=plain"]
    base = parameters("base", [*changes, f"device={device}"])
    config = ExperimentConfig.resolve("more", base)
    for name in ("two", way):
        (training,) = passes_cost.steps(config, noise(base), ["two"]).values()
        training.method.double()
        # B A is zero at the start
        generator = torch.Generator().manual_seed(0)
        for path, value in training.method.named_parameters():
            if path.endswith(".up"):
                value.data += 0.1 * torch.rand(value.shape, generator=generator).to(value)
        passes_cost.WAYS[name](training.method)
        yield training


def taken(training, batch):
    """The terms of a step, what it leaves in buffers, and all gradients."""
    method = training.method
    terms = training.taken.gradients(batch, 0.5, 1.0)
    gradients = {name: value.grad for name, value in method.named_parameters()}
    return terms, {name: value.clone() for name, value in method.named_buffers()}, gradients


def check(way, device):
    two, other = trainings(way, device)
    for batch in two.batches(2):
        wanted, found = (taken(training, batch) for training in (two, other))
        assert all((value.abs() > 0).any() for value in wanted[2].values())
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert wanted[0]["rebalancing"] > 0


@pytest.mark.parametrize("way", ["one", "streams"])
def test_outputs_statistics_and_gradients_are_those_of_two_passes(way, streams):
    check(way, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["one", "streams"])
def test_on_a_gpu_they_are_too(way):
    check(way, "cuda")


@pytest.mark.parametrize("channels_last", [True, False])
def test_layers_in_both_ways_give_one_gradient_for_each_weight(channels_last):
    found = dict(passes_cost.layers(2, torch.device("cpu"), channels_last))
    assert len(found) == 9
    for work in found.values():
        apart, (*whole,) = work["two"](), work["one"]()
        assert sum(g.numel() for one in apart for g in one) == sum(g.numel() for g in whole)


def test_a_table_has_a_row_a_piece_of_work_and_way():
    asked = Namespace(env="base", device="cpu", batches=[8], backbone="resnet8", turns=1)
    found = list(passes_cost.rows(asked))
    assert [row["way"] for row in found] == ["two", "one"] * (len(found) // 2)
    steps = [row for row in found if row["what"] == "step"]
    for two, one in zip(steps[::2], steps[1::2], strict=True):
        assert one["captured_launches"] < two["captured_launches"]
        assert one["megabytes_an_image"] > 0.9 * two["megabytes_an_image"]
