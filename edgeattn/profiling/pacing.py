"""Real time: work that comes by the clock, absolute deadlines, a backlog that is carried from piece to piece."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgeattn.profiling.figures import Realtime, Trace, percentiles_ms
from edgeattn.profiling.stability import p99_trend, wilson
from edgeattn.runtimes import Event, Stream
from edgeattn.spec import StreamSpec

PACKETS = (512, 480, 441, 500)  # samples: what sound cards and telephony deliver
TRACE_POINTS = 2_000


@dataclass(frozen=True)
class Clock:
    """Where time comes from; a test may bring its own.

    Attributes:
        now: seconds, never going back.
        sleep: waits that many seconds; it may wake late, as an operating system does.
    """

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Arrivals:
    """When each piece of work is due, and when it comes.

    Attributes:
        due: float64, shape (n,), seconds after the start at which the piece would come without jitter, rising.
            Deadlines count from here.
        comes: float64, shape (n,), with jitter: never before it is due, never before the piece in front of it.
    """

    due: np.ndarray
    comes: np.ndarray


@dataclass(frozen=True)
class Timeline:
    """What happened to each piece of work: float64, shape (n,), seconds after the start.

    Attributes:
        chunks: int64, shape (n,), chunks (or calls) that the piece completed; a packet may complete none or several.
    """

    arrivals: Arrivals
    began: np.ndarray
    done: np.ndarray
    chunks: np.ndarray


def arrivals(due: np.ndarray, jitter_seconds: float = 0.0, seed: int = 0) -> Arrivals:
    """Delay each piece by a time drawn evenly from 0..``jitter_seconds``, in order: none overtakes another.

    Jitter only delays: a microphone cannot deliver what was not yet said.
    """
    if not jitter_seconds:
        return Arrivals(due, due)
    late = np.random.default_rng(seed).uniform(0.0, jitter_seconds, len(due))
    return Arrivals(due, np.maximum.accumulate(due + late))


def follow(
    plan: Arrivals, work: Callable[[int], int], after: Callable[[], None] = lambda: None, clock: Clock | None = None
) -> Timeline:
    """Do piece after piece, none before it comes; a late one delays the next, as it would on a device.

    Args:
        work: does piece i and returns how many chunks that completed.
        after: called after each piece; its time is not counted, but the next piece may have to wait for it.
    """
    clock = clock or Clock()
    count = len(plan.due)
    began, done, chunks = np.zeros(count), np.zeros(count), np.zeros(count, np.int64)
    start = clock.now()
    for index, comes in enumerate(plan.comes.tolist()):
        now = clock.now() - start
        if now < comes:
            clock.sleep(comes - now)
        began[index] = clock.now() - start
        chunks[index] = work(index)
        done[index] = clock.now() - start
        after()
    return Timeline(plan, began, done, chunks)


def realtime(timeline: Timeline, hop_ms: float, seconds: float, deadline_ms: float, trace: bool = False) -> Realtime:
    """Keep score.

    A chunk is late if it is done more than ``deadline_ms`` after the packet with its last sample was due: what jitter
    takes away is taken from the time to compute.

    Args:
        seconds: what the pieces stand for: audio seconds, or calls times their hop.
        trace: keep the course of the run, for a picture.
    """
    due, comes = timeline.arrivals.due, timeline.arrivals.comes
    took, behind = timeline.done - due, timeline.began - comes
    latency = np.repeat(took, timeline.chunks)
    at = np.repeat(due, timeline.chunks)
    total = int(timeline.chunks.sum())
    misses = int((latency > deadline_ms / 1e3).sum())
    p50, _, p99, largest = percentiles_ms(latency.tolist()) if total else (None, None, None, None)
    return Realtime(
        hop_ms=hop_ms,
        deadline_ms=deadline_ms,
        rtf=float((timeline.done - timeline.began).sum()) / seconds if seconds else 0.0,
        misses=misses,
        chunks=total,
        max_backlog_ms=1e3 * max(0.0, float(behind.max(initial=0.0))),
        paced=True,
        seconds=seconds,
        miss_rate_ci95=wilson(misses, total) if total else None,
        p50_ms=p50,
        p99_ms=p99,
        max_ms=largest,
        p99_trend=p99_trend(at, latency * 1e3),
        trace=_trace(due, took, behind, timeline.chunks) if trace else None,
    )


def _trace(due: np.ndarray, took: np.ndarray, behind: np.ndarray, chunks: np.ndarray) -> Trace:
    """Every chunk, or of a long run the worst of each of 2,000 parts."""
    whole = chunks > 0
    parts = max(1, min(TRACE_POINTS, int(whole.sum())))
    if not whole.any():
        return Trace((), (), ())
    worst = [np.array_split(values[whole], parts) for values in (due, took, behind)]
    return Trace(
        tuple(float(part[0]) for part in worst[0]),
        tuple(1e3 * float(part.max()) for part in worst[1]),
        tuple(1e3 * max(0.0, float(part.max())) for part in worst[2]),
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

    Args:
        samples: float32, shape (n,), at the front end's rate.
        packet: samples per arrival.
        on_event: hears what the stream has to say; its time is not counted.
    """
    timeline = follow_stream(stream, spec, samples, (packet, 0.0, 0), on_event)
    return realtime(timeline, 1e3 * float(spec.hop_seconds), len(samples) / spec.frontend.sample_rate, deadline_ms)


def follow_stream(
    stream: Stream,
    spec: StreamSpec,
    samples: np.ndarray,
    delivery: tuple[int, float, int],
    on_event: Callable[[Event], None] = lambda _: None,
    after: Callable[[], None] = lambda: None,
) -> Timeline:
    """Push a recording into a fresh stream by the clock.

    Args:
        samples: float32, shape (n,), at the front end's rate.
        delivery: samples per arrival, jitter in seconds, and its seed.
        on_event: as for :func:`pace`.
        after: called after each packet, outside the time that is counted.
    """
    packet, jitter_seconds, seed = delivery
    ends = np.minimum(np.arange(packet, len(samples) + packet, packet), len(samples))
    plan = arrivals(ends / spec.frontend.sample_rate, jitter_seconds, seed)
    heard: list[Event] = []
    steps = [steps_after(spec, int(end)) for end in ends]

    def push(index: int) -> int:
        heard.extend(stream.push(samples[index * packet : (index + 1) * packet]))
        return steps[index] - (steps[index - 1] if index else 0)

    def tell() -> None:
        for event in heard:
            on_event(event)
        heard.clear()
        after()

    return follow(plan, push, tell)


def packet_unlike(hop_samples: int) -> int:
    """Samples per packet such that chunks and packets do not fall together, as on a real device."""
    fitting = (size for size in PACKETS if hop_samples % size and size % hop_samples)
    return next(fitting, hop_samples + 1)


def steps_after(spec: StreamSpec, samples: int) -> int:
    """Steps that a fresh stream has run once it heard that many samples: the chunks whose last sample came by then."""
    frontend = spec.frontend
    overhang = frontend.frame_length // 2 - frontend.hop_length // 2  # frame 0 starts this far before sample 0
    if samples < frontend.frame_length:
        return 0
    frames = (samples + overhang - frontend.frame_length) // frontend.hop_length + 1
    return max(0, (frames - spec.window) // spec.shift + 1)
