"""Gates at their edges."""

from __future__ import annotations

import math

import pytest

from edgeattn.evaluation.accuracy import Score, accuracy
from edgeattn.evaluation.parity import OutputParity, Parity
from edgeattn.gates import (
    accuracy_failures,
    deadline_failures,
    executed_failures,
    parity_failures,
    size_failures,
)
from edgeattn.profiling.figures import Latency, Memory, Profile, Realtime


def score(metric: str, value: float) -> Score:
    return Score(metric, value, (value, value), (0.0,), (1.0,))


@pytest.mark.parametrize(
    ("precision", "max_abs", "decibels", "passes"),
    [
        ("fp32", 1e-4, 20.0, True),
        ("fp32", 1.1e-4, 90.0, True),
        ("fp32", 1.1e-4, 89.9, False),
        ("fp16", 1.0, 50.0, True),
        ("fp16", 1e-9, 49.9, False),
        ("int8", 9.0, 1.0, True),
        ("fp32", math.inf, -300.0, False),
        ("fp16", math.inf, -300.0, False),
        ("int8", math.inf, -300.0, False),
    ],
)
def test_parity_gate(precision: str, max_abs: float, decibels: float, passes: bool) -> None:
    failures = parity_failures(Parity("x", 1, {"y": OutputParity(max_abs, decibels)}), precision)
    assert (not failures) == passes
    assert all(failure.gate == "parity" and "y" in failure.wanted for failure in failures)


@pytest.mark.parametrize(
    ("metric", "source", "deployed", "passes"),
    [
        ("wer", 0.05, 0.055, True),
        ("wer", 0.05, 0.0551, False),
        ("wer", 0.05, 0.01, True),
        ("accuracy", 0.90, 0.895, True),
        ("accuracy", 0.90, 0.8949, False),
        ("accuracy", 0.90, 0.99, True),
    ],
)
def test_accuracy_gate_in_points(metric: str, source: float, deployed: float, passes: bool) -> None:
    figures = accuracy(score(metric, source), score(metric, deployed), "data")
    assert (not accuracy_failures(figures, 0.5)) == passes


def test_accuracy_gate_needs_a_source_to_compare_with() -> None:
    assert accuracy_failures(accuracy(None, score("wer", 0.9), "data"), 0.5) == []


def profile(p99_ms: float, misses: int | None = None, streams: bool = True) -> Profile:
    latency = Latency("measured", 1.0, 1.0, p99_ms, p99_ms, 10, 1, 1.0, 1.0, (0,))
    realtime = Realtime(320.0, 300.0, 0.1, misses, 10, 1.0, misses is not None) if streams else None
    return Profile("x", "openvino", "1", latency, realtime, Memory(None, 1, 1), {})


@pytest.mark.parametrize(
    ("measured", "deadline_ms", "passes"),
    [
        (profile(10.0, 0), None, True),
        (profile(10.0, 1), None, False),
        (profile(10.0, 0), 5.0, False),
        (profile(10.0, 0), 10.0, True),
        (profile(301.0), None, False),  # unpaced, and slower than the next chunk comes
        (profile(299.0), None, True),
        (profile(1e6, streams=False), None, True),
        (profile(10.0, streams=False), 9.0, False),
    ],
)
def test_deadline_gate(measured: Profile, deadline_ms: float | None, passes: bool) -> None:
    assert (not deadline_failures(measured, deadline_ms)) == passes


@pytest.mark.parametrize(("size", "limit", "passes"), [(10, None, True), (10, 10, True), (11, 10, False)])
def test_size_gate(size: int, limit: int | None, passes: bool) -> None:
    assert (not size_failures(size, limit)) == passes


@pytest.mark.parametrize(
    ("precision", "dtypes", "passes"),
    [
        ("int8", {"int8": 3, "float32": 9}, True),
        ("int8", {"uint8": 3}, True),
        ("int8", {"float32": 9}, False),
        ("fp32", {"float32": 9}, True),
    ],
)
def test_int8_that_executes_in_float_is_no_int8(precision: str, dtypes: dict[str, int], passes: bool) -> None:
    assert (not executed_failures(precision, {"MatMul": dtypes})) == passes


def test_a_failure_is_one_sentence() -> None:
    (failure,) = size_failures(11, 10)
    assert str(failure) == "size: wanted at most 10 bytes, got 11 bytes"
