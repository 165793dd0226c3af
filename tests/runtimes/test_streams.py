"""Streams: whatever the packets, the same events; nothing said is lost; what is not sound is refused."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.audio import fbank
from edgeattn.errors import AudioError, InputError, UnsupportedError
from edgeattn.runtimes import Event, Session, Stream
from edgeattn.spec import HIDDEN, StreamSpec
from tests.runtimes.tiny import CHUNK, LEFT, MEL, SHIFT, TOKENS, WINDOW, NumpyStep, tiny_spec

RATE, HOP = 1000, 16  # of the tiny front end: Hz, samples


def tiny_stream_spec() -> StreamSpec:
    spec = tiny_spec().stream
    assert spec is not None
    return spec


@dataclass
class LoudnessStep:
    """A step that says "one" in each encoder frame that is loud: what a stream must hear and when is then known.

    Encoder frame c of a chunk sees feature frames 2c to 2c + 2, of which it listens to the middle one.
    """

    threshold: float = 8.0  # mean log mel energy; digital silence has -16, a burst about 14
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    seen: list[dict[str, np.ndarray]] = field(default_factory=list)
    poison: float | None = None

    def __post_init__(self) -> None:
        graph = tiny_spec().graphs[0]
        self.inputs = {t.name: np.zeros(t.shape, np.float32) for t in graph.inputs}
        self.outputs = {t.name: np.zeros(t.shape, np.float32) for t in graph.outputs}

    def run(self) -> None:
        self.seen.append({name: array.copy() for name, array in self.inputs.items()})
        loud = self.inputs["feats"][0, 1 : 1 + 2 * CHUNK : 2].mean(axis=1) > self.threshold
        scores = self.outputs["log_probs"]
        scores[:] = -5.0
        scores[0, np.arange(CHUNK), loud.astype(int)] = 0.0
        if self.poison is not None:
            scores[0, 0, 2] = self.poison

    def reset(self) -> None:
        self.seen = []

    def states(self) -> dict[str, np.ndarray]:
        return {}


def noise(count: int, seed: int = 0) -> np.ndarray:
    return (0.3 * np.random.default_rng(seed).standard_normal(count)).clip(-1, 1).astype(np.float32)


def bursts(seconds: Sequence[float], length: float) -> np.ndarray:
    """Silence with bursts of 60 ms of noise that begin at ``seconds``."""
    samples = np.zeros(int(length * RATE), np.float32)
    for index, start in enumerate(seconds):
        place = samples[int(start * RATE) : int(start * RATE) + 60]
        place[:] = noise(60, index)[: len(place)]
    return samples


def listen(stream: Stream, packets: Sequence[np.ndarray]) -> tuple[Event, ...]:
    """All events of an utterance."""
    return tuple(event for packet in packets for event in stream.push(packet)) + stream.flush()


def cut(samples: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """``samples`` in packets of ``sizes``, over and over."""
    packets, start, index = [], 0, 0
    while start < len(samples):
        packets.append(samples[start : start + sizes[index % len(sizes)]])
        start += sizes[index % len(sizes)]
        index += 1
    return packets


@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(0, 1500),
    sizes=st.lists(st.integers(0, 700), min_size=1, max_size=8).filter(any),
    seed=st.integers(0, 100),
)
def test_packet_sizes_change_nothing(length: int, sizes: list[int], seed: int) -> None:
    samples = noise(length, seed)
    whole, packed = NumpyStep.new(), NumpyStep.new()
    assert listen(Stream(whole, tiny_stream_spec()), [samples]) == listen(
        Stream(packed, tiny_stream_spec()), cut(samples, sizes)
    )
    assert whole.outputs["log_probs"].tobytes() == packed.outputs["log_probs"].tobytes()


def test_one_sample_at_a_time_gives_bit_identical_inputs() -> None:
    samples = noise(700)
    whole, single = LoudnessStep(), LoudnessStep()
    one, two = Stream(whole, tiny_stream_spec()), Stream(single, tiny_stream_spec())
    one.push(samples)
    for index in range(len(samples)):
        two.push(samples[index : index + 1])
    assert len(whole.seen) == len(single.seen) > 5
    for expected, got in zip(whole.seen, single.seen, strict=True):
        assert all(expected[name].tobytes() == got[name].tobytes() for name in expected)


def test_step_k_sees_feature_frames_from_k_shift_on() -> None:
    samples = noise(2000)
    step = LoudnessStep()
    Stream(step, tiny_stream_spec()).push(samples)
    frames = fbank(samples, tiny_stream_spec().frontend)
    inside = len(frames) - 1  # the last one overhangs the end: it is mirrored there, and open in a stream
    assert len(step.seen) == (inside - WINDOW) // SHIFT + 1
    for index, inputs in enumerate(step.seen):
        expected = frames[index * SHIFT : index * SHIFT + WINDOW]
        np.testing.assert_allclose(inputs["feats"][0], expected, atol=1e-5)


def test_bias_uncovers_the_cache_from_its_right_end_one_chunk_per_step() -> None:
    step = LoudnessStep()
    Stream(step, tiny_stream_spec()).push(noise(1000))
    for index, inputs in enumerate(step.seen):
        visible = min(LEFT, index * CHUNK) + CHUNK
        expected = np.full(LEFT + CHUNK, HIDDEN, np.float32)
        expected[-visible:] = 0.0
        np.testing.assert_array_equal(inputs["att_bias"][0, 0, 0], expected, err_msg=f"step {index}")


def test_poison_in_the_hidden_cache_changes_nothing(session: Session) -> None:
    clean, poisoned = session.step(), session.step()
    for step in (clean, poisoned):
        step.inputs["feats"][:] = np.random.default_rng(1).standard_normal((1, WINDOW, MEL))
        step.inputs["att_bias"][..., :LEFT] = HIDDEN
    poisoned.set_states({name: np.full_like(array, 1e3) for name, array in poisoned.states().items()})
    for step in (clean, poisoned):
        step.run()
    np.testing.assert_allclose(poisoned.outputs["log_probs"], clean.outputs["log_probs"], atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 600), sizes=st.lists(st.integers(1, 90), min_size=1, max_size=4))
def test_flush_never_loses_a_word_at_the_very_end(length: int, sizes: list[int]) -> None:
    samples = np.zeros(length + 60, np.float32)
    samples[-60:] = noise(60)
    events = listen(Stream(LoudnessStep(), tiny_stream_spec()), cut(samples, sizes))
    assert events
    assert events[-1].kind == "final"
    assert events[-1].text.split()[-1] == "one"
    assert events[-1].words[-1].time == pytest.approx((length + 30) / RATE, abs=0.06)  # about two frames of 32 ms
    assert events[-1].time <= len(samples) / RATE


def test_word_times_are_those_of_the_sound() -> None:
    starts = [0.4, 0.9, 1.45, 2.0]
    events = listen(Stream(LoudnessStep(), tiny_stream_spec()), [bursts(starts, 2.5)])
    times = [word.time for word in events[-1].words]
    np.testing.assert_allclose(times, starts, atol=0.032)  # one encoder frame


def test_partials_grow_and_never_take_a_word_back() -> None:
    events = listen(Stream(LoudnessStep(), tiny_stream_spec()), [bursts([0.3, 0.7, 1.1], 1.6)])
    assert [event.kind for event in events] == ["partial", "partial", "partial", "final"]
    assert [event.text for event in events] == ["one", "one one", "one one one", "one one one"]
    for earlier, later in itertools.pairwise(events):
        assert later.words[: len(earlier.words)] == earlier.words
        assert later.time >= earlier.time


def test_pause_of_1_2_seconds_ends_a_segment_and_a_shorter_one_does_not() -> None:
    stream = Stream(LoudnessStep(), tiny_stream_spec())
    finals = [e.text for e in listen(stream, [bursts([0.3, 1.3], 2.0)]) if e.kind == "final"]
    assert finals == ["one one"]
    events = listen(stream, [bursts([0.3, 1.8], 4.0)])
    assert [event.kind for event in events] == ["partial", "final", "partial", "final"]
    assert [event.text for event in events if event.kind == "final"] == ["one", "one"]
    assert events[1].time == pytest.approx(0.33 + 1.2, abs=0.12)  # a chunk of 64 ms and the window's look-ahead


def test_silence_and_nothing_at_all_give_no_events() -> None:
    stream = Stream(LoudnessStep(), tiny_stream_spec())
    assert stream.flush() == ()
    assert listen(stream, [np.zeros(0, np.float32)]) == ()
    assert listen(stream, [np.zeros(5000, np.float32)]) == ()


def test_flush_and_reset_leave_a_fresh_stream(session: Session) -> None:
    first, second = noise(900, 1), noise(1100, 2)
    fresh = listen(session.stream(), [second])
    flushed, dropped = session.stream(), session.stream()
    listen(flushed, [first])
    dropped.push(first)
    dropped.reset()
    assert listen(flushed, [second]) == fresh
    assert listen(dropped, [second]) == fresh


def test_interleaved_streams_give_what_each_gives_alone(session: Session) -> None:
    recordings = [noise(1200, seed) for seed in range(3)]
    alone = [listen(session.stream(), [samples]) for samples in recordings]
    streams = [session.stream() for _ in recordings]
    together: list[list[Event]] = [[] for _ in recordings]
    for start in range(0, 1200, 75):
        for stream, samples, events in zip(streams, recordings, together, strict=True):
            events.extend(stream.push(samples[start : start + 75]))
    for stream, events in zip(streams, together, strict=True):
        events.extend(stream.flush())
    assert [tuple(events) for events in together] == alone


def test_engine_streams_say_what_the_numpy_model_says(session: Session) -> None:
    samples = np.concatenate([noise(1500, seed) * scale for seed, scale in enumerate((1.0, 0.01, 0.3, 0.001))])
    expected = listen(Stream(NumpyStep.new(), tiny_stream_spec()), [samples])
    assert len({event.text for event in expected}) > 1
    assert listen(session.stream(), [samples]) == expected


def test_long_recording_in_one_packet_costs_what_small_packets_cost() -> None:
    stream, samples = Stream(LoudnessStep(), tiny_stream_spec()), np.zeros(RATE * 600, np.float32)

    def seconds(packets: Sequence[np.ndarray]) -> float:
        started = time.perf_counter()
        listen(stream, packets)
        return time.perf_counter() - started

    small = seconds(cut(samples, [64]))
    assert seconds([samples]) < 3 * small  # it was many times that when each step copied all that was pending


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(80, np.int16), "float32 in .-1, 1., got int16; divide int16 by 32768"),
        (np.zeros(80, np.uint8), "float32 in .-1, 1., got uint8"),
        (np.zeros((80, 2), np.float32), r"one channel, shape \(n,\), got \(80, 2\)"),
        (np.zeros((), np.float32), r"one channel, shape \(n,\), got \(\)"),
        ([0.0, 0.1], "numpy array of float32 in .-1, 1., got list"),
        (np.array([0.0, np.nan], np.float32), "NaN or infinity"),
        (np.array([0.0, -np.inf], np.float32), "NaN or infinity"),
        (np.array([0.0, 9000.0], np.float32), "got 0 to 9000; divide int16 by 32768"),
    ],
)
def test_what_is_not_sound_is_refused_whole(samples: np.ndarray, message: str) -> None:
    untouched, disturbed = (Stream(NumpyStep.new(), tiny_stream_spec()) for _ in range(2))
    one, two = noise(333, 1), noise(444, 2)
    expected = listen(untouched, [one, two])
    events = list(disturbed.push(one))
    with pytest.raises(AudioError, match=message):
        disturbed.push(samples)
    assert (*events, *listen(disturbed, [two])) == expected


def test_double_precision_samples_are_heard_like_single_ones() -> None:
    samples = noise(900)
    spec = tiny_stream_spec()
    assert listen(Stream(NumpyStep.new(), spec), [samples.astype(np.float64)]) == listen(
        Stream(NumpyStep.new(), spec), [samples]
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_no_numbers_name_the_step(value: float) -> None:
    step = LoudnessStep()
    stream = Stream(step, tiny_stream_spec())
    stream.push(noise(200))
    done = len(step.seen)
    step.poison = value
    with pytest.raises(UnsupportedError, match=f"step {done}: log_probs holds NaN or infinity") as caught:
        stream.push(noise(400))
    assert caught.value.exit_code == 4
    step.poison = None
    stream.reset()
    assert listen(stream, [bursts([0.3], 0.8)])[-1].text == "one"


def test_step_that_does_not_fit_the_spec_is_refused() -> None:
    with pytest.raises(InputError, match=r"'log_probs' must have shape \(1, 3, 4\), got \(1, 2, 4\)"):
        Stream(LoudnessStep(), replace(tiny_stream_spec(), chunk=3, left=3))
    with pytest.raises(InputError, match="no tensor 'mel'; it has feats, att_bias"):
        Stream(LoudnessStep(), replace(tiny_stream_spec(), features="mel"))


def test_model_that_does_not_stream_says_so(session: Session) -> None:
    session.spec = replace(session.spec, stream=None)
    with pytest.raises(InputError, match=r"model 'tiny' \(asr\) does not stream; use run\(\)"):
        session.stream()


def test_hidden_tokens_are_speech_and_no_words() -> None:
    class Unknowns(LoudnessStep):
        def run(self) -> None:
            super().run()
            self.outputs["log_probs"][0, :, 3] = self.outputs["log_probs"][0, :, 1] + 0.5 * (
                self.outputs["log_probs"][0, :, 1] == 0
            )

    assert TOKENS[3] == "<unk>"
    assert listen(Stream(Unknowns(), tiny_stream_spec()), [bursts([0.3, 0.9], 1.5)]) == ()
