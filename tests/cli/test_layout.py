"""Tables at every width: nothing is cut, nothing is wider than the terminal, empty columns are left out."""

from __future__ import annotations

import io
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from edgeattn.cli.layout import laid_out
from edgeattn.results.grid import ABSENT, Column, Grid, Row

PEOPLE = Grid(
    columns=(
        Column(name="name"),
        Column(name="born", right=True),
        Column(name="place of birth"),
        Column(name="known for", prose=True),
        Column(name="verdict"),
    ),
    rows=(
        Row(cells=("Ada", "1815", "London", "the first program for a machine that was never built", "passed")),
        Row(cells=("Alan", "1912", ABSENT, "machines that can compute whatever can be computed", "FAILED")),
    ),
    heading=("name", "verdict"),
    title="people",
    caption="born: the year",
)


def text(grid: Grid, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, no_color=True).print(laid_out(grid, width))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_a_wide_terminal_has_one_row_per_row() -> None:
    lines = text(PEOPLE, 120)
    assert len([line for line in lines if line.startswith("│")]) == 2
    assert lines[0] == "people"
    assert lines[-1] == "born: the year"


def test_a_narrower_one_has_no_lines_between() -> None:
    assert text(PEOPLE, 64) == [
        "people",
        "            place",
        "            of",
        "name  born  birth   known for                            verdict",
        "Ada   1815  London  the first program for a machine      passed",
        "                    that was never built",
        "Alan  1912  -       machines that can compute whatever   FAILED",
        "                    can be computed",
        "born: the year",
    ]


def test_prose_stands_below_where_it_has_no_room_beside() -> None:
    lines = text(PEOPLE, 40)
    assert "Ada   1815  London  passed" in lines
    assert "Ada: the first program for a machine" in lines


def test_a_narrow_one_has_a_block_per_row() -> None:
    lines = text(PEOPLE, 25)
    assert "Ada  passed" in lines
    assert "  born            1815" in lines
    assert not any("Alan" in line and "place" in line for line in lines)  # nothing is told of what is absent


def test_rows_of_one_name_are_a_block_of_their_own() -> None:
    columns = tuple(Column(name=name) for name in ("target", "candidate", "milliseconds"))
    rows = tuple(Row(cells=(target, f"int{bits}", "1.25")) for target in ("jetson-orin-nano", "cpu") for bits in (4, 8))
    lines = text(Grid(columns=columns, rows=rows, grouped=True), 27)
    assert lines == [
        "jetson-orin-nano",
        "candidate  milliseconds",
        "int4       1.25",
        "int8       1.25",
        "cpu",
        "candidate  milliseconds",
        "int4       1.25",
        "int8       1.25",
    ]


def test_empty_columns_are_left_out_and_names_are_kept() -> None:
    rows = (Row(cells=("", "1", "", ABSENT)), Row(cells=("", "2", ABSENT, "")))
    lines = text(Grid(columns=tuple(Column(name=name) for name in "abcd"), rows=rows), 80)
    assert "a" in lines[1]
    assert "b" in lines[1]
    assert not {"c", "d"} & set(lines[1])


def test_parts_follow_their_row_in_a_line() -> None:
    rows = (Row(cells=("cpu", "a long processor name", "1.00 ms")), Row(cells=("  main_8", "", "0.25 ms"), part=True))
    lines = text(Grid(columns=tuple(Column(name=name) for name in ("target", "device", "p50")), rows=rows), 30)
    assert lines == ["cpu", "  device  a long processor", "          name", "  p50     1.00 ms", "    main_8: 0.25 ms"]


WORDS = st.text(string.ascii_letters + string.digits + ".[]_-", min_size=1, max_size=30)


@given(
    st.lists(st.tuples(WORDS, WORDS, st.text(string.ascii_lowercase + " ", max_size=200)), min_size=1, max_size=4),
    st.sampled_from([80, 100, 120, 200]),
)
def test_no_width_cuts_a_name_or_runs_over(rows: list[tuple[str, str, str]], width: int) -> None:
    columns = (*(Column(name=name) for name in ("target", "engine")), Column(name="why", prose=True))
    grid = Grid(columns=columns, rows=tuple(Row(cells=cells) for cells in rows), heading=("target", "engine"))
    lines = text(grid, width)
    assert max(map(len, lines)) <= width
    for target, engine, _ in rows:
        assert any(target in line for line in lines)
        assert engine == ABSENT or any(engine in line for line in lines)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_brackets_are_no_markup(width: int) -> None:
    grid = Grid(columns=(Column(name="install"),), rows=(Row(cells=("pip install 'edgeattn[convert]'",)),))
    assert any("pip install 'edgeattn[convert]'" in line for line in text(grid, width))
