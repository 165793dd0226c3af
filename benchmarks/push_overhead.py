"""What Stream.push costs beyond its two parts: the features and the engine's own call.

    python benchmarks/push_overhead.py BUNDLE [BUNDLE ...]

Both sides run in one process and take turns chunk by chunk, on the same samples, each with its own buffers; which goes
first alternates. So both meet the same clocks and the same cold caches. Prints medians and their ratio for each
bundle; exit code 1 if a ratio is above the limit of 1.15.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeattn.audio import OnlineFbank
from edgeattn.runtimes import Session, Stream, load
from edgeattn.spec import StreamSpec

LIMIT = 1.15
WARM_UP = 50  # chunks


@dataclass(frozen=True)
class Overhead:
    """Medians per chunk in microseconds."""

    features: float
    engine: float
    parts: float  # features, then engine, timed as one
    push: float

    @property
    def ratio(self) -> float:
        return self.push / self.parts


class Parts:
    """The bare parts: filter bank, then the engine's call."""

    def __init__(self, session: Session, spec: StreamSpec) -> None:
        self._fbank = OnlineFbank(spec.frontend)
        self._step = session.step()
        self._frames = self._step.inputs[spec.features][0, spec.window - spec.shift :]
        self.features: list[float] = []
        self.engine: list[float] = []

    def __call__(self, samples: np.ndarray) -> None:
        started = time.perf_counter()
        self._fbank.accept(samples)
        if self._fbank.ready < len(self._frames):
            return
        self._fbank.read(self._frames)
        middle = time.perf_counter()
        self._step.run()
        self.features.append(middle - started)
        self.engine.append(time.perf_counter() - middle)


def measure(session: Session, chunks: int) -> Overhead:
    """Time ``chunks`` chunks of noise."""
    spec = session.spec.stream
    assert spec is not None, "not a streaming bundle"
    stream, parts = Stream(session.step(), spec), Parts(session, spec)
    rng = np.random.default_rng(0)
    pushed: list[float] = []
    for index in range(chunks + WARM_UP):
        samples = (0.05 * rng.standard_normal(stream.hop_samples)).astype(np.float32)
        if index % 2:
            parts(samples)
        pushed.append(timed_push(stream, samples))
        if not index % 2:
            parts(samples)
    features, engine = (np.array(times[-chunks:]) * 1e6 for times in (parts.features, parts.engine))
    push = statistics.median(pushed[-chunks:]) * 1e6
    return Overhead(float(np.median(features)), float(np.median(engine)), float(np.median(features + engine)), push)


def timed_push(stream: Stream, samples: np.ndarray) -> float:
    """Seconds of one push."""
    started = time.perf_counter()
    stream.push(samples)
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--backend")
    parser.add_argument("--chunks", type=int, default=1000)
    options = parser.parse_args()
    worst = 0.0
    print(f"{'bundle':42} {'backend':12} {'features':>9} {'engine':>9} {'together':>9} {'push':>9}  us per chunk")
    for bundle in options.bundles:
        with load(bundle, options.backend) as session:
            figures = measure(session, options.chunks)
        worst = max(worst, figures.ratio)
        print(
            f"{bundle.name:42} {session.backend:12} {figures.features:9.0f} {figures.engine:9.0f} "
            f"{figures.parts:9.0f} {figures.push:9.0f}  ratio {figures.ratio:.3f} (limit {LIMIT})"
        )
    return 1 if worst > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
