from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from lt_pipeline.learning.losses import outliers
from lt_pipeline.learning.losses.ambiguity import energy

# images 0 to 2 have a class, 3 to 6 are outliers
LABELS = torch.tensor([1, 0, 4, -1, -1, -1, -1])


def noise(*shape, seed=0, scale=4.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_the_uniform_loss_by_hand():
    z = noise(4, 5)
    mean = outliers.uniform_loss(z)
    for row, loss in zip(z.tolist(), mean.tolist(), strict=True):
        total = math.fsum(math.exp(value) for value in row)
        wanted = -math.fsum(math.log(math.exp(value) / total) for value in row) / 5
        assert loss == pytest.approx(wanted)


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=20))
def test_the_uniform_loss_of_large_logits_is_finite_and_at_least_log_c(z):
    for dtype in (torch.float32, torch.float64):
        loss = outliers.uniform_loss(torch.tensor([z], dtype=dtype))
        assert loss.isfinite().all()
        assert loss.item() >= math.log(len(z)) - 1e-5


def test_equal_logits_however_large_have_the_least_loss():
    loss = outliers.uniform_loss(torch.full((2, 10), 1e4))
    torch.testing.assert_close(loss, torch.full((2,), math.log(10)))


def test_the_gradient_of_the_uniform_loss_is_softmax_minus_one_over_c():
    z = noise(4, 5).requires_grad_()
    outliers.uniform_loss(z).sum().backward()
    torch.testing.assert_close(z.grad, z.detach().softmax(1) - 1 / 5)
    assert gradcheck(outliers.uniform_loss, z)


def test_the_energy_margins_by_hand():
    inside = torch.tensor([-30.0, -23.0, -20.0, 0.0])
    outside = torch.tensor([-9.0, -5.0, 0.0])
    loss_in, loss_out = outliers.energy_margin(inside, outside, -23.0, -5.0)
    assert loss_in.tolist() == [0, 0, 9, 23**2]
    assert loss_out.tolist() == [16, 0, 0]


def test_margins_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="m_in must be <= m_out, .* they are -5 and -23"):
        outliers.energy_margin(noise(2), noise(2), -5.0, -23.0)


def test_the_gradients_of_the_energy_margins():
    z, other = noise(4, 5).requires_grad_(), noise(3, 5, seed=1).requires_grad_()
    assert gradcheck(
        lambda a, b: outliers.energy_margin(energy(a, 1.0), energy(b, 1.0), -9.0, -3.0), (z, other)
    )
    terms = outliers.energy_margin(energy(z, 1.0), energy(other, 1.0), -9.0, -3.0)
    assert all((term > 0).any() for term in terms), "a test of zeros is none"


def test_the_losses_are_those_of_pytorch_ood():
    theirs = pytest.importorskip("pytorch_ood.loss")
    z = noise(7, 5).float()  # their exposure loss takes no other type
    oe = theirs.OutlierExposureLoss(alpha=1.0, reduction="none")(z, LABELS)
    torch.testing.assert_close(outliers.uniform_loss(z[3:]), oe[3:])
    m_in, m_out = -9.0, -3.0
    loss_in, loss_out = outliers.energy_margin(energy(z[:3], 1.0), energy(z[3:], 1.0), m_in, m_out)
    with_energy, without = (
        theirs.EnergyRegularizedLoss(alpha, m_in, m_out)(z, LABELS) for alpha in (1.0, 0.0)
    )
    torch.testing.assert_close(loss_in.mean() + loss_out.mean(), with_energy - without)
    each = theirs.EnergyRegularizedLoss(1.0, m_in, m_out, reduction="none")(z, LABELS)
    torch.testing.assert_close(loss_out, each[3:])
    assert loss_in.any()
    assert loss_out.any()


def test_half_precision_logits_are_treated_in_single_precision():
    z = noise(16, 10).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = outliers.uniform_loss(z)
        terms = outliers.energy_margin(energy(z, 1.0), energy(z, 1.0), -9.0, -3.0)
    assert {t.dtype for t in (loss, *terms)} == {torch.float32}
    wanted = outliers.uniform_loss(z.double())
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-6, atol=1e-5)


def test_no_outliers_no_losses():
    assert outliers.uniform_loss(torch.zeros(0, 5)).shape == (0,)
    loss_in, loss_out = outliers.energy_margin(torch.zeros(2), torch.zeros(0), -9.0, -3.0)
    assert (loss_in.shape, loss_out.shape) == ((2,), (0,))


def test_no_value_is_read_on_the_host():
    z = torch.zeros(4, 5, device="meta")
    assert outliers.uniform_loss(z).shape == (4,)
    assert len(outliers.energy_margin(z[:, 0], z[:, 1], -9.0, -3.0)) == 2
