"""BTM (Yu, Du, Wu: Reviving Undersampling for Long-tailed Learning, 2024), algorithm 1.

A network that was trained on long-tailed images is fine-tuned on several balanced few-shot subsets,
each time from the same weights; the average of the results is one network, whose classifier is
trained at last. docs/methods/btm.md says what the paper leaves open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor
from torch.nn import functional as F

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.data.samplers import SamplerConfig, instance_balanced
from lt_pipeline.learning.data.subsets import Short, Subset
from lt_pipeline.learning.engine.predict import predict
from lt_pipeline.learning.engine.protocol import Progress
from lt_pipeline.learning.engine.stage import Recipe, Stage
from lt_pipeline.learning.evaluation.metrics.classification import confusion_matrix, report
from lt_pipeline.learning.losses.binary import bce
from lt_pipeline.learning.losses.config import CriterionConfig
from lt_pipeline.learning.losses.decoupled import LabelAwareSmoothingConfig
from lt_pipeline.learning.losses.functional import at_least_float32
from lt_pipeline.learning.methods.families.base import Part
from lt_pipeline.learning.methods.families.decoupled import (
    BACKBONE,
    HEAD,
    ClassifierConfig,
    Decoupled,
    DecoupledOptions,
)
from lt_pipeline.learning.methods.families.pretrained import SOURCE, stages_below
from lt_pipeline.learning.methods.mislas import SECOND_STAGE
from lt_pipeline.learning.models import merging
from lt_pipeline.learning.models.batchnorm import reestimate_batchnorm
from lt_pipeline.learning.models.merging import StateDict
from lt_pipeline.learning.schema import Config, UserError
from lt_pipeline.learning.transforms.mix import MixConfig, two_hot_loss

WHERE: dict[str, tuple[str, ...]] = {
    "both": (f"{SOURCE}.net",),
    "backbone": (BACKBONE,),
    "classifier": (HEAD,),
}
# options that no fine-tuning depends on, and those that do not follow the second stage either
APART = ("references", "interpolate")
LATER = ("merge", "criterion", "classifier", *APART)
# epochs of the classifier's last training, and behind a stage that undid how imbalance was handled
USUAL, LONGER = 10, 40


class BranchesConfig(Config):
    """The balanced subsets and the fine-tunings on them.

    Attributes:
        sets: N_D, subsets and fine-tunings.
        images: N_C, of each class in a subset.
        short: what a class with fewer gives: all it has, once (``keep``, as the released lists), or
            repeated up to N_C (``fill``).
        epochs: passes over a subset.
        batch_size: images of a step; the last step of an epoch has what is left.
        learning_rate: the first step's, with a cosine schedule and no warm-up.
        weight_decay: of all weights.
        mix: how a batch is mixed with itself; ``pretrain`` is as the method trained first does.
        where: what learns (table 8).
        together: train all side by side, in one node, where memory allows.
    """

    symbols: ClassVar[Mapping[str, str]] = {"N_D": "sets", "N_C": "images"}

    sets: int = Field(default=10, ge=1, le=100)
    images: int = Field(default=10, ge=1, le=100_000)
    short: Short = "keep"
    epochs: PositiveInt = 30
    batch_size: PositiveInt = 24
    learning_rate: PositiveFloat = 5e-3
    weight_decay: NonNegativeFloat = 5e-4
    mix: MixConfig | Literal["pretrain"] | None = "pretrain"
    where: Literal["both", "backbone", "classifier"] = "both"
    together: bool = False

    def subset(self, *numbers: int) -> Subset:
        """Return the subsets of these ``numbers``, counted from 0, together."""
        return Subset(numbers, self.images, self.short)


# "the same training strategy for the first two steps" (section 4.1), which are FC and these
FINE_TUNING = BranchesConfig()
FC_STAGE = ClassifierConfig(
    batch_size=FINE_TUNING.batch_size,
    learning_rate=FINE_TUNING.learning_rate,
    weight_decay=FINE_TUNING.weight_decay,
    sampler=SamplerConfig(name="instance_balanced"),
)


class MergeConfig(Config):
    """How the fine-tuned networks become one (table 6).

    Attributes:
        strategy: ``average``; ``adaptive`` weighs networks by their score; ``greedy`` averages
            those that raise it, one after the other.
        score: ``harmonic_mean`` or ``geometric_mean`` of the recalls on all subsets' images.
        order: of the greedy strategy: ``sorted`` by score, or as ``given``.
        batchnorm: running statistics are ``averaged`` as weights are, or ``reestimated`` on all
            subsets' images.
    """

    strategy: Literal["average", "adaptive", "greedy"] = "average"
    score: Literal["harmonic_mean", "geometric_mean"] = "harmonic_mean"
    order: Literal["sorted", "given"] = "sorted"
    batchnorm: Literal["averaged", "reestimated"] = "averaged"


class BtmOptions(DecoupledOptions):
    """What BTM can be told; docs/methods/btm.md says what the paper leaves open.

    Attributes:
        pretrain: the method that is trained first; MiSLAS's first stage in the paper.
        fc: train the classifier with cross-entropy on all images before the subsets, which a
            method that handles imbalance needs; ``auto`` asks the method.
        fc_classifier: how; as the fine-tunings, in 10 epochs.
        when: subsets ``between`` the representation and the classifier's last training, or
            ``after`` it (table 8).
        branches: the subsets and fine-tunings.
        merge: how the networks become one.
        criterion: of the last training.
        classifier: how that trains; 40 epochs behind ``fc`` unless told.
        references: also train what the paper compares with: a second stage without balanced
            training, and a fine-tuning on the union of the first two subsets.
        interpolate: networks on the way between two, for figures 1 and 2; 0 is no figure.
    """

    pretrain: str = "mixup"
    fc: bool | Literal["auto"] = "auto"
    fc_classifier: ClassifierConfig = FC_STAGE
    when: Literal["between", "after"] = "between"
    branches: BranchesConfig = BranchesConfig()
    merge: MergeConfig = MergeConfig()
    criterion: CriterionConfig = LabelAwareSmoothingConfig()
    classifier: ClassifierConfig = SECOND_STAGE
    references: bool = True
    interpolate: int = Field(default=11, ge=0, le=101)

    @property
    def has_fc(self) -> bool:
        """Return whether the classifier forgets how imbalance was handled."""
        if isinstance(self.fc, bool):
            return self.fc
        return self.pretrain_options.handles_imbalance

    @property
    def has_union(self) -> bool:
        """Return whether there is a fine-tuning on two subsets together."""
        return self.references and self.branches.sets > 1

    @property
    def branch_mix(self) -> MixConfig | None:
        """Return how the fine-tunings mix images."""
        mix = self.branches.mix
        return self.pretrain_options.mixes if mix == "pretrain" else mix

    @property
    def branch_names(self) -> tuple[str, ...]:
        """Return the names of the fine-tunings."""
        return tuple(f"branch_{k}" for k in range(self.branches.sets))

    @model_validator(mode="after")
    def _steady(self) -> Self:
        if self.fc_classifier.scale:
            raise UserError("fc_classifier.scale must be false: factors are of the last training")
        if self.interpolate == 1:
            raise UserError("interpolate must be 0, for no picture, or at least 2, the two ends")
        return self


class BalancedTrainingAndMerging(Decoupled):
    """Fine-tunings on balanced few-shot subsets, merged into one network."""

    Options = BtmOptions
    options: BtmOptions
    one_label = ""

    @classmethod
    def why_one_label(cls, options: BtmOptions) -> str:
        """Return what of it is of one label; subsets and averages are of several as well."""
        if options.merge.strategy != "average":
            return f"merge.strategy={options.merge.strategy} goes by recalls; average does not"
        if options.branch_mix is not None:
            return "its fine-tunings mix the one label of an image; branches.mix=null does not"
        if options.branches.short == "fill":
            return "branches.short=fill repeats a class's images alone; keep does not"
        return super().why_one_label(options)

    @classmethod
    def stages(cls, options: BtmOptions) -> tuple[Stage, ...]:
        """Return the stages of algorithm 1, with one for each fine-tuning."""
        branches, after = options.branches, options.when == "after"
        stages = [*stages_below(options)]
        if options.has_fc:
            fc = options.fc_classifier.stage("fc", stages[-1].name, options.factors)
            decided_by = _recipe(options, "branches")
            stages.append(replace(fc, objective="plain", decides=SOURCE, recipe=decided_by))
        if after:
            stages.append(_last(options, "post_train", stages[-1].name))
        start = stages[-1].name
        alone = _fine_tuning(options, start)
        branch = replace(alone, role="branch")
        if branches.together:
            branch = replace(branch, group="branches", recipe=_recipe(options))
        stages += [
            replace(branch, name=name, subset=branches.subset(k))
            for k, name in enumerate(options.branch_names)
        ]
        if options.has_union:
            union = branches.subset(0, 1)
            stages.append(replace(alone, name="union", subset=union, role="reference"))
        if options.references and not after:
            stages.append(replace(_last(options, "stage_2", start), role="reference"))
        merge = Stage(
            "merge",
            options.branch_names,
            folded=(SOURCE,),
            subset=branches.subset(*range(branches.sets)),
            step="merge",
            decides=alone.decides,
        )
        return (*stages, merge, *([] if after else [_last(options, "post_train", "merge")]))

    @classmethod
    def paths(cls, options: BtmOptions) -> tuple[tuple[str, str, int], ...]:
        """Return the pairs of figure 1, before and after a fine-tuning, and 2, two fine-tunings."""
        if not options.interpolate:
            return ()
        stages = {stage.name: stage for stage in cls.stages(options)}
        first, *others = options.branch_names
        points = options.interpolate
        pairs = [(stages[first].start[0], first, points)]
        return (*pairs, *((first, other, points) for other in others[:1]))

    @property
    def plain(self) -> CrossEntropy:
        """Return the objective of fine-tunings on images as they are."""
        return CrossEntropy(self, mixed=False)

    @property
    def mixed(self) -> CrossEntropy:
        """Return the objective of fine-tunings on mixtures."""
        return CrossEntropy(self, mixed=True)

    def merge(
        self, states: Sequence[StateDict], train: Images, device: torch.device
    ) -> dict[str, Any]:
        """Merge the fine-tuned networks; return the weight of each, and their scores if asked for.

        Raises:
            UserError: if they are not of one architecture.
        """
        names = self.options.branch_names
        merging.check_same(states, names)
        options = self.options.merge

        def score(state: StateDict) -> float:
            self.load(state)
            return self._scores(train, device)[options.score]

        scores = [] if options.strategy == "average" else [score(state) for state in states]
        if options.strategy == "greedy":
            merged, kept = merging.greedy_soup(states, score, options.order)
            weights = [1 / len(kept) if k in kept else 0.0 for k in range(len(states))]
        else:
            weights = (
                merging.adaptive_weights(scores) if scores else [1 / len(states)] * len(states)
            )
            merged = merging.average(states, weights)
        self.load(merged)
        if options.batchnorm == "reestimated":
            size = self.options.branches.batch_size
            self.to(device)
            reestimate_batchnorm(self.net, train, device=device, batch_size=size)
        return {
            "shares": dict(zip(names, weights, strict=True)),
            "scores": dict(zip(names, scores, strict=False)),
        }

    def notes(self) -> list[str]:
        """Say how large the subsets are, how many steps they are, and what comes before them."""
        if self.card.longtail.several:
            return [*super().notes(), *self._of_several()]
        options, counts = self.options.branches, self.card.longtail.class_counts
        drawn = [min(n, options.images) for n in counts]
        each = [options.images] * len(counts) if options.short == "fill" else drawn
        notes = [
            *super().notes(),
            f"each of {options.sets} subsets has {sum(each)} images, {min(each)} to {max(each)} a "
            f"class, and {sum(n <= options.images for n in counts)} of {len(counts)} classes give "
            f"all of them the same images",
            self._pace(sum(each)),
        ]
        if self.options.has_fc:
            notes.append(
                f"{self.options.pretrain} handles imbalance, so its classifier forgets that first "
                f"(btm.options.fc)"
            )
        return notes

    def _of_several(self) -> list[str]:
        options = self.options.branches
        return [
            f"each of {options.sets} subsets has {options.images} images of a label, all of one "
            f"that has fewer, and more where labels come together"
        ]

    def _pace(self, images: int) -> str:
        options = self.options.branches
        steps = -(-images // options.batch_size)
        length = f"a fine-tuning is {options.epochs * steps} steps, {steps} an epoch"
        if steps > 1:
            return length
        return (
            f"{length}: a batch holds the whole subset. btm.options.branches.batch_size="
            f"{-(-images // 4)} makes it 4 an epoch, as in the paper's on CIFAR-100-LT"
        )

    def _scores(self, train: Images, device: torch.device) -> dict[str, float]:
        self.to(device)
        scores = predict(self, self.score, train, device=device)
        return report(confusion_matrix(scores, train.labels), self.card.longtail)


class CrossEntropy(Part):
    """Cross-entropy of all that a method makes of images, or of mixtures of them.

    Of several labels it is the sum of each class's own.
    """

    def __init__(self, method: BalancedTrainingAndMerging, *, mixed: bool) -> None:
        super().__init__(method)
        self.mixed = mixed

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return the mean over a batch.

        Raises:
            ValueError: if mixtures are due and the batch brings none.
        """
        if not self.mixed:
            return {"cross_entropy": self._losses(batch.images, batch.labels)[0].mean()}
        images, first, second, lam = batch.mixtures
        of_first, of_second = self._losses(images, first, second)
        return {"cross_entropy": two_hot_loss(of_first, of_second, lam).mean()}

    def _losses(self, images: Tensor, *labels: Tensor) -> list[Tensor]:
        """Return the loss of every image for each of ``labels``, ``[B]``."""
        logits = at_least_float32(self.method.classify(self.method.net.features(images)))
        return [_cross_entropy(logits, label) for label in labels]


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.ndim == 2:
        return bce(logits, labels.to(logits.dtype)).sum(1)
    return F.cross_entropy(logits, labels, reduction="none")


def _last(options: BtmOptions, name: str, start: str) -> Stage:
    """Return a last training of the classifier, on the criterion."""
    epochs = LONGER if options.has_fc else USUAL
    return options.classifier.stage(name, start, options.factors, epochs)


def _fine_tuning(options: BtmOptions, start: str) -> Stage:
    """Return what the fine-tunings have in common, each a training by itself."""
    branches, mix = options.branches, options.branch_mix
    return Stage(
        "",
        (start,),
        folded=(SOURCE,),
        sampler=instance_balanced,
        mix=mix,
        remainder=True,
        trainable=WHERE[branches.where],
        epochs=branches.epochs,
        training={
            "batch_size": branches.batch_size,
            "learning_rate": branches.learning_rate,
            "weight_decay": branches.weight_decay,
            "schedule": "cosine",
            "warmup_epochs": 0,
        },
        objective="mixed" if mix else "plain",
        decides="" if options.when == "after" else SOURCE,
        # a subset and what is learned of it do not depend on how many there are
        recipe=_recipe(options, "branches.sets", "branches.together"),
    )


def _recipe(options: BtmOptions, *left_out: str) -> Recipe:
    """Return what decides a fine-tuning: nothing that follows it, nor what is ``left_out``."""
    later = LATER if options.when == "between" else ("merge", *APART)
    return Recipe(left_out=(*later, *left_out), shared=True)
