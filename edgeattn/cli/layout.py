"""Tables that fit: whole columns where a terminal is wide enough, else a block per row. No cell is ever cut."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from rich.cells import cell_len
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from edgeattn.results.grid import ABSENT, Grid

if TYPE_CHECKING:
    from rich.console import RenderableType

NARROWEST = 24  # characters of a column of prose, below which it is told beside the table


def laid_out(grid: Grid, width: int) -> RenderableType:
    """The grid for a terminal of that many characters."""
    parts: list[RenderableType] = [Text(grid.title, style="italic")] if grid.title else []
    parts += _body(_without_empty(grid), width)
    if grid.caption:
        parts.append(Text(grid.caption, style="dim"))
    return Group(*parts)


def _without_empty(grid: Grid) -> Grid:
    """Without the columns that no row has anything for."""
    kept = [
        place
        for place, column in enumerate(grid.columns)
        if place == 0 or column.name in grid.heading or any(row.cells[place] not in {"", ABSENT} for row in grid.rows)
    ]
    return _of_columns(grid, kept)


def _of_columns(grid: Grid, places: Sequence[int]) -> Grid:
    rows = tuple(replace(row, cells=tuple(row.cells[place] for place in places)) for row in grid.rows)
    return replace(grid, columns=tuple(grid.columns[place] for place in places), rows=rows)


def _body(grid: Grid, width: int) -> Iterator[RenderableType]:
    """The widest form that fits: all columns, a block per name, those of figures with the prose below, one per row."""
    whole = _table(grid, width)
    if whole is not None:
        yield whole
    elif grid.grouped and len(grid.columns) > 2:
        for name in dict.fromkeys(row.cells[0] for row in grid.rows):
            rows = tuple(row for row in grid.rows if row.cells[0] == name)
            yield Text(name, style="bold")
            inner = _of_columns(replace(grid, rows=rows, grouped=False), range(1, len(grid.columns)))
            yield from _body(_without_empty(inner), width)
    else:
        yield from _figures_first(grid, width) or _blocks(grid)


def _figures_first(grid: Grid, width: int) -> list[RenderableType]:
    """The columns of figures, and the prose of each row below; nothing where that does not fit."""
    prose = [place for place, column in enumerate(grid.columns) if column.prose]
    figures = [place for place in range(len(grid.columns)) if place not in prose]
    if not prose or grid.beside or len(figures) < 2 or (table := _table(_of_columns(grid, figures), width)) is None:
        return []
    parts: list[RenderableType] = [table]
    for row in grid.rows:
        there = [place for place in prose if row.cells[place] not in {"", ABSENT}]
        named = [f"{grid.columns[n].name} " * (len(prose) > 1) + " ".join(row.cells[n].split("\n")) for n in there]
        if named:
            parts.append(Text.assemble((row.cells[0].strip(), "bold"), f": {'; '.join(named)}"))
    return parts


def _table(grid: Grid, width: int) -> Table | None:
    """All columns with lines between them, or close together under headings of several lines; None if neither fits."""
    widths = []
    for place, column in enumerate(grid.columns):
        widest = max((cell_len(line) for row in grid.rows for line in row.cells[place].split("\n")), default=0)
        widths.append(min(widest, NARROWEST) if column.prose else widest)
    names = [column.name for column in grid.columns]
    stacked = [_stacked(name, widest) for name, widest in zip(names, widths, strict=True)]
    lined = sum(max(widest, cell_len(name)) + 3 for name, widest in zip(names, widths, strict=True)) + 1
    close = sum(max(n, *map(cell_len, s.split("\n"))) + 2 for s, n in zip(stacked, widths, strict=True)) - 2
    if close > width:
        return None
    table = Table() if lined <= width else Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    # As Text, because a name may hold what rich would read as markup.
    for column, name in zip(grid.columns, names if lined <= width else stacked, strict=True):
        side: Literal["left", "right"] = "right" if column.right else "left"
        table.add_column(Text(name), justify=side, no_wrap=not column.prose, overflow="fold")
    for row in grid.rows:
        told = zip(grid.columns, row.cells, strict=True)
        table.add_row(*(Text(cell, row.styles.get(column.name, "")) for column, cell in told), style=row.style)
    return table


def _stacked(name: str, width: int) -> str:
    """A heading in as few lines as make its column no wider than its cells, or than its longest word."""
    return "\n".join(textwrap.wrap(name, max(width, *map(len, name.split())), break_long_words=False))


def _blocks(grid: Grid) -> Iterator[RenderableType]:
    """Each row as a heading with its cells below it, one a line."""
    heading = grid.heading or (grid.columns[0].name,)
    for row in grid.rows:
        cells = {column.name: cell for column, cell in zip(grid.columns, row.cells, strict=True)}
        there = {name: _joined(cell) for name, cell in cells.items() if cell not in {"", ABSENT}}
        if row.part:
            yield Padding(Text(f"{there.pop(grid.columns[0].name, '')}: {', '.join(there.values())}"), (0, 0, 0, 4))
            continue
        words = Text("  ").join(
            Text(there.pop(name), row.styles.get(name) or ("bold" if place == 0 else ""))
            for place, name in enumerate(heading)
            if name in there
        )
        yield words
        lines = Table.grid(padding=(0, 2, 0, 0))
        lines.add_column(no_wrap=True, style="dim")
        lines.add_column(overflow="fold")
        for name, cell in there.items():
            lines.add_row(Text(name), Text(cell, row.styles.get(name, "")))
        yield Padding(lines, (0, 0, 0, 2))


def _joined(cell: str) -> str:
    """Short lines of a cell as one."""
    lines = cell.strip().split("\n")
    return ", ".join(lines) if max(map(len, lines)) < NARROWEST else "\n".join(lines)
