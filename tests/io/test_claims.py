from __future__ import annotations

import os
import signal
import sys
import time

import pytest

import warm
from lt_pipeline.io import claims
from lt_pipeline.io.claims import DATA, PLACE, RUNS, Claim, claimed, folders, note, remove
from lt_pipeline.reports.folders import listed, removed
from toys import PROJECT

# holds a claim until it may end
OTHER = """
import sys, time
from pathlib import Path
from lt_pipeline.io.claims import Claim, claimed
place, ready, end, folder, *keys = sys.argv[1:]
with claimed(Path(place), [Claim(folder, "it", *keys)], "kedro run --pipelines=ce"):
    Path(ready).touch()
    while not Path(end).exists():
        time.sleep(0.01)
"""


@pytest.fixture
def end(tmp_path_factory):
    """What is there from when processes may end on."""
    return tmp_path_factory.mktemp("processes") / "end"


@pytest.fixture
def start(tmp_path, end):
    """Start a process that claims a folder; it ends with the test."""
    running = []
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "src")}

    def begin(*words):
        ready = end.with_name(f"ready{len(running)}")
        told = (str(tmp_path / PLACE), str(ready), str(end), *words)
        process = warm.Process([sys.executable, "-c", OTHER, *told], end.parent, environment)
        running.append(process)
        while not ready.exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        return process

    yield begin
    for process in running:
        process.kill()
        process.wait(60)


def hold(tmp_path, *wanted):
    return claimed(tmp_path / PLACE, wanted, "kedro run")


def left(tmp_path):
    return [p for p in (tmp_path / PLACE).rglob("*") if p.suffix in (".lock", ".json")]


def test_a_second_run_is_refused_in_a_line_that_names_the_first(tmp_path, start):
    process = start("runs/smoke/ce")
    wanted = Claim("runs/smoke/ce", "ce in smoke")
    with pytest.raises(ValueError, match="is in use by") as error, hold(tmp_path, wanted):
        pass
    assert re_line(str(error.value), process.pid)
    with hold(tmp_path, Claim("runs/smoke/more", "more")), hold(tmp_path, Claim("data/x", "x")):
        pass


def re_line(text, pid):
    wanted = f"ce in smoke is in use by process {pid} since "
    ends = " (kedro run --pipelines=ce): wait for it, or end it"
    return text.startswith(wanted) and text.endswith(ends) and "\n" not in text


def test_equal_keys_go_together_and_others_do_not(tmp_path, start):
    start("data/smoke", "abc")
    with hold(tmp_path, Claim("data/smoke", "data", "abc")):
        start("data/smoke", "abc")
    for key in ("def", None):
        wanted = Claim("data/smoke", "data", key)
        with pytest.raises(ValueError, match="is in use"), hold(tmp_path, wanted):
            pass


def test_all_claims_or_none(tmp_path, start):
    start("runs/b")
    with (
        pytest.raises(ValueError, match="in use"),
        hold(tmp_path, Claim("a", "a"), Claim("runs/b", "b")),
    ):
        pass
    with hold(tmp_path, Claim("a", "a")):
        pass


@pytest.mark.parametrize(
    "how",
    [
        "SIGKILL",
        *(pytest.param(how, marks=pytest.mark.slow) for how in ("end", "SIGINT", "SIGTERM")),
    ],
)
def test_however_a_run_ends_the_next_can_start(tmp_path, start, end, how):
    process = start("runs/smoke/ce")
    if how == "end":
        end.touch()
    else:
        process.send_signal(getattr(signal, how))
    process.wait(timeout=60)
    assert bool(left(tmp_path)) == (how in ("SIGTERM", "SIGKILL"))
    with hold(tmp_path, Claim("runs/smoke/ce", "ce")):
        assert len(left(tmp_path)) == 2
    assert left(tmp_path) == []


def test_an_error_inside_gives_everything_back(tmp_path):
    with pytest.raises(KeyError), hold(tmp_path, Claim("a", "a"), Claim("b", "b")):
        raise KeyError
    assert left(tmp_path) == []


def test_what_a_killed_run_had_not_written_yet_is_no_claim(tmp_path):
    folder = tmp_path / PLACE / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "host-1-ab.lock").touch()
    (folder / "host-1-ab.json").write_text('{"host": ')
    with hold(tmp_path, Claim("runs/a", "a")):
        assert not (folder / "host-1-ab.lock").exists()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "data").touch()
    with pytest.raises(OSError, match="cannot write .*claims: ") as error, hold(tmp_path):
        pass
    assert isinstance(error.value, ValueError)


@pytest.fixture
def project(tmp_path):
    """Two environments' folders and one of a run's own."""
    for name, stages in (
        ("digits", claims.STAGES),
        ("smoke", claims.STAGES[:1]),
        ("digits+seed-1-12345678", claims.STAGES[2:]),
    ):
        for stage in stages:
            folder = tmp_path / "data" / stage / name / "ce"
            folder.mkdir(parents=True)
            (folder / "file").write_bytes(bytes(2**20))
    note(tmp_path / PLACE, "digits+seed-1-12345678", {"seed": 1, "training.epochs": 2})
    return tmp_path


def test_folders_say_what_they_are_of_and_who_uses_them(project, start):
    process = start(f"{RUNS}/digits/ce")
    start(f"{DATA}/smoke", "a")
    digits, own, smoke = folders(project)
    assert (digits.name, digits.size, digits.is_own) == ("digits", 4 * 2**20, False)
    assert (own.name, own.size, own.is_own) == ("digits+seed-1-12345678", 2 * 2**20, True)
    assert own.parameters == {"seed": 1, "training.epochs": 2}
    assert own.used_by == ()
    assert [holder.pid for holder in digits.used_by] == [process.pid]
    assert len(smoke.used_by) == 1
    assert own.written > 0
    heading, *lines = listed(project).splitlines()
    assert heading.split()[:2] == ["folder", "MiB"]
    assert [line.split()[:2] for line in lines] == [
        *(["digits", "4.0"], [own.name, "2.0"], ["smoke", "1.0"])
    ]
    assert "seed=1, training.epochs=2" in lines[1]
    assert f"process {process.pid} since" in lines[0]


def test_what_is_in_use_or_not_there_is_not_removed_nor_is_anything_else(project, start):
    start(f"{RUNS}/digits/ce")
    for names, message in (
        (["smoke", "digits"], "digits is in use by process"),
        (["no"], "no fold"),
    ):
        with pytest.raises(ValueError, match=message):
            remove(project, names)
    assert len(folders(project)) == 3


def test_one_or_all_unused_are_removed(project, start):
    process = start(f"{RUNS}/digits+seed-1-12345678/ce")
    assert removed(project, [], unused=True) == "removed nothing (0.0 MiB)"
    assert removed(project, ["smoke"], unused=False) == "removed smoke (1.0 MiB)"
    process.kill()
    process.wait()
    assert removed(project, [], unused=True) == "removed digits+seed-1-12345678 (2.0 MiB)"
    assert [path.name for path in folders(project)] == ["digits"]
    assert not list((project / PLACE).rglob("digits+*.json"))
    remove(project, ["digits"])
    assert listed(project) == "no run has written to data/ yet"
    assert os.listdir(project / "data" / "03_primary") == []


@pytest.mark.parametrize("name", ["..", ".", "", "digits/ce", "../03_primary/digits"])
def test_only_folders_of_runs_are_removed(project, name):
    with pytest.raises(ValueError, match="there is no folder"):
        remove(project, [name])
