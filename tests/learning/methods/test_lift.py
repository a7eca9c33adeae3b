"""LIFT: where its classifier starts, its crops, and what else stands on a frozen backbone."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.functional import five_crop

from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.predict import accuracies
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.experiments.experiment import Experiment, Sets
from lt_pipeline.learning.experiments.run import finish, run_stages
from lt_pipeline.learning.experiments.store import Store
from lt_pipeline.learning.methods.lift import Lift, LiftOptions
from lt_pipeline.learning.models.low_rank import LowRank
from lt_pipeline.learning.models.network import ModelConfig, on_features
from lt_pipeline.learning.schema import UserError
from lt_pipeline.learning.transforms.augment import AugmentConfig
from toys import toy_card, toy_images, toy_labels

CPU = torch.device("cpu")
ADAPTED = {"head": "cosine", "scale": 25.0, "adapter": {"name": "adaptformer", "dim": 2}}
TRAINING = TrainingConfig(
    epochs=2, batch_size=16, learning_rate=0.05, warmup_epochs=0, augment=AugmentConfig()
)


def lift(card=None, model=None, **options):
    torch.manual_seed(0)
    model = ModelConfig(**{**ADAPTED, **(model or {})})
    return Lift(LiftOptions(**options), model, card or toy_card()).eval()


def experiment(method="lift", adapter="adaptformer", **options):
    model = {"model": ADAPTED | {"adapter": {"name": adapter, "dim": 2}}}
    config = ExperimentConfig.resolve(method, {method: {"options": options, **model}})
    mine = {"seed": 0, "device": "cpu", "training": TRAINING}
    return Experiment(config.model_copy(update=mine), toy_card())


def trained(result, tmp_path, noise=40.0):
    data, nothing = toy_images(noise=noise), toy_images()[torch.arange(0)]
    sets = Sets(data, nothing, nothing, nothing)
    checkpoints, _ = run_stages(result, result.stages, sets, tmp_path, Store(tmp_path))
    return [*checkpoints.values()][-1]


@torch.no_grad()
def test_it_starts_as_the_nearest_class_mean_by_cosine():
    method, data, test = lift(crops=1), toy_images(), toy_images(seed=1)
    method.start_classifier([], data, CPU)
    features = method.net.features(data.images)
    means = torch.stack([features[data.labels == c].mean(0) for c in range(4)])
    cosines = F.cosine_similarity(method.net.features(test.images)[:, None], means[None], dim=2)
    scores = method.eval().score(test.images)
    torch.testing.assert_close(scores, 25 * cosines, rtol=1e-4, atol=1e-4)
    assert torch.equal(scores.argmax(1), cosines.argmax(1))
    torch.testing.assert_close(method.net.prototypes.norm(dim=1), torch.ones(4))


@torch.no_grad()
def test_of_several_labels_a_mean_is_over_all_images_that_have_it():
    data = toy_labels()
    method = lift(crops=1, criterion={"name": "bce"})
    method.start_classifier([], data, CPU)
    features = method.net.features(data.images)
    means = torch.stack([features[data.labels[:, c] > 0].mean(0) for c in range(4)])
    torch.testing.assert_close(method.net.prototypes, F.normalize(means), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_scores_are_mean_logits_over_four_corners_and_the_middle():
    images = toy_images(size=16).images[:6]
    method = lift(expand=0.25)
    larger = F.interpolate(images.float(), (20, 20), mode="bilinear")
    wanted = sum(method.net(crop) for crop in five_crop(larger, [16, 16])) / 5
    torch.testing.assert_close(method.score(images), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(wanted, method.net(images), atol=1e-3)


@torch.no_grad()
def test_one_crop_is_the_image_as_it_is():
    images = toy_images().images[:6]
    method = lift(crops=1)
    assert torch.equal(method.score(images), method.net(images))


@torch.no_grad()
def test_crops_are_of_the_size_that_the_backbone_has_images_at():
    seen, method = [], lift(model={"resize": 28})
    method.net.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[2:]))
    method.score(toy_images().images[:2])
    assert seen == [(28, 28)] * 5


@pytest.mark.parametrize("backbone", ["resnet8", "test_vit"])
def test_training_changes_adapters_and_classifier_only(backbone, tmp_path):
    one = experiment()
    model = one.config.model.model_copy(update={"backbone": backbone, "resize": 32})
    one = Experiment(one.config.model_copy(update={"model": model}), one.card)
    before = {name: value.clone() for name, value in one.build().state_dict().items()}
    after = trained(one, tmp_path)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert "net.head.weight" in changed
    assert any(".adapter.up" in name for name in changed)
    assert all(".adapter." in name or name == "net.head.weight" for name in changed)


def test_it_counts_what_learns_and_says_so(tmp_path):
    one, data = experiment(), toy_images()
    checkpoint = trained(one, tmp_path)
    _, told = finish(one, data, data[torch.arange(0)], data, checkpoint)
    net = one.build().net
    learning = sum(p.numel() for p in (*net.learned.parameters(), *net.head.parameters()))
    assert told["parameters_trained"] == learning
    assert told["parameters_deployed"] == sum(p.numel() for p in net.parameters())
    assert f"{learning:,} of" in told["notes"][-2]
    assert told["notes"][-1] == "model.weights is none: what is frozen is random"


@pytest.mark.parametrize("method", ["more", "dbm", "btm", "crt"])
def test_others_stand_on_a_frozen_backbone_by_configuration(method, tmp_path):
    """Whatever they do to the network, what the adapters stand beside is as it was."""
    options = {"btm": {"branches": {"sets": 2, "images": 4, "epochs": 1}, "interpolate": 0}}
    one = experiment(method, **options.get(method, {}))
    built = one.build()
    still = {f"{name}": p.clone() for name, p in built.net.kept.items()}
    method_net = next(n for n, m in built.named_modules() if m is built.net)
    after = trained(one, tmp_path)
    assert still
    for name, value in still.items():
        assert torch.equal(after[f"{method_net}.{name}"], value), name
    assert any(".adapter." in name and value.any() for name, value in after.items())


def test_more_decomposes_the_adapters():
    net = experiment("more").build().net
    parts = [name for name, m in net.named_modules() if isinstance(m, LowRank)]
    assert len(parts) == 2 * 3
    assert all(".adapter." in name for name in parts)


def test_lora_is_folded_behind_the_last_stage_and_not_between(tmp_path):
    one = experiment("crt", adapter="lora", classifier={"epochs": 1})
    model = one.config.model.model_copy(update={"backbone": "test_vit", "resize": 32})
    one = Experiment(one.config.model_copy(update={"model": model}), one.card)
    checkpoint = trained(one, tmp_path)
    assert any("parametrizations" in name for name in checkpoint)
    method = one.behind(checkpoint).eval()
    images = toy_images().images[:4]
    with torch.no_grad():
        before = method.score(images)
        method.merge_for_inference()
        torch.testing.assert_close(method.score(images), before, rtol=1e-4, atol=1e-4)
    assert not any("parametrizations" in name for name in method.state_dict())


def test_a_short_training_learns_what_it_has_not_seen(tmp_path):
    one = experiment(crops=1)
    config = one.config.model_copy(update={"training": TRAINING.model_copy(update={"epochs": 8})})
    one = Experiment(config, one.card)
    method = one.behind(trained(one, tmp_path, noise=15.0))
    test = toy_images((10,) * 4, seed=1, noise=15.0)
    assert accuracies(method, method.score, test, device=CPU)["mean_recall"] > 0.6  # by chance 0.25


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"lift": {"model": {"head": "linear"}}}, "lift.options.*set model.head to cosine"),
        ({"lift": {"options": {"crops": 3}}}, "crops"),
        ({"lift": {"options": {"expand": 0.0}}}, "expand"),
    ],
)
def test_what_makes_no_sense_is_refused(parameters, says):
    with pytest.raises(UserError, match=says):
        ExperimentConfig.resolve("lift", {"model": {"head": "cosine"}, **parameters})


def test_more_on_lora_is_refused():
    with pytest.raises(UserError, match="low rank already: set it to adaptformer"):
        one = experiment("more", adapter="lora")
        model = one.config.model.model_copy(update={"backbone": "test_vit"})
        Experiment(one.config.model_copy(update={"model": model}), one.card).build()


def test_features_have_no_crops():
    with pytest.raises(UserError, match="crops to 1"):
        Lift(LiftOptions(), on_features(ModelConfig(head="cosine")), toy_card())
