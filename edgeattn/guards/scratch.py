"""Scratch directories: ours, gone when they are done with, or in the next run where nobody could see to it.

One has a random name, in TMPDIR or beside what is being made, and holds

    .edgeattn-room    held locked (flock) by the process that made it, for as long as it lives; the kernel lets go of
                      the lock when that process ends, however it ends. It appears locked, by a rename.
    files/            what it is for

Whoever makes one first removes those beside it that a killed process left: named and marked as ours, of this account,
old enough, and with a free lock. Nothing else is touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import re
import shutil
import stat
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from typing_extensions import Self

MARKER = ".edgeattn-room"
FILES = "files"
NAME = re.compile(r"(edgeattn-|\..+\.)[a-z0-9_]{8}", re.DOTALL)  # mkdtemp's eight after a prefix of ours
AGE = 2.0  # seconds; a second guard beside the lock
FOREIGN_AGE = 86_400.0  # of one that another machine made on a shared disk: its lock may not reach us
MAX_MARKER = 8_192  # bytes


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """An empty directory in TMPDIR for the length of a block.

    Raises:
        OSError: if it cannot be made.
    """
    with ScratchDirectory(Path(tempfile.gettempdir()), "edgeattn-") as room:
        yield room.files


@final
class ScratchDirectory:
    """One of them; see the head of this module. Use as a context manager, or call :meth:`close`.

    Args:
        parent: an existing directory.
        prefix: of the name, as ``.NAME.`` beside a file ``NAME``.
        keeps: name beside it of what is put aside into ``files``, which is not made then. If this process dies
            in between, the next run puts it back where nothing has taken its place.
    """

    def __init__(self, parent: Path, prefix: str, keeps: str = "") -> None:
        reap(parent)
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))  # for this account alone
        self.files = self.path / FILES
        lock = None
        try:
            lock = _mark(self.path, keeps)
            if not keeps:
                self.files.mkdir()  # as the umask has it: it may be what is published
        except BaseException:
            _remove(self.path, lock, keeps, os.getpid())
            raise
        self._finish = weakref.finalize(self, _remove, self.path, lock, keeps, os.getpid())  # at exit at the latest

    def close(self) -> None:
        """Put back what was put aside, where nothing took its place, and remove the rest."""
        self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


def put_in_place(made: Path, destination: Path, overwrite: bool = True) -> None:
    """Rename a directory to where it belongs; one that is there is put aside first, and removed when that is done.

    The old one goes back when the scratch directory is closed, if anything came between the two renames (Ctrl-C
    included), and in the next run if we were killed there.

    Args:
        overwrite: without it one that holds anything stays, and the rename fails.

    Raises:
        OSError: if it cannot be renamed.
    """
    if not (overwrite and destination.exists()):
        made.rename(destination)
        return
    with ScratchDirectory(destination.parent, f".{destination.name}.", keeps=destination.name) as aside:
        destination.rename(aside.files)
        made.rename(destination)


def reap(parent: Path) -> None:
    """Remove scratch directories whose makers are gone. What cannot be looked at or removed is left alone."""
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if NAME.fullmatch(entry.name):
                with contextlib.suppress(OSError, ValueError):  # another run is at it, or it is none of ours
                    _reap(Path(entry.path))


def _mark(room: Path, keeps: str) -> int | None:
    """The locked marker; None where the file system has no locks, and nothing can tell that we live: no marker then."""
    new = room / f"{MARKER}.new"
    lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            new.unlink()
            return None
        os.write(lock, json.dumps({"host": platform.node(), "keeps": keeps}).encode())
        new.replace(room / MARKER)
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(lock)
        raise
    return lock


def _remove(room: Path, lock: int | None, keeps: str, maker: int) -> None:
    if os.getpid() != maker:  # a fork of it, on its way out
        return
    try:
        _put_back(room, keeps)
        shutil.rmtree(room, ignore_errors=True)
    finally:
        if lock is not None:
            os.close(lock)


def _reap(room: Path) -> None:
    """Remove one room, if nobody lives in it.

    Raises:
        OSError, ValueError: if it is none of ours, somebody lives in it, or it cannot be removed.
    """
    facts = room.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
        return
    lock = os.open(room / MARKER, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        facts = os.fstat(lock)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid():
            return
        told = json.loads(os.read(lock, MAX_MARKER))
        least = AGE if told["host"] == platform.node() else FOREIGN_AGE
        if time.time() - facts.st_mtime < least:
            return
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _put_back(room, told["keeps"])
        shutil.rmtree(room)
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{room}: not a marker of ours") from error
    finally:
        os.close(lock)


def _put_back(room: Path, keeps: str) -> None:
    """What was put aside goes back to its place, where that is empty.

    Raises:
        OSError: if it cannot: the room must stay, for what is in it.
    """
    if keeps and Path(keeps).name == keeps:
        place = room.parent / keeps
        if (room / FILES).exists() and not os.path.lexists(place):
            (room / FILES).rename(place)
