"""State files: written whole or not at all, read without running code from them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lt_pipeline.learning.schema import UnwritableError, UserError

PROBE = 2**20  # bytes


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes ``target`` when the block ends, and never in part.

    Raises:
        UnwritableError: if the disk is full or not writable, naming the target; the old file stays.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _of_the_system(temporary):
            yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(target)
    except OSError as error:
        raise UnwritableError(
            f"cannot write {target}: {error.strerror or error}; the file before it, if there was "
            f"one, is kept"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def _of_the_system(path: Path) -> Iterator[None]:
    """Raise the system's error where a library has another for a full disk: by writing on."""
    try:
        yield
    except OSError:
        raise
    except Exception:
        with path.open("ab") as file:
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
        raise


@dataclass(frozen=True)
class ResumeFile:
    """Where a stage keeps the state that it resumes from, and which run that state belongs to.

    ``fingerprint`` stands for everything that decides the result: a state with another one is
    of another run and is not used, nor is one with other ``values`` of the same names: defaults,
    of which a fingerprint may say nothing, can change.
    """

    path: Path
    fingerprint: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, or None if there is none of this run.

        Raises:
            UserError: if the file cannot be read, or is another program's.
        """
        if not self.path.exists():
            return None
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
            # PyTorch's words go on to advise to run whatever code is in the file
            raise UserError(self._damaged) from error
        if not isinstance(saved, dict) or not {"fingerprint", "state"} <= saved.keys():
            raise UserError(self._damaged)
        return dict(saved["state"]) if self._is_of(saved) else None

    def _is_of(self, saved: Mapping[str, Any]) -> bool:
        values = saved.get("values", {}).items()
        alike = all(self.values.get(name, value) == value for name, value in values)
        return alike and saved["fingerprint"] == self.fingerprint

    @property
    def _damaged(self) -> str:
        return (
            f"{self.path} is damaged, or no state that a killed run left here: delete it to train "
            f"from the start"
        )

    def save(self, state: dict[str, Any]) -> None:
        """Replace the saved state by ``state`` (tensors and plain types)."""
        with atomic_path(self.path) as path:
            torch.save(
                {
                    "fingerprint": self.fingerprint,
                    "values": dict(self.values),
                    "state": state,
                },
                path,
            )
