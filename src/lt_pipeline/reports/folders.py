"""What runs left in ``data``, as lines for people: ``kedro folders``."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from lt_pipeline.io.claims import Folder, folders, remove

HEADING = ("folder", "MiB", "last written", "differs from conf/ in", "in use by")


def listed(project: Path) -> str:
    """Return a table of all folders."""
    rows = [HEADING, *(_row(folder) for folder in folders(project))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines) if len(rows) > 1 else "no run has written to data/ yet"


def removed(project: Path, names: Iterable[str], unused: bool) -> str:
    """Remove the folders ``names``, and of those with a ``+`` all that are ``unused``; say so.

    Raises:
        UserError: in one line, if one of ``names`` is not there or in use: nothing is removed.
    """
    by_name = {folder.name: folder for folder in folders(project)}
    free = [name for name, folder in by_name.items() if folder.is_own and not folder.used_by]
    wanted = list(dict.fromkeys([*names, *(free if unused else [])]))
    remove(project, wanted)
    size = sum(by_name[name].size for name in wanted)
    return f"removed {', '.join(wanted) or 'nothing'} ({_mebibytes(size)} MiB)"


def _row(folder: Folder) -> tuple[str, ...]:
    written = datetime.fromtimestamp(folder.written).isoformat(" ", "minutes")
    parameters = ", ".join(f"{path}={value}" for path, value in (folder.parameters or {}).items())
    nothing = "not known" if folder.is_own else "nothing"
    users = "; ".join(map(str, folder.used_by))
    return (
        folder.name,
        _mebibytes(folder.size),
        written if folder.written else "-",
        parameters or nothing,
        users or "-",
    )


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f}"
