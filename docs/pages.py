"""What the pictures of docs/ui.md are of: pages of the MLflow UI and of kedro viz."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from playwright.sync_api import Page

# of a first visitor the UI does not know that it is not about language models
HALF = "?workflowType=machine_learning"
CHAMPION = "champion"


class PictureError(Exception):
    """What a user can put right, in one line."""


@dataclass(frozen=True)
class Shot:
    """A page, what must be seen on it, and what to do before the picture is taken."""

    name: str
    address: str
    seen: Sequence[str]
    act: Callable[[Page], None] | None = None
    height: int = 640


def mlflow_shots(address: str, client: MlflowClient) -> list[Shot]:
    """Return the pages of the MLflow UI at ``address``, for the runs that ``client`` finds.

    Raises:
        PictureError: if there is no champion.
    """
    experiment = max(client.search_experiments(), key=lambda found: int(found.experiment_id))
    number, data = experiment.experiment_id, experiment.name
    runs = {run.info.run_name: run.info.run_id for run in client.search_runs([number])}
    # what differs from conf/ stands behind the method
    more = next(name for name in runs if name.startswith("more · "))
    champion = _champion(client)
    table = f"{address}#/experiments/{number}/runs{HALF}&viewStateShareKey="

    return [
        Shot("runs", f"{table}results", [more, "test/accuracy"], _close_assistant),
        Shot(
            "metrics",
            f"{address}#/experiments/{number}/runs/{runs[more]}/model-metrics{HALF}",
            ["Summary", "harmonic_mean"],
            _close_assistant,
            height=1060,
        ),
        Shot("sweep", f"{table}more-{data}", ["trial 0", "trial 7"], _close_assistant),
        Shot("registry", f"{address}#/models/{champion}{HALF}", [CHAMPION], _close_assistant),
    ]


def _champion(client: MlflowClient) -> str:
    found = [model.name for model in client.search_registered_models() if CHAMPION in model.aliases]
    if not found:
        raise PictureError(f"no model has the alias {CHAMPION}: did the comparison run?")
    return str(found[0])


def _close_assistant(page: Page) -> None:
    page.locator("[data-component-id='mlflow.assistant.chat_panel.close']").click()


def viz_shots(address: str) -> list[Shot]:
    """Return the pages of kedro viz at ``address``."""
    page = f"{address}?pid=more"
    expanded = f"{page}&expandAllPipelines=true"
    return [
        Shot("viz", page, ["data_prep", "serving"], _close_hints, 860),
        Shot("viz_node", expanded, ["Show Code", "more.evaluate"], _choose, 860),
    ]


def _close_hints(page: Page) -> None:
    # its look for a newer version fails without a network
    page.get_by_text("Dismiss").click()
    page.locator(".feature-hints__close").click()
    page.get_by_label("Change to light theme").click()
    page.get_by_label("Turn minimap off").click()


def _choose(page: Page) -> None:
    _close_hints(page)
    page.locator("[data-node-fullname=evaluate]").click()
    # room for the graph and the panel
    page.get_by_label("Hide menu").click()
