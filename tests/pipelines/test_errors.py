"""What a run says when it fails: a line of what can be put right, the trace of a bug."""

from __future__ import annotations

import shutil

import pytest

from full_disk import tiny_disk

pytestmark = pytest.mark.slow
RUN = ("kedro", "run", "--pipelines=ce", "--env=smoke")


def last_line(output):
    return output.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("node", "line"),
    [
        ("ce.evaluate", "06_models/smoke/ce/config.json is missing; node ce.configure makes it"),
        (
            "data_prep.describe_data",
            "03_primary/smoke/data_card.json is missing; node data_prep.make_sets makes it",
        ),
    ],
)
def test_a_missing_file_is_one_line_with_the_node_that_makes_it(project, node, line):
    code, output = project.run(*RUN, f"--nodes={node}")
    assert code == 1
    assert last_line(output) == f"Error: data/{line}"
    assert "Traceback" not in output
    # Kedro would say the same before it, and how to go on
    assert output.count("is missing") == 1
    assert "have not run" not in output


@pytest.mark.parametrize(
    ("does", "error"),
    [
        # in a node, where every ValueError of ours was one line
        ("raise ValueError('a bug of ours')", "ValueError: a bug of ours"),
        # in what a dataset is given, where every error of Kedro's was one line
        ("return 1, 2, 3", "'int' object has no attribute"),
    ],
)
def test_a_bug_shows_its_trace(project, does, error):
    module = project.folder / "src" / "lt_pipeline" / "pipelines" / "data_prep" / "nodes.py"
    text, sound = module.read_text(), "def describe("
    assert text.count(sound) == 1
    module.write_text(text.replace(sound, f"def describe(*_):\n    {does}\n\n\ndef _described("))
    nodes = "--nodes=data_prep.make_sets,data_prep.describe_data,ce.configure"
    code, output = project.run(*RUN, nodes)
    assert code == 1
    assert error in output
    assert "Traceback" in output
    assert "failed with error" not in output
    assert "have not run" not in output
    assert not last_line(output).startswith("Error: ")


@pytest.mark.parametrize("space", [0, 100])
def test_a_database_on_a_full_disk_is_one_line(project, tmp_path, empty_database, space):
    """It is full when the run begins, or later."""
    size = empty_database.stat().st_size // 1024 + space
    with tiny_disk(tmp_path / "disk", f"{size}k") as disk:
        shutil.copy(empty_database, disk / "mlflow.db")
        uri = f"sqlite:///{disk / 'mlflow.db'}"
        code, output = project.run(*RUN, MLFLOW_TRACKING_URI=uri)
    assert code == 1
    assert last_line(output) == (
        f"Error: no space left on device: {uri} cannot be written; make room and run again"
    )
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("folder", "size", "line"),
    [
        ("data", "64k", ".safetensors: No space left on device"),
        ("data", "128k", "data/06_models/smoke/ce/progress/train.pt: No space left on device"),
        ("mlartifacts", "32k", "no space left on device: "),
    ],
)
def test_a_full_disk_is_one_line_that_names_the_file(project, folder, size, line):
    with tiny_disk(project.folder / folder, size):
        code, output = project.run(*RUN)
    assert code == 1
    assert last_line(output).startswith("Error: ")
    assert line in last_line(output)
    assert folder in last_line(output)
    assert "Traceback" not in output
