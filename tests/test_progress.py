"""Where the time goes: phases of one name together, the slowest first, and what follows them still hears of all."""

from __future__ import annotations

import pytest

from edgeattn.progress import Phase, Phases, Quiet


class Heard(Quiet):
    def __init__(self) -> None:
        self.words: list[str] = []

    def begin(self, what: str, total: int | None = None) -> None:
        self.words.append(f"{what} {total}")

    def advance(self) -> None:
        self.words.append("+")


def test_phases_are_timed_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 1.0, 4.0, 4.0, 6.0])
    monkeypatch.setattr("edgeattn.progress.time.monotonic", lambda: next(clock))
    heard = Heard()
    phases = Phases(heard)
    phases.begin("load")
    phases.begin("metric", 2)
    phases.advance()
    phases.begin("load")
    assert phases.slowest() == (Phase(phase="load", seconds=3.0), Phase(phase="metric", seconds=3.0))
    assert heard.words == ["load None", "metric 2", "+", "load None"]


def test_only_the_slowest_are_told() -> None:
    phases = Phases(Quiet())
    for number in range(30):
        phases.begin(str(number))
    assert len(phases.slowest()) == 10
