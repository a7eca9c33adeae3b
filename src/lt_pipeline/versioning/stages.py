"""dvc.yaml, written from Kedro's own view: ``python -m lt_pipeline.versioning.stages``.

Kedro owns the DAG; DVC hashes what goes in and out of it. A stage's dependencies, parameters and
outputs are those of its Kedro nodes, and its code is what these import: whole rooms, but of methods
only its own files. What every method has in common is listed once, by the stage that checks the
parameters. Said here is only which stages there are, what of their outputs are metrics and plots,
and what does not count as code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

import click
import yaml
from kedro.framework.project import pipelines
from kedro.framework.startup import bootstrap_project
from kedro.inspection import get_project_snapshot
from kedro.inspection.models import NodeSnapshot, ProjectSnapshot
from kedro.io import CatalogConfigResolver

from lt_pipeline.io.conf_loader import ConfLoader, environments
from lt_pipeline.io.yaml_text import LOADER
from lt_pipeline.learning import methods
from lt_pipeline.learning.schema import UserError, unknown
from lt_pipeline.pipeline_registry import REGISTRY
from lt_pipeline.settings import CONFIG_LOADER_ARGS
from lt_pipeline.versioning.check import CHECK, path_of
from lt_pipeline.versioning.check import CODE as CODE_HASHES
from lt_pipeline.versioning.check import PARAMETERS as CHECKED_PARAMETERS

PROJECT, CODE = Path(__file__).parents[3], Path(__file__).parents[1]
PACKAGE = CODE.name
BASE = CONFIG_LOADER_ARGS["base_env"]
PARAMETERS = "params:"
DATA, COMPARE = "data_prep", "compare"
# of what the first stage writes
CHECKED = "data/02_checked"
DESCRIPTIONS = {DATA: "Raw images to long-tailed sets", COMPARE: "All methods side by side"}

# It checks every block of conf/, and imports what any of them can ask for: that is not followed.
CHECKS = f"{PACKAGE}.learning.experiments.config"
# What only tells MLflow, or a server, changes no file, nor does the device what is computed on it.
NOT_CODE = (f"{PACKAGE}.tracking.client", f"{PACKAGE}.tracking.config")
NOT_DECISIVE = {"device", "tracking", "serve"}
# Rooms of which every file counts; of others only those that are imported.
METHODS = CODE / "learning" / "methods"
ROOMS = {*CODE.glob("learning/*/"), *CODE.glob("pipelines/*/"), CODE / "serving"} - {METHODS}

# The comparison looks runs up in MLflow: of each method, this file says that there is another one.
COMPARED = "metrics"
# A few of them fit a terminal; MLflow has all.
METRICS = ("first",)
# A table's axes; pictures and folders of them need none.
PLOTS: dict[str, dict[str, str]] = {
    "class_counts": {"x": "class", "y": "training_images", "title": "Training images"},
    "class_table": {"x": "class", "y": "recall", "title": "Recall by class"},
}
HEADER = """\
# Written by `python -m lt_pipeline.versioning.stages{arguments}` from Kedro's own view:
# change those and run it again. `dvc repro` runs what has changed and nothing else (docs/dvc.md).
"""


def render(env: str | None = None, names: Sequence[str] = (), project: Path = PROJECT) -> str:
    """Return the text of dvc.yaml.

    Args:
        env: the folder of conf/ whose data set the stages are of; conf/base alone unless told.
        names: the methods to have a stage; all unless told.
        project: the folder of the project.

    Raises:
        UserError: if there is no such environment or method.
    """
    known = {*environments(project / "conf")} - {BASE}
    if env and env not in known:
        raise UserError(unknown("environment", env, known))
    for name in names:
        methods.get(name)
    view = View(project, env, tuple(names) or methods.available())
    arguments = [
        *(["--env", env] if env else []),
        *(["--methods", ",".join(names)] if names else []),
    ]
    header = HEADER.format(arguments="".join(f" {a}" for a in arguments))
    return header + yaml.dump(view.pipeline(), Dumper=_Dumper, sort_keys=False, width=100)


class _Dumper(yaml.SafeDumper):
    """Writes paths below one another, and words in a row."""

    def represent_sequence(self, tag: str, items: Any, flow_style: bool | None = None) -> Any:
        return super().represent_sequence(tag, items, "/" not in str(items))

    def represent_mapping(self, tag: str, items: Any, flow_style: bool | None = None) -> Any:
        return super().represent_mapping(tag, items, "/" not in str(items))


@dataclass(frozen=True)
class View:
    """What Kedro says of the project in an environment."""

    project: Path
    env: str | None
    methods: tuple[str, ...]

    @cached_property
    def _loader(self) -> ConfLoader:
        # conf/local is of one machine: what it says is no part of a file that is committed
        conf, env = str(self.project / "conf"), self.env or BASE
        return ConfLoader(conf, env, **CONFIG_LOADER_ARGS)

    @cached_property
    def _snapshot(self) -> ProjectSnapshot:
        metadata = bootstrap_project(self.project)
        len(pipelines)  # Kedro reads them once, as conf/base has them
        REGISTRY.shape(self._loader["parameters"])
        return get_project_snapshot(metadata=metadata, env=self.env or BASE)

    @cached_property
    def _catalog(self) -> CatalogConfigResolver:
        memory = {"{name}": {"type": "kedro.io.MemoryDataset"}}
        return CatalogConfigResolver(self._loader["catalog"], default_runtime_patterns=memory)

    def pipeline(self) -> dict[str, Any]:
        """Return what dvc.yaml says: stages that check, make data, run each method, compare."""
        stages = {name: self._stage(name) for name in (DATA, *self.methods)}
        if any(p.name == COMPARE for p in self._snapshot.pipelines):
            stages[COMPARE] = self._stage(COMPARE)
        stages = {CHECK: self._check(stages.values()), **stages}
        return {"stages": stages, "plots": [{"Recall by class, all methods": self._recalls()}]}

    def _check(self, stages: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the stage that refuses wrong parameters before DVC deletes what others made."""
        read: dict[str, set[str]] = {}
        for entry in (entry for stage in stages for entry in stage.get("params", [])):
            for file, names in entry.items():
                read.setdefault(file, set()).update(names)
        some = self.methods != methods.available()
        names = ["--methods", ",".join(self.methods)] if some else []
        command = ["python -m", f"{PACKAGE}.versioning.check", self._checked]
        stage = {
            "desc": "Parameters that every stage can read, and code that every method rests on",
            "cmd": " ".join([*command, *self._in_env(), *names]),
            "wdir": self._wdir,
            "deps": sorted(self._common),
            "params": [{file: sorted(parameters)} for file, parameters in sorted(read.items())],
            "outs": [f"{self._checked}/{name}" for name in (CODE_HASHES, CHECKED_PARAMETERS)],
        }
        return {key: value for key, value in stage.items() if value}

    @property
    def _checked(self) -> str:
        return f"{CHECKED}/{self._loader['globals']['run']}"

    @property
    def _wdir(self) -> str | None:
        return "../.." if self.env else None

    def _in_env(self) -> list[str]:
        return ["--env", self.env] if self.env else []

    def _stage(self, pipeline: str) -> dict[str, Any]:
        needed, made = self._datasets(pipeline)
        metrics = {name for name in made if _kind(name) in METRICS}
        pictures = {name for name in made if self._is_picture(name)}
        tables = {name for name in made if _kind(name) in PLOTS}
        stage = {
            "desc": _description(pipeline),
            "cmd": self._command(pipeline),
            "wdir": self._wdir,
            "deps": sorted({*self._code_listed(pipeline), *self._files_listed(pipeline)}),
            "params": self._parameters(needed),
            "outs": self._files(made - metrics - pictures - tables),
            "metrics": self._files(metrics),
            "plots": [
                *self._files(pictures),
                *({self._file(name): dict(PLOTS[_kind(name)])} for name in sorted(tables)),
            ],
        }
        return {key: value for key, value in stage.items() if value}

    def _nodes(self, pipeline: str) -> list[NodeSnapshot]:
        snapshot = next(p for p in self._snapshot.pipelines if p.name == pipeline)
        return [node for node in snapshot.nodes if node.namespace == pipeline]

    def _datasets(self, pipeline: str) -> tuple[set[str], set[str]]:
        """Return what the stage needs, and what it makes."""
        nodes = self._nodes(pipeline)
        made = {name for node in nodes for name in node.outputs}
        return {name for node in nodes for name in node.inputs} - made, made

    def _files_listed(self, pipeline: str) -> set[str]:
        """Return the files that the stage needs; of prepared data their folder, all of it data."""
        needed, (_, data) = self._datasets(pipeline)[0], self._datasets(DATA)
        folders = {Path(file).parent.as_posix() for file in self._files(needed & data)}
        if pipeline == COMPARE:
            needed = needed | {f"{method}.{COMPARED}" for method in self.methods}
        return folders | {*self._files(needed - data)}

    def _code_listed(self, pipeline: str) -> set[str]:
        """Return the code of the stage, where a file stands for what all methods rest on."""
        if pipeline in self.methods:
            return self._codes[pipeline] - self._common | {f"{self._checked}/{CODE_HASHES}"}
        return self._code(pipeline) | {f"{self._checked}/{CHECKED_PARAMETERS}"}

    @cached_property
    def _common(self) -> set[str]:
        """Return the code that every method rests on."""
        return set.intersection(*self._codes.values())

    @cached_property
    def _codes(self) -> dict[str, set[str]]:
        """Return the code of every method's stage."""
        return {name: self._code(name) for name in methods.available()}

    def _command(self, pipeline: str) -> str:
        # those of the others begin with the data's nodes, which are a stage of their own
        only = ["--namespaces", pipeline] if pipeline != DATA else []
        return " ".join(["kedro run --pipelines", pipeline, *only, *self._in_env()])

    def _code(self, pipeline: str) -> set[str]:
        """Return the rooms and files that the nodes, their datasets and their methods rest on."""
        needed, made = self._datasets(pipeline)
        files = {node.source.filepath for node in self._nodes(pipeline) if node.source}
        roots = {".".join(Path(f).relative_to("src").with_suffix("").parts) for f in files}
        data = [name for name in {*needed, *made} if not name.startswith(PARAMETERS)]
        roots |= {self._dataset(name)["type"].rpartition(".")[0] for name in data}
        blocks = {name.removeprefix(PARAMETERS) for name in needed}
        own = blocks & {*methods.available()}
        roots |= {f"{PACKAGE}.learning.methods.{name}" for name in own}
        return _rests_on(name for name in roots if name.startswith(PACKAGE))

    def _parameters(self, needed: set[str]) -> list[dict[str, list[str]]]:
        """Return the parameters that a stage reads, by the files that say them."""
        read = {n.removeprefix(PARAMETERS) for n in needed if n.startswith(PARAMETERS)}
        read -= NOT_DECISIVE
        conf, by_file = self.project / "conf", dict[Path, list[str]]()
        for recipe, blocks in self._loader.recipes().items():
            names = [f"recipes.{recipe}.{name}" for name in sorted(read & {*blocks})]
            by_file.setdefault(conf / BASE / "globals.yml", []).extend(names)
            by_file[conf / str(self.env) / "globals.yml"] = ["uses"]
        by_file |= {file: sorted(read & blocks) for file, blocks in self._blocks.items()}
        relative = {file.relative_to(self.project).as_posix(): by_file[file] for file in by_file}
        return [{file: names} for file, names in relative.items() if names]

    @cached_property
    def _blocks(self) -> dict[Path, set[str]]:
        """Return which blocks of parameters each file says."""
        conf, folders = self.project / "conf", dict.fromkeys((BASE, self.env or BASE))
        files = [f for name in folders for f in sorted((conf / name).glob("parameters*.yml"))]
        return {file: {*(yaml.load(file.read_text(), Loader=LOADER) or {})} for file in files}

    def _recalls(self) -> dict[str, Any]:
        up = "../../" if self.env else ""
        tables = (up + self._file(f"{name}.class_table") for name in self.methods)
        return {"x": "class", "y": dict.fromkeys(tables, "recall")}

    def _files(self, names: Iterable[str]) -> list[str]:
        """Return the files of datasets; a folder that a node manages by itself is not one."""
        data = [name for name in names if not name.startswith(PARAMETERS)]
        kept = [name for name in data if not self._type(name).endswith(("Folder", "Memory"))]
        return sorted(self._file(name) for name in kept)

    def _is_picture(self, name: str) -> bool:
        return self._type(name).endswith("Matplotlib")

    def _type(self, name: str) -> str:
        return str(self._dataset(name)["type"]).removesuffix("Dataset")

    def _file(self, name: str) -> str:
        return str(self._dataset(name)["filepath"])

    def _dataset(self, name: str) -> Mapping[str, Any]:
        config = self._catalog.resolve_pattern(name)
        # kedro-mlflow's artifact datasets wrap the one with the file
        plain: Mapping[str, Any] = config.get("dataset", config)
        return plain


def _rests_on(modules: Iterable[str]) -> set[str]:
    """Return the rooms and files of this package that ``modules`` are in or import."""
    wanted = {*modules}
    own = {name for name in wanted if name.startswith(f"{PACKAGE}.learning.methods.")}
    common, finder = _imported(frozenset(wanted - own)), _finder()
    finder.modules, finder.badmodules = {**common.modules}, {**common.badmodules}
    for name in own:
        finder.import_hook(name)
    files = {Path(file) for m in finder.modules.values() if (file := getattr(m, "__file__", None))}
    if CHECKS in finder.badmodules:
        files.add(CODE.parent.joinpath(*CHECKS.split(".")).with_suffix(".py"))
    places = (_place(file) for file in files if file.is_relative_to(CODE))
    return {place.relative_to(PROJECT).as_posix() for place in places if place}


@cache
def _imported(modules: frozenset[str]) -> ModuleFinder:
    """Return what has found all that ``modules`` import, which many stages have in common."""
    finder = _finder()
    for name in modules:
        finder.import_hook(name)
    return finder


def _finder() -> ModuleFinder:
    return ModuleFinder([str(CODE.parent)], excludes=[CHECKS, *NOT_CODE])


def _place(file: Path) -> Path | None:
    """Return the room that ``file`` is in, or itself; None for what only stands around rooms."""
    around = file.name == "__init__.py" and file.parent != METHODS
    return next((p for p in file.parents if p in ROOMS), None if around else file)


def _kind(name: str) -> str:
    """Return the dataset's name without its method's."""
    return name.rpartition(".")[2]


def _description(pipeline: str) -> str:
    if pipeline in DESCRIPTIONS:
        return DESCRIPTIONS[pipeline]
    return (methods.get(pipeline).__doc__ or "").splitlines()[0].rstrip(".")


@click.command()
@click.option("--env", help="Folder of conf/: its stages go to conf/<env>/dvc.yaml.")
@click.option("--methods", "names", help="Stages of these methods only, split at commas.")
def main(env: str | None, names: str | None) -> None:
    """Write dvc.yaml from the Kedro pipelines and catalog."""
    try:
        text = render(env, names.split(",") if names else ())
    except UserError as error:
        raise click.ClickException(str(error)) from error
    path = path_of(env or BASE, PROJECT)
    path.write_text(text)
    click.echo(f"{path.relative_to(PROJECT)}: {len(yaml.safe_load(text)['stages'])} stages")


if __name__ == "__main__":
    main()
