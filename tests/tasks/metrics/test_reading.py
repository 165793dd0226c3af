"""What answers and targets are read as."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from edgeattn.errors import DataError
from edgeattn.tasks.metrics.reading import class_index, floats, number, target_number, target_texts, text


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), (True, 1.0), (np.bool_(True), 1.0), (np.float32(0.5), 0.5), (np.array(2), 2.0), (Fraction(1, 2), 0.5)],
)
def test_numbers_of_every_type_are_numbers(value: object, expected: float) -> None:
    assert number(value) == expected
    assert target_number(value) == expected


@pytest.mark.parametrize("value", ["1", None, [1], np.array([1]), 1j, 10**400, math.nan])
def test_what_is_no_number_is_nan_in_an_answer_and_refused_in_a_target(value: object) -> None:
    assert math.isnan(number(value))
    assert class_index(value) == -1
    with pytest.raises(DataError, match="a target here is a finite number"):
        target_number(value)


def test_texts_are_texts() -> None:
    assert text(np.str_("é")) == "é"
    assert text(b"a") is None
    assert target_texts(("a", "b")) == ["a", "b"]


def test_rows_of_different_lengths_are_refused() -> None:
    assert np.isnan(floats([1.0, None])[1])
    with pytest.raises(DataError, match="expected numbers, got a list of 2"):
        floats([[1.0], [1.0, 2.0]])
