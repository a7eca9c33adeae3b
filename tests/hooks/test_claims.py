from __future__ import annotations

import re
from types import SimpleNamespace

import click
import pytest
from filelock import FileLock, Timeout
from kedro.io import DataCatalog, MemoryDataset

from confs import Loader
from lt_pipeline.hooks.claims import ClaimHooks
from lt_pipeline.io.claims import PLACE, Claim, claimed
from lt_pipeline.pipelines import compare, data_prep, study, tune
from lt_pipeline.settings import CONFIG_LOADER_ARGS
from toys import PROJECT

SETS = ("train_set", "data_card", "class_distribution")


def hooks(tmp_path, parameters=None, names=()):
    """Return hooks that know what is to run, and Kedro's loader."""
    conf = str(PROJECT / "conf")
    loader = Loader(conf, env="smoke", runtime_params=parameters, **CONFIG_LOADER_ARGS)
    claims = ClaimHooks()
    context = SimpleNamespace(
        config_loader=loader, project_path=tmp_path, params=loader["parameters"]
    )
    with click.Context(click.Command("run")) as command:
        command.params["pipelines"] = names
        claims.after_context_created(context)
    return claims, loader


def paths(loader):
    """Return where a dataset of each sort is."""
    entries = loader["catalog"]
    filepaths = {name: entries[name].get("dataset", entries[name])["filepath"] for name in entries}
    return {name: path.split("/")[2] for name, path in filepaths.items() if path.count("/") > 1}


def test_without_parameters_everything_is_the_environments(tmp_path):
    _, loader = hooks(tmp_path)
    filepaths = paths(loader)
    del filepaths["papers"]
    assert set(filepaths.values()) == {"smoke"}


def test_data_and_runs_have_folders_of_their_own_and_what_is_shared_stays(tmp_path):
    _, loader = hooks(tmp_path, {"seed": 1, "data": {"seed": 2}})
    filepaths = paths(loader)
    own = r"smoke\+data\.seed-2\+seed-1-\w{8}"
    shared = ("finished_arms", "tune.{method}.folder")
    for name in SETS:
        assert re.fullmatch(r"smoke\+data\.seed-2-\w{8}", filepaths.pop(name))
    for name in shared:
        assert filepaths.pop(name) == "smoke"
    for name in ("{method}.model", "{study}.runs", "compare.runs", "tune.{method}.trials"):
        assert re.fullmatch(own, filepaths[name])


def test_a_seed_leaves_the_data_where_they_are(tmp_path):
    _, loader = hooks(tmp_path, {"seed": 1})
    assert {paths(loader)[name] for name in SETS} == {"smoke"}


def test_a_sweep_reads_data_of_its_hold_out(tmp_path):
    _, loader = hooks(tmp_path, {"method": "ce"}, names=["tune"])
    filepaths = paths(loader)
    assert filepaths["train_set"].startswith("smoke+data.validation-0.2-")
    assert filepaths["tune.{method}.trials"] == "smoke"
    _, loader = hooks(tmp_path, {"data": {"validation": 0.2}})
    assert paths(loader)["train_set"] == filepaths["train_set"]


def begin(claims, loader, pipeline):
    """Take the claims of ``pipeline``, as Kedro's call of all hooks does; return what ends it."""
    catalog = DataCatalog({"parameters": MemoryDataset(loader["parameters"])})
    call = claims.before_pipeline_run({}, pipeline, catalog)
    next(call)
    with pytest.raises(StopIteration):
        call.send(None)


def free(tmp_path, folder, key=None):
    with claimed(tmp_path / PLACE, [Claim(folder, folder, key)], "kedro run"):
        return True


USED = [
    (data_prep.create_pipeline(), ["data/{data}"]),
    (compare.create_pipeline(), ["data/{data}", "runs/{run}/compare"]),
    (
        study.create_pipeline("dbm_K", ["s0_BS"]),
        ["data/{data}", "runs/{run}/dbm_K", "runs/smoke/arms"],
    ),
    (tune.create_pipeline("ce"), ["data/{data}", "runs/{run}/tune/ce", "runs/smoke/tune/ce"]),
]


def test_what_a_pipeline_uses_is_claimed_and_given_back(tmp_path):
    claims, loader = hooks(tmp_path, {"seed": 1, "data": {"seed": 2}})
    for number, (pipeline, folders) in enumerate(USED):
        project = tmp_path / str(number)
        claims.place = project / PLACE
        begin(claims, loader, pipeline)
        held = {str(path.parent.relative_to(claims.place)) for path in claims.place.rglob("*.lock")}
        assert held == {name.format(data=claims.prepared, run=claims.run) for name in folders}
        for folder in held:
            with pytest.raises(ValueError, match="is in use"):
                free(project, folder)
        call = claims.after_pipeline_run()
        next(call)
        with pytest.raises(StopIteration):
            call.send(None)
        assert all(free(project, folder) for folder in held)


def test_runs_of_equal_data_go_together_and_a_second_of_the_same_does_not(tmp_path):
    first, loader = hooks(tmp_path, {"seed": 1})
    begin(first, loader, data_prep.create_pipeline() + compare.create_pipeline())
    second, loader = hooks(tmp_path, {"seed": 2})
    begin(second, loader, data_prep.create_pipeline() + compare.create_pipeline())
    third, loader = hooks(tmp_path, {"seed": 2.0})
    with pytest.raises(click.ClickException, match="compare in smoke.seed-2-.* is in use by"):
        begin(third, loader, compare.create_pipeline())


def test_claims_are_given_back_where_another_hook_refuses_the_run(tmp_path):
    claims, loader = hooks(tmp_path, {"seed": 1})
    catalog = DataCatalog({"parameters": MemoryDataset(loader["parameters"])})
    call = claims.before_pipeline_run({}, compare.create_pipeline(), catalog)
    next(call)
    with pytest.raises(click.ClickException):
        call.throw(click.ClickException("wrong"))
    assert free(tmp_path, f"runs/{claims.run}/compare")


def test_one_run_at_a_time_prepares_or_reads_the_data_of_a_folder(tmp_path):
    claims, loader = hooks(tmp_path)
    pipeline = data_prep.create_pipeline()
    begin(claims, loader, pipeline)
    lock = FileLock(tmp_path / PLACE / "data" / "smoke" / ".writing", timeout=0)

    def is_free():
        try:
            with lock:
                return True
        except Timeout:
            return False

    make, describe = pipeline.nodes
    assert is_free()
    claims.before_node_run(make)
    for name in make.outputs:
        claims.after_dataset_saved(name)
        assert not is_free()
    claims.before_dataset_loaded("data_card")
    claims.after_dataset_loaded("data_card")
    claims.before_node_run(describe)
    for name in describe.outputs:
        assert not is_free()
        claims.after_dataset_saved(name)
    assert is_free()
    claims.before_dataset_loaded("train_set")
    assert not is_free()
    claims.after_dataset_loaded("train_set")
    assert is_free()
