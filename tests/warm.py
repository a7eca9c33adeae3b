"""Python processes that need not import PyTorch and MLflow first: half of a short run's time.

A server process has imported what the package takes from other packages, but Kedro, which looks
at the folder that it is imported in, and nothing of the package itself. Each command is a process
that is forked from it, with its own folder, environment, arguments, imports of ours and end. What
another program starts, as DVC does its stages, asks it too where ``programs()`` leads its PATH.

A folder of code that a second command is asked for has a server of its own, forked from the first,
which has imported that code as well: until a file of it changes.
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import gc
import importlib
import io
import json
import multiprocessing.process
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

SOURCES = Path(__file__).parents[1] / "src"
KEDRO = Path(sys.executable).with_name("kedro")
# they look at the folder that they are imported in, start threads, or are wanted by few commands
LEFT_OUT = ("kedro", "lt_pipeline", "ray", "dvc", "onnx", "IPython", "psycopg")
# what the imported packages import at work
AT_WORK = (
    *("torch._dynamo", "networkx", "sympy", "pytorch_ood.detector", "pytorch_ood.utils"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.pyfunc", "alembic", "flask", "git"),
    *("dynaconf", "fsspec.implementations.local", "jinja2", "rich.table", "rich.traceback"),
    *("torch.export._trace", "torch._inductor.ir", "sqlalchemy.dialects.sqlite"),
    *("mlflow.pyfunc.scoring_server", "mlflow.tracking.request_header.registry"),
    *("mlflow.tracing.processor.otel", "matplotlib.backends.backend_agg", "PIL.JpegImagePlugin"),
)
LONGEST, INT = 1 << 20, 4
ASK, SERVE = "ask", "serve"
# what a server of a project imports before it is asked; of conf/ that reads LOGGED only
OF_PROJECT = ("kedro.framework.cli.cli", "lt_pipeline.settings", "lt_pipeline.pipeline_registry")
LOGGED = "conf/logging.yml"
# more are not kept: each has a copy of what it imported
SERVERS = 2


def is_python(command: Sequence[str]) -> bool:
    """Return whether a warm process can be ``command``: kedro, ``python -c`` or ``python -m``."""
    return command[0] == "kedro" or (command[0] == sys.executable and command[1] in ("-c", "-m"))


class Process:
    """A process with the interface of ``subprocess.Popen``, whose output is read at its end."""

    stdout = None

    def __init__(
        self,
        command: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str],
        server: Path | None = None,
        sockets: Sequence[int] = (),
    ) -> None:
        self.args = command
        self.returncode: int | None = None
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self._said, saying = os.pipe()
        asked = {"command": [*command], "cwd": str(cwd), "environment": {**environment}}
        _ask(server or _server(), asked, [self._output.fileno(), saying, *sockets])
        os.close(saying)
        self.pid = _read(self._said)

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._said], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = os.waitstatus_to_exitcode(_read(self._said))
            os.close(self._said)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        self.wait(timeout)
        self._output.seek(0)
        return self._output.read().decode(), None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def of_project(folder: Path, environment: Mapping[str, str]) -> Path | None:
    """Return where the server of a project's folder is asked, if its code was asked for before."""
    files = [folder / LOGGED, *sorted((folder / "src").rglob("*.py"))]
    states = ((str(path), path.stat()) for path in files)
    code = (*((name, of.st_mtime_ns, of.st_size) for name, of in states), *environment.items())
    if code in _projects:
        _projects.move_to_end(code)
        _projects[code] = _projects[code] or _Server(
            lambda sockets: Process([SERVE], folder, environment, sockets=sockets)
        )
    else:
        _projects[code] = None
        while len(_projects) > SERVERS:
            if server := _projects.popitem(last=False)[1]:
                server.end()
    server = _projects[code]
    return server.asked if server else None


class _Server:
    """A server that ends with who asked for it: when nobody can ask any more."""

    def __init__(self, start: Callable[[list[int]], subprocess.Popen[bytes] | Process]) -> None:
        """``start`` has two sockets: one that is closed at the end, and one to listen at."""
        self._ours, its = socket.socketpair()
        self._folder = Path(tempfile.mkdtemp(prefix="warm"))
        self.asked = self._folder / "asked"
        with its, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(str(self.asked))
            listening.listen(128)
            self._process = start([its.fileno(), listening.fileno()])
        atexit.register(self.end)

    def end(self) -> None:
        self._ours.close()
        self._process.wait(timeout=30)
        shutil.rmtree(self._folder, ignore_errors=True)


_projects: OrderedDict[tuple[Any, ...], _Server | None] = OrderedDict()


def programs() -> Path:
    """Return a folder with a ``kedro`` and a ``python`` that are processes of the server."""
    folder = _server().parent
    for name in ("kedro", "python"):
        words = (sys.executable, "-IS", __file__, ASK, str(_server()), name)
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


@cache
def _server() -> Path:
    """Start the server; return where it is asked."""
    without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def start(sockets: list[int]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, __file__, *map(str, sockets)],
            env={**without, "OMP_NUM_THREADS": "1"},
            pass_fds=sockets,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    return _Server(start).asked


def _ask(server: Path, asked: Mapping[str, Any], given: Sequence[int]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
        asking.connect(str(server))
        socket.send_fds(asking, [json.dumps(asked).encode()], given)


def _be(server: str, *command: str) -> int:
    """Be ``command`` for whoever waits for this process; return how it ended."""
    program = [sys.executable, *command[1:]] if command[0] == "python" else [*command]
    if not is_python(program):
        os.execv(program[0], program)
    said, saying = os.pipe()
    asked = {"command": program, "cwd": os.getcwd(), "environment": {**os.environ}}
    _ask(Path(server), asked, [sys.stdout.fileno(), saying])
    os.close(saying)
    _read(said)
    ended = os.waitstatus_to_exitcode(_read(said))
    if ended < 0:
        os.kill(os.getpid(), -ended)
    return ended


def _read(pipe: int) -> int:
    return int.from_bytes(os.read(pipe, INT), sys.byteorder, signed=True)


def _write(pipe: int, number: int) -> None:
    os.write(pipe, number.to_bytes(INT, sys.byteorder, signed=True))


def _imported_by_the_package() -> set[str]:
    modules: set[str] = set()
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module)
            elif isinstance(node, ast.Import):
                modules.update(alias.name for alias in node.names)
    return {name for name in modules if not name.startswith(LEFT_OUT)}


def _warm_up() -> None:
    for name in sorted({*_imported_by_the_package(), *AT_WORK}):
        importlib.import_module(name)
    # MLflow looks through all packages that are installed when it logs a model
    importlib.import_module("mlflow.utils.requirements_utils")._init_packages_to_modules_map()
    _do_once()
    _check_threads()


def _check_threads() -> None:
    if threading.active_count() > 1:
        raise RuntimeError(f"a fork would lose the threads {threading.enumerate()}")


def _do_once() -> None:
    """Do what takes long the first time: tables' classes, a drawing, an exported network."""
    importlib.import_module("sqlalchemy.orm").configure_mappers()
    figure = importlib.import_module("matplotlib.figure").Figure()
    figure.subplots().loglog([1, 20, 300], label="x")
    figure.legend()
    figure.savefig(io.BytesIO(), bbox_inches="tight")
    torch = importlib.import_module("torch")
    with torch.random.fork_rng(devices=[]):
        network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)).eval()
    torch.export.export(network, (torch.zeros(2, 1, 8, 8),))
    # what is there stays: no process looks through all of it for what may be freed
    gc.collect()
    gc.freeze()


def _serve(alive: socket.socket, listening: socket.socket) -> dict[str, Any]:
    """Return, in a process of its own for each, what was asked for."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        if alive in select.select([alive, listening], [], [])[0]:
            os._exit(0)
        with listening.accept()[0] as asking:
            said, given, *_ = socket.recv_fds(asking, LONGEST, 4)
        output, status, *sockets = given
        if os.fork():
            for number in given:
                os.close(number)
            continue
        # waits for the command in the server's place
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        process = os.fork()
        if process:
            _write(status, process)
            ended = os.waitpid(process, 0)[1]
            # nobody reads it where it took too long
            with contextlib.suppress(BrokenPipeError):
                _write(status, ended)
            os._exit(0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        alive.close()
        listening.close()
        os.close(status)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(output, stream.fileno())
        os.close(output)
        return {**json.loads(said), "sockets": sockets}


def _import_project(before: Sequence[str]) -> None:
    path = [*sys.path]
    sys.path[:1] = [str(KEDRO.parent), *before]
    for name in OF_PROJECT:
        importlib.import_module(name)
    methods = importlib.import_module("lt_pipeline.learning.methods")
    for name in methods.available():
        methods.get(name)
    sys.path[:] = path
    _check_threads()


def _become(
    command: Sequence[str], cwd: str, environment: Mapping[str, str], sockets: Sequence[int]
) -> None:
    """Do what the interpreter does for ``command``; everything else is as it begins."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    # where a process that this one starts begins
    multiprocessing.process.ORIGINAL_DIR = cwd
    importlib.import_module("numpy").random.seed()
    before = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    if command[0] == SERVE:
        _import_project(before)
        asked = _serve(*(socket.socket(fileno=number) for number in sockets))
        # what the imports said for the case that nobody says it
        _become(**{**asked, "environment": {**os.environ, **asked["environment"]}})
        return
    name, *words = command
    main, source = ModuleType("__main__"), ""
    if name == "kedro":
        sys.argv, before = [str(KEDRO), *words], [str(KEDRO.parent), *before]
        main.__file__, source = str(KEDRO), KEDRO.read_text()
    else:
        kind, what, *words = words
        sys.argv, before = ["-c" if kind == "-c" else what, *words], ["", *before]
        source = what if kind == "-c" else ""
    sys.path[:1] = before
    if not source:
        sys.path[0] = cwd
        runpy.run_module(what, run_name="__main__", alter_sys=True)
        return
    sys.modules["__main__"] = main
    exec(compile(source, getattr(main, "__file__", "<string>"), "exec"), main.__dict__)


def _end(asked: Mapping[str, Any]) -> NoReturn:
    """Do what was asked for and end as the interpreter does, but that it frees all objects."""
    try:
        _become(**asked)
        code: object = 0
    except SystemExit as leaves:
        code = leaves.code
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((code or 0) & 0xFF)


if __name__ == "__main__":
    if sys.argv[1] == ASK:
        sys.exit(_be(*sys.argv[2:]))
    _warm_up()
    _end(_serve(*(socket.socket(fileno=int(number)) for number in sys.argv[1:])))
