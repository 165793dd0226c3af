"""Pictures: which kinds there are, and writing one whole or not at all. What is drawn is each room's own."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Any

from edgeattn.errors import InputError, OutputError, load_extra, unknown_name
from edgeattn.guards.outputs import user_cache, write_atomically, writing
from edgeattn.printable import printable

SUFFIXES = (".png", ".svg")
DPI = 150


def check_picture(path: Path) -> None:
    """Refuse a picture that could not be drawn, before minutes of measuring.

    Raises:
        InputError: for another suffix than :data:`SUFFIXES`.
        MissingExtraError: without matplotlib.
        OutputError: if its directory is missing.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: {unknown_name('kind of picture', path.suffix, SUFFIXES)}")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: cannot be written: there is no directory {path.parent}")
    _load_matplotlib()


def _load_matplotlib() -> None:
    """Matplotlib keeps a list of fonts and a directory for settings: in our cache, unless the user has said where.

    It asks where once and remembers it. A picture of ours then looks the same whatever the user's matplotlibrc says.
    """
    if "matplotlib" in sys.modules or "MPLCONFIGDIR" in os.environ:
        load_extra("matplotlib", "report")
        return
    place = user_cache() / "matplotlib"
    with contextlib.suppress(OSError):  # it takes a temporary directory then
        place.mkdir(parents=True, exist_ok=True)
    os.environ["MPLCONFIGDIR"] = str(place)
    try:
        loaded = load_extra("matplotlib", "report")
        loaded.get_configdir()
        loaded.get_cachedir()
    finally:
        del os.environ["MPLCONFIGDIR"]


def save_picture(figure: Any, path: Path) -> None:
    """Replace ``path`` by what a matplotlib figure shows.

    Raises:
        OutputError: if it cannot be written.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix.lower()[1:], dpi=DPI)
    with writing(path):
        write_atomically(path, drawn.getvalue())


def drawable(text: str) -> str:
    r"""A name as a picture shows it: printable, and no formula, which matplotlib would read between two ``$``.

    >>> print(drawable("a$b\x1b"))
    a\$b\x1b
    """
    return printable(text).replace("$", r"\$")
