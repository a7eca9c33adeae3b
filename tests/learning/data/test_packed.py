from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lt_pipeline.learning.data.packed import PackedImages, mapped, pack


@pytest.fixture
def files(tmp_path):
    paths = []
    for k in range(30):
        pixels = np.random.default_rng(k).integers(0, 255, (9 + k, 12, 3), np.uint8)
        paths.append(tmp_path / f"{k}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.fixture
def images(files, tmp_path):
    assert pack(files, tmp_path / "images.npy", 8) == {}
    labels = torch.arange(30) % 3
    return PackedImages(mapped(tmp_path / "images.npy"), torch.arange(30), labels, ("a", "b", "c"))


def test_images_come_in_the_order_asked_for_whatever_it_is(images):
    order = torch.tensor([5, 29, 0, 5, 17, 2, 2, 8])
    stored = torch.from_numpy(images.array.copy())
    parts = list(images.fetch(order, 3))
    assert [len(part) for part in parts] == [3, 3, 2]
    assert torch.equal(torch.cat(parts), stored[order])
    assert images.shape == (3, 8, 8)


def test_a_part_of_a_part_is_the_same_images(images):
    some = images[torch.tensor([3, 9, 27])][torch.tensor([True, False, True])]
    stored = torch.from_numpy(images.array.copy())
    assert torch.equal(next(some.fetch(torch.arange(2), 2)), stored[[3, 27]])
    assert some.labels.tolist() == [0, 0]
    assert len(some) == 2


@pytest.mark.parametrize("threads", [1, 4])
def test_the_file_is_the_same_whatever_the_number_of_threads(files, tmp_path, threads):
    pack(files, tmp_path / "other.npy", 8, threads=threads)
    pack(files, tmp_path / "again.npy", 8, threads=2)
    assert (tmp_path / "other.npy").read_bytes() == (tmp_path / "again.npy").read_bytes()
    assert not list(tmp_path.glob("*.part"))


def test_what_cannot_be_read_is_named_by_position_and_nothing_takes_its_place(files, tmp_path):
    files[4].write_bytes(b"no image")
    files[7].unlink()
    unreadable = pack(files, tmp_path / "images.npy", 8)
    assert unreadable.keys() == {4, 7}
    assert "4.png is no image" in unreadable[4]
    array = np.load(tmp_path / "images.npy")
    assert not array[[4, 7]].any()
    assert array[[3, 5, 6, 8]].any((1, 2, 3)).all()


def anonymous_memory():
    """Return the bytes that are this process's own: not those of a mapped file."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_does_not_grow_with_the_images(tmp_path):
    """100,000 images of 3 KB are 307 MB."""
    count, names = 100_000, ("only",)
    shape = (count, 3, 32, 32)
    np.lib.format.open_memmap(tmp_path / "many.npy", "w+", np.uint8, shape).flush()
    labels = torch.zeros(count, dtype=torch.int64)
    many = PackedImages(mapped(tmp_path / "many.npy"), torch.arange(count), labels, names)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    before, most, images = anonymous_memory(), 0, 0
    for part in many.fetch(order, 256):
        images += len(part)
        most = max(most, anonymous_memory())
    assert images == count
    assert most - before < 50e6
