"""Gates at their edges."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from edgeattn.evaluation.accuracy import Score, accuracy
from edgeattn.evaluation.parity import OutputParity, Parity
from edgeattn.profiling.figures import Clocks, Energy, Latency, Memory, Profile, Realtime
from edgeattn.profiling.stability import Trend
from edgeattn.results.gates import (
    accuracy_failures,
    clock_failures,
    deadline_failures,
    executed_failures,
    parity_failures,
    parsed_failures,
    size_failures,
    timing_notes,
)


def score(metric: str, value: float) -> Score:
    return Score(metric, value, (value, value), (0.0,), (1.0,), higher_is_better=metric != "wer")


@pytest.mark.parametrize(
    ("precision", "max_abs", "decibels", "passes"),
    [
        ("fp32", 1e-4, 40.0, True),
        ("fp32", 1e-4, 39.9, False),
        ("fp32", 1e-6, -300.0, True),
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
    latency = Latency(
        kind="measured",
        p50_ms=1.0,
        p90_ms=1.0,
        p99_ms=p99_ms,
        max_ms=p99_ms,
        runs=10,
        threads=1,
        warmup_ms=1.0,
        load_ms=1.0,
        affinity=(0,),
    )
    return Profile(
        device="x",
        backend="openvino",
        engine_version="1",
        latency=latency,
        realtime=realtime(misses) if streams else None,
        memory=Memory(None, 1, 1),
        executed={},
    )


def realtime(misses: int | None) -> Realtime:
    return Realtime(
        hop_ms=320.0,
        deadline_ms=300.0,
        rtf=0.1,
        misses=misses,
        chunks=10,
        max_backlog_ms=1.0,
        paced=misses is not None,
    )


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


def test_misses_are_told_with_their_interval_for_each_run() -> None:
    loaded = replace(realtime(4), neighbours=2, packet=480, miss_rate_ci95=(0.168, 0.687))
    alone = replace(realtime(0), packet=480, loaded=loaded)
    measured = replace(profile(10.0), realtime=alone)
    (failure,) = deadline_failures(measured, None)
    assert failure.wanted == "every chunk within 300 ms beside 2 busy neighbours"
    assert failure.got == "4 of 10 late (17 to 69 % with 95 % confidence, Wilson)"
    calls = replace(profile(10.0), realtime=replace(loaded, packet=None, neighbours=0, loaded=loaded))
    assert [failure.wanted for failure in deadline_failures(calls, None)] == [
        "every call within 300 ms",
        "every call within 300 ms beside 2 busy neighbours",
    ]


HELD = Clocks(2400.0, 2400.0, 0.01, 0, None, 60.0, True)


@pytest.mark.parametrize(
    ("clocks", "got"),
    [
        (replace(HELD, fall=0.12, held=False), "a clock that fell by 12 % (paced): the run is invalid"),
        (replace(HELD, throttle_events=3, held=False), "3 throttling events (paced): the run is invalid"),
        (replace(HELD, capped=True, held=False), "a clock capped by the firmware (paced): the run is invalid"),
    ],
)
def test_a_run_whose_clock_fell_is_invalid_and_not_slow(clocks: Clocks, got: str) -> None:
    base = profile(10.0, 0)
    assert base.realtime is not None
    fallen = replace(base, realtime=replace(base.realtime, clocks=clocks))
    (failure,) = clock_failures(fallen)
    assert (failure.gate, failure.got) == ("clock", got)
    assert deadline_failures(fallen, None) == []
    held = replace(base, realtime=replace(base.realtime, clocks=HELD), latency=replace(base.latency, clocks=HELD))
    assert clock_failures(held) == clock_failures(base) == []
    assert clock_failures(replace(base, latency=replace(base.latency, clocks=clocks)))
    beside = replace(base.realtime, loaded=replace(base.realtime, neighbours=1, clocks=clocks))
    assert "beside 1 busy neighbour)" in clock_failures(replace(base, realtime=beside))[0].got


def test_notes_tell_noise_growth_the_loaded_run_and_energy() -> None:
    base = profile(10.0, 0)
    assert base.realtime is not None
    assert timing_notes(base) == timing_notes(profile(10.0, streams=False)) == ()
    loaded = replace(base.realtime, neighbours=3, p99_ms=12.0, p99_trend=Trend(1.5, (1.0, 2.0)))
    full = replace(
        base,
        latency=replace(base.latency, noise=0.08, noisy=True),
        realtime=replace(base.realtime, p99_ms=10.0, p99_trend=Trend(1.0, (-1.0, 3.0)), loaded=loaded),
        energy=Energy("ina3221", ("VDD_IN",), 0.0123, 9.5, 5.25, 200, 3.0),
    )
    assert timing_notes(full) == (
        "noise: the median wanders by 8 %; another run may give another p50",
        "p99 grows by 1.5 ms a minute (1 to 2), paced beside 3 busy neighbours",
        "0 of 10 late, p99 12.00 ms, paced beside 3 busy neighbours",
        "energy: 12.3 mJ a call (9.50 W, 5.25 W idle; ina3221)",
    )


@pytest.mark.parametrize(("size", "limit", "passes"), [(10, None, True), (10, 10, True), (11, 10, False)])
def test_size_gate(size: int, limit: int | None, passes: bool) -> None:
    assert (not size_failures(size, limit)) == passes


@pytest.mark.parametrize(
    ("precision", "dtypes", "passes"),
    [
        ("int8", {"int8": 3, "float32": 9}, True),
        ("int8", {"uint8": 3}, True),
        ("int8", {"float32": 9}, False),
        ("int8", {"int64": 9}, False),
        ("int4", {"float32": 9}, False),
        ("int4", {"int4": 9}, True),
        ("fp32", {"float32": 9}, True),
        ("fp16", {"float32": 9}, True),
    ],
)
def test_int8_that_executes_in_float_is_no_int8(precision: str, dtypes: dict[str, int], passes: bool) -> None:
    assert (not executed_failures(precision, {"MatMul": dtypes})) == passes


FUSED_TO_FLOAT = {  # what ONNX Runtime made of a Q/DQ file whose products it had fused with their bias
    "QuantizeLinear": {"float32": 46},
    "DequantizeLinear": {"int8": 54, "uint8": 42},
    "Gemm": {"float32": 42},
    "MatMul": {"float32": 8},
}
LAYERS = {f"blocks.{i}": "int8" for i in range(42)}


@pytest.mark.parametrize("treatments", [None, LAYERS])
def test_integers_that_are_only_widened_are_no_int8(treatments: dict[str, str] | None) -> None:
    (failure,) = executed_failures("int8", FUSED_TO_FLOAT, treatments)
    assert failure.gate == "executed"
    assert "42 Gemm float32, 8 MatMul float32" in failure.got
    assert "DequantizeLinear" not in failure.got


@pytest.mark.parametrize(("narrow", "passes"), [(42, True), (38, True), (37, False), (30, False), (0, False)])
def test_nine_of_ten_layers_must_execute_in_integers(narrow: int, passes: bool) -> None:
    census = {"MatMulIntegerToFloat": {"uint8": narrow}, "MatMul": {"float32": 50 - narrow}}
    failures = executed_failures("int8", census, LAYERS)
    assert (not failures) == passes
    if failures:
        assert "38 integer products for 42 of 42 layers in int8" in failures[0].wanted


def test_layers_that_the_plan_keeps_in_float_are_not_asked_for() -> None:
    treatments = {f"blocks.{i}": "int8" if i < 10 else "float" for i in range(42)}
    census = {"FULLY_CONNECTED": {"int8": 10, "float32": 32}, "BATCH_MATMUL": {"float32": 8}}
    assert executed_failures("int8", census, treatments) == []
    assert executed_failures("int8", {"FULLY_CONNECTED": {"int8": 8, "float32": 34}}, treatments)


@pytest.mark.parametrize(("narrow", "passes"), [(28, True), (26, True), (25, False)])
def test_products_that_an_engine_fused_count_by_their_share(narrow: int, passes: bool) -> None:
    # query, key and value in one: 28 products of 42 layers
    census = {"FullyConnected": {"int8": narrow, "float32": 28 - narrow}, "MVN": {"float32": 9}}
    assert (not executed_failures("int8", census, LAYERS)) == passes


@pytest.mark.parametrize(
    "census",
    [
        {"FULLY_CONNECTED": {"float32": 42}, "DEQUANTIZE": {"int8": 42}},
        {"FullyConnected": {"int8": 42}},
        {"MatMulNBits": {"float32": 42}},
    ],
)
@pytest.mark.parametrize("treatment", ["int8-weights", "int4-weights"])
def test_layers_with_narrow_weights_alone_may_compute_in_float(
    treatment: str, census: dict[str, dict[str, int]]
) -> None:
    assert executed_failures("int8", census, dict.fromkeys(LAYERS, treatment)) == []


def test_packed_weights_that_a_profile_leaves_out_are_known_by_their_operation() -> None:
    assert executed_failures("int4", {"MatMulNBits": {"float32": 42}}) == []


def test_where_no_product_is_known_any_integer_operation_is_enough() -> None:
    engine = {"kgen": {"float16": 9}, "CaskGemm": {"int8": 42}}
    assert executed_failures("int8", engine, LAYERS) == []
    (failure,) = executed_failures("int8", {"kgen": {"float16": 9}}, LAYERS)
    assert failure.got == "only 9 kgen float16"


def test_a_failure_is_one_sentence() -> None:
    (failure,) = size_failures(11, 10)
    assert str(failure) == "size: wanted at most 10 bytes, got 11 bytes"


@pytest.mark.parametrize(
    ("network", "passed"),
    [
        (None, True),  # nothing parsed it
        ({"quantize": {"int8": 1}, "dequantize": {"half": 3}, "matrix_multiply": {"half": 2}}, True),
        ({"dequantize": {"half": 3}, "matrix_multiply": {"half": 2}}, False),  # no activation is int8
        ({"quantize": {"int8": 1}, "dequantize": {"half": 1}}, False),  # a weight was folded to float
        ({"matrix_multiply": {"half": 2}}, False),
    ],
)
def test_a_parsed_network_must_hold_what_the_plan_quantizes(
    network: dict[str, dict[str, int]] | None, passed: bool
) -> None:
    found = parsed_failures({"a": "int8", "b": "int8", "c": "float"}, network)
    assert (found == []) == passed
    assert all(failure.gate == "executed" for failure in found)


def test_weights_alone_need_no_quantized_activation() -> None:
    assert parsed_failures({"a": "int8-weights"}, {"dequantize": {"half": 1}}) == []
