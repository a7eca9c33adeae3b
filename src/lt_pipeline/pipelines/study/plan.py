"""What a study is about to train, and for how long, said before it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import mlflow

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
    runs = mlflow.MlflowClient().search_runs(
        [active.info.experiment_id],
        "attributes.status = 'FINISHED' and metrics.\"cost/training_seconds\" > 0",
        max_results=1000,
    )
    found: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        params, method = run.data.params, run.data.tags.get("method")
        if method and {"training.epochs", "model.backbone"} <= params.keys():
            seconds = run.data.metrics["cost/training_seconds"] / int(params["training.epochs"])
            found.setdefault((method, params["model.backbone"]), []).append(seconds)
    return {key: median(values) for key, values in found.items()}


def plan(title: str, configs: Sequence[Values], kept: Sequence[bool], paces: Paces) -> str:
    """Return in a sentence which of the runs ``configs`` are there, and what the others take.

    ``kept`` says of each whether it is finished.
    """
    missing = [config for config, done in zip(configs, kept, strict=True) if not done]
    there = f"{len(configs)} runs, {sum(kept)} of them there"
    if not missing:
        return f"{title}: {there}; nothing is trained"
    epochs = sum(config["training"]["epochs"] for config in missing)
    return (
        f"{title}: {there}; {len(missing)} to train, {epochs:,} epochs, {_how_long(missing, paces)}"
    )


def _how_long(configs: Sequence[Values], paces: Mapping[tuple[str, str], float]) -> str:
    keys = [(config["method"], config["model"]["backbone"]) for config in configs]
    unknown = sorted({method for method, backbone in keys if (method, backbone) not in paces})
    if unknown:
        return f"for how long is not known, as there is no run yet of {', '.join(unknown)}"
    both = zip(configs, keys, strict=True)
    seconds = sum(config["training"]["epochs"] * paces[key] for config, key in both)
    if seconds < 90:
        return f"about {seconds:.0f} s at the pace of earlier runs"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min at the pace of earlier runs"
    return f"about {seconds / 3600:.1f} h at the pace of earlier runs"
