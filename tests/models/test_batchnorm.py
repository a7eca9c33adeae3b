from __future__ import annotations

import pytest
import torch
from torch import nn

from lt_pipeline.models.batchnorm import frozen_batchnorm_statistics, reestimate_batchnorm


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


def test_reestimation_puts_back_every_mode_and_momentum_also_after_an_error():
    def failing():
        yield batches()[0]
        raise RuntimeError("mine")

    net = nn.Sequential(nn.BatchNorm2d(2, momentum=0.3), nn.BatchNorm2d(2)).train()
    net[1].eval()
    reestimate_batchnorm(net, batches())
    with pytest.raises(RuntimeError, match="mine"):
        reestimate_batchnorm(net, failing())
    assert [m.training for m in net.modules()] == [True, True, False]
    assert [m.momentum for m in net] == [0.3, 0.1]


def test_dropout_does_not_reach_the_statistics():
    net = nn.Sequential(nn.Dropout(0.5), *layer()).train()
    reestimate_batchnorm(net, batches(1))
    torch.testing.assert_close(net[1].running_mean, batches(1)[0].mean((0, 2, 3)))
    assert net[0].training


def test_the_statistics_are_those_of_the_pass_that_is_told():
    net = layer()
    reestimate_batchnorm(net, batches(1), forward=lambda x: net(2 * x))
    torch.testing.assert_close(net[0].running_mean, 2 * batches(1)[0].mean((0, 2, 3)))


def test_no_batch_is_refused_and_leaves_the_statistics():
    net = layer()
    net[0].running_mean.fill_(9.0)
    with pytest.raises(ValueError, match="at least one batch"):
        reestimate_batchnorm(net, [])
    assert (net[0].running_mean == 9).all()


def test_reestimated_statistics_are_the_mean_over_the_batches():
    net = layer().eval()
    net[0].running_mean.fill_(99.0)
    reestimate_batchnorm(net, batches())
    means = torch.stack([x.mean((0, 2, 3)) for x in batches()])
    variances = torch.stack([x.var((0, 2, 3)) for x in batches()])
    torch.testing.assert_close(net[0].running_mean, means.mean(0))
    torch.testing.assert_close(net[0].running_var, variances.mean(0))
    assert not net.training
    assert net[0].momentum == 0.1
