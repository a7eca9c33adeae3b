from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

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


def test_runs_on_other_images_are_refused():
    turned = [ONE[1], ONE[0]]
    with pytest.raises(UserError, match="tested on other images"):
        pooled([ONE, turned])
    with pytest.raises(UserError, match="tested on other images"):
        difference(pooled([ONE]), pooled([turned]))
