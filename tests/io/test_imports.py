from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from lt_pipeline.io import imports
from lt_pipeline.io.imports import for_good


@pytest.fixture(autouse=True)
def thawed(monkeypatch):
    """Nothing was imported yet, and the collector has what it had at the end."""
    monkeypatch.setattr(imports, "_IMPORTED", set())
    monkeypatch.delitem(sys.modules, imports.TRAINED, raising=False)
    frozen = gc.get_freeze_count()
    yield
    assert gc.isenabled()
    if frozen == 0:
        gc.unfreeze()


def is_frozen(thing):
    return not any(thing is other for other in gc.get_objects())


def test_the_collector_passes_by_what_is_imported_and_is_on_again():
    before = [1]
    with for_good("a"):
        assert not gc.isenabled()
        made = [2]
    after = [3]
    assert (is_frozen(before), is_frozen(made), is_frozen(after)) == (True, True, False)


def test_what_a_run_has_made_is_not_passed_by_when_the_same_is_wanted_again():
    with for_good("a"):
        pass
    made = [1]
    with for_good("a"):
        assert gc.isenabled()
    assert not is_frozen(made)
    with for_good("b"):
        pass
    assert is_frozen(made)


def test_where_something_was_trained_nothing_is_passed_by(monkeypatch):
    monkeypatch.setitem(sys.modules, imports.TRAINED, imports)
    with for_good("a"):
        made = [1]
    assert not is_frozen(made)


def test_one_within_another_leaves_the_collector_to_the_outer():
    with for_good("a"):
        with for_good("b"):
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_import_that_fails_leaves_the_collector_on():
    with pytest.raises(ImportError), for_good("a"):
        raise ImportError
    assert gc.isenabled()


@pytest.mark.slow
def test_a_wrong_parameter_waits_for_neither_matplotlib_nor_the_store():
    slow = ("matplotlib", "sqlalchemy", "scipy.linalg", "optuna", "sklearn", "torchvision")
    code = f"import sys, lt_pipeline.settings; print(*sys.modules.keys() & {set(slow)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr
