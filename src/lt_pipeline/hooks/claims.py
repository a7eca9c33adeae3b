"""Kedro hooks by which runs never mix: folders of their own, and no two that write to one."""

from __future__ import annotations

import atexit
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from lt_pipeline.hooks.provenance import command
from lt_pipeline.hooks.session import pipeline_names
from lt_pipeline.io import own_folders
from lt_pipeline.io.claims import DATA, PLACE, RUNS, Claim, claimed, note, writing
from lt_pipeline.io.conf_loader import ConfLoader
from lt_pipeline.learning.experiments.config import data_config
from lt_pipeline.learning.schema import UserError, block_of
from lt_pipeline.pipelines.names import DESCRIBED, MADE, NAMESPACE
from lt_pipeline.tuning.config import tune_config, with_holdout

PREPARED = {*MADE, *DESCRIBED}
TUNE = NAMESPACE.rstrip(".")


class ClaimHooks:
    """Chooses where a run writes, and holds those folders until it has ended."""

    def __init__(self) -> None:
        self.held = ExitStack()
        atexit.register(self.held.close)

    @hook_impl(trylast=True)
    def after_context_created(self, context: KedroContext) -> None:
        """Choose the folders by what the command line changes of conf/."""
        loader = context.config_loader
        self.place = Path(context.project_path) / PLACE
        self.shared = self.run = self.prepared = str(loader["globals"]["run"])
        self.notes = dict[str, own_folders.Differences]()
        try:
            if isinstance(loader, ConfLoader):
                # an evaluation has put other ones into effect than the context keeps
                self._choose(loader, loader["parameters"])
        except UserError as error:
            raise click.ClickException(str(error)) from error

    def _choose(self, loader: ConfLoader, given: dict[str, Any]) -> None:
        tunes = TUNE in pipeline_names()
        if not loader.runtime_params and not tunes:
            return
        written = loader.as_written()
        changes = own_folders.differences(given, written)
        # a sweep holds images out, which other runs train on
        seen = own_folders.differences(with_holdout(given), written) if tunes else changes
        of_data = own_folders.of_data(seen)
        self.run = own_folders.folder(self.shared, changes)
        self.prepared = own_folders.folder(self.shared, of_data)
        self.notes = {self.run: changes, self.prepared: of_data}
        loader.use(run=self.run, prepared=self.prepared, shared=self.shared)

    @hook_impl(wrapper=True)
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> Generator[None, Any, Any]:
        """Refuse a run whose folders another one uses, before any other hook opens something."""
        # what an earlier session holds, which may have ended in any way
        self.held.close()
        with ExitStack() as held:
            try:
                claims = list(self._claims(pipeline, catalog.load("parameters")))
                held.enter_context(claimed(self.place, claims, command(run_params)))
                for name, changes in self.notes.items():
                    if changes:
                        note(self.place, name, changes)
            except UserError as error:
                raise click.ClickException(str(error)) from error
            self.unwritten = PREPARED & pipeline.all_outputs()
            self.files = held.enter_context(writing(self.place / DATA / self.prepared))
            result = yield
            self.held.enter_context(held.pop_all())
            return result

    def _claims(self, pipeline: Pipeline, parameters: dict[str, Any]) -> Iterator[Claim]:
        """Yield what ``pipeline`` uses."""
        spaces = {node.namespace or "" for node in pipeline.nodes}
        sweeps = {space.removeprefix(NAMESPACE) for space in spaces if space.startswith(NAMESPACE)}
        if PREPARED & pipeline.datasets():
            data = data_config(with_holdout(parameters) if sweeps else parameters)
            what = f"data/03_primary/{self.prepared}, with other data,"
            data_hash = own_folders.key(data.model_dump(mode="json"))
            yield Claim(f"{DATA}/{self.prepared}", what, data_hash)
        for name in sorted({space.partition(".")[0] for space in spaces} - {"", "data_prep"}):
            if name in block_of(parameters, "studies"):
                yield Claim(f"{RUNS}/{self.shared}/arms", "the store of finished arms", "arms")
            if name != TUNE:
                yield Claim(f"{RUNS}/{self.run}/{name}", f"{name} in {self.run}")
        for method in sorted(sweeps):
            sweep_hash = own_folders.key(_of_sweep(method, parameters))
            for folder in sorted({self.run, self.shared}):
                what = f"the sweep of {method} in {folder}"
                yield Claim(f"{RUNS}/{folder}/{TUNE}/{method}", what, sweep_hash)

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Let one run at a time prepare the data of a folder: equal ones may share it."""
        if self.unwritten.intersection(node.outputs):
            self.files.acquire()

    @hook_impl
    def after_dataset_saved(self, dataset_name: str) -> None:
        """Let others at the data once all of them are there."""
        if dataset_name in self.unwritten:
            self.unwritten.remove(dataset_name)
            if not self.unwritten:
                self.files.release(force=True)

    @hook_impl
    def before_dataset_loaded(self, dataset_name: str) -> None:
        """Read no data that another run is writing."""
        if dataset_name in PREPARED:
            self.files.acquire()

    @hook_impl
    def after_dataset_loaded(self, dataset_name: str) -> None:
        """Let others write again."""
        if dataset_name in PREPARED:
            self.files.release()

    @hook_impl(wrapper=True)
    def after_pipeline_run(self) -> Generator[None, Any, Any]:
        """Give the folders back, once all other hooks have read what was written there."""
        with self.held:
            return (yield)

    @hook_impl(wrapper=True)
    def on_pipeline_error(self) -> Generator[None, Any, Any]:
        """Give the folders back."""
        with self.held:
            return (yield)


def _of_sweep(method: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return what is the same for all processes that work on one sweep."""
    sweep = tune_config(parameters).model_dump(mode="json", include={"study", "search"})
    space = parameters.get(f"{method}{own_folders.SEARCHED}")
    return {**own_folders.differences(parameters, {}), "tune": sweep, "space": space}
