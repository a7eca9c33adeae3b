"""What git says of the project, and the hashes by which files are known."""

from __future__ import annotations

import subprocess
from hashlib import md5, sha1, sha256
from pathlib import Path

BLOCK_BYTES = 1 << 20


def git(project: Path, *arguments: str) -> str:
    """Return what a git command says in ``project``, nothing if it fails or there is no git."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=project, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def hashes(path: Path) -> dict[str, str]:
    """Return the SHA-256 of a file and the MD5 by which DVC knows it, in hexadecimal."""
    digests = {"sha256": sha256(), "md5": md5(usedforsecurity=False)}
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            for digest in digests.values():
                digest.update(block)
    return {name: digest.hexdigest() for name, digest in digests.items()}


def hashed(path: Path) -> str:
    """Return the SHA-256 of a file, or of all that is in a folder but for what Python leaves."""
    files = sorted(p for p in (path, *path.rglob("*")) if p.is_file())
    kept = [p for p in files if "__pycache__" not in p.parts]
    lines = (f"{p.relative_to(path).as_posix()} {hashes(p)['sha256']}\n" for p in kept)
    return sha256("".join(lines).encode()).hexdigest()


def blob_id(path: Path) -> str:
    """Return by which name git knows a file with this content, empty if there is no file.

    ``git show <name>`` prints the file again, from any commit that has it.
    """
    if not path.is_file():
        return ""
    content = path.read_bytes()
    return sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
