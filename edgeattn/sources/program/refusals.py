"""What all rules share: the longest name, how a field is refused, and how what it holds is told."""

from __future__ import annotations

from typing import Any

MAX_NAME = 1_000  # characters


def said(error: BaseException) -> str:
    """An exception in one line: its kind, and at most 200 characters of its message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def described(text: Any) -> str:
    """What a file names, as at most 80 ASCII characters."""
    return ascii(str(text))[1:-1][:80]


class Refused(Exception):  # noqa: N818 - becomes a ModelError that names the file
    """What a field may not hold."""
