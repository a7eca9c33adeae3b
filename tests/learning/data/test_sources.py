from __future__ import annotations

import gzip
import hashlib
import pickle
import struct

import numpy as np
import pytest
import torch
from torchvision import datasets

from lt_pipeline.learning.data.distribution import class_counts
from lt_pipeline.learning.data.sources import FACTS, SOURCES, Facts, load_source


def test_digits_have_a_balanced_test_set_and_lose_no_image(tmp_path):
    source = load_source("digits", tmp_path)
    assert class_counts(source.test.labels, 10).tolist() == [50] * 10
    assert len(source.train) + len(source.test) == 1797
    assert source.train.shape == (1, 8, 8)
    assert (int(source.train.images.min()), int(source.train.images.max())) == (0, 255)
    train = {image.numpy().tobytes() for image in source.train.images}
    test = {image.numpy().tobytes() for image in source.test.images}
    assert train.isdisjoint(test)


def test_an_unknown_source_names_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'fashion_mnist'"):
        load_source("fashionmnist", tmp_path)


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"digits"}))
def test_missing_files_say_what_to_put_where(name, tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", no_network)
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", no_network)
    with pytest.raises(FileNotFoundError, match="cannot be downloaded.*put .*into") as error:
        load_source(name, tmp_path)
    assert str(tmp_path) in str(error.value)


def write_cifar(folder, monkeypatch, kind, names, label_key, classes):
    """Write tiny files in CIFAR's layout and tell torchvision their checksums."""
    folder.mkdir()
    sums = {}
    for offset, (name, images) in enumerate(names.items()):
        batch = {
            "data": np.full((images, 3072), offset, np.uint8),
            label_key: [i % classes for i in range(images)],
        }
        # the red plane's first row tells the layout: channel first, then row
        batch["data"][:, :32] = 200
        packed = pickle.dumps(batch)
        (folder / name).write_bytes(packed)
        sums[name] = hashlib.md5(packed).hexdigest()
    key, meta_name = kind.meta["key"], kind.meta["filename"]
    packed = pickle.dumps({key: [f"name {c}" for c in range(classes)]})
    (folder / meta_name).write_bytes(packed)
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": hashlib.md5(packed).hexdigest()})
    listed = list(sums.items())
    monkeypatch.setattr(kind, "train_list", [list(item) for item in listed[:-1]])
    monkeypatch.setattr(kind, "test_list", [list(item) for item in listed[-1:]])


@pytest.mark.parametrize(
    ("name", "kind", "folder", "files", "label_key", "classes"),
    [
        ("cifar100", datasets.CIFAR100, "cifar-100-python", ["train", "test"], "fine_labels", 100),
        ("cifar10", datasets.CIFAR10, "cifar-10-batches-py", ["data_batch_1", "test_batch"],
         "labels", 10),
    ],
)  # fmt: skip
def test_cifar_files_are_read_in_their_layout(
    tmp_path, monkeypatch, name, kind, folder, files, label_key, classes
):
    sizes = dict.fromkeys(files, 200)
    write_cifar(tmp_path / folder, monkeypatch, kind, sizes, label_key, classes)
    source = load_source(name, tmp_path)
    assert len(source.train) == 200 * (len(files) - 1)
    assert source.train.shape == (3, 32, 32)
    assert source.train.class_names == tuple(f"name {c}" for c in range(classes))
    image = source.train.images[0]
    assert (image[0, 0] == 200).all()
    assert (image[0, 1:] == 0).all()
    assert (image[1:] == 0).all()
    assert source.test.labels[:3].tolist() == [0, 1, 2]


def test_a_damaged_file_is_not_read(tmp_path, monkeypatch):
    sizes = {"train": 100, "test": 100}
    folder = tmp_path / "cifar-100-python"
    write_cifar(folder, monkeypatch, datasets.CIFAR100, sizes, "fine_labels", 100)
    (folder / "train").write_bytes((folder / "train").read_bytes()[:-1])
    monkeypatch.setattr(
        "torchvision.datasets.cifar.download_and_extract_archive",
        lambda *a, **k: (_ for _ in ()).throw(OSError("no network")),
    )
    with pytest.raises(FileNotFoundError, match="missing or damaged"):
        load_source("cifar100", tmp_path)


def test_fashion_mnist_files_are_read_in_their_layout(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 30), ("t10k", 10)):
        images = np.arange(count, dtype=np.uint8)[:, None, None].repeat(28, 1).repeat(28, 2)
        labels = (np.arange(count) % 10).astype(np.uint8)
        packed = struct.pack(">iiii", 2051, count, 28, 28) + images.tobytes()
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(packed)
        packed = struct.pack(">ii", 2049, count) + labels.tobytes()
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(packed)
        with gzip.open(raw / f"{prefix}-images-idx3-ubyte.gz", "wb") as archive:
            archive.write(b"not looked at")
    source = load_source("fashion_mnist", tmp_path)
    assert source.train.images.shape == (30, 1, 28, 28)
    assert torch.equal(source.train.images[:, 0, 3, 3], torch.arange(30, dtype=torch.uint8))
    assert source.test.labels.tolist() == list(range(10))
    assert source.train.class_names[9] == "Ankle boot"


def counted(name, folder):
    train = load_source(name, folder).train
    return Facts(train.shape, tuple(class_counts(train.labels, len(train.class_names)).tolist()))


def test_what_is_known_of_a_source_is_what_it_has(tmp_path):
    assert FACTS.keys() == SOURCES.keys()
    assert counted("digits", tmp_path) == FACTS["digits"]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_what_is_known_of_cifar_is_what_its_files_have(name, raw_cifar):
    assert counted(name, raw_cifar) == FACTS[name]
