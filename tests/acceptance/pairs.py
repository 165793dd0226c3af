"""The cells of the matrix that every run measures; ``--whole-matrix`` asks for all (``make matrix``).

A defect shows for a source, for an architecture or for an engine, hardly ever for one architecture from one source on
one engine alone. So every architecture goes from torch to all engines, and from each other source to one, the next in
turn; where that leaves an engine fewer than :data:`LEAST` architectures, some go to a second one.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from tests.acceptance.cells import ENGINES, SOURCES, Source, sources_of
from tests.architectures import Architecture

LEAST = 6  # architectures of each pair of a source and an engine
Case = tuple[str, Source]  # an architecture's name, and where it comes from


def engines_of(
    architectures: Sequence[Architecture], further: Sequence[Architecture] = ()
) -> Mapping[Case, tuple[str, ...]]:
    """Case -> the engines that it is measured on, the same in every process.

    Raises:
        ValueError: if there are so few named architectures that no engine can have :data:`LEAST` of them.
    """
    turns = itertools.cycle(ENGINES)
    found: dict[Case, list[str]] = {(architecture.name, "torch"): [next(turns)] for architecture in further}
    for turn, source in enumerate(SOURCES):
        names = [architecture.name for architecture in architectures if source in sources_of(architecture)]
        if source == "torch":
            found |= {(name, source): list(ENGINES) for name in names}
            continue
        # Sources start at different engines, so that an architecture does not meet the same one from each of them.
        kept = dict.fromkeys((*ENGINES[turn:], *ENGINES[:turn]), 0)
        for name in itertools.cycle(names):
            had = found.setdefault((name, source), [])
            if had and min(kept.values()) >= LEAST:
                break
            engine = min((engine for engine in kept if engine not in had), key=kept.__getitem__)  # the first of equals
            had.append(engine)
            kept[engine] += 1
    return {case: tuple(had) for case, had in found.items()}


def in_turn(names: Sequence[str]) -> Mapping[str, str]:
    """Name -> one engine, the next in turn."""
    return dict(zip(names, itertools.cycle(ENGINES), strict=False))
