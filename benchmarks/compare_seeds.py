"""Train methods over seeds at equal budget and write every run's metrics, mean and deviation.

    python benchmarks/compare_seeds.py --methods ce logit_adjustment more --seeds 5 --out FILE.csv
    python benchmarks/compare_seeds.py --env cifar100_lt --params training.epochs=20 ...

An argument ``label:method:key=value,...`` to --methods is a variant with parameters of its own.
Runs that FILE.csv already has are skipped, and one that was killed resumes. Where conf/ cannot be
read, as on a borrowed GPU, ``python -m benchmarks.gpu table`` does the studies (docs/gpu.md).
"""

from __future__ import annotations

import argparse
import logging
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lt_pipeline.learning.evaluation.metrics.catalog import HEADLINES, of_task, placed
from lt_pipeline.learning.experiments.config import (
    ExperimentConfig,
    check_parameters,
    data_config,
    updated,
)
from lt_pipeline.learning.experiments.experiment import Experiment, Sets
from lt_pipeline.learning.experiments.run import run_experiment
from lt_pipeline.learning.experiments.store import KEPT, Store
from lt_pipeline.learning.studies.comparison import over_seeds, with_differences
from lt_pipeline.pipelines.data_prep.nodes import make_sets
from lt_pipeline.reports.differences import Paired
from lt_pipeline.reports.documents import table_rows
from variants import PROJECT, Variant, parameters

LEFT_OUT = (
    "cost/",
    "ood/",
    "geometry/angle_lower",
    "geometry/angle_upper",
    "geometry/angle_median",
)


def main() -> None:
    arguments = parse()
    logging.disable(logging.WARNING)
    base = parameters(arguments.env, arguments.params)
    rows, store = read(arguments.out), Store(arguments.out.with_suffix(".progress"))
    for seed in range(arguments.seeds):
        for variant in arguments.methods:
            label, method, changes = Variant.parse(variant)
            own = updated(base, changes)
            own = updated(own, {"seed": seed, "data": {"seed": seed if arguments.vary_data else 0}})
            config, mark = resolve(method, own)
            if is_there(rows, label, seed, mark):
                continue
            result = run(config, own["data"], store)
            rows.append({"label": label, "seed": seed, **result, "parameters": mark})
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(rows).to_csv(arguments.out, index=False)
            for kept in store.folder.glob(f"*/{KEPT}"):
                shutil.rmtree(kept.parent)
            print(summary(rows).to_string(), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="base", help="a folder of conf/")
    parser.add_argument("--params", nargs="*", default=[], help="as in training.epochs=20")
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--vary-data", action="store_true", help="the seed chooses images, too")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def read(path: Path) -> list[dict[str, Any]]:
    # a commit such as 7e53212 is no number
    text = {"commit": str, "parameters": str}
    return pd.read_csv(path, dtype=text).to_dict("records") if path.exists() else []


def resolve(method: str, values: dict[str, Any]) -> tuple[ExperimentConfig, str]:
    """Return the configuration and a mark of it and the data's parameters."""
    check_parameters(values)
    config = ExperimentConfig.resolve(method, values)
    config.check_data(data_config(values))
    identity = config.model_dump(mode="json"), values["data"]
    return config, sha256(repr(identity).encode()).hexdigest()[:12]


def is_there(rows: list[dict[str, Any]], label: str, seed: int, mark: str) -> bool:
    """Return whether the run is in the table; one of other parameters must not be mixed in."""
    for row in rows:
        if row["label"] == label and row["seed"] == seed:
            if row["parameters"] != mark:
                raise SystemExit(
                    f"the file has {label} with seed {seed} and other parameters: "
                    f"choose another label or another --out"
                )
            return True
    return False


def run(config: ExperimentConfig, data: dict[str, Any], store: Store) -> dict[str, Any]:
    """Return the metrics of one run, without tracking."""
    raw, packed = PROJECT / "data/01_raw", PROJECT / "data/02_intermediate"
    *sets, card, _ = make_sets(raw, packed, data)
    finished = run_experiment(Experiment(config, card), Sets(*sets), raw, store)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=PROJECT, capture_output=True, text=True
    )
    return {
        **{
            name.removeprefix("test/").replace("/", "_"): value
            for name, value in finished.items()
            if not name.startswith(LEFT_OUT) or "/mean/" in name or name.endswith("/auroc")
        },
        "training_seconds": finished["cost/training_seconds"],
        "parameters_trained": finished["cost/parameters_trained"],
        "epochs": config.training.epochs,
        "commit": commit.stdout.strip(), "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "command": " ".join(["python", *sys.argv]),
    }  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return mean and deviation over seeds, in per cent, a row a label.

    Accuracy, or of several labels an image the mean average precision, has its paired difference
    from the first label's, with a 95 % interval.
    """
    table = pd.DataFrame(rows)
    known = {m.name: replace(m, key=m.name) for m in placed("first")}
    metrics = {name: m for name, m in known.items() if name in table}
    first = table["label"].iloc[0]
    means = over_seeds(table, "label", list(metrics))
    headline = of_task(HEADLINES, [f"test/{name}" for name in table]).name
    own = with_differences(means, table, first, [headline]).reset_index()
    paired = Paired(metrics[headline], first)
    headings, lines = table_rows(own, [], metrics, "label", paired=paired)
    return pd.DataFrame([row.cells for row in lines], columns=headings).set_index("label")


if __name__ == "__main__":
    main()
