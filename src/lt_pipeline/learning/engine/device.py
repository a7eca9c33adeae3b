"""Where and in what precision the arithmetic runs."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from threading import Lock
from typing import Any

import torch

from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.schema import UserError

# Pixels of a batch, on a CPU, that are worth a thread: with fewer, threads wait for one another.
PIXELS_A_THREAD = 8192
# how many threads compute without TF32 now, and the switches as they were before
_EXACT: list[list[bool]] = []
_SWITCHING = Lock()


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
    is the process's, and is as before once no thread wants it. Not ``wanted``, nothing changes.
    """
    if not wanted:
        yield
        return
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    with _SWITCHING:
        _EXACT.append(_EXACT[0] if _EXACT else [backend.allow_tf32 for backend in backends])
        for backend in backends:
            backend.allow_tf32 = False
    try:
        yield
    finally:
        with _SWITCHING:
            before = _EXACT.pop()
            for backend, allowed in zip(backends, before, strict=True):
                backend.allow_tf32 = allowed and not _EXACT


def memory_format(config: TrainingConfig, device: torch.device) -> torch.memory_format:
    """Return the memory format of image tensors, and of the weights that they meet."""
    wanted = config.channels_last
    if wanted == "auto":
        # PyTorch's own convolutions on a CPU, without oneDNN, would copy every image back
        one_dnn = device.type == "cpu" and torch.backends.mkldnn.is_available()
        wanted = (device.type == "cuda" or one_dnn) and not config.on_features
    return torch.channels_last if wanted else torch.contiguous_format


@contextmanager
def enough_threads(device: torch.device, shape: Sequence[int]) -> Iterator[None]:
    """Compute on a CPU inside with as many threads as a batch is worth, and no more than before.

    It is of ``shape`` [images, channels, height, width], or [rows, features]. How many follows
    from this alone, not from what else the machine does: equal runs add up in equal order. The
    switch is the process's, and is as before afterwards.
    """
    before = torch.get_num_threads()
    wanted = max(shape[0] * prod(shape[2:]) // PIXELS_A_THREAD, 1)
    if device.type != "cpu" or wanted >= before:
        yield
        return
    try:
        torch.set_num_threads(wanted)
        yield
    finally:
        torch.set_num_threads(before)


def peak_memory_mib(device: torch.device) -> float:
    """Return the most memory used so far: the GPU's allocations, or this process's, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**20 if sys.platform == "darwin" else 2**10)
