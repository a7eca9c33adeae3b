"""Features of a frozen network: the same numbers as without a cache, computed once an image."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from confs import parameters
from lt_pipeline.learning import methods
from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.data.protocol import digests, in_order, take
from lt_pipeline.learning.engine.features import (
    BATCH,
    REMEMBERED,
    FeatureCache,
    FeatureSet,
)
from lt_pipeline.learning.experiments.config import ExperimentConfig, updated
from lt_pipeline.learning.experiments.experiment import FEATURES_OF, Experiment, Sets
from lt_pipeline.learning.experiments.run import finish, run_experiment, run_stages
from lt_pipeline.learning.experiments.store import Store
from lt_pipeline.learning.methods.families.options import EVEN_MARGINS
from lt_pipeline.learning.models.backbones import build_backbone, width_of
from lt_pipeline.learning.schema import UserError
from lt_pipeline.learning.transforms.augment import one_view
from toys import FromAfar, toy_card, toy_images

CHANNELS = 3
# what has no head on one network's features: the backbone is part of them, or they need views
NOT_ON_FEATURES = {"bcl", "darl", "dqroute", "lgla", "more", "ride", "sade"}


def sums(images):
    """Return features that tell an image from its mirror image."""
    ramp = torch.arange(images.shape[3], dtype=torch.float32)
    return torch.stack([images.float().mean((1, 2, 3)), (images * ramp).mean((1, 2, 3))], 1)


class Counted:
    """A network that counts the images it is shown."""

    def __init__(self):
        self.images, self.made = 0, 0

    def __call__(self):
        self.made += 1

        def extract(images):
            self.images += len(images)
            return sums(images)

        return extract


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(3)
    file = tmp_path / "weights.safetensors"
    save_file(build_backbone("resnet8", CHANNELS).state_dict(), file)
    return str(file)


@pytest.fixture
def on_features(tmp_path, monkeypatch, weights):
    """Return a function that makes an experiment on the features of a frozen resnet8."""
    monkeypatch.setenv(FEATURES_OF, str(tmp_path / "features"))

    def make(name="ce", **changes):
        training = {"epochs": 4, "batch_size": 16, "features": "cached"}
        shared = {
            "device": "cpu",
            "model": {"backbone": "resnet8", "weights": weights},
            "training": updated(training, changes.pop("training", {})),
            "evaluation": {"ood": False},
            name: {"options": changes.pop("options", {})},
        }
        own = {name: {k: v for k, v in parameters()[name].items() if k != "training"}}
        config = ExperimentConfig.resolve(name, updated(updated(own, shared), changes))
        return Experiment(config, toy_card(channels=CHANNELS))

    return make


def images(seed=0, **changes):
    return toy_images(channels=CHANNELS, seed=seed, **changes)


@pytest.mark.parametrize("wrap", [lambda data: data, FromAfar])
def test_features_are_what_the_network_gives_by_image_and_view(tmp_path, wrap):
    data, network = images(), Counted()
    features = FeatureCache(tmp_path, 2).of(wrap(data), network, mirrored=True)
    assert features.images.shape == (len(data), 2, 2, 1)
    assert torch.equal(features.images[:, :, 0, 0], sums(data.images))
    assert torch.equal(features.images[:, :, 1, 0], sums(data.images.flip(3)))
    assert torch.equal(features.labels, data.labels)
    assert features.class_names == data.class_names


def test_each_image_is_computed_once_whatever_set_it_is_in(tmp_path):
    data, network, cache = images(), Counted(), FeatureCache(tmp_path, 2)
    first = torch.arange(len(data)) % 3 > 0
    cache.of(data[first], network)
    assert network.images == first.sum()
    whole = cache.of(data, network)
    assert network.images == len(data)
    again = cache.of(data[torch.arange(len(data)).flip(0)], network)
    assert (network.images, network.made) == (len(data), 2), "what is there needs no network"
    assert torch.equal(again.images, whole.images.flip(0))


def test_a_set_that_was_asked_for_lately_is_not_read_again(tmp_path, monkeypatch):
    sets = [images(seed) for seed in range(REMEMBERED + 1)]
    cache, network = FeatureCache(tmp_path, 2), Counted()
    first = cache.of(sets[0], network)
    monkeypatch.setattr(FeatureCache, "_view", None)
    assert cache.of(sets[0], network) is first
    monkeypatch.undo()
    for data in sets:
        cache.of(data, network)
    again = cache.of(sets[0], network)
    assert again is not first, "no more are remembered than some"
    assert torch.equal(again.images, first.images)


def test_equal_images_have_equal_features_and_are_computed_once(tmp_path):
    data, network = images(), Counted()
    twice = ImageSet(
        torch.cat([data.images, data.images]), torch.cat([data.labels] * 2), data.class_names
    )
    features = FeatureCache(tmp_path, 2).of(twice, network)
    assert network.images == len(data)
    assert torch.equal(*features.images.chunk(2))


def test_what_was_computed_before_a_kill_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("lt_pipeline.learning.engine.features.KEPT", BATCH)
    data = images(counts=(100, 60))

    def dies():
        shown = []

        def extract(batch):
            shown.append(len(batch))
            if len(shown) == 3:
                raise KeyboardInterrupt
            return sums(batch)

        return extract

    cache, network = FeatureCache(tmp_path, 2), Counted()
    with pytest.raises(KeyboardInterrupt):
        cache.of(data, dies)
    assert not [*tmp_path.glob("*.tmp")]
    cache.of(data, network)
    assert network.images == len(data) - 2 * BATCH


def test_digests_are_of_pixels_and_not_of_labels_or_batches():
    data = images()
    relabelled = ImageSet(data.images, data.labels.flip(0), data.class_names)
    assert digests(data) == digests(relabelled) == digests(FromAfar(data))
    assert digests(data, flip=True) == digests(
        ImageSet(data.images.flip(3), data.labels, data.class_names)
    )
    assert len({*digests(data)}) == len(data)


def test_a_flip_chooses_the_mirror_images_features():
    features, generator = torch.rand(2000, 3, 2, 1), torch.Generator().manual_seed(0)
    assert torch.equal(one_view(features, 0.0, generator), features[:, :, :1])
    assert torch.equal(one_view(features, 1.0, generator), features[:, :, 1:])
    half = one_view(features, 0.5, generator)
    first = (half == features[:, :, :1]).all((1, 2, 3))
    second = (half == features[:, :, 1:]).all((1, 2, 3))
    assert (first ^ second).all()
    assert 0.45 < first.float().mean() < 0.55


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "test_resnet.r160_in1k"])
def test_the_width_of_a_backbone_is_known_without_building_it(name):
    if "." in name:
        pytest.importorskip("timm")
    assert width_of(name) == build_backbone(name).features


def test_a_head_on_features_is_the_head_on_images(on_features):
    """The whole model, shown images, answers as the head does, shown features."""
    experiment, data = on_features(), images()
    sets = Sets(data, images(1), images(2), images(3)[torch.zeros(0, dtype=torch.long)])
    checkpoints, histories = run_stages(experiment, experiment.stages, sets, _here(), _store())
    assert {name.split(".")[1] for name in checkpoints["train"]} == {"head"}
    model, report = finish(experiment, *sets[:3], checkpoints["train"])
    whole = experiment.finished(model, whole=True)
    head = experiment.finished(model)
    seen = experiment.seen(sets.test)
    assert isinstance(seen, FeatureSet)
    with torch.no_grad():
        by_image = whole.score(sets.test.images)
        by_feature = torch.cat([head.score(batch) for batch in in_order(seen, 50)])
    torch.testing.assert_close(by_image, by_feature, atol=1e-5, rtol=1e-5)
    assert report["parameters_deployed"] > 50 * report["parameters_trained"]
    assert histories[0]["validation/mean_recall"][-1]["value"] > 0.5


def _here():
    from pathlib import Path
    from tempfile import mkdtemp

    return Path(mkdtemp())


def _store():
    return Store(_here())


def test_training_on_features_is_training_with_a_frozen_backbone(on_features):
    """Closed form: one full batch, one step of gradient descent on the head."""
    one = {"epochs": 1, "batch_size": 75, "learning_rate": 0.5, "momentum": 0.0}
    plain = {"weight_decay": 0.0, "warmup_epochs": 0, "schedule": "constant"}
    experiment, data = on_features(training={**one, **plain}), images()
    assert len(data) == 75
    nothing = data[torch.zeros(0, dtype=torch.long)]
    sets = Sets(data, nothing, images(1), nothing)
    result = run_stages(experiment, experiment.stages, sets, _here(), _store())[0]["train"]
    begun = experiment.build().state_dict()
    backbone = experiment.build(whole=True).net
    features = take(experiment.seen(data), torch.arange(75))[:, :, 0, 0].double()
    with torch.no_grad():
        torch.testing.assert_close(
            backbone.eval().features(data.images).double(), features, atol=1e-5, rtol=1e-5
        )
    weight, bias = (begun[f"net.head.{part}"].double() for part in ("weight", "bias"))
    probabilities = (features @ weight.T + bias).softmax(1)
    error = (probabilities - torch.eye(len(weight)).double()[data.labels]) / 75
    torch.testing.assert_close(
        result["net.head.weight"].double(), weight - 0.5 * error.T @ features, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        result["net.head.bias"].double(), bias - 0.5 * error.sum(0), atol=1e-5, rtol=1e-5
    )


OPTIONS = {
    "btm": {"branches": {"sets": 2, "epochs": 2, "batch_size": 8}},
    "dbm": {"variant": "bs"},
    "lgla": {"shared": "all"},
    "lift": {"crops": 1},
    "mixup": {},
}


@pytest.mark.parametrize("name", sorted({*methods.available()} - NOT_ON_FEATURES))
def test_methods_of_a_head_run_on_features(on_features, tmp_path, name):
    long = {"epochs": 40} if name in EVEN_MARGINS else {}
    experiment = on_features(name, options=OPTIONS.get(name, {}), training=long)
    nothing = images()[torch.zeros(0, dtype=torch.long)]
    sets = Sets(images(), images(1), images(2), images(3))
    if not experiment.config.options.wants_auxiliary:
        sets = sets._replace(auxiliary=nothing)
    finished = run_experiment(experiment, sets, tmp_path, Store(tmp_path / "store"))
    assert finished["test/mean_recall"] > 0.4, "twice what guessing gets"


@pytest.mark.parametrize("name", ["ride", "sade"])
def test_experts_that_share_all_run_on_features(on_features, tmp_path, name):
    experiment = on_features(name, options={"shared": "all"})
    sets = Sets(images(), images(1), images(2), images()[torch.zeros(0, dtype=torch.long)])
    finished = run_experiment(experiment, sets, tmp_path, Store(tmp_path / "store"))
    assert finished["test/mean_recall"] > 0.4


@pytest.mark.parametrize("name", sorted(NOT_ON_FEATURES))
def test_methods_that_change_the_backbone_say_so_in_a_line(on_features, name):
    with pytest.raises(UserError, match=r"training\.features") as error:
        on_features(name).config._check_fit(toy_card(channels=CHANNELS), (CHANNELS, 8, 8))
    assert "\n" not in str(error.value)


def test_features_of_a_network_from_scratch_are_refused(on_features):
    config = on_features(model={"weights": "none"}).config
    with pytest.raises(UserError, match=r"model\.weights is none"):
        config._check_fit(toy_card(channels=CHANNELS), (CHANNELS, 8, 8))


def test_a_network_of_other_weights_has_other_features(on_features, tmp_path):
    data, experiment = images(), on_features()
    before = experiment.seen(data).images
    torch.manual_seed(4)
    other = tmp_path / "other.safetensors"
    save_file(build_backbone("resnet8", CHANNELS).state_dict(), other)
    after = on_features(model={"weights": str(other)}).seen(data).images
    assert not torch.allclose(before, after)
    assert torch.equal(experiment.seen(data).images, before)
