from __future__ import annotations

import pytest
import torch

from lt_pipeline.learning.data.batches import Batch, mixed_with_itself
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.trainer import fit
from lt_pipeline.learning.methods.mixup import Mixup, MixupOptions
from lt_pipeline.learning.models.network import ModelConfig
from lt_pipeline.learning.transforms.augment import AugmentConfig
from lt_pipeline.learning.transforms.mix import MixConfig
from toys import COUNTS, toy_card, toy_images

CPU = torch.device("cpu")
BLEND = {"mixup": True, "cutmix": False}


def create(**options):
    torch.manual_seed(0)
    model = ModelConfig(backbone="resnet8")
    return Mixup(MixupOptions.model_validate(options), model, toy_card())


def batch(config, seed=0):
    data = toy_images()
    index = torch.arange(0, len(data), 3)
    made = Batch(data.images[index], data.labels[index], index)
    return mixed_with_itself(made, config, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mix", [BLEND, {"mixup": False}, {"mixup": True, "both": "halves"}])
@pytest.mark.parametrize("criterion", ["cross_entropy", "balanced_softmax"])
def test_the_loss_is_that_of_a_loop_over_the_mixtures(mix, criterion):
    method = create(criterion={"name": criterion}, mix=mix).train()
    given = batch(MixConfig.model_validate(mix))
    terms = method.loss(given, 0.5)
    assert list(terms) == [criterion]
    with torch.no_grad():
        logits = method.net(given.mixed.images).double()
    if criterion == "balanced_softmax":
        logits += torch.tensor(COUNTS).double().log()
    wanted = 0.0
    for row, (a, b, lam) in zip(
        logits, zip(*(part.tolist() for part in given.mixed[1:]), strict=True), strict=True
    ):
        log_p = row - row.exp().sum().log()
        wanted -= (lam * log_p[a] + (1 - lam) * log_p[b]).item() / len(logits)
    assert terms[criterion].item() == pytest.approx(wanted, rel=1e-5)
    # the images as they were have no part in it
    other = given._replace(images=255 - given.images, labels=given.labels.flip(0))
    assert method.loss(other, 0.5)[criterion].item() == pytest.approx(wanted, rel=1e-5)


def test_its_stage_mixes_and_scores_are_of_images_as_they_are():
    method = create(mix={**BLEND, "alpha": 0.2})
    (stage,) = method.stages(method.options)
    assert (stage.passes(7), stage.mix, stage.trainable) == (7, method.options.mix, ("",))
    assert method.options.mixes.alpha == 0.2
    images = toy_images().images[:5]
    with torch.no_grad():
        assert torch.equal(method.eval().score(images), method.net(images))


def test_by_default_only_mixup_is_used_and_alpha_is_one():
    mix = MixupOptions().mix
    assert (mix.mixup, mix.cutmix, mix.alpha) == (True, False, 1.0)


def test_mixtures_change_what_is_learned():
    weights = []
    for alpha in (1.0, 1e-6):  # so small that either image has all of the share
        method = create(mix={**BLEND, "alpha": alpha})
        training = TrainingConfig(
            epochs=2, batch_size=25, learning_rate=0.05, warmup_epochs=0, schedule="constant",
            augment=AugmentConfig(crop_padding=0, flip=0.0),
        )  # fmt: skip
        history = fit(
            method, method.stages(method.options)[0], toy_images(), training, seed=0, device=CPU
        )
        assert "train/cross_entropy" in history
        weights.append(method.net.head.weight)
    assert (weights[0] - weights[1]).abs().max() > 1e-3


def test_a_batch_without_mixtures_is_refused():
    with pytest.raises(ValueError, match="must bring mixtures of its images, but this one has no"):
        create().loss(batch(MixConfig())._replace(mixed=None), 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix": {"mixup": False, "cutmix": False}}, "both false: run ce for no mixtures"),
        ({"criterion": {"name": "geometric_mean"}}, "'geometric_mean' is not a loss of single im"),
        ({"criterion": {"name": "balanced_contrastive"}}, "not a loss of single images"),
        ({"mix": {"alpha": 0}}, "mix.alpha"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MixupOptions.model_validate(options)
