"""Kedro's loader of conf/, which refuses in one line what it would misread or trip over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import click
import yaml
from kedro.config import OmegaConfigLoader
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lt_pipeline.io.one_session import check_alone
from lt_pipeline.io.yaml_text import check_yaml
from lt_pipeline.learning.experiments.renamed import renamed
from lt_pipeline.learning.schema import UserError, shown, unknown

# the files whose blocks Kedro puts together
BLOCKS = ("parameters", "catalog", "globals", "mlflow", "credentials")


class ConfLoader(OmegaConfigLoader):
    """Reads conf/ as Kedro does, once every file is known to say what it seems to.

    Recipes lie below an environment, and parameters may have their former names. Files of globals
    and parameters are read once.
    """

    def __init__(self, conf_source: str, env: str | None = None, **options: Any) -> None:
        """Check all files of the environment and of those below it.

        Raises:
            click.ClickException: naming a file and line that are no YAML, or would be misread;
                or where a session is at work in another thread.
        """
        folders = {options.get("base_env"), env or options.get("default_run_env")} - {None}
        try:
            check_alone()  # a loader answers ${globals:...} for the whole process from now on
            for folder in sorted(map(str, folders)):
                _check_files(Path(conf_source) / folder)
            options["runtime_params"] = renamed(options.get("runtime_params") or {})
        except UserError as error:
            # before any hook that could say it in one line
            raise click.ClickException(str(error)) from None
        super().__init__(conf_source=conf_source, env=env, **options)
        self["globals"] = self._globals

    def __getitem__(self, key: str) -> Any:
        """Return the configuration ``key``.

        Raises:
            UserError: in one line, where what was given does not fit conf/, or a file is no YAML.
        """
        try:
            return super().__getitem__(key)
        except OmegaConfBaseException as error:
            raise UserError(self._why(error)) from None
        except yaml.YAMLError as error:  # Kedro reads with PyYAML, which takes less
            raise UserError(" ".join(str(error).split())) from None

    def recipes(self) -> dict[str, dict[str, Any]]:
        """Return the recipes that the environment lies over, by name, the uppermost last.

        Raises:
            UserError: if globals.yml has none of such a name.
        """
        known, used = (self["globals"].get(name, {}) for name in ("recipes", "uses"))
        where = f"{self.env or self.default_run_env}/globals.yml: uses"
        if isinstance(used, str):
            raise UserError(f"{where}: must be a list of recipes, but got {shown(used)}")
        for name in used:
            if name not in known:
                raise UserError(f"{where}: {unknown('recipe', name, known)}")
        return {name: known[name] for name in used}

    def as_written(self) -> dict[str, Any]:
        """Return the parameters of conf/ without those of the command line, made once."""
        return self._as_written

    @cached_property
    def _as_written(self) -> dict[str, Any]:
        given, self.runtime_params, self._runtime_params_oc = self.runtime_params, {}, None
        try:
            read = deepcopy(self._parameters)
            written: dict[str, Any] = self._resolve_from_raw_config("parameters", *read)
        finally:
            self.runtime_params = given
        return written

    def _read_raw_config(self, key: str) -> Any:
        # what is made of parameters uses up what was read; where the command line changes them, it
        # is asked for again without that
        if key == "parameters" and self.runtime_params:
            return deepcopy(self._parameters)
        return super()._read_raw_config(key)

    def _merge_configs(self, config: Any, env_config: Any, key: str, env_path: str) -> Any:
        # Kedro would take apart and put together again also what an environment leaves as it is
        changed = {name: config[name] for name in env_config if name in config}
        return {**config, **super()._merge_configs(changed, env_config, key, env_path)}

    @cached_property
    def _parameters(self) -> Any:
        return super()._read_raw_config("parameters")

    def _read_dir_configs(
        self, conf_path: str, patterns: Iterable[str], key: str, *rest: Any
    ) -> dict[Path, DictConfig]:
        files: dict[Path, DictConfig] = super()._read_dir_configs(conf_path, patterns, key, *rest)
        if key != "parameters":
            return files
        below = self.recipes() if Path(conf_path).name != self.base_env else {}
        files = {Path(name): OmegaConf.create(recipe) for name, recipe in below.items()} | files
        return {path: _by_new_names(file) for path, file in files.items()}

    def use(self, **values: str) -> None:
        """Put ``values`` in the place of what conf/*/globals.yml says."""
        self["globals"] = {**self["globals"], **values}
        self._globals_oc = None  # Kedro's own copy, if it has read a file with globals before

    def _why(self, error: OmegaConfBaseException) -> str:
        name, why = error.full_key, str(error).partition("\n")[0]
        if name:
            return f"{name}: {why}"
        pairs = combinations([*self._written(), self.runtime_params or {}], 2)
        return next((clash for pair in pairs for clash in _clashes(*pair)), why)

    def _written(self) -> Iterator[dict[Any, Any]]:
        """Yield what every recipe and file of parameters says."""
        for folder in dict.fromkeys([self.base_env, self.env or self.default_run_env]):
            yield from self.recipes().values() if folder != self.base_env else ()
            for file in _files(Path(self.conf_source) / folder):
                if file.name.startswith("parameters"):
                    yield _plain(OmegaConf.load(file))  # type: ignore[arg-type]


def _by_new_names(file: DictConfig) -> DictConfig:
    """Return ``file`` with its ``${...}`` as they are written, anew if a name in it is old."""
    written = _plain(file)
    current = renamed(written)
    return file if current == written else OmegaConf.create(current)


def _plain(file: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(file)  # type: ignore[return-value]


def environments(conf: Path) -> list[str]:
    """Return the names of the environments in ``conf``, and of the base below them."""
    return sorted(path.parent.name for path in conf.glob("*/globals.yml"))


def _files(folder: Path) -> list[Path]:
    """Return the files of ``folder`` that Kedro may read."""
    return sorted(f for f in folder.rglob("*") if f.suffix in (".yml", ".yaml", ".json"))


def _check_files(folder: Path) -> None:
    for file in _files(folder):
        source = str(file.relative_to(folder.parents[1]))
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{source}: is no UTF-8 ({error})") from None
        parts = file.relative_to(folder).parts
        check_yaml(text, source, block=any(part.startswith(BLOCKS) for part in parts))


def _clashes(written: Mapping[str, Any], given: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yield in words where a block was given for a list, or a list for a block."""
    for name in written.keys() & given.keys():
        old, new = written[name], given[name]
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _clashes(old, new, f"{path}{name}.")
        elif isinstance(old, Mapping) and isinstance(new, list):
            yield f"{path}{name}: must be a block of parameters, but got {shown(new)}"
        elif isinstance(old, list) and isinstance(new, Mapping):
            yield f"{path}{name}: must be a list, but got a block of parameters: {shown(new)}"
