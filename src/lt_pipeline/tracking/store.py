"""Opening the store of runs, once at the start and within seconds; what is wrong is one line."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import filelock
import mlflow
from mlflow.exceptions import MlflowException
from requests import RequestException

from lt_pipeline.io.imports import for_good
from lt_pipeline.learning.schema import UnreachableError, UnwritableError, UserError
from lt_pipeline.tracking.client import masked, reason

# what SQLite says, by itself and through MLflow
DATABASE_FULL = "database or disk is full"
TIMEOUT_SECONDS = 5
# making the tables of a new database takes ten seconds on an idle machine
TABLES_SECONDS = 120
# of every call once a server is known to be gone
LAST_SECONDS = "2"
CHANGE = (
    "change server.mlflow_tracking_uri in conf/base/mlflow.yml or the environment variable "
    "MLFLOW_TRACKING_URI"
)
RIGHT = "sqlite:///mlflow.db, http://host:5000 or postgresql://user@host/name"
# their lines come before an error that is told anyway
for name in ("mlflow.store.db.utils", "mlflow.utils.databricks_utils", "urllib3.connectionpool"):
    logging.getLogger(name).setLevel(logging.CRITICAL)


def prepare(conf: Mapping[str, Any], project: Path) -> None:
    """Open the store that ``conf``, the content of mlflow.yml, names, for the run that begins.

    Raises:
        UserError: in one line, if a run cannot be logged there.
    """
    uri, tracked = conf["server"]["mlflow_tracking_uri"], conf["tracking"]
    experiment, created = tracked["experiment"]["name"], tracked["experiment"]
    open_store(uri)
    options = created.get("create_experiment_kwargs") or {}
    location = _location(options.get("artifact_location"), project)
    with _said_in_a_line(uri):
        make_experiment(uri, experiment, location, options.get("tags"))
        run = (tracked.get("run") or {}).get("id") or os.environ.get("MLFLOW_RUN_ID")
        if run:
            check_run(uri, str(run), experiment)


def open_store(uri: str) -> None:
    """Open the store of runs at ``uri``, before anything is computed.

    A new SQLite file gets its tables here, under a lock: of several first runs at once each would
    make them.

    Raises:
        UserError: if it is no address of a store that runs can be kept in.
        UnreachableError: naming the address, what went wrong and where to change it.
    """
    scheme = uri if uri in _NAMES else urlsplit(uri).scheme.split("+")[0] or _FOLDER
    with _said_in_a_line(uri), for_good("store"):
        _OPENED.get(scheme, _refuse)(uri)


def make_experiment(
    uri: str, name: str, location: str | None = None, tags: Mapping[str, str] | None = None
) -> None:
    """Make the experiment ``name`` unless it is there, or another run makes it just now."""
    client = mlflow.MlflowClient(uri)
    if client.get_experiment_by_name(name) is None:
        try:
            client.create_experiment(name, location, dict(tags or {}))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def check_run(uri: str, run: str, experiment: str) -> None:
    """Refuse a ``run`` to go on with that is not there, or not in ``experiment``.

    Raises:
        UserError: saying why and what would be right.
    """
    client, change = mlflow.MlflowClient(uri), "unset it, or name a run of"
    try:
        info = client.get_run(run).info
    except MlflowException as error:
        if unreachable(error):
            raise
        why = f"there is no run {run!r} in {masked(uri)}"
        raise UserError(f"MLFLOW_RUN_ID: {why}; {change} {experiment}") from None
    if info.lifecycle_stage != "active":
        raise UserError(f"MLFLOW_RUN_ID: the run {run} is deleted; {change} {experiment}")
    other = client.get_experiment(info.experiment_id).name
    if other != experiment:
        raise UserError(f"MLFLOW_RUN_ID: the run {run} is of {other}; {change} {experiment}")


def unreachable(error: BaseException | None) -> str | None:
    """Return in a line why the store does not answer, if that is what led to ``error``."""
    from sqlalchemy.exc import OperationalError  # as below

    seen = set[int]()
    while error is not None and id(error) not in seen:
        if isinstance(error, RequestException | OperationalError | sqlite3.OperationalError):
            return first_line(error)
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def no_space(uri: str) -> UnwritableError:
    """Return in a line that the disk of the store at ``uri`` is full."""
    return UnwritableError(
        f"no space left on device: {masked(uri)} cannot be written; make room and run again"
    )


def gone(error: BaseException) -> UserError | None:
    """Return in a line what to do if the store went away, which led to ``error``, in a run.

    The active run is ended, as far as that can be told in seconds.
    """
    why = unreachable(error)
    if why is None:
        return None
    with impatient():
        while mlflow.active_run():
            with suppress(MlflowException):
                mlflow.end_run("FAILED")
    if DATABASE_FULL in why:
        return no_space(mlflow.get_tracking_uri())
    return UnreachableError(
        f"the MLflow store {masked(mlflow.get_tracking_uri())} does not answer any more ({why}); "
        f"what was trained is kept: once it answers, run the same again, which goes on from there"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of what ``error`` says, without a password."""
    return masked(str(error).partition("\n")[0])


@contextmanager
def impatient() -> Iterator[None]:
    """Let a server have seconds for what is called inside, as it is known to be gone."""
    names = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT")
    before = {name: os.environ[name] for name in names}
    os.environ |= dict(zip(names, ("0", LAST_SECONDS), strict=True))
    try:
        yield
    finally:
        os.environ |= before


def _location(written: str | None, project: Path) -> str | None:
    """Return where artifacts go as kedro-mlflow would tell MLflow."""
    if written is None or urlsplit(written).scheme:
        return written
    return (project / written).as_uri()


@contextmanager
def _said_in_a_line(uri: str) -> Iterator[None]:
    """Turn whatever goes wrong with ``uri`` into one line."""
    from sqlalchemy.exc import SQLAlchemyError  # with the store: what is refused before needs none

    try:
        yield
    except UserError:
        raise
    except (
        *(OSError, SQLAlchemyError, sqlite3.Error, ImportError, HTTPException, ValueError),
        MlflowException,
    ) as error:
        if DATABASE_FULL in str(error):
            raise no_space(uri) from error
        raise UnreachableError(
            f"the MLflow tracking server {masked(uri)} cannot be reached ({reason(error)}); start "
            f"it, or {CHANGE}"
        ) from error


def _ask(uri: str) -> None:
    # anyone may ask for its health, and urllib takes a user for a part of the host's name
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    address = parts._replace(netloc=host, path=f"{parts.path.rstrip('/')}/health").geturl()
    with urlopen(Request(address), timeout=TIMEOUT_SECONDS):
        return


def _connect(uri: str) -> None:
    from sqlalchemy import create_engine

    limit = {"connect_timeout": TIMEOUT_SECONDS} if uri.startswith("postgresql") else {}
    create_engine(uri, connect_args=limit).connect().close()


def _open(uri: str) -> None:
    mlflow.MlflowClient(tracking_uri=uri).search_experiments(max_results=1)


def _open_file(uri: str) -> None:
    path = _sqlite_file(uri)
    path.parent.stat()
    # who may not write there makes no tables either
    writes = os.access(path.parent, os.W_OK)
    with filelock.FileLock(f"{path}.lock", TABLES_SECONDS) if writes else nullcontext():
        # MLflow tries for minutes to open what is no database
        with closing(sqlite3.connect(path, timeout=TIMEOUT_SECONDS)) as connection:
            connection.execute("PRAGMA schema_version")
        _open(uri)


def _sqlite_file(uri: str) -> Path:
    """Return the file of an address of SQLite.

    Raises:
        UserError: if it names none.
    """
    from sqlalchemy import make_url

    known = uri.partition(":///")[1] and make_url(uri)
    name = (known and known.database) or ""
    if not name or name == ":memory:" or name.startswith("file:"):
        raise UserError(
            f"the MLflow tracking address {uri} names no file: runs would be lost, or not begin; "
            f"name one, as in sqlite:///mlflow.db, or {CHANGE}"
        )
    if "/" in uri.partition("?")[2]:
        raise UserError(
            f"the MLflow tracking address {uri}: write ? in a path as %3F and % as %25; {CHANGE}"
        )
    if Path(name).is_dir():
        raise UserError(
            f"the MLflow tracking address {uri}: {name} is a folder, name a file in it; {CHANGE}"
        )
    return Path(name)


def _open_folder(uri: str) -> None:
    if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("true", "1"):
        raise UserError(
            f"the MLflow tracking address {uri} is a folder, in which MLflow keeps no runs any "
            f"more: name a database or a server, as in {RIGHT}; {CHANGE}"
        )
    _open(uri)


def _refuse(uri: str) -> None:
    raise UserError(
        f"the MLflow tracking address {masked(uri)} is none that keeps runs: right is, as in "
        f"{RIGHT}; {CHANGE}"
    )


_FOLDER = "file"
# what MLflow takes for a scheme without a colon
_NAMES = ("databricks", "databricks-uc", "uc")
_OPENED: Mapping[str, Callable[[str], None]] = {
    **dict.fromkeys(("http", "https"), _ask),
    **dict.fromkeys(("postgresql", "mysql", "mssql"), _connect),
    "sqlite": _open_file,
    "databricks": _open,
    _FOLDER: _open_folder,
}
