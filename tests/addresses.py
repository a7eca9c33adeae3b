"""Addresses of servers that tests start."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.request

from warm import Process


def free_port() -> int:
    """Return a port of this machine at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def wait_for(
    address: str, server: subprocess.Popen[str] | subprocess.Popen[bytes] | Process
) -> None:
    """Wait until ``server`` answers at ``address``."""
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            if server.poll() is not None:
                said, _ = server.communicate()
                raise ChildProcessError(f"{address}: it ended and said {said}") from None
            if time.monotonic() > deadline:
                raise TimeoutError(f"{address}: no answer") from None
            time.sleep(0.2)
