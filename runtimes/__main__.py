"""``python -m edgeattn.runtimes selftest BUNDLE``: ``edgeattn selftest`` on Python, numpy and one engine alone.

Exit codes are those of the command line: 0 passed, 1 an output differs, 2 bad usage or input, 3 a device is missing,
4 not supported here, 70 a bug of ours with its traceback, 128 + the signal that ended it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import IO, Any, NoReturn

from edgeattn.engines import ENGINES
from edgeattn.errors import EdgeattnError, InputError
from edgeattn.printable import PrintableStream, json_text, one_line
from edgeattn.runtimes.selftest import as_json_text, as_lines, selftest

BUG = 70  # EX_SOFTWARE of sysexits.h: a script must not take our own bug for a failed gate


def main(arguments: Sequence[str]) -> int:
    """Run one command and tell how it ended as an exit code.

    Args:
        arguments: of the command line, without the program.
    """
    with contextlib.redirect_stdout(_printable(sys.stdout)), contextlib.redirect_stderr(_printable(sys.stderr)):
        code = _code_of(arguments)
        for stream in (sys.stdout, sys.stderr):
            _discard_unwritten(stream)
    return code


def _code_of(arguments: Sequence[str]) -> int:
    as_json = "--json" in arguments
    try:
        return _selftest(arguments)
    except EdgeattnError as error:
        _tell(type(error).__name__, str(error), as_json)
        return error.exit_code
    except KeyboardInterrupt:
        _note("interrupted; nothing half-written is left")
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except OSError as error:  # a full disk, a file that vanished: the system's own words
        message = ": ".join(filter(None, (str(error.filename or ""), error.strerror or str(error))))
        _tell("OSError", one_line(message), as_json)
        return EdgeattnError.exit_code
    except Exception:  # noqa: BLE001 - told with its traceback
        _note(f"{traceback.format_exc()}this is a bug in edgeattn: please report it with the lines above")
        return BUG


def _selftest(arguments: Sequence[str]) -> int:
    asked = _parser().parse_args(arguments)
    result = selftest(asked.bundle, asked.backend, asked.threads)
    sys.stdout.write((as_json_text(result) if asked.as_json else as_lines(result)) + "\n")
    sys.stdout.flush()  # a full disk is told here, not when the interpreter ends
    return 0 if result.passed else 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say it as every other error is said: in one line, and as JSON where that was asked for."""
        raise InputError(f"{message}; {self.format_usage()}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m edgeattn.runtimes", description="What a device runs, on numpy and one engine.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    text = "verify a bundle and replay its golden inputs"
    command = commands.add_parser("selftest", help=text, description=f"{text.capitalize()}.", allow_abbrev=False)
    command.add_argument("bundle", metavar="BUNDLE", help="a NAME.TARGET.edge directory or zip")
    command.add_argument("--threads", type=int, default=1, help="compute threads of the engine (default: 1)")
    command.add_argument("--backend", help=f"engine to run on, if not the bundle's own: {', '.join(ENGINES)}")
    command.add_argument("--json", dest="as_json", action="store_true", help="one JSON object on stdout")
    return parser


def _tell(kind: str, message: str, as_json: bool) -> None:
    if as_json:
        with contextlib.suppress(OSError):  # the exit code says more than that stdout is full
            sys.stdout.write(json_text({"schema": 1, "error": {"type": kind, "message": message}}) + "\n")
            sys.stdout.flush()
    _note(f"error: {message}")


def _note(message: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads stderr
        sys.stderr.write(message + "\n")


def _unwind_on_signals() -> None:
    """Whatever ends this process, an unpacked bundle is removed first."""

    def leave(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores one
            signal.signal(number, leave)


def _printable(stream: IO[str] | None) -> Any:
    """The stream, safe for text of others; where it is closed, what is written goes nowhere."""
    return PrintableStream(io.StringIO() if stream is None else stream)


def _discard_unwritten(stream: IO[str]) -> None:
    """What a full or closed stream still holds goes nowhere: Python would try again when it ends, and exit with 120."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    _unwind_on_signals()
    sys.exit(main(sys.argv[1:]))
