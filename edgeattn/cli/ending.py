"""How the command ends where its surroundings end it: by a signal, or by an output that nobody takes.

SIGINT, SIGTERM, SIGHUP    raised as KeyboardInterrupt, so that everything cleans up as for Ctrl-C; exit 128 + the
number. One that was ignored when we were started (nohup) stays ignored.
stdout full                one line on stderr, exit 2; what was written to disk stays. Not 1, which tells of a gate.
nobody reads stdout        exit 141 without a word: 128 + SIGPIPE, as shells count.
stderr full or closed      the work goes on, and its exit code says how it went.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any, TextIO, cast, final

import typer

from edgeattn.errors import EdgeattnError, InputError
from edgeattn.printable import one_line

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ONCE_SECONDS = 1.0  # the same end told twice: timeout(1) signals the process and then its group
UNWRITTEN = EdgeattnError.exit_code
UNREAD = 128 + signal.SIGPIPE
MAX_ARGUMENT = 2_048  # characters

_heard: list[int] = []


def ended_by() -> int | None:
    """The number of the first signal that told this command to end."""
    return _heard[0] if _heard else None


def end_words(number: int) -> str:
    """What is told of it."""
    word = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    return f"{word}; nothing half-written is left"


def output_failed() -> int | None:
    """The exit code that says that stdout took not all that it was given; None if it did."""
    stdout = getattr(sys.stdout, "raw", sys.stdout)  # inside of what makes it printable
    return _unwritten(getattr(stdout, "failed", None))


def _unwritten(error: OSError | None) -> int | None:
    if error is None:
        return None
    return UNREAD if error.errno == errno.EPIPE else UNWRITTEN


def run(work: Callable[[], None]) -> int:
    """Do it, and tell how it ended as an exit code.

    Args:
        work: parses the command line, prints, and leaves by SystemExit.
    """
    _open_closed()
    before = sys.stdout, sys.stderr
    stdout, stderr = _Watched(sys.stdout, forgiving=False), _Watched(sys.stderr, forgiving=True)
    sys.stdout, sys.stderr = cast(TextIO, stdout), cast(TextIO, stderr)
    try:
        with _signals_raise():
            code = _code_of(work)
            number = ended_by()
            if number is not None and code != 128 + number:  # a library took the exception for an error of its own
                code = 128 + number
                stderr.write(f"{end_words(number)}\n")
        with contextlib.suppress(OSError, ValueError):
            stdout.flush()
        if stdout.failed is not None:
            if stdout.failed.errno != errno.EPIPE:
                stderr.write(f"error: stdout: {stdout.failed.strerror or stdout.failed}; the result was not told\n")
            _point_at_null(before[0])
        stderr.flush()
        if stderr.failed is not None:
            _point_at_null(before[1])
        return code or _unwritten(stdout.failed) or 0
    finally:
        sys.stdout, sys.stderr = before


def refuse_arguments(words: Iterable[str]) -> None:
    """Refuse what cannot be a name of a file or of anything else.

    Raises:
        InputError: saying which and why.
    """
    for word in words:
        shown = ascii(word[:40]) + "..." * (len(word) > 40)
        if "\0" in word:
            raise InputError(f"the argument {shown} holds a NUL character, which no name of a file can have")
        if len(word) > MAX_ARGUMENT:
            raise InputError(f"the argument {shown} has {len(word)} characters, more than {MAX_ARGUMENT}")
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the argument {shown} is not UTF-8, as all names in bundles and reports are: rename the file"
            ) from error


def words_of(settings: Any) -> Iterator[str]:
    """Every text in nested settings."""
    if isinstance(settings, str):
        yield settings
    elif isinstance(settings, Mapping):
        for value in settings.values():
            yield from words_of(value)
    elif isinstance(settings, (list, tuple)):
        for value in settings:
            yield from words_of(value)


def _code_of(work: Callable[[], None]) -> int:
    try:
        work()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            sys.stderr.write(f"{ended.code}\n")
            return 1
        return ended.code or 0
    except typer.Exit as ended:
        return ended.exit_code
    except KeyboardInterrupt:
        return 1  # the signal's own code takes its place
    except OSError as error:  # while help or the command's last words were printed
        unwritten = output_failed()
        if unwritten is not None:
            return unwritten
        sys.stderr.write(f"error: {one_line(str(error))}\n")
        return EdgeattnError.exit_code
    return 0


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    _heard.clear()
    last = -ONCE_SECONDS

    def end(number: int, _: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        again, last = bool(_heard) and now - last < ONCE_SECONDS, now
        _heard.append(number)
        if not again:
            raise KeyboardInterrupt

    replaced: dict[signal.Signals, Any] = {}
    try:
        for number in ENDING:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                with contextlib.suppress(ValueError):  # not in the main thread
                    replaced[number] = signal.signal(number, end)
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


@final
class _Watched:
    """A stream that remembers its first failure; where it is forgiving, writing goes on as if nothing were."""

    def __init__(self, target: TextIO, forgiving: bool) -> None:
        self.target = target
        self.failed: OSError | None = None
        self._forgiving = forgiving

    def write(self, text: str) -> int:
        with self._watching():
            self.target.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        with self._watching():
            self.target.writelines(lines)

    def flush(self) -> None:
        with self._watching():
            self.target.flush()

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failed = self.failed or error
            if not self._forgiving:
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)


def _open_closed() -> None:
    """Standard descriptors that are closed are taken, lest the next file that is opened becomes one of them.

    Writing to stdout fails then, as it does to a closed one; stderr was closed because nobody wants to read it.
    """
    for number, name, mode in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            taken = os.open(os.devnull, mode)
            if taken != number:
                os.dup2(taken, number)
                os.close(taken)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False, encoding="utf-8"))  # noqa: SIM115


def _point_at_null(stream: TextIO) -> None:
    """What is left in a broken stream goes nowhere when Python closes it, instead of failing once more."""
    with contextlib.suppress(OSError, ValueError):
        number = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)
