"""What a study is about to train, and for how long, said before it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import mlflow

from lt_pipeline.tracking import client as tracking

Values = dict[str, Any]
# of a method on a backbone
Paces = dict[tuple[str, str], float]


def earlier_paces() -> Paces:
    """Return the seconds that an epoch took in finished runs of the active run's experiment.

    They are by method and backbone: the median of the training time of all stages over
    ``training.epochs``. Without an active run there are none.
    """
    active = mlflow.active_run()
    if active is None:
        return {}
    only = "attributes.status = 'FINISHED' and metrics.\"cost/training_seconds\" > 0"
    runs = tracking.find_runs(mlflow.MlflowClient(), [active.info.experiment_id], only)
    found: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        params, method = run.data.params, run.data.tags.get("method")
        if method and {"training.epochs", "model.backbone"} <= params.keys():
            seconds = run.data.metrics["cost/training_seconds"] / int(params["training.epochs"])
            found.setdefault((method, params["model.backbone"]), []).append(seconds)
    return {key: median(values) for key, values in found.items()}


def plan(title: str, runs: Sequence[tuple[str, Values]], kept: Sequence[bool], paces: Paces) -> str:
    """Return in a sentence which of ``runs`` are there, and which others are trained for how long.

    A run is an arm's label and its experiment; ``kept`` says of each whether it is finished.
    """
    missing = [run for run, done in zip(runs, kept, strict=True) if not done]
    there = f"{len(runs)} runs, {sum(kept)} of them there"
    if not missing:
        return f"{title}: {there}; nothing is trained"
    configs = [config for _, config in missing]
    epochs = sum(config["training"]["epochs"] for config in configs)
    seeds: dict[str, list[str]] = {}
    for label, config in missing:
        seeds.setdefault(label, []).append(str(config["seed"]))
    named = ", ".join(f"{label} (seed {' '.join(own)})" for label, own in seeds.items())
    return (
        f"{title}: {there}; {len(missing)} to train, {epochs:,} epochs, "
        f"{_how_long(configs, paces)}: {named}"
    )


def _how_long(configs: Sequence[Values], paces: Mapping[tuple[str, str], float]) -> str:
    keys = [(config["method"], config["model"]["backbone"]) for config in configs]
    unknown = ", ".join(
        sorted({method for method, backbone in keys if (method, backbone) not in paces})
    )
    both = [(config, key) for config, key in zip(configs, keys, strict=True) if key in paces]
    if not both:
        return f"for how long is not known, as there is no run yet of {unknown}"
    seconds = sum(config["training"]["epochs"] * paces[key] for config, key in both)
    known = f"{_in_words(seconds)} at the pace of earlier runs"
    return f"{known} and what {unknown} takes, of which there is none yet" if unknown else known


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"
