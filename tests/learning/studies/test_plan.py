from __future__ import annotations

import pytest

from lt_pipeline.learning.studies.plan import Plan

PACES = {("ce", "resnet8"): 2.0, ("more", "resnet8"): 4.0}


def plan(*arms, seeds=1, epochs=200):
    """The plan of a study with an arm for each of ``arms``: a method, or one and its backbone."""
    steps = {}
    for arm in arms:
        method, *backbone = arm.split()
        label = " ".join([method.upper(), *backbone])
        model = {"backbone": backbone[0]} if backbone else {}
        steps[label] = {"method": method, "model": model}
    return Plan.of(
        "s",
        {
            "seed": 0,
            "training": {"epochs": epochs},
            "studies": {"s": {"title": "t", "seeds": seeds, "arms": steps}},
        },
    )


def test_it_says_what_is_there_and_what_the_rest_takes():
    steps = plan("ce", "more", seeds=2)
    assert steps.in_words(["s0_CE"], PACES) == (
        "s: 4 runs, 1 of them there; 3 to train, 600 epochs, about 33 min at the pace of earlier "
        "runs: MORE (seed 0 1), CE (seed 1)"
    )
    assert steps.in_words(steps.runs, {}) == "s: 4 runs, 4 of them there; nothing is trained"


@pytest.mark.parametrize(("epochs", "said"), [(10, "about 20 s"), (9000, "about 5.0 h")])
def test_times_are_in_words(epochs, said):
    assert said in plan("ce", epochs=epochs).in_words([], PACES)


def test_a_pace_that_is_not_known_is_said():
    steps = plan("ce", "ce resnet20", "bcl")
    said = (
        "about 7 min at the pace of earlier runs and what bcl, ce takes, of which there is none yet"
    )
    assert said in steps.in_words([], PACES)
    said = "how long is not known, as there is no run yet of bcl, ce"
    assert said in steps.in_words(["s0_CE"], PACES)
