"""Which layers to give back to float so that the metric is kept: few trials, each really measured, none lost."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeattn.errors import InputError
from edgeattn.guards.outputs import write_atomically
from edgeattn.spec import from_json, to_json

MAX_STATE_BYTES = 1 << 20


@dataclass(frozen=True)
class Trial:
    """What a plan with the first ``returned`` layers of the order in float gave.

    Attributes:
        gain: speed over the best float, both timed in one run; None where this host cannot tell.
        drop, upper: points of the metric lost, and at most with 95 % confidence; None without a metric.
        passed: whether it keeps the metric and pays.
        why: why it did not pass; empty if it did.
    """

    returned: int
    gain: float | None
    drop: float | None
    upper: float | None
    passed: bool
    why: str


@dataclass(frozen=True)
class Found:
    """How a search ended.

    Attributes:
        best: the fastest trial that passed; None if none did, and the float that was there before stays.
        ended: why no more was tried.
    """

    best: Trial | None
    trials: tuple[Trial, ...]
    ended: str


@dataclass(frozen=True)
class _Saved:
    key: str
    trials: tuple[Trial, ...] = ()


@dataclass
class SearchLog:
    """The trials of one search on disk, so that a killed one goes on where it was.

    Attributes:
        path: a small JSON file; None keeps nothing.
        key: of everything that a trial depends on; trials under another key are of another search.
    """

    path: Path | None
    key: str
    trials: dict[int, Trial] = field(default_factory=dict)

    def read(self) -> None:
        """Take the trials of an earlier run, if they are of the same search; a damaged file is as good as none."""
        if self.path is None:
            return
        with contextlib.suppress(OSError, ValueError, InputError):
            if self.path.stat().st_size <= MAX_STATE_BYTES:
                saved = from_json(_Saved, json.loads(self.path.read_text(encoding="utf-8")), str(self.path))
                if saved.key == self.key:
                    self.trials = {trial.returned: trial for trial in saved.trials}

    def add(self, trial: Trial) -> None:
        """Keep a trial, whole or not at all."""
        self.trials[trial.returned] = trial
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps(to_json(_Saved(self.key, tuple(self.trials.values())))).encode())

    def remove(self) -> None:
        """The search has ended and its result is in use."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def by_gain(noise: Mapping[str, float], work: Mapping[str, float]) -> tuple[str, ...]:
    """Layers in the order in which they go back to float: most noise taken away per unit of time first.

    Args:
        noise: path -> what quantizing it alone costs, any unit.
        work: path -> operations of one call, to which the time that int8 saves is proportional.
    """
    return tuple(sorted(noise, key=lambda path: -noise[path] / max(work.get(path, 0.0), 1.0)))


def search(
    order: Sequence[str],
    evaluate: Callable[[tuple[str, ...]], Trial],
    search_log: SearchLog,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """The fewest layers in float, first of ``order`` first, with which a model passes.

    Doubles their number until a trial passes, then halves the gap to the last that did not: about 2 log2(n) trials.
    Ends when the time is over, or when so much is float that it no longer pays; the best so far is kept.

    Args:
        order: layer paths, most worth returning first.
        evaluate: builds, verifies and times the plan with these layers in float.
        seconds: for new trials; those in the search log cost nothing. One that has begun is finished.
    """
    search_log.read()
    deadline = clock() + seconds

    def tried(count: int) -> Trial | None:
        if count not in search_log.trials:
            if clock() >= deadline:
                return None
            search_log.add(evaluate(tuple(order[:count])))
        return search_log.trials[count]

    failed, passed, ended = 0, None, "every layer was tried"
    for count in _doubling(len(order)):
        trial = tried(count)
        if trial is None:
            ended = f"the time of {seconds:.0f} s is over"
            break
        if trial.passed:
            passed = count
            break
        failed = count
        if trial.gain is not None and trial.gain <= 1.0:
            ended = f"with {count} layers in float nothing is gained any more"
            break
    while passed is not None and passed - failed > 1:
        middle = (passed + failed) // 2
        trial = tried(middle)
        if trial is None:
            ended = f"the time of {seconds:.0f} s is over"
            break
        passed, failed = (middle, failed) if trial.passed else (passed, middle)
    else:
        ended = ended if passed is None else "the fewest layers were found"
    winners = [trial for trial in search_log.trials.values() if trial.passed]
    best = max(winners, key=lambda trial: (trial.gain or 0.0, -trial.returned), default=None)
    return Found(best, tuple(search_log.trials[count] for count in sorted(search_log.trials)), ended)


def most_trials(layers: int) -> int:
    """How many trials a search over that many layers makes at most: a doubling and a halving of the gap."""
    return 2 * max(1, (layers - 1).bit_length())


def _doubling(total: int) -> Sequence[int]:
    counts = []
    count = 1
    while count < total:
        counts.append(count)
        count *= 2
    return counts
