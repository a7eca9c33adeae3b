"""A model of an earlier run, judged anew: as a person would, from a shell."""

from __future__ import annotations

import json
import shutil

import mlflow
import pytest
from pipeline_projects import Project, copy_project, own

from before import SEED_0, unpack
from lt_pipeline.tracking.lineage import of_run
from lt_pipeline.tracking.runs import finished_runs

pytestmark = pytest.mark.slow

EVALUATE = ("--pipelines=evaluate", "--env=smoke")
# what is known of the training only
OF_TRAINING = ("cost/", "train/", "best_epoch/", "diagnostics/", "validation/loss")


@pytest.fixture(scope="module")
def once_trained(tmp_path_factory, empty_database):
    """A project after ce with two seeds and more with a hold-out, and the runs' ids."""
    folder = tmp_path_factory.mktemp("trained") / "project"
    folder.mkdir()
    project = copy_project(folder, empty_database)
    project.kedro("--pipelines=ce", "--env=smoke", "--params=tracking.register=true")
    project.kedro("--pipelines=ce", "--env=smoke", "--params=seed=1")
    project.kedro("--pipelines=more", "--env=smoke", "--params=data.validation=0.2")
    more, seed_1, seed_0 = (run.info.run_id for run in runs(project))
    return project, {"seed 0": seed_0, "seed 1": seed_1, "more": more}


@pytest.fixture
def trained(once_trained):
    """That project, whose store of runs is the test's."""
    mlflow.set_tracking_uri(once_trained[0].tracking_uri)
    return once_trained


def runs(project):
    """Return all runs, the newest first."""
    mlflow.set_tracking_uri(project.tracking_uri)
    client = mlflow.MlflowClient()
    every = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(every, order_by=["attributes.start_time DESC"]))


def evaluate(project, model, *words, **extra):
    """Evaluate ``model``; return the run that this was and what it printed."""
    given = ",".join((f"evaluate.model={model}", *extra.pop("params", ())))
    before = {run.info.run_id for run in runs(project)}
    output = project.kedro(*(words or EVALUATE), f"--params={given}", **extra)
    (evaluated,) = [run for run in runs(project) if run.info.run_id not in before]
    return evaluated, output


def refused(project, *words):
    """Return the line that a run is refused with; it leaves no run and no file."""
    before = [run.info.run_id for run in runs(project)]
    code, output = project.run("kedro", "run", *words)
    assert code == 1, output
    assert "Traceback" not in output
    assert [run.info.run_id for run in runs(project)] == before
    return output.splitlines()[-1]


def state(run_id):
    """Return all that a run holds."""
    client = mlflow.MlflowClient()
    run, paths = client.get_run(run_id), [""]
    for path in paths:
        paths += [file.path for file in client.list_artifacts(run_id, path)]
    return run.to_dictionary(), sorted(paths)


def judged(run):
    return {k: v for k, v in run.data.metrics.items() if not k.startswith(OF_TRAINING)}


@pytest.mark.parametrize(
    ("address", "name"),
    [
        # tests/tracking/test_models.py has every kind of address
        ("{seed 1}", "seed 1"),
        ("models:/ce-digits-lt-ir10@newest", "seed 0"),
        ("more", "more"),
    ],
)
def test_by_each_address_its_numbers_are_the_runs_own_to_the_digit(trained, address, name):
    project, ids = trained
    before = state(ids[name])
    compared = {run.info.run_id for run in finished_runs(before[0]["info"]["experiment_id"])}
    evaluated, output = evaluate(project, address.format(**ids))
    parent = mlflow.get_run(ids[name])
    assert evaluated.data.metrics == judged(parent)
    assert ("validation/mean_recall" in evaluated.data.metrics) == (name == "more")
    assert state(ids[name]) == before, "what is finished stays as it is"
    tags, method = evaluated.data.tags, parent.data.tags["method"]
    assert tags["mlflow.parentRunId"] == tags["evaluated_run"] == ids[name]
    for tag in ("method", "data", "data_hash", "seed"):
        assert tags[tag] == parent.data.tags[tag]
    assert evaluated.info.run_name == f"evaluate {parent.info.run_name}"
    assert (evaluated.info.status, evaluated.info.experiment_id) == (
        "FINISHED",
        parent.info.experiment_id,
    )
    assert evaluated.data.params["evaluate.model"] == f"runs:/{ids[name]}"
    same = {"data.seed", "training.epochs", "evaluation.detectors", "model.backbone"}
    assert {k: evaluated.data.params[k] for k in same} == {k: parent.data.params[k] for k in same}
    assert f"{method} of run {ids[name][:8]} " in output
    kept = {path for path in before[1] if path.endswith((".json", ".csv"))}
    assert kept - set(state(evaluated.info.run_id)[1]) == {"finish_report.json"}
    after = {run.info.run_id for run in finished_runs(parent.info.experiment_id)}
    assert after == compared, "an evaluation is not compared"


def test_with_other_detectors_only_ood_differs(trained):
    project, ids = trained
    evaluated, _ = evaluate(project, ids["seed 0"], params=["evaluation.detectors=max_logit"])
    parent = judged(mlflow.get_run(ids["seed 0"]))

    def without(metrics):
        return {k: v for k, v in metrics.items() if "ood" not in k}

    assert without(evaluated.data.metrics) == without(parent)
    own_ood = {k for k in evaluated.data.metrics if k.startswith("ood/max_logit/")}
    assert own_ood
    assert not own_ood & parent.keys()
    assert not any(k.startswith(("ood/odin/", "ood/msp/")) for k in evaluated.data.metrics)


def test_other_parameters_of_the_evaluation_count(trained):
    project, ids = trained
    given = ["evaluation.calibration_bins=3", "evaluation.ood=uniform_noise"]
    evaluated, _ = evaluate(project, ids["seed 0"], params=[*given, "evaluation.embedding=2"])
    parent = judged(mlflow.get_run(ids["seed 0"]))
    assert evaluated.data.metrics["test/accuracy"] == parent["test/accuracy"]
    # the error itself may be the same, where confidence is on one side of accuracy in every bin
    bins = json.loads(project.file("08_reporting/smoke/evaluate/reliability.json").read_text())
    assert {*bins["width"]} == {1 / 3}
    assert "ood/odin/uniform_noise/auroc" in evaluated.data.metrics
    assert "ood/odin/permuted_pixels/auroc" not in evaluated.data.metrics
    assert project.file("08_reporting/smoke/evaluate/ood/embedding.png").exists()


def test_files_are_beside_the_runs_own_which_stay_and_lead_to_it(trained):
    project, ids = trained
    folder = project.file("08_reporting", own("seed=1"))
    before = (folder / "ce/metrics.json").read_bytes()
    run, _ = evaluate(project, ids["seed 1"])
    assert (folder / "ce/metrics.json").read_bytes() == before
    metrics = json.loads((folder / "evaluate/metrics.json").read_text())
    assert metrics["test"] == json.loads(before)["test"]
    assert not {"cost", "best_epoch", "notes", "diagnostics"} & metrics.keys()
    for kind in ("figures", "geometry", "ood"):
        assert list((folder / "evaluate" / kind).glob("*.png"))
    facts = of_run(mlflow.MlflowClient(), run, project.folder)
    assert facts["evaluation of"] == ids["seed 1"]
    assert facts["parameters"]["resolved"] == f"runs:/{run.info.run_id}/config.json"
    assert facts["command"].endswith(f"--params=evaluate.model={ids['seed 1']}")
    assert any(name.endswith("evaluate/metrics.json") for name in facts["outputs"])


def test_a_part_of_it_goes_on_with_what_the_whole_left(trained):
    project, ids = trained
    evaluate(project, ids["seed 0"])
    words = (*EVALUATE, "--nodes=evaluate.ood")
    evaluated, _ = evaluate(project, ids["seed 0"], *words, params=["evaluation.detectors=gen"])
    assert {name.split("/")[1] for name in evaluated.data.metrics} >= {"gen"}
    project.kedro("--pipelines=ce", "--env=smoke", "--params=training.epochs=1")
    other = runs(project)[0].info.run_id
    code, output = project.run("kedro", "run", *words, f"--params=evaluate.model={other}")
    assert code == 1
    assert "Traceback" not in output
    line = output.splitlines()[-1]
    assert "evaluate/weights.safetensors is of other parameters or other data than" in line
    assert "run evaluate.take first" in line


def test_what_was_trained_on_prepared_data_is_evaluated_on_them(trained):
    """As DVC's stages run: the nodes of the data are another run's."""
    project, _ = trained
    project.kedro("--pipelines=ce", "--namespaces=ce", "--env=smoke", "--params=seed=2")
    parent = runs(project)[0]
    assert parent.data.params["data.max_per_class"] == "60"
    evaluated, _ = evaluate(project, "ce", "--pipelines=evaluate", "--env=smoke")
    assert evaluated.data.tags["evaluated_run"] == parent.info.run_id
    assert evaluated.data.metrics == judged(parent)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("seed=1", "evaluate.model is null"),
        ("evaluate.model=cee", "unknown method 'cee': did you mean 'ce'?"),
        ("evaluate.model=models:/ce-digits-lt-ir10/9", "ce-digits-lt-ir10 has 1, @newest"),
        ("evaluate.model=runs:/{seed 0},seed=1", "was trained with 0: an evaluation changes"),
        ("evaluate.model=ce,device=cuda:99", "device 'cuda:99' cannot be used here"),
        ("evaluate.model=ce,evaluation.ood=svhn", "evaluation.ood: svhn is not there"),
        (
            "evaluate.model=ce,evaluation.detectors=vim,evaluation.detector.vim_dimensions=999",
            "vim",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_opened(trained, params, message):
    project, ids = trained
    line = refused(project, *EVALUATE, f"--params={params.format(**ids)}")
    assert line.startswith("Error: ")
    assert message in line


def test_two_subjects_are_refused(trained):
    project, _ = trained
    line = refused(
        project, "--pipelines=evaluate,compare", "--env=smoke", "--params=evaluate.model=ce"
    )
    assert "compare and evaluate one after the other" in line


def test_other_images_than_those_of_the_run_are_one_line(trained):
    project, ids = trained
    client, wanted = mlflow.MlflowClient(), runs(project)[-1].data.tags["data_hash"]
    client.set_tag(ids["seed 0"], "data_hash", "0" * 64)
    try:
        given = f"--params=evaluate.model={ids['seed 0']}"
        code, output = project.run("kedro", "run", *EVALUATE, given)
    finally:
        client.set_tag(ids["seed 0"], "data_hash", wanted)
    assert code == 1
    assert "Traceback" not in output
    assert f"was trained beside images of hash {'0' * 12}" in output.splitlines()[-1]
    assert runs(project)[0].info.status == "FAILED"


def test_runs_of_before_give_their_own_digits(tmp_path):
    """Their weights are in the exported network only."""
    copied = copy_project(tmp_path, None)
    shutil.rmtree(copied.folder / "data", ignore_errors=True)
    project = Project(unpack(copied.folder))
    parent = next(run for run in runs(project) if run.info.run_id == SEED_0)
    for address in ("models:/ce-digits-lt-ir10/1", SEED_0):
        evaluated, _ = evaluate(project, address)
        assert evaluated.data.tags["evaluated_run"] == SEED_0
        metrics = judged(evaluated)
        assert {k: metrics[k] for k in judged(parent)} == judged(parent)
        more = {k for k in metrics.keys() - judged(parent) if not k.startswith("Summary/")}
        assert more == {"test/classes", "test/mean_recall_low", "test/mean_recall_high"}
        assert metrics["test/accuracy"] == pytest.approx(0.344)
