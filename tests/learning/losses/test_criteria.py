from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch.nn import functional as F

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.losses import functional as losses
from lt_pipeline.learning.losses.config import CriterionConfig
from lt_pipeline.learning.losses.criteria import Head, Outputs
from lt_pipeline.learning.models.heads import CosineHead

LONGTAIL = LongTail.from_counts([100, 10, 1])
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0], [1.0, 0.0, -2.0]])
LABELS = torch.tensor([2, 0, 1])
COSINE = Head(features=8, scale=32.0)
NAMES = (
    "cross_entropy",
    "class_balanced",
    "logit_adjustment",
    "balanced_softmax",
    "focal",
    "difficulty_balanced",
    "balanced_contrastive",
    "label_aware_smoothing",
    "geometric_mean",
)
MARGINS = (None, "sphereface", "cosface", "arcface", "ldam", "dbm")


def criterion(longtail=LONGTAIL, head=COSINE, margin=None, **values):
    chosen = {**values, "margin": {"name": margin} if isinstance(margin, str) else margin}
    return TypeAdapter(CriterionConfig).validate_python(chosen).build(longtail, head)


def test_each_name_binds_its_loss_to_the_class_distribution():
    log_prior = LONGTAIL.log_prior.float()
    weight = losses.class_balanced_weight(LONGTAIL.counts, 0.9).float()
    per_image = weight[LABELS]
    plain = losses.cross_entropy(LOGITS, LABELS)
    adjusted = losses.balanced_softmax(LOGITS, LABELS, log_prior)
    focal = losses.focal(LOGITS, LABELS, 2.0)
    for values, wanted in [
        ({"name": "cross_entropy"}, plain),
        ({"name": "logit_adjustment"}, adjusted),
        ({"name": "balanced_softmax"}, adjusted),
        ({"name": "balanced_contrastive"}, adjusted),
        ({"name": "difficulty_balanced"}, plain),
        ({"name": "focal"}, focal),
        ({"name": "focal", "beta": 0.9}, focal * per_image / per_image.mean()),
        ({"name": "class_balanced", "beta": 0.9, "weighted_mean": False}, plain * per_image),
        ({"name": "class_balanced", "beta": 0.9}, plain * per_image / per_image.mean()),
    ]:
        torch.testing.assert_close(criterion(**values)(LOGITS, LABELS), wanted)


def test_a_batch_of_classes_without_weight_has_no_loss_and_no_gradient():
    logits = LOGITS.clone().requires_grad_()
    for weighted_mean in (True, False):
        built = criterion(name="difficulty_balanced", weighted_mean=weighted_mean)
        built.class_weight.copy_(torch.tensor([0.0, 0.0, 3.0]))
        built(logits, torch.tensor([0, 1, 0])).mean().backward()
        assert not logits.grad.any()
        # and one of them beside another counts nothing
        mixed = built(LOGITS, torch.tensor([0, 2, 2]))
        assert mixed[0] == 0
        assert (mixed[1:] > 0).all()


def test_the_weighted_mean_is_torchs():
    built = criterion(name="class_balanced", beta=0.999)
    wanted = F.cross_entropy(LOGITS, LABELS, weight=built.class_weight)
    torch.testing.assert_close(built(LOGITS, LABELS).mean(), wanted)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("margin", MARGINS[1:])
def test_any_margin_goes_in_front_of_any_loss(name, margin):
    with_margin, without = criterion(name=name, margin=margin), criterion(name=name)
    moved = with_margin.margin(LOGITS, LABELS)
    assert not torch.equal(moved, LOGITS)
    torch.testing.assert_close(with_margin(LOGITS, LABELS), without(moved, LABELS))


@pytest.mark.parametrize("name", NAMES)
def test_dbm_with_k_zero_is_the_plain_cosine_loss_exactly(name):
    plain, zero = criterion(name=name), criterion(name=name, margin={"name": "dbm", "K": 0})
    assert torch.equal(zero(LOGITS, LABELS), plain(LOGITS, LABELS))


def test_equal_counts_make_balanced_softmax_cross_entropy_with_dbm_in_front_too():
    equal = LongTail.from_counts([7, 7, 7])
    for margin in (None, "dbm"):
        torch.testing.assert_close(
            criterion(equal, name="balanced_softmax", margin=margin)(LOGITS, LABELS),
            criterion(equal, name="cross_entropy", margin=margin)(LOGITS, LABELS),
        )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_leaves_losses_and_margins_in_single_precision(name, margin, dtype):
    torch.manual_seed(0)
    head = CosineHead(8, 3, 32.0)
    features = torch.randn(6, 8)
    features[0], features[1] = 3 * head.weight[2].detach(), -2 * head.weight[2].detach()
    features.requires_grad_()
    labels = torch.tensor([2, 2, 0, 1, 2, 0])
    built = criterion(name=name, margin=margin)
    with torch.autocast("cpu", dtype=dtype):
        loss = built(head(features.to(dtype)), labels)
    single = built(head(features.to(dtype).float()), labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, single)
    loss.mean().backward()
    assert features.grad.isfinite().all()
    assert head.weight.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_logits_give_a_single_precision_loss(name):
    assert criterion(name=name)(LOGITS.bfloat16(), LABELS).dtype == torch.float32


@pytest.mark.parametrize("name", [n for n in NAMES if n != "balanced_contrastive"])
@pytest.mark.parametrize("margin", MARGINS)
def test_what_it_knows_of_the_classes_is_in_the_checkpoint(name, margin):
    state = criterion(name=name, margin=margin).state_dict()
    # by class, or one number for all
    assert all(value.shape in {(3,), ()} for value in state.values())
    assert ("margin.margin" in state) == (margin in ("ldam", "dbm"))
    assert name == "cross_entropy" or set(state) - {"margin.margin"}


@pytest.mark.parametrize("name", NAMES)
def test_labels_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2, but range from 0 to 3"):
        criterion(name=name)(LOGITS, torch.tensor([0, 3, 1]))


@pytest.mark.parametrize("margin", MARGINS[1:])
def test_a_margin_needs_a_cosine_head(margin):
    with pytest.raises(ValueError, match="needs model.head = cosine, but it is linear"):
        criterion(head=Head(features=8), name="cross_entropy", margin=margin)


def test_deferred_reweighting_starts_at_its_share_of_the_run():
    built = criterion(name="class_balanced", start=0.8)
    plain = losses.cross_entropy(LOGITS, LABELS)
    for epochs, first in ((200, 160), (10, 8), (5, 4), (2, 1), (1, 0)):
        for epoch in range(epochs):
            built.start_epoch(epoch, epochs)
            assert torch.equal(built(LOGITS, LABELS), plain) == (epoch < first)


def test_difficulty_is_that_of_the_epoch_before():
    built = criterion(name="difficulty_balanced", tau=1.0, weighted_mean=True)
    built.end_epoch()
    # class 0: 1 of 2 right; class 1: 0 of 1; class 2: nothing seen
    logits = torch.tensor([[9.0, 0, 0], [0, 9.0, 0], [9.0, 0, 0]])
    labels = torch.tensor([0, 0, 1])
    plain = losses.cross_entropy(logits, labels)
    torch.testing.assert_close(built(logits, labels), plain)
    built.end_epoch()
    # difficulties 0.5 and 1; class 2 counts as their mean
    assert built.class_weight.tolist() == pytest.approx([0.5 / 0.75, 1 / 0.75, 1.0])
    weight = torch.tensor([0.5, 0.5, 1.0])
    torch.testing.assert_close(built(logits, labels), plain * weight / weight.mean())
    built.eval()
    built(logits.flip(1), labels)
    assert built.seen.tolist() == [2, 1, 0], "evaluation does not count"


def test_difficulty_of_the_holdout_ignores_the_training_batches():
    built = criterion(name="difficulty_balanced", tau=1.0, difficulty="validation", shrinkage=0.0)
    assert built.config.wants_validation
    assert not criterion(name="difficulty_balanced").config.wants_validation
    built(LOGITS, LABELS)
    assert not built.seen.any()
    built.observe(torch.eye(3)[[0, 1, 0]] * 9, torch.tensor([0, 1, 2]))
    built.end_epoch()
    assert built.class_weight.tolist() == [0, 0, 3]


def hold_out_criterion(**values):
    # groups: many, medium, few, few
    longtail = LongTail.from_counts([500, 50, 5, 4])
    given = {"name": "difficulty_balanced", "tau": 1.0, "difficulty": "validation", **values}
    return criterion(longtail=longtail, **given)


def test_accuracies_of_the_hold_out_are_shrunk_towards_their_groups():
    logits, labels = torch.eye(4)[[0, 0, 2, 2, 0]] * 9, torch.tensor([0, 0, 2, 2, 3])
    for shrinkage, few in ((0.0, [1.0, 0.0]), (3.0, [4 / 5, 2 / 4])):  # of the group: 2 of 3
        built = hold_out_criterion(shrinkage=shrinkage)
        built.observe(logits, labels)
        built.end_epoch()
        assert built.accuracy[[0, 2, 3]].tolist() == pytest.approx([1.0, *few])
        assert built.known.tolist() == [True, False, True, True]
        # class 1, alone in its group and not seen, counts as the mean of the others
        assert built.class_weight[1].item() == pytest.approx(1)


def test_training_accuracies_are_not_shrunk():
    built = hold_out_criterion(difficulty="training", shrinkage=3.0)
    built(torch.eye(4)[[2, 2, 0]] * 9, torch.tensor([2, 2, 3]))
    built.end_epoch()
    assert built.accuracy[[2, 3]].tolist() == [1, 0]


def test_difficulty_and_class_size_are_followed_and_a_turn_is_noted_in_training_only():
    counts = [100, 50, 20, 10, 5]
    for difficulty, noted in (("training", 1), ("validation", 0)):
        built = criterion(
            longtail=LongTail.from_counts(counts), name="difficulty_balanced", shrinkage=0.0,
            difficulty=difficulty,
        )  # fmt: skip
        assert built.epoch_metrics() == {"difficulty/size_correlation": 0}
        for wrong, sign in (([0, 1, 2, 3, 4], -1), ([4, 3, 2, 1, 0], 1)):
            labels = torch.arange(5).repeat_interleave(4)
            right = torch.cat([torch.arange(4) >= n for n in wrong])
            logits = torch.eye(5)[torch.where(right, labels, (labels + 1) % 5)]
            show = built.observe if built.config.wants_validation else built
            show(logits, labels)
            built.end_epoch()
            value = built.epoch_metrics()["difficulty/size_correlation"]
            assert value == pytest.approx(sign, abs=1e-5)
        assert len(built.notes()) == noted


def test_right_answers_are_counted_without_the_margin():
    built = criterion(name="difficulty_balanced", margin={"name": "cosface", "size": 0.3})
    logits = 32 * torch.tensor([[0.5, 0.4, 0.0]])
    assert built.margin(logits, torch.tensor([0])).argmax() == 1
    built(logits, torch.tensor([0]))
    assert built.correct.tolist() == [1, 0, 0]


def outputs():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 3, 8, generator=generator, requires_grad=True)
    return Outputs(LOGITS, features, torch.randn(3, 8, generator=generator, requires_grad=True))


def test_balanced_contrastive_terms():
    torch.manual_seed(0)
    built = criterion(name="balanced_contrastive", classification=3.0, contrast=0.5, margin="dbm")
    seen = outputs()
    terms = built.terms(seen, LABELS)
    torch.testing.assert_close(terms["classification"], 3 * built(LOGITS, LABELS).mean())
    built.eval(), built.train()
    # the images' own projections are normalised with the views', and left out of the contrast
    projected = built.project(seen.features.reshape(9, 8))
    wanted = losses.balanced_contrastive(
        F.normalize(projected, dim=1).view(3, 3, -1)[1:],
        LABELS,
        F.normalize(built.project_centres(seen.prototypes), dim=1),
        0.1,
    )
    torch.testing.assert_close(terms["contrast"], 0.5 * wanted.mean())
    sum(terms.values()).backward()
    assert seen.features.grad.abs().sum() > 0
    assert seen.prototypes.grad.abs().sum() > 0
    assert all(p.grad is not None for p in built.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_contrast_is_single_precision_under_autocast(dtype):
    torch.manual_seed(0)
    built, seen = criterion(name="balanced_contrastive"), outputs()
    with torch.autocast("cpu", dtype=dtype):
        projected = built.project(seen.features.reshape(9, 8))
        contrast = built.terms(seen, LABELS)["contrast"]
    assert projected.dtype == dtype
    wanted = losses.balanced_contrastive(
        F.normalize(projected.float(), dim=1).view(3, 3, -1)[1:],
        LABELS,
        F.normalize(built.project_centres(seen.prototypes), dim=1),
        0.1,
    )
    assert contrast.dtype == torch.float32
    torch.testing.assert_close(contrast, 0.6 * wanted.mean())


def test_balanced_contrastive_without_views_is_refused():
    with pytest.raises(ValueError, match="features of two views"):
        criterion(name="balanced_contrastive").terms(Outputs(LOGITS), LABELS)


@pytest.mark.parametrize(
    "values",
    [
        {"name": "class_balanced", "beta": 1.0},
        {"name": "class_balanced", "start": 1.0},
        {"name": "logit_adjustment", "tau": -1},
        {"name": "cross_entropy", "tau": 1},
        {"name": "focal", "gamma": -1},
        {"name": "balanced_contrastive", "temperature": 0},
        {"name": "poly"},
    ],
)
def test_wrong_values_are_refused(values):
    with pytest.raises(ValidationError):
        TypeAdapter(CriterionConfig).validate_python(values)
