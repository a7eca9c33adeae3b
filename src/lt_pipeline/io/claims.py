"""Which folders runs are using: a file that is locked as long as its run lives, who that is beside.

A claim is ``<place>/<folder>/<host>-<pid>-<letters>.lock``. The system gives the lock back however
a process ends; what a killed one left is removed by the next that looks.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lt_pipeline.learning.engine.checkpoint import atomic_path
from lt_pipeline.learning.schema import UnwritableError, UserError

# in a project's folder; DVC and git keep nothing of it
PLACE = Path("data/.claims")
# kinds of folders: what a method, study or comparison writes, and prepared data
RUNS, DATA = "runs", "data"
# the folders of data/ that have one for each run
STAGES = ("03_primary", "05_model_input", "06_models", "08_reporting")
PARAMETERS = "parameters"
MUTEX_SECONDS = 60  # it is held for milliseconds, or while a folder is removed


@dataclass(frozen=True)
class Claim:
    """A folder that a run is about to use.

    Attributes:
        folder: below the place of all claims, as in ``runs/digits/more``.
        what: the same for people.
        key: runs of equal keys may use it at once; of None nobody else may.
    """

    folder: str
    what: str
    key: str | None = None


@dataclass(frozen=True)
class Holder:
    """A process that uses a folder, since when, by which command."""

    host: str
    pid: int
    command: str
    started: str
    key: str | None = None

    def __str__(self) -> str:
        where = "" if self.host == socket.gethostname() else f" on {self.host}"
        return f"process {self.pid}{where} since {self.started} ({self.command})"


@contextmanager
def claimed(place: Path, claims: Iterable[Claim], command: str) -> Iterator[None]:
    """Hold ``claims`` while the block runs: all of them, or none.

    Raises:
        UserError: in one line that names the process, where another run uses one of the folders.
        UnwritableError: where ``place`` cannot be written.
    """
    wanted = list(claims)
    with ExitStack() as held:
        with _mutex(place):
            for claim in wanted:
                _refuse_second(place, claim)
            for claim in wanted:
                held.enter_context(_hold(place / claim.folder, claim.key, command))
        yield


def holders(folder: Path) -> dict[Path, Holder]:
    """Return who uses ``folder`` or one below it, by the file that is locked; clear up others'."""
    held = {}
    for lock in sorted(folder.rglob("*.lock")):
        holder = _read(lock.with_suffix(".json"))
        if holder and _is_held(lock):
            held[lock] = holder
        else:
            _remove(lock)
    return held


def note(place: Path, name: str, parameters: Mapping[str, Any]) -> None:
    """Keep what the folder ``name`` is of, for the list of folders."""
    with atomic_path(place / PARAMETERS / f"{name}.json") as path:
        path.write_text(json.dumps(parameters, default=str))


@dataclass(frozen=True)
class Folder:
    """What runs left under one name.

    Attributes:
        name: below the folders of ``STAGES``.
        size: in bytes, all of them together.
        written: seconds since the epoch, of the file that was written last.
        parameters: what is not as conf/ says, by path; None if that is not known.
        used_by: the processes that use it.
    """

    name: str
    size: int
    written: float
    parameters: dict[str, Any] | None
    used_by: tuple[Holder, ...]

    @property
    def is_own(self) -> bool:
        """Return whether it is of parameters of a command line, and not an environment's."""
        return "+" in self.name


def folders(project: Path) -> list[Folder]:
    """Return all folders of runs, by name."""
    with _mutex(project / PLACE):
        return [_folder(project, name) for name in sorted(_names(project))]


def remove(project: Path, names: Iterable[str]) -> None:
    """Remove the folders ``names``, each from all stages: all of them, or none.

    Raises:
        UserError: in one line, if there is none of a name, or a run is using it.
    """
    wanted, place = list(names), project / PLACE
    with _mutex(place):
        known = _names(project)
        for name in wanted:
            if name not in known:
                raise UserError(f"there is no folder {name!r}: kedro folders lists them")
            for holder in _users(place, name):
                raise UserError(f"{name} is in use by {holder}: nothing is removed")
        for name in wanted:
            for stage in STAGES:
                shutil.rmtree(project / "data" / stage / name, ignore_errors=True)
            (place / PARAMETERS / f"{name}.json").unlink(missing_ok=True)


@contextmanager
def writing(place: Path) -> Iterator[FileLock]:
    """Yield a lock, to be taken, of those that write or read the same files of a folder."""
    place.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place / ".writing")
    try:
        yield lock
    finally:
        lock.release(force=True)


@contextmanager
def _mutex(place: Path) -> Iterator[None]:
    try:
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / ".mutex", timeout=MUTEX_SECONDS):
            yield
    except Timeout:
        raise UserError(
            f"{place / '.mutex'} has been locked for {MUTEX_SECONDS} s: another run begins, or "
            f"folders are being removed; try again"
        ) from None
    except OSError as error:
        raise UnwritableError(f"cannot write {place}: {error.strerror or error}") from None


def _refuse_second(place: Path, claim: Claim) -> None:
    for holder in holders(place / claim.folder).values():
        if claim.key is None or holder.key != claim.key:
            raise UserError(f"{claim.what} is in use by {holder}: wait for it, or end it")


@contextmanager
def _hold(folder: Path, key: str | None, command: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    host, started = socket.gethostname(), datetime.now().isoformat(" ", "seconds")
    path = folder / f"{host}-{os.getpid()}-{secrets.token_hex(4)}.lock"
    lock = FileLock(path)
    lock.acquire(timeout=0)
    holder = Holder(host, os.getpid(), command, started, key)
    try:
        path.with_suffix(".json").write_text(json.dumps(asdict(holder)))
        yield
    finally:
        _remove(path)
        lock.release()


def _remove(lock: Path) -> None:
    for path in (lock.with_suffix(".json"), lock):
        path.unlink(missing_ok=True)


def _is_held(path: Path) -> bool:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _read(path: Path) -> Holder | None:
    """Return who is told in ``path``; None where a run was killed before it had written it."""
    try:
        return Holder(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _names(project: Path) -> set[str]:
    paths = (path for stage in STAGES for path in (project / "data" / stage).glob("*"))
    return {path.name for path in paths if path.is_dir()}


def _folder(project: Path, name: str) -> Folder:
    place, below = project / PLACE, [project / "data" / stage / name for stage in STAGES]
    files = [file.lstat() for folder in below for file in folder.rglob("*") if file.is_file()]
    path = place / PARAMETERS / f"{name}.json"
    return Folder(
        name=name,
        size=sum(file.st_size for file in files),
        written=max((file.st_mtime for file in files), default=0.0),
        parameters=json.loads(path.read_text()) if path.exists() else None,
        used_by=tuple(_users(place, name)),
    )


def _users(place: Path, name: str) -> list[Holder]:
    by_kind = (holders(place / kind / name).values() for kind in (RUNS, DATA))
    return list(dict.fromkeys(holder for users in by_kind for holder in users))
