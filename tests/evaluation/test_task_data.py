"""Samples of a task: scored by the task's metrics, by agreement where nothing is labelled, here and on a device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from edgeattn.errors import DataError
from edgeattn.evaluation.accuracy import paired_drop
from edgeattn.evaluation.task_data import TaskData, TaskSample
from edgeattn.jobs.parcel import pack, unpacked
from edgeattn.spec import GraphSpec, ModelSpec, TensorSpec
from edgeattn.tasks import Encoded, Metric, Task
from edgeattn.tasks.anything import Anything
from edgeattn.tasks.text_classification import TextClassification

SPEC = ModelSpec(
    "m", "text-classification",
    (GraphSpec("main", (TensorSpec("x", "float32", (1, 3)),), (TensorSpec("logits", "float32", (1, 3)),)),),
)  # fmt: skip
CLASSES = TextClassification(output="logits", classes=3, labels=("a", "b", "c"))


class Echo:
    """Gives its input as scores, times a factor."""

    spec = SPEC

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"logits": self.factor * inputs["x"]}


def sample(best: int, target: int | None) -> TaskSample:
    scores = np.zeros((1, 3), np.float32)
    scores[0, best] = 1.0
    return TaskSample(encoded=Encoded(calls=({"x": scores},)), target=target)


def data(*samples: TaskSample, task: Task = CLASSES) -> TaskData:
    return TaskData("some", (), samples, task=task)


def nothing() -> None:
    pass


def test_the_first_metric_gates_and_the_others_are_told() -> None:
    given = data(*(sample(i % 3, i % 3 if i < 8 else (i + 1) % 3) for i in range(10)))
    score = given.score(Echo(), given.evaluation, nothing)  # type: ignore[arg-type]
    assert score is not None
    assert (score.metric, score.value, score.unit) == ("accuracy", 0.8, "%")
    assert set(score.others) == {"macro-f1", "matthews"}
    assert 70 < score.others["macro-f1"] < 90
    assert score.errors == pytest.approx((0.0,) * 8 + (1.0,) * 2)


def test_what_has_no_label_is_compared_where_others_have_one() -> None:
    labelled = [sample(i % 3, i % 3) for i in range(30)]
    given = data(*labelled, *(sample(i % 3, None) for i in range(300)))
    first, again = (given.score(Echo(f), given.evaluation, nothing) for f in (1.0, 2.0))  # type: ignore[arg-type]
    assert first is not None
    assert again is not None
    assert (first.samples, len(first.unlabelled)) == (30, 300)
    assert paired_drop(first, again).upper < 2.0  # 330 samples say more than 30
    turned = given.score(Echo(-1.0), given.evaluation, nothing)  # type: ignore[arg-type]
    assert turned is not None
    assert paired_drop(first, turned).upper == pytest.approx(100.0)


def test_without_labels_it_is_agreement_with_the_source() -> None:
    given = data(*(sample(i % 3, None) for i in range(40)))
    assert given.score(Echo(), given.evaluation, nothing) is None  # type: ignore[arg-type]
    agreeing = given.agreeing(Echo(), nothing)  # type: ignore[arg-type]
    assert agreeing is not None
    same = agreeing.score(Echo(3.0), agreeing.evaluation, nothing)  # type: ignore[arg-type]
    assert same is not None
    assert (same.metric, same.value) == ("agreement", 1.0)
    turned = agreeing.score(Echo(-1.0), agreeing.evaluation, nothing)  # type: ignore[arg-type]
    assert turned is not None
    assert turned.value == 0.0
    assert agreeing.agreeing(Echo(), nothing) is None  # type: ignore[arg-type]


def test_a_metric_that_tells_nothing_is_told() -> None:
    given = data(*(sample(0, i % 3) for i in range(30)))
    score = given.score(Echo(), given.evaluation, nothing)  # type: ignore[arg-type]
    assert score is not None
    assert score.broken == "the metric is constant: every answer is class 0, the labels have 3"


def test_not_a_number_is_never_right() -> None:
    given = data(*(sample(i % 3, i % 3) for i in range(6)))
    score = given.score(Echo(float("nan")), given.evaluation, nothing)  # type: ignore[arg-type]
    assert score is not None
    assert score.value == 0.0


def test_samples_travel_with_their_task(tmp_path: Path) -> None:
    given = data(sample(1, 1), sample(2, None))
    (tmp_path / "parcel").write_bytes(pack({}, "", given))
    with unpacked(tmp_path / "parcel") as opened:
        assert isinstance(opened.data, TaskData)
        assert opened.data.task == CLASSES
        found = list(opened.samples)
        there = opened.data.score(Echo(), found, nothing)  # type: ignore[arg-type]
    assert [one.target for one in found] == [1, None]
    assert there == given.score(Echo(), given.evaluation, nothing)  # type: ignore[arg-type]


def test_answers_of_the_source_travel_as_arrays(tmp_path: Path) -> None:
    rows = [TaskSample(encoded=Encoded(calls=({"x": np.full((1, 3), i, np.float32)},))) for i in (1, 2)]
    given = data(*rows, task=Anything(outputs=("logits",))).agreeing(Echo(), nothing)  # type: ignore[arg-type]
    assert given is not None
    (tmp_path / "parcel").write_bytes(pack({}, "", given))
    with unpacked(tmp_path / "parcel") as opened:
        assert isinstance(opened.data, TaskData)
        score = opened.data.score(Echo(2.0), opened.samples, nothing)  # type: ignore[arg-type]
    assert score is not None
    assert score.metric == "agreement-cosine"
    assert score.value == pytest.approx(1.0)


def test_a_metric_of_the_users_does_not_travel() -> None:
    metric = Metric(name="mine", statistics=np.subtract, value=np.mean)
    own = TaskData("some", (), (sample(1, 1),), task=CLASSES, metrics=(metric,))
    with pytest.raises(DataError, match="mine is a function of yours, which no device is sent"):
        own.about()


def test_every_call_of_a_sample_calibrates_and_is_recorded() -> None:
    two = TaskSample(encoded=Encoded(calls=({"x": np.ones((1, 3), np.float32)}, {"x": np.zeros((1, 3), np.float32)})))
    runs = TaskData("some", (two,), (two,), task=CLASSES).training_runs(SPEC)
    assert [len(run) for run in runs["main"]] == [1, 1]
    assert set(TaskData.inputs_of(two)) == {"x", "1.x"}
