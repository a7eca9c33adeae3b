"""Record what runs give, to the digit, and compare with an earlier record.

    python tools/record.py before.json
    python tools/record.py after.json --against before.json

In a copy of the checkout every command below is run on one thread. Recorded are a SHA-256 of every
checkpoint's tensors and of every table and JSON file, without times and what names a run. With
``--keep FOLDER`` the copy's data and MLflow database stay there.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

PROJECT = Path(__file__).parents[1]
COPIED = ("conf", "src", "pyproject.toml", ".telemetry")
METHODS = ("ce", "more", "dbm", "dqroute", "darl", "btm", "crt", "ride", "mixup", "oe")
STUDIES = ("more_schedules", "btm_merging")
RUNS = {
    **{name: (f"--pipelines={name}",) for name in (*METHODS, *STUDIES)},
    "sweep": ("--pipelines=tune", "--params=method=more,tune.trials=3"),
}
KILLED = ("--pipelines=more", "--params=training.epochs=40")
# what differs between two runs of the same: times, and names of runs, folders and versions
OWN = re.compile(
    r"second|cost|memory|time|date|duration|created|run_id|mlflow_run|process|storage|"
    r"experiment|uri|url|version|commit|path|"
    r"rows|made_of|registered|"  # tables' texts have seconds in them; keys name parameters
    r"failed"
)


def main() -> None:
    """Read the command line, record, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path, help="an earlier record")
    parser.add_argument("--keep", type=Path, help="where the data and the database are copied to")
    parser.add_argument("--only", nargs="*", help="some of the runs, by name")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = dict(record(copied(Path(folder)), arguments.only))
        if arguments.keep:
            shutil.copytree(Path(folder) / "data", arguments.keep / "data")
            shutil.copy(Path(folder) / "mlflow.db", arguments.keep)
    arguments.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    print(f"{len(found)} files recorded in {arguments.out}")
    if arguments.against:
        sys.exit(compare(json.loads(arguments.against.read_text()), found))


def copied(folder: Path) -> Path:
    """Copy what a run needs; return the folder."""
    for name in COPIED:
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        copy(PROJECT / name, folder / name)
    return folder


def record(folder: Path, only: list[str] | None) -> Iterator[tuple[str, str]]:
    """Yield a name and a hash for every file that the runs write."""
    for name, arguments in RUNS.items():
        if not only or name in only:
            started = time.time()
            finish(kedro(folder, arguments))
            yield from hashes(folder, name, started)
    if not only or "killed" in only:
        started = time.time()
        kill_and_resume(folder)
        yield from hashes(folder, "killed", started)


def kedro(folder: Path, arguments: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """Start ``kedro run`` there."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")},
        "PYTHONPATH": str(folder / "src"),
        "OMP_NUM_THREADS": "1",
        "DO_NOT_TRACK": "1",
        "KEDRO_DISABLE_TELEMETRY": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "kedro", "run", "--env=smoke", *arguments]
    print(" ".join(command[2:]), flush=True)
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)


def finish(running: subprocess.Popen[bytes]) -> None:
    """Wait for a run, which must end well."""
    if running.wait():
        raise SystemExit("a run failed: nothing is recorded")


def kill_and_resume(folder: Path) -> None:
    """Kill a run when its first epochs are kept, and give the same command again."""
    running, started = kedro(folder, KILLED), time.time()
    while running.poll() is None and not any(written(folder, started, "*/progress/*")):
        time.sleep(0.05)
    running.kill()
    running.wait()
    finish(kedro(folder, KILLED))


def written(folder: Path, since: float, pattern: str = "*") -> Iterator[Path]:
    """Yield the files that were written since then."""
    for path in sorted((folder / "data").rglob(pattern)):
        if path.is_file() and path.stat().st_mtime > since:
            yield path


def hashes(folder: Path, run: str, since: float) -> Iterator[tuple[str, str]]:
    """Yield a name that says nothing of folders, and the hash, of what a run wrote."""
    for path in written(folder, since):
        content = canonical(path)
        if content is not None:
            name = f"{run}: {'/'.join(path.parts[-2:])}"
            yield name, sha256(content).hexdigest()


def canonical(path: Path) -> bytes | None:
    """Return what of a file must not change, None for one that is not compared."""
    if path.suffix == ".safetensors":
        parts = [
            f"{name}{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes()
            for name, tensor in sorted(load_file(path).items())
        ]
        return b"".join(parts)
    if path.suffix == ".json":
        return json.dumps(kept(json.loads(path.read_text())), sort_keys=True).encode()
    if path.suffix == ".csv":
        return json.dumps(kept(list(csv.DictReader(path.open()))), sort_keys=True).encode()
    return None


def kept(value: Any) -> Any:
    """Return ``value`` without what is a run's own, at every depth."""
    if isinstance(value, dict):
        return {key: kept(inner) for key, inner in value.items() if not OWN.search(key)}
    return [kept(inner) for inner in value] if isinstance(value, list) else value


def compare(before: dict[str, str], after: dict[str, str]) -> int:
    """Print every difference; return how many there are, at most 1."""
    same = sum(after.get(name) == value for name, value in before.items())
    for name in sorted(before.keys() | after.keys()):
        if name not in after or name not in before:
            print(f"only {'before' if name in before else 'after'}: {name}")
        elif before[name] != after[name]:
            print(f"changed: {name}")
    print(f"{same} of {len(before)} files are the same, {len(after)} now")
    return int(before != after)


if __name__ == "__main__":
    main()
