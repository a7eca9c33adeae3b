"""A finished method's feature space: angles to the class centres, and how far classes lie."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure

from lt_pipeline.learning.data.distribution import of_each_label
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.predict import predict
from lt_pipeline.learning.evaluation.diagnostics.angles import angle_summary, angles_to_prototypes
from lt_pipeline.learning.evaluation.diagnostics.separability import (
    class_separability,
    measured_against,
    separability_by_group,
)
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.figures.geometry import angle_distribution, separability_by_class
from lt_pipeline.learning.models.merging import StateDict

Values = dict[str, Any]


def geometry(
    experiment: Experiment, model: StateDict, test: Images, *, pictures: bool = True
) -> tuple[Values, dict[str, Figure]]:
    """Return numbers by group and pictures of the test images' features (DBM, figure 4, table 6).

    There are none where nobody looks at ``pictures``, as of an arm of a study.

    Where there are too many classes and features for the separability of all pairs, it is of some,
    and ``separability_of`` says of how many, or left out, and ``left_out`` says why.
    """
    method, device = experiment.finished(model), experiment.device
    longtail, test = method.card.longtail, experiment.seen(test)
    method.to(device)
    prototypes = method.class_prototypes().detach().cpu()
    features = predict(method, method.features, test, device=device)
    # an image of several labels is one of each
    image, labels = of_each_label(test.labels)
    features = features[image.cpu()]
    angles = angles_to_prototypes(features, prototypes, labels)
    title = experiment.title
    numbers: Values = angle_summary(angles, labels, longtail)
    drawn = dict[str, Figure]()
    if pictures:
        drawn["angles.png"] = angle_distribution(angles, labels, longtail, title)
    classes, width = prototypes.shape
    others = measured_against(labels, classes, width)
    if others:
        if others < int((torch.bincount(labels.cpu()) > 1).sum()) - 1:
            numbers["separability_of"] = f"each class and {others} others"
        separability = class_separability(features, labels, classes)
        numbers["separability"] = separability_by_group(separability, longtail)
        if pictures and not separability.isnan().all():
            picture = separability_by_class(separability, longtail, title)
            drawn["separability.png"] = picture
    else:
        numbers["left_out"] = (
            f"separability: {classes * (classes - 1) // 2} pairs of classes with {width} features"
        )
    return numbers, drawn
