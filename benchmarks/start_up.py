"""Seconds from `kedro run` to its first node, and to its end.

    python benchmarks/start_up.py --runs 5 --out FILE.csv

Each run is a new process in the smoke environment, with its own MLflow database. The first one
makes that and warms the file cache; it does not count.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

RUN = (sys.executable, "-m", "kedro", "run", "--pipelines=data_prep", "--env=smoke")


def once(environment):
    """Return the seconds to the first node and to the end."""
    started, first = time.monotonic(), None
    process = subprocess.Popen(
        RUN, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said = []
    for line in process.stdout:
        said.append(line)
        if first is None and "data_prep · make sets" in line:
            first = time.monotonic() - started
    if process.wait() or first is None:
        raise SystemExit("".join(said))
    return first, time.monotonic() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # a terminal is wide; a pipe is not, and would break the lines
        environment = os.environ | {
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "COLUMNS": "200",
        }
        once(environment)
        times = [once(environment) for _ in range(arguments.runs)]
    first, whole = zip(*times, strict=True)
    row = {
        "runs": arguments.runs,
        "first_node_seconds": statistics.median(first),
        "first_node_seconds_worst": max(first),
        "whole_run_seconds": statistics.median(whole),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }
    pd.DataFrame([row]).to_csv(arguments.out, index=False)
    print(row)


if __name__ == "__main__":
    main()
