"""What the engines reach of this machine, fitted to models that were measured on it and kept in the user's cache.

``edgeattn targets calibrate`` measures; an estimate for the target ``cpu`` reads. A device that is not here keeps the
ranges that were seen elsewhere: what an engine reaches of one processor says little of another.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeattn.errors import InputError
from edgeattn.guards.outputs import user_cache, write_atomically, writing
from edgeattn.spec import from_json, to_json
from edgeattn.targets.host import host_target
from edgeattn.targets.roofline import Efficiency, OpFigures, Range, peak_rate
from edgeattn.targets.target import Memory, Peaks, Target

FORMAT = 2
MAX_BYTES = 2**20
LEAST_SPREAD = 1.2  # an estimate is never called closer than this factor
COVERED = 0.9  # share of further models that the range is to hold
ETAS = (1e-3, 3.0)  # above 1 where the clock rises beyond the one that the system told
MEMORY_SHARES = (0.1, 100.0)  # of copying; above 1 where a model lies in the caches
LAUNCHES = (1e-8, 1e-4)  # seconds
LAUNCH, MOVING = "launch", "memory"  # beside the precisions
STARTS = (0.3, 0.5, 0.7)  # of the way through the bounds, in logarithms
WIDTHS = (1.0, 0.3, 0.1, 0.03, 0.01)
NEAR = (0.2, 0.05)
GRID = 33


@dataclass(frozen=True)
class Sample:
    """A model that was measured.

    Attributes:
        precision: of its products; "fp32" or "int8".
        ops: what it does in a call.
        seconds: of a call.
    """

    name: str
    precision: str
    ops: tuple[OpFigures, ...]
    seconds: float


@dataclass(frozen=True)
class Fitted:
    """What became of one sample."""

    name: str
    precision: str
    measured_ms: float
    estimated_ms: float


@dataclass(frozen=True)
class EngineCalibration:
    """What one engine reaches here.

    Attributes:
        version: of the engine.
        spread: factor between the middle of an estimate and its ends.
    """

    version: str
    efficiency: Efficiency
    spread: float
    models: tuple[Fitted, ...]


@dataclass(frozen=True)
class Calibration:
    """This machine as it was measured.

    Attributes:
        device: the processor, as the system names it.
        clock_hz: that the peak rates were derived from; virtual machines tell the one of the moment.
        bytes_per_second: of copying memory.
        engines: engine -> what it reaches.
    """

    device: str
    cores: int
    threads: int
    clock_hz: float
    bytes_per_second: float
    engines: Mapping[str, EngineCalibration]
    format: int = FORMAT


def fit(samples: Sequence[Sample], host: Target, engine: str, threads: int, version: str) -> EngineCalibration:
    """The efficiency with which the roofline comes closest to what was measured: least absolute errors of logarithms.

    They ask less of a model that was measured in a slow moment of the machine than squares would.

    Args:
        host: with a bandwidth.

    Raises:
        InputError: without a float32 model.
        UnsupportedError: if the host's peak rates are not known.
    """
    if not any(sample.precision == "fp32" for sample in samples):
        raise InputError(f"{engine}: calibrating needs at least one float32 model, got none")
    terms = [_terms(sample, host, engine, threads) for sample in samples]
    measured = np.array([sample.seconds for sample in samples])
    precisions = sorted({op.precision for sample in samples for op in sample.ops})
    bounds = {LAUNCH: LAUNCHES, MOVING: MEMORY_SHARES} | dict.fromkeys(precisions, ETAS)

    def errors(point: Mapping[str, float]) -> np.ndarray:
        return np.asarray(np.abs(np.log(np.array([_seconds(term, point) for term in terms]) / measured)))

    point = _least(lambda tried: float(errors(tried).sum()), bounds)
    fitted = tuple(
        Fitted(sample.name, sample.precision, 1e3 * sample.seconds, 1e3 * _seconds(term, point))
        for sample, term in zip(samples, terms, strict=True)
    )
    names = np.array([sample.name for sample in samples])
    unseen = []
    for name in dict.fromkeys(names.tolist()):  # what was fitted is fitted better than the next model will be
        rest = names != name
        other = point
        if rest.any():
            other = _least(lambda tried, rest=rest: float(errors(tried)[rest].sum()), bounds, point)  # type: ignore[misc]
        unseen.append(float(errors(other)[~rest].max()))
    spread = max(LEAST_SPREAD, math.exp(covering(unseen)))
    ranges: dict[str, Range] = {name: _around(point[name], spread) for name in precisions}
    efficiency = Efficiency(
        ranges["fp32"],
        _around(point[MOVING], spread),
        _around(point[LAUNCH], spread),
        f"calibrated on this machine: {engine} {version}, {len(samples)} models, {threads} thread(s)",
        ranges,
        overlap=False,
    )
    return EngineCalibration(version, efficiency, spread, fitted)


def covering(errors: Sequence[float]) -> float:
    """The error that the next model exceeds in at most a tenth of all cases, told from models left out of the fit.

    The quantile of n errors is that of n + 1 (Barber et al.: Predictive inference with the jackknife+, 2021): of fewer
    than nineteen it is the largest.

    >>> covering([0.1, 0.4, 0.2])
    0.4
    """
    rank = math.ceil(COVERED * (len(errors) + 1))
    return sorted(errors)[min(rank, len(errors)) - 1]


def _around(value: float, spread: float) -> Range:
    return Range(value / spread, value, value * spread)


@dataclass(frozen=True)
class _Terms:
    """A sample: seconds at the whole peak by precision, seconds at the whole bandwidth, kernels."""

    compute: Mapping[str, float]
    move: float
    kernels: float


def _terms(sample: Sample, host: Target, engine: str, threads: int) -> _Terms:
    bandwidth = host.memory.bytes_per_second
    assert bandwidth is not None, "the caller measured it"
    return _Terms(
        {
            kind: sum(op.flops for op in sample.ops if op.precision == kind) / peak_rate(host, engine, kind, threads)
            for kind in sorted({op.precision for op in sample.ops})
        },
        sum(op.bytes for op in sample.ops) / bandwidth,
        float(sum(op.kernels for op in sample.ops)),
    )


def _seconds(terms: _Terms, point: Mapping[str, float]) -> float:
    """Computing at a share of each peak, then moving at a share of the bandwidth, and a cost of a kernel.

    The longer of the two, as the roofline has it, comes no closer: on processors the engines pack, quantize and write
    back what they multiply before and after they multiply it.
    """
    computing = sum(compute / point[kind] for kind, compute in terms.compute.items())
    return computing + terms.move / point[MOVING] + terms.kernels * point[LAUNCH]


def _least(
    loss: Callable[[Mapping[str, float]], float],
    bounds: Mapping[str, tuple[float, float]],
    near: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Where a function of positive numbers is least: one after the other, on logarithmic grids, from several starts.

    Args:
        near: a point to start from instead, and not to look far from.
    """
    starts = [{name: low * (high / low) ** start for name, (low, high) in bounds.items()} for start in STARTS]
    best: dict[str, float] = {}
    least = math.inf
    for start in starts if near is None else [dict(near)]:
        point = dict(start)
        value = loss(point)
        for width in WIDTHS if near is None else NEAR:
            for name in (*bounds, *bounds):
                low, high = bounds[name]
                reach = (high / low) ** width
                tried = np.geomspace(max(low, point[name] / reach), min(high, point[name] * reach), GRID)
                found = [loss({**point, name: float(x)}) for x in tried]
                if min(found) < value:
                    value = min(found)
                    point[name] = float(tried[int(np.argmin(found))])
        if value < least:
            best, least = point, value
    return best


# --- the cache --------------------------------------------------------------------------------------------------------


def calibration_path(threads: int) -> Path:
    """Where this machine's calibration is kept, in the user's cache.

    The name holds what decides the figures, as a home directory may be shared by several machines.
    """
    host = host_target()
    key = hashlib.sha256(json.dumps([host.title, host.cores, host.isa, threads]).encode()).hexdigest()[:16]
    return user_cache() / "calibration" / f"{key}.json"


def keep_calibration(found: Calibration) -> Path:
    """Write a calibration to the cache, whole or not at all.

    Raises:
        OutputError: if it cannot be written.
    """
    path = calibration_path(found.threads)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(to_json(found), indent=1, allow_nan=False).encode() + b"\n")
    return path


def read_calibration(threads: int = 1) -> Calibration | None:
    """This machine's calibration; None if it was never calibrated for that many threads.

    Raises:
        InputError: for a damaged file.
    """
    path = calibration_path(threads)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"larger than {MAX_BYTES} bytes")
        found = from_json(Calibration, json.loads(path.read_text(encoding="utf-8")), "calibration")
        if found.format != FORMAT:
            raise InputError(f"format {found.format}, expected {FORMAT}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, InputError) as error:
        raise InputError(
            f"{path}: the calibration cannot be used ({str(error)[:200]}); run: edgeattn targets calibrate"
        ) from error
    return found


def calibrated_host(engine: str, threads: int = 1) -> tuple[Target, Efficiency]:
    """This machine as a target that can be estimated, and what an engine reaches of it.

    Raises:
        InputError: if it was not calibrated for this engine and that many threads; the command is named.
    """
    found = read_calibration(threads)
    command = "edgeattn targets calibrate" + (f" --threads {threads}" if threads > 1 else "")
    if found is None:
        raise InputError(f"this machine was not calibrated for {threads} thread(s): run {command}, or measure")
    if engine not in found.engines:
        raise InputError(
            f"this machine was calibrated for {', '.join(found.engines) or 'no engine'}, not for {engine}: install it "
            f"and run {command}, or measure"
        )
    return with_measured(host_target(), found.clock_hz, found.bytes_per_second), found.engines[engine].efficiency


def with_measured(host: Target, clock_hz: float, bytes_per_second: float) -> Target:
    """The host with a bandwidth, and with the rates of the clock that it was calibrated at."""
    scale = clock_hz / host.cpu.clock_hz if host.cpu.clock_hz else 1.0
    clusters = tuple(replace(cluster, clock_hz=clock_hz) for cluster in host.cpu.clusters)
    peaks = host.peaks
    if peaks is not None:
        rates = {name: rate * scale for name in ("fp32", "fp16", "int8") if (rate := getattr(peaks, name)) is not None}
        peaks = Peaks(peaks.source, **rates)
    memory = Memory(f"{host.memory.source}; bandwidth measured by copying", host.memory.bytes, bytes_per_second)
    return replace(host, cpu=replace(host.cpu, clock_hz=clock_hz, clusters=clusters), peaks=peaks, memory=memory)
