"""kedro-mlflow's hooks, but that a node's parameters are one request and not one each."""

from __future__ import annotations

from typing import Any

import mlflow
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline.node import Node
from kedro_mlflow.framework.hooks.mlflow_hook import MlflowHook
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH


class MlflowHooks(MlflowHook):  # type: ignore[misc]  # kedro-mlflow has no types
    """Registered in the place of the plugin's own, see settings.py."""

    @hook_impl
    def before_node_run(
        self, node: Node, catalog: DataCatalog, inputs: dict[str, Any], is_async: bool
    ) -> None:
        """Log the parameters that the node reads."""
        self._params: dict[str, str] = {}
        super().before_node_run(node, catalog, inputs, is_async)
        if self._params:
            mlflow.log_params(self._params)

    def _log_param(self, name: str, value: Any) -> None:
        if len(str(value)) <= MAX_PARAM_VAL_LENGTH:
            self._params[name] = str(value)
        else:
            super()._log_param(name, value)
