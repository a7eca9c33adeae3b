from __future__ import annotations

import json
import shutil
import subprocess

import mlflow
import pytest
import yaml
from click.testing import CliRunner
from mlflow import MlflowClient

from lt_pipeline.tracking import lineage as traced
from lt_pipeline.tracking.lineage import lines, main, of_run, trace
from lt_pipeline.versioning.git import blob_id, hashes
from toys import PROJECT

GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@b")
COMMIT = "mlflow.source.git.commit"
DATA = "d" * 64


def git(folder, *words):
    done = subprocess.run([*GIT, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with the runs of data_prep and ce, and the dvc.lock that came of them."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(PROJECT / "conf" / "base", folder / "conf" / "base")
    (folder / "conf" / "local").mkdir()
    data, models = folder / "data" / "03_primary", folder / "data" / "06_models" / "ce"
    for path in (data, models):
        path.mkdir(parents=True)
    (data / "data_card.json").write_text(json.dumps({"data_hash": DATA}))
    (data / "train.safetensors").write_text("images")
    model, table = models / "model.safetensors", models / "table.csv"
    model.write_text("weights")
    table.write_text("table")
    locked = {"path": "data/06_models/ce/model.safetensors", "md5": hashes(model)["md5"]}
    stages = {"data_prep": {"cmd": "x"}, "ce": {"cmd": "x", "outs": [locked]}}
    (folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    git(folder, "init", "-q")
    git(folder, "add", "conf", "dvc.lock")
    git(folder, "commit", "-qm", "x")
    return folder


@pytest.fixture(scope="module")
def runs(project, empty_database):
    """The ids of the runs by name."""
    uri = f"sqlite:///{shutil.copy(empty_database, project / 'mlflow.db')}"
    mlflow.set_tracking_uri(uri)
    client = MlflowClient(uri)
    experiment = client.create_experiment("digits", artifact_location=str(project / "artifacts"))
    model = project / "data" / "06_models" / "ce" / "model.safetensors"
    tags = {
        "data_prep": {"data_hash": DATA, "data_made": "True"},
        "ce": {
            "data_hash": DATA,
            "model_hash": hashes(model)["sha256"],
            "model_md5": hashes(model)["md5"],
            "dvc_lock": blob_id(project / "dvc.lock"),
            "dvc_stage": "ce",
            COMMIT: git(project, "rev-parse", "HEAD"),
            "git_dirty": "False",
            "command": "kedro run --pipelines ce --namespaces ce",
        },
    }
    ids = {}
    for name, own in tags.items():
        run = client.create_run(experiment, tags={**own, "mlflow.runName": name})
        ids[name] = run.info.run_id
        client.set_terminated(run.info.run_id)
    files = [model, model.with_name("table.csv"), model.with_name("gone")]
    model.with_name("gone").write_text("gone")
    logged = {path.relative_to(project).as_posix(): hashes(path) for path in files}
    model.with_name("gone").unlink()
    client.log_dict(ids["ce"], logged, "outputs.json")
    images = project / "data" / "03_primary" / "train.safetensors"
    logged = {images.relative_to(project).as_posix(): hashes(images)}
    client.log_dict(ids["data_prep"], logged, "outputs.json")
    client.log_dict(ids["ce"], {"method": "ce"}, "config.json")
    client.create_registered_model("ce-digits")
    source = f"runs:/{ids['ce']}/model"
    client.create_model_version("ce-digits", source, run_id=ids["ce"])
    client.set_registered_model_alias("ce-digits", "champion", "1")
    yield ids
    mlflow.set_tracking_uri(None)


@pytest.fixture(autouse=True)
def in_the_project(project, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(project)


def found_runs(facts):
    return [run["run"] for run in facts["runs"]]


def test_a_run_leads_to_all_that_made_it_and_that_it_made(project, runs):
    facts = trace(runs["ce"], project)
    assert facts["commit"] == git(project, "rev-parse", "HEAD")
    assert facts["uncommitted changes"] == "no"
    assert facts["command"] == "kedro run --pipelines ce --namespaces ce"
    assert facts["parameters"]["resolved"] == f"runs:/{runs['ce']}/config.json"
    assert facts["data"] == {"hash": DATA, "made by": [runs["data_prep"]]}
    lock = facts["dvc"]["dvc.lock at its start"]
    assert lock.startswith(blob_id(project / "dvc.lock"))
    assert "as it is now" in lock
    assert f"git show {blob_id(project / 'dvc.lock')}" in lock
    assert facts["dvc"]["commits of dvc.lock with its model"] == [
        git(project, "rev-parse", "--short", "HEAD")
    ]
    assert facts["dvc"]["stages with its model now"] == ["ce"]
    assert facts["model"]["registered"] == ["models:/ce-digits/1"]
    states = {name: line.split("  ")[1] for name, line in facts["outputs"].items()}
    assert states == {
        "data/06_models/ce/model.safetensors": "there",
        "data/06_models/ce/table.csv": "there",
        "data/06_models/ce/gone": "no longer there",
    }


def test_a_file_that_is_another_one_now_is_said(project, runs):
    table = project / "data" / "06_models" / "ce" / "table.csv"
    table.write_text("changed")
    try:
        facts = trace(runs["ce"], project)
        assert "another one is there now" in facts["outputs"]["data/06_models/ce/table.csv"]
        with pytest.raises(ValueError, match="made elsewhere or changed since"):
            trace(str(table), project)
    finally:
        table.write_text("table")


def test_the_data_of_a_run_that_made_it_is_its_own(project, runs):
    assert trace(runs["data_prep"], project)["data"] == {"hash": DATA, "made by": "this run"}


@pytest.mark.parametrize("model", ["ce-digits/1", "models:/ce-digits/1", "ce-digits@champion"])
def test_a_registered_model_is_its_run(project, runs, model):
    assert trace(model, project)["run"] == runs["ce"]


def test_every_hash_leads_back_to_the_runs(project, runs):
    model = project / "data" / "06_models" / "ce" / "model.safetensors"
    for value in (
        *hashes(model).values(),
        hashes(model)["sha256"][:8],
        blob_id(project / "dvc.lock"),
        git(project, "rev-parse", "HEAD"),
        git(project, "rev-parse", "--short", "HEAD").upper(),
    ):
        assert found_runs(trace(value, project)) == [runs["ce"]], value
    facts = trace(DATA, project)
    assert {run["name"]: run["data"] for run in facts["runs"]} == {
        "data_prep": "made",
        "ce": "used",
    }


def test_files_and_stages_lead_back_to_the_runs(project, runs):
    models, data = project / "data" / "06_models" / "ce", "data/03_primary"
    assert found_runs(trace(str(models / "model.safetensors"), project)) == [runs["ce"]]
    assert found_runs(trace("data/06_models/ce/table.csv", project)) == [runs["ce"]]
    assert found_runs(trace("ce", project)) == [runs["ce"]]
    for name in ("train.safetensors", "data_card.json"):
        both = found_runs(trace(f"{data}/{name}", project))
        assert set(both) == set(runs.values())
    by_stage = trace("dvc.lock", project)["models by"]
    assert by_stage == {"data_prep": [], "ce": [f"{runs['ce']}  ce"]}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("hello", "'hello' is no file here, no stage of dvc.lock and no hash"),
        ("abc", "at least 6 digits"),
        ("0" * 32, "nothing in sqlite:"),
        ("no-such/3", "there is no model no-such/3 in .*: registered are ce-digits"),
        ("ce-digits/9", "there is no model ce-digits/9"),
        ("ce-digits@gone", "there is no model ce-digits@gone"),
        ("conf/base/catalog.yml", "made conf/base/catalog.yml as it is"),
    ],
)
def test_what_is_not_known_is_one_line(project, runs, monkeypatch, what, message):
    with pytest.raises(ValueError, match=message) as error:
        trace(what, project)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(traced, "trace", lambda what: trace(what, project))
    done = CliRunner().invoke(main, [what])
    assert done.exit_code == 1
    assert done.output.startswith("Error: ")
    assert len(done.output.splitlines()) == 1


def test_a_server_that_is_not_there_is_one_line(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="http://127.0.0.1:9 cannot be reached"):
        trace("abcdef", project)


def test_the_command_prints_text_or_json(project, runs, monkeypatch):
    monkeypatch.setattr(traced, "trace", lambda what: trace(what, project))
    text = CliRunner().invoke(main, [runs["ce"]]).output
    assert "command              kedro run --pipelines ce --namespaces ce\n" in text
    assert "None" not in text
    facts = json.loads(CliRunner().invoke(main, [runs["ce"], "--json"]).output)
    assert facts == trace(runs["ce"], project)


@pytest.fixture
def small_pages(monkeypatch):
    """Have MLflow give two runs at once, as it gives a thousand."""
    search = MlflowClient.search_runs

    def two(self, *words, **options):
        return search(self, *words, **{**options, "max_results": 2})

    monkeypatch.setattr(MlflowClient, "search_runs", two)


@pytest.fixture
def sweep(project, runs):
    """Trials after all other runs, which inherited what their data are."""
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits").experiment_id
    tags = {"data_hash": DATA, "mlflow.parentRunId": runs["ce"]}
    trials = [
        client.create_run(experiment, tags={**tags, "trial": str(n)}).info.run_id for n in range(5)
    ]
    yield trials
    for run in trials:
        client.delete_run(run)


def test_what_made_something_is_found_behind_many_trials(project, runs, small_pages, sweep):
    assert trace(runs["ce"], project)["data"]["made by"] == [runs["data_prep"]]
    assert found_runs(trace("data/06_models/ce/table.csv", project)) == [runs["ce"]]
    shown = found_runs(trace(DATA, project))
    assert shown[0] == runs["data_prep"], "or it would not be among those that are shown"
    assert set(shown) == {*runs.values(), *sweep}


def test_trials_are_not_asked_for_files(project, runs, sweep, monkeypatch):
    asked, logged = [], traced._logged
    monkeypatch.setattr(
        traced, "_logged", lambda client, run: asked.append(run.info.run_id) or logged(client, run)
    )
    trace("data/06_models/ce/table.csv", project)
    assert set(asked) == set(runs.values())


def test_changed_data_come_from_no_run(project, runs):
    images = project / "data" / "03_primary" / "train.safetensors"
    images.write_text("changed")
    try:
        with pytest.raises(ValueError, match="made elsewhere or changed since"):
            trace(str(images), project)
    finally:
        images.write_text("images")


def test_a_password_in_a_command_of_old_is_not_shown(project, runs):
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits").experiment_id
    old = "kedro run --params=tune.storage=postgresql://h/d?user=me&password=secret"
    run = client.create_run(experiment, tags={"command": old, COMMIT: "1234567"})
    try:
        facts = [trace(run.info.run_id, project), trace("1234567", project)]
    finally:
        client.delete_run(run.info.run_id)
    assert "secret" not in str(facts)
    assert facts[0]["command"] == facts[1]["runs"][0]["command"] == old.replace("secret", "***")


@pytest.mark.parametrize("content", ["{}", '{"data_hash": "abcdef"}', "{"])
def test_a_data_card_of_no_run_is_one_line(project, runs, tmp_path, content):
    (tmp_path / "data_card.json").write_text(content)
    with pytest.raises(ValueError, match=r"\A.+\Z"):
        trace(str(tmp_path / "data_card.json"), project)


def test_long_lists_of_runs_are_cut_with_their_number():
    many = {"runs": [{"run": str(n)} for n in range(traced.SHOWN_RUNS + 3)]}
    assert list(lines(many))[-1].strip() == "and 3 more"


def test_a_run_without_these_tags_is_still_described(project, runs):
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    run = client.create_run(experiment.experiment_id)
    try:
        facts = of_run(client, run, project)
        assert facts["commit"] == facts["data"]["hash"] == facts["data"]["made by"] == "unknown"
        assert facts["outputs"] == {}
        assert "outputs" not in "\n".join(lines(facts))
    finally:
        client.delete_run(run.info.run_id)
