from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.experiments.config import ExperimentConfig, data_config
from lt_pipeline.learning.methods.energy_oe import EnergyOptions, EnergyOutlierExposure
from lt_pipeline.learning.methods.families.outliers import OutlierOptions
from lt_pipeline.learning.methods.oe import OutlierExposure
from lt_pipeline.learning.models.network import ModelConfig
from toys import toy_card, toy_images


def create(kind, options, **values):
    torch.manual_seed(0)
    given = options.model_validate(values)
    method = kind(given, ModelConfig(backbone="resnet8"), toy_card()).train()
    method.start_epoch(9, 10)
    return method


def batch():
    data = toy_images()
    index = torch.arange(0, len(data), 3)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(0, 256, (10, *data.shape), dtype=torch.uint8, generator=generator)
    return Batch(data.images[index], data.labels[index], index, outliers=noise)


def logits(method):
    both = method.net(torch.cat([batch().images, batch().outliers]))
    return both[:25], both[25:]


def test_oe_adds_the_cross_entropy_of_the_uniform_distribution():
    method = create(OutlierExposure, OutlierOptions, weight=0.7)
    terms = method.loss(batch(), 0.5)
    inside, outside = logits(method)
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(inside, batch().labels))
    uniform = torch.full_like(outside, 0.25)
    torch.testing.assert_close(terms["outliers"], 0.7 * F.cross_entropy(outside, uniform))


def test_energies_are_held_on_their_sides_of_two_bounds():
    bounds = {"inside_below": -1.5, "outside_above": -1.3}
    method = create(EnergyOutlierExposure, EnergyOptions, weight=0.2, **bounds)
    terms = method.loss(batch(), 0.5)
    inside, outside = (-z.exp().sum(1).log() for z in logits(method))
    wanted = (inside + 1.5).clamp(min=0).square().mean()
    wanted += (-1.3 - outside).clamp(min=0).square().mean()
    assert wanted > 0
    torch.testing.assert_close(terms["outliers"], 0.2 * wanted)


def test_any_criterion_of_one_view_goes_with_them():
    method = create(OutlierExposure, OutlierOptions, criterion={"name": "balanced_softmax"})
    terms = method.loss(batch(), 0.5)
    log_prior = method.card.longtail.log_prior.float()
    inside, _ = logits(method)
    wanted = F.cross_entropy(inside + log_prior, batch().labels)
    torch.testing.assert_close(terms["balanced_softmax"], wanted)
    with pytest.raises(ValueError, match="needs views of every image, which outliers have not"):
        OutlierOptions.model_validate({"criterion": {"name": "balanced_contrastive"}})


def test_they_begin_at_their_share_and_are_in_the_last_epoch():
    method = create(EnergyOutlierExposure, EnergyOptions, start=0.5)
    assert [stage.outliers for stage in method.stages(method.options)] == [1.0]
    for epochs, shown in ((4, [False, False, True, True]), (1, [True])):
        weights = []
        for epoch in range(epochs):
            method.start_epoch(epoch, epochs)
            weights.append("outliers" in method.loss(batch(), 0.5))
        assert weights == shown


def test_bounds_that_cross_and_batches_without_outliers_are_refused():
    with pytest.raises(ValueError, match="inside_below must be <= outside_above"):
        EnergyOptions(inside_below=-1.0, outside_above=-2.0)
    with pytest.raises(ValueError, match="must bring outliers"):
        create(OutlierExposure, OutlierOptions).loss(batch()._replace(outliers=None), 0.5)


@pytest.mark.parametrize("name", ["oe", "energy_oe"])
def test_data_without_auxiliary_images_are_refused_at_the_start(name):
    config = ExperimentConfig.resolve(name, {})
    with pytest.raises(ValueError, match=rf"{name} trains on images of no class, but data.auxil"):
        config.check_data(data_config({}))
    config.check_data(data_config({"data": {"auxiliary": {"name": "gaussian_noise"}}}))
