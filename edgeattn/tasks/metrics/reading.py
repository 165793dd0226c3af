"""Answers and targets as the metrics read them: an answer that is none is marked, a target that is none is refused."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeattn.errors import DataError
from edgeattn.printable import excerpt

NO_CLASS = -1


def number(value: Any) -> float:
    """A real number or a truth value as a float; NaN for anything else."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, (numbers.Real, np.bool_)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def target_number(value: Any) -> float:
    """A finite number.

    Raises:
        DataError: if it is none.
    """
    found = number(value)
    if not math.isfinite(found):
        raise DataError(f"a target here is a finite number, got {excerpt(value)}")
    return found


def class_index(value: Any, classes: int | None = None) -> int:
    """A whole number from 0, below ``classes`` if given; :data:`NO_CLASS` for anything else."""
    found = number(value)
    if not math.isfinite(found) or found < 0 or found != int(found) or (classes is not None and found >= classes):
        return NO_CLASS
    return int(found)


def target_class(value: Any, classes: int | None = None) -> int:
    """The class of a target.

    Raises:
        DataError: if it is none.
    """
    found = class_index(value, classes)
    if found == NO_CLASS:
        below = "" if classes is None else f" below {classes}"
        raise DataError(f"a target here is a class: a whole number from 0{below}, got {excerpt(value)}")
    return found


def target_truth(value: Any) -> bool:
    """Whether a target is positive: true or 1, false or 0.

    Raises:
        DataError: if it is neither.
    """
    found = number(value)
    if found not in (0.0, 1.0):
        raise DataError(f"a target here is 1 (positive) or 0, got {excerpt(value)}")
    return found == 1.0


def text(value: Any) -> str | None:
    """A text; None for anything else."""
    return str(value) if isinstance(value, str) else None


def target_texts(value: Any) -> list[str]:
    """The accepted texts: one text, or a sequence of at least one.

    Raises:
        DataError: if it is neither.
    """
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, Sequence) or not found or not all(isinstance(one, str) for one in found):
        raise DataError(f"a target here is a text, or a list of accepted texts, got {excerpt(value)}")
    return [str(one) for one in found]


def floats(value: Any) -> np.ndarray:
    """Numbers as a float64 array of their shape; None becomes NaN.

    Raises:
        DataError: if they are no numbers, or rows of different lengths.
    """
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"expected numbers, got {excerpt(value)}") from error


def same_shape(answer: np.ndarray, target: np.ndarray) -> None:
    """Compare two shapes.

    Raises:
        DataError: if they differ.
    """
    if answer.shape != target.shape:
        raise DataError(f"an answer of shape {answer.shape} does not fit a target of shape {target.shape}")
