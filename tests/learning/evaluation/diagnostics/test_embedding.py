from __future__ import annotations

import pytest
import torch

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.evaluation.diagnostics.embedding import sample_by_group, tsne

LONGTAIL = LongTail.from_counts([300, 50, 200, 5])


def clusters(images, features=8):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat_interleave(images)
    prototypes = 10 * torch.randn(3, features, generator=generator)
    return prototypes[labels] + torch.randn(len(labels), features, generator=generator), labels


def test_what_is_together_stays_together_and_equal_seeds_give_equal_pictures():
    x, labels = clusters(15)
    embedded = tsne(x.double().requires_grad_(), seed=0, perplexity=8)
    assert (embedded.dtype, embedded.shape) == (torch.float32, (45, 2))
    distance = torch.cdist(embedded, embedded).fill_diagonal_(torch.inf)
    assert (labels[distance.argmin(1)] == labels).all()
    assert torch.equal(tsne(x, seed=0, perplexity=8), embedded)


@pytest.mark.parametrize(("points", "wanted"), [(5, 4 / 3), (60, 59 / 3), (91, 30), (200, 30)])
def test_the_perplexity_is_lowered_where_there_are_few_points(monkeypatch, points, wanted):
    given = {}

    class Recorder:
        def __init__(self, **options):
            given.update(options)

        def fit_transform(self, x):
            return x[:, :2]

    monkeypatch.setattr("sklearn.manifold.TSNE", Recorder)
    tsne(torch.randn(points, 3, generator=torch.Generator().manual_seed(0)), seed=7)
    assert given == {"init": "pca", "perplexity": pytest.approx(wanted), "random_state": 7}


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_five_points_are_enough_for_scikit_learn():
    x, _ = clusters(2)
    assert tsne(x[:5], seed=0).isfinite().all()


def test_what_has_no_picture_is_refused():
    x, _ = clusters(3)
    with pytest.raises(ValueError, match=r"at least 5 points and 2 features, but got \[4, 8\]"):
        tsne(x[:4], seed=0)
    with pytest.raises(ValueError, match=r"but got \[9, 1\]"):
        tsne(x[:, :1], seed=0)
    with pytest.raises(ValueError, match="all are the same"):
        tsne(x[:1].repeat(9, 1), seed=0)
    x[3, 1] = torch.nan
    with pytest.raises(ValueError, match="features must be finite"):
        tsne(x, seed=0)


def test_each_group_gives_at_most_so_many_images():
    labels = torch.randint(4, (400,), generator=torch.Generator().manual_seed(0))
    labels[5:][labels[5:] == 3] = 0
    labels[:5] = 3
    drawn = sample_by_group(labels, LONGTAIL, 20, seed=0)
    assert drawn.dtype == torch.int64
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    members = LONGTAIL.group_members(labels[drawn])
    assert {name: int(mask.sum()) for name, mask in members.items()} == {
        "many": 20, "medium": 20, "few": 5,
    }  # fmt: skip
    assert torch.equal(sample_by_group(labels, LONGTAIL, 20, seed=0), drawn)
    assert not torch.equal(sample_by_group(labels, LONGTAIL, 20, seed=1), drawn)


def test_images_are_drawn_from_the_whole_set_and_not_from_its_start():
    labels = torch.zeros(1000, dtype=torch.int64)
    drawn = sample_by_group(labels, LONGTAIL, 200, seed=0).double()
    assert 420 < float(drawn.mean()) < 580


def test_a_group_without_an_image_gives_none_and_no_image_is_refused():
    drawn = sample_by_group(torch.tensor([3, 3]), LONGTAIL, 5, seed=0)
    assert drawn.tolist() == [0, 1]
    assert sample_by_group(torch.empty(0, dtype=torch.int64), LONGTAIL, 5, seed=0).tolist() == []
    with pytest.raises(ValueError, match="at least 1 image, but is 0"):
        sample_by_group(torch.tensor([3]), LONGTAIL, 0, seed=0)
