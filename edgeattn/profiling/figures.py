"""The figures of a measurement, and the arithmetic that makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["measured", "emulated", "estimated"]


@dataclass(frozen=True)
class GraphLatency:
    """Time of one call of one graph."""

    p50_ms: float
    p99_ms: float
    max_ms: float
    warmup_ms: float


@dataclass(frozen=True)
class Latency:
    """Time of one call (for a stream: one chunk, features and decoding included), as fast as possible.

    Of a model with several graphs it is one call of each, added up; a graph that stands in several sizes counts with
    its largest.

    Attributes:
        warmup_ms: time of the first call, which allocates and compiles what is left to compile.
        load_ms: from nothing to a session, verification of the bundle included.
        layers: name and microseconds of the slowest parts, where the engine tells.
        graphs: each graph of a model that has several, by name.
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
    layers: tuple[Mapping[str, object], ...] | None = None
    graphs: Mapping[str, GraphLatency] | None = None


@dataclass(frozen=True)
class Realtime:
    """A stream paced against absolute deadlines: chunk k must be done ``deadline_ms`` after its last sample came.

    Attributes:
        rtf: compute time over audio time.
        misses: chunks that were late, of ``chunks``; None, like the backlog, if nothing was paced.
        max_backlog_ms: largest time that the loop ran behind the clock when a packet was due.
    """

    hop_ms: float
    deadline_ms: float
    rtf: float
    misses: int | None
    chunks: int | None
    max_backlog_ms: float | None
    paced: bool


@dataclass(frozen=True)
class Memory:
    """Of the process that runs the bundle and nothing else.

    Attributes:
        rss_bytes: peak resident size, Python and numpy included.
        weights_bytes: the model files with what lies beside them, golden inputs apart.
        state_bytes: one stream's states.
    """

    rss_bytes: int | None
    weights_bytes: int
    state_bytes: int


@dataclass(frozen=True)
class Profile:
    """All that one measuring run gives. ``realtime`` is None for a model that does not stream."""

    device: str
    backend: str
    engine_version: str
    latency: Latency
    realtime: Realtime | None
    memory: Memory
    executed: Mapping[str, Mapping[str, int]]


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
