"""Studies, end to end: through Kedro, and what their nodes keep when they are killed."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner
from pipeline_projects import own

import confs
from arms import run_study, sets, smoke
from lt_pipeline.hooks import parameters as in_effect
from lt_pipeline.learning.experiments import run as module
from lt_pipeline.learning.experiments.config import SHARED, ExperimentConfig, updated
from lt_pipeline.learning.experiments.experiment import Sets
from lt_pipeline.learning.schema import numbers
from lt_pipeline.learning.studies.plan import Plan
from lt_pipeline.pipelines import method
from lt_pipeline.reports.studies import summarise, tabulate
from toys import FromAfar, toy_card


def parameters():
    return smoke({"seeds": 2, "arms": {"CE": {"method": "ce"}, "DBM": {"method": "dbm"}}})


def test_a_study_on_images_from_afar_has_the_same_numbers(tmp_path):
    arms = {"CE": {"method": "ce"}, "cRT": {"method": "crt"}}
    arguments = smoke({"seeds": 1, "arms": arms})
    near, far = (
        run_study("s", arguments, toy_card(), images, tmp_path, tmp_path / name)
        for name, images in (("near", sets()), ("far", Sets(*(FromAfar(s, 16) for s in sets()))))
    )
    measured = [name for name in near if "second" not in name and "memory" not in name]
    pd.testing.assert_frame_equal(near[measured], far[measured], check_exact=True)
    assert "test/accuracy" in measured


def test_finished_runs_are_kept_and_the_others_go_on(tmp_path, monkeypatch):
    card, arguments = toy_card(), parameters()
    trained = []
    once = module.finish

    def finish(experiment, *rest):
        trained.append((experiment.config.method, experiment.config.seed))
        if len(trained) == 3:
            raise KeyboardInterrupt
        return once(experiment, *rest)

    monkeypatch.setattr(module, "finish", finish)
    with pytest.raises(KeyboardInterrupt):
        run_study("s", arguments, card, sets(), tmp_path, tmp_path)
    table = run_study("s", arguments, card, sets(), tmp_path, tmp_path)
    assert trained == [("ce", 0), ("dbm", 0), ("ce", 1), ("ce", 1), ("dbm", 1)]
    assert table[["arm", "seed"]].to_numpy().tolist() == [
        ["CE", 0], ["DBM", 0], ["CE", 1], ["DBM", 1],
    ]  # fmt: skip
    again = run_study("s", arguments, card, sets(), tmp_path, tmp_path)
    assert len(trained) == 5
    pd.testing.assert_frame_equal(again, table)
    assert {
        "test/accuracy",
        "test/few",
        "geometry/angle_mean/few",
        "validation/mean_recall",
    } <= set(table)
    # other parameters are other runs
    arguments["training"]["learning_rate"] = 0.05
    other = run_study("s", arguments, card, sets(), tmp_path, tmp_path)
    assert len(trained) == 9
    assert not other["test/expected_calibration_error"].equals(
        table["test/expected_calibration_error"]
    )
    # and leave these where they are
    arguments["training"]["learning_rate"] = 0.1
    back = run_study("s", arguments, card, sets(), tmp_path, tmp_path)
    pd.testing.assert_frame_equal(back, table)
    # an arm of two studies is trained once, whatever its name
    arms = {"plain": {"method": "ce"}, "BS": {"method": "balanced_softmax"}}
    arguments["studies"]["t"] = {"title": "others", "seeds": 1, "arms": arms}
    shared = run_study("t", arguments, card, sets(), tmp_path, tmp_path)
    assert trained[9:] == [("balanced_softmax", 0)]
    by_arm = shared.set_index("arm")["test/accuracy"]
    assert by_arm["plain"] == table["test/accuracy"][0]
    # but not on other images
    run_study("t", arguments, replace(card, data_hash="other"), sets(), tmp_path, tmp_path)
    assert trained[10:] == [("balanced_softmax", 0), ("ce", 0)]


def test_a_row_is_what_the_methods_own_nodes_give(tmp_path):
    card, arguments = toy_card(), parameters()
    table = run_study("s", arguments, card, sets(), tmp_path, tmp_path / "one")
    options = ExperimentConfig.resolve("dbm", arguments).options
    names = ("train_set", "validation_set", "test_set", "auxiliary_set")
    given = {f"params:{name}": arguments[name] for name in (*SHARED, "dbm")}
    given |= {**dict(zip(names, sets(), strict=True)), "data_card": card, "raw_folder": tmp_path}
    given |= {"params:seed": 1, "dbm.progress": tmp_path / "progress"}
    catalog = DataCatalog({name: MemoryDataset(value) for name, value in given.items()})
    judging = [f"dbm.{name}" for name in ("evaluate", "geometry", "ood")]
    nodes = method.create_pipeline("dbm", options).to_nodes(*judging)
    SequentialRunner().run(nodes, catalog)
    alone = numbers({**catalog.load("dbm.metrics"), "geometry": catalog.load("dbm.geometry")})
    alone = {n: v for n, v in alone.items() if "second" not in n and "memory" not in n}
    row = table[(table["arm"] == "DBM") & (table["seed"] == 1)].iloc[0]
    assert len(alone) > 20
    assert {name: row[name] for name in alone} == alone


def test_the_summary_is_mean_and_deviation_by_arm_in_their_order():
    runs = pd.DataFrame(
        {"arm": ["z", "a", "z", "a"], "seed": [0, 0, 1, 1], "test/accuracy": [0.1, 0.5, 0.3, 0.5]}
    )
    arguments = smoke({"arms": {n: {"method": "ce"} for n in "za"}})

    def summary(result=runs):
        return summarise(Plan.of("s", arguments), *result.to_dict("records"))[1:]

    table, arms = summary()
    assert table["arm"].tolist() == ["z", "a"]
    assert table["runs"].tolist() == [2, 2]
    assert table["test/accuracy"].tolist() == pytest.approx([0.2, 0.5])
    assert table["test/accuracy sd"].tolist() == pytest.approx([0.02**0.5, 0.0])
    assert arms["a"]["test/accuracy"] == {"mean": 0.5, "sd": 0.0}
    # 0.4 and 0.2 above z: mean 0.3, sd 0.1414, half an interval 12.7062 * 0.1
    ahead = table.set_index("arm").loc["a"].filter(like="difference").tolist()
    assert ahead == pytest.approx([0.3, 0.02**0.5, 0.3 - 1.27062, 0.3 + 1.27062, 2], rel=1e-5)
    arguments["studies"]["s"]["against"] = "a"
    table, _ = summary()
    ahead = table.set_index("arm")["test/accuracy difference"]
    assert ahead["z"] == pytest.approx(-0.3)
    assert pd.isna(ahead["a"])
    _, alone = summary(runs[runs["seed"] == 0])
    assert alone["z"] == {"test/accuracy": {"mean": 0.1}}, "one seed has no deviation"


PAPERS = [
    {
        "paper": "P",
        "table": "1",
        "study": "s",
        "where": {"training.epochs": 1},
        "rows": {"CE": {"accuracy": 44.0, "geometric_mean": 12.0, "reason": "a smaller network"}},
    }
]


def test_the_table_has_the_papers_figures_with_the_gap_where_the_setting_is_theirs():
    card, arguments = toy_card(), parameters()
    arguments["studies"]["s"]["columns"] = ["geometric_mean"]
    means = {"test/accuracy": [0.5, 0.6], "test/geometric_mean": [0.1, 0.2]}
    spread = {f"{name} sd": [0.01, 0.02] for name in means}
    floor = {"test/recall_floor": [1e-3, 1e-3]}
    summary = pd.DataFrame({"arm": ["CE", "DBM"], "runs": [2, 2], **means, **spread, **floor})
    ahead = {"difference": 0.1, "difference sd": 0.02, "difference low": -0.08}
    ahead |= {"difference high": 0.28, "difference pairs": 2, "seeds needed": 3}
    summary = summary.join(
        pd.DataFrame([{f"test/accuracy {k}": v for k, v in ahead.items()}], index=[1])
    )
    runs = pd.DataFrame({"arm": ["CE", "DBM"], "seed": 0})
    comparison, text = tabulate(Plan.of("s", arguments), card, runs, summary, PAPERS)
    assert comparison["headings"] == [
        "arm", "runs", "accuracy %", "accuracy % minus CE", "seeds needed", "geom. mean %",
    ]  # fmt: skip
    assert [row["cells"] for row in comparison["rows"]] == [
        ["CE", "2", "50.0 ± 1.0", "", "", "10.0 ± 1.0"],
        ["P, table 1", "", "44.0 (+6.0)", "", "", "12.0 (-2.0)"],
        ["DBM", "2", "60.0 ± 2.0", "+10.00 [-8.0, +28.0]", "3", "20.0 ± 2.0"],
    ]
    assert [row["of_paper"] for row in comparison["rows"]] == [False, True, False]
    assert comparison["notes"] == [
        "The harmonic mean takes a recall of zero as 0.001",
        "Minus another row: mean of the differences seed by seed and its paired 95 % interval; "
        "seeds needed: to find a difference of that size with 80 % power",
        "CE, P, table 1: a smaller network",
    ]
    assert "| *P, table 1* |  | *44.0 (+6.0)* |" in text
    assert "- CE, P, table 1: a smaller network" in text
    assert json.loads(json.dumps(comparison)) == comparison
    arguments["training"]["epochs"] = 2
    comparison, text = tabulate(Plan.of("s", arguments), card, runs, summary, PAPERS)
    assert comparison["beside_papers"] == []
    (*_, said) = comparison["notes"]
    assert said.endswith("as of CE training.epochs is 2, not 1")
    assert said in text


@pytest.mark.slow
def test_a_study_through_kedro_has_a_nested_run_for_each_arm_and_seed(project):
    params = "training.epochs=1,studies.dbm_K.seeds=2,studies.dbm_K.sweep.values=[0.3,0.5]"
    given = f"--params={params},evaluation.ood=uniform_noise"
    output = project.kedro("--pipelines=dbm_K", "--env=smoke", given)
    assert "dbm_K on digits, exponential, IR 10: balanced test set, last epoch, %" in output
    assert "(mean ± standard deviation over seeds)" in output
    assert "No figure of DBM, figure 3 is beside ours, as of BS data.source is digits" in output
    assert "8 to train" in output
    assert "seed by seed and its paired 95 % interval; seeds needed: to find a" in output
    assert "K = 0.5 (seed 0 1)" in " ".join(output.split())
    assert "1/8  BS · seed 0" in output
    assert "8/8  K = 0.5 · seed 1" in output
    assert "make ui" in output
    assert "WARNING" not in output
    folder = project.file("08_reporting", own(params), "dbm_K")
    summary = pd.read_csv(folder / "summary.csv")
    assert summary["arm"].tolist() == ["BS", "BS cosine", "K = 0.3", "K = 0.5"]
    assert summary["runs"].tolist() == [2] * 4
    accuracy = pd.read_csv(folder / "runs.csv").pivot(
        index="seed", columns="arm", values="test/accuracy"
    )
    ahead = summary.set_index("arm").loc["K = 0.3"]
    apart = accuracy["K = 0.3"] - accuracy["BS"]
    assert ahead["test/accuracy difference"] == pytest.approx(apart.mean())
    assert ahead["test/accuracy difference sd"] == pytest.approx(apart.std())
    assert "accuracy % minus BS" in " ".join((folder / "table.md").read_text().split())
    for name in ("accuracy", "angle", "separability"):
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    runs, client = project.runs, project.client
    (parent,) = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = {r.info.run_name: r for r in runs if r is not parent}
    assert len(children) == 8
    assert all(r.info.status == "FINISHED" for r in runs)
    assert all(r.data.tags["mlflow.parentRunId"] == parent.info.run_id for r in children.values())
    child = children["K = 0.3 · seed 1"]
    assert child.data.params["dbm.options.criterion.margin.K"] == "0.3"
    assert child.data.params["model.head"] == "cosine"
    assert child.data.tags["data_hash"] == parent.data.tags["data_hash"]
    assert child.data.tags["seed"] == "1"
    assert not [name for name in parent.data.params if "bcl" in name or "dbm_tau" in name]
    assert child.data.params["seed"] == "1"
    row = pd.read_csv(folder / "runs.csv").query("arm == 'K = 0.3' and seed == 1").iloc[0]
    assert child.data.metrics["test/accuracy"] == pytest.approx(row["test/accuracy"])
    assert "train/balanced_softmax" in child.data.metrics
    assert "arms/K-0.3/geometry/angle_mean/few/sd" in parent.data.metrics
    assert "arms/BS/geometry/separability/all/mean" in parent.data.metrics
    assert parent.data.metrics["arms/K-0.3/test/accuracy/mean"] == pytest.approx(
        summary.set_index("arm").loc["K = 0.3", "test/accuracy"]
    )
    names = {a.path for a in client.list_artifacts(parent.info.run_id)}
    assert {"runs.csv", "summary.csv", "table.md", "figures"} <= names
    assert (folder / "table.md").read_text().startswith("| arm | runs | accuracy % |")
    # what is there is not trained again
    kept = project.file("06_models", "smoke", "arms")
    assert {path.name for path in kept.rglob("*") if path.is_file()} == {
        "metrics.json",
        "answers.csv",
    }


@pytest.mark.slow
def test_a_wrong_arm_stops_the_run_at_once(project):
    code, output = project.run(
        *("kedro", "run", "--pipelines=dbm_tau", "--env=smoke"),
        "--params=studies.dbm_tau.sweep.path=options.criterion.margin.taus",
    )
    assert code == 1
    assert "studies.dbm_tau: arm 'taus = 0': dbm.options.criterion.margin: " in output
    assert "unknown parameter 'taus': did you mean 'tau'" in output
    assert "Traceback" not in output
    project.folder.joinpath("conf", "base", "papers.yml").write_text("- {papr: X}")
    code, output = project.run("kedro", "run", "--pipelines=dbm_tau", "--env=smoke")
    assert code == 1
    assert "Error: papers.yml.0: unknown parameter 'papr': did you mean 'paper'" in output
    assert not project.file("03_primary", "smoke", "train.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"studies": {"dbm_k": {}}}, "studies: unknown study 'dbm_k': did you mean 'dbm_K'"),
        ({"studies": {"dbm_tau": {"sed": 1}}}, "studies.dbm_tau: unknown parameter 'sed'"),
        ({"studies": 3}, "studies: must be a block of parameters, but got 3"),
        ({"studies": {"dbm_K": 3}}, "studies.dbm_K: .*but got 3"),
    ],
)
def test_wrong_names_are_found_in_studies_that_are_not_run(change, message):
    with pytest.raises(ValueError, match=message):
        in_effect.studies(updated(confs.parameters("smoke"), change))


def test_seeds_go_on_from_the_runs_own(tmp_path):
    arguments = parameters()
    arguments["seed"] = 5
    table = run_study("s", arguments, toy_card(), sets(), tmp_path, tmp_path)
    assert table["seed"].tolist() == [5, 5, 6, 6]


def test_geometry_of_a_method_is_in_its_run(finished):
    project, _ = finished
    folder = project.file("08_reporting", "smoke", "more")
    geometry = json.loads((folder / "geometry.json").read_text())
    assert 0 < geometry["angle_mean"]["all"] < 180
    assert geometry["separability"]["few"] > 0
    for name in ("angles", "separability"):
        assert (folder / "geometry" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    (run,), client = project.runs, project.client
    shown = pytest.approx(geometry["angle_mean"]["few"], rel=1e-6)
    assert run.data.metrics["geometry/angle_mean/few"] == shown
    assert "geometry" in {a.path for a in client.list_artifacts(run.info.run_id)}
