"""Phases: a method's training described as data."""

from __future__ import annotations

from dataclasses import dataclass

from lt_pipeline.data.samplers import Sampler


@dataclass(frozen=True)
class Phase:
    """A stretch of gradient training.

    Attributes:
        name: names the checkpoint, the history and the node of the pipeline.
        epochs: passes over what the sampler gives.
        sampler: which images an epoch sees, in which order; None is what training.sampler says.
        trains: the submodules that learn, or the one; "" is all. The rest is frozen, in eval mode:
            a criterion that learns (projection heads, difficulty) has to be named, too.
        start: the earlier phase to start from; None continues from the one before.
        pair: draws the images that every batch brings as its ``pair``; None brings none.
        outliers: how many auxiliary images a batch brings for each of its own; 0 brings none.
    """

    name: str
    epochs: int
    sampler: Sampler | None = None
    trains: str | tuple[str, ...] = ""
    start: str | None = None
    pair: Sampler | None = None
    outliers: float = 0.0

    @property
    def trained(self) -> tuple[str, ...]:
        """Return the names of the submodules that learn."""
        return (self.trains,) if isinstance(self.trains, str) else self.trains
