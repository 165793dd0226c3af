"""transcribe(): samples through the stream of a bundle, as they come; what it hears is told as it is heard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeattn.profiling.figures import Realtime
from edgeattn.profiling.pacing import pace
from edgeattn.runtimes import Event, Session
from edgeattn.spec import StreamSpec, to_json

PACKET = 512  # samples per arrival
LOCAL = "local"


@dataclass(frozen=True, kw_only=True)
class Transcription:
    """What a stream heard.

    Attributes:
        backend: the engine that ran.
        events: partial and final, in their order.
        device: as ``--device`` names it.
        realtime: how it kept to the clock; None where it was not paced.
    """

    backend: str
    events: tuple[Event, ...]
    device: str = LOCAL
    realtime: Realtime | None = None

    @property
    def text(self) -> str:
        """The words of all final events."""
        return " ".join(word.text for word in self._words)

    @property
    def _words(self) -> list[Any]:
        return [word for event in self.events if event.kind == "final" for word in event.words]

    def to_json(self) -> dict[str, Any]:
        """The ``--json`` object of ``edgeattn stream``."""
        return {
            "schema": 1,
            "backend": self.backend,
            "device": self.device,
            "text": self.text,
            "words": to_json(self._words),
            "events": to_json(self.events),
            "realtime": to_json(self.realtime) if self.realtime is not None else None,
        }


def stream_spec(session: Session) -> StreamSpec:
    """What the stream of a bundle takes.

    Raises:
        InputError: if its model does not stream.
    """
    session.stream()  # says so
    assert session.spec.stream is not None
    return session.spec.stream


def transcribe(session: Session, packets: Iterable[np.ndarray], on_event: Callable[[Event], None]) -> Transcription:
    """Push packets as fast as they come, then flush.

    Args:
        packets: float32 in [-1, 1], shape (n,) of any n, at the sample rate of :func:`stream_spec`.
        on_event: called with each event before the next packet is asked for.

    Raises:
        InputError: if the model does not stream.
        AudioError: for samples that are not finite.
    """
    live, heard = session.stream(), _Heard(on_event)
    for samples in packets:
        heard.all(live.push(samples))
    heard.all(live.flush())
    return Transcription(backend=session.backend, events=tuple(heard.events))


def transcribe_paced(
    session: Session,
    samples: np.ndarray,
    on_event: Callable[[Event], None],
    deadline_ms: float | None = None,
    packet: int = PACKET,
) -> Transcription:
    """As :func:`transcribe`, a packet at a time and none before the clock says that it was spoken.

    Args:
        samples: float32 in [-1, 1], shape (n,).
        deadline_ms: of each chunk; None for the hop of the stream.
        packet: samples per arrival.

    Raises:
        InputError, AudioError: as :func:`transcribe`.
    """
    spec = stream_spec(session)
    live, heard = session.stream(), _Heard(on_event)
    limit = 1e3 * float(spec.hop_seconds) if deadline_ms is None else deadline_ms
    realtime = pace(live, spec, samples, packet, limit, heard.one)
    heard.all(live.flush())
    return Transcription(backend=session.backend, events=tuple(heard.events), realtime=realtime)


class _Heard:
    """Keeps events and hands them on."""

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        self.events: list[Event] = []
        self._on_event = on_event

    def one(self, event: Event) -> None:
        self.events.append(event)
        self._on_event(event)

    def all(self, events: Sequence[Event]) -> None:
        for event in events:
            self.one(event)
