from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lt_pipeline.learning.models.batchnorm import (
    batches_counted_at_once,
    frozen_batchnorm_statistics,
    reestimate_batchnorm,
)


def layer():
    return nn.Sequential(nn.BatchNorm2d(2))


def batches(count=3):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(4, 2, 3, 3, generator=generator) + i for i in range(count)]


def test_a_frozen_pass_normalises_by_the_batch_and_leaves_no_trace():
    net = layer().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = batches()[1]
    with frozen_batchnorm_statistics(net):
        out = net(x)
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(out, (x - mean) / (variance + 1e-5).sqrt())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net(x)
    assert net[0].num_batches_tracked == 1


def test_statistics_are_tracked_again_after_an_error():
    net = layer()
    with pytest.raises(RuntimeError, match="mine"), frozen_batchnorm_statistics(net):
        raise RuntimeError("mine")
    assert net[0].track_running_stats


def test_batches_are_counted_at_once_as_they_are_alone():
    net = nn.ModuleDict({"once": layer(), "twice": layer(), "still": layer(), "mean": layer()})
    net["still"].eval()
    net["mean"][0].momentum = None  # it divides by its count
    before = net.state_dict()["twice.0.num_batches_tracked"]
    with batches_counted_at_once(net), Called() as made:
        for name in ("once", "twice", "twice", "still", "mean"):
            net[name](batches()[0])
        assert net["twice"][0].running_mean.any()
    state = net.state_dict()
    counts = {n.split(".")[0]: int(v) for n, v in state.items() if n.endswith("tracked")}
    assert counts == {"once": 1, "twice": 2, "still": 0, "mean": 1}
    assert [*state] == [*nn.ModuleDict({n: layer() for n in net}).state_dict()]
    assert state["twice.0.num_batches_tracked"].data_ptr() == before.data_ptr()
    assert made.names.count("add_") == 1, "of the mean alone"


class Called(TorchDispatchMode):
    """Keeps the names of what is called inside."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_counts_are_back_in_their_places_after_an_error():
    net = layer()
    with pytest.raises(RuntimeError, match="mine"), batches_counted_at_once(net):
        raise RuntimeError("mine")
    net(batches()[0])
    assert net.state_dict()["0.num_batches_tracked"] == 1


def images(count=12):
    """Images of which each is brighter than the one before, as sets are in order of the class."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 2, 3, 3, generator=generator) + torch.arange(count).view(-1, 1, 1, 1)


def reestimate(net, given, **more):
    reestimate_batchnorm(net, given, device=torch.device("cpu"), **more)


def seen_batches(given, size):
    """Return the batches that the statistics are of."""
    seen, net = [], layer()
    net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    reestimate(net, given, batch_size=size)
    return seen


class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("mine")


def test_reestimation_puts_back_every_mode_and_momentum_also_after_an_error():
    net = nn.Sequential(nn.BatchNorm2d(2, momentum=0.3), nn.BatchNorm2d(2)).train()
    net[1].eval()
    reestimate(net, images())
    with pytest.raises(RuntimeError, match="mine"):
        reestimate(net.append(Failing()), images())
    assert [m.training for m in net.modules()] == [True, True, False, True]
    assert [m.momentum for m in net[:2]] == [0.3, 0.1]


def test_dropout_does_not_reach_the_statistics():
    net = nn.Sequential(nn.Dropout(0.5), *layer()).train()
    reestimate(net, images())
    torch.testing.assert_close(net[1].running_mean, images().mean((0, 2, 3)))
    assert net[0].training


def test_no_image_is_refused_and_leaves_the_statistics():
    net = layer()
    net[0].running_mean.fill_(9.0)
    with pytest.raises(ValueError, match="at least one image"):
        reestimate(net, images(0))
    assert (net[0].running_mean == 9).all()


@pytest.mark.parametrize(("size", "sizes"), [(12, [12]), (5, [4, 4, 4]), (7, [6, 6]), (100, [12])])
def test_batches_are_equally_large_and_of_images_from_all_over_the_set(size, sizes):
    seen = seen_batches(images(), size)
    assert [len(batch) for batch in seen] == sizes
    places = [batch.mean((1, 2, 3)).floor().int().tolist() for batch in seen]
    assert sorted(place for batch in places for place in batch) == list(range(12))
    assert all(place != sorted(place) for place in places)
    assert [b.tolist() for b in seen] == [b.tolist() for b in seen_batches(images(), size)]


def test_reestimated_statistics_are_the_mean_over_the_batches():
    net = layer().eval()
    net[0].running_mean.fill_(99.0)
    reestimate(net, images(), batch_size=5)
    seen = seen_batches(images(), 5)
    means = torch.stack([x.mean((0, 2, 3)) for x in seen])
    variances = torch.stack([x.var((0, 2, 3)) for x in seen])
    torch.testing.assert_close(net[0].running_mean, means.mean(0))
    torch.testing.assert_close(net[0].running_var, variances.mean(0))
    assert not net.training
    assert net[0].momentum == 0.1


def test_the_order_of_a_set_that_is_sorted_by_class_does_not_shrink_the_variance():
    """What a batch of one class would: here all of the variance is between the classes."""
    net = layer()
    given = torch.arange(8).repeat_interleave(64).view(-1, 1, 1, 1).expand(-1, 2, 3, 3).float()
    reestimate(net, given, batch_size=64)
    ratio = net[0].running_var / given.var((0, 2, 3))
    assert ((ratio > 0.9) & (ratio < 1.1)).all()
