from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.losses import functional as losses
from lt_pipeline.learning.losses.criteria import BalancedSoftmaxConfig
from lt_pipeline.learning.losses.margins import DbmConfig
from lt_pipeline.learning.methods.bcl import BalancedContrastiveLearning
from lt_pipeline.learning.methods.dbm import DbmOptions, DifficultyAwareBalancingMargin
from lt_pipeline.learning.methods.more import More, MoreOptions
from lt_pipeline.learning.models.network import ModelConfig
from toys import toy_card, toy_images

MODEL = ModelConfig(backbone="resnet8", head="cosine", scale=32.0)
COUNTS = (40, 20, 10, 5)


def create(kind=DifficultyAwareBalancingMargin, model=MODEL, **options):
    torch.manual_seed(0)
    return kind(kind.Options.model_validate(options), model, toy_card()).train()


def batch(views=0):
    data = toy_images()
    index = torch.arange(0, len(data), 3)
    images = data.images[index]
    more = tuple(images.flip(3).roll(shift, 2) for shift in range(views))
    return Batch(images, data.labels[index], index, more)


def loss_by_hand(cosines, labels, k=0.1, prior=True):
    """Equations 6 to 9 and 11 (or 5), one image at a time in double precision."""
    by_image = []
    for row, y in zip(cosines.double().tolist(), labels.tolist(), strict=True):
        by_class = k * (COUNTS[y] / min(COUNTS)) ** -1
        hard = row.index(max(row)) != y
        margin = by_class + (by_class * (1 - row[y]) / 2 if hard else 0)
        logits = [32 * c for c in row]
        logits[y] = 32 * math.cos(math.acos(row[y]) + margin)
        if prior:
            logits = [z + math.log(n / sum(COUNTS)) for z, n in zip(logits, COUNTS, strict=True)]
        top = max(logits)
        by_image.append(top + math.log(sum(math.exp(z - top) for z in logits)) - logits[y])
    return sum(by_image) / len(by_image)


@pytest.mark.parametrize(("variant", "prior"), [("bs", True), ("ce", False)])
def test_the_loss_is_the_papers_equations_on_the_networks_cosines(variant, prior):
    method, given = create(variant=variant), batch()
    terms = method.loss(given, 0.5)
    with torch.no_grad():
        cosines = method.net(given.images) / 32
    assert (cosines.argmax(1) == given.labels).any(), "some are right, and some are hard positives"
    assert (cosines.argmax(1) != given.labels).any()
    (value,) = terms.values()
    wanted = loss_by_hand(cosines, given.labels, prior=prior)
    assert value.item() == pytest.approx(wanted, rel=1e-4)


def test_drw_weights_classes_from_epoch_160_of_200():
    method, given = create(variant="drw"), batch()
    plain = create(variant="ce").loss(given, 0.5)["cross_entropy"]
    weight = losses.class_balanced_weight(LongTail.from_counts(COUNTS).counts, 0.9999).float()
    values = {}
    for epoch in (0, 159, 160, 199):
        method.start_epoch(epoch, 200)
        values[epoch] = method.loss(given, 0.5)["class_balanced"]
    torch.testing.assert_close(values[0], plain)
    torch.testing.assert_close(values[159], plain)
    assert values[160] != plain
    torch.testing.assert_close(values[160], values[199])
    logits = method.criterion.margin(method.net(given.images), given.labels)
    torch.testing.assert_close(values[160], F.cross_entropy(logits, given.labels, weight=weight))


def test_scores_have_neither_margin_nor_prior():
    method = create().eval()
    images = toy_images().images[:6]
    with torch.no_grad():
        torch.testing.assert_close(method.score(images), method.net(images))
        prototypes = F.normalize(method.class_prototypes(), dim=1)
        features = F.normalize(method.features(images), dim=1)
        torch.testing.assert_close(method.score(images), 32 * features @ prototypes.T)


def test_images_and_views_are_normalised_as_one_batch():
    method, given = create(BalancedContrastiveLearning), batch(views=2)
    assert method.views == 2
    outputs = method.outputs(given)
    other = create(BalancedContrastiveLearning)
    features = other.net.features(torch.cat([given.images, *given.views]))
    size = len(given.images)
    torch.testing.assert_close(outputs.logits, other.net.head(features[:size]))
    torch.testing.assert_close(outputs.features, features.view(3, size, -1))
    assert outputs.prototypes is method.net.head.weight
    with pytest.raises(ValueError, match="needs 2 views of every image, but the batch has 1"):
        method.outputs(batch(views=1))


def test_views_that_nobody_asked_for_change_nothing():
    one, two = create().loss(batch(), 0.5), create().loss(batch(views=2), 0.5)
    assert torch.equal(one["balanced_softmax"], two["balanced_softmax"])


def test_more_counts_an_epochs_right_answers_once():
    method = create(More, criterion={"name": "difficulty_balanced"})
    given = batch()
    method.loss(given, 0.5)
    assert method.criterion.seen.sum() == len(given.labels)


def test_projection_heads_are_for_training_only():
    method = create(variant="bcl")
    size = len(method.state_dict())
    method.merge_for_inference()
    left = method.state_dict()
    assert len(left) < size
    assert not any(name.startswith("criterion") for name in left)


@pytest.mark.parametrize(
    ("criterion", "views", "terms"),
    [
        (
            {"name": "balanced_softmax", "margin": {"name": "dbm"}},
            0,
            {"balanced_softmax", "rebalancing"},
        ),
        ({"name": "balanced_contrastive"}, 2, {"classification", "contrast", "rebalancing"}),
    ],
)
def test_more_rebalances_any_of_them(criterion, views, terms):
    assert MoreOptions.model_validate({"criterion": criterion})
    method = create(More, criterion=criterion)
    given = batch(method.views)
    assert method.views == views
    first = method.loss(given, 0.5)
    assert set(first) == terms
    assert first["rebalancing"].item() == pytest.approx(0, abs=1e-5), "B starts at zero"
    base = {name: value for name, value in first.items() if name != "rebalancing"}
    optimizer = torch.optim.SGD(method.parameters(), 0.002)
    sum(first.values()).backward()
    optimizer.step()
    second = method.loss(given, 0.5)
    assert second["rebalancing"] > 0
    assert sum(second[name] for name in base) < sum(base.values())
    method.eval()
    with torch.no_grad():
        before = method.score(given.images)
        method.merge_for_inference()
        torch.testing.assert_close(method.score(given.images), before, rtol=1e-4, atol=1e-4)


def test_options_are_completed_by_the_variant():
    assert DbmOptions().criterion.margin.K == 0.1
    options = DbmOptions.model_validate(
        {"variant": "bcl", "criterion": {"temperature": 0.07, "margin": {"name": "dbm", "K": 0.3}}}
    )
    assert (options.criterion.name, options.criterion.temperature) == ("balanced_contrastive", 0.07)
    assert options.criterion.margin.K == 0.3
    short = DbmOptions.model_validate({"criterion": {"margin": {"K": 0.2}}})
    assert short.criterion.margin.name == "dbm"
    for wrong in (None, {"name": "ldam"}):
        with pytest.raises(ValueError, match="criterion.margin must be dbm"):
            DbmOptions.model_validate({"criterion": {"margin": wrong}})
    with pytest.raises(ValueError, match="variant 'ce' has another criterion"):
        DbmOptions(variant="ce", criterion=BalancedSoftmaxConfig(margin=DbmConfig()))
    with pytest.raises(ValueError, match="variant"):
        DbmOptions.model_validate({"variant": "ncl"})
