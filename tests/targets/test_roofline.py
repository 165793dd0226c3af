"""The roofline: each term against its closed form, and nothing guessed where a figure is missing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.errors import InputError, UnsupportedError
from edgeattn.spec import from_json, to_json
from edgeattn.targets import CoreCluster, Cpu, Memory, Peaks, Target, get_target
from edgeattn.targets.roofline import CPU, GPU, Efficiency, Estimate, OpFigures, Range, estimate, peak_rate

GIGA = 1e9
BOARD = Target(
    name="board",
    title="a board",
    backends=("litert", "onnxruntime"),
    precisions={"litert": ("fp32", "int8"), "onnxruntime": ("fp32",)},
    cpu=Cpu("aarch64", 4, ("neon",), "an example"),
    memory=Memory("an example", bytes=1000, bytes_per_second=10 * GIGA),
    peaks=Peaks("an example", fp32=40 * GIGA, int8=160 * GIGA),
)
EXACT = Efficiency(
    Range(0.25, 0.5, 1.0), Range(0.5, 0.8, 1.0), Range(1e-6, 2e-6, 4e-6), "an example", {"int8": Range(0.1, 0.2, 0.4)}
)


def op(flops: float = 0.0, moved: float = 0.0, precision: Any = "fp32", kernels: int = 1) -> OpFigures:
    return OpFigures("layer", "MatMul", flops, moved, precision, kernels)


def told(ops: list[OpFigures], **changes: Any) -> Estimate:
    return estimate(ops, replace(BOARD, **changes), "litert", 4, EXACT)


def test_a_product_is_bound_by_its_operations() -> None:
    found = told([op(flops=20e6, moved=1e3)])
    # 20e6 / (0.5 x 40e9) = 1 ms and a kernel of 2 us; at the ends eta is 1 and 0.25, the kernel 1 and 4 us.
    assert found.mid_ms == pytest.approx(1.002, rel=1e-9)
    assert found.low_ms == pytest.approx(0.501, rel=1e-9)
    assert found.high_ms == pytest.approx(2.004, rel=1e-9)
    assert found.bound_by == {"compute": 1.0}
    assert found.kind == "estimated"


def test_a_large_table_is_bound_by_the_bandwidth() -> None:
    found = told([op(flops=1e3, moved=8e6)])
    assert found.mid_ms == pytest.approx(8e6 / (0.8 * 10e9) * 1e3 + 2e-3, rel=1e-9)
    assert found.low_ms == pytest.approx(8e6 / 10e9 * 1e3 + 1e-3, rel=1e-9)
    assert found.high_ms == pytest.approx(8e6 / 5e9 * 1e3 + 4e-3, rel=1e-9)
    assert found.bound_by == {"memory": 1.0}


def test_a_small_op_is_bound_by_starting_its_kernel_and_a_fused_one_starts_none() -> None:
    found = told([op(flops=10, moved=10, kernels=3)])
    assert found.mid_ms == pytest.approx(3 * 2e-3, rel=1e-3)
    assert found.bound_by == {"launch": 1.0}
    fused = told([op(flops=20e6, kernels=0)])
    assert fused.mid_ms == pytest.approx(1.0, rel=1e-9)


def test_without_overlap_computing_and_moving_add_up() -> None:
    both = op(flops=20e6, moved=8e6, kernels=0)  # 1 ms of computing and 1 ms of moving
    assert told([both]).mid_ms == pytest.approx(1.0, rel=1e-9)
    found = estimate([both], BOARD, "litert", 4, replace(EXACT, overlap=False))
    assert found.mid_ms == pytest.approx(2.0, rel=1e-9)
    assert found.low_ms == pytest.approx(0.5 + 0.8, rel=1e-9)
    assert found.high_ms == pytest.approx(2.0 + 1.6, rel=1e-9)


def test_each_precision_has_its_own_rate_and_share() -> None:
    found = told([op(flops=32e6, precision="int8", kernels=0)])
    assert found.mid_ms == pytest.approx(32e6 / (0.2 * 160e9) * 1e3, rel=1e-9)


def test_operations_add_up_and_the_slowest_binds() -> None:
    small, large = op(flops=20e6, kernels=0), replace(op(moved=24e6, kernels=0), name="table")
    found = told([small, large])
    assert found.mid_ms == pytest.approx(1.0 + 3.0, rel=1e-9)
    assert (found.binds.figures.name, found.binds.bound) == ("table", "memory")
    assert found.bound_by == pytest.approx({"memory": 0.75, "compute": 0.25})
    assert list(found.bound_by) == ["memory", "compute"]


figures = st.builds(
    op,
    st.floats(0, 1e12),
    st.floats(0, 1e9),
    st.sampled_from(["fp32", "int8"]),
    st.integers(1, 5),
)


@given(st.lists(figures, min_size=1, max_size=8), st.integers(1, 4))
def test_a_range_ascends_and_its_shares_are_a_whole(ops: list[OpFigures], threads: int) -> None:
    found = estimate(ops, BOARD, "litert", threads, EXACT)
    assert 0 < found.low_ms <= found.mid_ms <= found.high_ms < math.inf
    assert sum(found.bound_by.values()) == pytest.approx(1.0)
    assert sum(part.mid_ms for part in found.ops) == pytest.approx(found.mid_ms)


@given(st.lists(figures, min_size=1, max_size=8), figures)
def test_more_work_never_takes_less(ops: list[OpFigures], more: OpFigures) -> None:
    assert told([*ops, more]).mid_ms >= told(ops).mid_ms


def test_threads_take_the_fastest_cores_first() -> None:
    cores = (CoreCluster("small", 3, 1e9, fp32=8), CoreCluster("large", 1, 2e9, fp32=16))
    board = replace(BOARD, cpu=replace(BOARD.cpu, clusters=cores))
    rates = [peak_rate(board, "litert", "fp32", threads) for threads in (1, 2, 4, 8)]
    assert rates == [32e9, 40e9, 56e9, 56e9]


def test_without_kinds_of_cores_every_thread_has_an_equal_share_of_the_peak() -> None:
    assert [peak_rate(BOARD, "litert", "fp32", threads) for threads in (1, 2, 4, 8)] == [10e9, 20e9, 40e9, 40e9]


def test_a_processor_without_float16_computes_it_as_float32_and_says_so() -> None:
    found = told([op(flops=20e6, precision="fp16", kernels=0)])
    assert found.mid_ms == pytest.approx(1.0, rel=1e-9)
    assert "float16 is computed as float32 there" in found.notes


def test_more_threads_than_cores_are_told() -> None:
    assert any("8 threads were asked for, 4 cores" in n for n in estimate([op(1e6)], BOARD, "litert", 8).notes)


def test_a_jetson_computes_on_its_gpu_with_tensorrt_and_on_its_cores_with_the_rest() -> None:
    jetson = get_target("jetson")
    assert peak_rate(jetson, "tensorrt", "fp16", 1) == pytest.approx(1.024e13)
    assert peak_rate(jetson, "onnxruntime", "fp32", 2) == pytest.approx(2 * 1.5e9 * 16)


def test_a_vit_on_a_jetson_takes_what_others_measured_there() -> None:
    # ViT-B/16 in float16, 35.1 GFLOP: 5.68 ms on an Orin Nano Super with TensorRT 10.3 (figures of onnxsim's README).
    found = estimate([op(35.1e9, 172e6, "fp16", 100)], get_target("jetson-orin-nano-super"), "tensorrt")
    assert found.low_ms <= 5.68 <= found.high_ms


@pytest.mark.parametrize(("need", "fits"), [(999, True), (1000, True), (1001, False), (None, None)])
def test_memory_is_compared_with_the_devices(need: int | None, fits: bool | None) -> None:
    found = estimate([op(1e6)], BOARD, "litert", needs_bytes=need)
    assert (found.needs_bytes, found.fits) == (need, fits)


def test_whether_it_fits_is_unknown_where_the_memory_is() -> None:
    board = replace(BOARD, memory=replace(BOARD.memory, bytes=None))
    assert estimate([op(1e6)], board, "litert", needs_bytes=1).fits is None


@pytest.mark.parametrize(
    ("changes", "engine", "precision", "told_field"),
    [
        ({"peaks": None}, "litert", "fp32", r"\[peaks\] fp32"),
        ({"peaks": Peaks("an example", fp32=1e9)}, "litert", "int8", r"\[peaks\] int8"),
        ({"memory": Memory("unknown")}, "litert", "fp32", r"\[memory\] bytes_per_second"),
    ],
)
def test_a_missing_figure_is_refused_by_its_field(
    changes: dict[str, Any], engine: str, precision: str, told_field: str
) -> None:
    with pytest.raises(UnsupportedError, match=rf"board: its latency cannot be estimated, {told_field} is not known"):
        estimate([op(1e6, 1e6, precision)], replace(BOARD, **changes), engine)


def test_a_figure_that_no_operation_needs_may_be_missing() -> None:
    board = replace(BOARD, peaks=Peaks("an example", fp32=40 * GIGA), memory=Memory("unknown"))
    assert estimate([op(20e6)], board, "litert").mid_ms > 0


@pytest.mark.parametrize(
    ("name", "engine", "precision", "told_field"),
    [
        ("jetson-thor", "tensorrt", "int8", r"\[peaks\] int8"),
        ("jetson-thor", "onnxruntime", "fp32", r"\[\[cpu.clusters\]\] fp32"),
        ("intel-core-ultra-258v", "openvino", "fp32", r"\[peaks\] fp32"),
        ("x86-avx2", "openvino", "fp32", r"\[memory\] bytes_per_second"),
    ],
)
def test_a_shipped_target_whose_rates_nobody_knows_is_refused(
    name: str, engine: str, precision: str, told_field: str
) -> None:
    with pytest.raises(UnsupportedError, match=rf"{name}: .*{told_field}"):
        estimate([op(1e6, 1e6, precision)], get_target(name), engine)


def test_what_cannot_be_estimated_is_refused() -> None:
    with pytest.raises(InputError, match="a graph without operations"):
        estimate([], BOARD, "litert")
    with pytest.raises(InputError, match="board has no engine 'tensorrt'; it has litert, onnxruntime"):
        estimate([op(1e6)], BOARD, "tensorrt")
    with pytest.raises(InputError, match="threads must be at least 1, got 0"):
        estimate([op(1e6)], BOARD, "litert", 0)
    with pytest.raises(InputError, match="nothing to estimate"):
        estimate([op(kernels=0)], BOARD, "litert")


@pytest.mark.parametrize("bad", [{"flops": -1.0}, {"bytes": math.nan}, {"flops": math.inf}, {"kernels": -1}])
def test_impossible_figures_of_an_operation_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be 0 or more"):
        replace(op(), **bad)
    with pytest.raises(ValueError, match="precision of 'layer' must be one of fp32, fp16, int8"):
        op(precision="int4")


@pytest.mark.parametrize("bad", [(0, 1, 2), (2, 1, 3), (1, 3, 2), (1, 1, math.inf), (math.nan, 1, 1)])
def test_a_range_that_does_not_ascend_is_refused(bad: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="must be positive and ascend"):
        Range(*bad)


def test_the_defaults_say_that_nothing_was_calibrated() -> None:
    assert estimate([op(1e6)], BOARD, "litert").source == CPU.source
    assert estimate([op(1e6)], get_target("jetson"), "tensorrt").source == GPU.source
    assert "not calibrated" in CPU.source
    assert "not calibrated" in GPU.source


def test_an_estimate_goes_through_json_unchanged() -> None:
    found = told([op(20e6, 1e3), op(moved=1e6)])
    assert from_json(Estimate, to_json(found)) == found
