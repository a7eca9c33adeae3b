"""Logistic regression on the features that a network starts with: the baseline of transfer."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.predict import predict
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.losses.criteria import CrossEntropyConfig
from lt_pipeline.learning.methods.families.base import Method
from lt_pipeline.learning.methods.families.options import MethodOptions
from lt_pipeline.learning.models.network import Network
from lt_pipeline.learning.schema import UserError

# of a class that had no image to learn from: it is never the answer
NEVER = -1e4


class LogisticRegressionOptions(MethodOptions):
    """What it can be told.

    Attributes:
        criterion: fixed: cross-entropy with an L2 penalty, solved to its minimum; of several
            labels an image, the binary one of each.
        class_weight: of an image's loss; ``balanced`` is inverse to its class's number of images.
        inverse_penalty: C, the weight of the loss against half the squared length of the weights.
        standardize: features have mean 0 and deviation 1 over the training set.
        iterations: of L-BFGS, at most.
    """

    criterion: CrossEntropyConfig = CrossEntropyConfig()
    class_weight: Literal["none", "balanced"] = "none"
    inverse_penalty: PositiveFloat = 1.0
    standardize: bool = True
    iterations: PositiveInt = 1000

    @property
    def handles_imbalance(self) -> bool:
        """Return whether rare classes weigh more."""
        return self.class_weight == "balanced"

    @property
    def variant_name(self) -> tuple[str, ...]:
        """Return that it weighs classes, where it does."""
        return () if self.class_weight == "none" else (self.class_weight,)

    def check_head(self, cosine: bool) -> None:
        """Refuse a cosine head.

        Raises:
            UserError: saying what to set.
        """
        if cosine:
            raise UserError("logistic regression is a linear head: set model.head = linear")


class LogisticRegression(Method):
    """The backbone as it starts, and scikit-learn's solution for the head."""

    Options = LogisticRegressionOptions
    options: LogisticRegressionOptions

    @classmethod
    def why_one_label(cls, options: Any) -> str:
        """Return "": several labels are solved for one by one."""
        return ""

    @classmethod
    def stages(cls, options: Any) -> tuple[Stage, ...]:
        """Return the one stage, which has no gradients."""
        return (Stage("fit", step="fit"),)

    def build(self) -> Network:
        """Return the network.

        Raises:
            UserError: if its head does not learn.
        """
        if self.model.head == "text":
            raise UserError("logistic regression is a linear head: set model.head = linear")
        return super().build()

    @torch.no_grad()
    def fit(
        self, states: list[dict[str, Tensor]], train: Images, device: torch.device
    ) -> dict[str, Any]:
        """Solve for the head on the features of ``train``; return how it went."""
        from sklearn.linear_model import LogisticRegression as Solver

        options, head = self.options, self.net.head
        features = predict(self.to(device), self.net.features, train, device=device).double()
        mean, scale = torch.zeros(()), torch.ones(())
        if options.standardize:
            mean, deviation = features.mean(0), features.std(0, correction=0)
            scale = torch.where(deviation > 0, deviation, 1.0)
        solver = Solver(
            C=options.inverse_penalty,
            class_weight=None if options.class_weight == "none" else options.class_weight,
            max_iter=options.iterations,
        )
        scaled, labels = ((features - mean) / scale).numpy(), train.labels.cpu()
        solve = _one_by_one if labels.ndim == 2 else _at_once
        seen, coef, constant, iterations = solve(solver, scaled, labels)
        weight = torch.zeros(self.net.prototypes.shape, dtype=torch.float64)
        bias = torch.full((len(weight),), NEVER, dtype=torch.float64)
        weight[seen] = coef / scale
        bias[seen] = constant - (coef / scale * mean).sum(1)
        head.load_state_dict({"weight": weight, "bias": bias})
        return {"iterations": iterations}


def _at_once(solver: Any, features: Any, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return the classes that there are, their weights and constants, and the steps it took."""
    solver.fit(features, labels.numpy())
    coef, constant = torch.from_numpy(solver.coef_), torch.from_numpy(solver.intercept_)
    if len(coef) == 1:  # of two classes scikit-learn has the second one's only
        coef, constant = torch.cat([-coef, coef]) / 2, torch.cat([-constant, constant]) / 2
    return torch.from_numpy(solver.classes_), coef, constant, int(max(solver.n_iter_))


def _one_by_one(solver: Any, features: Any, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return the same of images with several labels ``[N, C]``: each against its absence.

    A label that all images have is not solved for: it counts as one that none has.
    """
    images = labels.long().sum(0)
    seen = ((images > 0) & (images < len(labels))).nonzero().squeeze(1)
    solved = [solver.fit(features, labels[:, c].numpy()) and _solution(solver) for c in seen]
    weights, constants, iterations = zip(*solved, strict=True)
    return seen, torch.cat(weights), torch.cat(constants), max(iterations)


def _solution(solver: Any) -> tuple[Tensor, Tensor, int]:
    solution = torch.from_numpy(solver.coef_.copy()), torch.from_numpy(solver.intercept_.copy())
    return *solution, int(max(solver.n_iter_))
