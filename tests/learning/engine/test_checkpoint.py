from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lt_pipeline.learning.engine.checkpoint import ResumeFile, atomic_path
from lt_pipeline.learning.schema import UnwritableError, UserError

STATE = {"epoch": 3, "weights": {"a": torch.arange(4.0)}, "none": None}


def test_a_state_comes_back(tmp_path):
    file = ResumeFile(tmp_path / "deep" / "train.pt", "run")
    assert file.load() is None
    file.save(STATE)
    loaded = file.load()
    assert loaded["epoch"] == 3
    assert torch.equal(loaded["weights"]["a"], torch.arange(4.0))


def test_the_state_of_another_run_is_not_used(tmp_path):
    ResumeFile(tmp_path / "train.pt", "one").save(STATE)
    assert ResumeFile(tmp_path / "train.pt", "other").load() is None


def test_a_damaged_state_is_an_error_that_names_the_file(tmp_path):
    file = ResumeFile(tmp_path / "train.pt", "run")
    file.save(STATE)
    file.path.write_bytes(file.path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"train\.pt is damaged.*delete it"):
        file.load()


def test_code_in_a_state_file_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    torch.save({"fingerprint": "run", "state": Evil()}, tmp_path / "train.pt")
    with pytest.raises(ValueError, match="damaged"):
        ResumeFile(tmp_path / "train.pt", "run").load()
    assert not (tmp_path / "made").exists()


def test_a_write_that_breaks_off_leaves_the_file_before_it(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with (
        pytest.raises(OSError, match=r"cannot write .*file\.txt: no space.*kept"),
        atomic_path(target) as path,
    ):
        path.write_text("ne")
        raise OSError("no space left on device")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_reported_with_the_file(tmp_path, monkeypatch):
    file = ResumeFile(tmp_path / "train.pt", "run")
    file.save(STATE)

    def full(state, path):
        # /dev/full takes what is written and answers as a full disk does
        with open("/dev/full", "wb", buffering=0) as device:
            device.write(b"state")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"cannot write .*train\.pt: .*No space left.*kept"):
        file.save({**STATE, "epoch": 4})
    monkeypatch.undo()
    assert file.load()["epoch"] == 3


def test_a_bug_while_writing_is_no_full_disk(tmp_path):
    (tmp_path / "file.txt").write_text("old")
    with pytest.raises(RuntimeError, match="a bug"), atomic_path(tmp_path / "file.txt"):
        raise RuntimeError("a bug")
    assert (tmp_path / "file.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UnwritableError, match=r"cannot write .*/file/model\.pt: .*(exists|Not a)"):
        ResumeFile(tmp_path / "file" / "model.pt", "run").save(STATE)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state": {}}, "text"])
def test_a_state_of_another_program_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "train.pt")
    with pytest.raises(UserError, match=r"train\.pt is damaged, or no state .*: delete it"):
        ResumeFile(tmp_path / "train.pt", "run").load()


def test_what_pytorch_says_of_code_in_a_file_is_not_passed_on(tmp_path):
    torch.save({"fingerprint": "run", "state": Path("a")}, tmp_path / "train.pt")
    with pytest.raises(UserError) as error:
        ResumeFile(tmp_path / "train.pt", "run").load()
    assert "weights_only" not in str(error.value)
    assert "\n" not in str(error.value)
