"""What learns in a stage, its optimizer with decay and rates, and the average of weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lt_pipeline.learning.engine.config import OptimizerConfig, TrainingConfig
from lt_pipeline.learning.engine.protocol import Learner, objective_of
from lt_pipeline.learning.engine.stage import Stage


def trained_parameters(method: Learner, stage: Stage) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield what learns in ``stage``, by its name in ``method``."""
    learning = _ids(method, stage.trainable) - _ids(method, stage.frozen)
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


def _ids(method: Learner, scopes: Iterable[str]) -> set[int]:
    return {id(p) for scope in scopes for p in parameters_of(method, scope)}


def set_trainable(method: Learner, stage: Stage) -> None:
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
    for module in _frozen(method, stage):
        module.eval()


def _frozen(method: Learner, stage: Stage) -> Iterator[nn.Module]:
    """Yield the modules that are frozen themselves, or all of whose parameters are."""
    frozen = _ids(method, stage.frozen)
    for name, module in method.named_modules():
        own = {id(p) for p in module.parameters()}
        if name in stage.frozen or (own and own <= frozen):
            yield module


def build_optimizer(
    learning: Mapping[str, Tensor],
    method: Learner,
    stage: Stage,
    config: TrainingConfig,
    device: torch.device,
) -> torch.optim.Optimizer:
    """Return the optimizer of ``learning``: tensors by the names of their parameters in ``method``.

    AdamW (Loshchilov and Hutter, Decoupled weight decay regularization, ICLR 2019) decays neither
    biases, nor what has one dimension, as norms have, nor a transformer's tokens and positions.
    """
    adamw = config.optimizer.name == "adamw"
    rates = _rates(method, stage, config.optimizer)
    undecayed = {id(p) for p in objective_of(method, stage).no_weight_decay()}
    if adamw:
        undecayed |= {id(p) for _, m in method.named_modules() for p in getattr(m, "undecayed", ())}
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, tensor in learning.items():
        own = method.get_parameter(name)
        vector = own.ndim < 2 or name.rpartition(".")[2] == "bias"
        free = id(own) in undecayed or (vector and adamw)
        decay = 0.0 if free else config.weight_decay
        groups.setdefault((rates.get(id(own), 1.0), decay), []).append(tensor)
    sorted_groups = [
        {
            "params": groups[rate, decay],
            "lr": config.learning_rate * rate,
            "weight_decay": decay,
        }
        for rate, decay in sorted(groups, reverse=True)
    ]
    fused = device.type == "cuda"
    if adamw:
        betas = (config.momentum, config.optimizer.beta2)
        return torch.optim.AdamW(sorted_groups, lr=config.learning_rate, betas=betas, fused=fused)
    return torch.optim.SGD(
        sorted_groups,
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=fused,
    )


def begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give what learns a velocity of zero where a fused SGD has none of it.

    It gives the first step that none gives. Torch's fused one takes velocities of all that has a
    gradient, or of nothing: what begins to learn later would stop it.
    """
    for group in optimizer.param_groups:
        if isinstance(optimizer, torch.optim.SGD) and group["fused"] and group["momentum"]:
            for tensor in group["params"]:
                state = optimizer.state[tensor]
                if state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(tensor)


def _rates(method: Learner, stage: Stage, config: OptimizerConfig) -> dict[int, float]:
    """Return the factors of the learning rate that parameters have, by their ids."""
    scopes = [({*parameters_of(method, scope)}, rate) for scope, rate in stage.rates.items()]
    whole, decay = config.backbone_rate, config.layer_decay
    if whole < 1 or decay < 1:
        layers: Any = method.net.layers
        scopes += [({*own}, whole * decay**k) for k, own in enumerate(reversed(layers), 1)]
    factors: dict[int, float] = {}
    for members, rate in scopes:
        for parameter in members:
            factors[id(parameter)] = factors.get(id(parameter), 1.0) * rate
    return factors


class Average:
    """The exponential moving average of ``tensors``, from their values after the first step on.

    a_1 = w_1 and a_t = d a_(t-1) + (1 - d) w_t, with d the ``decay``.
    """

    def __init__(self, tensors: Sequence[Tensor], decay: float) -> None:
        self.tensors, self.means = [tensor.detach() for tensor in tensors], list[Tensor]()
        self.average = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        """Take in what a step has made of the tensors."""
        if self.means:
            self.average(self.means, self.tensors, None)
        else:
            self.means = [tensor.clone() for tensor in self.tensors]

    @torch.no_grad()
    def swap(self) -> None:
        """Change places of the tensors' values and the averages."""
        for tensor, mean in zip(self.tensors, self.means, strict=True):
            kept = tensor.clone()
            tensor.copy_(mean)
            mean.copy_(kept)

    def restore(self, means: Sequence[Tensor]) -> None:
        """Take up the ``means`` of an earlier run."""
        self.means = [
            torch.empty_like(tensor).copy_(mean)
            for tensor, mean in zip(self.tensors, means, strict=True)
        ]
