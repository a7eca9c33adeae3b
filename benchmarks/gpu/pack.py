"""Make a pack: plan, images and wheels, from conf/ and data/01_raw of this checkout."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu import tiles
from benchmarks.gpu.packs import METHODS, PLAN, WHEELS, Entry, Pack, command
from benchmarks.variants import PROJECT, Variant, dotted

from lt_pipeline.io.conf_loader import ConfLoader
from lt_pipeline.learning import methods
from lt_pipeline.learning.data.prepare import DataConfig, make_from
from lt_pipeline.learning.data.sources import load_source
from lt_pipeline.learning.experiments.config import (
    ExperimentConfig,
    check_parameters,
    data_config,
    updated,
)
from lt_pipeline.learning.schema import UserError
from lt_pipeline.learning.studies.config import StudyConfig
from lt_pipeline.settings import CONFIG_LOADER_ARGS

RAW = PROJECT / "data/01_raw"
# what every run is told beside its recipe: the best test epoch is printed, and no set is outside
CHANGES = ("training.monitor_test=true", "evaluation.ood=false")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("envs", nargs="+", help="folders of conf/, * stands for any letters")
    parser.add_argument("--ratios", type=float, nargs="+", default=[100, 50, 10])
    parser.add_argument("--studies", nargs="*", help="in place of those of each recipe")
    parser.add_argument(
        "--methods", nargs="*", help="name or label:name:key=value,... in place of all there are"
    )
    parser.add_argument("--params", nargs="*", default=[], help="as in training.monitor_every=5")
    parser.add_argument("--python", default="3.12", help="that the wheels are for; none: no wheels")
    parser.add_argument("--limit", type=float, default=60.0, help="MiB, of tree and pack")
    parser.add_argument("--out", type=Path, required=True)


def main(arguments: argparse.Namespace) -> None:
    envs = [
        path.name
        for path in sorted((PROJECT / "conf").iterdir())
        if any(fnmatch(path.name, pattern) for pattern in arguments.envs)
    ]
    made = [(env, *_loaded(env, arguments.params)) for env in envs]
    if not made:
        raise UserError(f"conf/ has no folder {' '.join(arguments.envs)}")
    hashes = _write_images([p for _, _, p in made], arguments.ratios, arguments.out)
    entries = [
        Entry(study=name, env=env, block=block, data=data, data_hash=hashes[data], arms=arms)
        for env, recipe, parameters in made
        for name, block, arms in _studies(recipe, parameters, arguments)
        for data in _data(parameters, arguments.ratios)
    ]
    pack = Pack(commit=_git("rev-parse", "--short", "HEAD"), command=command(), entries=entries)
    (arguments.out / PLAN).write_text(pack.model_dump_json())
    if arguments.python != "none":
        _download(arguments.python, arguments.out / "wheels")
    _weigh(arguments.out, arguments.limit)


def _loaded(env: str, params: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the recipe that ``conf/<env>`` is of, by its paper, and its parameters."""
    loader = ConfLoader(conf_source=str(PROJECT / "conf"), env=env, **CONFIG_LOADER_ARGS)
    parameters = updated(loader["parameters"], dotted([*CHANGES, *params]))
    check_parameters(parameters)
    return next(reversed(loader.recipes()), ""), parameters


def _studies(
    recipe: str, parameters: dict[str, Any], arguments: argparse.Namespace
) -> Iterator[tuple[str, StudyConfig, dict[str, ExperimentConfig]]]:
    """Yield the studies of a recipe, each with its arms' experiments, and that of methods."""
    names = arguments.studies
    if names is None:
        names = [name for name in parameters["studies"] if recipe and name.startswith(f"{recipe}_")]
    for name in names:
        block = StudyConfig.read(parameters["studies"][name], f"studies.{name}")
        yield name, block, block.experiments(parameters)
    arms = dict(_methods(parameters, arguments.methods))
    if arms:
        chosen = {label: {"method": config.method} for label, config in arms.items()}
        yield METHODS, StudyConfig.read({"title": "Methods", "arms": chosen}), arms


def _methods(
    parameters: dict[str, Any], asked: list[str] | None
) -> Iterator[tuple[str, ExperimentConfig]]:
    """Yield the experiments of the methods that are asked for, or of all that suit the data."""
    for label, method, changes in map(
        Variant.parse, methods.available() if asked is None else asked
    ):
        config = ExperimentConfig.resolve(method, updated(parameters, changes))
        try:
            config.check_data(data_config(parameters))
        except UserError:
            if asked is not None:
                raise
            continue  # as those that need outliers
        yield label, config


def _data(parameters: dict[str, Any], ratios: Iterable[float]) -> Iterator[DataConfig]:
    for ratio in ratios:
        yield data_config(updated(parameters, {"data": {"imbalance_ratio": ratio}}))


def _write_images(
    every: Iterable[dict[str, Any]], ratios: list[float], out: Path
) -> dict[DataConfig, str]:
    """Write the images of all data, one source after the other; return each set's hash."""
    wanted = list(dict.fromkeys(d for parameters in every for d in _data(parameters, ratios)))
    hashes: dict[DataConfig, str] = {}
    for name in dict.fromkeys(data.source for data in wanted):
        source, needed = load_source(name, RAW), set[int]()
        for data in (d for d in wanted if d.source == name):
            made = make_from(source, data, RAW)
            hashes[data] = made.card.data_hash
            needed.update(made.train_index.tolist(), made.validation_index.tolist())
        print(f"{name}: {len(needed):,} training images and {len(source.test):,} of the test set")
        tiles.write(source, torch.tensor(sorted(needed)), out / name)
    return hashes


def _download(python: str, folder: Path) -> None:
    """Gather the wheels of what is installed here, for ``python`` on x86-64."""
    shutil.rmtree(folder, ignore_errors=True)
    pinned = [f"{name}=={version(name)}" for name in WHEELS]
    words = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--implementation=cp"]
    words += [f"--python-version={python}", *(f"--platform={name}" for name in PLATFORMS)]
    subprocess.run([sys.executable, "-m", "pip", *words, f"--dest={folder}", *pinned], check=True)


def _weigh(out: Path, limit: float) -> None:
    """Say what pack and tree weigh, and refuse more than ``limit`` MiB."""
    tracked = (PROJECT / name for name in _git("ls-files").splitlines())
    tree = _mebibytes(tracked)
    packed = _mebibytes(out.rglob("*"))
    print(f"{out}: {packed:.1f} MiB, with the tree {tree + packed:.1f}")
    if tree + packed > limit:
        raise UserError(f"--limit is {limit:g} MiB: give fewer --ratios or sources")


def _mebibytes(paths: Iterable[Path]) -> float:
    return sum(path.stat().st_size for path in paths if path.is_file()) / 2**20


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=PROJECT, capture_output=True, text=True)
    return done.stdout.strip()
