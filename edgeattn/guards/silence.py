"""Keeps what the engines' tools print away from the terminal, and hands it over when they fail.

The converters write progress to stdout, where ``--json`` puts one object, and warnings about their own insides to
stderr, partly from C++, where ``logging`` and ``warnings`` do not reach. So the file descriptors themselves are turned
away for the length of a call.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import IO

TAIL_BYTES = 4_000  # of what was said, kept for the error

INFO = b"INFO: "  # how LiteRT begins what it tells of itself

_telling = False
_dropping = False


def tell_all(telling: bool) -> None:
    """Whether what is said inside :func:`silenced` goes to stderr from now on, for who looks for a reason."""
    global _telling
    _telling = telling


def drop_info(dropping: bool) -> None:
    """Whether :func:`without_info` does its work from now on: for a command, whose process is its own."""
    global _dropping
    _dropping = dropping


@contextlib.contextmanager
def without_info() -> Iterator[None]:
    """What is written to stderr inside comes there afterwards, but for the engine's INFO lines, which have no switch.

    Does nothing unless :func:`drop_info` says so: the threads of a user's program share its stderr.
    """
    saved = None
    if _dropping:
        with contextlib.suppress(OSError):  # a daemon may have closed it
            saved = os.dup(2)
    if saved is None:
        yield
        return
    _flush()
    with _sink() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            _flush()
            os.dup2(saved, 2)
            os.close(saved)
            sink.seek(0)
            kept = b"".join(line for line in sink.read().splitlines(keepends=True) if not line.startswith(INFO))
            with contextlib.suppress(OSError):  # nobody reads it any more
                os.write(2, kept)


@contextlib.contextmanager
def silenced(environment: dict[str, str] | None = None) -> Iterator[None]:
    """Nothing inside reaches stdout or stderr; an exception leaves with the last of what was said as a note.

    Where :func:`tell_all` says so, all of it reaches stderr instead.

    Args:
        environment: variables that hold inside and are put back after, for tools that have no other switch.
    """
    if _telling:
        with _stdout_is_stderr():
            yield
        return
    saved_environment = {name: os.environ.get(name) for name in environment or {}}
    disabled = logging.root.manager.disable
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        said = stack.enter_context(_descriptors_turned_away())
        try:
            os.environ.update(environment or {})
            logging.disable(logging.CRITICAL)
            yield
        except Exception as error:
            _attach(error, said())
            raise
        finally:
            logging.disable(disabled)
            for name, value in saved_environment.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _sink() -> IO[bytes]:
    """A file without a name; in memory where the system has such, for a reader behind walls writes no other."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("said"), "w+b")
    import tempfile  # a device has memfd_create, and needs no tempfile

    return tempfile.TemporaryFile()


@contextlib.contextmanager
def _descriptors_turned_away() -> Iterator[_Said]:
    with _sink() as sink:
        saved: dict[int, int] = {}
        _flush()
        for descriptor in (1, 2):
            with contextlib.suppress(OSError):  # a daemon may have closed them
                saved[descriptor] = os.dup(descriptor)
                os.dup2(sink.fileno(), descriptor)
        try:
            # Python's own writes go the same way: sys.stdout need not be descriptor 1.
            with os.fdopen(os.dup(sink.fileno()), "w", errors="replace") as writer:
                turned = _Turned(writer)
                try:
                    with contextlib.redirect_stdout(turned), contextlib.redirect_stderr(turned):
                        yield _Said(sink.fileno())
                finally:
                    turned.flush()
                    turned.target = sys.stderr  # also after an error: whoever keeps it must not meet a closed file
        finally:
            _flush()
            for descriptor, original in saved.items():
                os.dup2(original, descriptor)
                os.close(original)


@contextlib.contextmanager
def _stdout_is_stderr() -> Iterator[None]:
    """What goes to stdout inside goes to stderr: stdout is the result's."""
    _flush()
    saved = None
    with contextlib.suppress(OSError):  # a daemon may have closed them
        saved = os.dup(1)
        os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _flush()
        if saved is not None:
            os.dup2(saved, 1)
            os.close(saved)


class _Turned(io.TextIOBase):
    """A stream that outlives its file: a logging handler made while silenced keeps it, and writes to stderr after."""

    def __init__(self, target: IO[str]) -> None:
        self.target = target

    def write(self, text: str) -> int:
        return self.target.write(text)

    def flush(self) -> None:
        self.target.flush()

    def fileno(self) -> int:
        return self.target.fileno()

    def isatty(self) -> bool:
        return False


class _Said:
    """Reads the end of what was written into a file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __call__(self) -> str:
        _flush()
        size = os.fstat(self.descriptor).st_size
        return os.pread(self.descriptor, TAIL_BYTES, max(0, size - TAIL_BYTES)).decode(errors="replace").strip()


def _attach(error: Exception, said: str) -> None:
    # add_note came with Python 3.11, JetPack 6 has 3.10; __notes__ is where it writes.
    if said:
        error.__notes__ = [*getattr(error, "__notes__", []), said]  # type: ignore[attr-defined,unused-ignore]


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
