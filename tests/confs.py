"""What conf/ says, read once a process: reading it takes half a second."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from lt_pipeline.io.conf_loader import ConfLoader
from lt_pipeline.settings import CONFIG_LOADER_ARGS
from toys import PROJECT


class Loader(ConfLoader):
    """It has the parameters of conf/base of the first that read them."""

    base: ClassVar[dict[Path, Any]] = {}

    def _read_dir_configs(
        self, conf_path: str, patterns: Any, key: str, seen: set[Path], *rest: Any
    ) -> dict[Path, Any]:
        if (key, Path(conf_path).name) != ("parameters", "base"):
            return super()._read_dir_configs(conf_path, patterns, key, seen, *rest)
        if not self.base:
            self.base.update(super()._read_dir_configs(conf_path, patterns, key, seen, *rest))
        seen.update(self.base)
        return dict(self.base)


@cache
def _read(environment: str, kind: str) -> dict[str, Any]:
    # a new one each time: the loader that was made last answers ${globals:...}
    loader = Loader(str(PROJECT / "conf"), environment, **CONFIG_LOADER_ARGS)
    conf: dict[str, Any] = loader[kind]
    return conf


def parameters(environment: str = "base") -> dict[str, Any]:
    """Return the parameters of an environment, the caller's own."""
    return deepcopy(_read(environment, "parameters"))


def catalog(environment: str = "base") -> dict[str, Any]:
    """Return the catalog of an environment, the caller's own."""
    return deepcopy(_read(environment, "catalog"))
