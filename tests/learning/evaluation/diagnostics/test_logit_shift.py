from __future__ import annotations

import torch

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.evaluation.diagnostics.logit_shift import (
    by_group,
    changed_predictions,
    discrepancy_by_group,
    logit_shift,
)

FULL = torch.tensor([[1.0, 0.0], [2.0, 5.0], [0.0, 1.0]])
GENERAL = torch.tensor([[0.5, 3.0], [2.0, 3.0], [0.0, 5.0]])
LABELS = torch.tensor([0, 1, 1])
LONGTAIL = LongTail.from_counts([200, 5])


def test_the_shift_is_that_of_the_true_class_by_group():
    # |1 - 0.5| for the head; |5 - 3| and |1 - 5| for the tail
    assert logit_shift(FULL, GENERAL, LABELS, LONGTAIL) == {"many": 0.5, "few": 3.0}


def test_the_discrepancy_sums_squares_over_classes():
    discrepancy = discrepancy_by_group(FULL, GENERAL, LABELS, LONGTAIL)
    assert discrepancy == {"many": 0.25 + 9, "few": (4 + 16) / 2}


def test_predictions_that_change_are_counted_by_group_and_over_all():
    # 0 -> 1 for the head; 1 -> 1 and 1 -> 1 for the tail
    changes = changed_predictions(FULL, GENERAL, LABELS, LONGTAIL)
    assert changes == {"many": 1.0, "few": 0.0, "all": 1 / 3}
    assert set(changed_predictions(FULL, FULL, LABELS, LONGTAIL).values()) == {0.0}


def test_a_group_without_an_image_is_left_out():
    assert by_group(torch.ones(1), torch.tensor([0]), LONGTAIL) == {"many": 1.0}
