"""What an engine says when a file or a run fails, as one error of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgeattn.errors import BundleError, EdgeattnError, UnsupportedError
from edgeattn.spec import GraphSpec

if TYPE_CHECKING:
    from pathlib import Path


def first_line(error: BaseException) -> str:
    """The part of a vendor's message that fits one line: C++ stack traces and file positions come after it."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith(("Exception from", "Check '"))), repr(error))


@contextlib.contextmanager
def loading(engine: str, path: Path) -> Iterator[None]:
    """Turn whatever an engine raises over a model file into one :class:`BundleError`."""
    if not path.is_file():
        raise BundleError(f"{path}: no such model file")
    try:
        yield
    except (EdgeattnError, ImportError, MemoryError):
        raise
    except Exception as error:
        reason = first_line(error)
        raise BundleError(
            f"{path}: {engine} cannot load it, it is damaged or not its format ({reason:.300})"
        ) from error


def run_failed(engine: str, graph: GraphSpec, error: BaseException) -> UnsupportedError:
    """The error of a graph that loaded and then would not run."""
    return UnsupportedError(f"{engine} failed while running graph {graph.name!r}: {first_line(error):.300}")
