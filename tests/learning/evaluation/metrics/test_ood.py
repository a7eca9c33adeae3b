from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pytorch_ood.metrics import OODMetrics
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from lt_pipeline.learning.data.distribution import GROUP_NAMES, LongTail
from lt_pipeline.learning.evaluation.metrics.ood import mean_report, ood_report
from lt_pipeline.learning.evaluation.metrics.ranking import auroc, fpr95

scores = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=60)


@given(scores, scores)
def test_auroc_counts_pairs_and_ties_half(inside, outside):
    wins = sum((a > b) + 0.5 * (a == b) for a in inside for b in outside)
    area = auroc(torch.tensor(inside), torch.tensor(outside))
    assert area == pytest.approx(wins / (len(inside) * len(outside)))


def report_of(inside, outside):
    inside, outside = torch.as_tensor(inside), torch.as_tensor(outside)
    labels = torch.zeros(len(inside)).long()
    return ood_report(inside, outside, labels, LongTail.from_counts([200]))


def fpr95_of_the_curve(wanted, others):
    """scikit-learn's false positive rate where 95 % of ``wanted``, the positives, are found."""
    truth = [1] * len(wanted) + [0] * len(others)
    fpr, tpr, _ = roc_curve(truth, [*wanted, *others], drop_intermediate=False)
    return min(f for f, t in zip(fpr, tpr, strict=True) if t >= 0.95)


@given(scores, scores)
def test_fpr95_is_the_first_point_of_the_curve_that_keeps_95_percent(wanted, others):
    rate = fpr95(torch.tensor(wanted), torch.tensor(others))
    assert rate == pytest.approx(fpr95_of_the_curve(wanted, others))


@given(scores, scores)
def test_fpr95_finds_outside_images_and_fpr95_in_keeps_inside_ones(inside, outside):
    metrics = report_of(inside, outside)
    turned = fpr95_of_the_curve([-s for s in outside], [-s for s in inside])
    assert metrics["fpr95"] == pytest.approx(turned)
    assert metrics["fpr95_in"] == pytest.approx(fpr95_of_the_curve(inside, outside))


@pytest.mark.parametrize("sizes", [(1000, 400), (37, 1000), (20, 40), (140, 60)])
def test_both_ways_on_scores_without_ties(sizes):
    generator = torch.Generator().manual_seed(sum(sizes))
    inside = torch.randn(sizes[0], generator=generator, dtype=torch.float64) + 1
    outside = torch.randn(sizes[1], generator=generator, dtype=torch.float64)
    metrics = report_of(inside, outside)
    assert metrics["fpr95"] == pytest.approx(fpr95_of_the_curve(-outside, -inside))
    assert metrics["fpr95_in"] == pytest.approx(fpr95_of_the_curve(inside, outside))
    assert metrics["fpr95"] != metrics["fpr95_in"]


@given(scores, scores)
def test_auroc_and_fpr95_are_pytorch_oods(inside, outside):
    # its area under the threshold curve refuses scores that are all the same
    assume(len({*inside, *outside}) > 1)
    measured = report_of(inside, outside)
    metrics = OODMetrics()
    metrics.update(-torch.tensor(inside), torch.zeros(len(inside)))
    metrics.update(-torch.tensor(outside), -torch.ones(len(outside)))
    wanted = metrics.compute()
    # its precisions are areas under a curve with straight lines, ours are averages
    assert measured["auroc"] == pytest.approx(wanted["AUROC"])
    assert measured["fpr95"] == pytest.approx(wanted["FPR95TPR"])


@given(scores, scores)
def test_the_precisions_are_scikit_learns_of_either_side(inside, outside):
    metrics = report_of(inside, outside)
    truth = [1] * len(inside) + [0] * len(outside)
    both = inside + outside
    assert metrics["aupr_in"] == pytest.approx(average_precision_score(truth, both))
    flipped = average_precision_score([1 - t for t in truth], [-s for s in both])
    assert metrics["aupr_out"] == pytest.approx(flipped)


def test_perfect_and_reversed_scores_and_scores_that_are_all_equal():
    keys = ("auroc", "fpr95", "fpr95_in", "aupr_in", "aupr_out")
    high, low = torch.linspace(2, 3, 30), torch.linspace(0, 1, 10)
    best = report_of(high, low)
    assert [best[k] for k in keys] == pytest.approx([1, 0, 0, 1, 1])
    worst = report_of(low, high)
    assert (worst["auroc"], worst["fpr95"], worst["fpr95_in"]) == (0, 1, 1)
    same = report_of(torch.ones(30), torch.ones(10))
    assert [same[k] for k in keys] == pytest.approx([0.5, 1, 1, 0.75, 0.25])


def test_of_twenty_images_one_may_fall_below_the_threshold_and_ties_with_it_are_accepted():
    inside = torch.tensor([0.0] + [5.0] + [9.0] * 18)
    outside = torch.tensor([1.0, 4.0, 5.0, 6.0])
    # the threshold is 5: nineteen of twenty are kept, and the tie at 5 counts as accepted
    assert fpr95(inside, outside) == 0.5
    # of nineteen none may fall below, so the threshold is 0
    assert fpr95(inside[:-1], outside) == 1.0


def test_groups_stand_each_against_all_outside_images():
    longtail = LongTail.from_counts([200, 5])
    inside, labels = torch.tensor([0.9, 0.8, 0.3]), torch.tensor([0, 0, 1])
    outside = torch.tensor([0.5, 0.1])
    metrics = ood_report(inside, outside, labels, longtail)
    assert metrics["auroc"] == pytest.approx(
        roc_auc_score([1, 1, 1, 0, 0], [0.9, 0.8, 0.3, 0.5, 0.1])
    )
    assert (metrics["auroc_many"], metrics["auroc_few"]) == (1.0, 0.5)
    # both outside images are found at 0.5, and with them what is inside and not above it
    assert (metrics["fpr95_many"], metrics["fpr95_few"]) == (0.0, 1.0)
    assert (metrics["fpr95"], metrics["fpr95_in"]) == (pytest.approx(1 / 3), 0.5)
    assert "auroc_medium" not in metrics
    # ranked from the outside's end: outside, inside, outside, inside, inside
    assert metrics["aupr_out"] == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert metrics["aupr_in"] == pytest.approx((1 / 1 + 2 / 2 + 3 / 4) / 3)


grouped = st.lists(
    st.tuples(st.integers(0, 6).map(float), st.integers(0, 4)), min_size=1, max_size=60
)


@given(grouped, scores)
def test_groups_add_up_to_the_whole_by_their_sizes(pairs, outside):
    longtail = LongTail.from_counts([300, 200, 50, 10, 5])
    inside, labels = (torch.tensor(column) for column in zip(*pairs, strict=True))
    metrics = ood_report(inside, torch.tensor(outside), labels, longtail)
    shares = {
        name: float(mask.double().mean()) for name, mask in longtail.group_members(labels).items()
    }
    for metric in ("auroc", "fpr95"):
        whole = sum(share * metrics[f"{metric}_{name}"] for name, share in shares.items())
        # of fpr95 as the threshold comes from the outside images alone
        assert whole == pytest.approx(metrics[metric])
        assert all((f"{metric}_{name}" in metrics) == (name in shares) for name in GROUP_NAMES)


def test_a_report_says_no_more_than_that():
    longtail = LongTail.from_counts([300, 50, 5])
    metrics = ood_report(torch.rand(6), torch.rand(4), torch.tensor([0, 0, 1, 1, 2, 2]), longtail)
    by_group = {f"{metric}_{group}" for metric in ("auroc", "fpr95") for group in GROUP_NAMES}
    assert set(metrics) == {"auroc", "fpr95", "fpr95_in", "aupr_in", "aupr_out"} | by_group
    assert all(type(value) is float for value in metrics.values())


def test_scores_of_different_precision_are_compared():
    metrics = ood_report(
        torch.tensor([0.7, 0.2]),
        torch.tensor([0.5], dtype=torch.float64),
        torch.tensor([0, 0]),
        LongTail.from_counts([5]),
    )
    assert (metrics["auroc"], metrics["fpr95"], metrics["fpr95_in"]) == (0.5, 0.5, 1.0)


def test_the_mean_over_sets_is_that_of_every_value():
    reports = [{"auroc": 0.9, "fpr95": 0.5}, {"auroc": 0.6, "fpr95": 0.0}]
    reports.append({"auroc": 0.3, "fpr95": 1.0})
    assert mean_report(reports) == pytest.approx({"auroc": 0.6, "fpr95": 0.5})
    assert mean_report(reports[:1]) == reports[0]
    by_name = dict(enumerate(reports))
    assert mean_report(by_name.values()) == mean_report(reports)


def test_a_side_without_images_is_refused():
    with pytest.raises(ValueError, match="has 1 ID and 0 OOD ones"):
        ood_report(torch.ones(1), torch.ones(0), torch.zeros(1).long(), LongTail.from_counts([5]))
