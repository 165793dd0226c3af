"""Recording and replaying on the numpy oracle of tests/runtimes/tiny.py."""

from __future__ import annotations

import itertools
from typing import cast

import numpy as np
import pytest

from edgeattn.evaluation.replay import record_calls, record_stream, record_utterances, replay
from edgeattn.runtimes import Step
from edgeattn.runtimes.agreement import SQNR_LIMIT
from edgeattn.spec import StreamSpec
from tests.runtimes.tiny import CHUNK, LEFT, MEL, NumpyStep, tiny_spec


def stream_spec() -> StreamSpec:
    return cast(StreamSpec, tiny_spec().stream)


def new_step() -> Step:
    return cast(Step, NumpyStep.new())


def sound(samples: int, seed: int = 0) -> np.ndarray:
    noise: np.ndarray = 0.1 * np.random.default_rng(seed).standard_normal(samples, dtype=np.float32)
    return noise


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_a_recorded_stream_has_exactly_the_steps_asked_for(steps: int) -> None:
    records = record_stream(new_step(), stream_spec(), [sound(300), sound(500, 1)], steps)  # repeated as needed
    assert len(records) == steps


def test_a_recorded_stream_never_resets_its_states() -> None:
    records = record_stream(new_step(), stream_spec(), [sound(400)], 20)
    assert not records[0].states["key_cache"].any()
    assert all(record.states["key_cache"].any() for record in records[1:])
    # what a step left in its caches is what the next one reads: the last C rows are new, the others moved up
    for before, after in itertools.pairwise(records):
        moved = before.states["key_cache"][:, CHUNK:]
        np.testing.assert_array_equal(after.states["key_cache"][:, : LEFT - CHUNK], moved)


def test_a_stream_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing"):
        record_stream(new_step(), stream_spec(), [np.zeros(0, np.float32)], 3)


def test_recorded_utterances_start_with_empty_caches_each() -> None:
    records = record_utterances(new_step(), stream_spec(), [sound(400, n) for n in range(3)], 1_000)
    empty = [not record.states["key_cache"].any() for record in records]
    assert empty[0]
    assert sum(empty) == 3
    assert all(record.inputs["feats"].shape == (1, 5, MEL) for record in records)


def test_recorded_utterances_stop_at_the_limit() -> None:
    assert len(record_utterances(new_step(), stream_spec(), [sound(400)] * 3, 4)) == 4


def test_records_are_copies_of_what_passed() -> None:
    records = record_stream(new_step(), stream_spec(), [sound(800)], 5)
    assert not np.array_equal(records[0].inputs["feats"], records[1].inputs["feats"])
    assert not np.shares_memory(records[0].outputs["log_probs"], records[1].outputs["log_probs"])


def test_a_replay_on_the_same_engine_is_identical_with_carried_states() -> None:
    records = record_stream(new_step(), stream_spec(), [sound(800)], 30)
    heard = []
    parity = replay(records, new_step(), "itself", carried=True, on_step=lambda: heard.append(1))
    assert (parity.steps, len(heard)) == (30, 30)
    assert parity.outputs["log_probs"].max_abs == 0.0
    assert parity.outputs["log_probs"].sqnr_db == SQNR_LIMIT


def test_a_replay_that_resets_differs_from_a_carried_record() -> None:
    records = record_stream(new_step(), stream_spec(), [sound(800)], 30)
    assert replay(records, new_step(), "itself", carried=False).outputs["log_probs"].max_abs > 1e-3


def test_a_replay_leaves_the_step_fresh() -> None:
    records = record_stream(new_step(), stream_spec(), [sound(800)], 5)
    step = new_step()
    replay(records, step, "itself", carried=True)
    assert not any(state.any() for state in step.states().values())


def test_recorded_calls_are_independent_and_replay_with_resets() -> None:
    rng = np.random.default_rng(5)
    calls = [
        {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in tiny_spec().graphs[0].inputs}
        for _ in range(6)
    ]
    records = record_calls(new_step(), calls)
    assert not any(record.states["key_cache"].any() for record in records)
    assert replay(records, new_step(), "itself", carried=False).outputs["log_probs"].max_abs == 0.0
    assert replay(records, new_step(), "itself", carried=True).outputs["log_probs"].max_abs > 1e-3
