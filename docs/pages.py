"""What the pictures of docs/ui.md are of: pages of the MLflow UI and of kedro viz."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from playwright.sync_api import Page

# what the UI asks of a first visitor: which half of it, and panels to close
VISITED = {
    "mlflow.workflowType_v1": '"machine_learning"',
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "_mlflow_model_registry_promo_modal_dismissed_v1": "true",
}
NAME = "attributes.`Run Name`"
WIDTHS = {NAME: 265, "runDateAndNestInfo": 150, "duration": 80}
RESULTS = {
    "metrics.`test/accuracy`": 105,
    "metrics.`test/many`": 105,
    "metrics.`test/medium`": 105,
    "metrics.`test/few`": 105,
    "metrics.`validation/mean_recall`": 175,
}
TRIALS = {
    NAME: 300,
    "metrics.`finished/validation/mean_recall`": 210,
    "params.`more.options.amplitude`": 165,
    "params.`more.options.rank`": 165,
}
CURVES = "^validation|train/l"
CHAMPION = "champion"


class PictureError(Exception):
    """What a user can put right, in one line."""


@dataclass(frozen=True)
class Shot:
    """A page, what must be seen on it, and what to do before the picture is taken."""

    name: str
    address: str
    seen: Sequence[str]
    stored: Mapping[str, str] = field(default_factory=dict)
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
    table = f"{address}#/experiments/{number}/runs"

    def stored(columns: Mapping[str, int]) -> dict[str, str]:
        widths = {**WIDTHS, **columns}
        columns = {name: width for name, width in columns.items() if name not in WIDTHS}
        state = {"selectedColumns": [*columns], "columnOrder": [*widths], "columnWidths": widths}
        key = f'MLflowLocalStorage-1.1-ExperimentPage-["{number}"]-ReactComponentState'
        return {**VISITED, key: json.dumps(state)}

    return [
        Shot("runs", table, [more, "test/accuracy"], stored(RESULTS)),
        Shot(
            "metrics",
            f"{address}#/experiments/{number}/runs/{runs[more]}/model-metrics",
            ["logit_adjustment", "mean_recall"],
            VISITED,
            lambda page: page.get_by_placeholder("Search metric charts").fill(CURVES),
            height=1060,
        ),
        Shot(
            "sweep",
            f"{table}?searchFilter=tags.study%20%3D%20'more-{data}'",
            ["trial 0", "trial 7"],
            stored(TRIALS),
            _unfold,
        ),
        Shot("registry", f"{address}#/models/{_champion(client)}", [CHAMPION], VISITED),
    ]


def _champion(client: MlflowClient) -> str:
    found = [model.name for model in client.search_registered_models() if CHAMPION in model.aliases]
    if not found:
        raise PictureError(f"no model has the alias {CHAMPION}: did the comparison run?")
    return str(found[0])


def _unfold(page: Page) -> None:
    row = page.locator("[role=row]", has_text="tune more").first
    row.locator("button[data-component-id*=runnamecell]").click()


def viz_shots(address: str) -> list[Shot]:
    """Return the pages of kedro viz at ``address``."""

    def stored(expanded: bool) -> dict[str, str]:
        state = {
            "theme": "light",
            "showFeatureHints": False,
            "expandAllPipelines": expanded,
            "visible": {"sidebar": not expanded, "graph": True, "miniMap": False},
        }
        return {"KedroViz": json.dumps(state)}

    def dismiss(page: Page) -> None:
        # its look for a newer version fails without a network
        page.get_by_text("Dismiss").click()

    def choose(page: Page) -> None:
        dismiss(page)
        page.locator("[data-node-fullname=evaluate]").click()

    page = f"{address}?pid=more"
    return [
        Shot("viz", page, ["data_prep", "serving"], stored(False), dismiss, 860),
        Shot("viz_node", page, ["Show Code", "more.evaluate"], stored(True), choose, 860),
    ]
