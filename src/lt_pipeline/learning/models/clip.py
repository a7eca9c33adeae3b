"""CLIP (Radford et al., ICML 2021) by open_clip: a backbone, and what its classes are called.

The image encoder is the backbone; the text encoder, frozen, says once where each class is.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from lt_pipeline.learning.models.weights import DAMAGED, DEFAULT, is_own, weights_file
from lt_pipeline.learning.schema import MissingFileError, UserError, unknown
from lt_pipeline.learning.transforms.resize import resized

# what names of such backbones begin with, as in clip:RN50 and clip:ViT-B-16.openai
CLIP = "clip:"
TEMPLATES = ("a photo of a {}.",)
# what of an image encoder comes behind its blocks
LAST = ("ln_post", "proj", "attnpool")


class ClipBackbone(nn.Module):
    """CLIP's image encoder, with its projection: images are compared to texts by their cosine.

    It has images at the size that it was made for.

    Raises:
        UserError: if open_clip is not installed, or the weights do not fit.
        MissingFileError: if they are not there and cannot be downloaded.
    """

    def __init__(self, name: str, weights: str) -> None:
        super().__init__()
        model, _, tag = name.removeprefix(CLIP).partition(".")
        clip = _load(model, tag, weights)
        size: Any = clip.visual.image_size
        self.net, self.size = clip.visual, int(size if isinstance(size, int) else size[0])
        self.features = int(_library(name).get_model_config(model)["embed_dim"])
        self.wants = _pixels(clip.visual)
        self._clip = (model, clip)  # in a tuple: the text encoder is no part of the backbone

    @property
    def layers(self) -> list[list[nn.Parameter]]:
        """Return the parameters of what is in front of the blocks, of each block, and the rest."""
        blocks = [[*block.parameters()] for block in _blocks(self.net)]
        inside = {id(p) for block in blocks for p in block}
        named = [(n, p) for n, p in self.net.named_parameters() if id(p) not in inside]
        last = [p for name, p in named if name.startswith(LAST)]
        first = [p for name, p in named if not name.startswith(LAST)]
        return [layer for layer in (first, *blocks, last) if layer]

    @property
    def undecayed(self) -> list[nn.Parameter]:
        """Return the class token and the position embeddings."""
        wanted = ("class_embedding", "positional_embedding")
        return [p for n, p in self.net.named_parameters() if n.endswith(wanted)]

    def forward(self, images: Tensor) -> Tensor:
        """Return the projected features ``[B, F]`` of normalised ``images`` ``[B, 3, H, W]``."""
        features: Tensor = self.net(resized(images, self.size))
        return features

    @torch.no_grad()
    def read(self, names: Sequence[str], templates: Sequence[str]) -> tuple[Tensor, float, float]:
        """Return the embeddings ``[C, F]`` of classes' ``names``, and CLIP's scale and bias.

        Each is the mean over ``templates``, ``{}`` being the name with spaces for underscores, and
        of unit length. The text encoder is gone afterwards.
        """
        import open_clip

        model, clip = self._clip
        words = [name.replace("_", " ") for name in names]
        tokenizer = open_clip.get_tokenizer(model)
        clip.eval()
        embeddings = open_clip.build_zero_shot_classifier(clip, tokenizer, words, list(templates))
        bias = 0.0 if clip.logit_bias is None else float(clip.logit_bias)
        return embeddings.T.contiguous(), float(clip.logit_scale.exp()), bias

    def forget_texts(self) -> None:
        """Drop the text encoder."""
        del self._clip


def check_clip(name: str) -> None:
    """Refuse a name that is not one of CLIP's models with, behind a dot, one of its weights.

    Raises:
        UserError: with the nearest, or saying what to install.
    """
    model, _, tag = name.removeprefix(CLIP).partition(".")
    open_clip = _library(name)
    known = open_clip.list_models()
    if model not in known:
        near = get_close_matches(model, known, n=1)
        message = unknown("backbone", name, (f"{CLIP}RN50", f"{CLIP}ViT-B-16"), None)
        raise UserError(f"{message}{f': did you mean {CLIP}{near[0]}?' if near else ''}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag and tag not in tags:
        raise UserError(unknown(f"weights of {CLIP}{model}", tag, tags))


def _library(name: str) -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise UserError(
            f"model.backbone={name} needs the extra clip: pip install 'lt_pipeline[clip]'"
        ) from error
    return open_clip


def _load(model: str, tag: str, weights: str) -> Any:
    """Return open_clip's ``model``; ``tag`` names the weights where ``weights`` are ``default``."""
    open_clip = _library(f"{CLIP}{model}")
    device = torch.get_default_device()
    if is_own(weights):
        file = weights_file(weights)
        try:
            return open_clip.create_model(model, pretrained=str(file), device=device)
        except DAMAGED as error:
            raise UserError(
                f"model.weights: {file.name} does not fit model.backbone={CLIP}{model}, or is "
                f"damaged ({str(error).splitlines()[0]})"
            ) from error
    if weights != DEFAULT:
        return open_clip.create_model(model, device=device, pretrained_text=False)
    tag = tag or next(iter(open_clip.list_pretrained_tags_by_model(model)), "")
    quick = bool(open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False))
    try:
        return open_clip.create_model(
            model, pretrained=tag, device=device, force_quick_gelu=quick, require_pretrained=True
        )
    except DAMAGED as error:
        raise MissingFileError(
            f"CLIP's weights {tag or 'default'} of {model} are not in open_clip's cache and cannot "
            f"be downloaded ({str(error).splitlines()[0]}); set model.weights to a file"
        ) from error


def _blocks(net: Any) -> list[nn.Module]:
    if hasattr(net, "transformer"):
        return [*net.transformer.resblocks]
    if hasattr(net, "layer4"):
        return [*net.layer1, *net.layer2, *net.layer3, *net.layer4]
    return []


def _pixels(net: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    import open_clip

    mean = getattr(net, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN
    std = getattr(net, "image_std", None) or open_clip.OPENAI_DATASET_STD
    return tuple(mean), tuple(std)
