"""How long a model takes on a device that is not here: a roofline over its operations, as a range and never a point.

Williams, Waterman, Patterson: Roofline: an insightful visual performance model for multicore architectures (2009). An
operation takes the longer of computing, FLOP / (eta x peak rate), and moving, bytes / (share x bandwidth), and what
starting its kernel costs. Where calibration found that the two do not overlap, it takes their sum. eta, the share of
the peak that an engine's kernels reach, is what nobody states: it is a
range of what was seen elsewhere, or measured on this machine (``edgeattn targets calibrate``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edgeattn.engines import ENGINES
from edgeattn.errors import InputError, UnsupportedError
from edgeattn.targets.target import PEAKS, Target

Bound = Literal["compute", "memory", "launch"]
Computed = Literal["fp32", "fp16", "int8"]
ELEMENT_BYTES: Mapping[Computed, int] = {"fp32": 4, "fp16": 2, "int8": 1}
"""Of a weight or an activation that is computed with."""


@dataclass(frozen=True)
class OpFigures:
    """What one operation of a graph does in a call.

    Attributes:
        name: for people.
        type: of the operation, in the words of its file.
        flops: operations, a multiply-add counted as two.
        bytes: that it reads and writes, weights included.
        precision: that it computes in.
        kernels: how many are started for it; 0 for what an engine fuses into its neighbour.
    """

    name: str
    type: str
    flops: float
    bytes: float
    precision: Computed
    kernels: int = 1

    def __post_init__(self) -> None:
        for name in ("flops", "bytes", "kernels"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} of {self.name!r} must be 0 or more, got {value}")
        if self.precision not in PEAKS:
            raise ValueError(f"precision of {self.name!r} must be one of {', '.join(PEAKS)}, got {self.precision!r}")


@dataclass(frozen=True)
class Range:
    """A figure that is not known exactly."""

    low: float
    mid: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.high) and 0 < self.low <= self.mid <= self.high):
            raise ValueError(f"a range must be positive and ascend, got {self.low}, {self.mid}, {self.high}")


@dataclass(frozen=True)
class Efficiency:
    """What an engine reaches of a device.

    Attributes:
        eta: share of the peak rate.
        memory: share of the peak bandwidth.
        launch_seconds: of starting one kernel.
        by_precision: eta of single precisions; ``eta`` stands for those that are not in it.
        source: where these figures come from.
        overlap: whether an operation computes while it moves, as the roofline has it, or does one after the other.
    """

    eta: Range
    memory: Range
    launch_seconds: Range
    source: str
    by_precision: Mapping[str, Range] = field(default_factory=dict)
    overlap: bool = True

    def of(self, precision: str) -> Range:
        """The share of the peak at a precision."""
        return self.by_precision.get(precision, self.eta)


MEMORY = Range(0.76, 0.8, 0.84)
GPU = Efficiency(
    Range(0.2, 0.35, 0.5), MEMORY, Range(10e-6, 20e-6, 50e-6),
    "eta 0.35 seen on a Jetson (a ViT in float16, 37 % of the peak); 10 to 50 us for a kernel; not calibrated",
)  # fmt: skip
CPU = Efficiency(
    Range(0.2, 0.4, 0.6), MEMORY, Range(0.5e-6, 1e-6, 10e-6),
    "eta 0.2 to 0.6 seen on processors; the cost of a kernel is an assumption; not calibrated",
)  # fmt: skip


@dataclass(frozen=True)
class OpEstimate:
    """One operation on a device.

    Attributes:
        bound: what takes longest at the middle of the range.
    """

    figures: OpFigures
    low_ms: float
    mid_ms: float
    high_ms: float
    bound: Bound


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A latency that nobody measured.

    Attributes:
        low_ms, mid_ms, high_ms: of one call.
        bound_by: what binds -> its share of ``mid_ms``; the shares add up to 1.
        ops: the slowest first.
        needs_bytes: weights, states and the tensors that live at once; None where not told.
        fits: whether that is within the device's memory; None where either is not known.
        source: of the efficiency; ``notes`` say what else was assumed.
    """

    target: str
    engine: str
    threads: int
    low_ms: float
    mid_ms: float
    high_ms: float
    bound_by: Mapping[str, float]
    ops: tuple[OpEstimate, ...]
    needs_bytes: int | None
    fits: bool | None
    source: str
    notes: tuple[str, ...] = ()
    kind: Literal["estimated"] = "estimated"

    @property
    def binds(self) -> OpEstimate:
        """The operation that takes longest."""
        return self.ops[0]


def estimate(
    ops: Sequence[OpFigures],
    target: Target,
    engine: str,
    threads: int = 1,
    efficiency: Efficiency | None = None,
    needs_bytes: int | None = None,
) -> Estimate:
    """Estimate one call of a graph.

    Args:
        ops: of the converted graph, one for each operation.
        engine: that runs it: TensorRT computes on the accelerator, the others on the fastest ``threads`` cores.
        efficiency: as calibrated; None for what was seen on other devices.
        needs_bytes: of memory, if it is to be compared with the device's.

    Raises:
        InputError: without operations, or for an engine that the target does not have.
        UnsupportedError: if the target's file lacks a rate or a bandwidth that the operations need; the field is named.
    """
    if not ops:
        raise InputError(f"{target.name}: a graph without operations takes no time; there is nothing to estimate")
    if engine not in target.backends:
        raise InputError(f"{target.name} has no engine {engine!r}; it has {', '.join(target.backends)}")
    if threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    used = efficiency or _seen_elsewhere(engine)
    parts = [estimate_op(op, target, engine, threads, used) for op in ops]
    mid = sum(part.mid_ms for part in parts)
    if not mid > 0:
        raise InputError(
            f"{target.name}: no operation computes, moves or starts anything; there is nothing to estimate"
        )
    bounds = dict.fromkeys(part.bound for part in sorted(parts, key=lambda part: -part.mid_ms))
    shares: dict[str, float] = {
        bound: sum(part.mid_ms for part in parts if part.bound == bound) / mid for bound in bounds
    }
    room = target.memory.bytes
    return Estimate(
        target=target.name,
        engine=engine,
        threads=threads,
        low_ms=sum(part.low_ms for part in parts),
        mid_ms=mid,
        high_ms=sum(part.high_ms for part in parts),
        bound_by=shares,
        ops=tuple(sorted(parts, key=lambda part: -part.mid_ms)),
        needs_bytes=needs_bytes,
        fits=None if room is None or needs_bytes is None else needs_bytes <= room,
        source=used.source,
        notes=_notes(target, engine, threads, ops),
    )


def peak_rate(target: Target, engine: str, precision: Computed, threads: int) -> float:
    """Operations per second that an engine could reach at most.

    Processors without a rate for float16 compute it as float32, as the engines do there.

    Raises:
        UnsupportedError: if the target's file does not tell.
    """
    peaks = target.peaks
    if ENGINES[engine].gpu:
        rate = None if peaks is None else _peak(peaks, precision)
        if rate is None:
            raise _missing(target, f"[peaks] {precision}")
        return rate
    wanted = (precision, "fp32") if precision == "fp16" else (precision,)
    of_accelerator = ENGINES[target.backends[0]].gpu
    for name in wanted:
        rate = target.cpu.rate(name, threads)
        whole = None if peaks is None or of_accelerator else _peak(peaks, name)
        if rate is None and whole is not None:
            rate = whole * min(threads, target.cores) / target.cores
        if rate is not None:
            return rate
    raise _missing(target, f"[[cpu.clusters]] {precision}" if of_accelerator else f"[peaks] {precision}")


def _seen_elsewhere(engine: str) -> Efficiency:
    return GPU if ENGINES[engine].gpu else CPU


def _peak(peaks: object, precision: str) -> float | None:
    value: float | None = getattr(peaks, precision)
    return value


def _missing(target: Target, field_name: str) -> UnsupportedError:
    return UnsupportedError(
        f"{target.name}: its latency cannot be estimated, {field_name} is not known; give it in a target file of your "
        "own (--target board.toml), or measure on the device (--device)"
    )


def estimate_op(
    op: OpFigures, target: Target, engine: str, threads: int = 1, efficiency: Efficiency | None = None
) -> OpEstimate:
    """Estimate one operation; arguments as of :func:`estimate`.

    Raises:
        UnsupportedError: as :func:`estimate`.
    """
    used = efficiency or _seen_elsewhere(engine)
    bandwidth = target.memory.bytes_per_second if op.bytes else math.inf
    if bandwidth is None:
        raise _missing(target, "[memory] bytes_per_second")
    rate = peak_rate(target, engine, op.precision, threads) if op.flops else math.inf
    eta, memory, launch = used.of(op.precision), used.memory, used.launch_seconds

    def seconds(share: float, of_bandwidth: float, start: float) -> tuple[float, float, float]:
        return op.flops / (share * rate), op.bytes / (of_bandwidth * bandwidth), op.kernels * start

    low, mid, high = (
        seconds(eta.high, memory.high, launch.low),
        seconds(eta.mid, memory.mid, launch.mid),
        seconds(eta.low, memory.low, launch.high),
    )
    low_ms, mid_ms, high_ms = (
        1e3 * ((max(compute, move) if used.overlap else compute + move) + start)
        for compute, move, start in (low, mid, high)
    )
    names: tuple[Bound, ...] = ("compute", "memory", "launch")
    return OpEstimate(op, low_ms, mid_ms, high_ms, names[mid.index(max(mid))])


def _notes(target: Target, engine: str, threads: int, ops: Sequence[OpFigures]) -> tuple[str, ...]:
    notes = [f"estimated from the rates stated for {target.name}, not measured"]
    if not ENGINES[engine].gpu:
        if any(op.flops and op.precision == "fp16" for op in ops) and target.cpu.rate("fp16", 1) is None:
            notes.append("float16 is computed as float32 there")
        if threads > target.cores:
            notes.append(f"{threads} threads were asked for, {target.cores} cores are there")
    return tuple(notes)
