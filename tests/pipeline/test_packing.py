"""How many golden steps a bundle keeps."""

from __future__ import annotations

import numpy as np
import pytest

from edgeattn.evaluation.replay import Record
from edgeattn.pipeline.steps.baseline import Baseline
from edgeattn.pipeline.steps.packing import GOLDEN_BYTES, golden_inputs


def base(outputs: int, records: int = 1) -> Baseline:
    """Two graphs whose steps together give so many bytes."""
    half = np.zeros(outputs // 8, np.float32)
    every = tuple(Record({"x": np.array([index], np.float32)}, {}, {"y": half}) for index in range(records))
    return Baseline({"first": every, "second": every}, {}, None, None)


@pytest.mark.parametrize(
    ("size", "steps"), [(8, 6), (GOLDEN_BYTES // 6 - 64, 6), (GOLDEN_BYTES // 3 - 64, 3), (GOLDEN_BYTES, 2)]
)
def test_outputs_that_would_outweigh_a_model_are_kept_for_fewer_steps(size: int, steps: int) -> None:
    kept = golden_inputs(base(size))
    assert {name: len(rows) for name, rows in kept.items()} == {"first": steps, "second": steps}


def test_calls_begin_again_where_fewer_were_recorded() -> None:
    assert [row["x"][0] for row in golden_inputs(base(8, records=4))["first"]] == [0, 1, 2, 3, 0, 1]
