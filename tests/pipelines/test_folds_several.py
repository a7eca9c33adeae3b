"""What a study on folds ends with where images have several labels, without a run of Kedro."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest

from lt_pipeline.learning.experiments.store import Store
from lt_pipeline.learning.studies.comparison import over_seeds
from lt_pipeline.pipelines.study.folds import pool, tabulate_folds
from lt_pipeline.reports.studies import FAILED, KEPT_IN
from toys import toy_card

CARD = toy_card()
SEVERAL = replace(CARD, longtail=replace(CARD.longtail, images=60))
TRUTH = [["0;1", "2", None], ["1;2", "0", "2"], ["0", "0;2", "1"]]
MAP, HELD = "test/mean_average_precision", "validation/mean_average_precision"


@pytest.fixture
def kept(tmp_path):
    """Two arms on three folds: one is right, the other says nothing of the last image."""
    rows = []
    for arm, said in (("BCE", TRUTH), ("MORE", [[*own[:2], None] for own in TRUTH])):
        for fold, (truth, predicted) in enumerate(zip(TRUTH, said, strict=True)):
            name = f"{arm}{fold}"
            (tmp_path / name).mkdir()
            answers = pd.DataFrame({"label": truth, "predicted": predicted})
            answers.to_csv(tmp_path / name / "answers.csv", index=False)
            row = {"arm": arm, "seed": 0, "fold": fold, KEPT_IN: name, "test/classes": 3.0}
            rows.append({**row, MAP: 0.5 + fold / 10, HELD: 0.25, FAILED: None})
    return tmp_path, pd.DataFrame(rows)


def test_decisions_are_pooled_and_mean_average_precision_stands_by_fold(kept):
    folder, runs = kept
    assert (folder / "BCE0" / "answers.csv").is_file()
    study = SimpleNamespace(reference="BCE")
    plan = SimpleNamespace(
        name="s", experiments={"BCE": 0, "MORE": 0}, folds=(0, 1, 2), study=study
    )
    assert Store(folder).answers("BCE0")["label"].tolist()[:2] == ["0;1", "2"]
    table, classes = pool(plan, SEVERAL, runs, folder)
    assert table["pooled/macro_f1"].tolist() == pytest.approx([1, (1 + 4 / 5 + 6 / 7) / 3])
    assert classes[classes["arm"] == "BCE"]["images"].tolist() == [4, 3, 4, 0]
    summary = over_seeds(runs, "arm", [MAP, HELD]).reset_index()
    comparison, text = tabulate_folds(plan, runs, summary, table)
    assert comparison["headings"] == [
        *("arm", "pooled macro F1 %", "minus BCE", "pooled micro F1 %", "mAP, mean of 3 folds"),
        *("fold 0", "fold 1", "fold 2", "hold-out mAP %"),
    ]
    ours, other = (row["cells"] for row in comparison["rows"])
    assert ours[:2] == ["BCE", "100.0"]
    assert ours[3:] == ["100.0", "60.0 ± 10.0", "50.0", "60.0", "70.0", "25.0 ± 0.0"]
    assert other[2].startswith("-11.4 [")
    assert "pooled macro F1 is over 3 classes, 9 images; a fold's own over 3" in text
