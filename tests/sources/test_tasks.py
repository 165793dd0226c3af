"""What a model is for, its samples, and what is measured: asked for, recognised, or refused with what would fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.errors import DataError, InputError
from edgeattn.evaluation.data import Data
from edgeattn.evaluation.task_data import TaskData
from edgeattn.sources import load_data
from edgeattn.sources.metrics import with_metric
from edgeattn.sources.tasks import task_of
from edgeattn.spec import GraphSpec, ModelSpec, StateSpec, TensorSpec
from edgeattn.tasks.anything import Anything
from edgeattn.tasks.text_classification import TextClassification
from tests.texts import CLASSES, LABELS, LENGTH, TABLE, write_config, write_tokenizer

pytest.importorskip("tokenizers", reason="it makes tokens of texts: edgeattn[hf]")


@pytest.fixture
def assets(tmp_path: Path) -> dict[str, Path]:
    directory = tmp_path / "assets"
    directory.mkdir()
    return {"tokenizer.json": write_tokenizer(directory), "config.json": write_config(directory)}


def text_spec(task: str = "text-classification", classes: int = CLASSES) -> ModelSpec:
    taken = tuple(TensorSpec(name, "int64", (1, LENGTH)) for name in ("input_ids", "attention_mask"))
    return ModelSpec("m", task, (GraphSpec("main", taken, (TensorSpec("logits", "float32", (1, classes)),)),))


def plain_spec(states: tuple[StateSpec, ...] = ()) -> ModelSpec:
    graph = GraphSpec("main", (TensorSpec("x", "float32", (1, 3)),), (TensorSpec("y", "float32", (1, 2)),), states)
    return ModelSpec("m", "model", (graph,))


class Line:
    """y = the first two of x."""

    spec = plain_spec()

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": inputs["x"][:, :2]}


def nothing() -> None:
    pass


def arrays(path: Path, **more: np.ndarray) -> str:
    np.savez(path, x=np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32), **more)  # type: ignore[arg-type]
    return str(path)


def test_a_model_that_says_its_task_has_it(assets: dict[str, Path]) -> None:
    assert task_of(text_spec(), assets) == TextClassification(output="logits", classes=CLASSES, labels=LABELS)
    assert task_of(text_spec("something"), assets) is None
    assert task_of(text_spec(), {}) is None  # without a tokenizer it takes arrays alone


def test_a_task_that_is_asked_for_must_fit(assets: dict[str, Path]) -> None:
    assert task_of(text_spec("something"), assets, "text-classification") is not None
    with pytest.raises(InputError, match=r"unknown task 'text-clasification', did you mean 'text-classification'\?"):
        task_of(text_spec(), assets, "text-clasification")
    with pytest.raises(InputError, match="--task text-classification: texts need the model's tokenizer"):
        task_of(plain_spec(), {}, "text-classification")


def test_arrays_without_labels_are_samples_of_any_task(tmp_path: Path) -> None:
    data = load_data("m", plain_spec(), arrays(tmp_path / "a.npz"), None, 0)
    assert isinstance(data, TaskData)
    assert data.task == Anything(outputs=("y",))
    assert (len(data.calibration), len(data.evaluation)) == (4, 16)


def test_arrays_of_a_recognised_model_agree_in_its_terms(tmp_path: Path, assets: dict[str, Path]) -> None:
    ids = np.random.default_rng(0).integers(4, 9, (12, LENGTH))
    np.savez(tmp_path / "ids.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    data = load_data(
        "m", text_spec(), str(tmp_path / "ids.npz"), None, 0, assets, task_of(text_spec(), assets)
    )  # fmt: skip
    assert isinstance(data, TaskData)
    assert isinstance(data.task, TextClassification)


def test_labelled_arrays_and_steps_of_a_run_stay_arrays(tmp_path: Path) -> None:
    labelled = load_data("m", plain_spec(), arrays(tmp_path / "a.npz", target_y=np.ones((20, 2))), None, 0)
    steps = load_data("m", plain_spec((StateSpec("s", "t", (1,)),)), arrays(tmp_path / "b.npz"), None, 0)
    assert not isinstance(labelled, TaskData)
    assert not isinstance(steps, TaskData)


def test_another_metric_of_the_task_gates(tmp_path: Path, assets: dict[str, Path]) -> None:
    (tmp_path / "data.tsv").write_text(TABLE)
    data = load_data("m", text_spec(), str(tmp_path / "data.tsv"), None, 0, assets)
    assert isinstance(data, TaskData)
    chosen = with_metric(data, text_spec(), "macro-f1").metrics
    assert chosen is not None
    assert [metric.name for metric in chosen] == ["macro-f1", "accuracy", "matthews"]
    with pytest.raises(InputError, match=r"unknown metric 'f1'.*Valid: accuracy, macro-f1, matthews, or file.py:func"):
        with_metric(data, text_spec(), "f1")


def users(tmp_path: Path, body: str, direction: str = "score.higher_is_better = False") -> str:
    (tmp_path / "mine.py").write_text(f"def score(answer, target):\n    {body}\n{direction}\n")
    return f"{tmp_path / 'mine.py'}:score"


def labelled(tmp_path: Path) -> Data:
    data = load_data("m", plain_spec(), arrays(tmp_path / "a.npz", target_y=np.zeros((20, 2))), None, 0)
    assert data is not None
    return data


@pytest.mark.parametrize("body", ["return {0}", "return {{'far': {0}, 'other': 1}}"], ids=["number", "dict"])
def test_a_function_of_the_users_is_a_metric(tmp_path: Path, body: str) -> None:
    far = "float(abs(answer['y'] - target['y']).mean())"
    data = with_metric(labelled(tmp_path), plain_spec(), users(tmp_path, body.format(far)))
    score = data.score(Line(), data.evaluation, nothing)  # type: ignore[arg-type]
    assert score is not None
    expected = np.mean([np.abs(sample.inputs["x"][0, :2]).mean() for sample in data.evaluation])
    assert score.value == pytest.approx(float(expected))
    assert (score.metric, score.higher_is_better, score.unit) == ("score", False, "")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError('what')", "raised KeyError: 'what' (mine.py:2)"),
        ("return float('nan')", "expected a finite number, or a dict of them, got nan"),
        ("return [1.0, 2.0]", "expected a finite number, or a dict of them, got [1.0, 2.0]"),
        ("return None", "expected a finite number, or a dict of them, got None"),
        ("return {}", "expected a number, or a dict of them, got {}"),
        ("return {'a': 1j}", "expected a finite number for 'a', got 1j"),
    ],
    ids=["raises", "nan", "list", "none", "empty", "complex"],
)
def test_a_function_that_returns_something_else_is_refused(tmp_path: Path, body: str, message: str) -> None:
    data = with_metric(labelled(tmp_path), plain_spec(), users(tmp_path, body))
    with pytest.raises(InputError, match=re.escape(message)):
        data.score(Line(), data.evaluation, nothing)  # type: ignore[arg-type]


def test_a_function_must_say_which_way_is_better(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"say which way is better: score.higher_is_better = True, or False"):
        with_metric(labelled(tmp_path), plain_spec(), users(tmp_path, "return 1.0", ""))


def test_a_function_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected file\.py:function"):
        with_metric(labelled(tmp_path), plain_spec(), str(tmp_path / "none.py:score"))


def test_data_of_no_form_names_the_tasks_own(tmp_path: Path, assets: dict[str, Path]) -> None:
    (tmp_path / "data.xyz").write_text("x")
    task: Any = task_of(text_spec(), assets)
    with pytest.raises(DataError, match=r"data.xyz: expected a table .*\(the model's task is text-classification\)"):
        load_data("m", text_spec(), str(tmp_path / "data.xyz"), None, 0, assets, task)
    with pytest.raises(DataError, match="--task names what else the model may be for, see edgeattn tasks"):
        load_data("m", text_spec(), str(tmp_path / "data.xyz"), None, 0, assets)
