from __future__ import annotations

import re

import pytest

from lt_pipeline.io.own_folders import LONGEST, differences, folder, key, of_data

CONF = {
    "seed": 0,
    "device": "auto",
    "together": 1,
    "data": {"seed": 0, "validation": 0.0, "auxiliary": None},
    "training": {"epochs": 60, "learning_rate": 0.1, "milestones": [0.8, 0.9], "monitor_every": 1},
    "evaluation": {"ood": True},
    "more": {"options": {"rank": 4}, "training": {"epochs": 2}},
    "more_search": {"options": {"rank": {"low": 1}}},
    "compare": {"methods": None},
    "tune": {"trials": 3},
    "method": "more",
}


def name(changes, run="digits"):
    parameters = {**CONF}
    for path, value in changes.items():
        *above, last = path.split(".")
        block = parameters
        for part in above:
            block[part] = {**(block.get(part) or {})}
            block = block[part]
        block[last] = value
    return folder(run, differences(parameters, CONF))


def test_what_conf_says_is_in_the_environments_folder():
    assert name({}) == "digits"
    assert name({"seed": 0, "training.learning_rate": 0.1}) == "digits"
    assert name({"training.epochs": 60.0}) == "digits"


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation.ood": False},
        {"device": "cpu"},
        {"together": 4, "tune.workers": 2},
        {"compare.methods": ["ce"]},
        {"tune.trials": 5, "method": "ce"},
        {"more_search.options.rank.low": 2},
        {"tracking.register": False},
        {"serve.input": "tensor"},
        {"evaluate.model": "ce"},
        {"training.monitor_every": 5, "more.training.monitor_test": True},
        {"training.checkpoint_every": 5},
    ],
)
def test_what_is_only_looked_at_is_in_the_environments_folder(changes):
    assert name(changes) == "digits"


@pytest.mark.parametrize(
    ("changes", "readable"),
    [
        ({"seed": 1}, "seed-1"),
        ({"data.seed": 1}, "data.seed-1"),
        ({"training.epochs": 40, "seed": 1}, "seed-1+epochs-40"),
        ({"more.options.rank": 8}, "more.rank-8"),
        ({"more.training.epochs": 3}, "more.epochs-3"),
        ({"data.auxiliary.name": "a b/../c"}, "data.auxiliary.name-a-b-..-c"),
        ({"seed": True}, "seed-true"),
        ({"training.learning_rate": None}, "learning_rate-null"),
        ({"training.milestones": [0.5]}, "milestones-0.5"),
    ],
)
def test_what_is_trained_otherwise_has_a_readable_folder_of_its_own(changes, readable):
    assert re.fullmatch(rf"digits\+{re.escape(readable)}-[0-9a-f]{{8}}", name(changes))


def test_equal_parameters_meet_in_one_folder_and_others_do_not():
    one = name({"seed": 1, "training.learning_rate": 0.2})
    assert one == name({"training.learning_rate": 2e-1, "seed": 1.0})
    others = [{"seed": 1}, {"seed": 1, "training.learning_rate": 0.3}, {"seed": True}, {"seed": 2}]
    names = {one, *map(name, others)}
    assert len(names) == 5


def test_a_long_name_is_cut_and_stays_apart():
    changes = {f"more.options.parameter_{n}": n for n in range(20)}
    one, other = name(changes), name({**changes, "more.options.parameter_19": 0})
    assert one != other
    for long in (one, other):
        assert len(long) <= LONGEST
        assert re.fullmatch(r"[A-Za-z0-9.+_-]+", long)


def test_data_and_training_are_told_apart():
    changes = differences({"seed": 1, "data": {"seed": 2}}, CONF)
    assert changes == {"data.seed": 2, "seed": 1}
    assert of_data(changes) == {"data.seed": 2}


def test_a_key_knows_no_order_and_no_spelling():
    assert key({"a": 1.0, "b": {"c": 2, "d": 3}}) == key({"b": {"d": 3.0, "c": 2}, "a": 1})
    assert key({"a": 1}) != key({"a": True})
