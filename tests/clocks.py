"""Clocks of tests: time is what a test says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import pytest

from edgeattn.errors import InputError

Result = TypeVar("Result")


class StepClock:
    """A clock that only steps move, so that two runs do the same."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def tick(self, _: float) -> None:
        self.now += 1.0


def step_clock(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> StepClock:
    """A clock in the place of a module's ``monotonic``."""
    made = StepClock()
    monkeypatch.setattr(module, "monotonic", made)
    return made


def killed_and_resumed(clock: StepClock, file: Path, run: Callable[[Callable[[float], None], Path], Result]) -> Result:
    """The result of a training that is killed after six tenths of its time, and goes on from its checkpoint later.

    Args:
        file: of the checkpoint, alone in its folder.
        run: the training with what it calls after a step, and the checkpoint.
    """

    def killed(share: float) -> None:
        clock.tick(share)
        if share > 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(killed, file)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    clock.now = 1000.0  # the pause does not count
    return run(clock.tick, file)


def refuses_a_damaged_checkpoint(file: Path, run: Callable[[], object]) -> None:
    """A training that finds its checkpoint cut short says so."""
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="damaged"):
        run()
