"""DVC over the Kedro pipelines, with real `dvc` and `kedro` processes in a copy of the project."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from pipeline_projects import PROJECT, Project, copy_project

import warm
from lt_pipeline import learning
from lt_pipeline.learning import methods
from lt_pipeline.tracking.lineage import trace
from lt_pipeline.versioning.git import blob_id, hashes
from lt_pipeline.versioning.stages import main, render

STAGES = ("check", "data_prep", "ce", "focal", "compare")
SMALL = {
    "epochs: 60": "epochs: 2",
    "warmup_epochs: 5": "warmup_epochs: 1",
    "max_per_class: null": "max_per_class: 60",
    "imbalance_ratio: 20": "imbalance_ratio: 10",
    "ood: [gaussian_noise, uniform_noise, permuted_pixels]": "ood: [uniform_noise]",
}
PARAMETERS = "conf/base/parameters.yml"
ROOMS = ("io/datasets.py", "learning/engine", "learning/schema.py", "pipelines/method", "serving")
CODE = "data/02_checked/digits/code.txt"
# only docstrings and names are in them
AROUND = {
    f"src/lt_pipeline/{name}__init__.py" for name in ("", "learning/", "learning/methods/families/")
}
# of many branches, of every method
LONG = ("btm", "check", "compare")
FOCAL = "conf/base/parameters_focal.yml"


@pytest.fixture(scope="module")
def committed():
    """dvc.yaml as it is in the project, read."""
    return yaml.safe_load((PROJECT / "dvc.yaml").read_text())


def change(project: Project, file: str, replaced: dict[str, str]) -> None:
    path = project.folder / file
    text = path.read_text()
    for old, new in replaced.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text)


def git(project: Project, *words: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
    done = subprocess.run(command, cwd=project.folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def dvc(project: Project, *words: str) -> str:
    who = {
        f"GIT_{role}_{what}": "a" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    code, output = project.run("dvc", *words, **who)
    assert code == 0, output
    return output


def ran(output: str) -> set[str]:
    return {stage for stage in STAGES if f"Running stage '{stage}'" in output}


def changed(project: Project) -> set[str]:
    """The stages whose code or parameters DVC sees changed."""
    status = json.loads(dvc(project, "status", "--json"))
    return {name for name, what in status.items() if "deps" in json.dumps(what)} & {*STAGES}


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory, empty_database):
    """A small project of two methods after its first `dvc repro`, committed; and what that said."""
    project = copy_project(tmp_path_factory.mktemp("dvc"), empty_database)
    shutil.copy(PROJECT / ".gitignore", project.folder)
    change(project, PARAMETERS, SMALL)
    git(project, "init", "-q")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "project")
    code, output = project.run(
        *(sys.executable, "-m", "lt_pipeline.versioning.stages", "--methods", "ce,focal")
    )
    assert code == 0, output
    git(project, "commit", "-qam", "stages")
    output = dvc(project, "repro")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "reproduced")
    return project, output


@pytest.fixture
def project(reproduced):
    """That project, as it was after its first `dvc repro`."""
    project, _ = reproduced
    yield project
    git(project, "checkout", "-q", ".")
    git(project, "clean", "-qfd")
    dvc(project, "checkout", "-q", "--force")


def test_dvc_yaml_is_what_the_kedro_pipelines_say(committed):
    text = (PROJECT / "dvc.yaml").read_text()
    assert text == render(), "run `python -m lt_pipeline.versioning.stages` and commit dvc.yaml"
    assert committed["stages"].keys() == {"check", "data_prep", *methods.available(), "compare"}


def test_a_stage_reads_its_own_parameters_and_those_of_the_methods_below(committed):
    stages = committed["stages"]

    def files(stage):
        return {name for entry in stages[stage]["params"] for name in entry}

    assert files("ce") == {PARAMETERS, "conf/base/parameters_ce.yml"}
    assert files("ncm") == {
        PARAMETERS,
        "conf/base/parameters_ce.yml",
        "conf/base/parameters_ncm.yml",
    }
    assert stages["data_prep"]["params"] == [{PARAMETERS: ["data"]}]
    assert files("check") == {file for stage in stages for file in files(stage)}
    for name, stage in stages.items():
        read = [p for entry in stage["params"] for p in entry.get(PARAMETERS, [])]
        assert "device" not in read
        assert ("data" in read) == (name in ("check", "data_prep"))


def test_a_stage_rests_on_its_own_method_and_not_on_others(committed):
    stages = committed["stages"]
    own = {name: f"src/lt_pipeline/learning/methods/{name}.py" for name in methods.available()}
    for name in methods.available():
        deps = set(stages[name]["deps"])
        assert own[name] in deps
        assert {CODE, "data/03_primary/digits"} < deps
    # of every method, and what a served model has a copy of
    assert {f"src/lt_pipeline/{room}" for room in ROOMS} <= {*stages["check"]["deps"]}
    assert CODE in stages["check"]["outs"]
    assert not set(own.values()) & set(stages["check"]["deps"])
    assert set(own.values()) & set(stages["ce"]["deps"]) == {own["ce"]}
    assert own["ce"] in stages["ncm"]["deps"]
    assert not set(own.values()) & set(stages["data_prep"]["deps"])
    for stage in stages.values():
        # a folder around rooms would have every method in it
        deps = {Path(dep) for dep in stage.get("deps", []) if dep.startswith("src")}
        assert not {Path("src/lt_pipeline"), Path("src/lt_pipeline/learning")} & deps
        assert all((PROJECT / dep).exists() for dep in deps)


@pytest.mark.parametrize("name", ["btm", "darl", "ncm", "energy_oe"])
def test_no_code_that_python_really_imports_is_missing(committed, name):
    program = (
        "import sys\nbefore = {*sys.modules}\n"
        f"import lt_pipeline.learning.methods.{name}, lt_pipeline.learning.evaluation.detectors\n"
        "ours = {n: sys.modules[n] for n in sys.modules.keys() - before if 'lt_pipeline' in n}\n"
        "print(*(m.__file__ for m in ours.values()))"
    )
    sources = Path(learning.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(sources)}
    output, _ = warm.Process([sys.executable, "-c", program], PROJECT, environment).communicate()
    files = {Path(file).relative_to(sources.parent) for file in output.split()}
    deps = [*committed["stages"][name]["deps"], *committed["stages"]["check"]["deps"]]
    inside = {f for f in files for dep in deps if f.is_relative_to(dep)}
    assert len(inside) > 20
    assert {f.as_posix() for f in files - inside} <= AROUND


def test_a_stage_fits_a_screen():
    text = (PROJECT / "dvc.yaml").read_text()
    stages = re.split(r"^  (?=\w+:$)", text, flags=re.MULTILINE)[1:]
    longest = {stage.partition(":")[0]: stage.count("\n") for stage in stages}
    assert max(length for name, length in longest.items() if name not in LONG) <= 44
    assert len(text) < 65_000


def test_in_the_folder_of_the_data_is_only_what_data_prep_makes(committed):
    folder = "data/03_primary/digits"
    stage = committed["stages"]["data_prep"]
    made = [*stage["outs"], *(o if isinstance(o, str) else next(iter(o)) for o in stage["plots"])]
    for line in (PROJECT / "conf/base/catalog.yml").read_text().splitlines():
        _, below, name = line.partition("03_primary/${_prepared}")
        assert not below or f"{folder}{name}" in made, line


def test_the_comparison_waits_for_every_method(committed):
    deps = committed["stages"]["compare"]["deps"]
    for name in methods.available():
        assert f"data/08_reporting/digits/{name}/metrics.json" in deps


def test_stages_of_another_data_set_have_its_paths_and_parameters():
    stages = yaml.safe_load(render("cifar10_lt_btm", ["btm", "ce"]))["stages"]
    assert stages.keys() == {"check", "data_prep", "btm", "ce", "compare"}
    assert stages["check"]["cmd"].endswith("/cifar10_lt_btm --env cifar10_lt_btm --methods btm,ce")
    assert stages["ce"]["cmd"] == "kedro run --pipelines ce --namespaces ce --env cifar10_lt_btm"
    assert stages["ce"]["wdir"] == "../.."
    assert "data/06_models/cifar10_lt_btm/ce/model.safetensors" in stages["ce"]["outs"]
    shared = "conf/base/globals.yml"
    params = {file: names for entry in stages["btm"]["params"] for file, names in entry.items()}
    assert params["conf/cifar10_lt_btm/parameters.yml"] == ["btm"]
    assert params["conf/cifar10_lt_btm/globals.yml"] == ["uses"]
    assert {"recipes.cifar.training", "recipes.cifar10.btm", "recipes.btm.training"} < {
        *params[shared]
    }
    said = yaml.safe_load((PROJECT / shared).read_text())
    for name in params[shared]:
        _, recipe, block = name.split(".")
        assert isinstance(said["recipes"][recipe][block], dict), "as it is, not ${...}"
    assert {shared: ["recipes.cifar.data", "recipes.cifar10.data"]} in stages["data_prep"]["params"]
    # the stages of a method follow from the environment's parameters
    few = yaml.safe_load(render("smoke", ["btm"]))["stages"]["btm"]["outs"]
    assert sum("/branch_" in out and "model" in out for out in few) == 3


@pytest.mark.slow
def test_a_recipe_that_changes_changes_what_its_environments_train(tmp_path):
    project = copy_project(tmp_path, None)
    (project.folder / "dvc.yaml").unlink()  # each command would read all of it
    git(project, "init", "-q")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "project")
    written = "conf/cifar10_lt/dvc.yaml"
    command = (sys.executable, "-m", "lt_pipeline.versioning.stages")
    code, output = project.run(*command, "--env", "cifar10_lt", "--methods", "ce")
    assert code == 0, output
    for stage in yaml.safe_load((project.folder / written).read_text())["stages"].values():
        for out in (o for kind in ("outs", "metrics", "plots") for o in stage.get(kind, [])):
            path = project.folder / (out if isinstance(out, str) else next(iter(out)))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"as if {path.name} was made")
    dvc(project, "commit", "-q", "--force", written)
    assert "up to date" in dvc(project, "status", written)

    def changed_now():
        status = json.loads(dvc(project, "status", "--json", written))
        return {name.partition(":")[2] for name in status}

    change(project, "conf/base/globals.yml", {"learning_rate: 0.3": "learning_rate: 0.2"})
    assert changed_now() == {"check", "ce"}
    change(project, "conf/base/globals.yml", {"source: cifar10}": "source: cifar10, seed: 1}"})
    assert changed_now() == {"check", "data_prep", "ce"}
    change(project, "conf/base/globals.yml", {"learning_rate: 0.2": "learning_rate: 0.3"})
    change(project, "conf/base/globals.yml", {"source: cifar10, seed: 1}": "source: cifar10}"})
    assert changed_now() == set()
    uses = {"uses: [cifar, cifar10, more]": "uses: [cifar, cifar10, dbm]"}
    change(project, "conf/cifar10_lt/globals.yml", uses)
    assert changed_now() >= {"check", "data_prep", "ce"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--env", "cifar10_l"], "unknown environment 'cifar10_l': did you mean 'cifar10_lt'?"),
        (["--methods", "mor"], "unknown method 'mor': did you mean 'more'?"),
    ],
)
def test_bad_input_of_the_command_is_one_line(words, message):
    before = (PROJECT / "dvc.yaml").read_text()
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1
    (line,) = done.output.splitlines()
    assert line.startswith(f"Error: {message}")
    assert (PROJECT / "dvc.yaml").read_text() == before


@pytest.mark.slow
def test_the_first_time_everything_runs_and_then_nothing(reproduced, project):
    _, output = reproduced
    assert ran(output) == set(STAGES)
    before = len(project.runs)
    output = dvc(project, "repro")
    assert ran(output) == set()
    assert all(f"Stage '{stage}' didn't change, skipping" in output for stage in STAGES)
    assert "up to date" in dvc(project, "status")
    assert len(project.runs) == before
    assert git(project, "status", "--porcelain") == ""


@pytest.mark.slow
def test_a_parameter_of_a_method_runs_that_method_and_the_comparison(project):
    change(project, FOCAL, {"gamma: 2.0": "gamma: 0.5"})
    assert "focal:" in dvc(project, "status")
    assert ran(dvc(project, "repro")) == {"check", "focal", "compare"}
    differences = json.loads(dvc(project, "metrics", "diff", "--json"))
    path = "data/08_reporting/digits/{}/first.json"
    assert differences[path.format("focal")]
    assert path.format("ce") not in differences


@pytest.mark.slow
def test_a_file_of_a_method_is_of_that_one_and_a_room_of_all(project):
    code = project.folder / "src/lt_pipeline"
    compiled = code / "learning/losses/__pycache__/functional.cpython-311.pyc"
    compiled.parent.mkdir(exist_ok=True)
    compiled.write_text("another one with every Python")
    assert changed(project) == set()
    (code / "learning/methods/focal.py").open("a").write("# seen by nobody else\n")
    assert changed(project) == {"focal"}
    (code / "learning/losses/functional.py").open("a").write("# seen by all\n")
    # what all have in common is looked at first, and then they are of another code
    assert changed(project) == {"check", "focal"}
    dvc(project, "repro", "check")
    assert changed(project) == {"ce", "focal"}
    (code / "hooks/console.py").open("a").write("# no file depends on it\n")
    assert changed(project) == {"ce", "focal"}
    room = (code / "learning/losses/functional.py").read_text().removesuffix("# seen by all\n")
    (code / "learning/losses/functional.py").write_text(room)
    dvc(project, "repro", "check")
    assert changed(project) == {"focal"}


@pytest.mark.slow
def test_a_data_seed_changes_everything(project):
    change(project, PARAMETERS, {"seed: 0                    #": "seed: 1                    #"})
    before = hashes(project.file("03_primary", "digits", "train.safetensors"))
    assert ran(dvc(project, "repro", "data_prep")) == {"check", "data_prep"}
    assert hashes(project.file("03_primary", "digits", "train.safetensors")) != before
    assert changed(project) == set(STAGES) - {"check", "data_prep"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (f"{FOCAL}:focal.options.criterion.gamma=-1.0", "focal.options.criterion.gamma"),
        (f"{PARAMETERS}:data.imbalance_ratio=0.0", "data.imbalance_ratio"),
    ],
)
@pytest.mark.slow
def test_a_wrong_value_is_refused_before_dvc_deletes_anything(project, given, said):
    folders = [project.file(name, "digits") for name in ("03_primary", "06_models", "08_reporting")]

    def files():
        return {p: hashes(p) for folder in folders for p in folder.rglob("*") if p.is_file()}

    before, runs = files(), len(project.runs)
    code, output = project.run("dvc", "exp", "run", "-S", given)
    assert code != 0
    assert ran(output) == {"check"}
    (line,) = [line for line in output.splitlines() if line.startswith("Error: ")]
    assert said in line
    assert files() == before
    assert len(project.runs) == runs


@pytest.mark.slow
def test_an_experiment_in_a_temporary_copy_keeps_its_run(project):
    """DVC deletes the copy: a database in it would be lost."""
    before = {run.info.run_id for run in project.runs}
    gamma = f"{FOCAL}:focal.options.criterion.gamma=4.0"
    dvc(project, "exp", "run", "--temp", "-n", "steep", "-S", gamma, "focal")
    (run,) = [run for run in project.runs if run.info.run_id not in before]
    assert run.data.params["focal.options.criterion.gamma"] == "4.0"
    assert run.data.tags["dvc_experiment"] == "steep"
    assert run.data.tags["dvc_baseline"] == git(project, "rev-parse", "HEAD")
    assert run.info.artifact_uri.startswith(f"file://{project.folder}/mlartifacts")
    assert git(project, "status", "--porcelain") == ""
    # what docs/dvc.md says to read fits a terminal
    code, metrics = project.run("dvc", "metrics", "show", cwd=project.file("08_reporting"))
    assert code == 0, metrics
    assert "digits/focal/first.json" in metrics
    for line in [*metrics.splitlines(), *dvc(project, "exp", "diff", "steep").splitlines()]:
        assert len(line) <= 120
    shown = json.loads(dvc(project, "exp", "diff", "steep", "--json"))
    assert shown["params"][FOCAL]["focal.options.criterion.gamma"]["old"] == 4.0
    table = (sys.executable, "-m", "lt_pipeline.versioning.experiments")
    code, text = project.run(*table, COLUMNS="120")
    assert code == 0, text
    (line,) = [line for line in text.splitlines() if line.split()[:1] == ["steep"]]
    assert line.split()[-1] == "4.0"
    assert "accuracy" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.slow
def test_what_is_pushed_comes_back(project, tmp_path):
    dvc(project, "remote", "add", "--local", "-d", "store", str(tmp_path / "store"))
    dvc(project, "push")
    model = project.file("06_models", "digits", "focal", "model.safetensors")
    before = hashes(model)
    for folder in ("03_primary", "06_models", "08_reporting"):
        shutil.rmtree(project.file(folder, "digits"))
    shutil.rmtree(project.folder / ".dvc" / "cache")
    assert "deleted" in dvc(project, "status")
    dvc(project, "pull")
    assert hashes(model) == before
    assert ran(dvc(project, "repro")) == set()


@pytest.mark.slow
def test_plots_are_pictures_and_tables(project):
    output = dvc(project, "plots", "show", "--out", "plots")
    page = (project.folder / "plots" / "index.html").read_text()
    pictures = {path.name for path in (project.folder / "plots" / "static").glob("*.png")}
    for name in ("ce_figures_training_curves", "focal_figures_confusion", "class_distribution"):
        assert any(name in picture for picture in pictures), output
    assert all(title in page for title in ("Recall by class, all methods", "Training images"))
    assert page.count('"recall"') > 2


@pytest.mark.slow
def test_kedro_and_dvc_give_the_same_files(project):
    """All but times, and what MLflow calls its copy of the model."""
    folders = [project.file(name, "digits") for name in ("03_primary", "06_models", "08_reporting")]

    def files():
        paths = {p: p for folder in folders for p in folder.rglob("*") if p.is_file()}
        own = [p for p in paths if "compare" not in p.parts and p.name != "run.log"]
        return {p.relative_to(project.folder): hashes(p) for p in own}

    metrics = project.file("08_reporting", "digits", "ce", "metrics.json")
    history = metrics.with_name("train_history.json")
    before, told = files(), json.loads(metrics.read_text())
    output = project.kedro("--pipelines=ce")
    assert "ce" in output
    after = files()
    assert after.keys() == before.keys()
    differ = {path.name for path in before if after[path] != before[path]}
    times = {metrics.name, history.name, "training_curves.png"}
    assert differ <= {*times, "deployed.json"}
    after_kedro = json.loads(metrics.read_text())
    for values in (after_kedro, told):
        for name in list(values["cost"]):
            if not name.startswith("parameters"):
                del values["cost"][name]
    assert after_kedro == told


@pytest.mark.slow
def test_a_run_of_a_stage_leads_to_dvc_and_back(project, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (run,) = [r for r in project.runs if r.data.tags.get("method") == "ce"][-1:]
    tags = run.data.tags
    assert tags["dvc_stage"] == "ce"
    assert tags["git_dirty"] == "False"
    assert tags["command"] == "kedro run --pipelines ce --namespaces ce"
    model = project.file("06_models", "digits", "ce", "model.safetensors")
    assert tags["model_hash"] == hashes(model)["sha256"]
    locked = yaml.safe_load((project.folder / "dvc.lock").read_text())["stages"]["ce"]["outs"]
    assert tags["model_md5"] in [out["md5"] for out in locked]
    assert tags["dvc_lock"] != blob_id(project.folder / "dvc.lock")
    for what in (run.info.run_id, "ce", str(model)):
        assert run.info.run_id in json.dumps(trace(what, project.folder))


@pytest.mark.slow
def test_without_git_or_dvc_it_is_one_line(project, tmp_path):
    for missing, message in ((".git", "not a git repository"), (".dvc", "not inside of a DVC")):
        folder = tmp_path / missing[1:]
        folder.mkdir()
        shutil.copy(project.folder / "dvc.yaml", folder)
        shutil.copytree(PROJECT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("cache"))
        if missing == ".dvc":
            shutil.rmtree(folder / ".dvc")
        code, output = project.run("dvc", "repro", cwd=folder)
        assert code != 0
        assert message in output
        assert len(output.splitlines()) == 1
