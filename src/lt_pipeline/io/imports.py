"""Imports that take a second: what they make lives as long as the process, and is no garbage."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_IMPORTED = set[str]()
# what PyTorch imports for its first optimizer; Triton in it says what is left of it at the end
TRAINED = "torch._dynamo"


@contextmanager
def for_good(what: str) -> Iterator[None]:
    """Let the garbage collector pass by what is imported inside, from now on.

    To look through it again and again is a quarter of the time to the first node. All else that
    lives at the end is passed by, too: so it is once a process that ``what`` is imported, and not
    where something was trained, which is to go again.
    """
    if what in _IMPORTED or TRAINED in sys.modules or not gc.isenabled():
        yield
        return
    _IMPORTED.add(what)
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
