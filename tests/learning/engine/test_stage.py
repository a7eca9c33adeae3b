"""A stage says all of itself, by its own names and by those that it has further up."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from pydantic import BaseModel

from lt_pipeline.learning.data.samplers import class_balanced
from lt_pipeline.learning.data.subsets import Subset
from lt_pipeline.learning.engine.stage import Recipe, Stage
from lt_pipeline.learning.transforms.mix import MixConfig

ALL = Stage(
    "last", ("first",), role="branch", group="many", folded=("source",), anew=("source.net.head",),
    subset=Subset((1,), 5), sampler=class_balanced, pair=class_balanced, outliers=0.5,
    mix=MixConfig(), remainder=True, trainable=("", "scale"), adapts=("net",), rates={"scale": 2.0},
    frozen=("net.head",), epochs=3, fraction=0.5, training={"batch_size": 7}, objective="routing",
    step="merge", decides="source", recipe=Recipe(left_out=("sets",)),
)  # fmt: skip


class Own(BaseModel):
    size: int = 1


def below(stage, home="source"):
    return stage.below(home, lambda name: f"pretrain_{name}", "ride", Own())


def test_on_top_of_it_a_stage_has_the_names_that_its_own_method_gives_it():
    stages = below(ALL)
    assert (stages.name, stages.start) == ("pretrain_last", ("pretrain_first",))
    assert (stages.folded, stages.anew) == (("source.source",), ("source.source.net.head",))
    assert (stages.trainable, stages.adapts) == (("source", "source.scale"), ("source.net",))
    assert stages.frozen == ("source.net.head",)
    assert stages.rates == {"source.scale": 2.0}
    assert (stages.objective, stages.step) == ("source.routing", "source.merge")
    assert stages.decides == "source.source"
    kept = {"role", "group", "subset", "sampler", "pair", "outliers", "mix", "remainder", "epochs",
            "fraction", "training"}  # fmt: skip
    assert all(getattr(stages, name) == getattr(ALL, name) for name in kept)
    named = {"name", "start", "folded", "anew", "trainable", "adapts", "frozen", "rates",
             "objective", "step", "decides", "recipe"}  # fmt: skip
    assert kept | named == {field.name for field in fields(Stage)}, "and that is all there is"


def test_the_method_itself_is_what_it_is_called_there_and_no_step_stays_none():
    stages = below(Stage("train"))
    assert (stages.trainable, stages.objective, stages.decides) == (("source",), "source", "source")
    assert stages.trains


def test_what_decides_it_is_of_the_method_it_is_of_however_far_up():
    once = below(ALL)
    assert once.recipe == Recipe("ride", Own(), ("sets",), above=1, shared=True)
    twice = once.below("source", str.upper, "crt", Own(size=2))
    assert twice.recipe == replace(once.recipe, above=2)


@pytest.mark.parametrize(
    ("given", "budget", "wanted"),
    [({}, 7, 7), ({"epochs": 3}, 7, 3), ({"fraction": 0.1}, 200, 20), ({"fraction": 0.1}, 1, 1)],
)
def test_epochs_are_its_own_or_a_share_of_the_trainings(given, budget, wanted):
    assert Stage("train", **given).passes(budget) == wanted
