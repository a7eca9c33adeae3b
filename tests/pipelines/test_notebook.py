"""docs/notebooks: their cells run on what a run leaves, and their outputs name no machine."""

from __future__ import annotations

import json
import re
import shutil
import sys

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from lt_pipeline.learning import Experiment, ExperimentConfig, class_table
from toys import PROJECT, toy_card, toy_images

FOLDER = PROJECT / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def cells(path):
    """Return the code cells."""
    notebook = json.loads(path.read_text())["cells"]
    return [cell for cell in notebook if cell["cell_type"] == "code"]


class Catalog:
    """What the notebook's extension gives, with what a run of MORE on toy images leaves."""

    def __init__(self):
        card, test = toy_card(), toy_images((5,) * 4, seed=1)
        config = ExperimentConfig.resolve("more", {"model": {"backbone": "resnet8"}})
        method = Experiment(config, card).build()
        method.merge_for_inference()
        table = pd.DataFrame(class_table(torch.full((4, 4), 5), card.longtail))
        self.kept = {"more.config": config, "more.model": method.state_dict()}
        self.kept |= {"more.class_table": table, "data_card": card, "test_set": test}

    def load(self, name):
        return self.kept[name]


def value(source, names):
    """Run a cell and return what its last line shows."""
    *before, last = source.splitlines()
    exec("\n".join(before), names)
    return eval(last, names)


def test_the_cells_draw_the_recalls_and_judge_the_network():
    (path,) = NOTEBOOKS
    magic, *rest = ["".join(cell["source"]) for cell in cells(path)]
    assert magic.splitlines() == ["%%capture", "%load_ext kedro.ipython", "%matplotlib inline"]
    names = {"catalog": Catalog()}
    table, picture, judged = [value(source, names) for source in rest]
    assert table["recall"].tolist() == [0.25] * 4
    assert isinstance(picture, Figure)
    assert {"accuracy", "many", "medium", "few"} <= set(judged)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_outputs_are_there_and_name_no_place_of_a_machine(path):
    first, *rest = cells(path)
    assert first["outputs"] == []
    assert all(cell["outputs"] for cell in rest)
    assert "image/png" in path.read_text()
    assert not re.search(r"(?<![\w/.<])/(home|work|root|tmp|Users|usr)/|file://", path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_in_ipython_on_a_finished_run(path, finished):
    pytest.importorskip("IPython", reason="needs the extra notebook")
    project, _ = finished
    folder = project.folder / "docs" / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, folder)
    # what the last cell has made
    shown = "print(list(card.longtail.groups), len(scores) == len(test))"
    code, output = project.run(
        *(sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", "-c"),
        f"get_ipython().run_line_magic('run', '{path.name}'); {shown}",
        cwd=folder,
        KEDRO_ENV="smoke",
    )
    assert code == 0, output
    assert "Error" not in output
    assert "['medium', 'few'] True" in output
