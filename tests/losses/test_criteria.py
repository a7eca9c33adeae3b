from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from lt_pipeline.data.longtail import LongTail
from lt_pipeline.losses import functional as losses
from lt_pipeline.losses.criteria import CriterionConfig

LONGTAIL = LongTail.from_counts([100, 10, 1])
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]])
LABELS = torch.tensor([2, 0])
NAMES = ("cross_entropy", "class_balanced", "logit_adjustment", "balanced_softmax")


def criterion(**values):
    return TypeAdapter(CriterionConfig).validate_python(values).build(LONGTAIL)


def test_each_name_binds_its_loss_to_the_class_distribution():
    counts, log_prior = LONGTAIL.counts.float(), LONGTAIL.log_prior.float()
    weight = losses.class_balanced_weight(LONGTAIL.counts, 0.9).float()
    wanted = {
        "cross_entropy": losses.cross_entropy(LOGITS, LABELS),
        "class_balanced": losses.weighted_cross_entropy(LOGITS, LABELS, weight),
        "logit_adjustment": losses.logit_adjusted(LOGITS, LABELS, log_prior, 1.0),
        "balanced_softmax": losses.balanced_softmax(LOGITS, LABELS, counts),
    }
    for name, loss in wanted.items():
        extra = {"beta": 0.9} if name == "class_balanced" else {}
        torch.testing.assert_close(criterion(name=name, **extra)(LOGITS, LABELS), loss)


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_computed_in_single_precision(name):
    assert criterion(name=name)(LOGITS.bfloat16(), LABELS).dtype == torch.float32


@pytest.mark.parametrize("name", NAMES[1:])
def test_what_it_knows_of_the_classes_is_in_the_checkpoint(name):
    built = criterion(name=name)
    assert len(built.state_dict()) == 1
    assert next(iter(built.state_dict().values())).shape == (3,)


@pytest.mark.parametrize(
    "values",
    [
        {"name": "class_balanced", "beta": 1.0},
        {"name": "logit_adjustment", "tau": -1},
        {"name": "cross_entropy", "tau": 1},
        {"name": "focal"},
    ],
)
def test_wrong_values_are_refused(values):
    with pytest.raises(ValidationError):
        TypeAdapter(CriterionConfig).validate_python(values)
