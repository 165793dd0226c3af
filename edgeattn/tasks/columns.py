"""Tables of numbers: which columns a model takes and gives, and how they are standardised."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.errors import DataError
from edgeattn.guards.confined import regular_file
from edgeattn.printable import excerpt
from edgeattn.tasks.tables import SPLIT, SPLITS, lines, read_table

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
MOST_COLUMNS = 10_000


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What of a table a model takes and gives.

    Attributes:
        taken: how many columns are inputs.
        given: how many are targets.
        inputs: their names; empty for all columns of numbers, without the targets where ``apart``.
        targets: their names; empty for the last columns of numbers.
        apart: whether targets are no inputs.
        mean, std: of the input columns in the data that the model was trained on; empty for numbers as they are.
        target_mean, target_std: of the target columns.
    """

    taken: int
    given: int
    inputs: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    apart: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, values, count in (
            ("columns", self.inputs, self.taken),
            ("targets", self.targets, self.given),
            ("mean", self.mean, self.taken),
            ("std", self.std, self.taken),
            ("target_mean", self.target_mean, self.given),
            ("target_std", self.target_std, self.given),
        ):
            if values and len(values) != count:
                raise ValueError(f"{name}: expected {count}, one for each, got {len(values)}")
        if any(value <= 0 for value in (*self.std, *self.target_std)):
            raise ValueError("std: expected numbers above 0")

    def standardised(self, values: np.ndarray) -> np.ndarray:
        """Input columns as the model takes them: float64, shape (..., taken)."""
        made: np.ndarray = (values - np.array(self.mean or 0.0)) / np.array(self.std or 1.0)
        return made

    def standardised_targets(self, values: np.ndarray) -> np.ndarray:
        """Target columns as the model gives them: float64, shape (..., given)."""
        made: np.ndarray = (values - np.array(self.target_mean or 0.0)) / np.array(self.target_std or 1.0)
        return made

    def in_units(self, values: np.ndarray) -> np.ndarray:
        """What the model gives in the units of the table: float64, shape (..., given)."""
        made: np.ndarray = values * np.array(self.target_std or 1.0) + np.array(self.target_mean or 0.0)
        return made


def columns_of(settings: Mapping[str, Any], taken: int, given: int, apart: bool) -> Columns:
    """What preprocessor_config.json says: ``columns``, ``targets``, ``mean``, ``std``, ``target_mean``, ``target_std``.

    Targets that are inputs, too, have the mean and deviation of those.

    Raises:
        DataError: for settings that do not fit the model.
    """

    def told(name: str, kinds: tuple[type, ...]) -> tuple[Any, ...]:
        values = settings.get(name, [])
        fits = isinstance(values, list) and all(isinstance(v, kinds) and not isinstance(v, bool) for v in values)
        if not fits or len(values) > MOST_COLUMNS:
            raise DataError(f"preprocessor_config.json: {name}: expected a list, one for each column")
        return tuple(values)

    inputs, targets = told("columns", (str,)), told("targets", (str,))
    mean, std, target_mean, target_std = (
        tuple(map(float, told(name, (int, float)))) for name in ("mean", "std", "target_mean", "target_std")
    )
    if not apart and mean and std and not target_mean:
        places = [inputs.index(name) for name in targets if name in inputs] or list(range(len(mean)))[-given:]
        if len(places) == given and max(places) < min(len(mean), len(std)):
            target_mean, target_std = tuple(mean[p] for p in places), tuple(std[p] for p in places)
    try:
        return Columns(
            taken=taken,
            given=given,
            inputs=inputs,
            targets=targets,
            apart=apart,
            mean=mean,
            std=std,
            target_mean=target_mean,
            target_std=target_std,
        )
    except ValueError as error:
        raise DataError(f"preprocessor_config.json: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The rows of a table.

    Attributes:
        inputs: float64, shape (rows, taken); NaN for an empty cell.
        targets: float64, shape (rows, given); NaN for an empty cell.
        splits, places: of each row.
    """

    inputs: np.ndarray
    targets: np.ndarray
    splits: tuple[str, ...]
    places: tuple[str, ...]


def read_numbers(path: Path, columns: Columns) -> Numbers:
    """A table with a header, or a directory with one per split.

    Raises:
        DataError: naming the line that is wrong, or the columns that were expected.
    """
    header = _header(path)
    numeric = [name for name, cell in header.items() if name != SPLIT and _is_number(cell)]
    targets = list(columns.targets) or numeric[len(numeric) - columns.given :]
    inputs = list(columns.inputs) or [name for name in numeric if not (columns.apart and name in targets)]
    if len(inputs) != columns.taken or len(targets) != columns.given or not {*inputs, *targets} <= set(header):
        more = " and others" if columns.apart else ", or the last of them,"
        raise DataError(
            f"{path}: expected a header and {columns.taken} columns of numbers that the model takes{more} "
            f"{columns.given} that it gives; its columns of numbers are {', '.join(numeric[:20]) or 'none'}"
        )
    names = list(dict.fromkeys([*inputs, *targets]))
    rows, splits, places = [], [], []
    for line in read_table(path, tuple(names), SUFFIXES):
        rows.append([_value(line.cells[name], line.place, name) for name in names])
        splits.append(line.split)
        places.append(line.place)
    values = np.array(rows, np.float64).reshape(-1, len(names))
    return Numbers(
        inputs=values[:, [names.index(name) for name in inputs]],
        targets=values[:, [names.index(name) for name in targets]],
        splits=tuple(splits),
        places=tuple(places),
    )


def _header(path: Path) -> dict[str, str]:
    """Columns of the first table with what its first row has in them."""
    files = [path] if not path.is_dir() else [path / (s + e) for s in SPLITS for e in SUFFIXES]
    table = next((file for file in files if file.is_file()), path)
    first: list[list[str]] = []
    for _, text in lines(regular_file(table, DataError)):
        comma = ".csv" in table.suffixes[-2:]
        first.append(next(csv.reader([text])) if comma else text.split("\t"))
        if len(first) == 2:
            break
    if len(first) < 2 or len(first[0]) != len(first[1]) or len(first[0]) > MOST_COLUMNS:
        raise DataError(f"{table}: expected a header and rows of as many cells, at most {MOST_COLUMNS}")
    return dict(zip(first[0], first[1], strict=True))


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return not cell.strip()


def _value(cell: str, place: str, name: str) -> float:
    if not cell.strip():
        return math.nan
    if not _is_number(cell):
        raise DataError(f"{place}: {name}: expected a number, or nothing where it is missing; got {excerpt(cell)}")
    return float(cell)


def numbers_of(values: Sequence[Any], count: int) -> np.ndarray:
    """Numbers that a command line gives: float64, shape (count,).

    Raises:
        DataError: for other than as many finite numbers.
    """
    try:
        found = np.array([float(value) for value in values])
    except (TypeError, ValueError) as error:
        raise DataError(f"expected {count} numbers ({error})") from error
    if len(found) != count or not np.isfinite(found).all():
        raise DataError(f"expected {count} finite numbers, got {len(found)}")
    return found
