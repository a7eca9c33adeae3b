"""Start pairs of runs at once, and see whether each gives what it gives alone.

    python tools/pairs.py --pairs 24 --seed 0

In a copy of the checkout two `kedro run` are started, the second after a random time, with equal or
other seeds, data, methods and environments. Each must end with the numbers, tables and weights of
the same command in a copy of its own, or be refused in one line. In some pairs the first is killed
and given again, or the second is `dvc repro`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import mlflow
from mlflow.entities import Run

PROJECT = Path(__file__).parents[1]
COPIED = ("conf", "src", "pyproject.toml", ".telemetry", ".dvc", ".dvcignore", ".gitignore")
# every kind of difference: seed, data, hold-out, method, environment, what is only looked at
KINDS = (
    "--pipelines=ce --env=smoke",
    "--pipelines=ce --env=smoke --params=seed=1",
    "--pipelines=ce --env=smoke --params=data.seed=1",
    "--pipelines=ce --env=smoke --params=data.validation=0.2",
    "--pipelines=ce --env=smoke --params=evaluation.ood=false",
    "--pipelines=focal --env=smoke --params=data.validation=0.2",
    "--pipelines=focal --env=smoke",
    "--pipelines=ce --env=other",
    "--pipelines=data_prep --env=smoke --params=data.seed=1",
)
REPRO = "dvc repro --no-run-cache"
STAGE = "conf/smoke/dvc.yaml:ce"
# what is another's twice: times, and what they are a part of
TIMED = re.compile(r"second|cost|memory")
DATA = "03_primary"
PREPARED = ("class_counts.csv", "manifest.csv", "imbalance_statistics.json")
TABLES = (*PREPARED, "class_table.csv")


@dataclass
class Result:
    """What a run gave: nothing where it was refused."""

    facts: dict[str, str]
    line: str = ""


class Copy:
    """A copy of the checkout, with a database and a second environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"sqlite:///{folder}/mlflow.db"
        for name in COPIED:
            copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
            copy(PROJECT / name, folder / name)
        shutil.copytree(folder / "conf" / "smoke", folder / "conf" / "other")
        (folder / "conf" / "other" / "globals.yml").write_text("run: other\n")
        mlflow.MlflowClient(self.uri).search_experiments()

    def with_dvc(self) -> Copy:
        """Make what DVC needs: a repository, and stages of what takes seconds."""
        words = ("-m", "lt_pipeline.versioning.stages", "--env", "smoke", "--methods", "ce")
        for command in (
            (sys.executable, *words),
            ("git", "init", "-q"),
            ("git", "add", "-A"),
            ("git", *("-c", "user.name=a", "-c", "user.email=a@b"), "commit", "-qm", "pairs"),
        ):
            subprocess.run(command, cwd=self.folder, env=self.environment(), check=True)
        return self

    def environment(self) -> dict[str, str]:
        """Return the variables of a run on one thread."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
        return {
            **kept,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}",
            "PYTHONPATH": str(self.folder / "src"),
            "OMP_NUM_THREADS": "1",
            "DO_NOT_TRACK": "1",
            "KEDRO_DISABLE_TELEMETRY": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "COLUMNS": "200",
        }

    def start(self, kind: str) -> subprocess.Popen[str]:
        """Start a run, or DVC's."""
        words = [*REPRO.split(), STAGE] if kind == REPRO else ["kedro", "run", *kind.split()]
        return subprocess.Popen(
            words,
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def result(self, process: subprocess.Popen[str]) -> Result:
        """Wait for a run and return what it gave, or the line that refused it."""
        output, _ = process.communicate()
        if process.returncode:
            return Result({}, _one_line(output))
        return Result(dict(self._facts(self._run(process.pid))))

    def repro(self, process: subprocess.Popen[str]) -> Result:
        """Wait for DVC and return what the run of its stage gave."""
        output, _ = process.communicate()
        if process.returncode:
            return Result({}, _one_line(output))
        of_stage = [r for r in self._runs() if r.data.tags.get("dvc_stage", "").endswith("ce")]
        return Result(dict(self._facts(_newest(of_stage))))

    def forget(self) -> None:
        """Remove what the runs left, but not the database."""
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        (self.folder / "conf" / "smoke" / "dvc.lock").unlink(missing_ok=True)

    def _runs(self) -> list[Run]:
        client = mlflow.MlflowClient(self.uri)
        return client.search_runs([e.experiment_id for e in client.search_experiments()])

    def _run(self, pid: int) -> Run:
        """Return the newest run of a process."""
        found = [r for r in self._runs() if json.loads(r.data.tags["process"])["pid"] == pid]
        return _newest(found)

    def _facts(self, run: Run) -> Iterator[tuple[str, str]]:
        yield "status", run.info.status
        for name in ("data_hash", "model_hash", "seed"):
            yield name, run.data.tags.get(name, "")
        for name, value in run.data.metrics.items():
            if not TIMED.search(name):
                yield name, repr(value)
        folder = Path(run.info.artifact_uri.removeprefix("file://"))
        for path in sorted(folder.rglob("*")):
            if path.name in TABLES:
                yield path.name, sha256(path.read_bytes()).hexdigest()
        made = json.loads((folder / "outputs.json").read_text())
        for name, hashes in made.items():
            if name.endswith(".safetensors"):
                path, stage = self.folder / name, Path(name).parts[1]
                yield f"recorded {stage}/{path.name}", hashes["sha256"]
                # the other run, too, has had its time to make it anew
                yield f"is {stage}/{path.name}", sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Run the pairs and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", help="some of the pairs, by number")
    arguments = parser.parse_args()
    draw, found = random.Random(arguments.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        alone = references(Path(folder) / "alone")
        beside = Copy(_made(Path(folder) / "beside")).with_dvc()
        for number in range(arguments.pairs):
            first, second = draw.choice(KINDS), draw.choice(KINDS)
            delay, killed = draw.uniform(0, 8), number % 6 == 4
            if number % 6 == 5:
                first, second = (KINDS[0], REPRO) if number % 4 == 3 else (REPRO, KINDS[0])
            elif number % 3 == 0:
                second = first
            if arguments.only and number + 1 not in arguments.only:
                continue
            beside.forget()
            said = pair(beside, alone, (first, second), delay, killed)
            found.update(said)
            then = "killed, given again" if killed else second
            print(f"{number + 1:2}  {first}\n    after {delay:.1f} s  {then}: {said}", flush=True)
    print(", ".join(f"{count} {word}" for word, count in sorted(found.items())))
    sys.exit(found["WRONG"])


def references(folder: Path) -> dict[str, dict[str, str]]:
    """Return what every kind gives alone."""
    project, found = Copy(_made(folder)), dict[str, dict[str, str]]()
    for kind in KINDS:
        project.forget()
        found[kind] = project.result(project.start(kind)).facts
        if not found[kind]:
            raise SystemExit(f"{kind} fails alone")
    # the data are another stage of DVC's, and another run
    of_stage = {n: v for n, v in found[KINDS[0]].items() if n not in PREPARED and DATA not in n}
    return {**found, REPRO: of_stage}


def pair(
    project: Copy,
    alone: dict[str, dict[str, str]],
    kinds: tuple[str, str],
    delay: float,
    killed: bool,
) -> list[str]:
    """Run a pair; return what became of each: equal, refused, or WRONG."""
    first = project.start(kinds[0])
    time.sleep(delay)
    if killed:
        first.send_signal(signal.SIGKILL)
        first.communicate()
        second = project.start(kinds[0])
        return [_verdict(project, alone, kinds[0], second)]
    second = project.start(kinds[1])
    return [_verdict(project, alone, k, p) for k, p in zip(kinds, (first, second), strict=True)]


def _verdict(
    project: Copy, alone: dict[str, dict[str, str]], kind: str, process: subprocess.Popen[str]
) -> str:
    found = project.repro(process) if kind == REPRO else project.result(process)
    if found.line:
        print(f"      {found.line}")
        return "WRONG" if found.line.startswith("WRONG") else "refused"
    differ = [name for name, value in alone[kind].items() if found.facts.get(name) != value]
    if differ:
        print(f"      {kind} differs in {', '.join(differ)}")
    return "WRONG" if differ else "equal"


def _one_line(output: str) -> str:
    """Return the line that says why a run was refused; there must be no more than that."""
    lines = [line for line in output.splitlines() if line.startswith("Error: ")]
    if len(lines) != 1 or "Traceback" in output:
        print(output)
        return "WRONG: not one line"
    return lines[0]


def _newest(runs: list[Run]) -> Run:
    return max(runs, key=lambda run: run.info.start_time)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
