"""Images that are not in memory: a file as safetensors writes it, read as it is needed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from kedro.io import DatasetError
from safetensors.torch import load_file, save_file

from lt_pipeline.io import datasets
from lt_pipeline.io.datasets import ImageSetDataset
from lt_pipeline.io.image_files import mapped_images, write_images
from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.data.packed import PackedImages
from lt_pipeline.learning.data.protocol import content_hash, take
from toys import toy_images, toy_labels


@pytest.fixture
def packed():
    data = toy_images((300, 200), channels=3)
    return PackedImages(data.images.numpy(), torch.arange(500), data.labels, data.class_names)


def test_the_file_is_one_that_safetensors_reads(packed, tmp_path):
    write_images(tmp_path / "a.safetensors", packed, {"about": "{}"})
    read = load_file(tmp_path / "a.safetensors")
    assert torch.equal(read["images"], torch.from_numpy(packed.array))
    assert torch.equal(read["labels"], packed.labels)


def test_what_safetensors_wrote_is_mapped(packed, tmp_path):
    tensors = {"images": torch.from_numpy(packed.array), "labels": packed.labels}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"about": json.dumps({})})
    mapped = mapped_images(tmp_path / "a.safetensors", packed.class_names)
    assert content_hash(mapped) == content_hash(packed)


@pytest.mark.parametrize("limit", [2**30, 1])
def test_a_set_comes_back_whether_it_fits_memory_or_not(packed, tmp_path, monkeypatch, limit):
    monkeypatch.setattr(datasets, "IN_MEMORY", limit)
    dataset = ImageSetDataset(str(tmp_path / "train.safetensors"))
    dataset.key = "k"
    dataset.save(packed[torch.arange(0, 500, 2)])
    loaded = dataset.load()
    assert isinstance(loaded, ImageSet if limit > 1 else PackedImages)
    assert content_hash(loaded) == content_hash(packed[torch.arange(0, 500, 2)])
    order = torch.tensor([3, 200, 0])
    assert torch.equal(take(loaded, order), torch.from_numpy(packed.array[[6, 400, 0]]))
    dataset.key = "other"
    with pytest.raises(DatasetError, match="other data"):
        dataset.load()


@pytest.mark.parametrize("limit", [2**30, 1])
@pytest.mark.parametrize("in_memory", [True, False])
def test_what_images_are_of_comes_back_and_is_no_content(
    packed, tmp_path, monkeypatch, limit, in_memory
):
    """A set without groups is the file that it was: its hash, too."""
    monkeypatch.setattr(datasets, "IN_MEMORY", limit)
    data = toy_images((300, 200), channels=3) if in_memory else packed
    grouped = replace(data, groups=torch.arange(500) // 3)
    dataset = ImageSetDataset(str(tmp_path / "test.safetensors"))
    dataset.save(data)
    assert dataset.load().groups is None
    assert set(load_file(tmp_path / "test.safetensors")) == {"images", "labels"}
    dataset.save(grouped)
    loaded = dataset.load()
    assert torch.equal(loaded.groups, grouped.groups)
    assert content_hash(loaded) == content_hash(data)
    some = loaded[torch.tensor([499, 2, 3])]
    assert some.groups.tolist() == [166, 0, 1]
    assert torch.equal(loaded[loaded.labels == 1].groups, grouped.groups[300:])
    assert torch.equal(loaded.to(torch.device("cpu")).groups, grouped.groups)


@pytest.mark.parametrize("limit", [2**30, 1])
@pytest.mark.parametrize("in_memory", [True, False])
def test_several_labels_come_back(tmp_path, monkeypatch, limit, in_memory):
    monkeypatch.setattr(datasets, "IN_MEMORY", limit)
    data = toy_labels()
    held = PackedImages(data.images.numpy(), torch.arange(120), data.labels, data.class_names)
    dataset = ImageSetDataset(str(tmp_path / "train.safetensors"))
    dataset.save(data if in_memory else held)
    loaded = dataset.load()
    assert torch.equal(loaded.labels, data.labels)
    assert loaded.labels.dtype == torch.uint8
    assert content_hash(loaded) == content_hash(data)
