"""Kedro's settings of this project."""

from __future__ import annotations

import gc
from typing import Any

# What imports make lives as long as the process: looking through it for garbage, again and again,
# is a quarter of the time to the first node.
gc.disable()
try:
    from lt_pipeline.hooks.project import ProjectHooks
    from lt_pipeline.hooks.provenance import ProvenanceHooks
    from lt_pipeline.hooks.sweep import TuneHooks
    from lt_pipeline.io.conf_loader import ConfLoader
finally:
    gc.freeze()
    gc.enable()

HOOKS = (ProjectHooks(), ProvenanceHooks(), TuneHooks())
CONFIG_LOADER_CLASS = ConfLoader
CONFIG_LOADER_ARGS: dict[str, Any] = {
    "base_env": "base",
    "default_run_env": "local",
    # An environment changes single values of a block and keeps the others.
    "merge_strategy": {"parameters": "soft"},
    "config_patterns": {"mlflow": ["mlflow*", "mlflow*/**", "**/mlflow*"]},
}
