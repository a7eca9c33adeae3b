from __future__ import annotations

import math

import pytest
import torch

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.evaluation.diagnostics.angles import angle_summary, angles_to_prototypes

X_AXIS = torch.tensor([[1.0, 0.0]], dtype=torch.float64)


def to_x_axis(*features):
    x = torch.tensor(features, dtype=torch.float64)
    return angles_to_prototypes(x, X_AXIS, torch.zeros(len(x), dtype=torch.int64)).tolist()


def test_angles_by_hand_whatever_the_lengths():
    coordinates = to_x_axis([3, 0], [0, 0.1], [-7, 0], [2, 2], [1, -math.sqrt(3)], [1e-30, 1e-30])
    assert coordinates == pytest.approx([0, 90, 180, 45, 60, 45], abs=1e-12)


def test_angles_near_0_and_180_degrees_keep_their_digits():
    small, large = to_x_axis([1, 1e-9], [-1, 1e-9])
    assert small == pytest.approx(math.degrees(1e-9), rel=1e-9, abs=0)
    assert 180 - large == pytest.approx(math.degrees(1e-9), rel=1e-4, abs=0)


def test_the_centre_is_that_of_the_images_own_class():
    prototypes = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    features = torch.tensor([[1.0, 1.0]] * 3)
    angles = angles_to_prototypes(features, prototypes, torch.tensor([2, 0, 1]))
    assert angles.dtype == torch.float64
    assert angles.tolist() == pytest.approx([135, 45, 45])


def test_angles_agree_with_the_arc_cosine_where_that_is_exact_enough():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 8, generator=generator)
    prototypes = torch.randn(5, 8, generator=generator)
    labels = torch.randint(5, (50,), generator=generator)
    cosine = torch.cosine_similarity(features.double(), prototypes.double()[labels])
    angles = angles_to_prototypes(features, prototypes, labels)
    assert torch.allclose(angles, cosine.acos().rad2deg(), rtol=0, atol=1e-8)


def test_without_a_direction_the_angle_is_90_degrees():
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    prototypes = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert angles_to_prototypes(features, prototypes, torch.tensor([0, 1, 1])).tolist() == [
        90,
        90,
        90,
    ]


def test_the_summary_has_mean_and_quartiles_of_each_group_with_images():
    longtail = LongTail.from_counts([200, 50, 5, 150])
    angles = torch.tensor([40.0, 70.0, 10.0, 30.0, 20.0], dtype=torch.float64)
    labels = torch.tensor([0, 2, 0, 3, 3])
    assert angle_summary(angles, labels, longtail) == {
        "angle_mean": {"many": 25, "few": 70, "all": 34},
        "angle_lower_quartile": {"many": 17.5, "few": 70, "all": 20},
        "angle_median": {"many": 25, "few": 70, "all": 30},
        "angle_upper_quartile": {"many": 32.5, "few": 70, "all": 40},
    }


def test_the_summary_of_no_image_is_empty():
    summary = angle_summary(torch.empty(0), torch.empty(0).long(), LongTail.from_counts([9]))
    assert set(map(len, summary.values())) == {0}
