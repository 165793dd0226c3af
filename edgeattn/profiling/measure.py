"""Measuring a bundle in this process. ``edgeattn.jobs.measure`` runs it in a process of its own."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edgeattn.bundle import Manifest, read_manifest
from edgeattn.engines import ENGINES
from edgeattn.profiling.board import board_state
from edgeattn.profiling.contract import Contract, MeasureOptions, contract
from edgeattn.profiling.energy import find_meter, measure_energy
from edgeattn.profiling.figures import (
    DeviceTimes,
    Energy,
    GraphLatency,
    Kind,
    Latency,
    Memory,
    Profile,
    Realtime,
    percentiles_ms,
)
from edgeattn.profiling.holding import held
from edgeattn.profiling.load import busy_neighbours
from edgeattn.profiling.pacing import arrivals, follow, follow_stream, realtime
from edgeattn.profiling.stability import NOISE_LIMIT, Warmup, block_noise, warm_up
from edgeattn.profiling.throttling import Watch
from edgeattn.profiling.writing import measure_writing
from edgeattn.runtimes import LayerTime, Session, Step, Stream, load
from edgeattn.runtimes.step import EngineStep
from edgeattn.spec import GraphSpec, StreamSpec, TensorSpec
from edgeattn.targets import cpu_features

__all__ = ["MeasureOptions", "affinity", "device_name", "measure", "peak_rss_bytes", "time_step", "white_noise"]

NOISE_LEVEL = 0.05  # of the white noise that is streamed where no recording is given; compute does not depend on it
SLOWEST_LAYERS = 10


def measure(path: Path, options: MeasureOptions, backend: str | None = None) -> Profile:
    """Load a bundle, time it, pace it, weigh it.

    A bundle that runs on another engine than its own is a substitute, and its figures say "emulated".

    Raises:
        InputError: as :func:`edgeattn.profiling.contract.contract`.
        EdgeattnError: as :func:`edgeattn.profiling.holding.held`.
    """
    with held(options.power_mode, options.lock_clocks):
        return _measure(path, options, backend)


def _measure(path: Path, options: MeasureOptions, backend: str | None) -> Profile:
    began = time.perf_counter()
    with load(path, backend=backend, threads=options.threads) as session:
        load_ms = 1e3 * (time.perf_counter() - began)
        manifest = read_manifest(path)
        kind: Kind = "measured" if session.backend == manifest.backend else "emulated"
        asked = contract(session.spec, options)
        watch = Watch(affinity(), ENGINES[session.backend].gpu)
        timings = _time_session(session, options, watch)
        latency = _latency(timings, kind, options.threads, load_ms, watch)
        board = board_state(options.lock_clocks)
        energy = _energy(session, options)
        mean = sum(timings.seconds) / len(timings.seconds)
        paced = None if asked is None else _paced(session, asked, options, mean)
        latency = replace(latency, writing=measure_writing(session))
        if options.layers:
            latency = replace(latency, layers=_layers(session))
        return Profile(
            device=device_name(),
            backend=session.backend,
            engine_version=session.engine_version,
            latency=latency,
            realtime=paced,
            memory=_memory(session, manifest),
            executed=session.executed(),
            energy=energy,
            board=board,
        )


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Calls as fast as possible.

    Attributes:
        seconds: of each timed call.
        device_ms: of each by the device's own clock; None where it has none.
        graphs: figures of each graph of a model that does not stream.
    """

    warmup: Warmup
    seconds: list[float]
    device_ms: list[float] | None
    graphs: Mapping[str, GraphLatency] = field(default_factory=dict)


def _latency(timings: Timings, kind: Kind, threads: int, load_ms: float, watch: Watch) -> Latency:
    p50, p90, p99, largest = percentiles_ms(timings.seconds)
    noise, device_ms = block_noise(timings.seconds), timings.device_ms
    return Latency(
        kind=kind,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        max_ms=largest,
        runs=len(timings.seconds),
        threads=threads,
        warmup_ms=timings.warmup.first_ms,
        load_ms=load_ms,
        affinity=affinity(),
        graphs=timings.graphs if len(timings.graphs) > 1 else None,
        warmup_calls=timings.warmup.calls,
        settled=timings.warmup.settled,
        noise=noise,
        noisy=None if noise is None else noise > NOISE_LIMIT,
        clocks=watch.clocks(),
        device_clock=None if device_ms is None else DeviceTimes(*percentiles_ms([1e-3 * ms for ms in device_ms])),
    )


def _memory(session: Session, manifest: Manifest) -> Memory:
    golden = manifest.golden.file if manifest.golden is not None else None
    weights = sum(entry.size for name, entry in manifest.files.items() if name != golden)
    states = sum(state.nbytes for graph in session.spec.graphs for state in graph.states)
    return Memory(peak_rss_bytes(), weights, states, session.engine_bytes)


def time_step(step: Step, runs: int, most_seconds: float = 0.0) -> tuple[float, list[float]]:
    """Seconds of the first call and of calls after it settled; what comes between is thrown away.

    Args:
        most_seconds: see :class:`~edgeattn.profiling.contract.MeasureOptions`.
    """
    timings = _time(_timer(step), MeasureOptions(runs=runs, most_seconds=most_seconds), 0.0)
    return timings.warmup.first_ms / 1e3, timings.seconds


def _timer(step: Step) -> Callable[[], float]:
    """Seconds of one run.

    States that hold integers begin again each time: a position that counts on leads out of a cache of fixed length,
    where the model itself has no place to write.
    """
    counts = any(array.dtype.kind in "iu" for array in step.states().values())

    def timed() -> float:
        if counts:
            step.reset()
        began = time.perf_counter()
        step.run()
        return time.perf_counter() - began

    return timed


def _time(
    timed_call: Callable[[], float],
    options: MeasureOptions,
    spread_seconds: float,
    watch: Watch | None = None,
    step: EngineStep | None = None,
) -> Timings:
    """Warm up, then time calls, every so manieth of those that ``spread_seconds`` have room for.

    Args:
        options: how many calls.
        step: whose time by its device's clock is kept, if it has one.
    """
    warmup, median = warm_up(timed_call, options.runs)
    runs = options.runs_of(median)
    stride = max(1, math.ceil(spread_seconds / (runs * median))) if median > 0 else 1
    times, on_device = [], []
    for _ in range(runs):
        for _ in range(stride - 1):
            timed_call()
        times.append(timed_call())
        if step is not None and step.device_ms is not None:
            on_device.append(step.device_ms)
        if watch is not None:
            watch.look()
    return Timings(warmup=warmup, seconds=times, device_ms=on_device or None)


def _time_session(session: Session, options: MeasureOptions, watch: Watch) -> Timings:
    stream = session.spec.stream
    return _time_graphs(session, options, watch) if stream is None else _time_stream(session, stream, options, watch)


def _time_graphs(session: Session, options: MeasureOptions, watch: Watch) -> Timings:
    """Calls of all graphs added up, those that stand in several sizes with their largest."""
    largest: list[Timings] = []  # of each unit, the size that stands last
    figures = {}
    spread = options.spread_seconds / len(session.spec.graphs)
    for graphs in session.spec.units().values():
        for graph in graphs:
            step = _filled(session, graph)
            timings = _time(_timer(step), options, spread, watch, step)
            p50, _, p99, longest = percentiles_ms(timings.seconds)
            figures[graph.name] = GraphLatency(p50, p99, longest, timings.warmup.first_ms)
        largest.append(timings)
    device_ms = [timings.device_ms for timings in largest if timings.device_ms is not None]
    return Timings(
        warmup=Warmup(
            sum(timings.warmup.first_ms for timings in largest),
            max(timings.warmup.calls for timings in largest),
            all(timings.warmup.settled for timings in largest),
        ),
        seconds=_added(timings.seconds for timings in largest),
        device_ms=_added(device_ms) if len(device_ms) == len(largest) else None,
        graphs=figures,
    )


def _added(columns: Iterable[Sequence[float]]) -> list[float]:
    return [sum(row) for row in zip(*columns, strict=False)]  # a slow graph is timed fewer times


def _filled(session: Session, graph: GraphSpec) -> EngineStep:
    """A step of the graph that has inputs to run on."""
    step = session.step(graph.name)
    _fill(step, graph)
    return step


def _fill(step: Step, graph: GraphSpec) -> None:
    for tensor in graph.inputs:
        np.copyto(step.inputs[tensor.name], _plausible(tensor))


def _plausible(tensor: TensorSpec) -> np.ndarray:
    """Noise for a float input, ones for the others (a valid token id, a mask that shows everything)."""
    if tensor.dtype.startswith("float"):
        return np.random.default_rng(0).standard_normal(tensor.shape).astype(tensor.dtype)
    return np.ones(tensor.shape, tensor.dtype)


def _time_stream(session: Session, spec: StreamSpec, options: MeasureOptions, watch: Watch) -> Timings:
    """Chunks through the whole of ``Stream.push``: features, engine, decoding."""
    pusher = _Pusher(session, spec)

    def timed_push() -> float:
        packet = pusher.packet()
        began = time.perf_counter()
        pusher.stream.push(packet)
        return time.perf_counter() - began

    return _time(timed_push, options, options.spread_seconds, watch, pusher.step)


class _Pusher:
    """A stream that was fed up to the brim: from here on each hop of samples is one chunk."""

    def __init__(self, session: Session, spec: StreamSpec) -> None:
        self.step = session.step()
        self.stream = Stream(self.step, spec)
        self._hop = spec.shift * spec.frontend.hop_length
        self._noise = white_noise(self._hop * 16)
        self._index = 0
        self.stream.push(white_noise(spec.window * spec.frontend.hop_length))

    def packet(self) -> np.ndarray:
        """The next chunk's samples."""
        first = self._index % 16 * self._hop
        self._index += 1
        return self._noise[first : first + self._hop]

    def push(self) -> None:
        """One chunk."""
        self.stream.push(self.packet())


def _whole_call(session: Session) -> Callable[[], None]:
    """One call of each unit with its largest size, or one chunk of a stream."""
    if session.spec.stream is not None:
        return _Pusher(session, session.spec.stream).push
    steps = [_filled(session, graphs[-1]) for graphs in session.spec.units().values()]

    def run() -> None:
        for step in steps:
            step.run()

    return run


def _energy(session: Session, options: MeasureOptions) -> Energy | None:
    meter = find_meter() if options.energy_seconds > 0 else None
    if meter is None:
        return None
    with contextlib.closing(meter):
        return measure_energy(_whole_call(session), meter, options.energy_seconds)


def _paced(session: Session, asked: Contract, options: MeasureOptions, chunk_seconds: float) -> Realtime:
    """The paced run, and the same beside busy neighbours if that was asked for."""
    if asked.seconds <= 0:
        rtf = 1e3 * chunk_seconds / asked.hop_ms
        return Realtime(
            hop_ms=asked.hop_ms,
            deadline_ms=asked.deadline_ms,
            rtf=rtf,
            misses=None,
            chunks=None,
            max_backlog_ms=None,
            paced=False,
        )
    idle = _paced_once(session, asked, options)
    if not options.load:
        return idle
    with busy_neighbours(options.load, affinity() if hasattr(os, "sched_setaffinity") else ()):
        loaded = _paced_once(session, asked, options)
    return replace(idle, loaded=replace(loaded, neighbours=options.load))


def _paced_once(session: Session, asked: Contract, options: MeasureOptions) -> Realtime:
    spec, watch = session.spec.stream, Watch(affinity(), ENGINES[session.backend].gpu)
    pulse = _whole_call(session) if watch.readable else None
    if pulse is not None:
        watch.pulse(pulse)
    jitter = options.jitter_ms / 1e3
    if spec is not None and asked.packet is not None:
        seconds = asked.seconds
        samples = white_noise(int(seconds * spec.frontend.sample_rate))
        stream = session.stream()
        timeline = follow_stream(stream, spec, samples, (asked.packet, jitter, options.seed), after=watch.look)
    else:
        calls = int(1e3 * asked.seconds / asked.hop_ms + 1e-9)
        seconds = calls * asked.hop_ms / 1e3
        run = _whole_call(session)
        run()  # a call is no stream: what its first one allocates is told apart, as the cold start

        def work(_: int) -> int:
            run()
            return 1

        timeline = follow(arrivals(np.arange(calls) * asked.hop_ms / 1e3, jitter, options.seed), work, watch.look)
    if pulse is not None:
        watch.pulse(pulse)
    figures = realtime(timeline, asked.hop_ms, seconds, asked.deadline_ms, options.trace)
    return replace(figures, packet=asked.packet, jitter_ms=options.jitter_ms, clocks=watch.clocks())


def white_noise(count: int) -> np.ndarray:
    """The same noise every time: float32, shape (count,), quiet enough never to clip."""
    noise: np.ndarray = NOISE_LEVEL * np.random.default_rng(0).standard_normal(count, dtype=np.float32)
    return noise


def _layers(session: Session) -> tuple[LayerTime, ...] | None:
    found: list[LayerTime] = []
    units = session.spec.units()
    for name, graphs in units.items():
        inputs = {t.name: _plausible(t) for t in graphs[-1].all_inputs}
        rows = session.layers(inputs, runs=50, graph=graphs[-1].name)
        if rows is None:
            return None
        prefix = f"{name}: " if len(units) > 1 else ""
        found += [replace(row, name=f"{prefix}{row.name}") for row in rows]
    return tuple(sorted(found, key=lambda row: -row.microseconds)[:SLOWEST_LAYERS])


def device_name() -> str:
    """The processor that this runs on, in words."""
    cpu = cpu_features()
    return f"{cpu.model or cpu.arch}, {cpu.cores} cores"


def affinity() -> tuple[int, ...]:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def peak_rss_bytes() -> int | None:
    """Peak resident size of this process; None where the system does not tell."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
