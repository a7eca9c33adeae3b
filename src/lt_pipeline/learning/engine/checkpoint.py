"""State files: written whole or not at all, read without running code from them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lt_pipeline.learning.schema import UserError


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes ``target`` when the block ends, and never in part.

    Raises:
        OSError: if the disk is full or not writable, naming the target; the old file stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(target)
    except (OSError, RuntimeError) as error:
        # torch.save reports a full disk as a RuntimeError
        raise OSError(f"cannot write {target}: {error}; the file before it is kept") from error
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class ResumeFile:
    """Where a phase keeps the state that it resumes from, and which run that state belongs to.

    ``fingerprint`` stands for everything that decides the result: a state with another one is
    of another run and is not used.
    """

    path: Path
    fingerprint: str

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, or None if there is none of this run.

        Raises:
            UserError: if the file cannot be read.
        """
        if not self.path.exists():
            return None
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
            raise UserError(
                f"{self.path} is damaged ({error}); delete it to train from the start"
            ) from error
        return dict(saved["state"]) if saved["fingerprint"] == self.fingerprint else None

    def save(self, state: dict[str, Any]) -> None:
        """Replace the saved state by ``state`` (tensors and plain types)."""
        with atomic_path(self.path) as path:
            torch.save({"fingerprint": self.fingerprint, "state": state}, path)
