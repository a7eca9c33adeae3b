from __future__ import annotations

from urllib.error import URLError

import pytest
import torch
from torchvision import models

from lt_pipeline.learning.models.backbones import BACKBONES, build_backbone


@pytest.mark.parametrize("name", BACKBONES)
def test_features_are_as_wide_as_promised(name):
    with torch.device("meta"):
        net = build_backbone(name).eval()
        assert net(torch.rand(1, 3, 32, 32)).shape == (1, net.features)


def test_torchvisions_take_grey_images_too():
    net = build_backbone("resnet18", channels=1).eval()
    with torch.no_grad():
        assert net(torch.rand(1, 1, 32, 32)).shape == (1, 512)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet33"}, "unknown backbone 'resnet33': did you mean"),
        ({"name": "resnet32", "weights": "default"}, "resnet32 has no public weights"),
        ({"name": "resnet18", "weights": "default", "channels": 1}, "needs images with 3 channels"),
    ],
)
def test_what_does_not_exist_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(**arguments)


def test_of_timms_names_an_unknown_one_is_told_the_nearest_and_not_all():
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="did you mean 'convnext_atto'.* one of timm's") as error:
        build_backbone("convnext_ato")
    assert len(str(error.value)) < 300


@pytest.fixture
def checkpoints(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path))
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    return folder


def weights_file(folder):
    return folder / models.ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[1]


def test_weights_that_cannot_be_downloaded_say_where_to_put_which_file(monkeypatch, checkpoints):
    def offline(*arguments, **more):
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(FileNotFoundError) as error:
        build_backbone("resnet18", weights="default")
    assert f"put {weights_file(checkpoints).name} into {checkpoints}," in str(error.value)


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junk"])
def test_damaged_weights_say_so(checkpoints, content):
    weights_file(checkpoints).write_bytes(content)
    with pytest.raises(FileNotFoundError, match=r"damaged .*put resnet18-\w+\.pth into"):
        build_backbone("resnet18", weights="default")


def test_pretrained_weights_are_used_when_they_are_there(checkpoints):
    state = models.resnet18(weights=None).state_dict()
    state["layer1.0.conv1.weight"].fill_(0.5)
    torch.save(state, weights_file(checkpoints))
    net = build_backbone("resnet18", weights="default")
    assert (net.layer1[0].conv1.weight == 0.5).all()
