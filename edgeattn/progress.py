"""Where long work says what it is doing."""

from __future__ import annotations

from collections.abc import Callable
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


def shares(progress: Progress, total: float) -> Callable[[float], None]:
    """What takes the share that is done, 0 to 1, and advances a phase of ``total`` units (rounded down) by as much.

    >>> class Count(Quiet):
    ...     units = 0
    ...
    ...     def advance(self) -> None:
    ...         self.units += 1
    >>> count = Count()
    >>> on_step = shares(count, 10)
    >>> on_step(0.29), on_step(0.2), count.units
    (None, None, 2)
    """
    done = 0

    def on_step(share: float) -> None:
        nonlocal done
        while done < int(share * total):
            done += 1
            progress.advance()

    return on_step
