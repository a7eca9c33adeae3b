"""From a run to all that made it, and back: ``python -m lt_pipeline.tracking.lineage <what>``.

``<what>`` is an MLflow run, a registered model as in ``more-digits-lt-ir20/3``, a file that a run
made, a stage of dvc.lock, or a hash: of data, of a model, of dvc.lock, of a git commit.
"""

from __future__ import annotations

import json
import os
import re
import string
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import mlflow
from kedro.config import OmegaConfigLoader
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from lt_pipeline.learning.schema import UserError
from lt_pipeline.tracking import client as tracking
from lt_pipeline.tracking.addresses import EVALUATED, MODEL, run_of_model
from lt_pipeline.tracking.client import OUTPUTS
from lt_pipeline.tracking.store import open_store
from lt_pipeline.versioning import lock as dvc_lock
from lt_pipeline.versioning.git import blob_id, hashes
from lt_pipeline.versioning.lock import LOCK

PROJECT = Path(__file__).parents[3]
COMMIT = "mlflow.source.git.commit"
Facts = dict[str, Any]

# tags by which runs are found, and what a run with that tag has to do with it
TAGS = {
    "model_hash": "made this model",
    "model_md5": "made this model",
    "data_hash": "made or used this data",
    "dvc_lock": "started from this dvc.lock",
    COMMIT: "ran this commit",
}
CARD = "data_card.json"
# trials of sweeps and arms of studies log no files of their own, and there are many of them
WITH_FILES = "tags.trial IS NULL and tags.kept_from_before IS NULL"
SHORTEST = 6
SHOWN_RUNS = 20
# the part of settings.py that is needed here: all of it imports every method
LOADER: Facts = {
    "base_env": "base",
    "default_run_env": "local",
    "config_patterns": {"mlflow": ["mlflow*"]},
}
RUN_ID = re.compile(r"[0-9a-f]{32}")


def trace(what: str, project: Path = PROJECT) -> Facts:
    """Return what is known of ``what``: of a run, or which runs have to do with it.

    Raises:
        UserError: in one line, if nothing is.
        UnreachableError: if the tracking server does not answer.
    """
    uri = tracking_uri(project)
    open_store(uri)
    mlflow.set_tracking_uri(uri)
    client = MlflowClient(uri)
    path = next((p for p in (Path(what), project / what) if p.is_file()), None)
    if path:
        return _of_file(client, path, project)
    model = MODEL.fullmatch(what)
    if model:
        return of_run(client, run_of_model(client, what, **model.groupdict()), project)
    locked = dvc_lock.model_of(project, what)
    if locked:
        return _of_hash(client, locked, what)
    if not set(what) <= set(string.hexdigits) or len(what) < SHORTEST:
        raise UserError(
            f"{what!r} is no file here, no stage of {LOCK} and no hash: give the id of an MLflow "
            f"run, a model as in more-digits-lt-ir20/3, a file that a run made, or at least "
            f"{SHORTEST} digits of a hash"
        )
    run = _run(client, what) if RUN_ID.fullmatch(what) else None
    return of_run(client, run, project) if run else _of_hash(client, what.lower(), what)


def tracking_uri(project: Path) -> str:
    """Return where the project's runs are: what the environment says, else conf/."""
    conf = OmegaConfigLoader(conf_source=str(project / "conf"), **LOADER)["mlflow"]
    uri = os.environ.get("MLFLOW_TRACKING_URI") or conf["server"]["mlflow_tracking_uri"]
    return tracking.absolute_uri(uri, project)


def of_run(client: MlflowClient, run: Run, project: Path) -> Facts:
    """Return what made ``run`` and what it made."""
    tags, info = run.data.tags, run.info
    versions = client.search_model_versions(f"run_id = '{info.run_id}'")
    return {
        **_heading(run),
        "evaluation of": tags.get(EVALUATED),
        "experiment": client.get_experiment(info.experiment_id).name,
        "commit": tags.get(COMMIT, "unknown"),
        "uncommitted changes": {"True": "yes", "False": "no"}.get(
            tags.get("git_dirty", ""), "unknown"
        ),
        "seed": tags.get("seed", "unknown"),
        "device": tags.get("device", "unknown"),
        "parameters": {
            "logged": len(run.data.params),
            "resolved": _artifacts(client, run, "config.json"),
        },
        "data": {
            "hash": tags.get("data_hash", "unknown"),
            "made by": "this run" if tags.get("data_made") else _makers(client, run),
        },
        "dvc": {
            "dvc.lock at its start": dvc_lock.state_of(tags.get("dvc_lock"), project),
            "stage": tags.get("dvc_stage"),
            "experiment": tags.get("dvc_experiment"),
            "experiment on top of": tags.get("dvc_baseline"),
            "commits of dvc.lock with its model": dvc_lock.commits_with(
                project, tags.get("model_md5")
            ),
            "stages with its model now": dvc_lock.stages_with(project, tags.get("model_md5")),
        },
        "model": {
            "sha256": tags.get("model_hash"),
            "md5": tags.get("model_md5"),
            "registered": [f"models:/{v.name}/{v.version}" for v in versions],
        },
        "outputs": dict(_outputs(client, run, project)),
    }


def _heading(run: Run) -> Facts:
    started = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    return {
        "run": run.info.run_id,
        "name": run.info.run_name,
        "status": run.info.status,
        "started": f"{started:%Y-%m-%d %H:%M:%S} UTC",
        # earlier versions did not hide every password
        "command": tracking.masked(run.data.tags.get("command", "unknown")),
    }


def _of_file(client: MlflowClient, path: Path, project: Path) -> Facts:
    """Return the runs that made a file, or that made or used data."""
    if path.name == LOCK:
        return _of_lock(client, path.parent)
    hashed = hashes(path)
    runs = _runs_with(client, "model_hash", hashed["sha256"])
    if runs:
        return _answer(runs, "model_hash")
    if path.name == CARD:
        # it says which data it is of; of a file that stands beside it nothing follows from it
        return _of_hash(client, json.loads(path.read_text()).get("data_hash", "?"), str(path))
    made = [run for run in _all_runs(client, WITH_FILES) if hashed in _logged(client, run).values()]
    if made and path.with_name(CARD).is_file() and "data_hash" in made[0].data.tags:
        return _of_hash(client, made[0].data.tags["data_hash"], str(path))
    if made:
        return {"what": "made this file", "runs": [_heading(run) for run in made]}
    raise UserError(
        f"no run in {_shown(client)} made {path} as it is (sha256 {hashed['sha256']}): it was made "
        f"elsewhere or changed since"
    )


def _of_lock(client: MlflowClient, project: Path) -> Facts:
    """Return which run made the model of every stage in dvc.lock."""
    by_stage = {}
    for stage in dvc_lock.stages(project):
        model = dvc_lock.model_of(project, stage)
        runs = _runs_with(client, "model_md5", model) if model else []
        by_stage[stage] = [f"{run.info.run_id}  {run.info.run_name}" for run in runs]
    return {LOCK: blob_id(project / LOCK), "models by": by_stage}


def _of_hash(client: MlflowClient, value: str, what: str) -> Facts:
    """Return the runs that have a tag which begins with ``value``."""
    for tag in TAGS:
        runs = _runs_with(client, tag, value)
        if runs:
            return _answer(runs, tag)
    raise UserError(
        f"nothing in {_shown(client)} has to do with {what!r}: it is no run, model, data, commit "
        f"or {LOCK} of a run there; is MLFLOW_TRACKING_URI right?"
    )


def _answer(runs: list[Run], tag: str) -> Facts:
    shown = [_heading(run) for run in runs]
    if tag == "data_hash":
        for run, facts in zip(runs, shown, strict=True):
            facts["data"] = "made" if run.data.tags.get("data_made") else "used"
        # those that made it could be behind all that are shown
        shown.sort(key=lambda facts: facts["data"] != "made")
    return {"what": TAGS[tag], tag: runs[0].data.tags[tag], "runs": shown}


def _runs_with(client: MlflowClient, tag: str, beginning: str, *more: str) -> list[Run]:
    return list(_all_runs(client, " and ".join((f"tags.`{tag}` LIKE '{beginning}%'", *more))))


def _all_runs(client: MlflowClient, only: str) -> Iterator[Run]:
    return tracking.find_runs(client, [e.experiment_id for e in client.search_experiments()], only)


def _run(client: MlflowClient, run_id: str) -> Run | None:
    try:
        return client.get_run(run_id)
    except MlflowException:
        return None


def _makers(client: MlflowClient, run: Run) -> list[str] | str:
    """Return the runs that made the data which ``run`` found."""
    value = run.data.tags.get("data_hash")
    made = _runs_with(client, "data_hash", value, "tags.data_made = 'True'") if value else []
    return [run.info.run_id for run in made] or "unknown"


def _artifacts(client: MlflowClient, run: Run, name: str) -> str | None:
    run_id = run.info.run_id
    logged = name in [artifact.path for artifact in client.list_artifacts(run_id)]
    return f"runs:/{run_id}/{name}" if logged else None


def _logged(client: MlflowClient, run: Run) -> Mapping[str, dict[str, str]]:
    """Return the hashes of the run's outputs by path; none where a run logged none."""
    if not _artifacts(client, run, OUTPUTS):
        return {}
    outputs: dict[str, dict[str, str]] = mlflow.artifacts.load_dict(
        f"{run.info.artifact_uri}/{OUTPUTS}"
    )
    return outputs


def _outputs(client: MlflowClient, run: Run, project: Path) -> Iterator[tuple[str, str]]:
    """Yield every output with its hash and whether it is still there."""
    for name, logged in _logged(client, run).items():
        now = hashes(project / name) if (project / name).is_file() else None
        state = "there" if now == logged else "another one is there now"
        yield name, f"{logged['sha256']}  {state if now else 'no longer there'}"


def _shown(client: MlflowClient) -> str:
    return tracking.masked(client.tracking_uri)


def lines(facts: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Yield ``facts`` as text, a line each, what is not known left out."""
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        if value in (None, [], {}):
            continue
        if isinstance(value, Mapping):
            yield f"{indent}{name}"
            yield from lines(value, indent + "  ")
        elif isinstance(value, list) and isinstance(value[0], Mapping):
            for run in value[:SHOWN_RUNS]:
                yield ""
                yield from lines(run, indent)
            if len(value) > SHOWN_RUNS:
                yield f"\n{indent}and {len(value) - SHOWN_RUNS} more"
        else:
            shown = ", ".join(value) if isinstance(value, list) else value
            yield f"{indent}{name:<{width}}  {shown}"


@click.command(help=(__doc__ or "").partition("\n\n")[2])
@click.argument("what")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(what: str, as_json: bool) -> None:
    """Print what is known of a run, a model, a file or a hash."""
    try:
        facts = trace(what)
    except UserError as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(lines(facts)))


if __name__ == "__main__":
    main()
