"""Every pipeline that conf/ makes: its names, and where each of its datasets is."""

from __future__ import annotations

import re
from functools import cache

import pytest
from kedro.io import CatalogConfigResolver

import confs
from lt_pipeline.cli import where_it_belongs
from lt_pipeline.learning import methods
from lt_pipeline.learning.schema import UserError
from lt_pipeline.learning.studies.config import StudyConfig
from lt_pipeline.pipeline_registry import Registry, env_of, makers, with_seeds
from toys import PROJECT

ENVIRONMENTS = ("base", "smoke")
# what no file is written of
IN_MEMORY = {"compare.candidates", "compare.pictures"}


@cache
def registry(env="base"):
    shaped_registry = Registry()
    shaped_registry.shape(confs.parameters(env))
    return shaped_registry


def datasets(env):
    """Yield pipeline and dataset of every pipeline there is, parameters left out."""
    for name, pipeline in registry(env).items():
        for dataset in sorted(pipeline.datasets()):
            if dataset != "parameters" and not dataset.startswith("params:"):
                yield name, dataset


def resolver_of(env):
    default = {"{default}": {"type": "kedro.io.MemoryDataset"}}
    return CatalogConfigResolver(confs.catalog(env), default_runtime_patterns=default)


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_every_dataset_has_a_path_of_its_own_and_none_lies_in_anothers(env):
    resolver, paths = resolver_of(env), {}
    for _, dataset in datasets(env):
        config = resolver.config.get(dataset) or resolver.resolve_pattern(dataset)
        paths[dataset] = config.get("dataset", config).get("filepath")
    assert {name for name, path in paths.items() if not path} == IN_MEMORY
    paths = {name: path for name, path in paths.items() if path}
    assert len(paths) > 900
    owners = {}
    for dataset, path in paths.items():
        assert owners.setdefault(path, dataset) == dataset, path
    # a folder that one dataset writes holds no file of another
    folders = {path: name for path, name in owners.items() if "." not in path.rpartition("/")[2]}
    for path, dataset in owners.items():
        above = path.split("/")
        for depth in range(1, len(above)):
            held = folders.get("/".join(above[:depth]))
            assert held in (None, "raw_folder", "environments"), f"{dataset} in {held}"


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_no_name_is_caught_by_the_pattern_of_something_else(env):
    """A pattern's braces stand for a namespace, a stage or a run, whole and without a dot."""
    resolver = resolver_of(env)
    stages = {
        node.short_name
        for name in methods.available()
        for node in registry(env)[name].nodes
        if node.namespace
    }
    stages |= {f"branch_{k}" for k in range(10)}
    for pipeline, dataset in datasets(env):
        pattern = resolver.match_dataset_pattern(dataset)
        if pattern is None:
            continue
        names = re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(pattern))
        parts = re.fullmatch(names, dataset).groupdict()
        nodes = registry(env)[pipeline].nodes
        (space,) = {n.namespace for n in nodes if dataset in {*n.inputs, *n.outputs}}
        own = space.removeprefix("tune.")
        assert parts.pop("method", parts.pop("study", None)) == own, (dataset, pattern)
        for kind, value in parts.items():
            known = {n.short_name for n in nodes} if kind == "run" else stages
            assert value in known, (dataset, pattern)


def test_every_table_is_a_pipeline_of_a_study():
    blocks = confs.parameters()["studies"]
    for study, block in blocks.items():
        for table in block.get("tables", ()):
            assert table.split("_")[1] in methods.available()
            named, own = (registry()[name].nodes for name in (table, study))
            assert [node.name for node in named] == [node.name for node in own]


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_a_study_has_a_node_for_each_arm_and_seed_and_all_arms_of_a_seed_come_first(env):
    parameters = confs.parameters(env)
    for name, block in parameters["studies"].items():
        study = StudyConfig.read(block, f"studies.{name}")
        runs = [n for n in registry(env)[name].nodes if re.match(r"s\d+_", n.short_name)]
        assert len(runs) == study.seeds * len(study.all_arms())
        assert all(re.fullmatch(r"s\d+_[A-Za-z0-9-]+", node.short_name) for node in runs)
        seeds = [int(node.short_name[1:].partition("_")[0]) for node in runs]
        assert seeds == sorted(seeds)
        assert set(seeds) == {*range(study.seeds)}


def shaped(**block):
    given = {"title": "t", "arms": {"K = 0.1": {"method": "ce"}, "B": {"method": "ce"}}, **block}
    registry = Registry()
    registry.shape({"seed": 8, "studies": {"mine": given}})
    return registry


def test_nodes_run_in_the_order_of_seeds_of_two_digits():
    nodes = shaped(seeds=3)["mine"].nodes
    runs = [n.short_name for n in nodes if n.short_name.startswith("s") and "_" in n.short_name]
    assert runs == [
        *("s08_B", "s08_K-0-1", "s09_B", "s09_K-0-1", "s10_B", "s10_K-0-1"),
    ]


def test_a_study_in_conf_is_a_pipeline_by_its_name_and_those_of_its_tables():
    registry = shaped(tables=["table_x_1"])
    assert {"mine", "table_x_1"} <= set(registry)
    assert [n.name for n in registry["table_x_1"].nodes] == [n.name for n in registry["mine"].nodes]
    assert "dbm_K" not in registry
    with pytest.raises(KeyError):
        registry["dbm_K"]


@pytest.mark.parametrize("taken", ["ce", "tune", "data_prep", "compare", "__default__"])
def test_a_study_does_not_take_the_name_of_another_pipeline(taken):
    arms = {"a": {"method": "ce"}}
    for studies in (
        {taken: {"title": "t", "arms": arms}},
        {"mine": {"title": "t", "arms": arms, "tables": [taken]}},
    ):
        with pytest.raises(ValueError, match=f"{taken} is the name of another pipeline"):
            makers({"studies": studies})


def test_two_studies_do_not_have_one_table():
    arms = {"a": {"method": "ce"}}
    block = {"title": "t", "arms": arms, "tables": ["table_x_1"]}
    with pytest.raises(ValueError, match=r"studies.two: table_x_1 is the name of another"):
        makers({"studies": {"one": block, "two": block}})


@pytest.mark.parametrize(
    "labels", [("a.b", "a-b"), ("a b", "a+b"), ("K = 0.1", "K-0.1"), (".", "x"), ("é", "x")]
)
def test_arms_whose_nodes_would_have_one_name_or_none_are_refused(labels):
    arms = {label: {"method": "ce"} for label in labels}
    with pytest.raises(ValueError, match="studies.s: arms need names"):
        StudyConfig.read({"title": "t", "arms": arms}, "studies.s")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("seed", value) for value in ("x", -1, 1.5, None, True, 2**32, [1], {})),
        *(("tables", value) for value in (3, [3], [{}], "x", ["table 1"], {"a": 1})),
        *((name, "x") for name in ("seeds", "arms", "sweep", "columns", "against")),
    ],
)
def test_a_wrong_value_is_one_line_before_there_is_a_pipeline(name, value):
    block = {"title": "t", "arms": {"a": {"method": "ce"}}}
    given = {"seed": value} if name == "seed" else {"seed": 0}
    block |= {} if name == "seed" else {name: value}
    with pytest.raises(UserError, match=name) as error:
        makers({**given, "studies": {"s": block}})["s"]()
    assert "\n" not in str(error.value)


def test_a_single_table_may_stand_without_its_list():
    assert "table_x_1" in shaped(tables="table_x_1")


def test_seeds_make_a_method_a_study_of_one_arm():
    given = {**confs.parameters("smoke"), "seeds": [0, 3, 12]}
    registry = Registry()
    registry.shape(with_seeds(given, ["ce"]))
    names = {node.name for node in registry["ce"].nodes}
    runs = {f"ce_over_seeds.s{seed}_ce" for seed in ("00", "03", "12")}
    assert runs == {name for name in names if ".s" in name and name.endswith("_ce")}
    assert registry["ce"] is registry["ce"]
    assert "more.train" in {node.name for node in registry["more"].nodes}, "others stay methods"
    without = confs.parameters("smoke")
    assert with_seeds(without, ["ce"]) == without


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ([0, 0], "seeds: must differ from one another, but has .0. more than once"),
        ("x", "seeds: must be a list"),
        ([-1], "seeds.*greater than or equal to 0"),
        ([0.5], "seeds"),
    ],
)
def test_seeds_that_are_none_are_refused(seeds, said):
    given = {**confs.parameters("smoke"), "seeds": seeds}
    with pytest.raises(UserError, match=said):
        with_seeds(given, ["ce"])


def test_every_node_has_a_tag_to_be_run_by():
    known = {"data", "training", "evaluation", "reporting", "serving"}
    for name in ("more", "btm", "dbm_K", "data_prep"):
        for node in registry()[name].nodes:
            assert len(node.tags & known) == 1, node.name


def test_folds_make_a_method_a_study_of_a_run_on_each():
    photos = {"path": "p", "folds": 3}
    given = {**confs.parameters("smoke"), "data": photos}
    registry = Registry()
    registry.shape(with_seeds(given, ["ce", "more"]))
    runs = {f"ce_over_folds.s0_f{fold}_ce" for fold in range(3)}
    assert runs <= {node.name for node in registry["ce"].nodes}
    assert {"ce_over_folds.pool"} <= {node.name for node in registry["ce"].nodes}
    assert "more_over_folds.pool" in {node.name for node in registry["__default__"].nodes}
    several = with_seeds({**given, "seeds": [1, 2]}, ["ce"])
    registry.shape(several)
    names = {node.name.partition(".")[2] for node in registry["ce"].nodes}
    assert {f"s{seed}_f{fold}_ce" for seed in (1, 2) for fold in range(3)} <= names
    for one in ({"fold": 0}, {"folds": 0}):
        plain = with_seeds({**given, "data": {**photos, **one}}, ["ce"])
        registry.shape(plain)
        assert "ce.finish" in {node.name for node in registry["ce"].nodes}
    # a study of several arms takes folds the same way
    registry.shape({**given, "studies": {"s": {"title": "t", "arms": {"a": {"method": "ce"}}}}})
    assert {"s.s2_f1_a", "s.pool"} <= {node.name for node in registry["s"].nodes}


@pytest.mark.parametrize(
    ("names", "env"),
    [
        (["more_multilabel"], "mosaics"),
        (["table_more_2", None], "mosaics"),
        (["more_rank"], None),
        (["bce", None], None),
        ([None], None),
    ],
)
def test_a_study_says_which_environment_it_is_of(names, env, monkeypatch):
    monkeypatch.chdir(PROJECT)
    assert env_of(names) == env


def test_kedro_run_takes_it_unless_it_is_told_another(monkeypatch):
    monkeypatch.chdir(PROJECT)
    monkeypatch.delenv("KEDRO_ENV", raising=False)
    taken = []
    command = where_it_belongs(lambda **told: taken.append(told["env"]))
    for env in (None, "smoke"):
        command(env=env, conf_source=None, pipelines=["more_multilabel"], pipeline=None)
    assert taken == ["mosaics", "smoke"]
