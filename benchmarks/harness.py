"""What measuring costs: the harness's own time around a call, and how far apart two runs of one bundle are.

    python -m benchmarks.harness overhead
    python -m benchmarks.harness repeat BUNDLE [--pairs 10] [--runs 300]

``overhead`` times a matrix product of about a millisecond bare and through each of the loops that measure, in turns of
some calls, so that all meet the same clocks. Three figures per loop: *reported*, by how much the median that the loop
gives differs from the bare one in the same turn (as noisy as the machine is); *added*, what the loop gives for a call
that does nothing; and *per call*, all that such a call costs in the loop. Exit code 1 if one of the last two is above
2 % of the call.

``repeat`` profiles a bundle again and again, each time in a process of its own, and counts the pairs of runs whose p50
differ by more than 3 % although neither says that it is noisy. Exit code 1 if there is one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgeattn.jobs.measure import profile_bundle
from edgeattn.profiling.contract import MeasureOptions
from edgeattn.profiling.measure import affinity, time_step
from edgeattn.profiling.pacing import Clock, arrivals, follow
from edgeattn.profiling.stability import NOISE_LIMIT
from edgeattn.profiling.throttling import Watch

LIMIT = 0.02  # of a call of 1 ms
APART = 0.03
EMPTY_CALLS = 50_000


class Work:
    """A matrix product as a step."""

    def __init__(self, size: int) -> None:
        self._a = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
        self._out = np.empty_like(self._a)

    def run(self) -> None:
        np.matmul(self._a, self._a, out=self._out)


class Nothing:
    """A step that does nothing."""

    def run(self) -> None:
        return


def of_a_millisecond() -> Work:
    """The product whose median is closest to 1 ms."""
    timed = {size: statistics.median(bare(Work(size).run, 30)) for size in range(64, 640, 32)}
    return Work(min(timed, key=lambda size: abs(timed[size] - 1e-3)))


def bare(call: Callable[[], None], count: int) -> list[float]:
    """Seconds of each call, by nothing but two looks at the clock."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return times


def paced(call: Callable[[], None], count: int) -> list[float]:
    """Seconds of each call in the paced loop, all of them due at once."""

    def work(_: int) -> int:
        call()
        return 1

    timeline = follow(arrivals(np.zeros(count)), work, Watch(affinity()).look, Clock(time.perf_counter))
    times: list[float] = (timeline.done - timeline.began).tolist()
    return times


def timed(call: Callable[[], None], count: int) -> list[float]:
    """Seconds of each call as ``profile`` times them."""
    step = Nothing()
    step.run = call  # type: ignore[method-assign]
    return time_step(step, count)[1]  # type: ignore[arg-type]


def overhead(rounds: int, count: int) -> int:
    """Print the table; 1 if a loop is over the limit."""
    call = of_a_millisecond().run
    loops: dict[str, Callable[[Callable[[], None], int], list[float]]] = {"timed": timed, "paced": paced}
    medians: dict[str, list[float]] = {"bare": [], **{name: [] for name in loops}}
    for _ in range(rounds):
        medians["bare"].append(statistics.median(bare(call, count)))
        for name, loop in loops.items():
            medians[name].append(statistics.median(loop(call, count)))
    base = statistics.median(medians["bare"])
    print(f"bare call {1e6 * base:8.1f} us")
    worst = 0.0
    for name, loop in loops.items():
        shares = [m / b - 1 for m, b in zip(medians[name], medians["bare"], strict=True)]
        began = time.perf_counter()
        added = statistics.median(loop(Nothing().run, EMPTY_CALLS))
        per_call = (time.perf_counter() - began) / EMPTY_CALLS
        print(
            f"{name}: reported {100 * statistics.median(shares):+.2f} %, added {1e9 * added:.0f} ns "
            f"({100 * added / base:.3f} %), per call {1e6 * per_call:.2f} us ({100 * per_call / base:.2f} %)"
        )
        worst = max(worst, added / base, per_call / base)
    return int(worst > LIMIT)


def repeat(bundle: Path, pairs: int, runs: int) -> int:
    """Print every pair; 1 if one is apart and not flagged."""
    unflagged = 0
    options = MeasureOptions(runs=runs, paced_seconds=0, energy_seconds=0)
    for index in range(pairs):
        first, second = (profile_bundle(bundle, options).latency for _ in range(2))
        apart = abs(first.p50_ms - second.p50_ms) / min(first.p50_ms, second.p50_ms)
        noise = max(first.noise or 0.0, second.noise or 0.0)
        verdict = "" if apart <= APART else "apart and flagged" if noise > NOISE_LIMIT else "APART AND NOT FLAGGED"
        unflagged += verdict.isupper()
        print(
            f"{index:3} p50 {first.p50_ms:.3f} and {second.p50_ms:.3f} ms, {100 * apart:5.1f} % apart, "
            f"noise {100 * noise:5.1f} % {verdict}",
            flush=True,
        )
    print(f"{unflagged} of {pairs} pairs more than {100 * APART:g} % apart without a flag")
    return int(unflagged > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    cost = commands.add_parser("overhead")
    cost.add_argument("--rounds", type=int, default=60)
    cost.add_argument("--calls", type=int, default=30)
    again = commands.add_parser("repeat")
    again.add_argument("bundle", type=Path)
    again.add_argument("--pairs", type=int, default=10)
    again.add_argument("--runs", type=int, default=300)
    chosen = parser.parse_args()
    if chosen.command == "overhead":
        return overhead(chosen.rounds, chosen.calls)
    return repeat(chosen.bundle, chosen.pairs, chosen.runs)


if __name__ == "__main__":
    sys.exit(main())
