"""Gates: what a bundle must keep, and the sentences for what it did not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from edgeattn.engines import always_integer, convolutions, products
from edgeattn.errors import InputError
from edgeattn.evaluation.accuracy import Accuracy
from edgeattn.evaluation.parity import (
    MAX_ABS_FP32,
    MIN_SQNR_FP16,
    MIN_SQNR_FP32,
    MIN_SQNR_NEAR,
    RECORDED_DB,
    ROUNDING_FP32,
    Parity,
)
from edgeattn.profiling.figures import Clocks, Profile, Realtime

DEFAULT_MAX_DROP = 0.5
FLOATS = ("fp32", "fp16")
EXECUTED_SHARE = 0.9  # of the layers that are int8, which must execute as such
INTEGERS = frozenset({"int8", "uint8", "int4", "uint4"})


@dataclass(frozen=True)
class Gates:
    """What a bundle must keep.

    Attributes:
        max_drop: absolute points of the task's metric that may be lost against the source.
        deadline_ms: per chunk (or call); None for the stream's own hop, by which the next chunk is due.
        max_size_bytes: of the whole bundle; None for any.
        min_metric, max_metric: of the deployed metric itself, as it is printed (percent); None for any.
        max_drop_asked: whether the user gave ``max_drop``, so that it must be judged or the exit code says that it was
            not.
    """

    max_drop: float = DEFAULT_MAX_DROP
    deadline_ms: float | None = None
    max_size_bytes: int | None = None
    min_metric: float | None = None
    max_metric: float | None = None
    max_drop_asked: bool = False

    def __post_init__(self) -> None:
        for name in ("max_drop", "deadline_ms", "min_metric", "max_metric"):
            value = getattr(self, name)
            if value is not None and math.isnan(value):
                raise InputError(f"--{name.removesuffix('_ms').replace('_', '-')} must be a number, got NaN")
        if self.min_metric is not None and self.max_metric is not None and self.min_metric > self.max_metric:
            raise InputError(
                f"no metric is at least {self.min_metric:g} (--min-metric) and at most {self.max_metric:g} "
                "(--max-metric): leave one out, or swap them"
            )


@dataclass(frozen=True)
class Failure:
    """A gate that did not pass."""

    gate: str  # parity, accuracy, deadline, clock, size, golden, executed
    wanted: str
    got: str

    def __str__(self) -> str:
        return f"{self.gate}: wanted {self.wanted}, got {self.got}"


def parity_failures(parity: Parity, precision: str, recorded: Parity | None = None) -> list[Failure]:
    """fp32: max abs <= 1e-4 or SQNR >= 90 dB; fp16: SQNR >= 50 dB; int8: finite, the rest is the metric's affair.

    A small difference is enough for float32 only beside values that are larger: outputs that are all below 1e-4, such
    as attention weights over ten thousand positions, are within it of those of any other weights. So SQNR >= 40 dB is
    asked as well, down to the rounding of float32 near 1.

    Args:
        recorded: what the conversion measured against the same source, where it is known. What is then
            :data:`RECORDED_DB` further off comes from another source, of whatever precision.
    """
    failures = []
    for name, output in parity.outputs.items():
        got = f"{output.max_abs:.2g} and {output.sqnr_db:.1f} dB"
        before = None if recorded is None else recorded.outputs.get(name)
        near = output.max_abs <= MAX_ABS_FP32 and (output.sqnr_db >= MIN_SQNR_NEAR or output.max_abs <= ROUNDING_FP32)
        if output.max_abs == float("inf"):
            failures.append(Failure("parity", f"finite {name}", "NaN or infinity"))
        elif precision == "fp32" and not near and output.sqnr_db < MIN_SQNR_FP32:
            wanted = f"{name} within {MAX_ABS_FP32:g} or SQNR >= {MIN_SQNR_FP32:g} dB"
            if output.max_abs <= MAX_ABS_FP32:
                wanted = f"{name} at SQNR >= {MIN_SQNR_NEAR:g} dB, its values being as small as its differences"
            failures.append(Failure("parity", wanted, got))
        elif precision == "fp16" and output.sqnr_db < MIN_SQNR_FP16:
            failures.append(Failure("parity", f"{name} at SQNR >= {MIN_SQNR_FP16:g} dB", got))
        elif precision not in FLOATS and before is not None and output.sqnr_db < before.sqnr_db - RECORDED_DB:
            wanted = f"{name} within {RECORDED_DB:g} dB of the {before.sqnr_db:.1f} dB that its own source gave"
            failures.append(Failure("parity", wanted, got))
    return failures


def accuracy_failures(figures: Accuracy, max_drop: float) -> list[Failure]:
    """Points of percent lost against the source; none without a source to compare with."""
    drop = figures.drop
    if drop is None or drop <= max_drop + 1e-9:  # rates are ratios of counts: equality must not hang on rounding
        return []
    assert figures.source is not None, "a drop is told against one"
    wanted = f"{figures.metric} within {max_drop:g} points of the source's {figures.text(figures.source)}"
    return [Failure("accuracy", wanted, figures.text(figures.deployed))]


def deadline_failures(profile: Profile, deadline_ms: float | None) -> list[Failure]:
    """Misses of the paced runs; else p99 of a call against the deadline asked for, or the hop."""
    realtime = profile.realtime
    late = [run for run in (realtime, realtime.loaded if realtime else None) if run is not None and run.misses]
    if late:
        unit = "chunk" if late[0].packet is not None else "call"
        return [
            Failure(
                "deadline",
                f"every {unit} within {run.deadline_ms:g} ms{_beside(run.neighbours)}",
                f"{run.misses} of {run.chunks} late{_rate(run)}",
            )
            for run in late
        ]
    limit = realtime.deadline_ms if deadline_ms is None and realtime is not None else deadline_ms
    if limit is not None and profile.latency.p99_ms > limit:
        return [Failure("deadline", f"p99 <= {limit:g} ms", f"{profile.latency.p99_ms:.2f} ms")]
    return []


def clock_failures(profile: Profile) -> list[Failure]:
    """A run whose clock fell says nothing of the model: it is invalid, not slow."""
    realtime = profile.realtime
    runs = {"back to back": profile.latency.clocks}
    if realtime is not None:
        runs["paced"] = realtime.clocks
        if realtime.loaded is not None:
            runs[f"paced{_beside(realtime.loaded.neighbours)}"] = realtime.loaded.clocks
    wanted = "clocks that hold within 5 %; cool the device or lock its clocks, and run again"
    return [
        Failure("clock", wanted, f"{_fallen(clocks)} ({name}): the run is invalid")
        for name, clocks in runs.items()
        if clocks is not None and not clocks.held
    ]


def timing_notes(profile: Profile) -> tuple[str, ...]:
    """What to know of the figures beside whether they passed: noise, a tail that grows, the loaded run, energy."""
    latency, realtime, notes = profile.latency, profile.realtime, []
    if latency.noisy and latency.noise is not None:
        notes.append(f"noise: the median wanders by {100 * latency.noise:.0f} %; another run may give another p50")
    for run in (realtime, realtime.loaded if realtime else None):
        if run is None or run.p99_ms is None:
            continue
        trend = run.p99_trend
        if trend is not None and trend.ci95[0] > 0:
            low, high = trend.ci95
            notes.append(f"p99 grows by {trend.ms_per_minute:.2g} ms a minute ({low:.2g} to {high:.2g}){_paced(run)}")
        if run.neighbours:
            notes.append(f"{run.misses} of {run.chunks} late, p99 {run.p99_ms:.2f} ms{_paced(run)}")
    energy = profile.energy
    if energy is not None:
        watts = f"{energy.mean_watts:.2f} W" + (f", {energy.idle_watts:.2f} W idle" if energy.idle_watts else "")
        notes.append(f"energy: {1e3 * energy.joules_per_call:.3g} mJ a call ({watts}; {energy.source})")
    return tuple(notes)


def _paced(run: Realtime) -> str:
    return f", paced{_beside(run.neighbours)}"


def _beside(neighbours: int) -> str:
    return f" beside {neighbours} busy neighbour{'s' * (neighbours > 1)}" if neighbours else ""


def _rate(run: Realtime) -> str:
    if run.miss_rate_ci95 is None:
        return ""
    low, high = run.miss_rate_ci95
    return f" ({100 * low:.2g} to {100 * high:.2g} % with 95 % confidence, Wilson)"


def _fallen(clocks: Clocks) -> str:
    if clocks.throttle_events:
        return f"{clocks.throttle_events} throttling events"
    return (
        "a clock capped by the firmware" if clocks.capped else f"a clock that fell by {100 * (clocks.fall or 0):.0f} %"
    )


def size_failures(size: int, limit: int | None) -> list[Failure]:
    """Bytes of all files that the manifest lists."""
    if limit is None or size <= limit:
        return []
    return [Failure("size", f"at most {limit} bytes", f"{size} bytes")]


def executed_failures(
    precision: str, executed: Mapping[str, Mapping[str, int]], treatments: Mapping[str, str] | None = None
) -> list[Failure]:
    """int8 that executes in float is no int8, and costs the widening of its weights in every call on top.

    Only operations that compute count: a Q/DQ pair reads int8 by definition. There must be an integer product for nine
    of ten layers that are int8; of an engine that has fewer products than there are layers, because it computes query,
    key and value in one, nine tenths of their share must be. Products of two activations count as well, where an engine
    does them in integers: the gate catches what fell back to float, not each single layer.

    Layers of which only the weights are narrow compute as the engine likes, mostly in float after widening them. A
    census tells the dtype of what a product reads, at best, so nothing is asked of them here.

    Args:
        precision: of the artifact; for floats nothing is asked.
        executed: census of the engine that ships, not of a substitute: op type -> {dtype: how many}. Where it names no
            product that is known here, as TensorRT's does, any integer operation is enough.
        treatments: layer path -> what it became; without it one integer operation that computes is enough.
    """
    if precision not in ("int8", "int4"):
        return []
    multiplied = products()
    known = {op: kinds for op, kinds in executed.items() if op in multiplied | convolutions()}
    taken = {op: kinds for op, kinds in known.items() if op in multiplied}
    layers = list((treatments or {}).values())
    wanted = layers.count("int8")
    if layers and not wanted:
        return []
    if not layers or not taken:
        if _narrow(known or executed):
            return []
        return [Failure("executed", "operations in int8", f"only {_listed(known or executed)}")]
    total = sum(sum(kinds.values()) for kinds in taken.values())
    least = math.ceil(EXECUTED_SHARE * wanted * min(1.0, total / len(layers)) - 1e-9)
    if _narrow(taken) >= least:
        return []
    return [
        Failure("executed", f"{least} integer products for {wanted} of {len(layers)} layers in int8", _listed(taken))
    ]


def _narrow(census: Mapping[str, Mapping[str, int]]) -> int:
    """Operations that read integers of 8 bits or less."""
    always = always_integer()
    return sum(
        count for op, kinds in census.items() for dtype, count in kinds.items() if dtype in INTEGERS or op in always
    )


def _listed(census: Mapping[str, Mapping[str, int]]) -> str:
    counts = [f"{count} {op} {dtype}" for op, kinds in sorted(census.items()) for dtype, count in sorted(kinds.items())]
    return ", ".join(counts) or "nothing"


def parsed_failures(treatments: Mapping[str, str], network: Mapping[str, Mapping[str, int]] | None) -> list[Failure]:
    """Hold the network that TensorRT parsed to the plan: weights and activations that it should quantize.

    The device's engine inspector tells what an engine executes; this is what can be told without one.

    Args:
        treatments: layer path -> treatment.
        network: layer type -> {dtype: count} of the parsed network; None where nothing parsed it.
    """
    layers = sum(treatment != "float" for treatment in treatments.values())
    if network is None or not layers:
        return []
    weights = sum(network.get("dequantize", {}).values())
    activations = network.get("quantize", {}).get("int8", 0)
    static = "int8" in treatments.values()
    if weights >= layers and (activations or not static):
        return []
    wanted = f"{layers} quantized layers in the parsed network"
    return [Failure("executed", wanted, f"{weights} dequantized tensors, {activations} quantized to int8")]
