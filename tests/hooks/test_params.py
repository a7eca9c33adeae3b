"""A node's parameters are one request to MLflow's server, however many they are."""

from __future__ import annotations

from types import SimpleNamespace

import mlflow
import pytest
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro_mlflow.framework.hooks.mlflow_hook import MlflowHook
from mlflow.tracking import MlflowClient

from lt_pipeline.hooks.params import MlflowHooks
from toys import PROJECT


@pytest.fixture
def requests(monkeypatch):
    """What is asked of a run's server for its parameters."""
    asked = []

    def batch(self, run_id, metrics=(), params=(), tags=(), synchronous=None):
        asked.append({param.key: param.value for param in params})

    def one(self, run_id, key, value, synchronous=None):
        asked.append({key: value})

    monkeypatch.setattr(MlflowClient, "log_batch", batch)
    monkeypatch.setattr(MlflowClient, "log_param", one)
    monkeypatch.setattr(mlflow.tracking.fluent, "_get_or_start_run", lambda: RUN)
    return asked


RUN = SimpleNamespace(info=SimpleNamespace(run_id="0" * 32))


@pytest.fixture
def hooks():
    made = MlflowHooks()
    made.run_id, made._is_mlflow_enabled = None, True
    made.flatten, made.recursive, made.sep = True, True, "."
    made.long_params_strategy = "truncate"
    return made


def read(hooks, **inputs):
    hooks.before_node_run(node=None, catalog=None, inputs=inputs, is_async=False)


def test_parameters_are_one_request_and_nothing_else_is_logged(hooks, requests):
    read(hooks, **{"params:training": {"epochs": 2, "rates": {"head": 0.1}}, "model": object()})
    assert requests == [{"training.epochs": "2", "training.rates.head": "0.1"}]
    read(hooks, model=object())
    assert len(requests) == 1, "a node without parameters asks for nothing"


def test_what_is_too_long_for_mlflow_is_cut_as_before(hooks, requests):
    read(hooks, **{"params:a": "x" * 7000, "params:b": 1})
    assert requests == [{"a": "x" * 6000}, {"b": "1"}]


def test_the_projects_hooks_are_in_the_place_of_the_plugins():
    bootstrap_project(PROJECT)
    with KedroSession.create(PROJECT, env="smoke") as session:
        plugins = session._hook_manager.get_plugins()
    assert [type(hooks) for hooks in plugins if isinstance(hooks, MlflowHook)] == [MlflowHooks]
