from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lt_pipeline.learning.evaluation.diagnostics.landscape import (
    Hessian,
    curvature,
    extreme_eigenvalues,
    imbalance,
    trace,
)
from toys import seeded


def quadratic(eigenvalues):
    """x' A x / 2 in two tensors, A dense with these eigenvalues."""
    size = len(eigenvalues)
    turn = torch.linalg.qr(torch.randn(size, size, generator=seeded(), dtype=torch.float64)).Q
    matrix = turn @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ turn.T
    parameters = [torch.zeros(2, dtype=torch.float64), torch.zeros(size - 2, dtype=torch.float64)]
    parameters = [nn.Parameter(p) for p in parameters]

    def loss(share):
        x = torch.cat(parameters)
        return share * (x @ matrix @ x) / 2

    return Hessian([partial(loss, 0.25), partial(loss, 0.75)], parameters), matrix


def tiny(several=False):
    """A network with a convolution, BatchNorm and a classifier; its loss, dense and in parts."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)
    ).double()
    images = torch.randn(10, 1, 4, 4, dtype=torch.float64)
    net(images)  # running statistics that are not the start's
    net.eval()
    labels = torch.arange(10) % 3
    wanted = F.one_hot(labels, 3).double() if several else labels
    of = F.binary_cross_entropy_with_logits if several else F.cross_entropy
    loss = partial(of, reduction="none")

    def part(chosen):
        each = loss(net(images[chosen]), wanted[chosen])
        return each.sum() / len(images)

    hessian = Hessian([partial(part, p) for p in torch.arange(10).split(4)], net.parameters())
    named = dict(net.named_parameters())

    def flat(vector):
        pieces = vector.split([p.numel() for p in named.values()])
        own = {n: v.view_as(named[n]) for n, v in zip(named, pieces, strict=True)}
        return loss(torch.func.functional_call(net, own, images), wanted).sum() / len(images)

    at = torch.cat([p.detach().flatten() for p in named.values()])
    return hessian, torch.func.hessian(flat)(at), net


@pytest.mark.parametrize("several", [False, True])
def test_products_are_those_of_the_dense_hessian(several):
    hessian, dense, net = tiny(several)
    vector = torch.randn(hessian.size, generator=seeded(1), dtype=torch.float64)
    assert dense.norm() > 0.1
    torch.testing.assert_close(hessian @ vector, dense @ vector, rtol=1e-9, atol=1e-12)
    assert hessian.products == 1
    assert all(p.grad is None for p in net.parameters()), "no gradient is left behind"


@pytest.mark.parametrize("several", [False, True])
def test_the_curvature_is_that_of_the_dense_hessian(several):
    hessian, dense, _ = tiny(several)
    values = torch.linalg.eigvalsh(dense)
    spectrum = curvature(hessian, seeded(), 200, hessian.size, 1e-10)
    assert spectrum.lambda_min == pytest.approx(float(values[0]), rel=1e-6)
    assert spectrum.lambda_max == pytest.approx(float(values[-1]), rel=1e-8)
    assert spectrum.trace == pytest.approx(float(dense.trace()), rel=1e-8)
    assert spectrum.gamma == pytest.approx(float(values[0] / values[-1]).__abs__(), rel=1e-6)
    assert spectrum.converged
    assert spectrum.lambda_min < 0, "the toy has a negative direction to be found"


def test_the_ends_come_from_inside_and_say_whether_they_are_there():
    hessian, _ = quadratic([-1.0, *torch.linspace(0, 5, 60).tolist(), 9.0])
    start = hessian.draw(seeded())[:, 0]
    before = extreme_eigenvalues(hessian, start, 1)
    assert hessian.products == 1
    for steps in (4, 8, 16):
        ends = extreme_eigenvalues(hessian, start, steps)
        assert -1 - 1e-9 <= ends.smallest < before.smallest
        assert 9 + 1e-9 >= ends.largest > before.largest
        assert not ends.converged
        before = ends
    hessian.products = 0
    ends = extreme_eigenvalues(hessian, start, 500, tolerance=0.01)
    assert ends.converged
    assert hessian.products < 40, "it ends when it may"
    assert ends.smallest == pytest.approx(-1, rel=0.01)
    assert ends.largest == pytest.approx(9, rel=0.01)


def test_eigenvalues_that_repeat_and_spaces_that_end_are_no_trouble():
    hessian, _ = quadratic([2.0, 2.0, 2.0, -0.5, -0.5])
    ends = extreme_eigenvalues(hessian, hessian.draw(seeded())[:, 0], 50)
    assert ends.converged
    assert (ends.smallest, ends.largest) == (pytest.approx(-0.5), pytest.approx(2.0))
    assert hessian.products <= 4, "two eigenvalues are two dimensions"


def test_a_linear_loss_has_no_curvature():
    weight = nn.Parameter(torch.ones(3))
    spectrum = curvature(Hessian([weight.sum], [weight]), seeded(), 5, 2, 0.01)
    assert spectrum == (3.0, 0.0, 0.0, 0.0, 0.0, True)


def test_a_few_large_eigenvalues_are_in_the_trace_exactly():
    large = [100.0, 50.0, 20.0, -10.0]
    hessian, matrix = quadratic([*large, *[0.0] * 60])
    estimate = trace(hessian, hessian.draw(seeded(), 2 * len(large)))
    assert estimate == pytest.approx(float(matrix.trace()), rel=1e-9)
    assert hessian.products == 3 * len(large)


def test_the_trace_of_many_eigenvalues_is_right_in_the_mean():
    hessian, matrix = quadratic(torch.linspace(0, 1, 64).tolist())
    estimates = [trace(hessian, hessian.draw(seeded(k), 10)) for k in range(40)]
    mean, error = torch.tensor(estimates).mean(), torch.tensor(estimates).std() / 40**0.5
    assert abs(mean - matrix.trace()) < 4 * error
    assert error < 0.05 * matrix.trace()


def test_signs_are_signs_and_the_same_for_a_seed():
    hessian, _ = quadratic([1.0, 2.0, 3.0])
    signs = hessian.draw(seeded(), 50)
    assert signs.shape == (3, 50)
    assert signs.unique().tolist() == [-1, 1]
    assert torch.equal(signs, hessian.draw(seeded(), 50))
    assert not torch.equal(signs, hessian.draw(seeded(1), 50))


def test_the_imbalance_is_of_sizes():
    assert imbalance([-4.0, 2.0, -0.5]) == 8
    assert imbalance([1.0]) == 1
    assert imbalance([0.0, 3.0]) is None
