"""Outputs of any kind against those of the source: when they count as alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeattn.errors import DataError
from edgeattn.evaluation.arrays import ArrayData, ArraySample
from edgeattn.model import Reference
from edgeattn.sources.tasks import as_task_data
from edgeattn.tasks import Pipeline, stored
from edgeattn.tasks.anything import AGREES, Anything
from tests.tasks.end_to_end import Gives, model_for, scored_everywhere, task_of

INF, NAN = np.inf, np.nan


def alike(answer: object, target: object) -> float:
    statistics = AGREES.statistics({"y": np.array(answer)}, {"y": np.array(target)})
    return AGREES.value([statistics])


@pytest.mark.parametrize(
    ("answer", "target", "expected"),
    [
        ([1.0, 0.0], [2.0, 0.0], 1.0),
        ([1.0, 1.0], [1.0, 0.0], 1 / np.sqrt(2)),
        ([1.0, 0.0], [0.0, 1.0], 0.0),
        ([1.0, 0.0], [-1.0, 0.0], 0.0),  # opposite is no better than nothing
        ([0.0, 0.0], [0.0, 0.0], 1.0),
        ([0.0, 0.0], [1.0, 0.0], 0.0),
        ([1.0, 0.0], [0.0, 0.0], 0.0),
        ([1.0, NAN], [1.0, 2.0], 0.0),
        ([1.0, INF], [1.0, 2.0], 0.0),
        ([1.0, -INF], [1.0, -INF], 1.0),  # what hides on purpose hides here, too
        ([1.0, 2.0], [1.0, -INF], 0.0),
        ([1.0, -INF], [1.0, INF], 0.0),
        ([1.0, NAN], [1.0, NAN], 1.0),
        ([-INF, -INF], [-INF, -INF], 1.0),
        ([[1.0, 2.0]], [1.0, 2.0], 0.0),
        ([1.0], [1.0, 2.0], 0.0),
        ([1, 2, 3, 4], [1, 2, 0, 4], 0.75),
        ([True, False], [True, True], 0.5),
        ([1, 2], [1, 2, 3], 0.0),
    ],
)
def test_how_far_outputs_are_alike(answer: list[float], target: list[float], expected: float) -> None:
    assert alike(answer, target) == pytest.approx(expected, abs=1e-12)


def test_outputs_weigh_the_same() -> None:
    answer = {"a": np.array([1.0, 0.0]), "b": np.array([3, 4])}
    target = {"a": np.array([0.0, 1.0]), "b": np.array([3, 4])}
    assert AGREES.value([AGREES.statistics(answer, target)]) == 0.5


def test_nothing_at_all_is_alike() -> None:
    assert alike(np.zeros((1, 0), np.int64), np.zeros((1, 0), np.int64)) == 1.0
    assert alike(np.zeros((1, 0), np.float32), np.zeros((1, 0), np.float32)) == 1.0


NUMBERS = hnp.arrays(np.float32, hnp.array_shapes(max_dims=2, max_side=4), elements=st.floats(-1e6, 1e6, width=32))


@given(array=NUMBERS, factor=st.floats(0.01, 100))
def test_a_factor_changes_nothing_and_the_range_holds(array: np.ndarray, factor: float) -> None:
    assert alike(array, array) == pytest.approx(1.0, abs=1e-9)
    assert alike(array * np.float64(factor), array) == pytest.approx(1.0, abs=1e-9)
    assert 0.0 <= alike(array[::-1], array) <= 1.0


def test_an_embedding_agrees_with_its_source(tmp_path: Path) -> None:
    model = model_for("embedding", Gives("y", lambda x: x @ torch.ones(3, 5)), x=torch.zeros(1, 3))
    rng = np.random.default_rng(0)
    rows = tuple(
        ArraySample({"x": rng.standard_normal((1, 3)).astype(np.float32)}, {}, frozenset({"x"})) for _ in range(4)
    )
    data = as_task_data(ArrayData("rows", (), rows), task_of(model)).agreeing(Reference(model), lambda: None)
    assert data is not None
    score = scored_everywhere(model, data, tmp_path)
    assert score.metric == "agreement-cosine"
    assert score.value == pytest.approx(1.0)
    other = model_for("embedding", Gives("y", lambda x: -(x @ torch.ones(3, 5))), x=torch.zeros(1, 3))
    opposite = data.score(Reference(other), data.evaluation, lambda: None)
    assert opposite is not None
    assert opposite.value == 0.0


def test_an_npz_in_outputs_out(tmp_path: Path) -> None:
    model = model_for("embedding", Gives("y", lambda x: 2 * x), x=torch.zeros(1, 3))
    pipeline = Pipeline(Reference(model), stored(task_of(model)), {})
    np.savez(tmp_path / "a.npz", x=np.ones((1, 3), np.float32), unused=np.zeros(2))
    given = pipeline.read(str(tmp_path / "a.npz"))
    assert pipeline(given) == {"y": [[2.0, 2.0, 2.0]]}
    assert pipeline.task.line(pipeline.answer(given)) == "y[1, 3] of norm 3.464"
    assert pipeline.task.line({"y": np.array([NAN, 3.0])}) == "y[2] of norm 3"


def test_what_is_no_npz_is_refused(tmp_path: Path) -> None:
    task = Anything(outputs=("y",))
    (tmp_path / "a.npz").write_text("text")
    with pytest.raises(DataError, match="not a plain npz"):
        task.parsed(str(tmp_path / "a.npz"))
    with pytest.raises(DataError, match=r"b\.npz: cannot be read: No such file.*expected an \.npz"):
        task.parsed(str(tmp_path / "b.npz"))


def test_arrays_of_other_names_are_refused(tmp_path: Path) -> None:
    model = model_for("embedding", Gives("y", lambda x: 2 * x), x=torch.zeros(1, 3))
    encode = task_of(model).encoder(model.spec, {})
    for wrong in ({"y": np.zeros(3)}, np.zeros(3), None):
        with pytest.raises(DataError, match="expected arrays named x"):
            encode(wrong)
    with pytest.raises(DataError, match=r"expected an \.npz of arrays"):
        task_of(model).read(tmp_path, {})
