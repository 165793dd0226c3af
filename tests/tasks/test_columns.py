"""Columns of numbers: standardised and back, and which of them a model takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeattn.errors import DataError
from edgeattn.tasks.columns import Columns, columns_of, numbers_of, read_numbers


def test_targets_come_back_to_their_units() -> None:
    columns = Columns(taken=2, given=2, mean=(1, 2), std=(3, 4), target_mean=(5, 6), target_std=(7, 8))
    values = np.random.default_rng(0).standard_normal((4, 2))
    np.testing.assert_allclose(columns.in_units(columns.standardised_targets(values)), values)
    np.testing.assert_allclose(columns.standardised(values), (values - [1, 2]) / [3, 4])
    plain = Columns(taken=2, given=2)
    np.testing.assert_array_equal(plain.in_units(plain.standardised_targets(values)), values)


def test_targets_that_are_inputs_share_their_mean() -> None:
    settings = {"columns": ["a", "b", "c"], "targets": ["b"], "mean": [1, 2, 3], "std": [4, 5, 6]}
    found = columns_of(settings, 3, 1, apart=False)
    assert (found.target_mean, found.target_std) == ((2.0,), (5.0,))
    apart = columns_of(settings, 3, 1, apart=True)
    assert (apart.target_mean, apart.target_std) == ((), ())
    last = columns_of({"mean": [1, 2, 3], "std": [4, 5, 6]}, 3, 2, apart=False)
    assert last.target_mean == (2.0, 3.0)


@pytest.mark.parametrize(("apart", "taken", "expected"), [(False, 3, [[1, 2, 3]]), (True, 2, [[1, 2]])])
def test_the_last_columns_of_numbers_are_the_targets(
    tmp_path: Path, apart: bool, taken: int, expected: list[list[float]]
) -> None:
    (tmp_path / "t.csv").write_text("a,name,b,c,split\n1,x,2,3,test\n")
    table = read_numbers(tmp_path / "t.csv", Columns(taken=taken, given=1, apart=apart))
    assert (table.inputs.tolist(), table.targets.tolist(), table.splits) == (expected, [[3]], ("test",))


def test_a_directory_has_a_table_per_split(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a,b\n1,2\n")
    (tmp_path / "test.csv").write_text("a,b\n3,\n")
    table = read_numbers(tmp_path, Columns(taken=1, given=1, apart=True))
    assert table.splits == ("train", "test")
    np.testing.assert_array_equal(table.targets, [[2.0], [np.nan]])


def test_numbers_of_a_command_line_are_counted() -> None:
    assert numbers_of(["1", " 2.5"], 2).tolist() == [1.0, 2.5]
    with pytest.raises(DataError, match="expected 2 finite numbers, got 1"):
        numbers_of(["1"], 2)
