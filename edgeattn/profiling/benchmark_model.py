"""LiteRT's ``benchmark_model`` on a phone: the user's own build of it, for phones without a Python.

Its text is that of tensorflow/lite/tools/benchmark/benchmark_model.cc (BenchmarkLoggingListener::OnBenchmarkEnd,
BenchmarkModel::Run) and of tensorflow/core/util/stats_calculator.h (Stat::OutputToStream), in microseconds and MB; some
builds also print percentiles. It feeds random inputs and shows no output, so what it computes cannot be compared.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeattn.bundle import open_bundle
from edgeattn.engines import LITERT
from edgeattn.errors import DeviceError, UnsupportedError
from edgeattn.printable import excerpt
from edgeattn.targets.devices import Device, Timeouts
from edgeattn.targets.devices.program import PhoneFacts, Program, run_program

SECONDS = 600.0
WARMUP_RUNS = 10
NUMBER = r"([0-9.]+(?:e[+-]?[0-9]+)?)"
RUNS = re.compile(
    rf"count=(\d+)(?: first=\S+)? curr={NUMBER}(?:\(all same\))?"
    rf"(?: min={NUMBER} max={NUMBER} avg={NUMBER} std={NUMBER})?"
    rf"(?: p5={NUMBER} median={NUMBER} p95={NUMBER})?"
)
TIMINGS = re.compile(
    rf"Inference timings in us: Init: {NUMBER}, First inference: {NUMBER}, Warmup \(avg\): {NUMBER}, "
    rf"Inference \(avg\): {NUMBER}"
)
MEMORY = re.compile(rf"(?:Memory footprint delta from the start of the tool|Peak memory footprint) \(MB\): "
                    rf"init={NUMBER} overall={NUMBER}")  # fmt: skip


@dataclass(frozen=True)
class BenchmarkFigures:
    """What ``benchmark_model`` told. What it did not is None; p99 it never tells.

    Attributes:
        runs: timed calls.
        init_ms: from the start to allocated tensors.
        first_ms: the first call of all, which belongs to the warm-up.
        memory_bytes: that the process grew by; the tool itself calls it approximate.
    """

    tool: str
    runs: int
    threads: int
    init_ms: float | None
    first_ms: float | None
    mean_ms: float | None
    std_ms: float | None
    min_ms: float | None
    max_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    init_memory_bytes: int | None
    memory_bytes: int | None


def benchmark_on(
    device: Device,
    bundle: Path,
    binary: Path,
    runs: int,
    threads: int,
    seconds: float = SECONDS,
    timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
) -> tuple[BenchmarkFigures, PhoneFacts]:
    """Time the graph of a TFLite bundle on a phone.

    Args:
        binary: ``benchmark_model``, built for the phone.
        runs: timed calls; it makes more where they take less than a second together, fewer where they take minutes.
        seconds: that it may take.

    Raises:
        UnsupportedError: for a bundle of another engine or of several graphs, and as
            :func:`edgeattn.targets.devices.program.run_program`.
        EdgeattnError: as that, and as :func:`edgeattn.bundle.open_bundle`.
        DeviceError: also for a text that is not that of ``benchmark_model``.
    """
    with open_bundle(bundle) as opened:
        manifest = opened.manifest
        if manifest.backend != LITERT.name:
            raise UnsupportedError(
                f"{bundle}: benchmark_model runs TFLite files and this bundle is for {manifest.backend}; give a bundle "
                "of a target such as mobile, or a Python on the phone, as adb:SERIAL/path/of/python3"
            )
        if len(manifest.models) != 1:
            raise UnsupportedError(
                f"{bundle}: benchmark_model times the first graph of a file and this bundle has {len(manifest.models)} "
                f"({', '.join(manifest.models)}); give a Python on the phone, as adb:SERIAL/path/of/python3"
            )
        graph = opened.file(next(iter(manifest.models.values())))
        arguments = (
            "--graph={graph}",
            f"--num_threads={threads}",
            f"--num_runs={runs}",
            f"--warmup_runs={WARMUP_RUNS}",
            "--enable_op_profiling=false",
        )
        text, facts = run_program(device, Program(binary, arguments, seconds, {"graph": graph}), timeouts)
    return figures_of(text, threads, device.text), facts


def figures_of(text: str, threads: int, name: str) -> BenchmarkFigures:
    """Read what ``benchmark_model`` wrote.

    Args:
        name: the device, for messages.

    Raises:
        DeviceError: if the timings are not in it.
    """
    timings = TIMINGS.search(text)
    counts = list(RUNS.finditer(text))  # of the warm-up, then of the timed calls
    if timings is None or not counts:
        last = (text.strip().splitlines() or ["nothing"])[-1]
        raise DeviceError(
            f"{name}: what ran there is no benchmark_model of LiteRT: it told no timings, at last {excerpt(last)}"
        )
    try:
        return _figures(timings, counts[-1], MEMORY.search(text), threads)
    except (ValueError, OverflowError) as error:  # 1.2.3, 1e999, thousands of digits
        raise DeviceError(f"{name}: what ran there told timings that are no numbers: {error}") from error


def _figures(
    timings: re.Match[str], counts: re.Match[str], memory: re.Match[str] | None, threads: int
) -> BenchmarkFigures:
    count, same, smallest, largest, mean, deviation, _, median, p95 = counts.groups()
    init, first, _, mean_of_all = timings.groups()
    if mean is None:  # all the same, which it says with one number
        smallest = largest = same
        deviation = "0" if int(count) > 1 else None
    return BenchmarkFigures(
        tool="benchmark_model",
        runs=int(count),
        threads=threads,
        init_ms=_ms(init),
        first_ms=_ms(first),
        mean_ms=_ms(mean_of_all),
        std_ms=_ms(deviation),
        min_ms=_ms(smallest),
        max_ms=_ms(largest),
        p50_ms=_ms(median),
        p95_ms=_ms(p95),
        init_memory_bytes=None if memory is None else round(float(memory[1]) * 2**20),
        memory_bytes=None if memory is None else round(float(memory[2]) * 2**20),
    )


def _ms(microseconds: Any) -> float | None:
    if microseconds is None:
        return None
    if not math.isfinite(value := float(microseconds) / 1e3):
        raise ValueError(f"{microseconds} us")
    return value
