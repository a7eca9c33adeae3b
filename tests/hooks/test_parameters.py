from __future__ import annotations

from types import SimpleNamespace

import pytest
from kedro.io import DataCatalog, MemoryDataset

from lt_pipeline.hooks.parameters import check_environment, check_null_overrides, restrict_to_study
from lt_pipeline.io.conf_loader import ConfLoader
from lt_pipeline.learning.schema import UserError
from lt_pipeline.learning.studies.config import Arm, StudyConfig
from lt_pipeline.settings import CONFIG_LOADER_ARGS
from toys import PROJECT


def context(env, conf=PROJECT / "conf"):
    loader = SimpleNamespace(conf_source=str(conf))
    return SimpleNamespace(config_loader=loader, env=env)


@pytest.mark.parametrize("env", [None, "base", "local", "smoke", "cifar100_lt"])
def test_environments_of_conf_are_taken(env):
    check_environment(context(env))


def test_another_environment_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="'cifr100_lt': did you mean 'cifar100_lt'"):
        check_environment(context("cifr100_lt"))


@pytest.mark.parametrize("env", [None, "smoke"])
def test_a_folder_without_conf_is_said_to_be_one(tmp_path, env):
    with pytest.raises(UserError, match="there is no .*/conf: run it in the project's folder"):
        check_environment(context(env, tmp_path / "conf"))


def left_out(**parameters):
    check_null_overrides(
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


def test_a_study_keeps_the_blocks_of_what_its_methods_stand_on():
    parameters = {
        "seed": 0, "crt": {"options": {"pretrain": "more"}}, "more": {"options": {"rank": 0.2}},
        "ce": {"options": {}}, "studies": {"one": {}, "two": {}},
    }  # fmt: skip
    catalog = DataCatalog({"parameters": MemoryDataset(parameters)})
    study = StudyConfig(title="one", arms={"a": Arm(method="crt")})
    restrict_to_study(catalog, "one", list(study.experiments(parameters).values()))
    kept = catalog.load("parameters")
    assert kept["more"] == parameters["more"]
    assert "ce" not in kept
    assert list(kept["studies"]) == ["one"]
