"""What a model can be held to, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgeattn.errors import InputError
from edgeattn.profiling.contract import Contract, MeasureOptions, contract
from edgeattn.spec import GraphSpec, ModelSpec, TensorSpec
from tests.runtimes.tiny import tiny_spec

CALLED = ModelSpec("m", "none", (GraphSpec("main", (TensorSpec("x", "float32", (1,)),), ()),))
STREAM = tiny_spec()  # hops of 64 ms at 1 kHz
OPTIONS = MeasureOptions()


def test_a_stream_is_held_to_its_hop_unless_a_deadline_is_asked_for() -> None:
    assert contract(STREAM, OPTIONS) == Contract(64.0, 64.0, 5.0, 512 - 32)  # 512 is eight hops of 64 samples
    asked = replace(OPTIONS, deadline_ms=10.0, packet=30, paced_seconds=2.0)
    assert contract(STREAM, asked) == Contract(64.0, 10.0, 2.0, 30)
    assert contract(STREAM, replace(OPTIONS, hop_ms=64.0)) == contract(STREAM, OPTIONS)


def test_calls_are_held_to_the_hop_that_is_given() -> None:
    assert contract(CALLED, replace(OPTIONS, hop_ms=20.0)) == Contract(20.0, 20.0, 5.0, None)
    asked = replace(OPTIONS, hop_ms=20.0, deadline_ms=5.0, jitter_ms=3.0, load=2, trace=True)
    assert contract(CALLED, asked) == Contract(20.0, 5.0, 5.0, None)


def test_calls_without_a_hop_are_not_paced() -> None:
    assert contract(CALLED, OPTIONS) is None
    assert contract(CALLED, replace(OPTIONS, deadline_ms=5.0)) is None


@pytest.mark.parametrize(
    ("spec", "changes", "message"),
    [
        (CALLED, {"jitter_ms": 1.0}, "does not stream: give --hop"),
        (CALLED, {"load": 1}, "does not stream: give --hop"),
        (CALLED, {"trace": True}, "does not stream: give --hop"),
        (STREAM, {"hop_ms": 20.0}, r"streams in hops of 64 ms, not 20 ms: leave --hop out"),
        (STREAM, {"jitter_ms": 1.0, "paced_seconds": 0.0}, "give --duration a time above 0"),
        (STREAM, {"load": 1, "paced_seconds": 0.0}, "give --duration a time above 0"),
        (STREAM, {"paced_seconds": 0.05}, r"a run of 0\.05 s is shorter than one hop of 64 ms"),
        (STREAM, {"paced_seconds": 0.07}, r"a run of 0\.07 s ends before the stream's first chunk"),  # that takes 96 ms
        (CALLED, {"hop_ms": 0.0}, "--hop must be above 0"),
        (CALLED, {"hop_ms": -1.0}, "finite times of at least 0"),
        (CALLED, {"hop_ms": float("nan")}, "finite times of at least 0"),
        (STREAM, {"jitter_ms": float("inf")}, "finite times of at least 0"),
        (STREAM, {"load": 257}, "0 to 256 busy processes, got 257"),
        (STREAM, {"load": -1}, "0 to 256 busy processes, got -1"),
        (CALLED, {"hop_ms": 0.001, "paced_seconds": 1e5}, "are more than 10000000"),
        (STREAM, {"packet": 1, "paced_seconds": 1e5}, "are more than 10000000"),
    ],
)
def test_what_cannot_be_met_is_refused(spec: ModelSpec, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        contract(spec, replace(OPTIONS, **changes))  # type: ignore[arg-type]


def test_a_loaded_run_takes_its_time_again() -> None:
    assert replace(OPTIONS, paced_seconds=7.0).longest_seconds == 7.0
    assert replace(OPTIONS, paced_seconds=7.0, load=1).longest_seconds == 14.0


def test_slow_calls_are_timed_fewer_times_and_quick_ones_as_often_as_asked() -> None:
    options = MeasureOptions(runs=200, most_seconds=10.0)
    assert [options.runs_of(seconds) for seconds in (0.0, 0.01, 0.05, 0.4, 30.0)] == [200, 200, 200, 25, 10]
    assert MeasureOptions(runs=5, most_seconds=10.0).runs_of(30.0) == 5
    assert MeasureOptions(runs=200, most_seconds=0).runs_of(30.0) == 200
