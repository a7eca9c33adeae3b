from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.losses import binary
from lt_pipeline.learning.losses.criteria import Head
from toys import seeded

COUNTS, IMAGES = (40, 12, 5, 3), 50
GROUPS = ("many", "medium", "few", "few")
LONGTAIL = LongTail(COUNTS, ("a", "b", "c", "d"), GROUPS, "by hand", IMAGES)
LOGITS = torch.tensor(
    [
        [1.5, -0.5, 0.25, -2.0],
        [-1.0, 2.0, -0.75, 0.5],
        [0.0, 0.5, 1.0, -1.0],
        [0.3, -1.2, -0.4, 0.8],
    ]
)
LABELS = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 1]], dtype=torch.uint8)
# what the released code (wutong16/DistributionBalancedLoss, 14460d0) gives for these, gamma = 2 and
# without the focal part, with the parameters of its VOC-MLT configuration
RELEASED = {
    2.0: [
        [0.014224, 0.00017, 0.358102, 0.0],
        [0.599351, 0.004059, 4e-06, 0.901289],
        [0.013544, 0.249637, 0.037152, 1.537002],
        [0.037329, 0.0, 0.000551, 0.083247],
    ],
    0.0: [
        [0.218607, 0.016419, 0.311872, 9e-06],
        [0.56494, 0.139975, 0.004587, 0.539537],
        [0.025304, 0.14747, 0.248728, 1.417023],
        [0.104721, 0.000204, 0.023568, 0.416989],
    ],
}


def build(config):
    return config.build(LONGTAIL, Head(8))


def some(count=64, classes=5, generator=None):
    generator = generator or seeded(3)
    logits = 4 * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(2, (count, classes), generator=generator).double()


def test_bce_is_the_sum_over_the_classes_in_float64():
    p, y = LOGITS.double().sigmoid(), LABELS.double()
    wanted = -(y * p.log() + (1 - y) * (1 - p).log()).sum(1)
    torch.testing.assert_close(build(binary.BceConfig())(LOGITS.double(), LABELS), wanted)


def test_one_label_an_image_is_one_hot():
    labels = torch.tensor([2, 0, 1, 3])
    criterion = build(binary.AsymmetricConfig())
    one_hot = F.one_hot(labels, 4).to(torch.uint8)
    assert torch.equal(criterion(LOGITS, labels), criterion(LOGITS, one_hot))
    with pytest.raises(ValueError, match=r"0\.\.3"):
        criterion(LOGITS, torch.tensor([0, 1, 2, 4]))


def test_an_asymmetric_loss_without_exponents_and_clip_is_bce():
    logits, targets = some()
    plain = binary.asymmetric(logits, targets, 0, 0, 0)
    torch.testing.assert_close(plain, binary.bce(logits, targets))


def test_an_asymmetric_loss_by_its_equations():
    logits, targets = some()
    p = logits.sigmoid()
    lowered = (p - 0.05).clamp(min=0)
    wanted = targets * (1 - p) * p.log() + (1 - targets) * lowered**4 * (1 - lowered).log()
    losses = binary.asymmetric(logits, targets, 1, 4, 0.05)
    torch.testing.assert_close(losses, -wanted)
    # easy absent labels cost nothing, and pull nowhere
    easy = torch.tensor([[-4.0]], requires_grad=True)
    loss = binary.asymmetric(easy, torch.zeros(1, 1), 1, 4, 0.05)
    loss.sum().backward()
    assert loss.item() == easy.grad.item() == 0


def test_a_focal_loss_by_its_equation_and_without_an_exponent():
    logits, targets = some()
    p = torch.where(targets > 0, logits.sigmoid(), (-logits).sigmoid())
    loss = binary.sigmoid_focal(logits, targets, 2)
    torch.testing.assert_close(loss, -((1 - p) ** 2) * p.log())
    torch.testing.assert_close(
        binary.sigmoid_focal(logits, targets, 0), binary.bce(logits, targets)
    )


@pytest.mark.parametrize("gamma", RELEASED)
def test_distribution_balanced_loss_is_the_released_code_s(gamma):
    criterion = build(binary.DistributionBalancedConfig(gamma=gamma))
    # which has a factor of 2 on the focal loss
    factor = 2 if gamma else 1
    losses = factor * criterion.by_class(LOGITS, LABELS.float())
    torch.testing.assert_close(losses, torch.tensor(RELEASED[gamma]), atol=1e-6, rtol=1e-4)


def test_an_image_without_a_label_has_a_finite_loss_and_gradient():
    for kind in (binary.DistributionBalancedConfig(), binary.DistributionBalancedConfig(beta=0)):
        logits = LOGITS.clone().requires_grad_()
        loss = build(kind)(logits, torch.zeros_like(LABELS))
        loss.sum().backward()
        assert loss.isfinite().all()
        assert logits.grad.isfinite().all()


def test_a_logit_adjusted_loss_expects_a_label_as_often_as_it_is_there():
    # at logits of 0 the probability is the label's frequency
    criterion = build(binary.LogitAdjustedBceConfig())
    share = torch.tensor(COUNTS).double() / IMAGES
    loss = criterion(torch.zeros(1, 4, dtype=torch.float64), torch.ones(1, 4, dtype=torch.uint8))
    torch.testing.assert_close(loss, -share.log().sum()[None], rtol=1e-6, atol=1e-6)
    everywhere = LongTail((50, 1), ("a", "b"), ("many", "few"), "by hand", 50)
    assert binary.log_odds(everywhere).isfinite().all()


def test_class_balanced_weights_are_those_of_the_effective_number():
    criterion = build(binary.ClassBalancedBceConfig(beta=0.9))
    weight = (1 - 0.9) / (1 - 0.9 ** torch.tensor(COUNTS).double())
    wanted = (weight * 4 / weight.sum()).float() * binary.bce(LOGITS, LABELS.float())
    torch.testing.assert_close(criterion(LOGITS, LABELS), wanted.sum(1))


def test_extreme_logits_have_finite_losses_and_gradients():
    extreme = torch.tensor([[-200.0, 200.0, -60.0, 60.0]])
    for kind in (
        binary.BceConfig(),
        binary.SigmoidFocalConfig(gamma=0.5),
        binary.AsymmetricConfig(),
        binary.AsymmetricConfig(clip=0),
        binary.DistributionBalancedConfig(),
        binary.ClassBalancedBceConfig(),
        binary.LogitAdjustedBceConfig(),
    ):
        for labels in (LABELS[:1], 1 - LABELS[:1]):
            logits = extreme.clone().requires_grad_()
            loss = build(kind)(logits, labels)
            loss.sum().backward()
            assert loss.isfinite().all()
            assert logits.grad.isfinite().all()
