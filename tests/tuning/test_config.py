from __future__ import annotations

import os

import pytest
import yaml
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline

from lt_pipeline.hooks import sweep as tune_hooks
from lt_pipeline.learning import methods
from lt_pipeline.learning.experiments.config import check_parameters, search_of
from lt_pipeline.pipelines.tune import create_pipeline
from lt_pipeline.tracking.client import masked
from lt_pipeline.tuning.config import Sweep, tune_config, with_holdout
from sweeps import parameters
from toys import PROJECT


@pytest.mark.parametrize("method", methods.available())
def test_every_method_can_be_tuned(method):
    sweep = Sweep(parameters(method))
    assert sweep.name == f"{method}-digits-lt-ir10"
    for corner in sweep.space.corners():
        block = sweep.experiment(corner).model_dump()
        for path, value in corner.items():
            params = block
            for name in path.split("."):
                params = params[name]
            assert params == value, path


def test_the_papers_parameters_are_searched():
    searched = {m: set(Sweep(parameters(m)).space.dimensions) for m in methods.available()}
    assert searched["dqroute"] == {"options.alpha", "options.gamma_total", "options.balance"}
    assert searched["more"] == {"options.amplitude", "options.rank"}
    assert searched["dbm"] == {"options.criterion.margin.K", "options.criterion.margin.tau"}
    assert searched["darl"] == {"options.mix.alpha", "options.tau"}
    branches = {f"options.branches.{name}" for name in ("sets", "images", "learning_rate")}
    assert searched["btm"] == branches


def test_images_are_held_out_where_none_are():
    params = parameters()
    assert params["data"]["validation"] == 0.2
    params["data"]["validation"] = 0.1
    assert with_holdout(params)["data"]["validation"] == 0.1


def test_no_trial_follows_the_test_set():
    params = parameters()
    params["training"]["monitor_test"] = True
    sweep = Sweep(params)
    assert not sweep.base.training.monitor_test


def test_what_must_be_the_same_leaves_out_what_is_searched_and_what_decides_nothing():
    sweep = Sweep(parameters("more"))
    fixed = sweep.identity()["other fixed parameters"]
    assert "options.rank" not in fixed
    assert fixed["options.schedule"] == "sin"
    assert fixed["training.epochs"] == 1
    assert not [name for name in fixed if name.startswith(("device", "evaluation"))]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "moer"}, "^method: unknown method 'moer': did you mean 'more'"),
        ({"search": {}}, "ce_search is empty"),
        (
            {"search": {"options": {"rnk": {"low": 1, "high": 2}}}},
            "ce_search: ce.options: unknown parameter 'rnk'",
        ),
        (
            {"search": {"training": {"momentum": {"low": 0.5, "high": 2}}}},
            "ce_search: training.momentum: .*less than 1",
        ),
        (
            {"search": {"training": {"batch_size": {"low": 16, "high": 33}}}},
            "ce_search: training.batch_size: .*integer",
        ),
        ({"sampler": "tpes"}, "tune.sampler: unknown sampler 'tpes': did you mean 'tpe'"),
        ({"trails": 3}, "tune: unknown parameter 'trails': did you mean 'trials'"),
        ({"trials": 0}, "tune.trials"),
    ],
)
def test_wrong_parameters_are_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        Sweep(parameters(**changes))
    assert "\n" not in str(caught.value)


def test_spaces_are_of_methods():
    known = parameters("more")
    check_parameters(known)
    with pytest.raises(ValueError, match="'mor_search': did you mean 'more_search'"):
        check_parameters({**known, "mor_search": {}})


def test_a_method_without_a_space_of_its_own_has_the_common_one():
    params = parameters("ce")
    assert set(Sweep(params).space.dimensions) == {
        "training.learning_rate",
        "training.weight_decay",
    }
    params["tune"]["search"] = {"training": {"momentum": {"low": 0.5, "high": 0.9}}}
    assert set(Sweep(params).space.dimensions) == {"training.momentum"}
    params["tune"]["search"]["training"]["momentum"]["high"] = 2
    with pytest.raises(ValueError, match="^tune.search: training.momentum: .*less than 1"):
        Sweep(params)


def test_a_space_stands_in_the_file_of_its_method_and_is_of_its_parameters():
    for file in (PROJECT / "conf" / "base").glob("parameters_*.yml"):
        said = yaml.safe_load(file.read_text())
        spaces = [name for name in said if name.endswith("_search")]
        assert spaces in ([], [search_of(file.stem.removeprefix("parameters_"))]), file


def test_pruning_needs_a_value_an_epoch():
    params = parameters()
    params["training"]["monitor_every"] = 0
    with pytest.raises(ValueError, match="tune.pruner looks .* training.monitor_every is 0"):
        Sweep(params)
    params["tune"]["pruner"] = "none"
    Sweep(params)


def test_the_storage_may_be_a_variable_of_the_environment(monkeypatch):
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql://a:b@c/d")
    assert tune_config({}).storage == "postgresql://a:b@c/d"
    assert tune_config({"tune": {"storage": "mysql://x"}}).storage == "mysql://x"
    monkeypatch.delenv("OPTUNA_STORAGE")
    assert tune_config({}).storage is None


def test_the_nodes_of_a_session_know_its_storage_and_those_of_the_next_do_not(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    monkeypatch.setattr(tune_hooks, "_reach_storage", lambda sweep: None)
    hooks, pipeline = tune_hooks.TuneHooks(), create_pipeline("more")
    url = "postgresql://me:secret@host:1/name"

    def storage(**tune):
        given = {"parameters": parameters("more", **tune), "raw_folder": tmp_path}
        catalog = DataCatalog({name: MemoryDataset(value) for name, value in given.items()})
        hooks.before_pipeline_run(run_params={}, pipeline=pipeline, catalog=catalog)
        assert "secret" not in str(catalog.load("parameters"))
        return Sweep(catalog.load("parameters")).config.storage

    assert storage(storage=url) == url
    hooks.on_pipeline_error()
    assert "OPTUNA_STORAGE" not in os.environ
    assert storage(storage=url) == url
    hooks.after_pipeline_run({}, Pipeline([]), DataCatalog())
    assert "OPTUNA_STORAGE" not in os.environ
    # also where the first was interrupted
    assert storage(storage=url) == url
    assert storage() is None
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql://from/outside")
    assert storage(storage=url) == url
    assert storage() == "postgresql://from/outside"


def test_nodes_are_told_how_many_are_trained_at_once(tmp_path):
    given = {"parameters": {**parameters("more"), "together": 3}, "raw_folder": tmp_path}
    catalog = DataCatalog({name: MemoryDataset(value) for name, value in given.items()})
    pipeline = create_pipeline("more")
    tune_hooks.TuneHooks().before_pipeline_run(run_params={}, pipeline=pipeline, catalog=catalog)
    assert Sweep(catalog.load("parameters")).together == 3


def test_neither_parameters_nor_commands_that_are_logged_have_the_password(monkeypatch):
    monkeypatch.setenv("OPTUNA_STORAGE", "")
    url = "postgresql://me:secret@host:1/name"
    sweep = Sweep(parameters("more", storage=url))
    logged = tune_hooks._logged(sweep, own_space=True)
    assert "secret" not in str(logged)
    assert logged["search"] == {}
    assert tune_hooks._logged(Sweep(parameters()), own_space=False)["search"]
    assert masked(f"--params=seed=1,tune.storage={url},a=2") == (
        "--params=seed=1,tune.storage=postgresql://me:***@host:1/name,a=2"
    )
