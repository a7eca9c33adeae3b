"""Stages: a method's training described as data. Each is a node of the DAG."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lt_pipeline.learning.data.samplers import Sampler
from lt_pipeline.learning.data.subsets import Subset
from lt_pipeline.learning.schema import Config
from lt_pipeline.learning.transforms.mix import MixConfig


@dataclass(frozen=True)
class Recipe:
    """What of the configuration decides what a stage gives, beside what all methods share.

    Attributes:
        method: that the stage is of; "" is the one that runs.
        options: of that method; None are those of the one that runs.
        left_out: those of them that decide nothing of this stage, as dotted paths.
        above: how many methods stand on it: its network has other names further down.
        shared: other configurations of the method that runs may have the same.
    """

    method: str = ""
    options: Config | None = None
    left_out: tuple[str, ...] = ()
    above: int = 0
    shared: bool = False


@dataclass(frozen=True)
class Stage:
    """A step on the way from images to the finished model, and all that is said of it.

    Submodules, parameters, objectives and functions have dotted names, as of the method that runs;
    "" is that method.

    Attributes:
        name: names the checkpoint, the history and the node of the pipeline.
        start: the earlier stages whose checkpoints it starts from; none is from scratch.
        role: ``line`` leads to the model; a ``branch`` does with others like it; a ``reference``
            is there to compare with.
        group: stages of one group are trained side by side, in one node.
        folded: the methods that were folded before it, innermost first.
        anew: submodules and parameters that begin as they were built, whatever it starts from.
        subset: the images that it sees; None are all. Stages without gradients see those of the
            stages they start from.
        sampler: which of them an epoch sees, in which order; None is what training.sampler says.
        pair: draws the images that every batch brings as its ``pair``; None brings none.
        outliers: how many auxiliary images a batch brings for each of its own; 0 brings none.
        mix: how every batch is mixed with itself in another order, as its ``mixed``.
        remainder: an epoch's last batch has what is left, however few; else that is left out.
        trainable: the submodules or parameters that learn. The rest is frozen, in eval mode: a
            criterion that learns (projection heads, difficulty) has to be named, too.
        adapts: frozen submodules whose BatchNorm statistics follow the batches nevertheless.
        frozen: submodules or parameters that neither learn nor adapt, whatever those say: what
            ``training.freeze`` means in the method.
        rates: factors of the learning rate, by the name of a submodule or parameter.
        epochs: passes over what the sampler gives; None is ``fraction`` of training.epochs.
        fraction: likewise; at least one epoch.
        training: what of the training's parameters is different in this stage.
        objective: what is minimised: an ``Objective``.
        step: the function that takes the place of training; "" trains.
        decides: the submodule that it and the stages before it changed: of its checkpoint, all
            else is as it was built, maybe for other options of a later stage.
        recipe: what decides what it gives.
    """

    name: str
    start: tuple[str, ...] = ()
    role: Literal["line", "branch", "reference"] = "line"
    group: str = ""
    folded: tuple[str, ...] = ()
    anew: tuple[str, ...] = ()
    subset: Subset | None = None
    sampler: Sampler | None = None
    pair: Sampler | None = None
    outliers: float = 0.0
    mix: MixConfig | None = None
    remainder: bool = False
    trainable: tuple[str, ...] = ("",)
    adapts: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict)
    epochs: int | None = None
    fraction: float = 1.0
    training: Mapping[str, Any] = field(default_factory=dict)
    objective: str = ""
    step: str = ""
    decides: str = ""
    recipe: Recipe = Recipe()

    @property
    def trains(self) -> bool:
        """Return whether it is training by gradients."""
        return not self.step

    def passes(self, budget: int) -> int:
        """Return its epochs where training.epochs is ``budget``."""
        return self.epochs or max(1, round(self.fraction * budget))

    def below(
        self, home: str, renamed: Callable[[str], str], method: str, options: Config
    ) -> Stage:
        """Return it as a stage of a method on top: its own is ``home`` there.

        ``renamed`` gives the names that stages have there; ``method`` and its ``options`` are what
        it is of.
        """

        def within(name: str) -> str:
            return f"{home}.{name}" if name else home

        recipe = replace(
            self.recipe,
            method=self.recipe.method or method,
            options=self.recipe.options or options,
            above=self.recipe.above + 1,
            shared=True,
        )
        return replace(
            self,
            name=renamed(self.name),
            start=tuple(map(renamed, self.start)),
            folded=tuple(map(within, self.folded)),
            anew=tuple(map(within, self.anew)),
            trainable=tuple(map(within, self.trainable)),
            adapts=tuple(map(within, self.adapts)),
            frozen=tuple(map(within, self.frozen)),
            rates={within(name): rate for name, rate in self.rates.items()},
            objective=within(self.objective),
            step=within(self.step) if self.step else "",
            decides=within(self.decides),
            recipe=recipe,
        )
