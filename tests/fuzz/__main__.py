"""``python -m tests.fuzz --count 1000 --seed 1 [--seconds S]``: the long run; ``--program JSON`` tries one again."""

from __future__ import annotations

import argparse
import collections
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.fuzz.engines import TARGETS, Outcome, tried
from tests.fuzz.minimize import minimized
from tests.fuzz.programs import Program, parsed, seeded


def outcomes(programs: Sequence[Program], together: int, engines: Sequence[str]) -> Iterator[Outcome]:
    """What comes of each program, ``together`` of them in one conversion."""
    for start in range(0, len(programs), together):
        with tempfile.TemporaryDirectory() as scratch:
            yield from tried(programs[start : start + together], Path(scratch), engines)


def smallest(outcome: Outcome, engine: str) -> Program:
    """The smallest program that is wrong on an engine as this one is."""

    def still_wrong(program: Program) -> bool:
        with tempfile.TemporaryDirectory() as scratch:
            return engine in tried([program], Path(scratch), (engine,))[0].wrong

    return minimized(outcome.program, still_wrong)


def main() -> int:
    """Print each mismatch with the smallest program that shows it; 1 if there was one."""
    asked = _parser().parse_args()
    engines, began = asked.engine or list(TARGETS), time.monotonic()
    counts: collections.Counter[str] = collections.Counter()
    for start in range(0, 1 if asked.program else asked.count, asked.together):
        if time.monotonic() - began > asked.seconds:
            break
        seeds = range(asked.seed + start, asked.seed + min(start + asked.together, asked.count))
        programs = [asked.program] if asked.program else [seeded(seed) for seed in seeds]
        for seed, outcome in zip(seeds, outcomes(programs, asked.together, engines), strict=False):
            counts.update(["programs", *(f"compared on {engine}" for engine in outcome.compared)])
            told = {"refused": outcome.refused, "late": outcome.late, "wrong": outcome.wrong}
            for what, found in told.items():
                counts.update(f"{what} on {engine}" for engine in found)
                for engine, words in found.items():
                    print(f"{what} on {engine}, seed {seed}: {words}", flush=True)
            for engine in outcome.wrong:
                shown = outcome.program if asked.as_drawn else smallest(outcome, engine)
                print(f"    --engine {engine} --program '{shown}'", flush=True)
    print(", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    print(f"{time.monotonic() - began:.0f} s")
    return int(any(name.startswith("wrong") for name in counts))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first program; the others follow")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further conversion after that")
    parser.add_argument("--together", type=int, default=10, help="programs in one conversion")
    parser.add_argument("--engine", action="append", choices=tuple(TARGETS), help="may be repeated; all, if not given")
    parser.add_argument("--program", type=parsed, help="this one alone, as it was printed")
    parser.add_argument("--as-drawn", action="store_true", help="do not look for smaller programs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
