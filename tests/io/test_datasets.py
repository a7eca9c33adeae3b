from __future__ import annotations

import pytest
import torch
from kedro.io import DatasetError

from lt_pipeline.io.datasets import FolderDataset, ImageSetDataset, StateDictDataset


def test_an_image_set_comes_back_whole(tmp_path, train):
    dataset = ImageSetDataset(str(tmp_path / "deep" / "train.safetensors"))
    assert not dataset.exists()
    dataset.save(train)
    found = dataset.load()
    assert dataset.exists()
    assert found.content_hash() == train.content_hash()


def test_an_empty_hold_out_can_be_saved(tmp_path, train):
    dataset = ImageSetDataset(str(tmp_path / "validation.safetensors"))
    dataset.save(train[torch.zeros(0, dtype=torch.long)])
    assert len(dataset.load()) == 0
    assert dataset.load().shape == train.shape


def test_weights_come_back_whatever_their_memory_format(tmp_path):
    weight = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    state = {"weight": weight, "tracked": torch.tensor(3)}
    dataset = StateDictDataset(str(tmp_path / "model.safetensors"))
    dataset.save(state)
    found = dataset.load()
    assert found.keys() == state.keys()
    assert torch.equal(found["weight"], weight)
    assert torch.equal(found["tracked"], torch.tensor(3))


def test_a_write_that_breaks_off_keeps_the_file_before_it(tmp_path, monkeypatch):
    dataset = StateDictDataset(str(tmp_path / "model.safetensors"))
    dataset.save({"weight": torch.ones(2)})

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("lt_pipeline.io.datasets.save_file", full)
    with pytest.raises(DatasetError, match="No space left on device"):
        dataset.save({"weight": torch.zeros(2)})
    assert torch.equal(dataset.load()["weight"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x00" * 20)
    with pytest.raises(DatasetError, match=r"model\.safetensors cannot be read .*run the node"):
        StateDictDataset(str(path)).load()


def test_a_folder_loads_as_its_path_and_is_no_output(tmp_path):
    dataset = FolderDataset(str(tmp_path))
    assert dataset.load() == tmp_path
    with pytest.raises(DatasetError, match="not allowed"):
        dataset.save(None)
