"""The comparison: from runs in MLflow to a table, pictures, a report and the champion."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from pipeline_projects import Project

from lt_pipeline.learning.evaluation.metrics.catalog import Metric
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.pipelines.compare import nodes
from lt_pipeline.reports.documents import Row, html_table, latex, markdown, table_rows
from lt_pipeline.tracking.registry import promote
from toys import toy_card

CARD = replace(toy_card(), data_hash="d")
RECALL = {"ce": 0.4, "more": 0.6, "dbm": 0.5}

PICTURES = ("accuracy_by_group", "recall_by_class", "sorted_recalls", "accuracy_against_cost")


@pytest.fixture
def experiment(tmp_path, empty_database):
    """A tracking database of its own, and an experiment in it."""
    database = tmp_path / "mlflow.db"
    database.write_bytes(empty_database.read_bytes())
    mlflow.set_tracking_uri(f"sqlite:///{database}")
    experiment_id = mlflow.create_experiment(
        "digits", artifact_location=str(tmp_path / "artifacts")
    )
    mlflow.set_experiment("digits")
    return experiment_id


def log_run(
    method, seed=0, *, recall=None, holdout=None, data="d", register=False, logged=(), **parameters
):
    """Log what a run of a method leaves behind; return its id."""
    recall = recall or RECALL[method] + seed / 50
    shared = {"seed": seed, "model": {"head": "cosine" if method == "dbm" else "linear"}}
    config = ExperimentConfig.resolve(method, {**shared, **parameters})
    table = pd.DataFrame(
        {
            "class": range(4),
            "name": [f"class {c}" for c in range(4)],
            "group": ["many", "many", "medium", "few"],
            "training_images": [40, 20, 10, 5],
            "test_images": 50,
            "recall": [recall + 0.1, recall, recall, recall - 0.1],
        }
    )
    with mlflow.start_run(run_name=method) as run:
        mlflow.set_tags({"data_hash": data, "mlflow.source.git.commit": "c0ffee", "method": method})
        mlflow.log_params(dict(logged))
        mlflow.log_dict(config.model_dump(mode="json"), "config.json")
        mlflow.log_text(table.to_csv(index=False), "class_table.csv")
        metrics = {"test/accuracy": recall, "test/many": recall + 0.05, "test/few": recall - 0.1}
        metrics |= {"cost/training_seconds": 10.0 + seed, "cost/parameters_deployed": 1234.0}
        metrics |= {"ood/odin/mean/auroc": 0.9, "ood/msp/mean/auroc": 0.8}
        if holdout is not None:
            metrics["validation/mean_recall"] = holdout
        mlflow.log_metrics(metrics)
        if register:
            model_of(method, run.info.run_id)
    return run.info.run_id


def model_of(method, run_id):
    client, name = mlflow.MlflowClient(), f"{method}-digits-lt-ir20"
    with contextlib.suppress(MlflowException):
        client.create_registered_model(name)
    return client.create_model_version(name, f"runs:/{run_id}/model", run_id)


def collect(**options):
    with mlflow.start_run(run_name="compare"):
        return nodes.collect(options, CARD)


def test_finished_runs_of_methods_are_found_and_no_others(experiment):
    wanted = [log_run("ce"), log_run("ce", 1), log_run("more")]
    log_run("more", 5, data="other")
    below = log_run("more", 6)
    mlflow.MlflowClient().set_tag(below, "mlflow.parentRunId", wanted[0])
    with pytest.raises(KeyboardInterrupt), mlflow.start_run(run_name="killed"):
        mlflow.log_metric("test/accuracy", 0.9)
        raise KeyboardInterrupt
    with mlflow.start_run(run_name="tune more", tags={"study": "more-digits-lt-ir20"}):
        mlflow.log_metric("test/accuracy", 0.9)
    with mlflow.start_run(run_name="evaluated again"):
        mlflow.log_metric("test/accuracy", 0.9)
    runs, recalls, notes, _ = collect()
    assert set(runs["run_id"]) == set(wanted)
    assert runs["seed"].tolist() == [0, 1, 0]
    assert "ood/odin/mean/auroc" in runs
    assert "ood/msp/mean/auroc" not in runs, "tables show the first detector"
    assert recalls.groupby("label").size().to_dict() == {"ce": 8, "more": 4}
    assert not any("tune more" in note for note in notes)
    assert any("run evaluated again" in note and "config.json" in note for note in notes)
    assert any(note.startswith("1 run on other images") for note in notes)


def test_a_run_of_an_earlier_version_is_compared_without_detectors(experiment):
    log_run("ce")
    old = log_run("more")
    config = ExperimentConfig.resolve("more", {}).model_dump(mode="json")
    del config["evaluation"]["detectors"]
    mlflow.MlflowClient().log_dict(old, config, "config.json")
    runs, *_ = collect()
    assert set(runs["method"]) == {"ce", "more"}
    assert runs.set_index("method")["test/accuracy"].notna().all()


def test_without_a_run_it_says_what_to_do(experiment):
    message = (
        "there is nothing to compare: the MLflow experiment 'digits' has no finished run on these "
        "images; train first, as in kedro run --pipelines=ce"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        collect()
    log_run("ce", data="other")
    with pytest.raises(ValueError, match="no finished run on these images .1 run on other images"):
        collect()
    with pytest.raises(ValueError, match="no finished run of dbm on these images .*no run of dbm"):
        collect(methods=["dbm"], same_images=False)


def test_runs_whose_tables_are_gone_are_named_and_not_compared(experiment, tmp_path):
    ids = [log_run("ce", seed) for seed in range(5)]
    kept = log_run("more")
    for run in ids:
        (tmp_path / "artifacts" / run / "artifacts" / "class_table.csv").unlink()
    runs, recalls, notes, _ = collect()
    assert set(runs["run_id"]) == set(recalls["run_id"]) == {kept}
    assert sum("left out: they have no" in note and "and 2 more" in note for note in notes) == 1
    (tmp_path / "artifacts" / kept / "artifacts" / "class_table.csv").unlink()
    with pytest.raises(ValueError, match="nothing to compare: .*and 3 more are left out"):
        collect()


def test_without_a_run_on_these_data_it_says_which_data_have_runs(experiment, tmp_path):
    log_run("ce", data="other", logged={"data.imbalance_ratio": 50, "data.seed": 1})
    log_run("more", data="other", logged={"data.imbalance_ratio": 50, "data.seed": 1})
    log_run("dbm", data="other", logged={"data.source": "digits", "data.auxiliary": None})
    mlflow.create_experiment("another data set", artifact_location=str(tmp_path / "others"))
    mlflow.set_experiment("another data set")
    log_run("ce", data="third", logged={"data.source": "cifar10", "data.groups.rule": "thirds"})
    mlflow.set_experiment("digits")
    here = CARD.settings
    assert (here["source"], here["imbalance_ratio"], here["seed"]) == ("digits", 20, 0)
    message = (
        "there are 2 runs (ce, more) with data.imbalance_ratio=50.0, data.seed=1; "
        "1 run (ce) with data.source='cifar10', data.groups.rule='thirds'; "
        "1 run (dbm) with these data settings: compare with their data parameters, or train first"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        collect()
    log_run("ce", data="old", logged={"data.of_an_earlier_version": 3})
    with pytest.raises(ValueError, match=r"1 run .ce. with data\.of_an_earlier_version=3"):
        collect()


def test_table_pictures_and_report_hold_together(experiment):
    for method in ("ce", "more"):
        for seed in (0, 1, 2):
            log_run(
                method, seed, recall=RECALL[method] + (seed**2 if method == "ce" else seed) / 90
            )
    log_run("dbm", 0)
    runs, recalls, notes, _ = collect()
    papers = [
        {
            "paper": "P & Q",
            "table": "1",
            "study": "s",
            "where": {"data.source": "digits"},
            "rows": {"MORE": {"method": "more", "accuracy": 70.0, "reason": "<fewer> images"}},
        }
    ]
    summary, comparison = nodes.tabulate({}, CARD, runs, recalls, papers)
    assert summary["label"].tolist() == ["more", "dbm bs", "ce"]
    assert summary["runs"].tolist() == [3, 1, 3]
    assert comparison["first_two"]["pairs"] == 1
    assert "an interval and a test need two" in comparison["summary_sentence"]
    text, tex, fragment = nodes.write(summary, comparison, CARD)
    assert "| more | 3 | 60 | resnet8 | 61.1 ± 1.1 |" in text
    assert "| *P & Q, table 1* |  |  |  | *70.0* |" in text
    assert text.startswith(
        "| method | runs | epochs | backbone | accuracy % | accuracy % minus more | seeds needed |"
    )
    # 20, 20 and 17.8 below
    assert re.search(r"\| ce \| 3 \|( [^|]* \|){3} -19\.26 \[-22\.4, -16\.1\] \| 2 \|", text)
    assert re.search(r"\| dbm bs \| 1 \|( [^|]* \|){3} -10\.00 \(one seed\) \| - \|", text)
    assert re.search(r"\| dbm bs \| 1 \| 60 \| resnet8 \| 50\.0 \[4\d\.\d, 5\d\.\d\] \|", text)
    assert r"more & 3 & 60 & resnet8 & 61.1 $\pm$ 1.1 &" in tex
    assert r"\textit{P \& Q, table 1}" in tex
    assert r"\toprule" in tex
    assert tex.count("{") == tex.count("}")
    assert "<td>61.1<small>± 1.1</small></td>" in fragment
    assert "<td>-19.26<small>[-22.4, <wbr>-16.1]</small></td>" in fragment
    assert "-19.26 [-22.4, -16.1] & 2" in tex
    figures, pictures = nodes.draw(summary, recalls, CARD)
    assert (
        set(figures) == {f"{name}.png" for name in pictures} == {f"{name}.png" for name in PICTURES}
    )
    (axes,) = figures["sorted_recalls.png"].axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines["dbm bs"] == pytest.approx([40, 50, 50, 60]), "from worst to best"
    assert lines["more"] == pytest.approx([100 * (0.6 + 1 / 90 + d) for d in (-0.1, 0, 0, 0.1)])
    page = nodes.report(
        CARD, runs, summary, comparison, notes, pictures, {"sentence": "A champion."}
    )
    tags = Tags()
    tags.feed(page)
    images = [attributes["src"] for tag, attributes in tags.read if tag == "img"]
    assert len(images) == 4
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in images)
    assert not [tag for tag, _ in tags.read if tag in ("link", "iframe")]
    assert [attributes for tag, attributes in tags.read if tag == "script"] == [{}]
    assert "http" not in re.sub(r"base64,[^']*", "", page), "nothing is fetched"
    assert "&lt;fewer&gt; images" in page
    assert "A champion." in page
    assert "-8.9" in page, "the gap to the paper"
    assert "mean minus figure, not paired" in page
    assert "paired 95 % interval" in page
    assert all(run_id in page for run_id in runs["run_id"])


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.read = []

    def handle_starttag(self, tag, attrs):
        self.read.append((tag, dict(attrs)))


def test_an_interval_without_width_is_not_shown():
    own = {"label": "ce", "runs": 1, "a": 1.0, "a low": 1.0, "a high": 1.0}
    own |= {"b": 0.9, "b low": 0.8, "b high": 1.0}
    measures = {name: Metric(name, name) for name in "ab"}
    _, (row,) = table_rows(pd.DataFrame([own]), [], measures)
    assert list(row.cells) == ["ce", "1", "100.0", "90.0 [80.0, 100.0]"]


def test_cells_of_tables_are_escaped():
    rows = [Row(["a|b_c", "50 % <"], of_paper=False), Row(["x", ""], of_paper=True)]
    assert r"| a\|b_c | 50 % < |" in markdown(["m", "v"], rows)
    assert r"a|b\_c & 50 \% $<$ \\" in latex(["m", "v"], rows, "c")
    assert "<td>50 % &lt;</td>" in html_table(["m", "v"], rows)
    assert '<tr class="paper"><td>x</td><td></td></tr>' in html_table(["m", "v"], rows)


def aliases():
    models = mlflow.MlflowClient().search_registered_models()
    return {model.name: dict(model.aliases) for model in models if model.aliases}


def test_the_champion_is_the_best_on_the_hold_out_and_not_on_the_test_set(experiment):
    log_run("more", recall=0.9, holdout=0.5, register=True)
    log_run("ce", 0, recall=0.3, holdout=0.7, register=True)
    best = log_run("ce", 1, recall=0.3, holdout=0.8, register=True)
    log_run("ce", 2, recall=0.3, holdout=0.6, register=True)
    log_run("dbm", recall=0.3, holdout=0.99)  # not deployed
    champion = promote(collect()[3], "digits-lt-ir20")
    assert aliases() == {"digits-lt-ir20": {"champion": 1}}
    assert (champion["run_id"], champion["version"], champion["value"]) == (best, 1, 0.8)
    assert champion["sentence"] == (
        "The champion is models:/digits-lt-ir20@champion: ce-digits-lt-ir20/2, of ce with seed 1, "
        "whose mean recall on the hold-out is 80.0 %."
    )
    shown = mlflow.MlflowClient().get_model_version("digits-lt-ir20", "1").description
    assert shown.startswith("Copy of ce-digits-lt-ir20/2, of ce with seed 1, whose mean recall")
    # asked again, nothing changes
    assert promote(collect()[3], "digits-lt-ir20") == champion
    # a better one of another method has the same address, and the one before is there below it
    log_run("more", 1, recall=0.9, holdout=0.95, register=True)
    assert promote(collect()[3], "digits-lt-ir20")["model_uri"] == champion["model_uri"]
    assert aliases() == {"digits-lt-ir20": {"champion": 2}}
    sources = [mlflow.MlflowClient().get_model_version("digits-lt-ir20", k).source for k in "12"]
    assert sources == ["models:/ce-digits-lt-ir20/2", "models:/more-digits-lt-ir20/2"]
    # of another data set it is left alone
    promote(collect()[3], "digits-lt-ir10")
    assert aliases() == {"digits-lt-ir20": {"champion": 2}, "digits-lt-ir10": {"champion": 1}}


def test_what_is_compared_does_not_choose_the_champion(experiment):
    best = log_run("more", holdout=0.95, register=True)
    log_run("ce", holdout=0.5, register=True)
    # the latest run of more has other parameters, and hides the first in the table
    log_run("more", 1, holdout=0.2, register=True, more={"options": {"rank": 0.3}})
    for options in ({}, {"methods": ["ce"]}, {"same_images": False}):
        runs, *_, candidates = collect(**options)
        assert best not in set(runs["run_id"]) or options == {"same_images": False}
        assert promote(candidates, "digits-lt-ir20")["run_id"] == best, options


def test_a_champion_on_other_images_is_replaced_and_named(experiment):
    log_run("ce", holdout=0.9, register=True, data="other")
    with mlflow.start_run():
        card = replace(CARD, data_hash="other")
        promote(nodes.collect({}, card)[3], "digits-lt-ir20")
    new = log_run("more", holdout=0.5, register=True)
    champion = promote(collect()[3], "digits-lt-ir20")
    assert champion["run_id"] == new
    assert champion["sentence"].endswith(
        "is 50.0 %. The one before, version 1, was judged by other images."
    )
    assert "The one before" not in promote(collect()[3], "digits-lt-ir20")["sentence"]


def test_without_a_hold_out_there_is_no_champion(experiment):
    log_run("ce", recall=0.9, register=True)
    champion = promote(collect()[3], "digits-lt-ir20")
    assert champion["model_uri"] is None
    assert "No champion is set: no run has a hold-out" in champion["sentence"]
    assert "data.validation=0.1" in champion["sentence"]
    assert aliases() == {}
    log_run("more", holdout=0.5)
    champion = promote(collect()[3], "digits-lt-ir20")
    assert "no run with a hold-out has a registered model" in champion["sentence"]


@pytest.mark.slow
def test_compare_through_kedro(finished, tmp_path):
    trained, _ = finished
    # runs in the fixture's own project would be in the way of its other tests
    project = Project(shutil.copytree(trained.folder, tmp_path / "project"))
    output = project.kedro(
        "--pipelines=compare", "--env=smoke", "--params=compare.methods=more,compare.variants=true"
    )
    assert "Methods on digits, exponential, IR 10: balanced test set, last epoch" in output
    assert "paired 95 %" not in output, "there is one row"
    assert "One method only: there is nothing to compare it with." in output
    assert "No champion is set: no run has a hold-out" in output
    assert "WARNING" not in output
    folder = project.file("08_reporting", "smoke", "compare")
    metrics = json.loads(project.file("08_reporting/smoke/more/metrics.json").read_text())
    (row,) = pd.read_csv(folder / "table.csv").to_dict("records")
    assert row["label"] == "more"
    assert row["test/accuracy"] == pytest.approx(metrics["test"]["accuracy"])
    assert row["test/accuracy low"] <= row["test/accuracy"] <= row["test/accuracy high"]
    recalls = pd.read_csv(folder / "recalls.csv")
    table = pd.read_csv(project.file("08_reporting/smoke/more/class_table.csv"))
    assert recalls["recall"].tolist() == table["recall"].tolist()
    for name in PICTURES:
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    client = project.client
    (run,) = [r for r in project.runs if r.info.run_name == "compare · smoke"]
    assert run.info.status == "FINISHED"
    files = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"report.html", "table.csv", "table.md", "table.tex", "table.html", "figures"} <= files
    assert not [name for name in run.data.params if "papers" in name]
    code, output = project.run(
        *("kedro", "run", "--pipelines=compare", "--env=smoke"), "--params=compare.methods=mor"
    )
    assert code == 1
    assert "compare.methods.0: unknown method 'mor': did you mean 'more'" in output
    assert "Traceback" not in output
