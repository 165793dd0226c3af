"""Pacing: exact on a clock that is told what time it is, and on a real one with a step that sleeps as it is told.

Bounds on the real clock are wide: a busy host must not turn them red.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.profiling.measure import time_step
from edgeattn.profiling.pacing import (
    PACKETS,
    TRACE_POINTS,
    Arrivals,
    Clock,
    Timeline,
    arrivals,
    follow,
    follow_stream,
    pace,
    packet_unlike,
    realtime,
    steps_after,
)
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
    assert 1 + 2 * 5 + 10 <= step.runs <= 1 + 6 * 5 + 10  # two to six blocks of five settle it
    assert sorted(times)[5] < 0.2


@dataclass
class FakeTime:
    """A clock that work and sleep move on."""

    seconds: float = 100.0
    slept: list[float] = field(default_factory=list)

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds

    def clock(self) -> Clock:
        return Clock(self.now, self.sleep)


def followed(due: list[float], services: list[float], jitter: float = 0.0, chunks: int = 1) -> Timeline:
    fake = FakeTime()

    def work(index: int) -> int:
        fake.seconds += services[index]
        return chunks

    return follow(arrivals(np.array(due), jitter, seed=1), work, clock=fake.clock())


pieces = st.lists(st.tuples(st.floats(0.0, 0.5), st.floats(0.0, 0.5)), min_size=1, max_size=60)


@given(pieces=pieces, jitter=st.sampled_from([0.0, 0.05, 1.0]))
def test_each_piece_begins_when_it_came_and_the_one_before_is_done(
    pieces: list[tuple[float, float]], jitter: float
) -> None:
    due = np.cumsum([gap for gap, _ in pieces]).tolist()
    services = [service for _, service in pieces]
    timeline = followed(due, services, jitter)
    done = 0.0
    for index, service in enumerate(services):  # Lindley 1952: the recursion of a queue with one server
        begins = max(timeline.arrivals.comes[index], done)
        done = begins + service
        assert timeline.began[index] == pytest.approx(begins, abs=1e-9)
        assert timeline.done[index] == pytest.approx(done, abs=1e-9)


@given(due=st.lists(st.floats(0.0, 100.0), max_size=80), jitter=st.floats(0.0, 3.0), seed=st.integers(0, 9))
def test_jitter_delays_by_no_more_than_it_may_and_keeps_the_order(due: list[float], jitter: float, seed: int) -> None:
    plan = arrivals(np.array(sorted(due)), jitter, seed)
    assert (plan.comes >= plan.due).all()
    assert (plan.comes <= plan.due + jitter + 1e-9).all()
    assert (np.diff(plan.comes) >= 0).all()
    np.testing.assert_array_equal(plan.comes, arrivals(np.array(sorted(due)), jitter, seed).comes)


def test_jitter_takes_all_of_its_range_and_another_seed_another_course() -> None:
    due = np.arange(1000.0)  # far apart: nothing is held up by what comes before
    late = arrivals(due, 0.5, seed=0).comes - due
    assert late.min() < 0.01
    assert late.max() > 0.49
    assert abs(late.mean() - 0.25) < 0.02  # of an even distribution; its standard error is 0.0046
    assert not np.array_equal(late, arrivals(due, 0.5, seed=1).comes - due)


def test_a_service_slower_than_the_hop_runs_ever_further_behind() -> None:
    # Call k is due at 0.1 k and takes 0.15 s: done 0.15 + 0.05 k after it was due, behind by 0.05 k when it came.
    timeline = followed([0.1 * k for k in range(20)], [0.15] * 20)
    figures = realtime(timeline, hop_ms=100.0, seconds=2.0, deadline_ms=326.0)
    assert figures.rtf == pytest.approx(1.5)
    assert figures.max_backlog_ms == pytest.approx(1e3 * 0.05 * 19)
    assert figures.misses == 16  # 0.15 + 0.05 k > 0.326 from k = 4 on
    assert (figures.p50_ms, figures.max_ms) == pytest.approx((1e3 * (0.15 + 0.05 * 9), 1e3 * (0.15 + 0.05 * 19)))
    assert figures.chunks == 20
    assert figures.miss_rate_ci95 is not None
    assert figures.miss_rate_ci95[0] < 16 / 20 < figures.miss_rate_ci95[1]


def test_one_stall_delays_those_behind_it_until_the_backlog_is_worked_off() -> None:
    # 10 ms of work every 100 ms; call 5 takes 400 ms, and each call after it makes up 90 ms.
    services = [0.01] * 5 + [0.4] + [0.01] * 14
    figures = realtime(followed([0.1 * k for k in range(20)], services), 100.0, 2.0, deadline_ms=100.0)
    assert figures.misses == 4  # 400, 310, 220 and 130 ms; then 40 ms
    assert figures.max_backlog_ms == pytest.approx(300.0)


def test_what_jitter_takes_is_taken_from_the_deadline() -> None:
    plan = Arrivals(np.array([1.0, 2.0]), np.array([1.04, 2.0]))
    timeline = Timeline(plan, np.array([1.04, 2.0]), np.array([1.06, 2.02]), np.array([1, 1]))
    figures = realtime(timeline, 1000.0, 2.0, deadline_ms=50.0)
    assert (figures.misses, figures.max_backlog_ms) == (1, 0.0)
    assert figures.max_ms == pytest.approx(60.0)


def test_a_packet_that_completes_nothing_has_no_deadline_and_one_that_completes_three_has_three() -> None:
    due = np.array([1.0, 2.0])
    timeline = Timeline(Arrivals(due, due), due, np.array([1.9, 2.2]), np.array([0, 3]))
    figures = realtime(timeline, 100.0, 2.0, deadline_ms=100.0)
    assert (figures.misses, figures.chunks) == (3, 3)
    assert figures.p50_ms == pytest.approx(200.0)


def test_a_run_without_a_chunk_has_no_latency() -> None:
    due = np.array([1.0])
    figures = realtime(Timeline(Arrivals(due, due), due, due + 0.5, np.array([0])), 100.0, 1.0, 100.0)
    assert (figures.misses, figures.chunks, figures.p50_ms, figures.miss_rate_ci95) == (0, 0, None, None)


def test_the_loop_sleeps_until_the_next_piece_and_no_longer() -> None:
    fake = FakeTime()
    looks: list[float] = []

    def work(_: int) -> int:
        fake.seconds += 0.25
        return 1

    def after() -> None:
        looks.append(fake.seconds)
        fake.seconds += 0.125  # heard, but not counted

    plan = arrivals(np.array([1.0, 2.0, 2.25]))
    timeline = follow(plan, work, after, fake.clock())
    assert fake.slept == [1.0, 0.625]  # the third had come when the second was done
    assert looks == [101.25, 102.25, 102.625]
    assert (timeline.done - timeline.began).tolist() == [0.25] * 3


def test_a_trace_is_the_run_itself_or_the_worst_of_its_parts() -> None:
    short = realtime(followed([0.1 * k for k in range(20)], [0.15] * 20), 100.0, 2.0, 300.0, trace=True).trace
    assert short is not None
    assert short.seconds == pytest.approx([0.1 * k for k in range(20)])
    assert short.latency_ms == pytest.approx([150 + 50 * k for k in range(20)])
    assert short.backlog_ms == pytest.approx([50 * k for k in range(20)], abs=1e-6)
    due = np.arange(3.0 * TRACE_POINTS)
    services = np.full(len(due), 0.01)
    services[1000] = 0.9
    timeline = Timeline(Arrivals(due, due), due, due + services, np.ones(len(due), np.int64))
    long = realtime(timeline, 1e3, float(len(due)), 500.0, trace=True).trace
    assert long is not None
    assert len(long.seconds) == len(long.latency_ms) == len(long.backlog_ms) == TRACE_POINTS
    assert max(long.latency_ms) == pytest.approx(900.0)
    assert realtime(timeline, 1e3, 1.0, 500.0).trace is None


def test_a_stream_with_jitter_hears_all_of_its_chunks() -> None:
    step = SleepingStep([])
    looks: list[None] = []
    stream = Stream(cast(Step, step), stream_spec())
    timeline = follow_stream(stream, stream_spec(), noise(640), (30, 0.02, 0), after=lambda: looks.append(None))
    assert timeline.chunks.sum() == step.runs > 5
    assert len(looks) == len(timeline.chunks) == 22  # 21 whole packets of 30, and 10 samples
    assert timeline.arrivals.due[-1] == 0.64
    assert (timeline.began >= timeline.arrivals.comes).all()


@given(hop=st.integers(1, 200_000))
def test_packets_are_unlike_chunks(hop: int) -> None:
    packet = packet_unlike(hop)
    assert packet in PACKETS or packet == hop + 1
    assert hop == 1 or (hop % packet and packet % hop)


class RingStep(SleepingStep):
    """A cache of four places and a position, past whose end there is nothing to write."""

    def __init__(self) -> None:
        super().__init__([])
        self.position = 0

    def run(self) -> None:
        assert self.position < 4
        self.position += 1
        super().run()

    def reset(self) -> None:
        self.position = 0

    def states(self) -> dict[str, np.ndarray]:
        return {"position": np.array([self.position])}


def test_timing_does_not_count_a_position_out_of_its_cache() -> None:
    step = RingStep()
    assert len(time_step(cast(Step, step), 10)[1]) == 10
    assert step.runs > 10
