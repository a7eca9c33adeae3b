from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from lt_pipeline.learning.evaluation.metrics.intervals import wilson
from lt_pipeline.learning.schema import UserError
from lt_pipeline.learning.studies.pooled import class_rows, difference, pool_table, pooled

KEY = "pooled/mean_recall"
# class 1 is tested on one image in fold 0 and on three in fold 1
LABELS = ([0, 0, 0, 0, 1], [0, 0, 1, 1, 1])


def answers(*predicted, groups=None):
    """What one run made of each fold's test images."""
    folds = []
    for k, (labels, own) in enumerate(zip(LABELS, predicted, strict=True)):
        group = {} if groups is None else {"group": groups[k]}
        folds.append(pd.DataFrame({"label": labels, "predicted": own, **group}))
    return folds


ONE = answers([0, 0, 1, 1, 1], [0, 1, 1, 0, 0])
OTHER = answers([0, 0, 0, 0, 1], [0, 1, 1, 1, 0])


def test_a_pooled_recall_is_of_all_images_and_no_mean_over_folds():
    (row,) = pool_table({"a": pooled([ONE])}, "a").to_dict("records")
    # of class 0 three of six, of class 1 two of four; means of the folds' own are 0.75 and 0.4167
    assert row[KEY] == pytest.approx((3 / 6 + 2 / 4) / 2)
    assert row["pooled/accuracy"] == pytest.approx(5 / 10)
    assert (row["classes"], row["images"], row["groups"], row["seeds"]) == (2, 10, None, 1)
    assert row[f"{KEY} low"] < row[KEY] < row[f"{KEY} high"]
    assert f"{KEY} difference" not in row


def test_seeds_are_means_of_each_image():
    both = pooled([ONE, OTHER])
    (row,) = pool_table({"a": both}, "a").to_dict("records")
    alone = [pooled([one]).outcomes.mean_recall for one in (ONE, OTHER)]
    assert row[KEY] == pytest.approx(np.mean(alone))
    assert row[f"{KEY} sd"] == pytest.approx(np.std(alone, ddof=1))


def test_differences_are_paired_by_image():
    arms = {"a": pooled([ONE]), "b": pooled([OTHER])}
    table = pool_table(arms, "a").set_index("arm")
    ahead = table[f"{KEY} difference"]
    assert np.isnan(ahead["a"])
    assert ahead["b"] == pytest.approx(table[KEY]["b"] - table[KEY]["a"])
    between = difference(arms["b"], arms["a"])
    assert set(between.right) == {0.0, 1.0}, "one is right wherever the other is"
    low, high = (table[f"{KEY} difference {end}"]["b"] for end in ("low", "high"))
    assert 0 <= low <= ahead["b"] <= high
    unpaired = table[f"{KEY} high"]["b"] - table[f"{KEY} low"]["a"]
    assert high < unpaired


def test_groups_are_drawn_where_there_are_some():
    numbers = [[0, 0, 1, 1, 2], [3, 4, 5, 5, 6]]
    grouped = pooled([answers([0, 0, 1, 1, 1], [0, 1, 1, 0, 0], groups=numbers)])
    (row,) = pool_table({"a": grouped}, "a").to_dict("records")
    assert row["groups"] == 7
    rows = class_rows("a", grouped, ["x", "y", "z"])
    assert [own["images"] for own in rows] == [6, 4, 0]
    assert [own["groups"] for own in rows] == [4, 3, 0]
    assert [own["recall_low"] for own in rows] == [None] * 3
    plain = class_rows("a", pooled([ONE]), ["x", "y", "z"])
    assert (plain[0]["recall_low"], plain[0]["recall_high"]) == wilson(3, 6)
    assert plain[2]["recall"] is None


def labelled(*cells, groups=None):
    """What one run made of two folds' images of several labels, as it is read back."""
    folds = []
    for k, (truth, said) in enumerate(cells):
        group = {} if groups is None else {"group": groups[k]}
        folds.append(pd.DataFrame({"label": truth, "predicted": said, **group}))
    return folds


SEVERAL = labelled((["0;2", "1", np.nan], ["0", "1", "1"]), ([2.0, 0.0], ["0;2", np.nan]))


def test_decisions_on_several_labels_are_pooled_by_their_counts():
    """And not as means over folds, which do not have all the classes."""
    one = pooled([SEVERAL], classes=4)
    (row,) = pool_table({"a": one}, "a").to_dict("records")
    truth = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]])
    said = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])
    each = f1_score(truth[:, :3], said[:, :3], average=None)
    assert row["pooled/macro_f1"] == pytest.approx(each.mean())
    assert row["pooled/micro_f1"] == pytest.approx(f1_score(truth, said, average="micro"))
    assert (row["classes"], row["images"], row["groups"]) == (3, 5, None)
    assert row["pooled/macro_f1 low"] <= row["pooled/macro_f1"] <= row["pooled/macro_f1 high"]
    rows = class_rows("a", one, ["w", "x", "y", "z"])
    assert [own["images"] for own in rows] == [2, 1, 2, 0]
    assert [own["f1"] for own in rows] == pytest.approx([*each, np.nan], nan_ok=True)


def test_seeds_and_arms_of_several_labels_are_paired_by_image():
    numbers = [np.arange(30) // 2, 15 + np.arange(30) // 2]
    random = np.random.default_rng(0)
    truth = [
        [";".join(map(str, np.flatnonzero(random.random(3) < 0.6))) for _ in n] for n in numbers
    ]
    some = [own[:24] + ["0"] * 6 for own in truth]
    right, worse = (
        labelled(*zip(truth, said, strict=True), groups=numbers) for said in (truth, some)
    )
    arms = {"a": pooled([worse, worse], 3), "b": pooled([right, worse], 3)}
    table = pool_table(arms, "a").set_index("arm")
    assert table["groups"].tolist() == [30, 30]
    assert (table["pooled/macro_f1 sd"] > 0).tolist() == [False, True]
    ahead = table.loc["b", "pooled/macro_f1 difference"]
    assert ahead == pytest.approx((1 - table.loc["a", "pooled/macro_f1"]) / 2)
    low, high = (table.loc["b", f"pooled/macro_f1 difference {end}"] for end in ("low", "high"))
    assert 0 < low < ahead < high
    assert pool_table({"a": arms["a"], "b": arms["a"]._replace(seeds=1)}, "a")[
        "pooled/macro_f1 difference low"
    ].tolist() == pytest.approx([np.nan, 0], nan_ok=True), "the very groups are drawn for both"


def test_runs_on_other_images_are_refused():
    turned = [ONE[1], ONE[0]]
    with pytest.raises(UserError, match="tested on other images"):
        pooled([ONE, turned])
    with pytest.raises(UserError, match="tested on other images"):
        difference(pooled([ONE]), pooled([turned]))
