"""Small modules that learn in a backbone that does not: AdaptFormer and LoRA.

As LIFT has them (Shi et al., Long-tail learning with foundation model: heavy fine-tuning hurts,
ICML 2024), and their counterparts for convolution networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from lt_pipeline.learning.models.low_rank import own_class
from lt_pipeline.learning.schema import Config, UserError

# what a transformer's block calls the norm in front of its MLP: timm's and open_clip's
NORMS = ("norm2", "ln_2")
# width and height of what a convolution network is shown to find out what its blocks do with it
PROBE = 64


class AdapterConfig(Config):
    """What learns in the backbone, of which all else is then frozen.

    Attributes:
        name: ``none`` has the backbone itself learn. ``adaptformer`` is a bottleneck beside each
            block's MLP, of a convolution network beside each block; ``lora`` a product of low rank
            in the weights of queries and values, of a convolution network of 1 x 1 convolutions.
        dim: the bottleneck's width, or the rank; null is 2^floor(log2(C / 2L)), of C classes and L
            blocks, of ``lora``, which has two a block, C / 4L, and 1 at least.
    """

    name: Literal["none", "adaptformer", "lora"] = "none"
    dim: PositiveInt | None = None

    def width(self, classes: int, blocks: int) -> int:
        """Return the bottleneck's width, or the rank, of so many ``classes`` and ``blocks``."""
        each = 4 if self.name == "lora" else 2
        return self.dim or 2 ** max(0, math.floor(math.log2(classes / (each * blocks))))


class AdaptFormer(nn.Module):
    """s Up(ReLU(Down(LN(x)))) (Chen et al., AdaptFormer, NeurIPS 2022), with s learned.

    Up starts at zero, and so does the whole. ``x`` is ``[..., F]``, or, of ``maps``, ``[B, F, H,
    W]``, of which it takes every ``stride``-th pixel; what it gives has ``out`` in place of F.
    """

    def __init__(
        self, width: int, dim: int, out: int, *, maps: bool = False, stride: int = 1
    ) -> None:
        super().__init__()
        self.norm, self.down = nn.LayerNorm(width), nn.Linear(width, dim)
        self.up = nn.Linear(dim, out)
        self.scale = nn.Parameter(torch.ones(()))
        self.maps, self.stride = maps, stride
        for start in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(start)

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to what the block makes of ``x``."""
        if self.maps:
            x = x[:, :, :: self.stride, :: self.stride].movedim(1, -1)
        x = self.scale * self.up(F.relu(self.down(self.norm(x))))
        return x.movedim(-1, 1) if self.maps else x


class Lora(nn.Module):
    """W + B A / r (Hu et al., LoRA, ICLR 2022), of a linear layer or a 1 x 1 convolution.

    The rows of W are of equal ``parts``, as queries, keys and values: those that learn have A and B
    of their own, A ``[parts, r, in]`` and B ``[parts, out, r]``. B starts at zero.
    """

    def __init__(self, weight: Tensor, dim: int, parts: tuple[bool, ...] = (True,)) -> None:
        super().__init__()
        out, width, learning = len(weight) // len(parts), weight[0].numel(), sum(parts)
        self.parts, self.dim = parts, dim
        bound = width**-0.5
        self.down = nn.Parameter(weight.new_empty(learning, dim, width).uniform_(-bound, bound))
        self.up = nn.Parameter(weight.new_zeros(learning, out, dim))

    def forward(self, weight: Tensor) -> Tensor:
        """Return W with what was learned."""
        learned = iter((self.up @ self.down / self.dim).unbind())
        still = weight.new_zeros(len(weight) // len(self.parts), weight[0].numel())
        rows = torch.cat([next(learned) if learns else still for learns in self.parts])
        return weight + rows.view_as(weight)


class Beside(nn.Module):
    """A module and, beside it, what learns: the sum of both."""

    def __init__(self, main: nn.Module, adapter: AdaptFormer) -> None:
        super().__init__()
        self.main, self.adapter = main, adapter

    def forward(self, x: Tensor) -> Tensor:
        """Return ``main(x) + adapter(x)``."""
        total: Tensor = self.main(x) + self.adapter(x)
        return total


def add_adapters(backbone: Any, config: AdapterConfig, classes: int, channels: int) -> None:
    """Put what ``config`` names into ``backbone``, for ``classes`` and images of ``channels``.

    What it computes stays the same until they have learned.

    Raises:
        UserError: if it has no place for them.
    """
    if config.name == "none":
        return
    transformer = [*_transformer_blocks(backbone)]
    blocks: list[Any] = transformer or [block for _, _, block in _blocks(backbone)]
    places = [*_weights(blocks)] if config.name == "lora" else blocks
    if not places:
        raise UserError(
            f"model.adapter.name={config.name} finds no place in this backbone: set it to none"
            f"{' or adaptformer' if blocks else ''}"
        )
    dim = config.width(classes, len(blocks))
    if config.name == "lora":
        for layer, name, parts in places:
            part = Lora(getattr(layer, name), dim, parts)
            parametrize.register_parametrization(layer, name, part)
    elif transformer:
        _beside_mlps(transformer, dim)
    else:
        _beside_blocks(backbone, dim, channels)


def adapters_of(backbone: nn.Module) -> list[nn.Module]:
    """Return the modules that learn in ``backbone`` in its place; none without adapters."""
    return [m for m in backbone.modules() if isinstance(m, AdaptFormer | Lora)]


def fold_lora(backbone: nn.Module) -> None:
    """Add what LoRA learned into the weights; copies of ``backbone`` keep it."""
    for layer in [m for m in backbone.modules() if hasattr(m, "parametrizations")]:
        for name, parts in [*layer.parametrizations.items()]:  # type: ignore[union-attr, operator]
            if isinstance(parts[0], Lora):
                own_class(layer)
                parametrize.remove_parametrizations(layer, name, leave_parametrized=True)


def _transformer_blocks(backbone: nn.Module) -> Iterator[nn.Module]:
    for module in backbone.modules():
        if hasattr(module, "mlp") and any(hasattr(module, norm) for norm in NORMS):
            yield module


def _blocks(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Yield a convolution network's blocks, each with what it is in and its name there."""
    for name, child in module.named_children():
        listed = isinstance(module, nn.Sequential | nn.ModuleList)
        part = isinstance(child, nn.Sequential | nn.ModuleList) or not [*child.children()]
        if listed and not part and any(isinstance(m, nn.Conv2d) for m in child.modules()):
            yield module, name, child
        else:
            yield from _blocks(child)


def _weights(blocks: list[Any]) -> Iterator[tuple[nn.Module, str, tuple[bool, ...]]]:
    """Yield the weights that LoRA has a part in: a layer, the weight's name, and which rows."""
    for block in blocks:
        attention: Any = getattr(block, "attn", None)
        if isinstance(attention, nn.MultiheadAttention):
            yield attention, "in_proj_weight", (True, False, True)
        elif hasattr(attention, "qkv"):
            yield attention.qkv, "weight", (True, False, True)
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1:
                yield layer, "weight", (True,)


def _beside_mlps(blocks: list[Any], dim: int) -> None:
    for block in blocks:
        name = next(norm for norm in NORMS if hasattr(block, norm))
        norm = getattr(block, name)
        width = norm.normalized_shape[0]
        main = nn.Sequential(norm, block.mlp)
        setattr(block, name, nn.Identity())
        block.mlp = Beside(main, AdaptFormer(width, dim, width))


def _beside_blocks(backbone: Any, dim: int, channels: int) -> None:
    blocks = [*_blocks(backbone)]
    shapes = _shapes(backbone, [block for _, _, block in blocks], channels)
    wrapped = {}
    for parent, name, block in blocks:
        (width, size), (out, smaller) = shapes[block]
        adapter = AdaptFormer(width, dim, out, maps=True, stride=size // smaller)
        wrapped[block] = Beside(block, adapter)
        setattr(parent, name, wrapped[block])
    if "layers" in vars(backbone):  # torchvision's are named once, when it is built
        backbone.layers = [[wrapped.get(m, m) for m in layer] for layer in backbone.layers]


@torch.no_grad()
def _shapes(
    backbone: nn.Module, blocks: list[nn.Module], channels: int
) -> dict[nn.Module, tuple[tuple[int, int], tuple[int, int]]]:
    """Return the channels and the width of what each block takes, and of what it gives."""
    shapes, training = {}, backbone.training

    def see(block: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        shapes[block] = (given[0].shape[1], given[0].shape[3]), (made.shape[1], made.shape[3])

    hooks = [block.register_forward_hook(see) for block in blocks]
    backbone.eval()(torch.zeros(1, channels, PROBE, PROBE))
    backbone.train(training)
    for hook in hooks:
        hook.remove()
    return shapes
