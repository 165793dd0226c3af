"""The user's own code, run so that its mistakes are told as its own."""

from __future__ import annotations

import contextlib
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from edgeattn.errors import EdgeattnError, ModelError


@contextlib.contextmanager
def import_path(directory: Path) -> Iterator[None]:
    """Let the user's code import what lies beside it, as ``python file.py`` would."""
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(directory))


@contextlib.contextmanager
def users_code(reference: str, kind: type[EdgeattnError] = ModelError) -> Iterator[None]:
    """Name the user's line when the user's code raises; what it prints goes to stderr, stdout is for results."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except EdgeattnError:
        raise
    except (Exception, SystemExit) as error:  # a script that parses arguments when imported exits
        said = " ".join(str(error).split())  # one line, as every error
        raise kind(f"{reference} raised {type(error).__name__}: {said}{_users_line(error)}") from error


def _users_line(error: BaseException) -> str:
    """The deepest line that is neither edgeattn's nor an installed package's; without one the deepest of all."""
    foreign = [
        Path(__file__).parents[1],
        *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")),
    ]
    lines = []
    trace = error.__traceback__
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        users = path.is_absolute() and not any(path.is_relative_to(folder) for folder in foreign)
        lines.append((users, f" ({path.name}:{trace.tb_lineno})"))
        trace = trace.tb_next
    return next((line for users, line in reversed(lines) if users), lines[-1][1])
