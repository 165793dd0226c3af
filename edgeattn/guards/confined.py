"""Files of a directory that somebody else may have packed: regular ones, and inside it, links followed.

What lies in such a directory ends up in bundles, reports and messages; a link in it could bring along any file that the
user can read.
"""

from __future__ import annotations

import contextlib
import re
import stat
from pathlib import Path

from edgeattn.errors import EdgeattnError

CACHED = re.compile(r"(models|datasets|spaces)--.+")  # a repository in the cache of huggingface_hub
SNAPSHOTS = "snapshots"
BLOBS = "blobs"


def regular_file(path: Path, kind: type[EdgeattnError]) -> Path:
    """A file that was named by the user, links followed; reading a pipe or a device would never end.

    Raises:
        EdgeattnError: of the given kind, if it is missing, unreadable or no regular file.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise kind(f"{path}: no such file") from error
    except (OSError, ValueError) as error:  # a name that is too long, or holds NUL
        raise kind(f"{ascii(str(path))[1:-1][:200]}: cannot be read: {_reason(error)}") from error
    if not stat.S_ISREG(mode):
        raise kind(f"{path}: not a regular file")
    return path


def confined_file(path: Path, directory: Path, kind: type[EdgeattnError]) -> Path:
    """As :func:`confined`, and a regular file that is there."""
    found = confined(path, directory, kind)
    regular_file(path, kind)
    return found


def confined(path: Path, directory: Path, kind: type[EdgeattnError]) -> Path:
    """Where a path of a directory leads, which has to be in the directory.

    A snapshot in the cache of huggingface_hub is a directory of links into the blobs beside it; those count as inside.

    Returns:
        it with all links followed.

    Raises:
        EdgeattnError: of the given kind, if that lies outside.
    """
    try:
        found, homes = path.resolve(), homes_of(directory)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # told where it is read
            path.lstat()  # resolving takes names that are too long for what they are
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise kind(f"{ascii(str(path))[1:-1][:200]}: cannot be read: {_reason(error)}") from error
    if not any(found.is_relative_to(home) for home in homes):
        raise kind(
            f"{path} lies outside {directory}, links followed, and is not read; if it is meant to be part of it, copy "
            "the directory with what its links lead to: cp -rL"
        )
    return found


def homes_of(directory: Path) -> tuple[Path, ...]:
    """The directories that count as inside of one."""
    home = directory.resolve()
    for snapshot in (home, *home.parents):
        repository = snapshot.parent.parent
        if snapshot.parent.name == SNAPSHOTS and CACHED.fullmatch(repository.name):
            # Not resolved: blobs that are a link themselves are not the cache's.
            return home, repository / BLOBS
    return (home,)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
