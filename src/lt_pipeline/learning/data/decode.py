"""A file's image as pixels: whatever Pillow reads, turned as EXIF says, RGB, of one size.

How another mode becomes RGB: grey is repeated; a palette is looked up; CMYK is converted by
Pillow; 16-bit grey keeps its upper 8 bits; what is transparent lies on white.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lt_pipeline.learning.schema import UserError

Fit = Literal["crop", "pad", "stretch"]
Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]

# 100 million pixels are 300 MB as RGB: more is a mistake, or an attack
MOST_PIXELS = 100_000_000
WHITE = (255, 255, 255)
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class UnreadableImageError(UserError):
    """A file that is no image, is cut off, or is too large."""


def read_image(source: Path | bytes, size: int, fit: Fit = "crop") -> Pixels:
    """Return an image as uint8 ``[size, size, 3]``.

    ``crop`` reduces the shorter side to ``size`` and keeps the middle of the longer one; ``pad``
    reduces the longer side and adds black; ``stretch`` gives up the aspect ratio.

    Raises:
        UnreadableImageError: naming the file.
    """
    return to_square(open_rgb(source, at_least=size), size, fit)


def open_rgb(source: Path | bytes, at_least: int = 0) -> Image.Image:
    """Return an image as RGB, turned as its EXIF data say.

    With ``at_least`` a JPEG may come reduced by a power of two, its sides no shorter than that.

    Raises:
        UnreadableImageError: naming the file.
    """
    name = "the image" if isinstance(source, bytes) else str(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF data, and of sizes: see below
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                _check_size(image, name)
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
    except UNREADABLE as error:
        raise UnreadableImageError(f"{name} cannot be read: {error}") from error


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


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise UnreadableImageError(
            f"{name} has {width} x {height} pixels, more than {MOST_PIXELS:,}: make it smaller"
        )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel, in one of several layouts
        levels = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise UnreadableImageError("an image of floats has no known range: save it as 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*WHITE, 255)), image)
    return image.convert("RGB")
