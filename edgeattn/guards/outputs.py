"""What we write: whole or absent, and never over what nobody asked to replace."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from edgeattn.errors import EdgeattnError, OutputError
from edgeattn.guards.scratch import ScratchDirectory, put_in_place


def refuse_existing(path: Path, overwrite: bool, kind: str = "", ours: bool = True) -> None:
    """Leave alone what nobody asked to replace, and what is of another kind than what would take its place.

    Args:
        overwrite: replace it, as ``--force`` asks.
        kind: of what would be replaced, in words.
        ours: whether what is there, if anything is, is of that kind.

    Raises:
        OutputError: saying what to do.
    """
    if not path.exists():
        return
    if not overwrite:
        raise OutputError(f"{path} exists; remove it, choose another --out, or pass --force")
    if not ours:
        raise OutputError(f"{path} exists and is not {kind}; it is left alone, choose another --out")


@contextlib.contextmanager
def whole_directory(path: Path, overwrite: bool) -> Iterator[Path]:
    """A sibling to write into, renamed to ``path`` when the block ends, or removed if there is an error.

    Raises:
        OutputError: if it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with ScratchDirectory(path.parent, f".{path.name}.") as room:
            yield room.files
            put_in_place(room.files, path, overwrite)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old bytes or the new ones, never half of them."""
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A temporary sibling to write to, moved to ``path`` at the end, or removed if there is an error."""
    with ScratchDirectory(path.parent, f".{path.name}.") as room:
        temporary = room.files / "new"
        with temporary.open("xb") as file:
            yield file
        temporary.replace(path)


@contextlib.contextmanager
def writing(destination: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into one clear :class:`OutputError`."""
    try:
        yield
    except EdgeattnError:
        raise
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else (error.strerror or str(error))
        raise OutputError(f"{destination}: cannot be written: {reason}") from error


def user_cache() -> Path:
    """Where edgeattn keeps what it can make again: ``$XDG_CACHE_HOME/edgeattn``, by default ``~/.cache/edgeattn``.

    A relative ``$XDG_CACHE_HOME`` counts as none (XDG Base Directory Specification).
    """
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (root if root.is_absolute() else Path.home() / ".cache") / "edgeattn"
