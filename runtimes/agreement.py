"""How far one array is from another, in one figure that no huge constant can hide anything from.

Outputs hold marks beside their values: hidden logits are -1e9, -1e30, the lowest float32 or -inf, padded ids the
largest integer. In ``sum r^2 / sum (r - o)^2`` over everything such a mark is all of the signal, and of a model with
entirely other weights the ratio says 180 dB. So marks are told apart by their size and judged by themselves: each must
come out as the same mark, and the ratio is that of the other entries.

- Infinities of one sign are equal, and NaN is equal to NaN; any other pair with one of them makes the figure the worst.
- Finite marks are entries of at least 64 and at least 8 times all that is smaller, in steps of powers of two. They
  have a ratio of their own, of relative errors, and the lower of both is the figure: a real value of that size is held
  to itself. One that is off by more than half of itself (an integer: at all) is another mark or none, and its whole
  difference is noise beside the other entries.
- Integers and booleans are measured from the most common value of the reference's first array, so that ids which are
  nearly all padding, or a mask which is nearly all true, are no signal.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

SQNR_LIMIT = 300.0  # dB, about what float64 resolves: stands for "equal", and keeps JSON free of infinities
MARK_EXPONENT = 7  # np.frexp's of 64: a mark is as large at least
MARK_GAP = 4  # powers of two: the smallest mark is 8 times the largest other entry at least
SAME_MARK = 0.5  # relative
_ZERO = -1100  # stands for the exponent of 0, below that of the smallest float64
_BINS = 2200


def decibels(signal: float, noise: float) -> float:
    """The ratio of two sums of squares in dB, within +-SQNR_LIMIT."""
    if noise == 0:
        return SQNR_LIMIT
    if signal == 0 or not math.isfinite(noise):
        return -SQNR_LIMIT
    if not math.isfinite(signal):  # beyond 1e154, where squares are no numbers: the noise is one
        return SQNR_LIMIT
    return min(SQNR_LIMIT, max(-SQNR_LIMIT, 10 * (math.log10(signal) - math.log10(noise))))


def sqnr_db(reference: np.ndarray, other: np.ndarray) -> float:
    """Signal to quantization noise ratio of the entries that are no marks, in dB within +-SQNR_LIMIT.

    Returns:
        10 log10(sum r^2 / sum (r - o)^2); SQNR_LIMIT for equal arrays, -SQNR_LIMIT where one holds NaN or an infinity
        and the other does not, or where the reference is all zero and differs.

    >>> round(sqnr_db(np.array([1.0, 2.0]), np.array([1.0, 2.1])), 2)
    26.99
    >>> round(sqnr_db(np.array([1.0, 2.0, -1e9]), np.array([1.0, 2.1, -1e9])), 2)
    26.99
    """
    agreement = Agreement()
    agreement.add(reference, other)
    return agreement.sqnr_db()


def marks(reference: np.ndarray) -> np.ndarray:
    """Which entries of one array are marks, or no numbers: bool, of its shape."""
    wide = np.asarray(reference, np.float64)
    finite = np.isfinite(wide)
    exponents = _exponents(np.abs(np.where(finite, wide, 0.0)))
    filled = np.flatnonzero(np.bincount(exponents[finite].ravel(), minlength=_BINS))
    return ~finite | (exponents >= _first_mark(filled))


def _most_common(values: np.ndarray) -> float:
    found, counts = np.unique(values, return_counts=True)
    return float(found[counts.argmax()]) if found.size else 0.0


def _exponents(size: np.ndarray) -> np.ndarray:
    """The bin of each magnitude."""
    return np.where(size > 0, np.frexp(size)[1], _ZERO) - _ZERO


def _first_mark(filled: np.ndarray) -> int:
    """The first bin of marks, of ascending bins that hold anything; the number of bins where there are none."""
    for below, above in itertools.pairwise(filled.tolist()):
        if above + _ZERO >= MARK_EXPONENT and above - below >= MARK_GAP:
            return int(above)
    return _BINS


class Agreement:
    """Accumulates the comparison of one output call by call, in constant memory: sums by power of two."""

    def __init__(self) -> None:
        self._entries = 0
        self._same = 0  # infinities and NaN that both have
        self._broken = False
        self._base: float | None = None
        # Rows: of entries within SAME_MARK of the reference, and of the others.
        self._count = np.zeros((2, _BINS))
        self._signal = np.zeros((2, _BINS))
        self._noise = np.zeros((2, _BINS))
        self._largest = np.zeros((2, _BINS))
        self._relative = np.zeros(_BINS)  # squares, of the former
        self._largest_relative = np.zeros(_BINS)

    def add(self, reference: np.ndarray, other: np.ndarray) -> None:
        """Compare one pair of arrays of equal shape."""
        want, got = np.asarray(reference, np.float64).ravel(), np.asarray(other, np.float64).ravel()
        self._entries += want.size
        finite = np.isfinite(want) & np.isfinite(got)
        if not finite.all():
            same = (want == got) | (np.isnan(want) & np.isnan(got))
            self._broken |= bool((~finite & ~same).any())
            self._same += int((~finite & same).sum())
            want, got = want[finite], got[finite]
        if not want.size:
            return
        error, same_mark = got - want, SAME_MARK
        if np.asarray(reference).dtype.kind in "iub":
            if self._base is None:
                self._base = _most_common(want[~marks(want)])
            want = want - self._base
            same_mark = 0.0
        size = np.abs(want)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            relative = np.where(size > 0, np.abs(error) / size, np.where(error == 0, 0.0, np.inf))
            group = (relative > same_mark).astype(np.int64)
            exponent = _exponents(size)
            place = group * _BINS + exponent
            self._count += np.bincount(place, None, 2 * _BINS).reshape(2, _BINS)
            self._signal += np.bincount(place, want * want, 2 * _BINS).reshape(2, _BINS)
            self._noise += np.bincount(place, error * error, 2 * _BINS).reshape(2, _BINS)
            np.maximum.at(self._largest.reshape(-1), place, np.abs(error))
            near = group == 0
            self._relative += np.bincount(exponent[near], relative[near] ** 2, _BINS)
            np.maximum.at(self._largest_relative, exponent[near], relative[near])

    def _marks(self) -> int:
        return _first_mark(np.flatnonzero(self._count.sum(0)))

    def sqnr_db(self) -> float:
        """See :func:`sqnr_db`."""
        if self._broken:
            return -SQNR_LIMIT
        first = self._marks()
        signal = self._signal[:, :first].sum()
        noise = self._noise[:, :first].sum() + self._noise[1, first:].sum()
        of_marks = decibels(float(self._count[0, first:].sum()), float(self._relative[first:].sum()))
        return min(decibels(float(signal), float(noise)), of_marks)

    def max_abs(self) -> float:
        """The largest difference, of marks relative to themselves; infinite where one holds NaN or infinity alone."""
        if self._broken:
            return math.inf
        first = self._marks()
        relative = self._largest_relative[first:].max(initial=0.0)
        return float(max(self._largest[:, :first].max(initial=0.0), self._largest[1].max(), relative))

    def left_out(self) -> float:
        """The share of entries that are marks in both, 0 to 1, and no part of the ratio."""
        marks = self._same + float(self._count[0, self._marks() :].sum())
        return marks / self._entries if self._entries else 0.0
