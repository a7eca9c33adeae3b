"""A file's image as pixels: whatever Pillow reads, turned as EXIF says, RGB, of one size.

How another mode becomes RGB: grey is repeated; a palette is looked up; CMYK is converted by
Pillow; 16-bit grey keeps its upper 8 bits; what is transparent lies on white.

A deployed model that takes files has a copy of this file, which therefore imports nothing else of
this package.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

Fit = Literal["crop", "pad", "stretch"]
Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]

# 100 million pixels are 300 MB as RGB: more is a mistake, or an attack
MOST_PIXELS = 100_000_000
WHITE = (255, 255, 255)
# to show PostScript, Pillow runs another program on it
PROGRAMS = ("EPS",)


class UnreadableImageError(ValueError):
    """A file that is no image, is cut off, or is too large."""


def read_image(
    source: Path | bytes, size: int, fit: Fit = "crop", max_pixels: int = MOST_PIXELS
) -> Pixels:
    """Return an image, of no more than ``max_pixels``, as uint8 ``[size, size, 3]``.

    ``crop`` reduces the shorter side to ``size`` and keeps the middle of the longer one; ``pad``
    reduces the longer side and adds black; ``stretch`` gives up the aspect ratio.

    Raises:
        UnreadableImageError: naming the file.
    """
    return to_square(open_rgb(source, size, max_pixels), size, fit)


def open_rgb(source: Path | bytes, at_least: int = 0, max_pixels: int = MOST_PIXELS) -> Image.Image:
    """Return an image as RGB, turned as its EXIF data say.

    With ``at_least`` a JPEG may come reduced by a power of two, its sides no shorter than that.

    Raises:
        UnreadableImageError: naming the file.
    """
    name = "the file" if isinstance(source, bytes) else str(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF data, and of sizes: see below
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                _check(image, name, max_pixels)
                if at_least:
                    image.draft("RGB", (at_least, at_least))
                image.load()
                return _rgb(ImageOps.exif_transpose(image))
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:
        raise UnreadableImageError(f"{name} is no image that can be read") from None
    except FileNotFoundError:
        raise UnreadableImageError(f"there is no {name}") from None
    except Exception as error:  # whatever Pillow's readers make of damaged bytes
        why = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(f"{name} cannot be read: {why}") from error


def to_square(image: Image.Image, size: int, fit: Fit) -> Pixels:
    """Return an RGB image as uint8 ``[size, size, 3]``, resized with antialiasing (bicubic)."""
    square, how = (size, size), Image.Resampling.BICUBIC
    if fit == "stretch":
        made = image.resize(square, how)
    elif fit == "pad":
        made = ImageOps.pad(image, square, how)
    else:
        made = ImageOps.fit(image, square, how)
    return np.asarray(made)


def _check(image: Image.Image, name: str, max_pixels: int) -> None:
    if image.format in PROGRAMS:
        raise UnreadableImageError(f"{name} is PostScript, and no image of pixels")
    width, height = image.size
    if width * height > max_pixels:
        raise UnreadableImageError(
            f"{name} has {width} x {height} pixels, more than {max_pixels:,}: make it smaller"
        )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel, in one of several layouts
        levels = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("an image of floats has no known range: save it as 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*WHITE, 255)), image)
    return image.convert("RGB")
