"""Engines and timings that TensorRT made on this device, kept for the next start where nobody else can reach them.

An engine is a program: whoever can exchange one runs code in our process. So a file of the cache is read only if it
and every directory above it can be changed by this account (and root) alone, and its content is what was written.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import stat
from pathlib import Path

LOG = logging.getLogger(__name__)

MAGIC = b"edgeattn cache 1\n"
HEAD_BYTES = len(MAGIC) + 65  # before what was stored: MAGIC, a sha256, a line end
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def engine_cache() -> Path:
    """Where engines and timings are kept: ``$EDGEATTN_CACHE/engines``, else ``engines`` in the user's cache."""
    from edgeattn.guards.outputs import user_cache

    root = os.environ.get("EDGEATTN_CACHE")
    return (Path(root) if root else user_cache()).absolute() / "engines"


def unsafe(path: Path) -> str | None:
    """Why others could exchange what lies in a directory; None if they cannot.

    Every directory above it counts, along the path as written and as it resolves: each is this account's or root's and
    nobody else may write there, or it is one such as /tmp, where all may rename and remove what is their own alone.
    """
    trusted = (0, os.geteuid())
    for place in dict.fromkeys((path, *path.parents, *(real := path.resolve()).parents, real)):
        facts = place.lstat()
        if facts.st_uid not in trusted:
            return f"{place} belongs to another account"
        if stat.S_ISLNK(facts.st_mode):
            continue  # who owns it and where it leads is told; its mode means nothing
        if not stat.S_ISDIR(facts.st_mode):
            return f"{place} is not a directory"
        above = place not in (path, real)
        if facts.st_mode & OTHERS_WRITE and not (above and (facts.st_mode & stat.S_ISVTX or _ours_alone(facts))):
            return f"others may write to {place}"
    if path.lstat().st_uid != os.geteuid() or path.is_symlink():
        return f"{path} is not a directory of this account"
    return None


def _ours_alone(facts: os.stat_result) -> bool:
    """Whether a place that its group may write to is open to us alone: Ubuntu gives each account a group of its own."""
    import grp
    import pwd

    if facts.st_mode & stat.S_IWOTH:
        return False
    try:
        name, members = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(facts.st_gid).gr_mem
    except KeyError:
        return False
    return set(members) <= {name} and {p.pw_name for p in pwd.getpwall() if p.pw_gid == facts.st_gid} <= {name}


def fetch(name: str) -> bytes | None:
    """What was stored under a name; None if there is nothing, or nothing that can be trusted (the log says why)."""
    path = engine_cache() / name
    if not path.parent.is_dir():
        return None
    try:
        reason = unsafe(path.parent)
        if reason is None:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(handle, "rb") as file:
                facts = os.fstat(handle)
                if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & OTHERS_WRITE:
                    reason = "others may write to it, or it is not this account's file"
                else:
                    return _checked(path, file.read())
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = error.strerror or str(error)
    LOG.warning("%s: not used, %s; it is built again. Only its owner may write there: chmod 700", path, reason)
    return None


def store(name: str, data: bytes) -> None:
    """Keep bytes for :func:`fetch`, whole or not at all, readable by this account alone; a warning where that fails.

    Of two that store at once the last stays.
    """
    path = engine_cache() / name
    try:
        _make_private(path.parent)
        reason = unsafe(path.parent)
        if reason is None:
            _write(path, _head(name, data) + data)
    except OSError as error:  # a read-only or full device still runs; it builds again next time
        reason = f"cannot be written: {error.strerror or error}"
    if reason is not None:
        LOG.warning("%s: not kept, %s; it will be made again next time", path, reason)


def _make_private(folder: Path) -> None:
    """Make a directory and those above it that are missing, each for this account alone."""
    for place in (*reversed(folder.parents), folder):
        if not place.is_dir():
            place.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and stat.S_IMODE(facts.st_mode) & 0o077:
        folder.chmod(0o700)  # of an older edgeattn; what lies there without a head of ours is not used


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _head(name: str, data: bytes) -> bytes:
    """Name and hash of a file, so that one that was cut off, damaged or renamed is not taken for it."""
    return MAGIC + hashlib.sha256(name.encode() + b"\n" + data).hexdigest().encode() + b"\n"


def _checked(path: Path, content: bytes) -> bytes | None:
    data = content[HEAD_BYTES:]
    if content[:HEAD_BYTES] == _head(path.name, data):
        return data
    LOG.warning("%s: not used, it is damaged or was written by another version; it is built again", path)
    return None
