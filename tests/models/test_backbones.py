from __future__ import annotations

from urllib.error import URLError

import pytest
import torch

from lt_pipeline.models.backbones import BACKBONES, build_backbone


@pytest.mark.parametrize("name", BACKBONES)
def test_features_are_as_wide_as_promised(name):
    net = build_backbone(name).eval()
    with torch.no_grad():
        assert net(torch.rand(1, 3, 32, 32)).shape == (1, net.features)


def test_torchvisions_take_grey_images_too():
    net = build_backbone("resnet18", channels=1).eval()
    with torch.no_grad():
        assert net(torch.rand(1, 1, 32, 32)).shape == (1, 512)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet33"}, "unknown backbone 'resnet33': did you mean"),
        ({"name": "resnet32", "pretrained": True}, "resnet32 has no public weights"),
        ({"name": "resnet18", "pretrained": True, "channels": 1}, "needs images with 3 channels"),
    ],
)
def test_what_does_not_exist_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(**arguments)


def test_weights_that_cannot_be_downloaded_say_where_to_put_which_file(monkeypatch, tmp_path):
    def offline(*arguments, **more):
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    torch.hub.set_dir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"put resnet18-\w+\.pth into .*checkpoints"):
        build_backbone("resnet18", pretrained=True)


def test_pretrained_weights_are_used_when_they_are_there(monkeypatch, tmp_path):
    from torchvision import models

    state = models.resnet18(weights=None).state_dict()
    state["layer1.0.conv1.weight"].fill_(0.5)
    file = tmp_path / "checkpoints" / models.ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[1]
    file.parent.mkdir()
    torch.save(state, file)
    torch.hub.set_dir(tmp_path)
    monkeypatch.setattr(
        models.ResNet18_Weights.DEFAULT.__class__, "get_state_dict",
        lambda self, *a, **k: torch.load(file, weights_only=True),
    )  # fmt: skip
    net = build_backbone("resnet18", pretrained=True)
    assert (net.layer1[0].conv1.weight == 0.5).all()
