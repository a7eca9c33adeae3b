"""Out-of-distribution test sets and auxiliary images, all in the in-distribution shape.

Some are made from the test set or from noise and always at hand; the others need their files
under data/01_raw (see ``ood_files``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lt_pipeline.learning.data.ood_files import FILE_SETS, Loader, SetRequest, named_set, subsample
from lt_pipeline.learning.data.ood_files import to_shape as to_shape
from lt_pipeline.learning.data.protocol import Images, fetch_parts
from lt_pipeline.learning.schema import MissingFileError, UserError, unknown

FOLDER = "folder:"
# The blur's standard deviation over the image's side. A pattern of k cycles an image keeps
# about exp(-2 (pi k / 4)^2) of its amplitude: 29 % of one cycle, 0.7 % of two, no edge at all.
# An RBF SVM of CIFAR-10 pixels (47 %) falls to 25 %, what the mean colour alone gives (27 %).
BLUR = 0.25
# A multiple of 16, in which torch draws normal numbers: in parts they are those of the whole.
MADE_AT_ONCE = 512
# Training noise must not be test noise: torch's CPU generator with one seed would give both.
AUXILIARY_SEED = 0x5DEECE66


class InDistribution(NamedTuple):
    """What the sets are made from, and for whom.

    ``root`` is the folder of raw data, ``test`` the in-distribution test set and ``source`` the
    name of its source. At most ``limit`` images of a set are taken, chosen by ``seed``, and at most
    ``made`` of one that is made from noise or the test set.
    """

    root: Path
    test: Images
    source: str
    seed: int = 0
    limit: int = 10_000
    made: int = 10_000

    @property
    def wanted(self) -> SetRequest:
        """Return what is asked of a set with files."""
        return SetRequest(self.root, self.test.shape, self.limit, self.seed)


# The test sets of the DARL paper (section 5.1).
PAPER_SETS = (
    "svhn", "textures", "places365", "tinyimagenet", "inaturalist", "lsun_crop", "lsun_resize",
)  # fmt: skip
_FAMILIES = {
    "lsun_crop": "lsun",
    "lsun_resize": "lsun",
    "tinyimagenet_crop": "tinyimagenet",
    "tinyimagenet_resize": "tinyimagenet",
    "textures10": "textures",
}


def same_images(one: str, other: str) -> bool:
    """Return whether two sets hold the same images, or cuts of the same."""
    names = (name.removeprefix(FOLDER) for name in (one, other))
    first, second = (_FAMILIES.get(name, name) for name in names)
    return first == second


OodSet = Callable[[InDistribution], Tensor]


def load_ood(
    names: Iterable[str], context: InDistribution
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the sets that are there, uint8 ``[M, channels, height, width]``, and what is not.

    Every one of ``names`` is either in the first dictionary or, with a line that says why and what
    to put where, in the second. The in-distribution source itself is never a set.

    Raises:
        UserError: if there is no such set, a file is damaged, or ``limit`` is below 1.
    """
    names = tuple(names)
    for name in names:
        check_name(name)
    if context.limit < 1:
        raise UserError(f"limit must be >= 1 image a set, but got {context.limit}")
    sets: dict[str, Tensor] = {}
    missing: dict[str, str] = {}
    for name in names:
        if name == context.source:
            missing[name] = "is the in-distribution source"
            continue
        try:
            sets[name] = _ood_set(name)(context)
        except MissingFileError as error:
            missing[name] = str(error)
    return sets, missing


def check_name(name: str, known: Iterable[str] | None = None) -> None:
    """Refuse what names none of ``known`` (every set, unless told) and no ``folder:NAME``.

    Raises:
        UserError: with the nearest name and all others; for a folder, with what it may be.
    """
    if name.startswith(FOLDER):
        # it becomes a name of metrics, too
        if not re.fullmatch(r"[\w-][\w. -]*", name.removeprefix(FOLDER), re.ASCII):
            raise UserError(
                f"{FOLDER}NAME must name a folder or .npz file right under ood/, in letters, "
                f"digits, '_', '-', '.' and spaces, but got {name!r}"
            )
        return
    known = tuple(ALL if known is None else known)
    if name not in known:
        raise UserError(unknown("set", name, (*known, f"{FOLDER}NAME")))


def check_files(names: Iterable[str], wanted: SetRequest, optional: bool = False) -> None:
    """Refuse sets of ``names`` whose files are damaged or, unless they are optional, not there.

    All that is ``wanted`` of them is read: what is damaged is found before hours of training.

    Raises:
        UserError: in one line, naming the set or file and what to put where.
    """
    for name in names:
        check_name(name)
        if name not in FILE_SETS and not name.startswith(FOLDER):
            continue
        try:
            _loader(name)(wanted)
        except MissingFileError as error:
            if not optional:
                raise UserError(f"{name} is not there: {error}") from None


def auxiliary_images(
    name: str, root: Path, shape: tuple[int, int, int], count: int, seed: int
) -> Tensor:
    """Return ``count`` images, uint8 ``[count, *shape]``, for training by outlier exposure.

    ``gaussian_noise`` is COCL's (Miao et al., AAAI 2024): pixels scaled to [-1, 1] are drawn from
    a normal distribution of mean 0 and standard deviation 0.5 and clipped; it shares no draw with
    the test set of that name. A set with files or ``folder:NAME`` gives ``count`` of its images,
    all of them if it has fewer; it should not be among the test sets.

    Raises:
        UserError: if ``name`` or ``count`` is wrong, or a file is damaged.
        MissingFileError: if its files are not there; it says what to put where.
    """
    check_name(name, AUXILIARY_SETS)
    if count < 1:
        raise UserError(f"count must be >= 1 auxiliary images, but got {count}")
    if name == "gaussian_noise":
        return _auxiliary_noise(shape, count, seed)
    return _loader(name)(SetRequest(root, shape, count, seed))


def _auxiliary_noise(shape: tuple[int, int, int], count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed ^ AUXILIARY_SEED)
    images = torch.empty(count, *shape, dtype=torch.uint8)
    for part in images.split(MADE_AT_ONCE):
        noise = 0.5 * torch.randn(part.shape, generator=generator)
        part.copy_((127.5 + 127.5 * noise).clamp(0, 255).round())
    return images


def _loader(name: str) -> Loader:
    return named_set(name.removeprefix(FOLDER)) if name.startswith(FOLDER) else FILE_SETS[name]


def _ood_set(name: str) -> OodSet:
    return OOD_SETS[name] if name in OOD_SETS else partial(_from_files, _loader(name))


def _from_files(loader: Loader, context: InDistribution) -> Tensor:
    return loader(context.wanted)


def _digits(context: InDistribution) -> Tensor:
    """scikit-learn's 1,797 handwritten digits."""
    from sklearn.datasets import load_digits

    # Grey levels are 0..16.
    images = torch.from_numpy(load_digits().images)[:, None] / 16
    return to_shape(images[subsample(len(images), context.limit, context.seed)], context.test.shape)


def _made(make: Callable[[Tensor, torch.Generator], Tensor]) -> OodSet:
    """Return the set that ``make`` makes from test images ``[M, C, H, W]`` and a generator."""

    def images(context: InDistribution) -> Tensor:
        limit = min(context.limit, context.made)
        index = subsample(len(context.test), limit, context.seed)
        generator = torch.Generator().manual_seed(context.seed)
        parts = fetch_parts(context.test, index, MADE_AT_ONCE)
        return torch.cat([make(part.cpu(), generator) for part in parts])

    return images


def _no_label(context: InDistribution) -> Tensor:
    """Test images that have none of several labels."""
    labels = context.test.labels.cpu()
    without = (~labels.bool().any(1)).nonzero()[:, 0] if labels.ndim == 2 else labels[:0]
    if not len(without):
        raise MissingFileError("no test image is without a label")
    index = without[subsample(len(without), context.limit, context.seed)]
    return torch.cat(list(fetch_parts(context.test, index, MADE_AT_ONCE))).cpu()


def _gaussian_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of mean 0.5 and standard deviation 0.5, the one of Hendrycks and Gimpel (2017)."""
    noise = torch.randn(images.shape, generator=generator)
    return (127.5 + 127.5 * noise).clamp(0, 255).round().to(torch.uint8)


def _uniform_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=generator)


def _permuted_pixels(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images' own pixels, every image in another random order: colours without structure."""
    flat = images.flatten(2)
    order = torch.rand(len(flat), 1, flat.shape[2], generator=generator).argsort(2)
    return flat.gather(2, order.expand_as(flat)).view_as(images)


def _blurred(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images without their details: Gaussian blur of ``BLUR`` of the side, mirrored edges."""
    rows, columns = (_blur_matrix(side) for side in images.shape[2:])
    return (rows @ images.float() @ columns.T).clamp(0, 255).round().to(torch.uint8)


def _blur_matrix(side: int) -> Tensor:
    """Return the matrix ``[side, side]`` that blurs along one axis: what it does to unit images.

    Two such products cost far less than a convolution with a kernel as wide as the image.
    """
    from torchvision.transforms.v2 import functional as F

    sigma = BLUR * side
    # Mirroring reaches no further than the image.
    radius = min(math.ceil(3 * sigma), side - 1)
    blurred: Tensor = F.gaussian_blur(torch.eye(side)[None], [1, 2 * radius + 1], [sigma, sigma])
    return blurred[0]


OOD_SETS: dict[str, OodSet] = {
    "gaussian_noise": _made(_gaussian_noise),
    "uniform_noise": _made(_uniform_noise),
    "permuted_pixels": _made(_permuted_pixels),
    "blurred": _made(_blurred),
    "no_label": _no_label,
    "digits": _digits,
    **{name: partial(_from_files, loader) for name, loader in FILE_SETS.items()},
}
ALL = tuple(OOD_SETS)
AUXILIARY_SETS = ("gaussian_noise", *FILE_SETS)
