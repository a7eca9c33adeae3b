"""dvc.yaml, written from Kedro's own view of the project: ``python -m lt_pipeline.dvc_stages``.

Kedro owns the DAG; DVC hashes what goes in and out of it. A stage's dependencies, parameters and
outputs are those of its Kedro nodes. Only which stages there are is said here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import yaml
from kedro.config import OmegaConfigLoader
from kedro.inspection import get_project_snapshot
from kedro.inspection.models import ProjectSnapshot
from kedro.io import CatalogConfigResolver

from lt_pipeline.settings import CONFIG_LOADER_ARGS

PROJECT = Path(__file__).parents[2]
PACKAGE = "src/lt_pipeline"
PARAMETERS = "params:"
HEADER = (
    "# Written by `python -m lt_pipeline.dvc_stages` from the Kedro pipelines and catalog: change\n"
    "# those and run it again. `dvc repro` runs what has changed and nothing else.\n"
)


class Stage(NamedTuple):
    """A DVC stage: the Kedro pipeline and, of it, the namespace to run; the code it rests on."""

    pipeline: str
    namespace: str | None
    code: tuple[str, ...]


DATA_CODE = ("config.py", "data", "figures", "schema.py")
METHOD_CODE = (
    "detectors.py",
    "diagnostics",
    "engine",
    "losses",
    "metrics",
    "models",
    "methods/_base.py",
    "weights.py",
)
STAGES = {
    "data_prep": Stage("data_prep", None, DATA_CODE),
    "more": Stage("more", "more", (*DATA_CODE, *METHOD_CODE, "methods/more.py")),
}


def render(project: Path = PROJECT) -> str:
    """Return the text of dvc.yaml."""
    snapshot = get_project_snapshot(project_path=project)
    loader = OmegaConfigLoader(conf_source=str(project / "conf"), **CONFIG_LOADER_ARGS)
    catalog = CatalogConfigResolver(loader["catalog"])
    stages = {name: _stage(snapshot, catalog, stage) for name, stage in STAGES.items()}
    return HEADER + yaml.safe_dump({"stages": stages}, sort_keys=False, width=100)


def _stage(
    snapshot: ProjectSnapshot, catalog: CatalogConfigResolver, stage: Stage
) -> dict[str, Any]:
    pipeline = next(p for p in snapshot.pipelines if p.name == stage.pipeline)
    nodes = [node for node in pipeline.nodes if node.namespace == stage.namespace]
    made = {name for node in nodes for name in node.outputs}
    needed = {name for node in nodes for name in node.inputs} - made
    metrics = {name for name in made if name.endswith((".metrics", "_statistics"))}
    only = f" --namespaces {stage.namespace}" if stage.namespace else ""
    code = {f"{PACKAGE}/{path}" for path in stage.code}
    sources = {node.source.filepath for node in nodes if node.source}
    return {
        "cmd": f"kedro run --pipelines {stage.pipeline}{only}",
        "deps": sorted({*code, *sources, *_files(catalog, needed)}),
        "params": _parameters(needed),
        "outs": _files(catalog, made - metrics),
        "metrics": [{path: {"cache": False}} for path in _files(catalog, metrics)],
    }


def _files(catalog: CatalogConfigResolver, names: set[str]) -> list[str]:
    """Return the files of datasets; a folder that a node manages by itself is not one."""
    found = [catalog.resolve_pattern(n) for n in names if not n.startswith(PARAMETERS)]
    # kedro-mlflow's artifact datasets wrap the one with the file
    plain = [config.get("dataset", config) for config in found]
    return sorted(c["filepath"] for c in plain if not c["type"].endswith("FolderDataset"))


def _parameters(needed: set[str]) -> list[dict[str, list[str]]]:
    """Return, by file of conf/base, the parameters that a stage reads: a method has its own."""
    by_file: dict[str, list[str]] = {}
    for name in sorted(n.removeprefix(PARAMETERS) for n in needed if n.startswith(PARAMETERS)):
        own = f"conf/base/parameters_{name}.yml"
        file = own if (PROJECT / own).exists() else "conf/base/parameters.yml"
        by_file.setdefault(file, []).append(name)
    return [{file: names} for file, names in by_file.items()]


if __name__ == "__main__":
    (PROJECT / "dvc.yaml").write_text(render())
