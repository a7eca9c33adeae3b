"""Kedro's settings of this project."""

from __future__ import annotations

import atexit
import gc
import os
from pathlib import Path
from typing import Any

import yaml
from kedro.framework.project import configure_logging

from lt_pipeline.io.imports import for_good

# Kedro takes conf/logging.yml from the folder that it is started in, and all else from the
# project's, which may be above.
_own = Path(__file__).parents[2] / "conf" / "logging.yml"
_found = os.environ.get("KEDRO_LOGGING_CONFIG") or Path("conf", "logging.yml").exists()
if _own.exists() and not _found:
    configure_logging(yaml.safe_load(_own.read_text(encoding="utf-8")))

# what is left at the end of the process goes with it
atexit.register(gc.disable)
with for_good("settings"):
    from lt_pipeline.hooks.claims import ClaimHooks
    from lt_pipeline.hooks.console import ConsoleHooks
    from lt_pipeline.hooks.errors import ErrorHooks
    from lt_pipeline.hooks.params import MlflowHooks
    from lt_pipeline.hooks.project import ProjectHooks
    from lt_pipeline.hooks.provenance import ProvenanceHooks
    from lt_pipeline.hooks.sweep import TuneHooks
    from lt_pipeline.hooks.tracking import TrackingHooks
    from lt_pipeline.io.conf_loader import ConfLoader

HOOKS = (
    *(ClaimHooks(), ErrorHooks(), ProjectHooks(), ProvenanceHooks()),
    *(TuneHooks(), TrackingHooks(), ConsoleHooks(), MlflowHooks()),
)
DISABLE_HOOKS_FOR_PLUGINS = ("kedro_mlflow", "kedro-mlflow")  # they are MlflowHooks
CONFIG_LOADER_CLASS = ConfLoader
CONFIG_LOADER_ARGS: dict[str, Any] = {
    "base_env": "base",
    "default_run_env": "local",
    # An environment changes single values of a block and keeps the others.
    "merge_strategy": {"parameters": "soft", "globals": "soft"},
    "config_patterns": {"mlflow": ["mlflow*", "mlflow*/**", "**/mlflow*"]},
}
