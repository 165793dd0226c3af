"""A table before it is laid out: columns, rows, and what belongs together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ABSENT = "-"  # of a figure that nobody has


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column.

    Attributes:
        right: figures, which stand at the right.
        prose: words that may go on in the next line; cells of others stay as they are.
    """

    name: str
    right: bool = False
    prose: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row.

    Attributes:
        cells: one per column, of lines; empty or :data:`ABSENT` for none.
        style: of all of it, as rich names styles.
        styles: of single cells, by the names of their columns.
        part: whether it tells a part of the row before it.
    """

    cells: tuple[str, ...]
    style: str = ""
    styles: Mapping[str, str] = field(default_factory=dict)
    part: bool = False


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table before it is laid out.

    Attributes:
        columns: the first one names the row.
        heading: columns of which the heading of a block is made.
        grouped: whether rows of the same name follow each other: in a block of their own where it is narrow.
        beside: whether prose belongs beside the other cells of its row: it is never told below the table alone.
        caption: lines below it.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    heading: tuple[str, ...] = ()
    grouped: bool = False
    beside: bool = False
    title: str = ""
    caption: str = ""
