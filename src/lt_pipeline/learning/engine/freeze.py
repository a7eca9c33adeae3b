"""What of a network training leaves as it is, whatever a stage would train."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.optim import trained_parameters
from lt_pipeline.learning.engine.protocol import Learner
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.schema import UserError, unknown


def with_frozen(method: Learner, stage: Stage, config: TrainingConfig) -> Stage:
    """Return ``stage`` without what the network itself and ``config`` keep from learning.

    That is what beside adapters never does, and what ``freeze`` and ``freeze_batchnorm`` say.

    Raises:
        UserError: for a name that the network does not have, for more layers than there are, or if
            nothing of the network is left to learn where something was.
    """
    names = (
        *(_within(method) + name for name in getattr(method.net, "kept", ())),
        *_frozen(method, config),
        *(_batchnorm(method) if config.freeze_batchnorm else ()),
    )
    if not any(True for _ in trained_parameters(method, stage)):
        raise UserError(
            f"nothing learns in stage {stage.name!r}: a head that is text does not; set model.head "
            f"to cosine, and head_init to text"
        )
    if not names:
        return stage
    frozen = replace(stage, frozen=(*stage.frozen, *names))
    own = {id(p) for p in method.net.parameters()}
    before, after = (
        own & {id(p) for _, p in trained_parameters(method, one)} for one in (stage, frozen)
    )
    if before and not after:
        raise UserError(f"training.freeze: nothing is left to learn in stage {stage.name!r}")
    return frozen


def _frozen(method: Learner, config: TrainingConfig) -> Iterator[str]:
    """Yield the names in ``method`` of what ``config.freeze`` means."""
    if isinstance(config.freeze, int):
        layers: Any = method.net.layers if config.freeze else ()
        if config.freeze and config.on_features:
            raise UserError("training.freeze: must be 0: features=cached freezes the backbone")
        if config.freeze > len(layers):
            raise UserError(
                f"training.freeze: must be at most the backbone's {len(layers)} layers, but is "
                f"{config.freeze}"
            )
        names = {id(p): name for name, p in method.named_parameters()}
        yield from (names[id(p)] for layer in layers[: config.freeze] for p in layer)
        return
    within, net = _within(method), method.net
    modules = [name for name, _ in net.named_modules() if name]
    known = [*modules, *(name for name, _ in net.named_parameters())]
    for name in config.freeze:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            upper = [module for module in modules if module.count(".") < 2]
            message = unknown("part of the network", name, upper, next(iter(near), None))
            raise UserError(f"training.freeze: {message}")
        yield within + name


def _batchnorm(method: Learner) -> Iterator[str]:
    """Yield the names in ``method`` of the backbone's BatchNorm."""
    within, backbone = _within(method), f"{_within(method)}backbone."
    for name, module in method.net.named_modules():
        if isinstance(module, _BatchNorm) and f"{within}{name}".startswith(backbone):
            yield within + name


def _within(method: Learner) -> str:
    """Return what names in ``method.net`` begin with in ``method``."""
    return next(f"{name}." for name, module in method.named_modules() if module is method.net)
