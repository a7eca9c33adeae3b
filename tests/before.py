"""Runs of a version before rooms: a database, artifacts and files, made at 6041ad8 in /project."""

from __future__ import annotations

import sqlite3
import tarfile
from pathlib import Path

from toys import PROJECT

KEPT = PROJECT / "tests" / "fixtures" / "before_rooms.tar.xz"
EXPERIMENT = "digits-lt-ir10"
# of ce with seeds 0 and 1, of more that never ended, and of a study's arm
SEED_0, SEED_1 = "463986bb34464984893cf3e040f02779", "54d5b4a919e24629b20dbbdf8e2cffb0"
RUNNING, ARM = "bb169985546c438cac5ad97e65e35014", "c99ced4eae8644aea06bb93849bc9d5d"
PLACE = "/project/"


def unpack(folder: Path) -> Path:
    """Put all of it into ``folder``, as if it had been made there."""
    with tarfile.open(KEPT) as kept:
        # Python before 3.11.4 has none
        kept.extraction_filter = getattr(tarfile, "data_filter", None)
        kept.extractall(folder)
    with sqlite3.connect(folder / "mlflow.db") as database:
        for table, column in _texts(database):
            database.execute(
                f'update "{table}" set "{column}" = replace("{column}", ?, ?)',
                (PLACE, f"{folder}/"),
            )
    database.close()
    for model in folder.rglob("MLmodel"):
        model.write_text(model.read_text().replace(PLACE, f"{folder}/"))
    return folder


def _texts(database: sqlite3.Connection) -> list[tuple[str, str]]:
    tables = database.execute("select name from sqlite_master where type = 'table'").fetchall()
    return [
        (table, column)
        for (table,) in tables
        for _, column, kind, *_ in database.execute(f'pragma table_info("{table}")')
        if any(word in kind.upper() for word in ("CHAR", "TEXT"))
    ]
