"""Parameters of how a finished model is served, none of which changes what is computed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lt_pipeline.learning.data.decode import MOST_PIXELS
from lt_pipeline.learning.data.prepare import PHOTOS, DataConfig
from lt_pipeline.learning.schema import Config, UserError

BLOCK = "serve"
TENSOR, IMAGE = "tensor", "image"


class ServeConfig(Config):
    """What a deployed model takes, and what it refuses (docs/serving.md).

    Attributes:
        input: ``tensor`` are pixels, uint8 ``[N, channels, H, W]``; ``image`` are files, as JPEG,
            which it decodes and reduces as its training set was; ``auto`` is ``image`` for images
            in files (``data.source`` folder or csv), else ``tensor``.
        max_bytes: of a file; one that has more is answered by an error.
        max_pixels: of a file's image, likewise.
    """

    block = BLOCK

    input: Literal["auto", "tensor", "image"] = "auto"
    max_bytes: int = Field(default=20_000_000, ge=1)
    max_pixels: int = Field(default=MOST_PIXELS, ge=1, le=MOST_PIXELS)

    def takes(self, data: DataConfig) -> str:
        """Return what a model of ``data`` takes: ``tensor`` or ``image``.

        Raises:
            UserError: if it is to take files, and is trained on images that are none.
        """
        files = data.source in PHOTOS
        if self.input == IMAGE and not files:
            raise UserError(
                f"serve.input: image is for models of images in files, and data.source is "
                f"{data.source}: leave it at auto or tensor"
            )
        return (IMAGE if files else TENSOR) if self.input == "auto" else self.input
