"""Workers of a sweep on the machines of a Ray cluster that this machine is part of.

Trials are kept where they are without Ray: in a database, or in a file of this machine. That file
is read and written by one of the cluster's processes, here, for all the others.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from lt_pipeline.learning.schema import UnreachableError, UserError
from lt_pipeline.tracking.processes import this_process
from lt_pipeline.tuning.config import TuneConfig
from lt_pipeline.tuning.processes import cores
from lt_pipeline.tuning.storage import JOURNAL, journal_file
from lt_pipeline.tuning.workers import STOP_SECONDS, keep_working, last_line, places
from lt_pipeline.versioning.git import hashed

# Ray reads them when it is imported. What it prints of processes that die would tear the lines of a
# sweep apart, which say the same.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
try:
    import ray
    from ray.exceptions import RayActorError, RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise UserError(
        f"tune.engine is ray, which is not installed ({error}): pip install 'lt_pipeline[ray]', "
        f"or leave tune.engine at processes"
    ) from error

LOGGER = logging.getLogger(__name__)
ADDRESS_VARIABLE = "RAY_ADDRESS"
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
# an address that does not answer keeps Ray waiting for minutes, so another process tries it
PROBE = f"import ray, sys; ray.init(sys.argv[1], **{QUIET})"
KNOCK_SECONDS, PROBE_SECONDS, PLACE_SECONDS = 5, 20, 15
# what workers on other machines take over from this one's environment
HANDED_ON = ("MLFLOW_", "OPTUNA_")


def address_of(config: TuneConfig) -> str | None:
    """Return where the cluster is; None if one is started for this sweep."""
    return config.address or os.environ.get(ADDRESS_VARIABLE) or None


def check_cluster(config: TuneConfig) -> None:
    """Refuse a cluster that does not answer.

    Raises:
        UnreachableError: naming the address, what went wrong and what to do.
        UserError: if the address is none of a cluster.
    """
    address = address_of(config)
    if address is None:
        return
    host, _, port = address.rpartition(":")
    if address != "auto" and not (port.isdigit() and "/" not in host):
        raise UserError(
            f"tune.address is a machine and a port, as in head:6379, or auto for the cluster that "
            f"this machine is part of, but got {address!r}"
        )
    try:
        if address != "auto":
            socket.create_connection((host.strip("[]"), int(port)), KNOCK_SECONDS).close()
        _probe(address)
    except OSError as error:
        raise UnreachableError(
            f"the Ray cluster at tune.address {address} cannot be reached from this machine "
            f"({error}): `ray start --head` starts one, `ray start --address=HEAD:6379` makes a "
            f"machine part of it; or leave tune.address null for workers on this machine"
        ) from error


def _probe(address: str) -> None:
    wait = {"RAY_gcs_server_request_timeout_seconds": str(KNOCK_SECONDS)}
    try:
        subprocess.run(
            [sys.executable, "-c", PROBE, address],
            env={**os.environ, **wait},
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        reason = _last_line((error.stderr or b"").decode(errors="replace"))
        why = f", which says: {reason}" if reason else ""
        raise UnreachableError(f"no answer in {PROBE_SECONDS} s from Ray{why}") from None
    except subprocess.CalledProcessError as error:
        raise UnreachableError(_last_line(error.stderr)) from None


@contextmanager
def connected(config: TuneConfig) -> Iterator[None]:
    """Be connected to the cluster; without an address, to one that ends with this process."""
    address = address_of(config)
    if address:
        ray.init(address, **QUIET)
    else:
        # as the processes that they stand for; Ray's workers would yield to all else
        os.environ.setdefault("RAY_worker_niceness", "0")
        room = max(cores(), config.workers)
        ray.init("local", num_cpus=room, include_dashboard=False, **QUIET)
    try:
        yield
    finally:
        ray.shutdown()


class _File:
    """A study's file, for processes that cannot open it."""

    def __init__(self, path: Path) -> None:
        self.journal = journal_file(path)

    def read(self, start: int) -> list[dict[str, Any]]:
        return list(self.journal.read_logs(start))

    def append(self, logs: list[dict[str, Any]]) -> None:
        self.journal.append_logs(logs)


class SharedJournal(BaseJournalBackend):
    """The study's file of the machine that made this, wherever in the cluster it is used."""

    def __init__(self, path: Path) -> None:
        here = ray.get_runtime_context().get_node_id()
        strategy = NodeAffinitySchedulingStrategy(here, soft=False)
        self.file = _actor(_File, num_cpus=0, scheduling_strategy=strategy).remote(path)

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """Return what was written since ``log_number_from``."""
        logs: list[dict[str, Any]] = ray.get(self.file.read.remote(log_number_from))
        return logs

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write ``logs``."""
        ray.get(self.file.append.remote(logs))


class _Trials:
    """A process of the cluster that does trials."""

    def __init__(self, environment: Mapping[str, str], folder: Path, code: str) -> None:
        logging.basicConfig(level=logging.INFO)
        if _code() != code:
            raise UserError(
                f"lt_pipeline on {socket.gethostname()} is another than where the sweep was "
                f"started: install the same there"
            )
        os.environ.update(environment)
        if folder.is_dir():
            os.chdir(folder)

    def key(self) -> str:
        return str(this_process()["key"])

    def work(self, task: Any) -> None:
        if task.folder.is_dir():
            task.work()
            return
        # another machine, without a folder in common
        with tempfile.TemporaryDirectory(prefix="lt_pipeline-") as folder:
            replace(task, folder=Path(folder)).work()


class RayWorker:
    """A worker at a ``place`` of the cluster, given a task that is in the cluster's memory."""

    def __init__(self, place: Mapping[str, float], task: Any, log: Path) -> None:
        self.place, self.task, self.log = place, task, log
        self.killed: str | None = None

    def start(self) -> None:
        """Ask for a process, which waits until the cluster has a place for it."""
        environment = {k: v for k, v in os.environ.items() if k.startswith(HANDED_ON)}
        self._actor = _actor(_Trials, **self.place).remote(environment, Path.cwd(), _code())
        self._key, self._done = self._actor.key.remote(), self._actor.work.remote(self.task)
        self.killed = None

    @property
    def key(self) -> str | None:
        """Return what tells its process from all others; None before it has a place."""
        with suppress(RayError):
            return str(ray.get(self._key)) if _is_there(self._key) else None
        return None

    def ended(self) -> bool:
        """Return whether the process is gone.

        Raises:
            UserError: with what it refused.
            ChildProcessError: with what went wrong, if it failed by itself.
        """
        if not _is_there(self._done):
            return False
        try:
            ray.get(self._done)
        except RayError as error:
            if isinstance(error, RayTaskError) or getattr(error, "actor_init_failed", False):
                self.log.write_text(str(error))
                kind = UserError if _is_refused(error) else ChildProcessError
                reason = _last_line(str(error)).split("UserError: ")[-1]
                raise kind(f"a worker failed: {reason} (all of it: {self.log})") from error
            # one that only cannot be reached would go on
            self.stop()
            self.killed = "or its machine is gone"
        return True

    def stop(self) -> None:
        """End the process."""
        with suppress(RayActorError):
            ray.kill(self._actor)

    def wait(self) -> None:
        """Wait until the process is gone."""
        ray.wait([self._done], timeout=STOP_SECONDS)


def run_workers(
    task: Any, config: TuneConfig, device: str, follow: Callable[[list[str]], bool], restarts: int
) -> None:
    """Let the cluster's processes work on ``task``, as ``keep_working`` has it.

    Raises:
        UserError: if the cluster has no room for a worker, or cannot reach MLflow, if a worker
            refuses something, or too many were killed.
        ChildProcessError: if a worker fails by itself.
    """
    with connected(config):
        nodes = [node for node in ray.nodes() if node["Alive"]]
        task.tracked.check_reach(len({node["NodeManagerHostname"] for node in nodes}))
        rooms = places([node["Resources"] for node in nodes], config.workers, device)
        journal = SharedJournal(task.folder / JOURNAL) if config.storage is None else None
        given = ray.put(replace(task, owner=this_process(), journal=journal))
        workers = [RayWorker(room, given, task.folder / "worker.log") for room in rooms]
        since: list[float] = [time.monotonic()]

        def warn_and_follow(dead: list[str]) -> bool:
            waiting = [worker for worker in workers if worker.key is None]
            if waiting and since and time.monotonic() - since[0] > PLACE_SECONDS:
                since.clear()
                LOGGER.warning(
                    "%d of %d workers wait for a place in the Ray cluster, of %s for each",
                    len(waiting),
                    len(workers),
                    rooms[0],
                )
            return follow(dead)

        keep_working(workers, warn_and_follow, restarts)


def _actor(kind: type, **place: Any) -> Any:
    return ray.remote(kind).options(**place)


def _is_there(result: Any) -> bool:
    return bool(ray.wait([result], timeout=0)[0])


def _is_refused(error: RayError) -> bool:
    """Return whether it was a refusal of ours, when it began or later: Ray's errors are both."""
    return isinstance(error, UserError) or UserError.__name__ in _last_line(str(error))


def _last_line(text: str) -> str:
    # without the time and the place in Ray's own code
    return last_line(text).split("] ", 1)[-1]


def _code() -> str:
    """Return what tells this code from any other."""
    return hashed(Path(__file__).parents[1])
