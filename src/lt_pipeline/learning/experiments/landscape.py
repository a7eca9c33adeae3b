"""The loss of each class on a share of its training images: its risk, and its landscape.

The loss is the base loss: what ``options.criterion`` makes of the scores, as after the last epoch.
What a criterion learns while training, as difficulties, is as at its start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lt_pipeline.learning.data.distribution import LongTail, of_each_label
from lt_pipeline.learning.data.protocol import Images, take
from lt_pipeline.learning.data.subsets import Subset
from lt_pipeline.learning.engine.device import enough_threads, without_tf32
from lt_pipeline.learning.engine.predict import predict
from lt_pipeline.learning.evaluation.diagnostics.landscape import (
    COMPARED,
    Curvature,
    Hessian,
    curvature,
    imbalance,
)
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.losses.criteria import Criterion, Head
from lt_pipeline.learning.methods.families.base import Method
from lt_pipeline.learning.progress import track

Values = dict[str, Any]


@dataclass(frozen=True)
class ClassSample:
    """Images of each class: the positions ``[L]`` of images and the class ``[L]`` each is of.

    One of several labels may be there for each of them.
    """

    position: Tensor
    label: Tensor

    @classmethod
    def draw(cls, labels: Tensor, per_class: int, seed: int) -> ClassSample:
        """Draw ``per_class`` images of each class, or all that it has; equal seeds, equal images.

        ``labels`` are ``[N]``, or ``[N, C]`` where images have several.
        """
        image, label = of_each_label(labels.cpu())
        chosen = Subset((0,), per_class).draw(label, seed)
        return cls(image[chosen], label[chosen])


def base_criterion(experiment: Experiment, method: Method) -> Criterion:
    """Return the criterion that ``method`` is trained on last, as in its last epoch."""
    config = experiment.config
    scale = config.model.scale if config.model.head == "cosine" else None
    head = Head(method.net.width, scale)
    criterion: Criterion = config.options.criterion.build(experiment.card.longtail, head)
    criterion.start_epoch(config.training.epochs - 1, config.training.epochs)
    return criterion


class RiskByGroup:
    """The empirical risk of every group over the epochs (MORE, figure 4 b).

    A group's is the mean over its classes of each one's mean loss, as in equation 8.
    """

    def __init__(self, experiment: Experiment, method: Method, train: Images) -> None:
        config, self.device = experiment.config, experiment.device
        self.longtail = experiment.card.longtail
        sample = ClassSample.draw(train.labels, config.training.monitor_risk, config.seed)
        self.images, self.label = train[sample.position], sample.label
        self.criterion = base_criterion(experiment, method)

    @torch.no_grad()
    def __call__(self, module: nn.Module, score: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return ``risk/<group>`` and ``risk/all`` of what ``score`` gives, in evaluation mode."""
        scores, labels = predict(module, score, self.images, device=self.device), self.images.labels
        # by class, as some criteria weight the classes of a batch to a mean of 1
        of_class = [
            self.criterion(scores[own], labels.cpu()[own]).double().mean()
            for own in (self.label == c for c in range(self.longtail.classes))
        ]
        means = group_means(torch.stack(of_class), self.longtail)
        return {f"risk/{name}": value for name, value in means}


def group_means(values: Tensor, longtail: LongTail) -> list[tuple[str, float]]:
    """Return the mean of ``values`` ``[C]`` over each group's classes, and as ``all`` over all."""
    groups = [(name, float(values[list(of)].mean())) for name, of in longtail.groups.items()]
    return [*groups, ("all", float(values.mean()))]


def landscape(
    experiment: Experiment, method: Method, train: Images
) -> tuple[Values, dict[str, list[Any]]]:
    """Return the numbers of MORE's table 6, and the columns by class that they follow from.

    ``method`` is finished, and where it is computed; its parameters are those of the deployed
    network. It is in evaluation mode: BatchNorm's statistics stand still. Both are empty unless
    ``evaluation.landscape.images`` says of how many training images a class it is to be.
    """
    how, longtail = experiment.config.evaluation.landscape, experiment.card.longtail
    if not how.images:
        return {}, {}
    train, device = experiment.seen(train), experiment.device
    sample = ClassSample.draw(train.labels, how.images, how.seed)
    criterion = base_criterion(experiment, method).to(device)
    method.requires_grad_(True).eval()
    curvatures = list[Curvature]()
    with exact(device, [how.batch, *train.shape]):
        for c in track(range(longtail.classes), "landscape by class", longtail.classes):
            chosen = sample.position[sample.label == c]
            images, labels = take(train, chosen).to(device), train.labels[chosen].to(device)
            hessian = hessian_of(method, criterion, images, labels, how.batch)
            if not hessian.parts[0]().requires_grad:
                return {"left_out": "landscape: the scores depend on no parameter"}, {}
            generator = torch.Generator().manual_seed(how.seed)
            curvatures.append(curvature(hessian, generator, how.steps, how.probes, how.tolerance))
    columns = {name: [getattr(each, name) for each in curvatures] for name in Curvature._fields}
    return _summary(columns, longtail), columns


@contextmanager
def exact(device: torch.device, shape: Sequence[int]) -> Iterator[None]:
    """Compute all digits inside, and what can be differentiated twice, as fused attention is not.

    ``shape`` is a batch's, as in ``enough_threads``.
    """
    with without_tf32(), enough_threads(device, shape), sdpa_kernel(SDPBackend.MATH):
        yield


def hessian_of(
    method: Method, criterion: Criterion, images: Tensor, labels: Tensor, batch: int
) -> Hessian:
    """Return the Hessian of the mean loss of ``images``, ``batch`` of which are in memory."""

    def loss_of(part: Tensor) -> Tensor:
        losses: Tensor = criterion(method.score(images[part]), labels[part])
        return losses.sum() / len(images)

    parts = torch.arange(len(images), device=images.device).split(batch)
    return Hessian([partial(loss_of, part) for part in parts], method.parameters())


def _summary(columns: Mapping[str, list[Any]], longtail: LongTail) -> Values:
    rarest = int(longtail.counts.argmin())
    return {
        "imbalance": {name: imbalance(columns[name]) for name in COMPARED},
        "rarest": {name: columns[name][rarest] for name in ("lambda_min", "gamma")},
        "risk": dict(group_means(torch.tensor(columns["risk"]), longtail)),
        "unconverged_classes": columns["converged"].count(False),
    }
