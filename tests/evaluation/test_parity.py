"""Parity figures against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.evaluation.parity import ParityMeter
from edgeattn.runtimes.agreement import SQNR_LIMIT, sqnr_db


@given(scale=st.floats(1e-6, 1.0), seed=st.integers(0, 99))
def test_sqnr_of_a_scaled_copy_is_its_closed_form(scale: float, seed: int) -> None:
    signal = np.random.default_rng(seed).standard_normal(50)
    # y = (1 + e) x: noise / signal = e^2
    assert sqnr_db(signal, signal * (1 + scale)) == pytest.approx(-20 * math.log10(scale), abs=1e-3)


@pytest.mark.parametrize(
    ("expected", "got", "decibels"),
    [
        ([1.0, 2.0], [1.0, 2.0], SQNR_LIMIT),
        ([0.0, 0.0], [0.0, 0.0], SQNR_LIMIT),
        ([0.0, 0.0], [0.0, 1.0], -SQNR_LIMIT),
        ([1.0, 2.0], [1.0, math.nan], -SQNR_LIMIT),
        ([1.0, 2.0], [1.0, math.inf], -SQNR_LIMIT),
        ([1e200], [1e200 * (1 + 1e-15)], None),
        ([3.0, 4.0], [0.0, 0.0], 0.0),
        ([1e-100], [1e100], -SQNR_LIMIT),
    ],
)
def test_sqnr_at_its_edges(expected: list[float], got: list[float], decibels: float | None) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        value = sqnr_db(np.array(expected), np.array(got))
    assert math.isfinite(value)
    assert -SQNR_LIMIT <= value <= SQNR_LIMIT
    if decibels is not None:
        assert value == pytest.approx(decibels, abs=1e-9)


def test_meter_over_steps_equals_one_comparison_of_everything() -> None:
    rng = np.random.default_rng(0)
    expected = rng.standard_normal((7, 3)).astype(np.float32)
    got = (expected + 1e-3 * rng.standard_normal((7, 3))).astype(np.float32)
    meter = ParityMeter()
    for want, have in zip(expected, got, strict=True):
        meter.add({"y": want}, {"y": have, "extra": have})
    result = meter.result("the test")
    assert (result.reference, result.steps, set(result.outputs)) == ("the test", 7, {"y"})
    assert result.outputs["y"].sqnr_db == pytest.approx(sqnr_db(expected, got), abs=1e-9)
    difference = np.abs(got.astype(np.float64) - expected.astype(np.float64)).max()
    assert result.outputs["y"].max_abs == pytest.approx(difference, rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_value_that_is_not_finite_spoils_the_figure_wherever_it_stands(bad: float, place: int) -> None:
    meter = ParityMeter()
    for step in range(3):
        got = np.ones(4, np.float32)
        got[step] = bad if step == place else 1.0
        meter.add({"y": np.ones(4, np.float32)}, {"y": got})
    figures = meter.result("the test").outputs["y"]
    assert figures.max_abs == math.inf
    assert figures.sqnr_db == -SQNR_LIMIT


def test_integer_outputs_are_compared_without_wrapping() -> None:
    meter = ParityMeter()
    meter.add({"y": np.array([0], np.uint8)}, {"y": np.array([255], np.uint8)})
    assert meter.result("the test").outputs["y"].max_abs == 255.0


@pytest.mark.parametrize("got", [{}, {"y": np.ones((1, 4))}])
def test_a_missing_or_misshapen_output_is_refused(got: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"output 'y': expected shape \(4,\)"):
        ParityMeter().add({"y": np.ones(4)}, got)
