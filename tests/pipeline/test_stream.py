"""transcribe(): the same words however the samples come, and each event told before the next packet is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeattn.errors import InputError
from edgeattn.pipeline.stream import stream_spec, transcribe, transcribe_paced
from edgeattn.runtimes import Event, Session, load
from edgeattn.sources import load_data, load_model
from tests.conversions import BUNDLES, small_conversion, speech_conversion
from tests.once import shared_root


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    pytest.importorskip("openvino", reason="the cpu target needs edgeattn[openvino]")
    out = speech_conversion(shared_root(tmp_path_factory))[1]
    with load(out / f"streaming-conformer.{BUNDLES['cpu']}") as opened:
        yield opened


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    """A second and a half of the first utterance of the sample that comes with the model."""
    data = load_data("streaming-conformer", load_model("streaming-conformer").spec, None, None, 1)
    assert data is not None
    spoken: np.ndarray = data.evaluation[0].samples[:12_000]
    return spoken


def ignore(_: Event) -> None:
    pass


@pytest.mark.parametrize("size", [1, 511, 4_000])
def test_packets_of_any_size_are_heard_as_the_whole(session: Session, samples: np.ndarray, size: int) -> None:
    live = session.stream()
    expected = [*live.push(samples), *live.flush()]
    packets = (samples[start : start + size] for start in range(0, len(samples), size))
    told: list[Event] = []
    heard = transcribe(session, packets, told.append)
    finals = [event.text for event in expected if event.kind == "final"]
    assert [event.text for event in heard.events if event.kind == "final"] == finals
    assert heard.text == " ".join(finals)
    assert tuple(told) == heard.events
    assert (heard.backend, heard.realtime) == (session.backend, None)


def test_events_are_told_before_more_is_asked_for(session: Session, samples: np.ndarray) -> None:
    order: list[str] = []

    def packets() -> Iterator[np.ndarray]:
        for _ in range(3):
            order.append("asked")
            yield samples

    transcribe(session, packets(), lambda _: order.append("told"))
    assert order.index("told") < len(order) - 1 - order[::-1].index("asked")


def test_a_paced_stream_hears_the_same_and_keeps_score(session: Session, samples: np.ndarray) -> None:
    at_once = transcribe(session, [samples], ignore)
    paced = transcribe_paced(session, samples, ignore, deadline_ms=5_000.0)
    assert paced.text == at_once.text
    assert paced.realtime is not None
    assert (paced.realtime.deadline_ms, paced.realtime.misses) == (5_000.0, 0)
    hop = transcribe_paced(session, samples[:3_000], ignore).realtime
    assert hop is not None
    assert hop.deadline_ms == 1e3 * float(stream_spec(session).hop_seconds)


def test_a_model_that_does_not_stream_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    out: Path = small_conversion(shared_root(tmp_path_factory)).out
    with load(out / f"small-attention.{BUNDLES['cpu']}") as opened:
        with pytest.raises(InputError, match="does not stream"):
            stream_spec(opened)
        with pytest.raises(InputError, match="does not stream"):
            transcribe(opened, [], ignore)
