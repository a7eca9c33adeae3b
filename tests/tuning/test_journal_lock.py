"""A lock that was left behind holds nobody up for ever."""

from __future__ import annotations

import os
import time

import pytest
from optuna.storages.journal import JournalFileSymlinkLock

from lt_pipeline.learning.schema import UserError
from lt_pipeline.tuning.storage import JOURNAL, JournalLock, journal_file
from sweeps import task


def left_behind(folder, journal):
    """Leave the lock in ``folder`` that a process took when the journal was ``journal``."""
    JournalFileSymlinkLock(str(journal)).acquire()
    os.rename(f"{journal}.lock", folder / f"{JOURNAL}.lock")


@pytest.mark.parametrize("cut", [False, True])
def test_a_lock_from_before_the_project_was_moved_is_one_line(tmp_path, cut):
    before, now = tmp_path / "before", tmp_path / "now"
    task(before).study.ask()
    (before / JOURNAL).rename(tmp_path / JOURNAL)
    now.mkdir()
    (tmp_path / JOURNAL).rename(now / JOURNAL)
    left_behind(now, before / JOURNAL)
    if cut:
        (now / JOURNAL).write_bytes((now / JOURNAL).read_bytes() + b'{"op')
    started = time.monotonic()
    with pytest.raises(UserError, match=r"journal\.log\.lock is a lock .* moved: delete it"):
        task(now).study.ask()
    assert time.monotonic() - started < 5
    (now / f"{JOURNAL}.lock").unlink()
    assert task(now).study.ask().number == 1


def test_a_lock_that_is_held_is_waited_for_whoever_holds_it(tmp_path):
    journal = tmp_path / JOURNAL
    journal.touch()
    for held in (JournalLock(journal), JournalFileSymlinkLock(str(journal))):
        held.acquire()
        lock = JournalLock(journal)
        lock.grace_period = 1
        started = time.monotonic()
        assert lock.acquire()
        assert 1 < time.monotonic() - started < 5
        lock.release()
    journal_file(journal).append_logs([{"a": 1}])
    assert journal.read_bytes() == b'{"a":1}\n'
    assert not list(tmp_path.glob("*.lock*"))
