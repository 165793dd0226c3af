"""Where long work says what it is doing."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Where convert tells what it is doing."""

    def begin(self, what: str, total: int | None = None) -> None:
        """A new phase of ``total`` units, or of unknown length."""

    def advance(self) -> None:
        """One unit of the phase is done."""


class Quiet:
    """A :class:`Progress` for one evaluation among many: something else is what is counted."""

    def begin(self, what: str, total: int | None = None) -> None:
        """Says nothing."""

    def advance(self) -> None:
        """Counts nothing."""
