"""Pacing a stream whose step sleeps as long as it is told. Bounds are wide: a busy host must not turn them red."""

from __future__ import annotations

import time
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.profiling.measure import time_step
from edgeattn.profiling.pacing import pace, steps_after
from edgeattn.runtimes import Step, Stream
from edgeattn.spec import StreamSpec
from tests.runtimes.tiny import NumpyStep, tiny_spec

HOP_SECONDS = 0.064  # of the tiny model: 4 frames of 16 samples at 1 kHz


class SleepingStep:
    """The numpy step, with a pause of ``pauses[k]`` seconds in run k; none after the list."""

    def __init__(self, pauses: list[float]) -> None:
        self._step = NumpyStep.new()
        self.inputs, self.outputs = self._step.inputs, self._step.outputs
        self.pauses = pauses
        self.runs = 0

    def run(self) -> None:
        time.sleep(self.pauses[self.runs] if self.runs < len(self.pauses) else 0.0)
        self.runs += 1
        self._step.run()

    def reset(self) -> None:
        self._step.reset()

    def states(self) -> dict[str, np.ndarray]:
        return self._step.states()


def stream_spec() -> StreamSpec:
    return cast(StreamSpec, tiny_spec().stream)


def noise(samples: int) -> np.ndarray:
    sound: np.ndarray = 0.1 * np.random.default_rng(0).standard_normal(samples, dtype=np.float32)
    return sound


@given(samples=st.integers(0, 900), packet=st.integers(1, 300))
def test_steps_after_is_how_often_a_stream_runs_its_step(samples: int, packet: int) -> None:
    step = SleepingStep([])
    stream = Stream(cast(Step, step), stream_spec())
    for first in range(0, samples, packet):
        stream.push(noise(samples)[first : first + packet])
    assert steps_after(stream_spec(), samples) == step.runs


def test_a_fast_step_misses_nothing_and_takes_the_time_of_the_audio() -> None:
    step = SleepingStep([])
    began = time.monotonic()
    figures = pace(Stream(cast(Step, step), stream_spec()), stream_spec(), noise(640), 30, deadline_ms=2_000)
    assert time.monotonic() - began >= 0.639  # never faster than the sound card
    assert (figures.misses, figures.chunks, figures.paced) == (0, step.runs, True)
    assert figures.hop_ms == pytest.approx(1e3 * HOP_SECONDS, abs=1e-9)
    assert 0 < figures.rtf < 1


def test_every_chunk_of_a_step_slower_than_the_deadline_is_missed() -> None:
    step = SleepingStep([0.02] * 20)
    figures = pace(Stream(cast(Step, step), stream_spec()), stream_spec(), noise(640), 30, deadline_ms=2)
    assert figures.misses == figures.chunks == step.runs
    assert figures.rtf >= 0.02 * step.runs / 0.64


def test_one_slow_chunk_is_counted_in_the_packet_that_ran_it() -> None:
    # It is late in its own packet; the packets after it find the clock caught up again before their own deadlines.
    step = SleepingStep([0.0, 0.0, 0.6])
    figures = pace(Stream(cast(Step, step), stream_spec()), stream_spec(), noise(1_500), 16, deadline_ms=560)
    assert figures.misses is not None
    assert figures.misses >= 1
    assert figures.max_backlog_ms is not None
    assert figures.max_backlog_ms >= 500


def test_backlog_is_carried_from_chunk_to_chunk() -> None:
    # Each chunk takes 96 ms and the next one is due after 64 ms: 32 ms are added each time.
    step = SleepingStep([1.5 * HOP_SECONDS] * 20)
    figures = pace(Stream(cast(Step, step), stream_spec()), stream_spec(), noise(640), 64, deadline_ms=200)
    late = (1.5 - 1.0) * HOP_SECONDS * (step.runs - 2)
    assert figures.max_backlog_ms is not None
    assert figures.max_backlog_ms >= 1e3 * late
    assert figures.misses is not None
    assert figures.misses >= 1  # the first ones are in time, the last ones are not
    assert figures.rtf > 1


def test_a_late_packet_of_several_chunks_counts_each_of_them() -> None:
    step = SleepingStep([0.03] * 20)
    figures = pace(Stream(cast(Step, step), stream_spec()), stream_spec(), noise(320), 320, deadline_ms=2)
    assert figures.misses == figures.chunks == step.runs > 1


def test_events_are_heard_while_pacing() -> None:
    heard: list[str] = []
    stream = Stream(cast(Step, SleepingStep([])), stream_spec())
    pace(stream, stream_spec(), noise(640), 30, 2_000, lambda event: heard.append(event.text))
    assert heard  # the tiny model hears words in noise


def test_the_first_call_and_the_settling_ones_are_no_samples() -> None:
    step = SleepingStep([0.2])
    first, times = time_step(cast(Step, step), 10)
    assert first >= 0.2
    assert len(times) == 10
    assert step.runs == 1 + 3 + 10
    assert sorted(times)[5] < 0.2
