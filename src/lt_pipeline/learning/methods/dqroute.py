"""DQRoute (Wei, Ouyang, Ye: Divide, Weight, and Route, 2025), equations 1 to 10.

Three experts for all classes, rarer ones and the rarest. Each says by a head of its own how much an
image is like its classes; that routes the image. Classes weigh by how hard they still are and by
how few images they have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.predict import predict
from lt_pipeline.learning.engine.protocol import Progress
from lt_pipeline.learning.evaluation.diagnostics.logit_shift import by_group, by_group_and_all
from lt_pipeline.learning.losses import routing
from lt_pipeline.learning.losses.criteria import weighted
from lt_pipeline.learning.losses.functional import at_least_float32
from lt_pipeline.learning.methods.families.difficulty import ClassDifficulty
from lt_pipeline.learning.methods.families.experts import ExpertMethod, ExpertOptions
from lt_pipeline.learning.models.experts import ExpertHeads
from lt_pipeline.learning.models.network import ModelConfig
from lt_pipeline.learning.schema import UserError

EXPERTS = ("E_G", "E_M", "E_T")
# class weights and what is followed of them are kept at this many points of the run, for pictures
SNAPSHOTS = 51
# routing that adds less than this to the best expert alone, in points, is remarked on
LEAST_GAIN = 0.5


class DqrouteOptions(ExpertOptions):
    """What DQRoute can be told; docs/methods/dqroute.md says what the paper leaves open.

    Attributes:
        experts: three, as the groups of classes are; or one, for all classes and without routing,
            which leaves the class weights.
        medium_below: tau_m, the training images below which a class is E_M's, too.
        tail_below: tau_t, below which it is E_T's, too.
        alpha: share of the difficulty weight against the quantity weight (equation 3); null is no
            class weight at all, the ablation "OOD only" of figure 4.
        gamma: how much an epoch's difficulty adds to a weight's logarithm (equation 2); null is
            ``gamma_total`` over the number of epochs, as it accumulates.
        gamma_total: how much all epochs add: weights come to differ by exp(gamma_total) at most.
        keep: how much of that logarithm an epoch leaves; 1 is equation 2, less has a fixed point.
        balance: lambda of equation 1, the say of accuracy against entropy.
        smoothing: of entropy and accuracy over the epochs; 0 takes each epoch's alone.
        difficulty: where both are measured: on the ``training`` batches as they went by, or on the
            ``validation`` hold-out (needs data.validation). Never on the test set.
        shrinkage: on the hold-out, how many images of its group's mean a class's figures count
            beside its own; 0 counts none.
        quantity: q_c of equation 3.
        weighted_mean: divide a batch's loss by its weights; else by its images.
        warmup: share of the epochs with equal routing and no update of the difficulty weight.
        route: false takes the experts alike and has no OOD heads' loss: "difficulty only".
        group_mode: ``soft`` is equation 10; ``hard`` gives an expert the images of its classes
            only (equation 4); ``masked`` has it choose among them only, too, in training and after.
        detach_routing: the classification loss does not train the OOD heads.
        ood_loss: of table 6.
        ood_weight: lambda_OOD of equation 9.
        uniform_weight: the say of the entropy term within ``ood_loss: entropy``.
        weighted_ood: weight the OOD heads' loss by class, too.
        fuse: ``probabilities`` (equation 6) or ``logits``.
    """

    symbols: ClassVar[Mapping[str, str]] = {
        "lambda": "balance",
        "lambda_OOD": "ood_weight",
        "tau_m": "medium_below",
        "tau_t": "tail_below",
        "q": "quantity",
    }

    experts: Literal[1, 3] = 3
    medium_below: PositiveInt = 100
    tail_below: PositiveInt = 20
    alpha: float | None = Field(default=0.5, ge=0, le=1)
    gamma: NonNegativeFloat | None = None
    gamma_total: NonNegativeFloat = 4.0
    keep: float = Field(default=1.0, ge=0, le=1)
    balance: NonNegativeFloat = 1.0
    smoothing: float = Field(default=0.9, ge=0, lt=1)
    difficulty: Literal["training", "validation"] = "training"
    shrinkage: NonNegativeFloat = 8.0
    quantity: routing.Quantity = "inverse"
    weighted_mean: bool = True
    warmup: float = Field(default=0.025, ge=0, lt=1)
    route: bool = True
    group_mode: Literal["soft", "hard", "masked"] = "soft"
    detach_routing: bool = True
    ood_loss: routing.OodLoss = "entropy"
    ood_weight: NonNegativeFloat = 0.1
    uniform_weight: NonNegativeFloat = 0.1
    weighted_ood: bool = True
    fuse: Literal["probabilities", "logits"] = "probabilities"

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.route and self.detach_routing and not self.ood_weight:
            raise UserError(
                "ood_weight must be > 0 where route is true and detach_routing, too: nothing else "
                "trains the OOD heads; set it, or route: false"
            )
        if self.group_mode == "masked" and self.fuse == "logits":
            raise UserError(
                "fuse must be probabilities with group_mode: masked, whose experts have no logits "
                "for the classes of others"
            )
        if self.experts == 1 and self.route:
            raise UserError("route must be false with experts: 1, as there is nothing to route")
        usual = type(self).model_fields["gamma_total"].default
        if self.gamma is not None and self.gamma_total != usual:
            raise UserError(
                "gamma is of one epoch and gamma_total of all: set one of them, and leave gamma "
                "null or gamma_total as it is"
            )
        return self

    def gamma_of(self, epochs: int) -> float:
        """Return gamma of each of ``epochs`` epochs."""
        return self.gamma_total / epochs if self.gamma is None else self.gamma

    @property
    def wants_validation(self) -> bool:
        """Return whether a hold-out is needed."""
        return self.difficulty == "validation" or super().wants_validation


class DQRoute(ExpertMethod):
    """Experts routed by their own OOD heads, classes weighted by difficulty and quantity."""

    Options = DqrouteOptions
    options: DqrouteOptions

    def __init__(self, options: DqrouteOptions, model: ModelConfig, card: DataCard) -> None:
        super().__init__(options, model, card)
        longtail = card.longtail
        self.names = EXPERTS[: options.experts]
        self.gates = ExpertHeads("linear", options.experts, self.net.width, 1, scale=1.0)
        member, rule = routing.expert_classes(
            longtail.class_counts, options.medium_below, options.tail_below
        )
        self.rule = rule if options.experts > 1 else "one expert has all classes"
        self.register_buffer("member", member[: options.experts])  # [K, C]
        on_training = options.difficulty == "training"
        self.difficulty = ClassDifficulty(
            longtail,
            keep=options.keep,
            balance=options.balance,
            smoothing=options.smoothing,
            shrinkage=0.0 if on_training else options.shrinkage,
            # without a say, difficulty can do no harm
            warns=on_training and bool(options.alpha),
        )
        quantity = routing.quantity_weight(longtail.counts, options.quantity)
        self.register_buffer("quantity", quantity.float())
        self.register_buffer("weight_history", torch.ones(SNAPSHOTS, longtail.classes))
        self.register_buffer("effective_history", torch.full((SNAPSHOTS,), 1.0 * longtail.classes))
        self.register_buffer("correlation_history", torch.zeros(SNAPSHOTS))
        self.member: Tensor
        self.quantity: Tensor
        self.weight_history: Tensor
        self.effective_history: Tensor
        self.correlation_history: Tensor
        self.warming = options.warmup > 0

    def class_weight(self) -> Tensor:
        """Return the final weight of every class, ``[C]``, of mean 1 (equation 3)."""
        if self.options.alpha is None:
            return torch.ones_like(self.quantity)
        return routing.mixed_weight(self.difficulty.log_weight, self.quantity, self.options.alpha)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Note the class weights, and end the warm-up where it ends."""
        super().start_epoch(epoch, epochs)
        done = epoch / epochs
        self.warming = done < self.options.warmup
        moment = round(done * (SNAPSHOTS - 1))
        self.weight_history[moment:] = self.class_weight()
        self.effective_history[moment:] = self.difficulty.effective_classes
        self.correlation_history[moment:] = self.difficulty.size_correlation.value

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return L_cls (equation 10) and lambda_OOD L_OOD (equations 7 to 9)."""
        features = self.net.features(batch.images)
        logits: Tensor = at_least_float32(self.net.head(features))
        gates = at_least_float32(self.gates(features).squeeze(2))
        alphas = self._routing(gates)
        if self.options.difficulty == "training":
            self.difficulty.watch(self._fused(self._known(logits), alphas), batch.labels)
        weight = self.class_weight()[batch.labels]
        member = self.member[:, batch.labels].T
        terms = {
            "classification": self._classification(logits, alphas, member, weight, batch.labels)
        }
        if self.options.route and self.options.ood_weight:
            ood_loss = routing.ood_loss(
                self.options.ood_loss, gates, member, logits, self.options.uniform_weight
            ).sum(1)
            if self.options.weighted_ood:
                ood_loss = weighted(ood_loss, weight, mean=self.options.weighted_mean)
            terms["ood"] = self.options.ood_weight * ood_loss.mean()
        return terms

    def _classification(
        self, logits: Tensor, alphas: Tensor, member: Tensor, weight: Tensor, labels: Tensor
    ) -> Tensor:
        """Return L_cls of ``logits`` ``[B, K, C]``, a scalar.

        ``alphas`` ``[B, K]`` is alpha_k, ``member`` ``[B, K]`` b_k and ``weight`` ``[B]`` w_y.
        """
        mode, mean = self.options.group_mode, self.options.weighted_mean
        if mode == "masked":
            # the own class stays, so that an image of other classes has a finite loss, times 0
            own = torch.zeros_like(logits, dtype=torch.bool).scatter_(
                2, labels[:, None, None].expand(-1, logits.shape[1], 1), True
            )
            logits = logits.masked_fill(~(self.member | own), -torch.inf)
        each = torch.stack([self.criterion(part, labels) for part in logits.unbind(1)], 1)
        if mode == "soft":
            if self.options.detach_routing:
                alphas = alphas.detach()
            return weighted((alphas * each).sum(1), weight, mean=mean).mean()
        inside = member * weight[:, None]
        total = (inside if mean else member).sum(0)
        # an expert may have no image in a batch
        least = torch.finfo(each.dtype).tiny
        return ((each * inside).sum(0) / total.clamp(min=least)).mean()

    def _routing(self, gates: Tensor) -> Tensor:
        """Return alpha_k ``[B, K]``: equal without routing and while it warms up."""
        if not self.options.route or (self.training and self.warming):
            return torch.full_like(gates, 1 / gates.shape[1])
        return routing.routing_weight(gates.sigmoid())

    def _known(self, logits: Tensor) -> Tensor:
        """Return ``logits`` ``[B, K, C]`` with -inf for what a masked expert never chose among."""
        if self.options.group_mode == "masked":
            return logits.masked_fill(~self.member, -torch.inf)
        return logits

    def _fused(self, known: Tensor, alphas: Tensor) -> Tensor:
        """Return scores ``[B, C]``; their softmax is the fused probability."""
        if self.options.fuse == "logits":
            return routing.fused_logits(known, alphas)
        return routing.fused_log_probability(known, alphas)

    def end_epoch(self, epochs: int, validation: Images | None, device: torch.device) -> None:
        """Update difficulty and weights from the epoch that is over (equations 1 and 2)."""
        super().end_epoch(epochs, validation, device)
        if self.options.difficulty == "validation":
            if validation is None:
                raise UserError(
                    "dqroute measures difficulty on a hold-out: set data.validation > 0, or "
                    "dqroute.options.difficulty to training"
                )
            scores = predict(self, self.score, validation, device=device)
            self.difficulty.watch(scores.to(device), validation.labels.to(device))
        self.difficulty.update(None if self.warming else self.options.gamma_of(epochs))

    def epoch_metrics(self) -> dict[str, float]:
        """Return how many classes share the weight, and entropy and weight by group.

        ``size_correlation`` is the rank correlation of difficulty and class size.
        """
        longtail, weight = self.card.longtail, self.class_weight()
        labels = torch.arange(longtail.classes, device=weight.device)
        metrics = {
            "effective_classes": self.difficulty.effective_classes,
            "size_correlation": float(self.difficulty.size_correlation.value),
        }
        for name, values in (("weight", weight), ("entropy", self.difficulty.entropy)):
            by = by_group(values, labels, longtail)
            metrics |= {f"{name}_{group}": value for group, value in by.items()}
        return super().epoch_metrics() | {
            f"difficulty/{name}": value for name, value in metrics.items()
        }

    def training_curves(self) -> dict[str, list[list[float]]]:
        """Return over the run the class weights, ``[S][C]``, and two curves, each ``[1][S]``.

        They are of how many classes share the difficulty weight, and of the rank correlation of
        difficulty and class size, which is 0 until the first epoch is over.
        """
        return {
            "class_weight": self.weight_history.tolist(),
            "effective_classes": [self.effective_history.tolist()],
            "size_correlation": [self.correlation_history.tolist()],
        }

    def notes(self) -> list[str]:
        """Say which classes the experts have, and how much difficulty had to say in the end."""
        alpha, weight = self.options.alpha, self.class_weight()
        if alpha is None:
            return [*super().notes(), self.rule, "classes have no weights (alpha is null)"]
        return [
            *super().notes(),
            self.rule,
            f"difficulty weights leave {self.difficulty.effective_classes:.2f} of {len(weight)} "
            f"effective classes, and have a share alpha of {alpha:g} in class weights that end at "
            f"{float(weight.min()):.2g} to {float(weight.max()):.2g}",
            *self.difficulty.size_correlation.notes(),
        ]

    def remarks(self, diagnosed: Mapping[str, Mapping[str, float]]) -> list[str]:
        """Say so where routing adds hardly anything to the best of its experts alone."""
        if not self.options.route:
            return []
        alone = {name: 100 * diagnosed[f"accuracy_{name}"]["all"] for name in self.names}
        best = max(alone, key=lambda name: alone[name])
        gain = 100 * diagnosed[f"accuracy_routed_{self.options.fuse}"]["all"] - alone[best]
        if gain >= LEAST_GAIN:
            return []
        return [
            f"routing adds {gain:+.2f} points, less than {LEAST_GAIN:g}, to what {best} alone gets "
            f"right of the test images ({alone[best]:.1f} %), the best of the experts on them"
        ]

    def classify(self, features: Tensor) -> Tensor:
        """Return the experts' logits added by alpha_k, ``[B, C]``, of features ``[B, K, F]``."""
        return routing.fused_logits(*self._routed(features))

    def score(self, images: Tensor) -> Tensor:
        """Return the logarithm of equation 6, ``[B, C]``."""
        return self._fused(*self._routed(self.net.features(images)))

    def predictions(self, images: Tensor) -> dict[str, Tensor]:
        """Return the fused ``probabilities`` ``[B, C]`` and alpha_k, ``routing`` ``[B, 3]``."""
        known, alphas = self._routed(self.net.features(images))
        return {"probabilities": self._fused(known, alphas).softmax(1), "routing": alphas}

    def _routed(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``[B, K, C]`` and alpha_k ``[B, K]`` of features ``[B, K, F]``."""
        alphas = self._routing(at_least_float32(self.gates(features).squeeze(2)))
        return self._known(at_least_float32(self.net.head(features))), alphas

    def _parts(self, images: Tensor) -> Tensor:
        """Return the experts' logits for all classes and, last, alpha_k, ``[B, K, C + 1]``."""
        features = self.net.features(images)
        alphas = self._routing(self.gates(features).squeeze(2).float())
        return torch.cat([self.net.head(features).float(), alphas[:, :, None]], 2)

    def diagnose(
        self, train: Images, test: Images, device: torch.device
    ) -> dict[str, dict[str, float]]:
        """Return by group of ``test``: mean routing weights, and what other fusions would get."""
        self.to(device)
        outputs = predict(self, self._parts, test, device=device)
        logits, alphas, longtail = outputs[..., :-1], outputs[..., -1], self.card.longtail
        logits = self._known(logits.to(device)).cpu()
        alike = torch.full_like(alphas, 1 / alphas.shape[1])
        rivals = {
            "accuracy_routed_probabilities": routing.fused_log_probability(logits, alphas),
            "accuracy_routed_logits": routing.fused_logits(logits, alphas),
            "accuracy_equal_probabilities": routing.fused_log_probability(logits, alike),
            **{f"accuracy_{name}": logits[:, k] for k, name in enumerate(self.names)},
        }
        result = {
            f"routing_{name}": by_group(alphas[:, k], test.labels, longtail)
            for k, name in enumerate(self.names)
        }
        for name, scores in rivals.items():
            right = (scores.argmax(1) == test.labels).double()
            result[name] = by_group_and_all(right, test.labels, longtail)
        return result

    def merge_for_inference(self) -> None:
        """Drop the criterion and the statistics of the training."""
        super().merge_for_inference()
        histories = ("weight_history", "effective_history", "correlation_history")
        for name in ("difficulty", "quantity", *histories):
            delattr(self, name)
