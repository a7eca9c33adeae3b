"""The stage that goes before all others."""

from __future__ import annotations

from click.testing import CliRunner

from lt_pipeline.versioning import check


def test_a_hash_is_of_names_and_bytes_and_not_of_what_python_leaves(tmp_path):
    room = tmp_path / "room"
    (room / "below").mkdir(parents=True)
    (room / "one.py").write_text("1")
    (room / "below" / "two.py").write_text("2")
    before = check.hashed(room)
    (room / "below" / "__pycache__").mkdir()
    (room / "below" / "__pycache__" / "two.pyc").write_text("compiled")
    assert check.hashed(room) == before
    hashes = {before, check.hashed(room / "one.py")}
    (room / "one.py").write_text("3")
    hashes.add(check.hashed(room))
    (room / "one.py").rename(room / "another.py")
    hashes.add(check.hashed(room))
    assert len(hashes) == 4
    (room / "another.py").rename(room / "one.py")
    (room / "one.py").write_text("1")
    assert check.hashed(room) == before


def test_a_folder_somewhere_else_has_the_same_hash(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "__pycache__" / name).mkdir(parents=True)
        (tmp_path / name / "code.py").write_text("1")
    assert check.hashed(tmp_path / "a") == check.hashed(tmp_path / "b")


def test_a_file_has_a_line_for_all_that_the_stage_rests_on(tmp_path, monkeypatch):
    for env in ("base", "other"):
        path = check.path_of(env, tmp_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("stages: {check: {deps: [room, file.py]}}")
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "one.py").write_text("1")
    (tmp_path / "file.py").write_text("2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check, "check", lambda *_: None)
    for words in ([], ["--env", "other"]):
        done = CliRunner().invoke(check.main, ["made", *words])
        assert done.exit_code == 0, done.output
        lines = [line.split() for line in (tmp_path / "made/code.txt").read_text().splitlines()]
        assert lines == [[check.hashed(tmp_path / n), n] for n in ("room", "file.py")]
        assert (tmp_path / "made/parameters.txt").read_text() == check.WRITTEN
