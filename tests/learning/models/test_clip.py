"""CLIP, of the same code but tiny and as it was drawn: its logits are its own zero-shot ones."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.freeze import with_frozen
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.engine.trainer import fit
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.methods.families.base import Method
from lt_pipeline.learning.methods.families.options import MethodOptions
from lt_pipeline.learning.models.backbones import check_weights, width_of
from lt_pipeline.learning.models.low_rank import LowRank
from lt_pipeline.learning.models.network import ModelConfig, build_network
from lt_pipeline.learning.schema import MissingFileError, UserError, one_line_errors
from lt_pipeline.learning.transforms.augment import AugmentConfig
from toys import toy_card, toy_images, toy_labels

open_clip = pytest.importorskip("open_clip", reason="needs the extra clip")

CPU = torch.device("cpu")
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
SHAPES = {
    "tiny-vit": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "tiny-resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
}
NAMES = ["a_dog", "red fox", "cat", "newt"]
TEMPLATES = ("a photo of a {}.", "a small {}")
TEXT_HEAD = {"head": "text", "weights": "none", "templates": TEMPLATES}
TRAINING = TrainingConfig(
    epochs=1, batch_size=16, learning_rate=0.01, warmup_epochs=0, augment=AugmentConfig()
)
MODELS = pytest.mark.parametrize("model", SHAPES)


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory):
    """Make the tiny models known to open_clip, and a checkpoint of each."""
    folder = tmp_path_factory.mktemp("clip")
    files = {}
    for name, vision in SHAPES.items():
        config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    for name in SHAPES:
        torch.manual_seed(5)
        made = open_clip.create_model(name)
        files[name] = folder / f"{name}.pt"
        torch.save(made.state_dict(), files[name])
    return files


def card() -> DataCard:
    return toy_card(channels=3)


def network(model, weights="none", names=NAMES, **changes):
    config = ModelConfig(backbone=f"clip:{model}", **{**TEXT_HEAD, "weights": weights, **changes})
    made = build_network(
        config, classes=len(names), channels=3, mean=[0.5] * 3, std=[0.2] * 3, names=names
    )
    return made.eval()


def zero_shot(model, file, images, names=NAMES):
    """Return CLIP's own logits, of open_clip's own functions from pixels on."""
    clip = open_clip.create_model(model, pretrained=str(file)).eval()
    mean, std = (
        torch.tensor(value)[:, None, None]
        for value in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    texts = [template.format(name.replace("_", " ")) for name in names for template in TEMPLATES]
    tokens = open_clip.get_tokenizer(model)(texts)
    embedded = clip.encode_text(tokens, normalize=True).unflatten(0, (len(names), -1)).mean(1)
    seen = clip.encode_image((images / 255 - mean) / std, normalize=True)
    return clip.logit_scale.exp() * seen @ F.normalize(embedded).T


@MODELS
@torch.no_grad()
def test_before_training_logits_are_its_own_zero_shot_ones(model, tiny):
    images = toy_images(channels=3, size=32).images[:5]
    net = network(model, str(tiny[model]))
    torch.testing.assert_close(net(images), zero_shot(model, tiny[model], images))


@MODELS
def test_the_text_encoder_is_no_part_of_the_network(model):
    net = network(model)
    assert all(
        name.startswith(("normalize.", "backbone.net.", "head.")) for name in net.state_dict()
    )
    assert not any("token_embedding" in name for name, _ in net.named_modules())
    assert not [*net.head.parameters()]
    assert not hasattr(net.backbone, "_clip")


@MODELS
@torch.no_grad()
def test_a_cosine_head_starts_at_the_texts_with_a_scale_of_its_own(model, tiny):
    text = network(model, str(tiny[model]))
    cosine = network(model, str(tiny[model]), head="cosine", head_init="text", scale=25.0)
    images = toy_images(channels=3, size=32).images[:5]
    wanted = text(images) / text.head.scale * 25
    torch.testing.assert_close(cosine(images), wanted)
    assert [*cosine.head.parameters()]


@MODELS
@pytest.mark.parametrize("several", [False, True])
def test_more_fine_tunes_the_image_encoder_and_the_texts_stay(model, several):
    """Single- and multi-label: layers are decomposed, learn, and are folded into the plain ones."""
    data = toy_labels(size=32) if several else toy_images(channels=3, size=32)
    data = ImageSet(data.images.expand(-1, 3, -1, -1), data.labels, data.class_names)
    name = "bce" if several else "logit_adjustment"
    config = ExperimentConfig.resolve(
        "more",
        {
            "device": "cpu",
            "model": {"backbone": f"clip:{model}", **TEXT_HEAD},
            "more": {"options": {"criterion": {"name": name}}},
        },
    )
    one = Experiment(config, several_card() if several else card())
    method = one.build()
    assert any(isinstance(module, LowRank) for module in method.net.backbone.modules())
    before = {name: value.clone() for name, value in method.state_dict().items()}
    fit(method, Stage("train"), data, TRAINING, seed=0, device=CPU)
    after = method.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert any(name.endswith("0.up") for name in changed)
    assert not any(name.startswith("net.head") for name in changed)
    method.eval()
    with torch.no_grad():
        scores = method.score(data.images[:4])
        method.merge_for_inference()
        torch.testing.assert_close(method.score(data.images[:4]), scores, rtol=1e-3, atol=1e-3)
    plain = network(model, names=list(one.card.longtail.class_names))
    assert method.net.state_dict().keys() == plain.state_dict().keys()


def several_card():
    data, made = toy_labels(size=32), card()
    counts = tuple(data.labels.long().sum(0).tolist())
    return replace(made, longtail=replace(made.longtail, class_counts=counts, images=len(data)))


@pytest.mark.parametrize("kind", ["adaptformer", "lora"])
@torch.no_grad()
def test_adapters_have_their_places_in_open_clips_transformer(kind, tiny):
    file = str(tiny["tiny-vit"])
    images = toy_images(channels=3, size=32).images[:3]
    adapted = network("tiny-vit", file, adapter={"name": kind, "dim": 2})
    assert torch.equal(adapted(images), network("tiny-vit", file)(images))
    count = {"adaptformer": 2 * (2 * 32 + 2 * 32 * 2 + 2 + 32 + 1), "lora": 2 * 2 * 2 * 2 * 32}
    assert sum(p.numel() for p in adapted.learned.parameters()) == count[kind]
    assert len(adapted.kept) == len([*network("tiny-vit").backbone.parameters()])


@MODELS
@torch.no_grad()
def test_images_of_any_size_are_seen_at_its_own(model):
    net, seen = network(model), []
    net.backbone.net.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[2:]))
    net(toy_images(channels=3, size=8).images[:2])
    assert seen == [(32, 32)]


@MODELS
def test_every_parameter_is_in_one_layer(model):
    net = network(model)
    layers = [p for layer in net.layers for p in layer]
    assert {id(p) for p in layers} == {id(p) for p in net.backbone.parameters()}
    assert len(layers) == len({id(p) for p in layers})
    assert len(net.layers) == (4 if model == "tiny-vit" else 6)
    assert width_of(f"clip:{model}") == 24


def test_a_head_that_does_not_learn_cannot_be_a_stage_of_its_own():
    model = ModelConfig(backbone="clip:tiny-vit", **TEXT_HEAD)
    method = Method(MethodOptions(), model, card())
    with pytest.raises(UserError, match="nothing learns in stage 'classifier'.*text"):
        with_frozen(method, Stage("classifier", trainable=("net.head",)), TRAINING)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"head": "text"}, "embeddings of class names are CLIP's: set backbone to .*clip:RN50"),
        ({"head": "cosine", "head_init": "text"}, "embeddings of class names are CLIP's"),
        ({"head": "linear", "head_init": "text"}, "head_init=text is a cosine head's"),
        ({"backbone": "clip:RN5"}, "unknown backbone 'clip:RN5'.*did you mean clip:RN50"),
        ({"backbone": "clip:RN50.openay"}, "unknown weights of clip:RN50 'openay'.*'openai'"),
        ({"templates": ["a photo"]}, r"must have one \{\} each"),
        ({"templates": []}, r"must have one \{\} each"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(model, says):
    with pytest.raises(UserError, match=says), one_line_errors("model"):
        ModelConfig(**model)


def test_other_channels_are_refused():
    with pytest.raises(UserError, match="clip:RN50 needs images with 3 channels, not 1"):
        check_weights("clip:RN50", 1, "none")


def test_weights_that_are_not_there_are_told_in_a_line(tmp_path, monkeypatch):
    with pytest.raises(MissingFileError, match="there is no file .*gone.pt"):
        network("tiny-vit", str(tmp_path / "gone.pt"))

    def offline(*_, **__):
        raise RuntimeError("Failed to download weights for tag 'openai': no route\nand more")

    monkeypatch.setattr(open_clip, "create_model", offline)
    said = "weights openai of RN50 are not in open_clip's cache and cannot be downloaded .*a file$"
    with pytest.raises(MissingFileError, match=said):
        network("RN50.openai", "default")


def test_weights_of_another_network_are_refused(tiny):
    with pytest.raises(UserError, match="tiny-resnet.pt does not fit .*clip:tiny-vit"):
        network("tiny-vit", str(tiny["tiny-resnet"]))


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    said = r"needs the extra clip: pip install 'lt_pipeline\[clip\]'"
    with pytest.raises(UserError, match=said), one_line_errors("model"):
        ModelConfig(backbone="clip:RN50")
