"""Gates: what a bundle must keep, and the sentences for what it did not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeattn.evaluation.accuracy import Accuracy
from edgeattn.evaluation.parity import MAX_ABS_FP32, MIN_SQNR_FP16, MIN_SQNR_FP32, Parity
from edgeattn.profiling.figures import Profile

DEFAULT_MAX_DROP = 0.5


@dataclass(frozen=True)
class Gates:
    """What a bundle must keep.

    Attributes:
        max_drop: absolute points of the task's metric that may be lost against the source.
        deadline_ms: per chunk (or call); None for the stream's own hop, by which the next chunk is due.
        max_size_bytes: of the whole bundle; None for any.
    """

    max_drop: float = DEFAULT_MAX_DROP
    deadline_ms: float | None = None
    max_size_bytes: int | None = None


@dataclass(frozen=True)
class Failure:
    """A gate that did not pass."""

    gate: str  # parity, accuracy, deadline, size, golden, executed
    wanted: str
    got: str

    def __str__(self) -> str:
        return f"{self.gate}: wanted {self.wanted}, got {self.got}"


def parity_failures(parity: Parity, precision: str) -> list[Failure]:
    """fp32: max abs <= 1e-4 or SQNR >= 90 dB; fp16: SQNR >= 50 dB; int8: finite, the rest is the metric's affair."""
    failures = []
    for name, output in parity.outputs.items():
        got = f"{output.max_abs:.2g} and {output.sqnr_db:.1f} dB"
        if output.max_abs == float("inf"):
            failures.append(Failure("parity", f"finite {name}", "NaN or infinity"))
        elif precision == "fp32" and output.max_abs > MAX_ABS_FP32 and output.sqnr_db < MIN_SQNR_FP32:
            wanted = f"{name} within {MAX_ABS_FP32:g} or SQNR >= {MIN_SQNR_FP32:g} dB"
            failures.append(Failure("parity", wanted, got))
        elif precision == "fp16" and output.sqnr_db < MIN_SQNR_FP16:
            failures.append(Failure("parity", f"{name} at SQNR >= {MIN_SQNR_FP16:g} dB", got))
    return failures


def accuracy_failures(figures: Accuracy, max_drop: float) -> list[Failure]:
    """Points of percent lost against the source; none without a source to compare with."""
    drop = figures.drop
    if drop is None or drop <= max_drop + 1e-9:  # rates are ratios of counts: equality must not hang on rounding
        return []
    wanted = f"{figures.metric} within {max_drop:g} points of the source's {figures.source:.2f} %"
    return [Failure("accuracy", wanted, f"{figures.deployed:.2f} %")]


def deadline_failures(profile: Profile, deadline_ms: float | None) -> list[Failure]:
    """Paced misses of a stream; else p99 of a call against the deadline asked for, or a stream's hop."""
    realtime = profile.realtime
    if realtime is not None and realtime.misses:
        wanted = f"every chunk within {realtime.deadline_ms:g} ms"
        return [Failure("deadline", wanted, f"{realtime.misses} of {realtime.chunks} late")]
    limit = realtime.deadline_ms if deadline_ms is None and realtime is not None else deadline_ms
    if limit is not None and profile.latency.p99_ms > limit:
        return [Failure("deadline", f"p99 <= {limit:g} ms", f"{profile.latency.p99_ms:.2f} ms")]
    return []


def size_failures(size: int, limit: int | None) -> list[Failure]:
    """Bytes of all files that the manifest lists."""
    if limit is None or size <= limit:
        return []
    return [Failure("size", f"at most {limit} bytes", f"{size} bytes")]


def executed_failures(precision: str, executed: Mapping[str, Mapping[str, int]]) -> list[Failure]:
    """int8 that executes in float is no int8."""
    dtypes = {dtype for kinds in executed.values() for dtype in kinds}
    if precision != "int8" or any("int8" in dtype for dtype in dtypes):
        return []
    return [Failure("executed", "operations in int8", f"only {', '.join(sorted(dtypes))}")]
