"""Tables of text as data: TAB or comma separated, or one JSON object a line; every line checked, all of it bounded."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeattn.errors import DataError
from edgeattn.guards.confined import confined_file, regular_file
from edgeattn.guards.plain import strict_json

SUFFIXES = (".tsv", ".tsv.gz", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz")
SPLITS = ("train", "dev", "val", "valid", "validation", "test")  # names of tables in a directory
SPLIT = "split"
MAX_LINE_BYTES = 2**17
MAX_ROWS = 1_000_000
MAX_BYTES = 2**30  # of a table, uncompressed


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a table.

    Attributes:
        cells: by column.
        split: the table's name in a directory, or its column ``split``; "" without.
        place: FILE:LINE.
    """

    cells: Mapping[str, Any]
    split: str
    place: str


def is_table(path: Path, suffixes: Sequence[str] = SUFFIXES) -> bool:
    """Whether a path is a table, or a directory with tables that are called as splits are."""
    ends = tuple(suffixes)
    return path.name.endswith(ends) or any((path / (name + end)).is_file() for name in SPLITS for end in ends)


def read_table(
    path: Path, columns: Sequence[str], suffixes: Sequence[str] = SUFFIXES, optional: Sequence[str] = ()
) -> tuple[Line, ...]:
    """The lines of a table, or of a directory's tables, whose names are the splits.

    A table is UTF-8 and may be compressed. The first line of a .tsv or .csv may be a header with at least the columns,
    in any order, and where wanted ``split`` and others; without it the columns are those, in that order. A line of a
    .jsonl is an object with them.

    Args:
        columns: names of what every line must have.
        optional: names that may follow; of a table without a header its first line decides whether they do.

    Raises:
        DataError: naming the line and what was expected there.
    """
    if not path.is_dir():
        return tuple(_rows(regular_file(path, DataError), columns, optional, None))
    found: list[Line] = []
    for split in SPLITS:
        there = [path / (split + end) for end in suffixes if (path / (split + end)).is_file()]
        if len(there) > 1:
            raise DataError(f"{path}: holds {there[0].name} and {there[1].name}; keep one of them")
        for table in there:
            confined_file(table, path, DataError)
            found += _rows(table, columns, optional, split)
    return tuple(found)


def split_files(path: Path, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """Files of a directory whose names hold a split as a word, by split: ``dev.conll``, ``en_ewt-ud-dev.conllu.gz``."""
    found: dict[str, list[Path]] = {}
    for file in sorted(path.iterdir()):
        end = max((end for end in suffixes if file.name.endswith(end)), key=len, default=None)
        if end is None or not file.is_file():
            continue
        named = {word for word in re.split(r"[^a-z]+", file.name[: -len(end)].lower()) if word in SPLITS}
        if len(named) == 1:
            found.setdefault(named.pop(), []).append(file)
    return found


def files_of(path: Path, suffixes: Sequence[str]) -> list[tuple[str, Path]]:
    """A file itself, of no split; or a directory's files with their splits, see :func:`split_files`.

    Raises:
        DataError: for two files of one split, or a link out of the directory.
    """
    if not path.is_dir():
        return [("", regular_file(path, DataError))]
    found = split_files(path, suffixes)
    for files in found.values():
        if len(files) > 1:
            raise DataError(f"{path}: holds {files[0].name} and {files[1].name}; keep one of them")
        confined_file(files[0], path, DataError)
    return [(split, files[0]) for split, files in found.items()]


def _rows(path: Path, columns: Sequence[str], optional: Sequence[str], split: str | None) -> Iterator[Line]:
    if ".jsonl" in path.suffixes[-2:]:
        yield from _objects(path, columns, split)
        return
    comma = ".csv" in path.suffixes[-2:]
    names: Sequence[str] = (*columns, *optional)
    for index, (number, text) in enumerate(lines(path)):
        place = f"{path}:{number}"
        cells = _comma_cells(text, place) if comma else text.split("\t")
        if index == 0 and len(cells) == len(columns):
            names = columns
        if index == 0 and set(columns) <= set(cells):
            names = cells
            if len(set(names)) < len(names) or (split is not None and SPLIT in names):
                raise DataError(
                    f"{place}: expected each column once, and a split column only in a table that is given by itself; "
                    f"got {' '.join(names)}"
                )
            continue
        if len(cells) != len(names):
            between = "commas" if comma else "tabs"
            raise DataError(
                f"{place}: expected {len(names)} columns separated by {between}, {' '.join(names)}; got {len(cells)}"
            )
        row = dict(zip(names, cells, strict=True))
        yield Line(cells=row, split=row.get(SPLIT, "") if split is None else split, place=place)


def _comma_cells(text: str, place: str) -> list[str]:
    try:
        return next(csv.reader([text], strict=True))
    except csv.Error as error:  # a quoted cell does not go over the line's end
        raise DataError(f"{place}: expected cells separated by commas, quoted with double quotes ({error})") from error


def _objects(path: Path, columns: Sequence[str], split: str | None) -> Iterator[Line]:
    for number, text in lines(path):
        place = f"{path}:{number}"
        try:
            row = strict_json(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: expected a JSON object, {json.dumps(dict.fromkeys(columns, '...'))}") from error
        if not isinstance(row, dict) or (missing := [name for name in columns if name not in row]):
            got = f"no {missing[0]!r}" if isinstance(row, dict) else type(row).__name__
            raise DataError(f"{place}: expected a JSON object with {', '.join(columns)}; got {got}")
        own = row.get(SPLIT, "")
        if not isinstance(own, str):
            raise DataError(f"{place}: expected {SPLIT} to be a text, got {type(own).__name__}")
        yield Line(cells=row, split=own if split is None else split, place=place)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a text file that are not empty, with their numbers; decoded one by one, so that a wrong byte has a line.

    Raises:
        DataError: for what is not UTF-8, too long or too many.
    """
    size = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number in itertools.count(1):
                line = file.readline(MAX_LINE_BYTES + 1)
                size += len(line)
                if not line:
                    return
                if len(line) > MAX_LINE_BYTES:
                    raise DataError(f"{path}:{number}: a line of more than {MAX_LINE_BYTES} bytes")
                if number > MAX_ROWS or size > MAX_BYTES:
                    raise DataError(f"{path}: more than {MAX_ROWS} lines or {MAX_BYTES} bytes; split it")
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise DataError(f"{path}:{number}: not UTF-8 (byte {error.start} of the line)") from error
                if text:
                    yield number, text
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
