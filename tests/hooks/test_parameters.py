from __future__ import annotations

from types import SimpleNamespace

import pytest

from lt_pipeline.hooks.parameters import check_environment, check_left_out
from lt_pipeline.io.conf_loader import ConfLoader
from lt_pipeline.settings import CONFIG_LOADER_ARGS
from toys import PROJECT


def context(env):
    return SimpleNamespace(project_path=PROJECT, env=env)


@pytest.mark.parametrize("env", [None, "base", "local", "smoke", "cifar100_lt"])
def test_environments_of_conf_are_taken(env):
    check_environment(context(env))


def test_another_environment_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="'cifr100_lt': did you mean 'cifar100_lt'"):
        check_environment(context("cifr100_lt"))


def left_out(**parameters):
    check_left_out(
        ConfLoader(
            conf_source=str(PROJECT / "conf"), runtime_params=parameters, **CONFIG_LOADER_ARGS
        )
    )


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"studies": {"dbm_combinations": {"arms": {"DBM-BCL": None}}}},
        {"more_search": {"options": {"rank": None}}},
        {"tune": {"search": {"training": {"weight_decay": None}}, "timeout": None}},
        # not for this to judge: it is a parameter, and checked as one
        {"more": {"options": {"freeze_general_after": None}}, "data": {"nothing": None}},
    ],
)
def test_what_is_there_can_be_taken_out(parameters):
    left_out(**parameters)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"studies": {"dbm_combinations": {"arms": {"DBM-BCLL": None}}}},
            "^studies.dbm_combinations.arms: unknown name 'DBM-BCLL': did you mean 'DBM-BCL'",
        ),
        (
            {"more_search": {"options": {"rnk": None}}},
            "^more_search.options: unknown name 'rnk': did you mean 'rank'",
        ),
        ({"more_search": {"optins": {"rank": None}}}, "^more_search.optins: unknown name 'rank'"),
        ({"tune": {"search": {"training": {"momentum": None}}}}, "^tune.search.training: .*'momen"),
    ],
)
def test_what_is_not_there_cannot_be_taken_out(parameters, message):
    with pytest.raises(ValueError, match=message):
        left_out(**parameters)
