from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module

import pytest
import torch
from torch import Tensor

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.evaluation import metrics
from lt_pipeline.learning.evaluation.metrics.finite import check_finite_scores

BAD = pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
# what a metric takes beside scores, and is no score itself
OTHERS = {
    "labels": torch.tensor([0, 1, 0]),
    "longtail": LongTail.from_counts([2, 1]),
    "confusion": torch.eye(2).long(),
    "floor": 1e-3,
    "bins": 5,
}
# of the metrics for several labels an image
SEVERAL = {"labels": torch.tensor([[1, 0], [0, 1], [1, 1]])}
# by image and class, or by image
SCORES = {"scores": (3, 2), "id_scores": (3,), "ood_scores": (4,), "wanted": (3,), "others": (4,)}


def of_scores():
    """Every public function of the metrics with tensors of scores, one case for each."""
    for module in pkgutil.iter_modules(metrics.__path__):
        loaded = import_module(f"{metrics.__name__}.{module.name}")
        for name, function in inspect.getmembers(loaded, inspect.isfunction):
            if name.startswith("_") or function.__module__ != loaded.__name__:
                continue
            taken = inspect.signature(function).parameters
            tensors = {n for n, p in taken.items() if p.annotation in ("Tensor", Tensor)}
            for scores in sorted(tensors - OTHERS.keys()):
                yield pytest.param(function, scores, id=f"{module.name}.{name}-{scores}")


@pytest.mark.parametrize(("function", "scores"), list(of_scores()))
@BAD
def test_every_metric_refuses_scores_that_are_no_numbers(function, scores, bad):
    generator = torch.Generator().manual_seed(0)
    given = {name: torch.randn(shape, generator=generator) for name, shape in SCORES.items()}
    given |= OTHERS | (SEVERAL if function.__module__.endswith(".several") else {})
    given = {name: given[name] for name in inspect.signature(function).parameters}
    function(**given)
    spoilt = given[scores].clone()
    spoilt.view(-1)[1] = bad
    with pytest.raises(ValueError, match="of 1 of . images are nan or infinite"):
        function(**{**given, scores: spoilt})


def test_the_metrics_that_are_known_are_among_those():
    names = {param.values[0].__name__ for param in of_scores()}
    known = {"confusion_matrix", "expected_calibration_error", "reliability", "ood_report"}
    assert known | {"auroc", "fpr95"} <= names


def test_images_are_counted_whatever_the_shape_and_the_advice_is_given():
    scores = torch.zeros(5, 3, 2)
    scores[1, 0, 1] = scores[1, 2, 0] = float("nan")
    scores[4] = float("inf")
    wanted = "2 of 5 images are nan or infinite: the training diverged; lower training.learning_r"
    with pytest.raises(ValueError, match=wanted):
        check_finite_scores(scores)
    with pytest.raises(ValueError, match="1 of 2 images"):
        check_finite_scores(torch.tensor([1.0, float("nan")]))
    check_finite_scores(torch.empty(0, 3))
    check_finite_scores(torch.tensor([[3e38, -3e38]]))
