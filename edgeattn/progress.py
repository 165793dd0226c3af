"""Where long work says what it is doing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

SLOWEST = 10  # phases that are told


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


@dataclass(frozen=True, kw_only=True)
class Phase:
    """How long phases of one name took, together."""

    phase: str
    seconds: float


class Phases:
    """A :class:`Progress` that takes the time of each phase on the way to another one."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._seconds: dict[str, float] = {}
        self._current: tuple[str, float] | None = None

    def begin(self, what: str, total: int | None = None) -> None:
        """A new phase; the one before it is done."""
        self._end()
        self._current = (what, time.monotonic())
        self._progress.begin(what, total)

    def advance(self) -> None:
        """One unit of the phase is done."""
        self._progress.advance()

    def slowest(self, most: int = SLOWEST) -> tuple[Phase, ...]:
        """The longest phases so far, longest first."""
        self._end()
        found = sorted(self._seconds.items(), key=lambda item: -item[1])[:most]
        return tuple(Phase(phase=phase, seconds=round(seconds, 3)) for phase, seconds in found)

    def _end(self) -> None:
        if self._current is not None:
            what, began = self._current
            self._seconds[what] = self._seconds.get(what, 0.0) + time.monotonic() - began
            self._current = None


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
