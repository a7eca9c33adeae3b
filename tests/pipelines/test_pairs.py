"""Two runs at once: each is as it is alone, or refused in one line (tools/pairs.py has more)."""

from __future__ import annotations

import json
import signal
import time

import pytest
from pipeline_projects import own

pytestmark = pytest.mark.slow
CE = ("kedro", "run", "--pipelines=ce", "--env=smoke")
# longer than others look at it; a run that stood still could hold MLflow's database
LONG = "training.epochs=300"


def run_of(project, pid):
    (run,) = [r for r in project.runs if json.loads(r.data.tags["process"])["pid"] == pid]
    return run


def numbers(run):
    timed = ("second", "cost", "memory")
    values = {n: v for n, v in run.data.metrics.items() if not any(word in n for word in timed)}
    return values, run.data.tags["model_hash"], run.data.tags["data_hash"]


def wait_for(path, process):
    while process.poll() is None and not list(path.parent.glob(path.name)):
        time.sleep(0.02)


def test_other_seeds_and_other_data_at_once_are_as_they_are_alone(project):
    words = ([], ["--params=seed=1"], ["--params=data.validation=0.2"])
    together = [project.start(*CE, *given) for given in words]
    outputs = [process.communicate()[0] for process in together]
    assert [process.returncode for process in together] == [0, 0, 0], outputs
    values = [numbers(run_of(project, process.pid)) for process in together]
    for given, (metrics, *of_both) in zip(words, values, strict=True):
        alone = project.start(*CE, "--to-nodes=ce.evaluate,ce.geometry,ce.ood", *given)
        output, _ = alone.communicate()
        assert alone.returncode == 0, output
        wanted, *of_alone = numbers(run_of(project, alone.pid))
        assert of_alone == of_both
        assert len(wanted) > 40
        assert {name: metrics[name] for name in wanted} == wanted
    hashes = [data_hash for *_, data_hash in values]
    assert hashes[0] == hashes[1] != hashes[2]
    # equal data are prepared in one place
    assert {path.name for path in project.file("03_primary").iterdir()} == {
        *("smoke", own("data.validation=0.2"))
    }


def test_the_same_run_twice_is_refused_and_one_that_was_killed_is_not(project):
    first = project.start(*CE, f"--params={LONG},training.checkpoint_every=0")
    folder = own(LONG)
    wait_for(project.file("06_models", folder, "ce", "progress", "*.pt"), first)
    code, output = project.run(*CE, "--params=training.epochs=3e2,seed=0")
    assert code == 1
    (line,) = [line for line in output.splitlines() if line.startswith("Error: ")]
    assert f"Error: ce in {folder} is in use by process {first.pid} since " in line
    assert "Traceback" not in output
    code, output = project.run("kedro", "folders", "--remove", folder)
    assert code == 1
    assert f"Error: {folder} is in use by process {first.pid}" in output
    first.send_signal(signal.SIGKILL)
    first.communicate()
    output = project.kedro(*CE[2:], f"--params={LONG}", "--to-nodes=ce.evaluate")
    assert "resumes after epoch" in output
    code, output = project.run("kedro", "folders")
    assert code == 0, output
    (line,) = [line for line in output.splitlines() if line.startswith(folder)]
    assert line.split()[-2:] == [LONG, "-"]
    code, output = project.run("kedro", "folders", "--remove-unused")
    assert f"removed {folder} (" in output
    assert not project.file("06_models", folder).exists()


def test_data_that_conf_makes_other_in_between_are_not_mixed(project):
    first = project.start(*CE, f"--params={LONG}", "--to-nodes=ce.evaluate")
    wait_for(project.file("06_models", own(LONG), "ce", "config.json"), first)
    path = project.folder / "conf" / "smoke" / "parameters.yml"
    path.write_text(path.read_text().replace("imbalance_ratio: 10", "imbalance_ratio: 5"))
    code, output = project.run("kedro", "run", "--pipelines=data_prep", "--env=smoke")
    assert code == 1
    wanted = f"Error: data/03_primary/smoke, with other data, is in use by process {first.pid} "
    assert wanted in output
    output, _ = first.communicate()
    assert first.returncode == 0, output
    assert numbers(run_of(project, first.pid))
