"""What the thin matrix keeps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.cells import ENGINES, SOURCES, Source, sources_of
from tests.acceptance.pairs import LEAST, engines_of, in_turn
from tests.architectures import FURTHER, NAMED
from tests.pruning.families import FAMILIES, STEPPED

PAIRS = [(source, engine) for source in SOURCES for engine in ENGINES]


@pytest.mark.parametrize(("source", "engine"), PAIRS)
def test_every_pair_of_source_and_engine_keeps_at_least_six_architectures(source: Source, engine: str) -> None:
    kept = [name for (name, origin), engines in engines_of(NAMED).items() if origin == source and engine in engines]
    assert len(kept) == len(set(kept))
    assert len(kept) >= LEAST == 6


def test_every_architecture_goes_from_torch_to_every_engine() -> None:
    chosen = engines_of(NAMED)
    assert all(set(chosen[architecture.name, "torch"]) == set(ENGINES) for architecture in NAMED)


def test_every_further_architecture_goes_to_one_engine_and_each_engine_gets_six_of_them() -> None:
    chosen = engines_of(NAMED, FURTHER)
    engines = [chosen[architecture.name, "torch"] for architecture in FURTHER]
    assert all(len(one) == 1 for one in engines)
    assert all(engines.count((engine,)) >= LEAST for engine in ENGINES)
    assert {case: chosen[case] for case in engines_of(NAMED)} == engines_of(NAMED)


def test_every_source_of_every_architecture_goes_to_an_engine() -> None:
    chosen = engines_of(NAMED)
    assert set(chosen) == {(architecture.name, source) for architecture in NAMED for source in sources_of(architecture)}
    assert all(engines and len(engines) == len(set(engines)) for engines in chosen.values())


def test_an_architecture_meets_several_engines_over_its_other_sources() -> None:
    chosen = engines_of(NAMED)
    for architecture in NAMED:
        others = [source for source in sources_of(architecture) if source != "torch"]
        assert len({engine for source in others for engine in chosen[architecture.name, source]}) >= min(2, len(others))


def test_it_is_the_same_in_another_process() -> None:
    # Workers must collect the same tests: nothing may depend on the order of a set, which differs between processes.
    program = "from tests.acceptance.pairs import engines_of; from tests.architectures import NAMED"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; print(sorted(engines_of(NAMED).items()))"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(sorted(engines_of(NAMED).items()))


def test_too_few_architectures_for_six_each_are_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        engines_of(NAMED[: LEAST - 1])


def test_every_engine_gets_six_pruned_families_and_one_with_caches() -> None:
    engine_of = in_turn(FAMILIES)
    assert set(engine_of) == set(FAMILIES)
    assert all(list(engine_of.values()).count(engine) >= LEAST for engine in ENGINES)
    assert {engine_of[family] for family in STEPPED} == set(ENGINES)
