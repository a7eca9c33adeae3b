from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import oas
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.evaluation.diagnostics import separability as module
from lt_pipeline.learning.evaluation.diagnostics.separability import (
    class_separability,
    measured_against,
    separability_by_group,
)

plain = partial(class_separability, unit=False, shrinkage=False)


def classes_of(counts, features, seed=0):
    """Gaussian classes, each with a mean and a covariance of its own."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    x = torch.cat(
        [draw(n, features) @ draw(features, features) + 2 * draw(features) for n in counts]
    )
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    order = torch.randperm(len(labels), generator=generator)
    return x[order], labels[order]


def cloud(mean, covariance):
    """Four points whose mean and unbiased covariance are exactly these."""
    base = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64) * 1.5**0.5
    factor = torch.linalg.cholesky(torch.tensor(covariance, dtype=torch.float64))
    return base @ factor.T + torch.tensor(mean, dtype=torch.float64)


def along(direction, x, labels, i=0, j=1):
    """Equation 12 of the features projected onto a direction."""
    a, b = x[labels == i] @ direction, x[labels == j] @ direction
    return float((a.mean() - b.mean()) ** 2 / (a.var() + b.var()))


@pytest.mark.parametrize("shrinkage", [True, False])
def test_one_feature_by_hand(shrinkage):
    # means 1 and 12, variances 2 and 8: 11^2 / 10
    x, labels = torch.tensor([[0.0], [2], [10], [14]]), torch.tensor([0, 0, 1, 1])
    separability = class_separability(x, labels, 2, unit=False, shrinkage=shrinkage)
    assert separability.tolist() == pytest.approx([12.1, 12.1], rel=1e-11)


def test_two_features_and_three_classes_by_hand():
    x = torch.cat(
        [cloud([0, 0], [[1, 0], [0, 4]]), cloud([1, 2], [[2, 1], [1, 2]]),
         cloud([0, 6], [[1, 0], [0, 5]])]
    )  # fmt: skip
    labels = torch.arange(3).repeat_interleave(4)
    # sums [[3, 1], [1, 6]], [[2, 0], [0, 9]], [[3, 1], [1, 7]]; gaps (1, 2), (0, 6), (1, -4)
    first, second, third = (6 - 4 + 12) / 17, 36 / 9, (7 + 8 + 48) / 20
    wanted = [(first + second) / 2, (first + third) / 2, (second + third) / 2]
    assert plain(x, labels, 3).tolist() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("shrinkage", [True, False])
@pytest.mark.parametrize("chunk", [1, 60, 2**20])
def test_all_pairs_agree_with_a_loop(monkeypatch, shrinkage, chunk):
    monkeypatch.setattr(module, "CHUNK_NUMBERS", chunk)
    counts = [9, 30, 7, 12, 8]
    x, labels = classes_of(counts, 5)
    own = [x[labels == c].numpy() for c in range(5)]
    covariance = [
        oas(a)[0] * len(a) / (len(a) - 1) if shrinkage else np.cov(a, rowvar=False) for a in own
    ]
    wanted = np.zeros(5)
    for i in range(5):
        for j in range(5):
            gap = own[i].mean(0) - own[j].mean(0)
            direction = np.linalg.inv(covariance[i] + covariance[j]) @ gap
            spread = direction @ (covariance[i] + covariance[j]) @ direction
            wanted[i] += (direction @ gap) ** 2 / spread / 4 if i != j else 0
    separability = class_separability(x, labels, 5, unit=False, shrinkage=shrinkage)
    assert separability.dtype == torch.float64
    assert separability.numpy() == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("solver", ["eigen", "lsqr"])
@pytest.mark.parametrize("seed", range(3))
def test_scikit_learns_discriminant_reaches_it(solver, seed):
    x, labels = classes_of([40, 40], 6, seed)
    lda = LinearDiscriminantAnalysis(solver=solver, priors=[0.5, 0.5]).fit(
        x.numpy(), labels.numpy()
    )
    direction = lda.scalings_[:, 0] if solver == "eigen" else lda.coef_[0]
    wanted = along(torch.from_numpy(direction), x, labels)
    assert plain(x, labels, 2).tolist() == pytest.approx([wanted, wanted], rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5))
def test_no_direction_separates_better(seed, features):
    x, labels = classes_of([12, 20], features, seed)
    best = float(plain(x, labels, 2)[0])
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(20, features, generator=generator, dtype=torch.float64)
    assert max(along(d, x, labels) for d in directions) <= best * (1 + 1e-9)


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("shrinkage", [True, False])
def test_rotating_or_scaling_the_features_changes_nothing(unit, shrinkage):
    x, labels = classes_of([20, 15, 30], 6)
    rotation = torch.linalg.qr(classes_of([6, 6], 6, 1)[0][:6]).Q
    of = partial(class_separability, labels=labels, classes=3, unit=unit, shrinkage=shrinkage)
    assert torch.allclose(of(1000 * x @ rotation), of(x), rtol=1e-9, atol=0)


def test_other_labels_permute_the_result():
    x, labels = classes_of([20, 15, 30, 10], 6)
    other = torch.tensor([2, 0, 3, 1])
    separability = class_separability(x, other[labels], 4)
    wanted = class_separability(x, labels, 4)
    assert len(set(wanted.tolist())) == 4
    assert torch.allclose(separability[other], wanted, rtol=1e-12, atol=0)


def test_unit_length_takes_the_length_of_features_away():
    x, labels = classes_of([20, 15, 30], 6)
    generator = torch.Generator().manual_seed(2)
    stretched = x * (0.1 + torch.rand(65, 1, generator=generator, dtype=torch.float64))
    wanted = class_separability(x, labels, 3)
    assert torch.allclose(class_separability(stretched, labels, 3), wanted, rtol=1e-9, atol=0)
    without = class_separability(stretched, labels, 3, unit=False)
    assert not torch.allclose(without, wanted, rtol=1e-2)
    units = x / x.norm(dim=1, keepdim=True)
    again = class_separability(units, labels, 3, unit=False)
    assert torch.allclose(again, wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize("shrinkage", [True, False])
def test_a_class_of_one_image_or_none_is_nan_and_in_no_mean(shrinkage):
    x, labels = classes_of([20, 1, 15, 30], 6)
    keep = labels != 1
    separability = class_separability(x, labels, 5, shrinkage=shrinkage)
    dense = torch.tensor([0, -1, 1, 2])[labels[keep]]
    assert separability.isnan().tolist() == [False, True, False, False, True]
    wanted = class_separability(x[keep], dense, 3, unit=True, shrinkage=shrinkage)
    assert torch.allclose(separability[[0, 2, 3]], wanted, rtol=1e-6, atol=0)


def test_one_class_alone_has_no_separability():
    x, labels = classes_of([20, 1], 3)
    assert class_separability(x, labels, 2).isnan().all()


def far_apart(spread, images, seed=0):
    """30 classes of 64 features with known means and covariances; their true S."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    scale = torch.exp(-torch.arange(64, dtype=torch.float64) / 24)
    means = 0.7 * draw(30, 64) * scale
    size = torch.linspace(0.5, 0.5 + spread, 30, dtype=torch.float64)
    labels = torch.arange(30).repeat_interleave(images)
    x = means[labels] + size[labels, None] * scale * draw(len(labels), 64)
    variances = (size[:, None, None] ** 2 + size[:, None] ** 2) * scale**2  # [C, C, F]
    criterion = ((means[:, None] - means) ** 2 / variances).sum(2)
    return x, labels, criterion.sum(1) / 29


def test_shrinkage_comes_near_the_truth_where_plain_covariances_explode():
    x, labels, truth = far_apart(0.8, 36)
    shrunk = class_separability(x, labels, 30, unit=False)
    assert 0.8 < float(shrunk.mean() / truth.mean()) < 1.3
    assert float(torch.corrcoef(torch.stack([shrunk, truth]))[0, 1]) > 0.9
    assert float(plain(x, labels, 30).mean() / truth.mean()) > 5


@pytest.mark.parametrize("images", [2, 3, 5])
def test_very_few_images_stay_near_the_truth(images):
    x, labels, truth = far_apart(0.8, images)
    shrunk = class_separability(x, labels, 30, unit=False)
    assert 0.5 < float(shrunk.mean() / truth.mean()) < 4


def test_more_images_bring_the_plain_criterion_to_the_truth():
    x, labels, truth = far_apart(0.8, 3000)
    assert torch.allclose(plain(x, labels, 30), truth, rtol=0.05)


def test_collapsed_classes_are_finite():
    labels = torch.arange(3).repeat_interleave(4)
    apart = class_separability(torch.eye(3)[labels], labels, 3)
    assert apart.isfinite().all()
    assert (apart > 1e12).all()
    one_point = torch.full((12, 3), 0.3)
    assert class_separability(one_point, labels, 3).tolist() == pytest.approx([0] * 3, abs=1e-9)
    assert class_separability(torch.zeros(12, 3), labels, 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("counts", "features"),
    [([3, 3, 40], 6), ([4, 4], 8)],
)
def test_a_singular_plain_sum_is_refused(counts, features):
    x, labels = classes_of(counts, features)
    with pytest.raises(ValueError, match=r"classes 0 and 1 add up to a singular .*use shrinkage"):
        plain(x, labels, len(counts))


def test_a_dead_feature_is_refused_plain_and_survived_shrunk():
    x, labels = classes_of([20, 1, 20], 4)
    x = torch.cat([x, x[:, :2].sum(1, keepdim=True)], 1)
    with pytest.raises(ValueError, match=r"classes 0 and 2 .*\(20 and 20 images, 5 features\)"):
        plain(x, labels, 3)
    dead = torch.cat([x[:, :4], torch.zeros(41, 1)], 1)
    with pytest.raises(ValueError, match="singular"):
        plain(dead, labels, 3)
    assert class_separability(dead, labels, 3)[[0, 2]].isfinite().all()


def test_wrong_labels_and_features_are_refused():
    x, labels = classes_of([5, 5], 3)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 1\), but lie in \[0, 1\]"):
        class_separability(x, labels, 1)
    x[3, 1] = torch.nan
    with pytest.raises(ValueError, match="features must be finite"):
        class_separability(x, labels, 2)


def test_groups_average_their_known_classes():
    longtail = LongTail.from_counts([300, 5, 200, 50, 3])
    nan = torch.nan
    means = separability_by_group(torch.tensor([1.0, nan, 3.0, 8.0, 6.0]), longtail)
    assert means == {"many": 2, "medium": 8, "few": 6, "all": 4.5}
    means = separability_by_group(torch.tensor([1.0, nan, 3.0, 8.0, nan]), longtail)
    assert means == {"many": 2, "medium": 8, "all": 4}
    assert separability_by_group(torch.tensor([nan] * 5), longtail) == {}


@pytest.mark.parametrize(
    ("classes", "images", "features", "others"),
    [
        (100, 100, 64, 99),
        (100, 100, 512, 99),
        (365, 100, 64, 364),
        (700, 100, 64, 699),
        (2000, 3, 64, 1999),
        (1000, 50, 512, 32),
        (1000, 50, 2048, 8),
        (8142, 3, 512, 100),
        # the covariances would be 34 GB, a pair a minute
        (1000, 2000, 2048, 0),
        (2, 50_000, 10_000, 0),
    ],
)
def test_as_many_pairs_are_measured_as_ten_seconds_are_enough_for(
    classes, images, features, others
):
    labels = torch.arange(classes).repeat_interleave(images)
    assert measured_against(labels, classes, features) == others


@pytest.mark.parametrize("few", [True, False])
def test_some_pairs_are_near_all_pairs_and_a_class_has_as_many_as_another(monkeypatch, few):
    x, labels = classes_of([9] * 200, 40 if few else 6)
    whole = class_separability(x, labels, 200)
    monkeypatch.setattr(module, "_others", lambda images, features, shrinkage: 60)
    some = class_separability(x, labels, 200)
    assert float(torch.corrcoef(torch.stack([whole, some]))[0, 1]) > 0.9
    assert float(some.mean()) == pytest.approx(float(whole.mean()), rel=0.02)
    asked = []
    means = module._mean_over_others(_counted(lambda i, j: (i + j).double(), asked), 50, 12, 7)
    pairs = [{a, b} for i, j in asked for a, b in zip(i.tolist(), j.tolist(), strict=True)]
    assert len({frozenset(pair) for pair in pairs}) == len(pairs) == 50 * 12 / 2
    assert all(sum(c in pair for pair in pairs) == 12 for c in range(50))
    mean_of_0 = sum(sum(pair) for pair in pairs if 0 in pair) / 12
    assert float(means[0]) == pytest.approx(mean_of_0)


@pytest.mark.parametrize("spread", [1.0, 0.01, 1e-5, 0.0])
@pytest.mark.parametrize("unit", [True, False])
def test_with_fewer_images_than_features_the_short_way_agrees_with_the_long_one(
    monkeypatch, spread, unit
):
    generator = torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor([40, 25, 9, 2]))
    features = torch.randn(4, 120, generator=generator)[labels]
    features += spread * torch.randn(len(labels), 120, generator=generator)
    measured = partial(class_separability, features, labels, 4, unit=unit)
    asked = []
    monkeypatch.setattr(module, "_of_few", _counted(module._of_few, asked))
    short = measured()
    assert len(asked) == 1
    monkeypatch.setattr(
        module,
        "_of_few",
        lambda means, members, seen: partial(module._fisher, means, module._shrunk(members, seen)),
    )
    torch.testing.assert_close(short, measured(), rtol=1e-6, atol=0)


def test_as_many_images_as_features_go_the_long_way(monkeypatch):
    monkeypatch.setattr(module, "_of_few", None)
    x, labels = classes_of([30, 20, 10], 50)
    assert class_separability(x, labels, 3).isfinite().all()


@pytest.mark.parametrize(("images", "features"), [(2, 9), (5, 64), (40, 50)])
def test_the_shrinkage_of_few_images_is_scikit_learns(images, features):
    x, _ = classes_of([images], features)
    centred = x - x.mean(0)
    shrinkage, variance = module._oas(centred)
    covariance, wanted = oas(centred.numpy(), assume_centered=True)
    assert shrinkage == pytest.approx(wanted, rel=1e-12)
    assert variance == pytest.approx(np.trace(covariance) / features, rel=1e-12)


def _counted(function, calls):
    def counted(*args):
        calls.append(args)
        return function(*args)

    return counted
