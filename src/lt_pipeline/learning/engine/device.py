"""Where and in what precision the arithmetic runs."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.schema import UserError


def choose_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        UserError: if the name means nothing to torch or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # meta would have the tensor, but no value in it
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); "
            f"valid: auto, cpu, cuda, cuda:0 and so on where there is a GPU"
        ) from error
    return device


def autocast(
    config: TrainingConfig, device: torch.device, *, exact: bool = False
) -> torch.autocast:
    """Return the autocast context of ``config.precision`` on ``device``; ``exact`` has none."""
    wanted = config.precision == "bfloat16"
    wanted = wanted or (config.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and not exact)


@contextmanager
def without_tf32(wanted: bool = True) -> Iterator[None]:
    """Compute float32 with all of its digits inside the block, forward and backward.

    TF32, which convolutions on a GPU use by default, has 10 bits where float32 has 23. The switch
    is the process's, and is as before afterwards. Not ``wanted``, nothing changes.
    """
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed and not wanted
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def memory_format(config: TrainingConfig, device: torch.device) -> torch.memory_format:
    """Return the memory format of image tensors."""
    wanted = config.channels_last
    wanted = device.type == "cuda" if wanted == "auto" else wanted
    return torch.channels_last if wanted else torch.contiguous_format


def peak_memory_mib(device: torch.device) -> float:
    """Return the most memory used so far: the GPU's allocations, or this process's, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**20 if sys.platform == "darwin" else 2**10)
