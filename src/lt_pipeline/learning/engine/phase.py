"""Stages and phases: a method's training described as data.

A stage is a node of the DAG: which checkpoints it starts from. What gradients do in it is a phase.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lt_pipeline.learning.data.samplers import Sampler
from lt_pipeline.learning.transforms.mix import MixConfig


@dataclass(frozen=True)
class Stage:
    """A node on the way from images to the finished model.

    Attributes:
        name: names the checkpoint, the history and the node of the pipeline.
        start: the earlier stages whose checkpoints it starts from; none is from scratch.
        trains: by gradients, as the phase of this name says; else it is ``Method.step``.
        subset: it sees the images that ``Method.subsets`` has under this name, or a step those of
            all its ``start``.
        group: stages of one group are trained as one batched computation, in one node.
        role: ``line`` leads to the model; a ``branch`` does with others like it; a ``reference``
            is there to compare with.
    """

    name: str
    start: tuple[str, ...] = ()
    trains: bool = True
    subset: bool = False
    group: str = ""
    role: Literal["line", "branch", "reference"] = "line"


@dataclass(frozen=True)
class Phase:
    """A stretch of gradient training.

    Attributes:
        name: that of the stage.
        epochs: passes over what the sampler gives.
        sampler: which images an epoch sees, in which order; None is what training.sampler says.
        trains: the submodules or parameters that learn, or the one; "" is all. The rest is frozen,
            in eval mode: a criterion that learns (projection heads, difficulty) has to be named,
            too.
        adapts: frozen submodules whose BatchNorm statistics follow the batches nevertheless.
        pair: draws the images that every batch brings as its ``pair``; None brings none.
        outliers: how many auxiliary images a batch brings for each of its own; 0 brings none.
        mix: how every batch is mixed with itself in another order, as its ``mixed``.
        remainder: an epoch's last batch has what is left, however few; else that is left out.
        rates: factors of the learning rate, by the name of a submodule or parameter.
        training: what of the training's parameters is different in this phase.
    """

    name: str
    epochs: int
    sampler: Sampler | None = None
    trains: str | tuple[str, ...] = ""
    adapts: tuple[str, ...] = ()
    pair: Sampler | None = None
    outliers: float = 0.0
    mix: MixConfig | None = None
    remainder: bool = False
    rates: Mapping[str, float] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def trained(self) -> tuple[str, ...]:
        """Return the names of the submodules or parameters that learn."""
        return (self.trains,) if isinstance(self.trains, str) else self.trains
