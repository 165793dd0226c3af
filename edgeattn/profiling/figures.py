"""The figures of a measurement, and the arithmetic that makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgeattn.profiling.stability import Trend
from edgeattn.runtimes import LayerTime

Kind = Literal["measured", "emulated", "estimated"]
EnergySource = Literal["rapl", "ina3221", "tegrastats", "battery"]


@dataclass(frozen=True)
class Clocks:
    """Clocks and heat while something was measured. What the system does not tell is None.

    Attributes:
        min_mhz: lowest clock seen of the fastest processor.
        fall: largest fall of a clock, of a processor or a GPU, from any time to any later one, as a share; of a paced
            run, which leaves the device idle in between, from a burst of calls before it to one after it.
        throttle_events: how often cores or their package throttled meanwhile.
        capped: whether a Raspberry Pi's firmware held the clock down.
        max_celsius: of the hottest thermal zone.
        held: False if a clock fell by more than 5 % or anything throttled: such a run is invalid, not slow.
    """

    min_mhz: float | None
    max_mhz: float | None
    fall: float | None
    throttle_events: int | None
    capped: bool | None
    max_celsius: float | None
    held: bool


@dataclass(frozen=True)
class Energy:
    """Of calls as fast as possible. All that the rails feed is counted, the rest of the system included.

    Attributes:
        source: what told it.
        rails: what it is the sum of.
        joules_per_call: of a stream's chunk, features and decoding included; what idling takes is not taken off.
        mean_watts: during the calls.
        idle_watts: during a rest before them.
    """

    source: EnergySource
    rails: tuple[str, ...]
    joules_per_call: float
    mean_watts: float
    idle_watts: float | None
    calls: int
    seconds: float


@dataclass(frozen=True)
class GraphLatency:
    """Time of one call of one graph."""

    p50_ms: float
    p99_ms: float
    max_ms: float
    warmup_ms: float


@dataclass(frozen=True)
class DeviceTimes:
    """The timed calls by the clock of the device that computes (a GPU's events): copies to it, kernels, copies back.

    What the host adds -- features, decoding, starting the work, waking up when it is done -- is not in it.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How fast a language model writes one text, greedily, through the loop that ships.

    Attributes:
        prompt_tokens: of a causal model; None for an encoder-decoder, whose input is as long as its encoder takes.
        new_tokens: that were written.
        first_token_ms: from the prompt to the first of them.
        tokens_per_second: of those after it.
    """

    prompt_tokens: int | None
    new_tokens: int
    first_token_ms: float
    tokens_per_second: float


@dataclass(frozen=True)
class ClockSetting:
    """What a clock may do, and what it did when it was looked at, in MHz; None where the system does not tell."""

    min_mhz: float | None
    max_mhz: float | None
    now_mhz: float | None


@dataclass(frozen=True)
class Board:
    """How a Jetson was set while it was measured.

    Attributes:
        l4t: first line of /etc/nv_tegra_release.
        power_mode: as nvpmodel names it; None where it does not tell.
        power_mode_id: its number.
        clocks: of "cpu0" and so on (one of each cluster), of the GPU by its name in devfreq, and of the memory, "emc",
            which only root is told.
        locked: whether --lock-clocks held the clocks at their highest.
    """

    l4t: str
    power_mode: str | None
    power_mode_id: int | None
    clocks: Mapping[str, ClockSetting]
    locked: bool


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time of one call (for a stream: one chunk, features and decoding included), as fast as possible.

    Of a model with several graphs it is one call of each, added up; a graph that stands in several sizes counts with
    its largest.

    Attributes:
        warmup_ms: time of the first call, which allocates and compiles what is left to compile.
        load_ms: from nothing to a session, verification of the bundle included.
        layers: name and microseconds of the slowest parts, where the engine tells.
        graphs: each graph of a model that has several, by name.
        warmup_calls: calls before the timed ones, the first included.
        settled: whether the median drifted by less than 2 % at their end.
        noise: two standard deviations of the medians of ten blocks of the run, as a share of the median; None for
            fewer than 50 runs.
        noisy: whether that is above 3 %: another run may well report another p50.
        clocks: None where the system tells nothing.
        device_clock: of the same calls; None where the engine computes on the host.
        writing: of a language model with a prompt and steps; None for all others.
    """

    kind: Kind
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    runs: int
    threads: int
    warmup_ms: float
    load_ms: float
    affinity: tuple[int, ...]
    layers: tuple[LayerTime, ...] | None = None
    graphs: Mapping[str, GraphLatency] | None = None
    warmup_calls: int | None = None
    settled: bool | None = None
    noise: float | None = None
    noisy: bool | None = None
    clocks: Clocks | None = None
    device_clock: DeviceTimes | None = None
    writing: Writing | None = None


@dataclass(frozen=True)
class Trace:
    """The course of a paced run, chunk by chunk, or of a long one the worst of each of 2,000 parts."""

    seconds: tuple[float, ...]
    latency_ms: tuple[float, ...]
    backlog_ms: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Realtime:
    """Work paced against absolute deadlines: chunk k must be done ``deadline_ms`` after its last sample was due.

    Of a model that does not stream, a chunk is a call, one every hop. Latency here is the time from when a chunk was
    due until it was done: jitter, waking up and the backlog count.

    Attributes:
        rtf: compute time over audio time (over the hops of the calls).
        misses: chunks that were late, of ``chunks``; None, like all that follows, if nothing was paced.
        max_backlog_ms: largest time that the loop ran behind when a packet had come.
        seconds: that the run stands for.
        packet: samples per arrival; None for calls.
        jitter_ms: each packet came up to so much later than due.
        miss_rate_ci95: of misses / chunks, the Wilson score interval.
        p99_trend: None for fewer than 50 chunks.
        neighbours: busy processes beside it.
        clocks: None where the system tells nothing.
        trace: only where a picture was asked for.
        loaded: the same again with busy neighbours, where that was asked for.
    """

    hop_ms: float
    deadline_ms: float
    rtf: float
    misses: int | None
    chunks: int | None
    max_backlog_ms: float | None
    paced: bool
    seconds: float | None = None
    packet: int | None = None
    jitter_ms: float | None = None
    miss_rate_ci95: tuple[float, ...] | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None
    p99_trend: Trend | None = None
    neighbours: int = 0
    clocks: Clocks | None = None
    trace: Trace | None = None
    loaded: Realtime | None = None


@dataclass(frozen=True)
class Memory:
    """Of the process that runs the bundle and nothing else.

    Attributes:
        rss_bytes: peak resident size, Python and numpy included.
        weights_bytes: the model files with what lies beside them, golden inputs apart.
        state_bytes: one stream's states.
        engine_bytes: what the engine says that it takes where it computes, weights and scratch memory; on a Jetson of
            the same memory as all else, elsewhere of the GPU's. None where it says nothing.
    """

    rss_bytes: int | None
    weights_bytes: int
    state_bytes: int
    engine_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Profile:
    """All that one measuring run gives.

    ``realtime`` is None for a model that does not stream and was given no hop, ``energy`` where nothing tells it,
    ``board`` anywhere but on a Jetson.
    """

    device: str
    backend: str
    engine_version: str
    latency: Latency
    realtime: Realtime | None
    memory: Memory
    executed: Mapping[str, Mapping[str, int]]
    energy: Energy | None = None
    board: Board | None = None


def percentiles_ms(seconds: Sequence[float]) -> tuple[float, float, float, float]:
    """p50, p90, p99 and the maximum, in milliseconds.

    Percentiles are order statistics (the smallest value that at least q of the sample do not exceed): a value that
    was really measured, never one between two.

    Raises:
        ValueError: if there is no sample.
    """
    if not seconds:
        raise ValueError("percentiles need at least one sample")
    values = np.percentile(np.asarray(seconds, np.float64) * 1e3, [50, 90, 99, 100], method="inverted_cdf")
    p50, p90, p99, largest = (float(v) for v in values)
    return p50, p90, p99, largest
