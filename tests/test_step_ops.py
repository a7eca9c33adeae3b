"""benchmarks/step_ops.py at toy size."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from toys import PROJECT

sys.path[:0] = [str(PROJECT), str(PROJECT / "benchmarks")]

import step_ops  # noqa: E402


def test_what_is_called_is_counted_the_backward_pass_with_it():
    weight = nn.Parameter(torch.ones(3))
    with step_ops.Calls() as made:
        (2 * weight).sum().backward()
    # two products and a sum, one and its gradient spread to three places by a view, and kept
    assert made.count["launches"] in range(4, 7)
    assert made.count["operations"] > made.count["launches"]
    assert not made.waits


@pytest.mark.parametrize(
    ("work", "name"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool((x > 0).any()), "_local_scalar_dense"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.masked_select(x > 0), "masked_select"),
        (lambda x: torch.equal(x, x + 1), "equal"),
        (lambda x: torch.bincount(x.long()), "bincount"),
        (lambda x: x.unique(), "_unique2"),
    ],
)
def test_what_waits_for_the_device_is_named(work, name):
    x = torch.arange(3.0)
    with step_ops.Calls() as made:
        work(x)
    assert made.waits == {name: 1}


def test_what_waits_for_nothing_is_not():
    x, places = torch.arange(3.0), torch.tensor([0, 2])
    with step_ops.Calls() as made:
        x[places], x[1:], torch.where(x > 0, x, -x), x.topk(2)
    assert not made.waits
    with step_ops.Calls() as made:
        torch.tensor([1.0])
    assert made.count["constants"] == 1


def test_steps_and_input_of_methods_are_in_a_table():
    changes = ["model.backbone=resnet8", "training.epochs=2"]
    asked = ["ce", "more", "no loss:more:more.options.amplitude=0"]
    table = step_ops.rows("base", asked, changes).set_index("method")
    assert list(table.index) == ["ce", "more", "no loss"]
    assert (table["waits"] == 0).all()
    launches = table["launches"]
    assert launches["ce"] < launches["no loss"] < launches["more"], "two passes are more than one"
    assert (table["operations"] > launches).all()
    assert (table["input_launches"] > 0).all()
    assert (table["captured_launches"] < launches).all(), "batches are counted at once"
    assert (table["beside"] < 10).all(), "the batch, the rates and the progress"
    again = step_ops.rows("base", ["ce"], changes)
    assert again.loc[0].drop("method").equals(table.loc["ce"])
