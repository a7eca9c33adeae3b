"""What dvc.lock says of models, now and in git."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lt_pipeline.versioning.git import blob_id, git

LOCK = "dvc.lock"


def stages(project: Path) -> Mapping[str, Any]:
    """Return the stages of dvc.lock by name, none without that file."""
    path = project / LOCK
    return (yaml.safe_load(path.read_text()) or {}).get("stages", {}) if path.is_file() else {}


def stages_with(project: Path, md5: str | None) -> list[str]:
    """Return the stages of dvc.lock which have an output with this hash."""
    if not md5:
        return []
    outs = {name: stage.get("outs", []) for name, stage in stages(project).items()}
    return [name for name, files in outs.items() if md5 in [out.get("md5") for out in files]]


def commits_with(project: Path, md5: str | None) -> list[str]:
    """Return the commits which brought this hash into a dvc.lock, or took it out."""
    if not md5:
        return []
    commits = git(project, "log", "--all", "--format=%h", f"-S{md5}", "--", f"*{LOCK}")
    return commits.split()


def model_of(project: Path, stage: str) -> str | None:
    """Return DVC's hash of the model that ``stage`` made, None if there is no such stage."""
    outs = stages(project).get(stage, {}).get("outs", [])
    return next((out["md5"] for out in outs if out["path"].endswith("/model.safetensors")), None)


def state_of(blob: str | None, project: Path) -> str | None:
    """Return what is known of the dvc.lock that git calls ``blob``."""
    if not blob:
        return None
    now = "as it is now" if blob == blob_id(project / LOCK) else "another than now"
    commits = git(project, "log", "--all", "--format=%h", f"--find-object={blob}")
    where = f"`git show {blob}` prints it" if commits else "in no commit"
    return f"{blob} ({now}, {where})"
