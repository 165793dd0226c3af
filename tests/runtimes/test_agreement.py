"""The figure of agreement: closed forms, and no constant that hides what the other entries say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeattn.runtimes.agreement import SQNR_LIMIT, Agreement, marks, sqnr_db

LOWEST = float(np.finfo(np.float32).min)
HIDING = [-1e3, -1e4, -65504.0, -1e9, 1e9, -1e30, LOWEST, -math.inf, math.inf, math.nan]


def logits(seed: int, hidden: float, share: float = 0.5) -> np.ndarray:
    """Random values, the same places of all seeds hidden."""
    values = np.random.default_rng(seed).standard_normal((4, 64)).astype(np.float32)
    values[:, 64 - int(64 * share) :] = hidden
    return values


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("hidden", HIDING)
def test_a_mark_hides_no_other_weights(hidden: float, share: float) -> None:
    expected, other = logits(0, hidden, share), logits(1, hidden, share)
    assert sqnr_db(expected, other) < 5  # independent values: -3 dB
    plain = np.isfinite(expected) & (np.abs(expected) < 100)
    error = (expected[plain] * np.float32(1e-3)).astype(np.float64)
    near = expected.copy()
    near[plain] += error.astype(np.float32)
    assert sqnr_db(expected, near) == pytest.approx(60.0, abs=0.1)  # of y = 1.001 x
    agreement = Agreement()
    agreement.add(expected, near)
    assert agreement.left_out() == pytest.approx(1 - plain.mean())
    assert agreement.max_abs() == pytest.approx(np.abs(error).max(), rel=1e-3)
    np.testing.assert_array_equal(marks(expected), ~plain)


@pytest.mark.parametrize("bias", [-1e4, -1e9])
def test_an_additive_mask_hides_no_other_weights(bias: float) -> None:
    expected, other = logits(0, 0.0), logits(1, 0.0)
    for array, seed in ((expected, 2), (other, 3)):
        array[:, 32:] = bias + 5 * logits(seed, 0.0, 0)[:, 32:]
    assert sqnr_db(expected, other) < 5


@pytest.mark.parametrize("hidden", HIDING)
@pytest.mark.parametrize("instead", [0.0, -1e4, -1e5, math.inf, -math.inf, math.nan])
def test_a_mark_in_one_that_is_another_in_the_other_is_a_difference(hidden: float, instead: float) -> None:
    expected, got = logits(0, hidden), logits(0, hidden)
    got[1, -1] = instead
    if np.array_equal(expected, got, equal_nan=True):
        assert sqnr_db(expected, got) == SQNR_LIMIT
    else:
        agreement = Agreement()
        agreement.add(expected, got)
        assert agreement.sqnr_db() < 30
        assert agreement.max_abs() > 100


def test_large_real_values_are_held_to_their_own_size() -> None:
    expected = logits(0, 0.0, 0)
    expected[:, 0] = 2e4 * (1 + np.abs(logits(5, 0.0, 0)[:, 0]))
    got = expected.copy()
    got[:, 0] *= np.float32(1 + 1e-4)
    assert sqnr_db(expected, got) == pytest.approx(80.0, abs=0.5)
    got[:, 0] = expected[::-1, 0]  # others: no mark stays one
    assert sqnr_db(expected, got) < 15


@pytest.mark.parametrize("hidden", [*HIDING, 0.0])
def test_calls_one_by_one_give_what_all_together_give(hidden: float) -> None:
    expected = np.concatenate([logits(0, hidden), np.full((2, 64), hidden, np.float32)])  # rows of marks alone
    got = expected + np.random.default_rng(9).normal(0, 1e-3, expected.shape).astype(np.float32)
    stepwise, whole = Agreement(), Agreement()
    whole.add(expected, got)
    for want, have in zip(expected, got, strict=True):
        stepwise.add(want, have)
    assert stepwise.sqnr_db() == pytest.approx(whole.sqnr_db(), abs=1e-9)
    assert (stepwise.max_abs(), stepwise.left_out()) == (whole.max_abs(), whole.left_out())


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int32, np.int64])
def test_integers_that_are_nearly_all_the_same_say_only_what_differs(dtype: type) -> None:
    expected: np.ndarray = np.ones(100_000, dtype)
    got: np.ndarray = np.ones(100_000, dtype)
    expected[:10] = got[10:20] = 0
    assert sqnr_db(expected, got) == pytest.approx(10 * math.log10(10 / 20), abs=1e-9)
    assert sqnr_db(expected, expected) == SQNR_LIMIT


def test_the_largest_integer_is_a_mark_and_the_next_smaller_another_value() -> None:
    expected = np.array([3, 17, 5, np.iinfo(np.int32).max, np.iinfo(np.int32).max], np.int32)
    other = np.array([11, 2, 9, np.iinfo(np.int32).max, np.iinfo(np.int32).max], np.int32)
    assert sqnr_db(expected, other) < 10
    off = expected.copy()
    off[-1] -= 1
    agreement = Agreement()
    agreement.add(expected, off)
    assert agreement.max_abs() == 1.0


def test_an_output_of_marks_alone_is_left_out_as_a_whole_and_says_so() -> None:
    agreement = Agreement()
    agreement.add(np.full(8, -math.inf, np.float32), np.full(8, -math.inf, np.float32))
    assert (agreement.sqnr_db(), agreement.max_abs(), agreement.left_out()) == (SQNR_LIMIT, 0.0, 1.0)
