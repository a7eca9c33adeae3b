from __future__ import annotations

import hashlib
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import io as scipy_io
from torchvision import datasets

from lt_pipeline.learning.data import ood_files
from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.data.ood import InDistribution, load_ood
from lt_pipeline.learning.data.ood_files import FILE_SETS, SetRequest, image_files, subsample
from lt_pipeline.learning.schema import UserError
from toys import PROJECT

SHAPE = (3, 8, 8)
FOLDERS = {
    "places365": "places365",
    "tinyimagenet": "tiny-imagenet-200/val/images",
    "inaturalist": "inaturalist",
    "lsun_crop": "LSUN",
    "lsun_resize": "LSUN_resize",
}
ARRAYS = ("textures10", "scenes", "tinyimagenet_resize", "tinyimagenet_crop")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("asked for a download")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def load(name, root, *, shape=SHAPE, limit=10_000, seed=0):
    """Return the one set, which must be there."""
    test = ImageSet(torch.zeros(2, *shape, dtype=torch.uint8), torch.zeros(2).long(), ("one",))
    sets, missing = load_ood([name], InDistribution(root, test, "none", seed, limit))
    assert not missing
    return sets[name]


def why_missing(name, root):
    test = ImageSet(torch.zeros(2, *SHAPE, dtype=torch.uint8), torch.zeros(2).long(), ("one",))
    sets, missing = load_ood([name], InDistribution(root, test, "none"))
    assert not sets
    return missing[name]


def put_flat(file, level, size=(10, 6), mode="L"):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level).save(file)


def levels(images):
    """Return each image's one grey level."""
    flat = images.flatten(1)
    assert torch.equal(flat.min(1).values, flat.max(1).values)
    return flat[:, 0].tolist()


def md5(data):
    return hashlib.md5(data).hexdigest()


@pytest.mark.parametrize(("name", "place"), FOLDERS.items())
def test_folders_of_images_are_read_at_any_depth_in_order(name, place, tmp_path):
    for level, file in enumerate(["b/9.png", "a/deep/er/1.bmp", "a/0.png", "z.webp", "c.TIF"]):
        put_flat(tmp_path / place / file, 10 * level)
    put_flat(tmp_path / place / "a" / "._0.png", 255)
    (tmp_path / place / "a" / "readme.txt").write_text("not an image")
    (tmp_path / place / "folder.png").mkdir()
    # a/0, a/deep, b, c, z
    assert levels(load(name, tmp_path)) == [20, 10, 0, 40, 30]


@pytest.mark.parametrize("name", [*FOLDERS, "folder:art"])
def test_a_folder_without_images_is_missing(name, tmp_path):
    place = FOLDERS.get(name, "ood/art")
    (tmp_path / place / "empty").mkdir(parents=True)
    (tmp_path / place / "list.txt").write_text("no image")
    line = why_missing(name, tmp_path)
    assert f"images in {tmp_path / place}" in line
    assert "put " in line


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path):
    with pytest.raises(UserError, match="gone cannot be read: No such file"):
        image_files(tmp_path / "gone")


def test_links_to_folders_are_followed_and_what_two_lead_to_is_there_once(tmp_path):
    put_flat(tmp_path / "disk" / "a" / "1.png", 10)
    put_flat(tmp_path / "disk" / "b" / "2.png", 20)
    folder = tmp_path / "LSUN"
    put_flat(folder / "0.png", 0)
    (folder / "linked").symlink_to(tmp_path / "disk")
    (folder / "once_more").symlink_to(tmp_path / "disk" / "b")
    (tmp_path / "disk" / "a" / "up").symlink_to(folder)
    names = [os.path.relpath(file, folder) for file in image_files(folder)]
    assert names == ["0.png", "linked/a/1.png", "linked/b/2.png"]
    assert levels(load("lsun_crop", tmp_path)) == [0, 10, 20]
    (tmp_path / "LSUN_resize").symlink_to(tmp_path / "disk" / "b")
    assert levels(load("lsun_resize", tmp_path)) == [20]


def test_a_limit_opens_only_the_chosen_files(tmp_path):
    for level in range(30):
        put_flat(tmp_path / "LSUN" / f"{level:02}.png", level)
    taken = {seed: levels(load("lsun_crop", tmp_path, limit=10, seed=seed)) for seed in (0, 1)}
    assert taken[0] == sorted(set(taken[0])) == subsample(30, 10, 0).tolist()
    assert taken[0] != taken[1]
    for level in set(range(30)) - set(taken[0]):
        (tmp_path / "LSUN" / f"{level:02}.png").write_bytes(b"not an image")
    assert levels(load("lsun_crop", tmp_path, limit=10)) == taken[0]


def test_images_are_chosen_without_repetition_and_all_alike():
    hits = torch.zeros(20)
    for seed in range(200):
        picked = subsample(20, 5, seed)
        assert len(set(picked.tolist())) == 5
        assert torch.equal(picked, picked.sort().values)
        hits[picked] += 1
    assert hits.min() > 25
    assert subsample(5, 5, 0).tolist() == subsample(5, 9, 1).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("grey.png", lambda: Image.new("L", (9, 7), 100)),
        ("alpha.png", lambda: Image.new("RGBA", (9, 7), (100, 100, 100, 7))),
        ("greyalpha.png", lambda: Image.new("LA", (9, 7), (100, 7))),
        ("palette.png", lambda: Image.new("RGB", (9, 7), (100,) * 3).quantize(4)),
        ("palette.bmp", lambda: Image.new("RGB", (9, 7), (100,) * 3).quantize(4)),
        ("sixteen.png", lambda: Image.fromarray(np.full((7, 9), 100 * 257, np.uint16))),
        ("sixteen.tif", lambda: Image.fromarray(np.full((7, 9), 100 * 257, np.uint16))),
        ("thirtytwo.tif", lambda: Image.fromarray(np.full((7, 9), 100 * 257, np.int32))),
        ("colour.jpg", lambda: Image.new("RGB", (9, 7), (100,) * 3)),
        ("print.jpeg", lambda: Image.new("RGB", (9, 7), (100,) * 3).convert("CMYK")),
        ("web.webp", lambda: Image.new("RGB", (9, 7), (100,) * 3)),
    ],
)  # fmt: skip
def test_files_of_every_mode_become_rgb(name, make, tmp_path):
    folder = tmp_path / "ood" / "modes"
    folder.mkdir(parents=True)
    make().save(folder / name)
    assert levels(load("folder:modes", tmp_path)) == [100]


def test_black_and_white_files_become_rgb(tmp_path):
    put_flat(tmp_path / "ood" / "modes" / "bits.png", 1, mode="1")
    assert levels(load("folder:modes", tmp_path)) == [255]


def test_channels_rows_and_columns_of_a_file_stay_apart(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    folder = tmp_path / "ood" / "one"
    folder.mkdir(parents=True)
    Image.fromarray(pixels).save(folder / "image.png")
    ood = load("folder:one", tmp_path, shape=(3, 8, 12))
    assert torch.equal(ood[0], torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize(
    "spoil",
    [lambda data: b"", lambda data: b"nothing of the kind", lambda data: data[: len(data) // 2]],
)
def test_a_damaged_image_is_named(spoil, tmp_path):
    for i in range(5):
        put_flat(tmp_path / "inaturalist" / "birds" / f"{i}.png", 50, size=(200, 200))
    bad = tmp_path / "inaturalist" / "birds" / "3.png"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(bad)
    bad.write_bytes(spoil(bad.read_bytes()))
    with pytest.raises(ValueError, match=r"birds.3\.png is damaged.*replace or remove"):
        load("inaturalist", tmp_path)


@pytest.mark.parametrize("value", [1.5, -3])
def test_pixels_of_no_known_range_are_named(value, tmp_path):
    folder = tmp_path / "ood" / "depth"
    folder.mkdir(parents=True)
    dtype = np.float32 if value == 1.5 else np.int32
    Image.fromarray(np.full((5, 5), value, dtype)).save(folder / "map.tif")
    with pytest.raises(ValueError, match=r"map\.tif .*no known range"):
        load("folder:depth", tmp_path)


def test_large_images_are_shrunk_one_at_a_time(tmp_path, monkeypatch):
    for i in range(40):
        put_flat(tmp_path / "ood" / "large" / f"{i:02}.png", i, size=(50, 40))
    seen = []
    shrink = ood_files.to_shape

    def watched(images, shape):
        seen.append(tuple(images.shape))
        return shrink(images, shape)

    monkeypatch.setattr(ood_files, "to_shape", watched)
    assert levels(load("folder:large", tmp_path)) == list(range(40))
    assert seen == [(1, 3, 40, 50)] * 40


@pytest.mark.parametrize("name", [*ARRAYS, "folder:mine"])
def test_arrays_are_read_resized_and_limited(name, tmp_path):
    (tmp_path / "ood").mkdir()
    images = np.arange(40, dtype=np.uint8)[:, None, None, None].repeat(3, 1).repeat(32, 2)
    file = f"{name.removeprefix('folder:')}.npz"
    np.savez_compressed(tmp_path / "ood" / file, images=images.repeat(32, 3))
    assert levels(load(name, tmp_path)) == list(range(40))
    some = load(name, tmp_path, shape=(1, 5, 5), limit=7, seed=3)
    assert some.shape == (7, 1, 5, 5)
    assert levels(some) == subsample(40, 7, 3).tolist()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((2, 3, 4, 4), np.uint8)}, "images"),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8)}, r"have 4 in \[2, 4, 4, 3\]"),
        ({"images": np.zeros((2, 3, 4, 4), np.int64)}, "uint8 or floats"),
        ({"images": np.full((2, 3, 4, 4), 200.0)}, r"\[0, 1\]"),
        ({"images": np.zeros((3, 4, 4), np.uint8)}, r"\[N, channels, height, width\]"),
        ({"images": np.zeros((0, 3, 4, 4), np.uint8)}, "no image in it"),
        ({"images": np.array(["a"], dtype=object)}, "pickle"),
    ],
)
def test_an_array_of_another_kind_is_named(arrays, message, tmp_path):
    (tmp_path / "ood").mkdir()
    np.savez(tmp_path / "ood" / "scenes.npz", **arrays)
    with pytest.raises(ValueError, match=f"scenes.npz is damaged or of another kind.*{message}"):
        load("scenes", tmp_path)


def test_a_truncated_array_is_named(tmp_path):
    (tmp_path / "ood").mkdir()
    file = tmp_path / "ood" / "scenes.npz"
    np.savez(file, images=np.zeros((2, 3, 4, 4), np.uint8))
    for data in (file.read_bytes()[:200], b""):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"scenes\.npz is damaged"):
            load("scenes", tmp_path)


def test_a_folder_with_images_goes_before_the_array_beside_it(tmp_path):
    put_flat(tmp_path / "ood" / "both" / "a.png", 9)
    np.savez(tmp_path / "ood" / "both.npz", images=np.zeros((2, 3, 8, 8), np.uint8))
    assert levels(load("folder:both", tmp_path)) == [9]
    (tmp_path / "ood" / "both" / "a.png").unlink()
    assert levels(load("folder:both", tmp_path)) == [0, 0]


def put_svhn(folder, monkeypatch, levels=(7, 8, 9)):
    folder.mkdir(parents=True, exist_ok=True)
    images = np.zeros((32, 32, 3, len(levels)), np.uint8) + np.array(levels, np.uint8)
    images[0, :, 0] = 200
    file = folder / "test_32x32.mat"
    scipy_io.savemat(file, {"X": images, "y": np.array([[10], [1], [2]], np.uint8)})
    listed = ["", file.name, md5(file.read_bytes())]
    monkeypatch.setattr(datasets.SVHN, "split_list", {**datasets.SVHN.split_list, "test": listed})
    return file


@pytest.mark.parametrize("place", [".", "svhn"])
def test_svhn_is_read_where_torchvision_leaves_it(place, tmp_path, monkeypatch):
    put_svhn(tmp_path / place, monkeypatch)
    ood = load("svhn", tmp_path, shape=(3, 32, 32))
    assert ood[:, 1, 5, 5].tolist() == [7, 8, 9]
    # the first row is red
    assert (ood[:, 0, 0] == 200).all()
    assert (ood[:, 0, 1:] < 10).all()
    assert (ood[:, 1:] < 10).all()
    assert len(load("svhn", tmp_path, limit=2)) == 2


def test_a_damaged_svhn_is_named_and_not_fetched(tmp_path, monkeypatch):
    file = put_svhn(tmp_path, monkeypatch)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"test_32x32\.mat is damaged"):
        load("svhn", tmp_path)


def put_dtd(root):
    base = root / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    splits = {"train": ["dotted/d2.jpg"], "val": ["banded/b1.jpg"], "test": ["banded/b0.jpg"]}
    for split, names in splits.items():
        for number in range(1, 11):
            (base / "labels" / f"{split}{number}.txt").write_text("\n".join(names) + "\n")
    for level, name in enumerate(["banded/b0.jpg", "banded/b1.jpg", "dotted/d2.jpg"]):
        put_flat(base / "images" / name, 50 * level, size=(16, 24))
    return base


def test_textures_are_all_splits_of_dtd(tmp_path):
    put_dtd(tmp_path)
    assert levels(load("textures", tmp_path)) == [0, 50, 100]
    assert len(load("textures", tmp_path, limit=2)) == 2


def test_a_texture_that_is_listed_but_not_there_is_named(tmp_path):
    base = put_dtd(tmp_path)
    (base / "images" / "banded" / "b1.jpg").unlink()
    with pytest.raises(ValueError, match=r"banded.b1\.jpg is damaged"):
        load("textures", tmp_path)


def test_textures_without_lists_are_missing_and_damaged_lists_are_named(tmp_path):
    base = put_dtd(tmp_path)
    (base / "labels" / "val1.txt").write_text("banded b1.jpg\n")
    with pytest.raises(ValueError, match="labels is damaged"):
        load("textures", tmp_path)
    (base / "labels" / "val1.txt").unlink()
    assert f"{base / 'labels'}" in why_missing("textures", tmp_path)


def put_cifar(root, monkeypatch, kind):
    folder = root / kind.base_folder
    folder.mkdir()
    test = [kind.test_list[0][0]]
    train = [name for name, _ in kind.train_list]
    sums = {}
    for name in (*train, *test):
        level = 30 if name in test else 0
        data = np.arange(20, dtype=np.uint8)[:, None].repeat(3072, 1) + np.uint8(level)
        # the green plane is bright
        data[:, 1024:2048] = 250
        # and red's first row has a level of its own
        data[:, :32] = 99
        labels = [0] * 20
        (folder / name).write_bytes(
            pickle.dumps({"data": data, "labels": labels, "fine_labels": labels})
        )
        sums[name] = md5((folder / name).read_bytes())
    meta = pickle.dumps({kind.meta["key"]: [str(c) for c in range(100)]})
    (folder / kind.meta["filename"]).write_bytes(meta)
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(meta)})
    monkeypatch.setattr(kind, "train_list", [[name, sums[name]] for name in train])
    monkeypatch.setattr(kind, "test_list", [[name, sums[name]] for name in test])
    return folder


@pytest.mark.parametrize("kind", [datasets.CIFAR10, datasets.CIFAR100])
def test_cifars_test_images_are_read(kind, tmp_path, monkeypatch):
    put_cifar(tmp_path, monkeypatch, kind)
    name = kind.__name__.lower()
    ood = load(name, tmp_path, shape=(3, 32, 32))
    assert ood[:, 0, 4, 4].tolist() == list(range(30, 50))
    assert (ood[:, 1] == 250).all()
    assert (ood[:, 0, 0] == 99).all()
    assert load(name, tmp_path, shape=(1, 28, 28), limit=3).shape == (3, 1, 28, 28)


def test_a_cifar_without_a_file_is_missing_and_one_with_a_damaged_file_names_it(
    tmp_path, monkeypatch
):
    folder = put_cifar(tmp_path, monkeypatch, datasets.CIFAR10)
    bad = folder / "data_batch_3"
    bad.write_bytes(bad.read_bytes()[:-1])
    with pytest.raises(ValueError, match="data_batch_3 is damaged.*MD5"):
        load("cifar10", tmp_path)
    bad.unlink()
    assert str(bad) in why_missing("cifar10", tmp_path)


def put_fashion_mnist(root):
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.arange(5, dtype=np.uint8)[:, None, None].repeat(28, 1).repeat(28, 2)
    file = raw / "t10k-images-idx3-ubyte"
    file.write_bytes(struct.pack(">iiii", 2051, 5, 28, 28) + images.tobytes())
    return file


def test_fashion_mnists_test_images_are_read_and_become_colour(tmp_path):
    put_fashion_mnist(tmp_path)
    ood = load("fashion_mnist", tmp_path)
    assert ood.shape == (5, *SHAPE)
    assert levels(ood) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_a_damaged_fashion_mnist_is_named(keep, tmp_path):
    file = put_fashion_mnist(tmp_path)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte is damaged"):
        load("fashion_mnist", tmp_path)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("svhn", "svhn"),
        ("textures", "dtd/dtd/images"),
        ("cifar100", "cifar-100-python"),
        ("fashion_mnist", "FashionMNIST/raw"),
        ("scenes", "ood/scenes.npz"),
        *FOLDERS.items(),
    ],
)
def test_what_is_missing_names_its_place(name, part, tmp_path):
    line = why_missing(name, tmp_path)
    assert str(tmp_path / part) in line
    assert "put " in line


@pytest.mark.parametrize(
    ("name", "count"), dict(zip(ARRAYS, (1200, 2158, 4000, 4000), strict=True)).items()
)
def test_the_real_arrays_are_read(name, count):
    root = PROJECT / "data" / "01_raw"
    if not (root / "ood" / f"{name}.npz").exists():
        pytest.skip(f"{name}.npz is not in data/01_raw/ood")
    ood = FILE_SETS[name](SetRequest(root, (3, 32, 32), 10_000, 0))
    assert ood.shape == (count, 3, 32, 32)
    assert ood.float().std() > 20
    assert FILE_SETS[name](SetRequest(root, (1, 8, 8), 50, 0)).shape == (50, 1, 8, 8)


def test_the_other_real_cifar_is_a_set(raw_cifar):
    ood = load("cifar10", raw_cifar, shape=(3, 32, 32), limit=100)
    with open(raw_cifar / "cifar-10-batches-py" / "test_batch", "rb") as file:
        data = pickle.load(file, encoding="latin1")["data"]
    wanted = torch.from_numpy(data)[subsample(10_000, 100, 0)].view(-1, 3, 32, 32)
    assert torch.equal(ood, wanted)
