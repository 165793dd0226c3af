"""edgeattn: attention models on edge devices, verified.

The Python interface is that of the command line, and :func:`load` is what a device needs:

    >>> import edgeattn
    >>> report = edgeattn.convert("streaming-conformer", targets="cpu")  # doctest: +SKIP
    >>> session = edgeattn.load(report.results[0].bundle)  # doctest: +SKIP

Importing this loads nothing: each function brings what it needs when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeattn.pipeline.api import check, convert, inspect, profile
    from edgeattn.runtimes import load

__version__ = "0.1.0"
__all__ = ["__version__", "check", "convert", "inspect", "load", "profile"]

_WHERE = dict.fromkeys(("check", "convert", "inspect", "profile"), "edgeattn.pipeline.api")
_WHERE["load"] = "edgeattn.runtimes"


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_WHERE]
