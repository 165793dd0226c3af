"""The smallest program that still differs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.fuzz.programs import PLAINEST, Program


def minimized(program: Program, still_wrong: Callable[[Program], bool], most: int = 60) -> Program:
    """Take steps away, and plain ones in place of drawn ones, as long as it stays wrong.

    Args:
        still_wrong: converts a program and compares it.
        most: programs that are tried.
    """
    left = most
    changed = True
    while changed and left > 0:
        changed = False
        for smaller in _smaller(program):
            left -= 1
            with contextlib.suppress(Exception):  # a part may not run without another
                if still_wrong(smaller):
                    program, changed = smaller, True
                    break
            if left <= 0:
                break
    return program


def _smaller(program: Program) -> Iterator[Program]:
    for place, steps in program.steps.items():
        if place in PLAINEST:
            continue
        if place == "linear":
            kept = {name: found for name, found in program.steps.items() if name != "linear"}
            yield replace(program, steps={**kept, **{n: (PLAINEST[n],) for n in ("scores", "normalizer", "mixing")}})
            continue
        for index in reversed(range(len(steps))):
            yield program.without(place, index)
    for place, plain in PLAINEST.items():
        if place in program.steps and program.steps[place] != (plain,):
            yield program.put(place, plain)
    if program.residual:
        yield replace(program, residual=False)
    if program.mask != "bool":
        yield replace(program, mask="bool")
