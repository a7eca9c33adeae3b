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

OF_MORE = "seed=1,data.validation=0.2"
EVALUATE = ("--pipelines=evaluate", "--env=smoke")
# what is known of the training only
OF_TRAINING = ("cost/", "train/", "best_epoch/", "diagnostics/", "validation/loss")


@pytest.fixture(scope="module")
def once_trained(tmp_path_factory, empty_database):
    """A project with trained models, and their runs' ids.

    ce, more with another seed and a hold-out, and ce as a stage of DVC's trains it: the nodes of
    the data are another run's.
    """
    folder = tmp_path_factory.mktemp("trained") / "project"
    folder.mkdir()
    project = copy_project(folder, empty_database)
    project.kedro("--pipelines=ce", "--env=smoke", "--params=tracking.register=true")
    project.kedro("--pipelines=more", "--env=smoke", f"--params={OF_MORE}")
    short = "--params=training.epochs=1"
    project.kedro("--pipelines=ce", "--namespaces=ce", "--env=smoke", short)
    stage, more, ce = (run.info.run_id for run in runs(project))
    return project, {"ce": ce, "more": more, "stage": stage}


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


def evaluation_of(project, run_id):
    """Return the evaluation of a run that there is, else make it."""
    there = (run for run in runs(project) if run.data.tags.get("evaluated_run") == run_id)
    return next(there, None) or evaluate(project, run_id)[0]


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


def tables(project):
    """Return what the methods' own runs wrote."""
    return {path: path.read_bytes() for path in project.file("08_reporting").glob("*/[cm]*/*.json")}


def judged(run):
    return {k: v for k, v in run.data.metrics.items() if not k.startswith(OF_TRAINING)}


@pytest.mark.parametrize(
    ("address", "name"),
    [
        # tests/tracking/test_models.py has every kind of address
        ("models:/ce-digits-lt-ir10@newest", "ce"),
        ("more", "more"),
        ("{stage}", "stage"),
    ],
)
def test_by_each_address_its_numbers_are_the_runs_own_to_the_digit(trained, address, name):
    project, ids = trained
    before, written = state(ids[name]), tables(project)
    compared = {run.info.run_id for run in finished_runs(before[0]["info"]["experiment_id"])}
    evaluated, output = evaluate(project, address.format(**ids))
    parent = mlflow.get_run(ids[name])
    assert parent.data.params["data.max_per_class"] == "60"
    assert evaluated.data.metrics == judged(parent)
    assert ("validation/mean_recall" in evaluated.data.metrics) == (name == "more")
    assert (state(ids[name]), tables(project)) == (before, written), "it stays as it is"
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


def test_a_part_of_it_goes_on_with_what_the_whole_of_the_same_run_left(trained):
    project, ids = trained
    evaluation_of(project, ids["stage"])
    words = (*EVALUATE, "--nodes=evaluate.ood")
    evaluated, _ = evaluate(project, ids["stage"], *words, params=["evaluation.detectors=gen"])
    assert {name.split("/")[1] for name in evaluated.data.metrics} >= {"gen"}
    # the files of this one would be in the same place
    code, output = project.run("kedro", "run", *words, f"--params=evaluate.model={ids['ce']}")
    assert code == 1
    assert "Traceback" not in output
    line = output.splitlines()[-1]
    assert "evaluate/weights.safetensors is of other parameters or other data than" in line
    assert "run evaluate.take first" in line


def test_its_files_are_beside_the_runs_own_and_lead_to_it(trained):
    project, ids = trained
    run = evaluation_of(project, ids["more"])
    folder = project.file("08_reporting", own(OF_MORE))
    own_metrics = json.loads((folder / "more/metrics.json").read_text())
    metrics = json.loads((folder / "evaluate/metrics.json").read_text())
    assert metrics["test"] == own_metrics["test"]
    assert not {"cost", "best_epoch", "notes", "diagnostics"} & metrics.keys()
    for kind in ("figures", "geometry", "ood"):
        assert list((folder / "evaluate" / kind).glob("*.png"))
    facts = of_run(mlflow.MlflowClient(), run, project.folder)
    assert facts["evaluation of"] == ids["more"]
    assert facts["parameters"]["resolved"] == f"runs:/{run.info.run_id}/config.json"
    assert facts["command"].rpartition("--params=evaluate.model=")[2] in ("more", ids["more"])
    assert any(name.endswith("evaluate/metrics.json") for name in facts["outputs"])


def test_other_detectors_and_parameters_of_the_evaluation_count(trained):
    project, ids = trained
    given = ["evaluation.detectors=max_logit", "evaluation.ood=uniform_noise"]
    given += ["evaluation.calibration_bins=3", "evaluation.embedding=2"]
    evaluated, _ = evaluate(project, ids["ce"], params=given)
    parent = judged(mlflow.get_run(ids["ce"]))

    def of_images(metrics):
        """But what the bins make, too."""
        return {k: v for k, v in metrics.items() if "ood" not in k and "calibration" not in k}

    assert len(of_images(parent)) > 10
    assert of_images(evaluated.data.metrics) == of_images(parent)
    # the error itself may be the same, where confidence is on one side of accuracy in every bin
    bins = json.loads(project.file("08_reporting/smoke/evaluate/reliability.json").read_text())
    assert {*bins["width"]} == {1 / 3}
    own_ood = {k for k in evaluated.data.metrics if k.startswith("ood/max_logit/")}
    assert "ood/max_logit/uniform_noise/auroc" in own_ood
    assert not own_ood & parent.keys()
    assert not any(k.startswith(("ood/odin/", "ood/msp/")) for k in evaluated.data.metrics)
    assert "ood/max_logit/permuted_pixels/auroc" not in own_ood
    assert project.file("08_reporting/smoke/evaluate/ood/embedding.png").exists()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        # tests/hooks/test_evaluation.py and tests/tracking/test_models.py have more of them
        ("evaluate.model=models:/ce-digits-lt-ir10/9", "ce-digits-lt-ir10 has 1, @newest"),
        ("evaluate.model=runs:/{ce},seed=1", "was trained with 0: an evaluation changes"),
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
    client.set_tag(ids["ce"], "data_hash", "0" * 64)
    try:
        given = f"--params=evaluate.model={ids['ce']}"
        code, output = project.run("kedro", "run", *EVALUATE, given)
    finally:
        client.set_tag(ids["ce"], "data_hash", wanted)
    assert code == 1
    assert "Traceback" not in output
    assert f"was trained beside images of hash {'0' * 12}" in output.splitlines()[-1]
    assert runs(project)[0].info.status == "FAILED"


def test_runs_of_before_give_their_own_digits(tmp_path):
    """Their weights are in the exported network only.

    That every kind of address leads to their run: tests/tracking/test_models.py.
    """
    copied = copy_project(tmp_path, None)
    shutil.rmtree(copied.folder / "data", ignore_errors=True)
    project = Project(unpack(copied.folder))
    parent = next(run for run in runs(project) if run.info.run_id == SEED_0)
    evaluated, _ = evaluate(project, "models:/ce-digits-lt-ir10/1")
    assert evaluated.data.tags["evaluated_run"] == SEED_0
    metrics = judged(evaluated)
    assert {k: metrics[k] for k in judged(parent)} == judged(parent)
    more = {k for k in metrics.keys() - judged(parent) if not k.startswith("Summary/")}
    assert more == {"test/classes", "test/mean_recall_low", "test/mean_recall_high"}
    assert metrics["test/accuracy"] == pytest.approx(0.344)
