"""What learns in a stage, and its optimizer, with the decay and the rates that a method wants."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.protocol import Learner, objective_of
from lt_pipeline.learning.engine.stage import Stage


def trained_parameters(method: Learner, stage: Stage) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield what learns in ``stage``, by its name in ``method``."""
    learning = {id(p) for scope in stage.trainable for p in parameters_of(method, scope)}
    for name, parameter in method.named_parameters():
        if id(parameter) in learning:
            yield name, parameter


def parameters_of(method: Learner, scope: str) -> Iterator[nn.Parameter]:
    """Yield the parameter ``scope``, or those of the submodule; "" is all.

    By identity, not by name: a submodule may be reached in more ways than one.
    """
    if scope in dict(method.named_parameters()):
        yield method.get_parameter(scope)
    else:
        yield from method.get_submodule(scope).parameters()


def choose_what_learns(method: Learner, stage: Stage) -> None:
    """Train what the stage trains; the rest is frozen, and its BatchNorm unless it adapts."""
    method.requires_grad_(False).eval()
    for _, parameter in trained_parameters(method, stage):
        parameter.requires_grad_(True)
    parameters = dict(method.named_parameters())
    for scope in stage.trainable:
        if scope not in parameters:
            method.get_submodule(scope).train()
    for scope in stage.adapts:
        for module in method.get_submodule(scope).modules():
            if isinstance(module, _BatchNorm):
                module.train()


def sgd(
    learning: Iterable[tuple[str, Tensor]],
    method: Learner,
    stage: Stage,
    config: TrainingConfig,
    device: torch.device,
) -> torch.optim.SGD:
    """Return SGD over ``learning``: tensors, each with its parameter's name in ``method``."""
    undecayed = {id(p) for p in objective_of(method, stage).no_weight_decay()}
    groups: dict[tuple[float, float], list[Tensor]] = {}
    scopes = [
        ({id(p) for p in parameters_of(method, scope)}, rate) for scope, rate in stage.rates.items()
    ]
    for name, parameter in learning:
        own = id(method.get_parameter(name))
        rates = [rate for members, rate in scopes if own in members]
        decay = 0.0 if own in undecayed else config.weight_decay
        groups.setdefault((math.prod(rates), decay), []).append(parameter)
    return torch.optim.SGD(
        [
            {
                "params": groups[rate, decay],
                "lr": config.learning_rate * rate,
                "weight_decay": decay,
            }
            for rate, decay in sorted(groups, reverse=True)
        ],
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=device.type == "cuda",
    )
