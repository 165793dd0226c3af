"""Clocks of tests: time is what a test says."""

from __future__ import annotations


class StepClock:
    """A clock that only steps move, so that two runs do the same."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def tick(self, _: float) -> None:
        self.now += 1.0
