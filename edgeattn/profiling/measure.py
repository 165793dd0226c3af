"""Measuring a bundle in this process. ``edgeattn.profiling.worker`` runs it in a process of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeattn.bundle import read_manifest
from edgeattn.profiling.figures import GraphLatency, Kind, Latency, Memory, Profile, Realtime, percentiles_ms
from edgeattn.runtimes import Event, Session, Step, Stream, load
from edgeattn.spec import GraphSpec, StreamSpec, TensorSpec
from edgeattn.targets import cpu_features

NOISE_LEVEL = 0.05  # of the white noise that is streamed where no recording is given; compute does not depend on it
SLOWEST_LAYERS = 10


@dataclass(frozen=True)
class MeasureOptions:
    """How long and how strictly to measure.

    Attributes:
        runs: timed calls.
        deadline_ms: per chunk; None for the hop itself, by which the next chunk is due.
        paced_seconds: audio seconds to stream in real time; 0 leaves the paced part out.
        packet: samples per arrival in the paced part; not a divisor of a chunk, as from a real sound card.
    """

    runs: int = 200
    deadline_ms: float | None = None
    paced_seconds: float = 5.0
    packet: int = 512
    threads: int = 1
    layers: bool = False


def measure(path: Path, options: MeasureOptions, backend: str | None = None) -> Profile:
    """Load a bundle, time it, pace it, weigh it.

    A bundle that runs on another engine than its own is a substitute, and its figures say "emulated".
    """
    began = time.perf_counter()
    with load(path, backend=backend, threads=options.threads) as session:
        load_ms = 1e3 * (time.perf_counter() - began)
        manifest = read_manifest(path)
        kind: Kind = "measured" if session.backend == manifest.backend else "emulated"
        spec = session.spec
        if spec.stream is None:
            first, times, graphs = _time_graphs(session, options.runs)
            realtime = None
        else:
            first, times = _time_stream(session, spec.stream, options.runs)
            graphs = {}
            realtime = _pace(session.stream(), spec.stream, options, sum(times) / len(times))
        p50, p90, p99, largest = percentiles_ms(times)
        layers = _layers(session) if options.layers else None
        latency = Latency(
            kind, p50, p90, p99, largest, len(times), options.threads, first * 1e3, load_ms, affinity(), layers,
            graphs if len(graphs) > 1 else None,
        )  # fmt: skip
        golden = manifest.golden.file if manifest.golden is not None else None
        weights = sum(entry.size for name, entry in manifest.files.items() if name != golden)
        states = sum(state.nbytes for graph in spec.graphs for state in graph.states)
        return Profile(
            device_name(),
            session.backend,
            session.engine_version,
            latency,
            realtime,
            Memory(peak_rss_bytes(), weights, states),
            session.executed(),
        )


def pace(
    stream: Stream,
    spec: StreamSpec,
    samples: np.ndarray,
    packet: int,
    deadline_ms: float,
    on_event: Callable[[Event], None] = lambda _: None,
) -> Realtime:
    """Stream a recording as a sound card would deliver it, and keep score.

    Packets arrive at absolute times on a monotonic clock: a late chunk delays the next one, as it would on a device.

    Args:
        samples: float32, shape (n,), at the front end's rate.
        packet: samples per arrival.
        on_event: hears what the stream has to say; its time is not counted.
    """
    rate, hop = spec.frontend.sample_rate, float(spec.hop_seconds)
    misses = chunks = 0
    busy = backlog = 0.0
    start = time.monotonic()
    for first in range(0, len(samples), packet):
        piece = samples[first : first + packet]
        arrival = start + (first + len(piece)) / rate
        now = time.monotonic()
        if now < arrival:
            time.sleep(arrival - now)
        began = time.monotonic()
        backlog = max(backlog, began - arrival)
        events = stream.push(piece)
        done = time.monotonic()
        busy += done - began
        completed = steps_after(spec, first + len(piece)) - chunks
        chunks += completed
        if done - arrival > deadline_ms / 1e3:
            misses += completed
        for event in events:
            on_event(event)
    audio = len(samples) / rate
    return Realtime(hop * 1e3, deadline_ms, busy / audio, misses, chunks, backlog * 1e3, True)


def steps_after(spec: StreamSpec, samples: int) -> int:
    """Steps that a fresh stream has run once it heard so many samples: the chunks whose last sample came by then."""
    frontend = spec.frontend
    overhang = frontend.frame_length // 2 - frontend.hop_length // 2  # frame 0 starts this far before sample 0
    if samples < frontend.frame_length:
        return 0
    frames = (samples + overhang - frontend.frame_length) // frontend.hop_length + 1
    return max(0, (frames - spec.window) // spec.shift + 1)


def time_step(step: Step, runs: int) -> tuple[float, list[float]]:
    """Seconds of the first call and of ``runs`` calls after it settled (a tenth of them more, thrown away)."""
    began = time.perf_counter()
    step.run()
    first = time.perf_counter() - began
    for _ in range(max(3, runs // 10)):
        step.run()
    return first, [_timed(step) for _ in range(runs)]


def _timed(step: Step) -> float:
    began = time.perf_counter()
    step.run()
    return time.perf_counter() - began


def _time_graphs(session: Session, runs: int) -> tuple[float, list[float], dict[str, GraphLatency]]:
    """Seconds of the first call and of each timed one, graphs added up, and the figures of every graph."""
    firsts, totals = 0.0, np.zeros(runs)
    figures = {}
    for graphs in session.spec.units().values():
        for graph in graphs:
            step = session.step(graph.name)
            _fill(step, graph)
            first, times = time_step(step, runs)
            p50, _, p99, largest = percentiles_ms(times)
            figures[graph.name] = GraphLatency(p50, p99, largest, first * 1e3)
        firsts += first  # of the largest size, which stands last
        totals += times
    return firsts, totals.tolist(), figures


def _fill(step: Step, graph: GraphSpec) -> None:
    for tensor in graph.inputs:
        np.copyto(step.inputs[tensor.name], _plausible(tensor))


def _plausible(tensor: TensorSpec) -> np.ndarray:
    """Noise for a float input, ones for the others (a valid token id, a mask that shows everything)."""
    if tensor.dtype.startswith("float"):
        return np.random.default_rng(0).standard_normal(tensor.shape).astype(tensor.dtype)
    return np.ones(tensor.shape, tensor.dtype)


def _time_stream(session: Session, spec: StreamSpec, runs: int) -> tuple[float, list[float]]:
    """Chunks through the whole of ``Stream.push``: features, engine, decoding."""
    stream = session.stream()
    hop = spec.shift * spec.frontend.hop_length
    noise = white_noise(hop * 16)
    stream.push(noise[: spec.window * spec.frontend.hop_length])  # from here on each hop of samples is one chunk
    times = []
    warmup = max(3, runs // 10)
    for index in range(1 + warmup + runs):
        offset = (index % 16) * hop
        packet = noise[offset : offset + hop]
        began = time.perf_counter()
        stream.push(packet)
        times.append(time.perf_counter() - began)
    return times[0], times[1 + warmup :]


def _pace(stream: Stream, spec: StreamSpec, options: MeasureOptions, chunk_seconds: float) -> Realtime:
    hop_ms = 1e3 * float(spec.hop_seconds)
    deadline = options.deadline_ms if options.deadline_ms is not None else hop_ms
    if options.paced_seconds <= 0:
        return Realtime(hop_ms, deadline, chunk_seconds * 1e3 / hop_ms, None, None, None, False)
    samples = white_noise(int(options.paced_seconds * spec.frontend.sample_rate))
    return pace(stream, spec, samples, options.packet, deadline)


def white_noise(count: int) -> np.ndarray:
    """The same noise every time: float32, shape (count,), quiet enough never to clip."""
    noise: np.ndarray = NOISE_LEVEL * np.random.default_rng(0).standard_normal(count, dtype=np.float32)
    return noise


def _layers(session: Session) -> tuple[dict[str, object], ...] | None:
    found = []
    units = session.spec.units()
    for name, graphs in units.items():
        inputs = {t.name: _plausible(t) for t in graphs[-1].all_inputs}
        rows = session.layers(inputs, runs=50, graph=graphs[-1].name)
        if rows is None:
            return None
        prefix = f"{name}: " if len(units) > 1 else ""
        found += [{"name": f"{prefix}{r.name}", "type": r.type, "microseconds": r.microseconds} for r in rows]
    return tuple(sorted(found, key=lambda row: -float(str(row["microseconds"])))[:SLOWEST_LAYERS])


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
