from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch.export import Dim

from lt_pipeline.learning import methods
from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.schema import UserError
from lt_pipeline.serving import onnx_export
from lt_pipeline.serving.export import Answer
from lt_pipeline.serving.onnx_export import BATCHES, largest_difference, to_onnx
from toys import toy_card, toy_images, toy_labels

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")


def finished(name, **parameters):
    config = ExperimentConfig.resolve(name, {"model": {"backbone": "resnet8"}, **parameters})
    torch.manual_seed(0)
    method = methods.get(name)(config.options, config.model, toy_card())
    method.merge_for_inference()
    # as after training: BatchNorm has statistics of its own
    method.train()
    with torch.no_grad():
        method.score(toy_images().images)
    return method.eval()


@cache
def exported_as(name):
    """Return the finished method, which tests only read, and what it is in ONNX."""
    method = finished(name)
    return method, to_onnx(method, toy_images(seed=3).images)


@pytest.mark.parametrize("name", ["ce", "dqroute"])
def test_onnx_answers_what_the_deployed_model_answers(name):
    images = toy_images(seed=3).images
    method, exported = exported_as(name)
    assert exported.difference < 1e-4
    session = onnxruntime.InferenceSession(exported.content)
    (given,) = session.get_inputs()
    assert (given.name, given.type) == ("images", "tensor(uint8)")
    assert given.shape[1:] == [1, 8, 8]
    with torch.no_grad():
        wanted = Answer(method)(images[:7])
    names = [output.name for output in session.get_outputs()]
    assert names == list(wanted)
    assert names[:2] == ["probabilities", "ood_score"]
    assert ("routing" in names) is (name == "dqroute")
    # a number of images that the export did not see
    for answer, expected in zip(
        session.run(None, {"images": images[:7].numpy()}), wanted.values(), strict=True
    ):
        np.testing.assert_allclose(answer, expected.numpy(), atol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == [f"class {c}" for c in range(4)]
    assert "thresholds" not in metadata


def of_several():
    """An experiment on images of several labels."""
    images = toy_labels()
    longtail = replace(LongTail.from_counts([90, 60, 40, 20], images.class_names), images=120)
    config = ExperimentConfig.resolve("bce", {"model": {"backbone": "resnet8"}})
    return Experiment(config, replace(toy_card(), longtail=longtail))


class Catalog(dict):
    """The catalog as the export asks it."""

    exists, load = dict.__contains__, dict.__getitem__


def test_labels_have_their_thresholds_in_the_metadata(tmp_path):
    exported = of_several()
    method = exported.build()
    method.merge_for_inference()
    catalog = Catalog({"bce.config": exported.config, "data_card": exported.card})
    catalog |= {"bce.model": dict(method.state_dict()), "test_set": toy_labels()}
    catalog["bce.onnx"] = tmp_path / "model.onnx"
    with pytest.raises(UserError, match="bce has none yet: kedro run --pipelines=bce"):
        onnx_export.export(catalog, "bce")
    thresholds = [0.25, 0.5, 0.125, 0.75]
    catalog["bce.metrics"] = {"thresholds": thresholds}
    assert str(tmp_path) in onnx_export.export(catalog, "bce")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["thresholds"]) == thresholds
    assert json.loads(told["class_names"]) == [f"class {c}" for c in range(4)]
    (given, *_) = session.run(None, {"images": toy_labels().images[:5].numpy()})
    with torch.no_grad():
        wanted = method.eval().score(toy_labels().images[:5]).sigmoid()
    np.testing.assert_allclose(given, wanted.numpy(), atol=1e-4)


def test_a_model_that_answers_otherwise_is_refused(monkeypatch):
    method, images = finished("ce"), toy_images().images
    monkeypatch.setattr(onnx_export, "_convert", lambda *_: exported_as("ce")[1].content)
    to_onnx(method, images)
    with torch.no_grad():
        method.net.head.bias += torch.tensor([0.5, 0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="is allowed: it is not written"):
        to_onnx(method, images)


def test_the_difference_is_the_largest_of_all_answers():
    class Plain(torch.nn.Module):
        def forward(self, images):
            mean = images.float().mean((1, 2, 3)) / 255
            return {"a": mean, "b": 2 * mean}

    class Shifted(Plain):
        def forward(self, images):
            # one answer, of the third image of the second batch
            logits = super().forward(images)
            if len(images) == BATCHES[1]:
                logits["b"][2] -= 0.25
            return logits

    class Spoilt(Plain):
        def forward(self, images):
            return {name: value * torch.nan for name, value in super().forward(images).items()}

    images = toy_images().images
    program = torch.onnx.export(
        Plain().eval(),
        (images[:5],),
        input_names=["images"],
        output_names=["a", "b"],
        dynamic_shapes=({0: Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    content = program.model_proto.SerializeToString()
    assert largest_difference(content, Plain(), images) < 1e-6
    assert largest_difference(content, Shifted(), images) == pytest.approx(0.25, abs=1e-6)
    # one that is no number is no small one
    assert np.isnan(largest_difference(content, Spoilt(), images))


@pytest.mark.parametrize("name", ["mor", "data_prep"])
def test_a_method_that_there_is_not_is_one_line(name):
    with pytest.raises(SystemExit, match=f"Error: unknown method '{name}'"):
        onnx_export.main([name])
