"""Where the trials of a study are kept."""

from __future__ import annotations

import os
import time
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.exceptions import ExperimentalWarning
from optuna.storages import (
    BaseStorage,
    JournalStorage,
    RDBStorage,
    RetryHeartbeatStaleTrialCallback,
)
from optuna.storages.journal import (
    BaseJournalBackend,
    JournalFileBackend,
    JournalFileOpenLock,
)
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError

from lt_pipeline.learning.schema import UnreachableError, UserError
from lt_pipeline.tracking.client import masked, reason
from lt_pipeline.tuning.config import TuneConfig

warnings.filterwarnings("ignore", category=ExperimentalWarning)

CONNECT_SECONDS = 5
DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
JOURNAL = "journal.log"
# what Optuna adds for the name of its lock
LOCK_FILE_SUFFIX = ".lock"


class TryAgain(RetryHeartbeatStaleTrialCallback):
    """Queues a lost trial once more: its values, without what the lost process noted."""

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """Queue ``trial``, if it has not been tried too often."""
        # Optuna's own adds to the trial's list, and gives the process to the new one, too
        fresh = deepcopy(trial)
        fresh.user_attrs = {}
        super().__call__(study, fresh)


def open_storage(
    config: TuneConfig, folder: Path, journal: BaseJournalBackend | None = None
) -> BaseStorage:
    """Return where trials are kept: the database that was named, else a file in ``folder``.

    ``journal`` stands for that file on machines that do not have it.

    Raises:
        UnreachableError: if the database does not answer, or its driver is missing.
        UserError: if the address is none, or of a database that processes cannot share, or the
            file is damaged.
    """
    if config.storage is None:
        return JournalStorage(journal) if journal else _journal(folder / JOURNAL)
    scheme, _, rest = config.storage.partition("://")
    if scheme.startswith("sqlite"):
        raise UserError(
            "tune.storage is an SQLite file, which loses trials when several processes write: "
            "leave it null for a file that does not, or name a PostgreSQL database"
        )
    url = f"{DRIVERS.get(scheme, scheme)}://{rest}"
    try:
        return _database(url, config)
    except (SQLAlchemyError, ImportError, ValueError) as error:
        known = isinstance(error, ImportError)
        driver = " (pip install 'lt_pipeline[postgres]' brings PostgreSQL's driver)" * known
        raise UnreachableError(
            f"tune.storage {place_of(config, folder)} cannot be reached "
            f"({reason(error)}){driver}; start it, or leave tune.storage null for "
            f"a file on this machine"
        ) from error


class JournalLock(JournalFileOpenLock):
    """Lock of the journal ``path``: a file beside it.

    Optuna's own, a link to the journal, leads nowhere once the project is moved, and whoever wants
    the lock then waits for ever.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = Path(f"{path}{LOCK_FILE_SUFFIX}")

    def acquire(self) -> bool:
        """Wait for the lock and take it; one that was not released in 30 seconds is nobody's.

        Raises:
            UserError: if a process left Optuna's own lock, and the project was moved since.
        """
        if self.path.is_symlink() and not self.path.exists():
            raise UserError(
                f"{self.path} is a lock that a killed process left, from before the project was "
                f"moved: delete it"
            )
        return super().acquire()


def journal_file(path: Path) -> JournalFileBackend:
    """Return the journal ``path`` as what Optuna reads and writes."""
    return JournalFileBackend(str(path), JournalLock(path))


def _journal(path: Path) -> BaseStorage:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        _cut_last_line(path)
    try:
        return JournalStorage(journal_file(path))
    except UserError:
        raise
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it to search anew") from error


def _cut_last_line(path: Path) -> None:
    """Cut a line that a process left unfinished when it was killed: the next would be glued to it.

    Under the lock nobody is in the middle of one.
    """
    lock = JournalLock(path)
    lock.acquire()
    try:
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)
    finally:
        lock.release()


def _database(url: str, config: TuneConfig) -> BaseStorage:
    settings: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("postgresql"):
        settings["connect_args"] = {"connect_timeout": CONNECT_SECONDS}
    arguments: dict[str, Any] = {
        "engine_kwargs": settings,
        "heartbeat_interval": config.heartbeat,
        "heartbeat_stale_trial_callback": TryAgain(config.retries),
    }
    try:
        return RDBStorage(url, **arguments)
    except SQLAlchemyError as error:
        if "exist" not in str(error) and "unique" not in str(error):
            raise
        # another machine made the tables at the same moment
        time.sleep(1)
        return RDBStorage(url, **arguments)


def place_of(config: TuneConfig, folder: Path) -> str:
    """Return where trials are, for people: without the password."""
    if config.storage is None:
        return str(folder / JOURNAL)
    return masked(config.storage)
