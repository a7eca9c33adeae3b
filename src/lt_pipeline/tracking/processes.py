"""Which process a run or a trial is of, and whether it lives."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

import psutil


def this_process(owner: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what tells this process from all others, in plain types.

    ``owner`` is the process on whose behalf it works on another machine, and with which it ends.
    """
    return {**record_of(os.getpid()), **({"owner": dict(owner)} if owner else {})}


def record_of(pid: int) -> dict[str, Any]:
    """Return what tells the process ``pid`` of this machine from all others."""
    host, created = socket.gethostname(), psutil.Process(pid).create_time()
    return {"key": f"{host}:{pid}:{created:.0f}", "host": host, "pid": pid, "created": created}


def is_alive(record: Mapping[str, Any]) -> bool:
    """Return whether the process that ``this_process`` described lives on this machine.

    Of one that has an owner: whether that lives, which knows better.
    """
    record = record.get("owner", record)
    if record["host"] != socket.gethostname():
        return False
    try:
        process = psutil.Process(record["pid"])
        same = abs(process.create_time() - record["created"]) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
