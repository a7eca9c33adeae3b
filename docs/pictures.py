"""The pictures of docs/ui.md: real runs, then the MLflow UI and kedro viz in headless Chromium.

    make pictures          # or: python docs/pictures.py, with lt_pipeline[pictures] installed

Everything happens in a temporary copy of the project. Nothing of this machine is in the pictures:
the runs are a reader's, and no page that shows a path is taken.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.request import urlopen

from pages import PictureError, Shot, mlflow_shots, viz_shots
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Route

PROJECT = Path(__file__).parents[1]
PICTURES = Path(__file__).parent / "pictures"
COPIED = ("conf", "src", "pyproject.toml", ".telemetry")
# a hold-out, so that the comparison can name a champion; the same data for all
HOLDOUT = "data.validation=0.2"
RUNS = (
    ("--pipelines=ce", f"--params={HOLDOUT}"),
    ("--pipelines=balanced_softmax", f"--params={HOLDOUT}"),
    ("--pipelines=more", f"--params={HOLDOUT}"),
    ("--pipelines=tune", f"--params=method=more,tune.trials=8,{HOLDOUT}"),
    ("--pipelines=compare", f"--params={HOLDOUT}"),
)
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HOST = "127.0.0.1"
PORTS = range(20_000, 30_000)
WIDTH = 1400
LIMIT_BYTES = 250_000
START_SECONDS = 120
PAGE_MS = 30_000
SETTLE_MS = 1500


def chromium() -> str:
    """Return the browser's path.

    Raises:
        PictureError: if there is none.
    """
    given = os.environ.get("CHROMIUM")
    program = next(filter(None, map(shutil.which, [given] if given else CHROMIUM)), None)
    if not program:
        raise PictureError(
            f"no browser: {given or ' or '.join(CHROMIUM[:3])} is not in PATH; install it (Debian: "
            f"apt install chromium) or set CHROMIUM=/path/to/it"
        )
    return program


def free_port() -> int:
    """Return a port of the loopback that nothing listens on, one that kedro viz takes."""
    for port in random.sample(PORTS, 50):
        with suppress(OSError), socket.create_server((HOST, port)):
            return port
    raise PictureError(f"no port of {HOST} from {PORTS[0]} to {PORTS[-1]} is free")


def environment(folder: Path) -> dict[str, str]:
    """Return what programs are started with: no telemetry, no name of whoever makes pictures."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "OPTUNA_", "DVC_"))}
    return {
        **kept,
        "PYTHONPATH": str(folder / "src"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "KEDRO_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        # nothing looks for newer versions of itself: a page that says so is another picture
        "HTTPS_PROXY": f"http://{HOST}:9",
        "LOGNAME": "reader",
        "TZ": "UTC",
    }


def copy_project(folder: Path) -> None:
    """Copy what Kedro needs of the project to ``folder``."""
    folder.mkdir(parents=True)
    for part in COPIED:
        copy = shutil.copytree if (PROJECT / part).is_dir() else shutil.copy
        copy(PROJECT / part, folder / part)


def program(name: str) -> str:
    """Return the path of a command that was installed beside this Python."""
    return str(Path(sys.executable).with_name(name))


def make_runs(folder: Path, runs: Sequence[Sequence[str]]) -> None:
    """Run Kedro once for each of ``runs``."""
    for arguments in runs:
        print("kedro run", *arguments, flush=True)
        done = subprocess.run(
            [program("kedro"), "run", *arguments],
            cwd=folder,
            env=environment(folder),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise PictureError(f"kedro run {' '.join(arguments)} failed: {''.join(last)}")


@contextmanager
def served(folder: Path, *command: str) -> Iterator[str]:
    """Start a server with ``--port``, and end it and all it started; gives its address.

    Raises:
        PictureError: if it ends or does not answer.
    """
    port = free_port()
    process = subprocess.Popen(
        [*command, "--host", HOST, "--port", str(port)],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        address = f"http://{HOST}:{port}/"
        _wait_for(address, process)
        yield address
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            with urlopen(address, timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.5)
    raise PictureError(f"{process.args!r} did not answer at {address}")


@contextmanager
def browser() -> Iterator[Browser]:
    """Start the browser."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise PictureError(f"{error}; run: pip install 'lt_pipeline[pictures]'") from error
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        yield started
        started.close()


def visitor(browser: Browser) -> BrowserContext:
    """Return one who was never here before; pages reach nothing but this machine."""
    context = browser.new_context(color_scheme="light", timezone_id="UTC")
    context.set_default_timeout(PAGE_MS)
    context.route("**/*", _only_here)
    return context


def _only_here(route: Route) -> None:
    if route.request.url.startswith(f"http://{HOST}:"):
        route.continue_()
    else:
        route.abort()


def take(browser: Browser, shot: Shot, folder: Path) -> Path:
    """Write the picture of ``shot`` once all that must be seen is there.

    Raises:
        PictureError: if it does not appear.
    """
    from playwright.sync_api import Error

    path = folder / f"{shot.name}.png"
    context = visitor(browser)
    page = context.new_page()
    page.set_viewport_size({"width": WIDTH, "height": shot.height})
    try:
        page.goto(shot.address)
        if shot.act:
            shot.act(page)
        for text in shot.seen:
            page.get_by_text(text).filter(visible=True).first.wait_for()
    except Error as error:
        what = " ".join(str(error).split())
        raise PictureError(f"{path.name} cannot be taken: {what}") from error
    # away from what was clicked, which would explain itself
    page.mouse.move(WIDTH / 2, 1)
    page.wait_for_timeout(SETTLE_MS)
    page.screenshot(path=path, animations="disabled", caret="hide")
    context.close()
    check(path)
    return path


def check(path: Path) -> None:
    """Refuse a picture that shows nothing or is too large for a repository.

    Raises:
        PictureError: saying which.
    """
    low, high = Image.open(path).convert("L").getextrema()
    if low == high:
        raise PictureError(f"{path.name} is blank")
    if path.stat().st_size > LIMIT_BYTES:
        raise PictureError(f"{path.name} has {path.stat().st_size} bytes, more than {LIMIT_BYTES}")


def make(folder: Path, names: Sequence[str]) -> None:
    """Write the pictures of ``names``, or all, from the runs in ``folder``, made unless there."""
    from mlflow import MlflowClient

    if not folder.exists():
        copy_project(folder)
        make_runs(folder, RUNS)
    database = environment(folder)["MLFLOW_TRACKING_URI"]
    ui = (program("mlflow"), "ui", "--backend-store-uri", database, "--workers", "1")
    graph = (program("kedro"), "viz", "run", "--no-browser")
    PICTURES.mkdir(exist_ok=True)
    with browser() as started, served(folder, *ui) as mlflow, served(folder, *graph) as viz:
        for shot in [*mlflow_shots(mlflow, MlflowClient(database)), *viz_shots(viz)]:
            if not names or shot.name in names:
                print(take(started, shot, PICTURES).relative_to(PROJECT), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make every picture, or those that are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="pictures to make; all unless told")
    parser.add_argument("--runs", type=Path, help="folder that keeps the runs for another time")
    options = parser.parse_args(arguments)
    try:
        chromium()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
            make((options.runs or Path(name) / "lt_pipeline").absolute(), options.names)
    except PictureError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
