"""Cost of a sweep: trials a second by workers and trials at once, and what is not training.

    python benchmarks/tune_cost.py --trials 20 --epochs 5 --out FILE.csv

On the embedded data, through an MLflow database of its own. What is not training is the time of a
trial, with Optuna's and MLflow's parts, beyond that of its epochs and of the one evaluation at its
end; it is measured one by one. Workers need some seconds to start, which are in their time.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

import mlflow
import pandas as pd
import torch

from lt_pipeline.learning.data.prepare import prepare
from lt_pipeline.learning.data.sources import load_source
from lt_pipeline.pipelines.tune import nodes
from lt_pipeline.pipelines.tune.task import Task
from lt_pipeline.tracking import client as tracking
from lt_pipeline.tuning.config import Sweep, with_holdout
from lt_pipeline.tuning.study import trials_table
from variants import parameters


def measured(values, prepared, folder, tracked):
    """Return a row: a sweep's seconds, and by trial those of training and all others."""
    trained, aside = [], [0.0]
    once, log = Task.train, tracking._log_batch

    def timed(call):
        def called(*arguments, **named):
            started = time.monotonic()
            call(*arguments, **named)
            aside[0] += time.monotonic() - started

        return called

    def train(self, config, report, number):
        started, aside[0] = time.monotonic(), 0.0
        outcome = once(self, config, timed(report), number)
        trained.append(time.monotonic() - started - aside[0])
        return outcome

    task = Task(
        parameters=values,
        card=prepared.card,
        sets=(prepared.train, prepared.validation, prepared.auxiliary),
        folder=folder,
        deadline=None,
        parent=os.getpid(),
    )
    Task.train, tracking._log_batch = train, timed(log)
    started = time.monotonic()
    try:
        if tracked:
            with mlflow.start_run():
                task = task.tracked_by_the_active_run()
                nodes._do_trials(task)
                tracking.run_ends()
        else:
            nodes._do_trials(task)
    finally:
        Task.train, tracking._log_batch = once, log
    seconds = time.monotonic() - started
    trials = trials_table(task.study, Sweep(values).space)
    # of trials at once they overlap
    training = sum(trained) if trained and values["together"] == 1 else float("nan")
    return {
        "workers": values["tune"]["workers"],
        "together": values["together"],
        "mlflow": tracked,
        "trials": len(trials),
        "seconds": seconds,
        "trials_per_second": len(trials) / seconds,
        "training_seconds_a_trial": training / len(trials),
        "overhead_seconds_a_trial": (seconds - training) / len(trials),
        "overhead_share": (seconds - training) / training,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="more")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = []
    for workers, together, tracked in ((1, 1, False), (1, 1, True), (2, 1, True), (1, 2, True)):
        values = parameters("base", []) | {"together": together}
        values["method"] = arguments.method
        values["training"] |= {"epochs": arguments.epochs, "warmup_epochs": 1}
        values["tune"] |= {"trials": arguments.trials, "workers": workers, "pruner": "none"}
        values = with_holdout(values)
        data = Sweep(values).data
        prepared = prepare(load_source(data.source, Path("data/01_raw")), data)
        with tempfile.TemporaryDirectory() as folder:
            mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
            mlflow.set_experiment("cost")
            rows.append(measured(values, prepared, Path(folder), tracked))
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    table["epochs"], table["method"] = arguments.epochs, arguments.method
    table["torch"], table["machine"] = torch.__version__, platform.processor() or platform.machine()
    table.to_csv(arguments.out, index=False)


if __name__ == "__main__":
    main()
