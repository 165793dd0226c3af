"""Pictures: which kinds there are, and writing one whole or not at all. What is drawn is each room's own."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from edgeattn.bundle import write_atomically, writing
from edgeattn.errors import InputError, OutputError, load_extra, unknown_name

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
    load_extra("matplotlib", "report")


def save_picture(figure: Any, path: Path) -> None:
    """Replace ``path`` by what a matplotlib figure shows.

    Raises:
        OutputError: if it cannot be written.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix.lower()[1:], dpi=DPI)
    with writing(path):
        write_atomically(path, drawn.getvalue())
