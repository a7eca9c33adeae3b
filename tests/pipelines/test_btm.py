"""BTM through Kedro: a node a fine-tuning, what is kept of them, and studies that share stages."""

from __future__ import annotations

import json
import re

import mlflow
import pandas as pd
import pytest
import torch
from pipeline_projects import copy_project, own
from safetensors.torch import load_file

from arms import run_study, sets, smoke
from lt_pipeline.io.datasets import ImageSetDataset
from lt_pipeline.learning.data.subsets import balanced_subsets
from lt_pipeline.learning.experiments import run as module
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.experiments.run import run_experiment
from lt_pipeline.learning.experiments.store import Store
from lt_pipeline.learning.models.network import ModelConfig, build_network, parameter_count
from lt_pipeline.learning.studies.plan import Plan
from toys import toy_card

pytestmark = pytest.mark.slow

BRANCHES = ["branch_0", "branch_1", "branch_2"]
STAGES = ["pretrain", *BRANCHES, "union", "stage_2", "merge", "post_train"]
MEANS = ("accuracy", "harmonic_mean", "geometric_mean", "lowest_recall")


@pytest.fixture(scope="module")
def merged(tmp_path_factory, empty_database):
    """A project after `kedro run --pipelines=btm`, and what that printed."""
    project = copy_project(tmp_path_factory.mktemp("btm"), empty_database)
    return project, project.kedro("--pipelines=btm", "--env=smoke")


def model_file(project, name, folder="smoke"):
    return project.file("06_models", folder, "btm", f"{name}.safetensors")


def report_file(project, *parts, folder="smoke"):
    return project.file("08_reporting", folder, "btm", *parts)


def weights_of(project, name, folder="smoke"):
    return load_file(model_file(project, name, folder))


def ran(output, node):
    return re.search(rf"\w · {node.replace('_', ' ')} *$", output, re.MULTILINE) is not None


def test_it_ends_with_a_table_and_says_what_the_subsets_are(merged):
    project, output = merged
    assert "digits, exponential, IR 10: balanced test set, last epoch, %" in output
    assert "btm: each of 3 subsets has 40 images, 4 to 4 a class" in output
    assert "btm: a fine-tuning is 8 steps, 4 an epoch" in output
    assert "WARNING" not in output
    assert "Traceback" not in output
    assert all(ran(output, name) for name in ("subsets", *STAGES, "stages", "finish"))
    assert not project.file("06_models", "smoke", "btm", "progress").exists()
    assert all(model_file(project, name).exists() for name in (*STAGES, "model"))
    shares = json.loads(report_file(project, "merge_report.json").read_text())["shares"]
    assert shares == dict.fromkeys(BRANCHES, pytest.approx(1 / 3))


def test_the_subsets_can_be_read_again(merged):
    project, _ = merged
    labels = ImageSetDataset(str(project.file("03_primary/smoke/train.safetensors"))).load().labels
    table = pd.read_csv(project.file("05_model_input", "smoke", "btm", "subsets.csv"))
    assert table["subset"].unique().tolist() == [*BRANCHES, "union"]
    assert table["label"].tolist() == labels[table["position"].tolist()].tolist()
    by_name = dict(list(table.groupby("subset")))
    for name, wanted in zip(BRANCHES, balanced_subsets(labels, 3, 4, seed=0), strict=True):
        assert by_name[name]["position"].tolist() == wanted.tolist()
        assert by_name[name]["label"].value_counts().to_dict() == dict.fromkeys(range(10), 4)
        assert by_name[name]["position"].is_unique
    drawn = [frozenset(by_name[name]["position"]) for name in BRANCHES]
    assert len(set(drawn)) == 3
    assert set(by_name["union"]["position"]) == drawn[0] | drawn[1]


def test_the_merged_network_is_the_average_of_the_files(merged):
    project, _ = merged
    branches = [weights_of(project, name) for name in BRANCHES]
    weights = weights_of(project, "merge")
    for name, value in weights.items():
        if value.is_floating_point():
            mean = torch.stack([b[name].double() for b in branches]).mean(0)
            torch.testing.assert_close(value.double(), mean, rtol=1e-6, atol=1e-7)
    head = "source.net.head.weight"
    assert not torch.equal(branches[0][head], branches[1][head])
    last = weights_of(project, "post_train")
    for name, value in weights.items():
        if "backbone" in name and "running" not in name and "num_batches" not in name:
            assert torch.equal(last[name], value), name
    assert not torch.equal(last[head], weights[head])


def test_every_stage_has_a_row_and_the_last_one_is_the_model(merged):
    project, _ = merged
    table = pd.read_csv(report_file(project, "stages.csv")).set_index("stage")
    assert table.index.tolist() == STAGES
    assert table.index[table["role"] == "line"].tolist() == ["pretrain", "merge", "post_train"]
    metrics = json.loads(report_file(project, "metrics.json").read_text())["test"]
    for name in MEANS:
        assert table[name].between(0, 1).all()
        assert table.loc["post_train", name] == pytest.approx(metrics[name])
    assert table["accuracy"].nunique() > 3


def test_the_way_between_two_networks_begins_and_ends_with_them(merged):
    project, _ = merged
    table = pd.read_csv(report_file(project, "stages.csv")).set_index("stage")
    between = pd.read_csv(report_file(project, "between.csv"))
    ways = dict(list(between.groupby(["start", "end"])))
    assert set(ways) == {("pretrain", "branch_0"), ("branch_0", "branch_1")}
    for (start, end), rows in ways.items():
        assert rows["share"].tolist() == [0.0, 0.5, 1.0]
        for name in MEANS:
            first, *_, last = rows[name]
            assert first == pytest.approx(table.loc[start, name])
            assert last == pytest.approx(table.loc[end, name])
    names = {path.name for path in report_file(project, "stages").iterdir()}
    assert names == {
        "stages.png",
        "recall_profiles.png",
        "between_pretrain_and_branch_0.png",
        "between_branch_0_and_branch_1.png",
    }
    for name in names:
        assert report_file(project, "stages", name).read_bytes().startswith(b"\x89PNG")


def test_mlflow_has_the_curves_of_every_stage_and_what_they_led_to(merged):
    project, _ = merged
    (run,) = [r for r in project.runs if "--nodes" not in r.data.tags["command"]]
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "btm · smoke"
    table = pd.read_csv(report_file(project, "stages.csv")).set_index("stage")
    for stage in STAGES:
        for name in MEANS:
            value = run.data.metrics[f"stages/{stage}/{name}"]
            assert value == pytest.approx(table.loc[stage, name], rel=1e-6)
    client = mlflow.MlflowClient(tracking_uri=project.tracking_uri)
    for stage, metric in [
        *((name, "train/cross_entropy") for name in (*BRANCHES, "union", "pretrain")),
        *((name, "train/label_aware_smoothing") for name in ("stage_2", "post_train")),
    ]:
        saved = json.loads(report_file(project, f"{stage}_history.json").read_text())[metric]
        logged = metric if stage == "pretrain" else metric.replace("/", f"/{stage}/")
        curve = client.get_metric_history(run.info.run_id, logged)
        assert [m.step for m in curve] == [p["step"] for p in saved]
        assert [m.value for m in curve] == pytest.approx([p["value"] for p in saved], rel=1e-6)
        assert len(saved) == 2
    assert run.data.params["btm.options.branches.sets"] == "3"
    assert run.data.params["btm.options.pretrain_options.mix.cutmix"] == "False"
    files = {item.path for item in client.list_artifacts(run.info.run_id)}
    wanted = {"subsets.csv", "stages.csv", "between.csv", "merge_report.json", "stages"}
    assert wanted <= files


def test_one_fine_tuning_can_be_run_again_alone(merged):
    project, _ = merged
    paths = {name: model_file(project, name) for name in STAGES}
    before = {name: (path.stat().st_mtime_ns, path.read_bytes()) for name, path in paths.items()}
    output = project.kedro("--pipelines=btm", "--env=smoke", "--nodes=btm.branch_1")
    assert ran(output, "branch_1")
    assert not any(ran(output, name) for name in STAGES if name != "branch_1")
    assert "resumes" not in output, "it was trained again"
    for name, path in paths.items():
        assert (path.stat().st_mtime_ns == before[name][0]) is (name != "branch_1")
        assert path.read_bytes() == before[name][1], name


def test_trained_together_the_fine_tunings_are_one_node_with_the_same_result(merged, project):
    alone, _ = merged
    params = "btm.options.branches.together=true"
    arguments = ("--pipelines=btm", "--env=smoke", "--to-nodes=btm.merge")
    output, folder = project.kedro(*arguments, f"--params={params}"), own(params)
    assert ran(output, "branches")
    assert not ran(output, "branch_0")
    for name in ("pretrain", *BRANCHES, "merge"):
        one, other = weights_of(alone, name), weights_of(project, name, folder)
        assert one.keys() == other.keys()
        for key in one:
            torch.testing.assert_close(other[key], one[key], rtol=1e-3, atol=1e-5)
    # much nearer than what training changed
    head = "source.net.head.weight"
    moved = weights_of(alone, "merge")[head] - weights_of(alone, "pretrain")[head]
    differ = weights_of(project, "merge", folder)[head] - weights_of(alone, "merge")[head]
    assert differ.norm() < 0.01 * moved.norm()
    history = json.loads(report_file(project, "branch_2_history.json", folder=folder).read_text())
    wanted = json.loads(report_file(alone, "branch_2_history.json").read_text())
    losses = [[p["value"] for p in h["train/cross_entropy"]] for h in (history, wanted)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_crash_in_the_second_fine_tuning_keeps_the_first_on_another_method(project):
    params = (
        "btm.options.pretrain=more,btm.options.branches.sets=2,evaluation.ood=false,"
        "btm.options.references=false,btm.options.interpolate=0"
    )
    arguments, folder = ("--pipelines=btm", "--env=smoke", f"--params={params}"), own(params)
    broken = model_file(project, "branch_1", folder)
    broken.mkdir(parents=True)  # a file cannot be written there
    code, output = project.run("kedro", "run", *arguments)
    assert code != 0
    assert ran(output, "branch_1")
    assert not ran(output, "merge")
    finished = {n: model_file(project, n, folder) for n in ("pretrain", "fc", "branch_0")}
    done = {name: path.stat().st_mtime_ns for name, path in finished.items()}
    broken.rmdir()
    output = project.kedro(*arguments, "--only-missing-outputs")
    assert not any(ran(output, name) for name in done), "what was finished is kept"
    assert all(ran(output, name) for name in ("branch_1", "merge", "post_train", "evaluate"))
    assert all(finished[n].stat().st_mtime_ns == when for n, when in done.items())
    # the method it stands on, by one parameter
    assert "btm on more" in output
    assert "more handles imbalance, so its classifier forgets that first" in output
    run = max(project.runs, key=lambda run: run.info.start_time)
    assert run.info.run_name.startswith("btm on more · smoke · btm.branches.sets 2 · ")
    assert run.data.params["btm.options.pretrain_options.amplitude"] == "2.0"
    assert {path.stem for path in broken.parent.glob("branch_*")} == {"branch_0", "branch_1"}
    table = pd.read_csv(report_file(project, "stages.csv", folder=folder))
    assert table["stage"].tolist() == [
        *("pretrain", "fc", "branch_0", "branch_1", "merge", "post_train")
    ]
    assert [n for n in weights_of(project, "pretrain", folder) if "parametrizations" in n]
    model = weights_of(project, "model", folder)
    assert not [n for n in model if "parametrizations" in n]
    plain = build_network(
        ModelConfig(backbone="resnet8"), classes=10, channels=1, mean=[0.5], std=[0.5]
    )
    cost = json.loads(report_file(project, "metrics.json", folder=folder).read_text())["cost"]
    factors = model["scale"].numel()
    assert factors == 10
    assert cost["parameters_deployed"] == parameter_count(plain) + factors
    finished = json.loads(report_file(project, "finish_report.json", folder=folder).read_text())
    assert finished["largest_score_change"] < 1e-4


# ---- studies


def study(**arms):
    arguments = smoke({"seeds": 1, "arms": arms})
    arguments["evaluation"]["ood"] = False
    return arguments


WITHOUT = sets((0, 0, 0, 0))
SMALL = {"references": False, "interpolate": 0, "branches": {"sets": 2}}


def alone(arguments, label, folder):
    """The metrics of an arm that is the only one."""
    experiment = Experiment(Plan.of("s", arguments).experiments[label], toy_card())
    return run_experiment(experiment, WITHOUT, folder, Store(folder / label))


def test_arms_that_share_their_first_stages_train_them_once(tmp_path, monkeypatch):
    arguments = study(
        **{
            "average": {"method": "btm", "options": SMALL},
            "greedy": {"method": "btm", "options": {**SMALL, "merge": {"strategy": "greedy"}}},
            "three": {"method": "btm", "options": {**SMALL, "branches": {"sets": 3}}},
            "other": {"method": "btm", "options": {**SMALL, "branches": {"images": 3, "sets": 2}}},
            "MiSLAS": {"method": "mislas"},
            "long": {"method": "mislas", "training": {"learning_rate": 0.05}},
        }
    )
    trained = []
    once = module.fit

    def fit(method, stage, *rest, **named):
        trained.append(stage.name)
        return once(method, stage, *rest, **named)

    monkeypatch.setattr(module, "fit", fit)
    result = run_study("s", arguments, toy_card(), WITHOUT, tmp_path, tmp_path / "one")
    table = result.set_index("arm")
    assert list(table.index) == ["MiSLAS", "average", "greedy", "long", "other", "three"]
    assert trained == [
        *("pretrain", "classifier"),
        *("branch_0", "branch_1", "post_train"),
        "post_train",
        *("pretrain", "classifier"),
        *("branch_0", "branch_1", "post_train"),
        *("branch_2", "post_train"),
    ]
    shared = {path.stem.split("-")[1] for path in (tmp_path / "one" / "shared").iterdir()}
    assert shared == {"pretrain", *BRANCHES}
    # what is shared changes nothing: each arm by itself
    for label in ("greedy", "three", "other", "MiSLAS"):
        own = alone(arguments, label, tmp_path / "alone")
        kept = {n: v for n, v in own.items() if "second" not in n and "memory" not in n}
        assert len(kept) > 10
        assert {n: table.loc[label, n] for n in kept} == pytest.approx(kept, abs=0, rel=0)
        assert table.loc[label, "cost/training_seconds"] > 0


def test_a_first_stage_is_not_taken_from_where_it_stands_deeper(tmp_path):
    # below MiSLAS and below GML on MiSLAS it is the same training of the same network
    on_mislas = {"method": "gml", "options": {"pretrain": "mislas"}}
    arguments = study(**{"MiSLAS": {"method": "mislas"}, "GML on MiSLAS": on_mislas})
    result = run_study("s", arguments, toy_card(), WITHOUT, tmp_path, tmp_path / "one")
    own = alone(arguments, "GML on MiSLAS", tmp_path / "alone")
    shown = result.set_index("arm").loc["GML on MiSLAS", "test/accuracy"]
    assert shown == own["test/accuracy"]
