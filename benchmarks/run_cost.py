"""CPU seconds of `kedro run`, part by part, of this tree against another commit.

    python benchmarks/run_cost.py --against 1537c51 --runs 3 --out FILE.csv

The two take turns, so that a busy machine slows both; each run is a new process with folders and an
MLflow database of its own. CPU seconds are those of all threads; those of the training are parted
into steps, monitors, checkpoints and what MLflow is told. What follows `--` goes to `kedro run`;
`--pipelines=more`, which is `make run`, unless told.
"""

from __future__ import annotations

import argparse
import compileall
import importlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from functools import wraps
from pathlib import Path

import pandas as pd

PROJECT = Path(__file__).parents[1]
NEEDED = ("conf", "src", "pyproject.toml")
# parts of a node that trains: what is called, and what it is called here
INSIDE = {
    ("lt_pipeline.learning.engine.trainer", "Trainer", "run_epoch"): "train: steps",
    ("lt_pipeline.learning.engine.trainer", "Trainer", "monitor"): "train: monitors",
    ("lt_pipeline.learning.engine.trainer", "Trainer", "report_epoch"): "train: MLflow is told",
    ("lt_pipeline.learning.engine.checkpoint", "ResumeFile", "save"): "train: checkpoints",
}


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder:
        trees = {"after": Path(folder, "after"), "before": Path(folder, "before")}
        trees["after"].mkdir()
        for name in NEEDED:
            whole = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
            whole(PROJECT / name, trees["after"] / name)
        archive(arguments.against, trees["before"])
        rows = []
        for tree in trees.values():
            compileall.compile_dir(tree / "src", quiet=1)
        for turn in range(arguments.runs):
            for label, tree in trees.items():
                seconds = once(tree, arguments.run)
                rows += [{"tree": label, "turn": turn, **row} for row in seconds]
                print(label, {row["part"]: round(row["seconds"], 2) for row in seconds}, flush=True)
    table = by_part(pd.DataFrame(rows))
    table["command"], table["against"] = " ".join(arguments.run), arguments.against
    table["runs"], table["cores"] = arguments.runs, os.cpu_count()
    table["machine"] = platform.processor() or platform.machine()
    table.to_csv(arguments.out)
    print(table[["before", "after", "ratio"]].to_string())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", required=True, help="a commit")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("run", nargs="*", default=["--pipelines=more"])
    return parser.parse_args()


def archive(commit: str, tree: Path) -> None:
    """Write the files of ``commit`` to ``tree``."""
    tree.mkdir()
    packed = subprocess.run(
        ["git", "archive", commit, *NEEDED], cwd=PROJECT, check=True, capture_output=True
    )
    subprocess.run(["tar", "x", "-C", tree], input=packed.stdout, check=True)


def once(tree: Path, run: list[str]) -> list[dict[str, object]]:
    """Return the CPU seconds of a run in ``tree`` by part, in the order in which they begin."""
    for left in ("data", "mlflow.db", "mlartifacts"):
        shutil.rmtree(tree / left, ignore_errors=True)
    (tree / "mlflow.db").unlink(missing_ok=True)
    file = tree / "parts.json"
    environment = os.environ | {"PYTHONPATH": str(tree / "src")}
    started, before = time.monotonic(), children()
    ended = subprocess.run(
        [sys.executable, __file__, "--child", file, *run],
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if ended.returncode:
        raise SystemExit(ended.stdout)
    whole, wall = children() - before, time.monotonic() - started
    parts = json.loads(file.read_text())
    trains = [name for name in parts if name.startswith("train: ")]
    steps = {name: parts.pop(name) for name in trains}
    parts["behind the last node"] = whole - sum(parts.values())
    if "train" in parts:
        parts["train"] -= sum(steps.values())
        parts = {"train: all else" if k == "train" else k: v for k, v in parts.items()} | steps
    training = parts.get("train: steps", 0.0)
    sums = {"all": whole, "all but steps": whole - training, "wall seconds": wall}
    return [{"part": k, "seconds": v} for k, v in {**parts, **sums}.items()]


def by_part(rows: pd.DataFrame) -> pd.DataFrame:
    """Return medians by part, and the median of the ratios by turn."""
    turns = rows.pivot_table(index=["part", "turn"], columns="tree", values="seconds", sort=False)
    turns = turns.fillna(0.0)
    turns["ratio"] = turns["after"] / turns["before"].where(turns["before"] > 0)
    return turns.groupby("part", sort=False).median().round(3)


def children() -> float:
    """Return the CPU seconds of processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Clock:
    """CPU seconds of this process by what it does."""

    def __init__(self, file: Path) -> None:
        self.file, self.seconds = file, dict[str, float]()

    def timed(self, holder: type, call: str, name: str | None) -> None:
        """Time a method of ``holder``; without a name it is that of the task's node."""
        once = getattr(holder, call, None)
        if once is None:  # an earlier commit has another name for it
            return

        @wraps(once)
        def called(instance: object, *args: object, **named: object) -> object:
            if not self.seconds:
                self.seconds["to the first node"] = time.process_time()
            before = time.process_time()
            try:
                return once(instance, *args, **named)
            finally:
                self.add(name or instance.node.short_name, time.process_time() - before)

        setattr(holder, call, called)

    def add(self, name: str, seconds: float) -> None:
        """Count seconds, and keep all of them: the process may end at any time."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if not name.startswith("train: "):
            self.file.write_text(json.dumps(self.seconds))


def child(file: Path, run: list[str]) -> None:
    """Run Kedro with a clock in it."""
    from kedro.framework.cli import main as kedro
    from kedro.runner.task import Task

    clock, inside, execute = Clock(file), dict(INSIDE), Task.execute

    def executed(task: Task) -> object:
        # what is timed inside of nodes; before the first one, a run may not have imported it
        while inside:
            (module, holder, call), name = inside.popitem()
            clock.timed(getattr(importlib.import_module(module), holder), call, name)
        return execute(task)

    Task.execute = executed
    clock.timed(Task, "execute", None)
    sys.argv = ["kedro", "run", *run]
    kedro()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
