from __future__ import annotations

import json
from collections import defaultdict
from functools import cache
from typing import get_args

import pandas as pd
import pytest
import yaml

from confs import parameters
from lt_pipeline.learning import methods
from lt_pipeline.learning.experiments.config import ExperimentConfig, data_config
from lt_pipeline.learning.methods.darl import DarlOptions
from lt_pipeline.learning.schema import flatten
from lt_pipeline.learning.studies.config import StudyConfig
from lt_pipeline.learning.studies.published import beside_arms, beside_papers, read_papers, why_none
from toys import PROJECT

PAPER = {
    "paper": "P",
    "table": "3",
    "study": "s",
    "where": {"training.epochs": 60, "data.imbalance_ratio": 100},
    "rows": {"CE": {"method": "ce", "accuracy": 41.0, "few": 10.0, "reason": "fewer images"}},
}
DATA = {"imbalance_ratio": 100.0, "groups": {"rule": "counts"}}


def config(epochs=60, **options):
    return {"training": {"epochs": epochs}, "model": {"head": "linear"}, "options": options}


def beside(papers, *, title="ce", data=DATA, metrics=None, **settings):
    own = {"label": "a label", "title": title, **(metrics or {"test/accuracy": 0.4})}
    row = {**own, "config": json.dumps(config(**settings))}
    return beside_papers(pd.DataFrame([row]), pd.DataFrame([own]), read_papers(papers), data)


def test_a_papers_figures_stand_beside_a_run_of_its_setting():
    figures = {
        "label": "a label",
        "metric": "test/accuracy",
        "ours": pytest.approx(0.4),
        "paper": pytest.approx(0.41),
        "source": "P, table 3",
        "reason": "fewer images",
    }
    # the run has no class in few, or none that was tested
    assert beside([PAPER]) == [figures]
    assert beside([PAPER], metrics={"test/accuracy": 0.4, "test/few": float("nan")}) == [figures]
    assert len(beside([PAPER], metrics={"test/accuracy": 0.4, "test/few": 0.2})) == 2


def test_another_setting_or_method_is_not_the_papers():
    assert beside([PAPER], epochs=5) == []
    assert beside([PAPER], data={**DATA, "imbalance_ratio": 10.0}) == []
    assert beside([PAPER], title="more") == []
    own = {**PAPER, "where": {"options.pretrain": "mislas"}}
    assert beside([own]) == [], "a method without that option"


def test_a_row_can_ask_for_more_than_its_table():
    row = {"method": "ce", "where": {"options.alpha": 0.5}, "accuracy": 41.0}
    own = {**PAPER, "rows": {"CE": row}}
    assert beside([own], alpha=0.5)[0]["paper"] == pytest.approx(0.41)
    assert beside([own], alpha=0.0) == []
    assert beside([own], alpha=0.5, epochs=5) == [], "the table's setting holds, too"


def test_the_arms_of_a_study_have_the_rows_of_their_names():
    papers = read_papers([PAPER, {**PAPER, "table": None, "figure": "2", "study": "other"}])
    configs = {"CE": config(), "CE again": config()}
    summary = pd.DataFrame([{"label": name, "test/accuracy": 0.4} for name in configs])
    (figures,) = beside_arms("s", configs, summary, papers, DATA)
    assert (figures["label"], figures["source"]) == ("CE", "P, table 3")
    (figures,) = beside_arms("other", configs, summary, papers, DATA)
    assert figures["source"] == "P, figure 2"
    assert beside_arms("s", {**configs, "CE": config(5)}, summary, papers, DATA) == []


def test_what_keeps_every_figure_away_is_said():
    nearer = {**PAPER, "table": "4", "where": {"training.epochs": 60, "data.groups.sizes": [1]}}
    papers = read_papers([PAPER, nearer])
    data = {"imbalance_ratio": 10.0}
    assert why_none("s", {"CE": config(5)}, papers[:1], data) == (
        "No figure of P, table 3 is beside ours, as of CE training.epochs is 5, not 60, "
        "data.imbalance_ratio is 10.0, not 100"
    )
    assert "table 4" in why_none("s", {"CE": config()}, [papers[0], papers[1]][::-1], data)
    assert why_none("s", {"CE": config()}, papers, DATA) is None, "the first table's setting"
    assert why_none("other", {"CE": config(5)}, papers, data) is None
    assert why_none("s", {"BS": config(5)}, papers, data) is None


@pytest.mark.parametrize(
    ("papers", "message"),
    [
        ([{**PAPER, "where": {"data.sorce": 3}}], "P, table 3: where names 'data.sorce'"),
        ([{**PAPER, "tabel": 3}], "papers.yml.0: unknown parameter 'tabel': did you mean 'table'"),
        ([{**PAPER, "rows": {"CE": {"acc": 3}}}], "unknown parameter 'acc'"),
        ([{**PAPER, "figure": "2"}], "papers.yml.0: needs table or figure, and not both"),
        ([{**PAPER, "table": None}], "papers.yml.0: needs table or figure"),
    ],
)
def test_wrong_entries_are_refused_in_one_line(papers, message):
    with pytest.raises(ValueError, match=message) as error:
        beside(papers)
    assert "\n" not in str(error.value)


# what is published


ENVIRONMENTS = {
    "MORE": ("cifar100_lt", "miml_more", "voc2007", "nuswide_scene", "coco2014"),
    "DBM": ("cifar100_lt_dbm", "cifar10_lt_dbm"),
    "DQRoute": ("cifar100_lt_dqroute", "cifar10_lt_dqroute"),
    "DARL": ("cifar100_lt_darl", "cifar10_lt_darl"),
    "BTM": ("cifar100_lt_btm",),
    "LIFT": ("cifar100_lt_lift",),
}


@cache
def published():
    return read_papers(yaml.safe_load((PROJECT / "conf/base/papers.yml").read_text()))


def test_the_published_figures_are_of_methods_and_arms_there_are():
    for entry in published():
        arms = {}
        for name in ENVIRONMENTS[entry.paper]:
            arms |= StudyConfig.read(parameters(name)["studies"][entry.study]).all_arms()
        for name, figures in entry.rows.items():
            assert name in arms, f"{entry.source} of {entry.study}"
            assert figures.method is None or figures.method.split()[0] == arms[name].method
            assert figures.method is None or figures.method.split()[0] in methods.available()
            assert figures.by_metric()
            # but for what is no share
            shares = {m: v for m, v in figures.by_metric().items() if "landscape" not in m}
            assert all(0 < value <= 1 for value in shares.values())
    (first, *_) = published()
    assert first.rows["DBM-BS"].by_metric()["test/accuracy"] == pytest.approx(0.5130)


# as printed: the papers' own groups and means do not fit
PRINTED = {
    ("DQRoute, table 1", "CE"), ("DQRoute, table 1", "tau-norm"), ("DQRoute, table 1", "cRT"),
    ("DQRoute, table 6", "MarginOOD"), ("DQRoute, figure 4", "OOD only"),
    ("DARL, table 3", "LGLA"), ("BTM, table 2", "MiSLAS BTM"), ("MORE, table 2", "BCE MORE"),
}  # fmt: skip


def test_the_groups_of_a_row_average_to_its_whole():
    wrong = set()
    for entry in published():
        sizes = entry.where.get("data.groups.sizes", [35, 35, 30])
        for name, row in entry.rows.items():
            accuracies = (row.accuracy, row.many, row.medium, row.few)
            aurocs = (row.auroc, row.auroc_many, row.auroc_medium, row.auroc_few)
            maps = (row.mean_average_precision, row.mAP_many, row.mAP_medium, row.mAP_few)
            for whole, *groups in (accuracies, aurocs, maps):
                if None in groups:
                    continue
                mean = sum(n * value for n, value in zip(sizes, groups, strict=True)) / sum(sizes)
                if abs(mean - whole) > 0.06 + 1e-9:
                    wrong.add((entry.source, name))
    assert wrong == PRINTED


@pytest.mark.parametrize("place", range(len(published())))
def test_every_row_of_a_table_is_beside_its_arm_in_the_papers_environment_and_in_no_other(place):
    entry = published()[place]
    source = entry.where["data.source"]
    names = [name for name in ENVIRONMENTS[entry.paper] if data_of(name)["source"] == source]
    others = [name for names in ENVIRONMENTS.values() for name in names]
    # of images in files the cut is another parameter
    cut = "imbalance_ratio" if "data.imbalance_ratio" in entry.where else "long_tail"
    wanted = entry.where[f"data.{cut}"]
    for environment in others:
        for given in (wanted, 1 + (wanted or 1)) if environment in names else (wanted,):
            params = parameters(environment)
            if cut == "imbalance_ratio" or data_of(environment)["profile"]["name"] == "natural":
                params = {**params, "data": {**params["data"], cut: given}}
            shown = rows_beside(entry, params)
            here = environment in names and given == wanted
            assert shown == (set(entry.rows) if here else set()), environment
    assert names


@cache
def data_of(environment):
    return data_config(parameters(environment)).model_dump(mode="json")


def rows_beside(entry, rows):
    """The rows of a table that are shown beside the arms of its study."""
    study = StudyConfig.read(rows["studies"][entry.study])
    arms = {name: arm for name, arm in study.all_arms().items() if name in entry.rows}
    kept = study.model_copy(update={"arms": arms, "sweep": None}).experiments(rows)
    configs = {name: one.model_dump(mode="json") for name, one in kept.items()}
    metrics = {metric for row in entry.rows.values() for metric in row.by_metric()}
    summary = pd.DataFrame([{"label": name, **dict.fromkeys(metrics, 0.5)} for name in configs])
    data = data_config(rows).model_dump(mode="json")
    return {row["label"] for row in beside_arms(entry.study, configs, summary, [entry], data)}


@pytest.mark.parametrize(
    ("environment", "method", "sources"),
    [
        ("cifar100_lt", "more", ["MORE, table 1"]),
        ("cifar100_lt_dbm", "dbm", ["DBM, table 2"]),
        ("cifar10_lt_dbm", "balanced_softmax", ["DBM, table 2"]),
        ("cifar100_lt_dqroute", "dqroute", ["DQRoute, table 1"]),
        ("cifar100_lt_dqroute", "balanced_softmax", ["DQRoute, table 2"]),
        ("cifar10_lt_dqroute", "dqroute", ["DQRoute, table 5"]),
        ("cifar100_lt_darl", "lgla", ["DARL, table 2"]),
        ("cifar100_lt_darl", "darl", ["DARL, table 4"]),
        ("cifar10_lt_darl", "darl", ["DARL, table 1"]),
        ("cifar100_lt_btm", "btm", ["BTM, table 2"]),
        ("cifar100_lt_btm", "gml", ["BTM, table 9"]),
        ("miml_more", "bce", ["MORE, table 2"]),
        ("coco2014", "more", ["MORE, table 2"]),
        ("cifar100_lt_lift", "lift", ["LIFT, table 4"]),
        # the recipe of another paper
        ("cifar10_lt", "ce", []),
        ("smoke", "more", []),
    ],
)
def test_the_papers_settings_are_those_of_their_environments(environment, method, sources):
    config, settings = in_environment(environment, method)
    rows = beside_papers(config, config, published(), settings)
    assert list(dict.fromkeys(row["source"] for row in rows)) == sources
    every = {name for paper in published() for name in paper.where} - {"data.groups.sizes"}
    one = json.loads(config["config"][0])
    assert every <= set(dict(flatten({**one, "data": settings}, ".")))


def in_environment(environment, method):
    """A run of a method with the parameters of an environment, and its data's settings."""
    params = parameters(environment)
    one = ExperimentConfig.resolve(method, params)
    row = {
        "label": method,
        "title": one.title,
        "config": json.dumps(one.model_dump(mode="json")),
        "test/accuracy": 0.5,
        "test/mean_average_precision": 0.5,
    }
    return pd.DataFrame([row]), data_config(params).model_dump(mode="json")


def test_a_variant_does_not_stand_beside_the_papers_row_of_the_method():
    config, settings = in_environment("cifar100_lt", "more")
    one = json.loads(config["config"][0])

    def sources(**options):
        text = json.dumps({**one, "options": {**one["options"], **options}})
        rows = beside_papers(config.assign(config=text), config, published(), settings)
        return [(row["source"], row["paper"]) for row in rows]

    assert sources() == [("MORE, table 1", pytest.approx(0.512))]
    assert sources(schedule="cos") == [("MORE, table 5", pytest.approx(0.509))]
    assert sources(amplitude=0.0) == []


def test_tables_with_figures_have_a_pipeline():
    studies = defaultdict(set)  # of one table, too, where it is read in several ways
    for entry in published():
        if entry.table:
            studies[f"table_{entry.paper.lower()}_{entry.table}"].add(entry.study)
    blocks = parameters("base")["studies"]
    tables = {table: name for name, block in blocks.items() for table in block.get("tables", ())}
    assert [name for name in studies if tables.get(name) not in studies[name]] == []


def test_darls_figure_stands_beside_every_reading_of_its_prior():
    arms = parameters("base")["studies"]["darl_prior"]["arms"]
    readings = {*get_args(DarlOptions.model_fields["prior"].annotation)}
    assert {name: arm["options"]["prior"] for name, arm in arms.items() if name != "LGLA"} == {
        name: name for name in readings
    }
    (table,) = (entry for entry in published() if entry.study == "darl_prior")
    assert {*table.rows} == {"LGLA", *readings}
    wheres = [{**entry.where, **row.where} for entry in published() for row in entry.rows.values()]
    assert not any("options.prior" in where for where in wheres)
