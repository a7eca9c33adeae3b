"""BTM (Yu, Du, Wu: Reviving Undersampling for Long-tailed Learning, 2024), algorithm 1.

A network that was trained on long-tailed images is fine-tuned on several balanced few-shot subsets,
each time from the same weights; the average of the results is one network, whose classifier is
trained at last. docs/methods/btm.md says what the paper leaves open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor
from torch.nn import functional as F

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.data.samplers import SamplerConfig, instance_balanced
from lt_pipeline.learning.data.subsets import Short, balanced_subsets
from lt_pipeline.learning.engine.phase import Phase, Stage
from lt_pipeline.learning.engine.predict import predict
from lt_pipeline.learning.evaluation.metrics.classification import confusion_matrix, report
from lt_pipeline.learning.losses.config import CriterionConfig
from lt_pipeline.learning.losses.decoupled import LabelAwareSmoothingConfig
from lt_pipeline.learning.losses.functional import at_least_float32
from lt_pipeline.learning.methods._base import MethodOptions, Recipe
from lt_pipeline.learning.methods._decoupled import (
    BACKBONE,
    HEAD,
    ClassifierConfig,
    Decoupled,
    DecoupledOptions,
)
from lt_pipeline.learning.methods._pretrained import Pretrained
from lt_pipeline.learning.methods.mislas import SECOND_STAGE
from lt_pipeline.learning.models import merging as weights
from lt_pipeline.learning.models.batchnorm import reestimate_batchnorm
from lt_pipeline.learning.models.merging import StateDict
from lt_pipeline.learning.schema import Config, UserError
from lt_pipeline.learning.transforms.mix import MixConfig, two_hot_loss

WHERE: dict[str, tuple[str, ...]] = {
    "both": ("source.net",),
    "backbone": (BACKBONE,),
    "classifier": (HEAD,),
}
# the classifier's last training, with and without what comes between
LAST = ("post_train", "stage_2")
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
        together: train all as one batched computation, in one node, where memory allows.
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

    @classmethod
    def stages(cls, options: MethodOptions) -> tuple[Stage, ...]:
        """Return the stages of algorithm 1, with one for each fine-tuning."""
        if not isinstance(options, BtmOptions):
            raise TypeError(f"options must be BtmOptions, but are {type(options).__name__}")
        found = list(Pretrained.stages.__func__(cls, options))  # type: ignore[attr-defined]
        if options.has_fc:
            found.append(Stage("fc", (found[-1].name,)))
        after = options.when == "after"
        if after:
            found.append(Stage("post_train", (found[-1].name,)))
        start = (found[-1].name,)
        group = "branches" if options.branches.together else ""
        found += [
            Stage(name, start, subset=True, group=group, role="branch")
            for name in options.branch_names
        ]
        if options.has_union:
            found.append(Stage("union", start, subset=True, role="reference"))
        if options.references and not after:
            found.append(Stage("stage_2", start, role="reference"))
        found.append(Stage("merge", options.branch_names, trains=False, subset=True))
        return (*found, *([] if after else [Stage("post_train", ("merge",))]))

    @classmethod
    def recipe(cls, stage: Stage, method: str, options: MethodOptions) -> Recipe:
        """Return what decides ``stage``: for a fine-tuning, nothing that follows."""
        found = super().recipe(stage, method, options)
        if not found.whole or not (stage.name == "fc" or (stage.subset and stage.trains)):
            return found
        between = isinstance(options, BtmOptions) and options.when == "between"
        left_out = LATER if between else ("merge", *APART)
        if not stage.group:
            # a subset and what is learned of it do not depend on how many there are
            many = ("branches.sets", "branches.together") if stage.subset else ("branches",)
            left_out = (*left_out, *many)
        return found._replace(left_out=tuple(left_out), whole=False)

    @classmethod
    def paths(cls, options: MethodOptions) -> tuple[tuple[str, str, int], ...]:
        """Return the pairs of figure 1, before and after a fine-tuning, and 2, two fine-tunings."""
        if not isinstance(options, BtmOptions) or not options.interpolate:
            return ()
        stages = {stage.name: stage for stage in cls.stages(options)}
        one, *others = options.branch_names
        points = options.interpolate
        found = [(stages[one].start[0], one, points)]
        return (*found, *((one, other, points) for other in others[:1]))

    def phases(self, epochs: int) -> Sequence[Phase]:
        """Return the phases of algorithm 1."""
        options = self.options
        known = {phase.name: phase for phase in Pretrained.phases(self, epochs)}
        epochs_last = LONGER if options.has_fc else USUAL
        for stage in self.stages(options):
            if stage.name == "fc":
                known["fc"] = options.fc_classifier.phase("fc")
            elif stage.name in LAST:
                known[stage.name] = options.classifier.phase(stage.name, epochs_last)
            elif stage.subset and stage.trains:
                known[stage.name] = self._fine_tuning(stage.name)
        return [known[stage.name] for stage in self.stages(options) if stage.trains]

    def subsets(self, labels: Tensor, seed: int) -> dict[str, Tensor]:
        """Return the positions in each balanced subset, and in the union of the first two."""
        told, options = super().subsets(labels, seed), self.options.branches
        drawn = balanced_subsets(labels, options.sets, options.images, seed, options.short)
        found = dict(zip(self.options.branch_names, drawn, strict=True))
        if self.options.has_union:
            found["union"] = torch.cat(drawn[:2]).unique()
        return {**told, **found}

    @property
    def classifiers(self) -> dict[str, ClassifierConfig]:
        """Return how the classifier is trained, by stage."""
        return {"fc": self.options.fc_classifier, **dict.fromkeys(LAST, self.options.classifier)}

    @property
    def on_criterion(self) -> bool:
        """Return whether the stage at hand trains on this method's own criterion."""
        return self.stage in LAST

    def trained_by(self, name: str, state: StateDict) -> dict[str, Tensor]:
        """Return what of ``state`` the stage ``name`` and those before it trained."""
        behind_last = name in LAST or (self.options.when == "after" and name != "fc")
        return dict(state) if behind_last else Pretrained.trained_by(self, name, state)

    def loss(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the terms of the stage at hand; all but the last training's are cross-entropy.

        Raises:
            UserError: if mixtures are due and the batch brings none.
        """
        if self.pretraining or self.on_criterion:
            return super().loss(batch, progress)
        if self.stage == "fc" or self.mix is None:
            return {"cross_entropy": self._cross_entropy(batch.images, batch.labels).mean()}
        images, first, second, share = batch.mixtures
        logits = at_least_float32(self.classify(self.net.features(images)))
        losses = [F.cross_entropy(logits, label, reduction="none") for label in (first, second)]
        return {"cross_entropy": two_hot_loss(losses[0], losses[1], share).mean()}

    def step(
        self,
        stage: Stage,
        checkpoints: Mapping[str, StateDict],
        train: Images,
        device: torch.device,
    ) -> dict[str, Any]:
        """Merge the fine-tuned networks; return the share of each, and their scores if asked for.

        Raises:
            UserError: if they are not of one architecture.
        """
        if stage.name != "merge":
            return super().step(stage, checkpoints, train, device)
        names = list(checkpoints)
        states = [self.trained_by(name, state) for name, state in checkpoints.items()]
        weights.check_same(states, names)
        self.start(stage, {})
        self.fold_source()
        options = self.options.merge

        def score(state: StateDict) -> float:
            self.take("merge", state)
            return self._scores(train, device)[options.score]

        scores = [] if options.strategy == "average" else [score(state) for state in states]
        if options.strategy == "greedy":
            merged, kept = weights.greedy_soup(states, score, options.order)
            shares = [1 / len(kept) if k in kept else 0.0 for k in range(len(states))]
        else:
            shares = weights.adaptive_shares(scores) if scores else [1 / len(states)] * len(states)
            merged = weights.average(states, shares)
        self.take("merge", merged)
        if options.batchnorm == "reestimated":
            size = self.options.branches.batch_size
            self.to(device)
            reestimate_batchnorm(self.net, train, device=device, batch_size=size)
        return {
            "shares": dict(zip(names, shares, strict=True)),
            "scores": dict(zip(names, scores, strict=False)),
        }

    def notes(self) -> list[str]:
        """Say how large the subsets are, how many steps they are, and what comes before them."""
        options, counts = self.options.branches, self.card.longtail.class_counts
        drawn = [min(n, options.images) for n in counts]
        each = [options.images] * len(counts) if options.short == "fill" else drawn
        found = [
            *super().notes(),
            f"each of {options.sets} subsets has {sum(each)} images, {min(each)} to {max(each)} a "
            f"class, and {sum(n <= options.images for n in counts)} of {len(counts)} classes give "
            f"all of them the same images",
            self._pace(sum(each)),
        ]
        if self.options.has_fc:
            found.append(
                f"{self.options.pretrain} handles imbalance, so its classifier forgets that first "
                f"(btm.options.fc)"
            )
        return found

    @property
    def mix(self) -> MixConfig | None:
        """Return how the fine-tunings mix images."""
        told = self.options.branches.mix
        return self.options.pretrain_options.mixes if told == "pretrain" else told

    def _fine_tuning(self, name: str) -> Phase:
        options = self.options.branches
        return Phase(
            name,
            options.epochs,
            instance_balanced,
            trains=WHERE[options.where],
            mix=self.mix,
            remainder=True,
            training={
                "batch_size": options.batch_size,
                "learning_rate": options.learning_rate,
                "weight_decay": options.weight_decay,
                "schedule": "cosine",
                "warmup_epochs": 0,
            },
        )

    def _pace(self, images: int) -> str:
        options = self.options.branches
        steps = -(-images // options.batch_size)
        said = f"a fine-tuning is {options.epochs * steps} steps, {steps} an epoch"
        if steps > 1:
            return said
        return (
            f"{said}: a batch holds the whole subset. btm.options.branches.batch_size="
            f"{-(-images // 4)} makes it 4 an epoch, as in the paper's on CIFAR-100-LT"
        )

    def _cross_entropy(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = at_least_float32(self.classify(self.net.features(images)))
        return F.cross_entropy(logits, labels, reduction="none")

    def _scores(self, train: Images, device: torch.device) -> dict[str, float]:
        self.to(device)
        found = predict(self, self.score, train, device=device)
        return report(confusion_matrix(found, train.labels), self.card.longtail)
