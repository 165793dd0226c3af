"""Stream: samples in packets of any size in, words out.

Whatever the packets, a step sees the same frames: the same samples give bit-identical events. docs/streaming.md tells
the whole path.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from edgeattn.errors import AudioError, InputError, UnsupportedError
from edgeattn.runtimes.decoding import GreedyDecoder, best_labels
from edgeattn.runtimes.step import Step
from edgeattn.spec import HIDDEN, StreamSpec

ENDPOINT_SECONDS = Fraction(6, 5)  # of blanks after text end a segment (sherpa's rule 2)
LOUDEST = 32.0  # 30 dB above full scale: resampling overshoots by far less, int16 amplitudes by far more


@dataclass(frozen=True)
class Word:
    """A word and when it was said."""

    text: str
    time: float  # seconds of audio: middle of what the frame of its first CTC spike sees


@dataclass(frozen=True)
class Event:
    """What a stream has to say.

    "partial": the segment grew; ``text`` and ``words`` are the whole segment so far, and words never change again.
    "final": the segment ended, after 1.2 s without speech or by flush.
    """

    kind: Literal["partial", "final"]
    text: str
    words: tuple[Word, ...]
    time: float  # seconds of audio that had to be heard for it


class Stream:
    """One utterance after another through a step of its own.

    Streams of one session may be used by a thread each, at once. Threads that share one stream take turns: a packet is
    heard whole, in the order in which they come.
    """

    def __init__(self, step: Step, spec: StreamSpec, check_usable: Callable[[], None] = lambda: None) -> None:
        """Take over ``step``: nothing else may run it.

        Args:
            check_usable: raises where the session behind ``step`` is closed, or was loaded before a fork.

        Raises:
            InputError: if the step's tensors do not fit ``spec``.
        """
        from edgeattn.audio import OnlineFbank  # brings wave: device code that never streams need not pay for it

        _check_fit(step, spec)
        self._check_usable = check_usable
        self._turn = threading.Lock()
        self._fbank_of = OnlineFbank
        self._step, self._spec = step, spec
        self._features, self._bias = step.inputs[spec.features], step.inputs[spec.bias]
        self._scores = step.outputs[spec.scores]
        self._window = np.zeros((spec.window, spec.frontend.num_mel), np.float32)
        self._decoder = GreedyDecoder(spec.decoder)
        hop, ratio = spec.frontend.frame_seconds, Fraction(spec.shift, spec.chunk)
        self._frame_seconds = float(spec.encoder_frame_seconds)
        self._first_middle = float((spec.window - spec.shift + ratio) * hop / 2)
        self._quiet_limit = -(-ENDPOINT_SECONDS // spec.encoder_frame_seconds)  # frames, rounded up
        self._reset()

    @property
    def hop_samples(self) -> int:
        """Samples from one step to the next."""
        return self._spec.shift * self._spec.frontend.hop_length

    def reset(self) -> None:
        """Forget everything: the stream is as new, and time starts at zero."""
        self._check_usable()
        with self._turn:
            self._reset()

    def _reset(self) -> None:
        self._step.reset()
        self._fbank = self._fbank_of(self._spec.frontend)
        self._missing = self._spec.window  # frames until the next step
        self._steps = 0
        self._samples = 0
        self._words: list[Word] = []
        self._decoder.reset()
        self._bias[..., : self._spec.left] = HIDDEN
        self._bias[..., self._spec.left :] = 0.0

    def push(self, samples: np.ndarray) -> tuple[Event, ...]:
        """Hear a packet of any size, an empty one included.

        Args:
            samples: floating point in [-1, 1], shape (n,), at the front end's sample rate.

        Returns:
            the events of the steps that became possible, in order; often none.

        Raises:
            AudioError: for integer samples, another rank, NaN, infinity or amplitudes far beyond [-1, 1]; the packet is
                then refused whole and the stream goes on as if it had not been pushed.
            UnsupportedError: if the engine fails or its scores hold NaN; reset before going on.
            InputError: if the session is closed, or was loaded before this process was forked.
        """
        self._check_usable()
        check_samples(samples)
        events: list[Event] = []
        with self._turn:
            self._samples += len(samples)
            # In pieces: the front end copies what is pending, which for an hour in one packet would be quadratic.
            for start in range(0, len(samples), self.hop_samples):
                self._hear(samples[start : start + self.hop_samples], events)
        return tuple(events)

    def flush(self) -> tuple[Event, ...]:
        """End the utterance: pad with silence until the last sample left every window, finish the segment, and reset.

        Returns:
            the remaining events, the last a "final" if there is text. What is pushed next is a new utterance.

        Raises:
            UnsupportedError, InputError: as :meth:`push`.
        """
        self._check_usable()
        events: list[Event] = []
        with self._turn:
            if self._samples:
                self._hear_silence(events)
            if self._words:
                events.append(self._finish())
            self._reset()
        return tuple(events)

    def _hear_silence(self, events: list[Event]) -> None:
        frontend = self._spec.frontend
        tail = (self._spec.window + self._spec.shift) * frontend.hop_length + frontend.frame_length
        silence = np.zeros(self.hop_samples, np.float32)
        for _ in range(-(-tail // self.hop_samples)):
            self._hear(silence, events)

    def _hear(self, samples: np.ndarray, events: list[Event]) -> None:
        self._fbank.accept(samples)
        while self._fbank.ready >= self._missing:
            self._fbank.read(self._window[self._spec.window - self._missing :])
            self._run_step(events)
            overlap = self._spec.window - self._spec.shift
            self._window[:overlap] = self._window[self._spec.shift :]
            self._missing = self._spec.shift

    def _run_step(self, events: list[Event]) -> None:
        self._features[0] = self._window
        self._step.run()
        if not np.isfinite(self._scores).all():
            raise UnsupportedError(
                f"step {self._steps}: {self._spec.scores} holds NaN or infinity: it overflows in this precision. "
                "Convert it with a wider one (fp32); reset the stream before going on"
            )
        first = self._steps * self._spec.chunk
        self._steps += 1
        # The cache fills from its right end, one chunk per step.
        filled = min(self._spec.left, self._steps * self._spec.chunk)
        self._bias[..., self._spec.left - filled : self._spec.left] = 0.0
        grown = False
        for offset, label in enumerate(best_labels(self._scores)):
            text = self._decoder.accept(label)
            if text is not None:
                self._words.append(Word(text, self._first_middle + (first + offset) * self._frame_seconds))
                grown = True
            elif self._words and self._decoder.quiet >= self._quiet_limit:
                events.append(self._finish())
                grown = False
        if grown:
            events.append(self._event("partial"))

    def _finish(self) -> Event:
        event = self._event("final")
        self._words = []
        return event

    def _event(self, kind: Literal["partial", "final"]) -> Event:
        spec = self._spec
        heard = float(((self._steps - 1) * spec.shift + spec.window) * spec.frontend.frame_seconds)
        pushed = self._samples / spec.frontend.sample_rate
        return Event(kind, " ".join(word.text for word in self._words), tuple(self._words), min(heard, pushed))


def check_samples(samples: np.ndarray) -> None:
    """Refuse what is not sound in [-1, 1].

    Raises:
        AudioError: saying what was expected and what came.
    """
    if not isinstance(samples, np.ndarray):
        raise AudioError(f"samples must be a numpy array of float32 in [-1, 1], got {type(samples).__name__}")
    if isinstance(samples, np.ma.MaskedArray):
        raise AudioError("samples are a masked array; fill it first, with array.filled(0) for silence")
    if samples.ndim != 1:
        raise AudioError(f"samples must be one channel, shape (n,), got {samples.shape}; average the channels first")
    if samples.dtype.kind != "f":
        hint = "; divide int16 by 32768" if samples.dtype == np.int16 else ""
        raise AudioError(f"samples must be float32 in [-1, 1], got {samples.dtype}{hint}")
    if len(samples) == 0:
        return
    low, high = float(samples.min()), float(samples.max())  # both are NaN if one sample is
    if not (low >= -LOUDEST and high <= LOUDEST):
        if np.isfinite(samples).all():
            raise AudioError(f"samples must be float32 in [-1, 1], got {low:.0f} to {high:.0f}; divide int16 by 32768")
        raise AudioError("samples hold NaN or infinity")


def _check_fit(step: Step, spec: StreamSpec) -> None:
    wanted: tuple[tuple[str, Mapping[str, np.ndarray], tuple[int, ...]], ...] = (
        (spec.features, step.inputs, (1, spec.window, spec.frontend.num_mel)),
        (spec.bias, step.inputs, (1, 1, 1, spec.left + spec.chunk)),
        (spec.scores, step.outputs, (1, spec.chunk, len(spec.decoder.tokens))),
    )
    for name, tensors, shape in wanted:
        if name not in tensors:
            raise InputError(f"stream: the graph has no tensor {name!r}; it has {', '.join(tensors)}")
        if tensors[name].shape != shape:
            raise InputError(f"stream: {name!r} must have shape {shape}, got {tensors[name].shape}")
