"""Out-of-distribution images from files: known sets in their own layouts, folders and arrays.

Nothing here downloads. A loader raises MissingFileError, which says what to put where, if its
set is not there, and UserError, which names the file, if it is there but damaged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lt_pipeline.learning.schema import MissingFileError, UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
THREADS = min(16, os.cpu_count() or 1)
# What is converted at a time, so that floats of a large set are never there all at once.
VALUES_AT_ONCE = 2**24


class SetRequest(NamedTuple):
    """What is asked of a loader: at most ``limit`` images in ``shape``, chosen by ``seed``.

    ``root`` is the folder of raw data, ``shape`` is (channels, height, width).
    """

    root: Path
    shape: tuple[int, int, int]
    limit: int
    seed: int


Loader = Callable[[SetRequest], Tensor]


def subsample(count: int, limit: int, seed: int) -> Tensor:
    """Return which of ``count`` images are taken, int64 ascending: all, or ``limit`` at random."""
    if count <= limit:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:limit].sort().values


def to_shape(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return ``images`` ``[N, c, h, w]`` as uint8 ``[N, channels, height, width]`` of ``shape``.

    Sizes change by bilinear interpolation with antialiasing, whatever the aspect ratio; grey is
    repeated for colour, colour becomes its luminance (ITU-R BT.601). Floats lie in [0, 1].

    Raises:
        UserError: if ``images`` are neither uint8 nor floats in [0, 1], are not 4-dimensional or
            empty, or have other channels than 1 or 3 where those differ from what is wanted.
    """
    _check(images, shape[0])
    if images.dtype == torch.uint8 and images.shape[1:] == shape:
        return images
    at_once = max(1, VALUES_AT_ONCE // images[:1].numel()) if len(images) else 1
    return torch.cat([_convert(part, shape) for part in images.split(at_once)])


def _check(images: Tensor, channels: int) -> None:
    is_float = images.is_floating_point()
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise UserError(
            f"images must be [N, channels, height, width], but are {list(images.shape)}"
        )
    if images.dtype != torch.uint8 and not is_float:
        raise UserError(
            f"images must be uint8 or floats in [0, 1], but are {images.dtype}; scale them to uint8"
        )
    if is_float and not ((images >= 0) & (images <= 1)).all():
        low, high = float(images.min()), float(images.max())
        raise UserError(
            f"floating-point images must lie in [0, 1], but range from {low:g} to {high:g}; "
            "scale them, or give uint8"
        )
    if images.shape[1] != channels and {images.shape[1], channels} != {1, 3}:
        raise UserError(
            f"images must have {channels} channels, or 1 (grey) or 3 (colour) where that can be "
            f"converted, but have {images.shape[1]} in {list(images.shape)}; drop alpha, and put "
            "channels second"
        )


def _convert(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    from torchvision.transforms.v2 import functional as F

    pixels: Tensor = images.float() * (1 if images.dtype == torch.uint8 else 255)
    if shape[0] == 1:
        # In floats: torchvision's uint8 version truncates, and makes white 254.
        pixels = F.rgb_to_grayscale(pixels) if images.shape[1] == 3 else pixels
    pixels = F.resize(pixels, list(shape[1:]), antialias=True)
    return pixels.clamp(0, 255).round().to(torch.uint8).expand(-1, shape[0], -1, -1).contiguous()


def _taken(images: Tensor, wanted: SetRequest) -> Tensor:
    return to_shape(images[subsample(len(images), wanted.limit, wanted.seed)], wanted.shape)


def _damaged(file: Path | str, error: Exception | str) -> UserError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{file} is damaged or of another kind ({reason}); replace or remove it")


def image_files(folder: Path) -> list[str]:
    """Return the images under ``folder`` at any depth, sorted; hidden files are left out.

    Links to folders are followed; what two of them lead to is there once.

    Raises:
        UserError: if a folder cannot be listed.
    """
    return sorted(
        os.path.join(at, name)
        for at, names in _folders(folder)
        for name in names
        # macOS's archives carry a file ._NAME, which is no image, beside every NAME
        if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)
    )


def _folders(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield ``folder`` and those in it, each once, with the names of their files."""
    seen = set[str]()
    for at, inside, names in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(at)
        if real in seen:  # a link to a folder above would be followed for ever
            inside.clear()
            continue
        seen.add(real)
        inside.sort()
        yield at, names


def _raise(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error


def _decode_some(files: list[str], wanted: SetRequest) -> Tensor:
    """Decode what is wanted of ``files``; only that is opened, and each image is shrunk at once."""
    # Several threads that meet their first WebP or TIFF together race to register its decoder.
    Image.init()
    files = [files[i] for i in subsample(len(files), wanted.limit, wanted.seed).tolist()]
    images = torch.empty(len(files), *wanted.shape, dtype=torch.uint8)
    with ThreadPoolExecutor(THREADS) as pool:
        for at, image in enumerate(pool.map(partial(_decode, shape=wanted.shape), files)):
            images[at] = image
    return images


def _decode(file: str, shape: tuple[int, int, int]) -> Tensor:
    try:
        with Image.open(file) as image:
            pixels = np.array(_eight_bits(image).convert("RGB"))
    except Exception as error:  # PIL's decoders raise whatever they stumble over
        raise _damaged(file, error) from error
    return to_shape(torch.from_numpy(pixels).permute(2, 0, 1)[None], shape)[0]


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16 bit grey levels, which PIL's own conversion would clip at 255."""
    if not image.mode.startswith(("I", "F")):
        return image
    levels = np.asarray(image)
    if image.mode == "F" or not 0 <= levels.min() <= levels.max() <= 65535:
        raise UserError(f"its pixels, of mode {image.mode}, have no known range")
    return Image.fromarray((levels.astype(np.float64) / 257).round().astype(np.uint8))


def _folder(place: str, what: str) -> Loader:
    """Return the loader of all images under root/``place``; ``what`` says what belongs there."""

    def load(wanted: SetRequest) -> Tensor:
        folder = wanted.root / place
        files = image_files(folder) if folder.is_dir() else []
        if not files:
            raise MissingFileError(f"no images in {folder}; put {what} there, at any depth")
        return _decode_some(files, wanted)

    return load


def named_set(name: str) -> Loader:
    """Return the loader of the folder root/ood/``name`` or, without one, of the .npz beside it."""

    def load(wanted: SetRequest) -> Tensor:
        folder = wanted.root / "ood" / name
        array = folder.with_name(f"{name}.npz")
        files = image_files(folder) if folder.is_dir() else []
        if files:
            return _decode_some(files, wanted)
        if array.is_file():
            return _read_array(array, wanted)
        raise MissingFileError(
            f"neither images in {folder} nor {array}; put image files into the one, or uint8 "
            "'images' [N, channels, height, width] into the other"
        )

    return load


def _read_array(file: Path, wanted: SetRequest) -> Tensor:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            images = torch.from_numpy(arrays["images"])
    except Exception as error:  # zipfile, zlib and NumPy have no error in common
        raise _damaged(file, error) from error
    if not len(images):
        raise _damaged(file, "no image in it")
    try:
        return _taken(images, wanted)
    except UserError as error:
        raise _damaged(file, error) from error


def _cifar(dataset: str) -> Loader:
    def load(wanted: SetRequest) -> Tensor:
        from torchvision import datasets
        from torchvision.datasets.utils import check_integrity

        kind = getattr(datasets, dataset)
        meta = (kind.meta["filename"], kind.meta["md5"])
        folder = wanted.root / kind.base_folder
        # torchvision wants all of them, also where only the test set is read
        for name, md5 in (*kind.train_list, *kind.test_list, meta):
            if not (folder / name).is_file():
                raise MissingFileError(
                    f"no {folder / name}; put the files of {kind.filename} into {folder}"
                )
            if not check_integrity(folder / name, md5):
                raise _damaged(folder / name, f"its MD5 is not {md5}")
        images = torch.from_numpy(kind(wanted.root, train=False, download=False).data)
        return _taken(images.permute(0, 3, 1, 2), wanted)

    return load


def _fashion_mnist(wanted: SetRequest) -> Tensor:
    from torchvision.datasets.mnist import read_image_file

    file = wanted.root / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte"
    if not file.is_file():
        raise MissingFileError(f"no {file}; put {file.name} (unpacked) into {file.parent}")
    try:
        images = read_image_file(str(file))
    except Exception as error:  # torchvision's reader asserts, indexes and reshapes
        raise _damaged(file, error) from error
    return _taken(images[:, None], wanted)


def _svhn(wanted: SetRequest) -> Tensor:
    from torchvision import datasets

    name = "test_32x32.mat"
    for folder in (wanted.root / "svhn", wanted.root):
        if (folder / name).is_file():
            try:
                images = datasets.SVHN(folder, split="test", download=False).data
            except Exception as error:  # RuntimeError for its MD5, scipy's own for its content
                raise _damaged(folder / name, error) from error
            return _taken(torch.from_numpy(images), wanted)
    raise MissingFileError(f"no {name}; put it into {wanted.root / 'svhn'} or {wanted.root}")


def _textures(wanted: SetRequest) -> Tensor:
    from torchvision import datasets

    folder = wanted.root / "dtd" / "dtd"
    try:
        splits = [
            # with str for a loader the set gives names, not images
            datasets.DTD(wanted.root, split=split, download=False, loader=str)
            for split in ("train", "val", "test")
        ]
    except (RuntimeError, FileNotFoundError) as error:
        raise MissingFileError(
            f"no {folder / 'images'} with {folder / 'labels'}/{{train,val,test}}1.txt; put what "
            f"dtd-r1.0.1.tar.gz holds, the folder dtd, into {folder.parent}"
        ) from error
    except ValueError as error:
        raise _damaged(folder / "labels", error) from error
    files = sorted(split[i][0] for split in splits for i in range(len(split)))
    return _decode_some(files, wanted)


FILE_SETS: dict[str, Loader] = {
    "cifar10": _cifar("CIFAR10"),
    "cifar100": _cifar("CIFAR100"),
    "fashion_mnist": _fashion_mnist,
    "svhn": _svhn,
    "textures": _textures,
    "places365": _folder("places365", "images of Places365 (its val_256, say)"),
    "tinyimagenet": _folder("tiny-imagenet-200/val/images", "Tiny ImageNet's validation images"),
    "inaturalist": _folder("inaturalist", "images of iNaturalist 2018"),
    "lsun_crop": _folder("LSUN", "ODIN's LSUN.tar.gz, unpacked,"),
    "lsun_resize": _folder("LSUN_resize", "ODIN's LSUN_resize.tar.gz, unpacked,"),
    **{
        name: named_set(name)
        for name in ("textures10", "scenes", "tinyimagenet_resize", "tinyimagenet_crop")
    },
}
