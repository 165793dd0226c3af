"""docs/support.md says what the last run measured, of the whole catalogue and of nothing else."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the catalogue is made of torch modules")

from benchmarks.support import ENGINE_NAMES, FIGURES, TABLE, read, render
from tests.acceptance.cells import ENGINES, PRECISIONS, sources_of
from tests.architectures import FURTHER, NAMED


def rows() -> list[list[str]]:
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("|")]
    return [[part.strip() for part in line.strip("|").split("|")] for line in lines]


def test_the_table_is_made_of_the_figures() -> None:
    versions, cells = read(FIGURES)
    assert TABLE.read_text() == render(cells, versions)


def test_it_lists_the_architectures_of_the_catalogue_in_order() -> None:
    names = [row[0] for row in rows() if row[0] not in ("architecture", "---")]
    assert names == [architecture.name for architecture in (*NAMED, *FURTHER)]


def test_it_lists_every_source_and_every_engine() -> None:
    sources = {row[0]: row[2] for row in rows()}
    assert all(sources[a.name] == ", ".join(sources_of(a)) for a in NAMED)
    assert all(sources[a.name] == "torch" for a in FURTHER)
    assert rows()[0][3:] == [ENGINE_NAMES[engine] for engine in ENGINES]


def test_every_cell_was_measured_or_refused_with_a_reason() -> None:
    _, cells = read(FIGURES)
    wanted = {(a.name, source) for a in NAMED for source in sources_of(a)} | {(a.name, "torch") for a in FURTHER}
    assert {cell.key for cell in cells} == {(*pair, e, p) for pair in wanted for e in ENGINES for p in PRECISIONS}
    for cell in cells:
        assert cell.refused or (cell.share is not None and cell.sqnr_db is not None), cell.key
