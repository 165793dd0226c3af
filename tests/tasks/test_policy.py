"""Actions against recorded ones: agreement counted by hand, R2 of scikit-learn, episodes kept whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeattn.errors import DataError, InputError
from edgeattn.model import EdgeModel, Reference
from edgeattn.tasks import Pipeline, stored
from tests.tasks.end_to_end import Gives, loaded, model_for, scored_by_onnxruntime, scored_everywhere, task_of

SIZE, STEPS = 4, 12


def discrete() -> EdgeModel:
    """Of three actions the largest of the first three numbers seen."""
    return model_for("policy", Gives("logits", lambda x: 2 * x[:, :3]), x=torch.zeros(1, SIZE))


def continuous() -> EdgeModel:
    return model_for("policy", Gives("action", lambda x: x[:, :2] - x[:, 2:]), x=torch.zeros(1, SIZE))


def episodes(directory: Path, moving: bool) -> dict[bytes, Any]:
    """Five episodes; observation as bytes -> action."""
    rng = np.random.default_rng(0)
    found: dict[bytes, Any] = {}
    directory.mkdir(exist_ok=True)
    for episode in range(5):
        seen = rng.standard_normal((STEPS, SIZE)).astype(np.float32)
        best = seen[:, :3].argmax(axis=1)
        chosen = np.where(rng.uniform(size=STEPS) < 0.3, rng.integers(3, size=STEPS), best)
        actions = seen[:, :2] - seen[:, 2:] + 0.5 * rng.standard_normal((STEPS, 2)) if moving else chosen
        np.savez(directory / f"{episode}.npz", observations=seen, actions=actions)
        found |= {row.tobytes(): action for row, action in zip(seen, actions, strict=True)}
    return found


def test_agreement_counts_the_recorded_actions(tmp_path: Path) -> None:
    found = episodes(tmp_path / "data", moving=False)
    model = discrete()
    data = loaded(model, tmp_path / "data")
    score = scored_everywhere(model, data, tmp_path)
    rows = [sample.encoded.calls[0]["x"] for sample in data.evaluation]
    hits = [int(row[0, :3].argmax()) == found[row.tobytes()] for row in rows]
    assert (score.metric, len(hits)) == ("action-agreement", 4 * STEPS)  # one whole episode calibrates
    assert len(data.calibration) == STEPS
    assert 0.5 < score.value < 1
    assert score.value == pytest.approx(np.mean(hits))


def test_continuous_actions_are_scored_as_scikit_learn_does(tmp_path: Path) -> None:
    sklearn: Any = pytest.importorskip("sklearn.metrics", reason="it is the oracle: edgeattn[dev]")
    found = episodes(tmp_path / "data", moving=True)
    model = continuous()
    data = loaded(model, tmp_path / "data")
    score = scored_everywhere(model, data, tmp_path)
    rows = [sample.encoded.calls[0]["x"] for sample in data.evaluation]
    true = np.stack([found[row.tobytes()] for row in rows]).ravel()
    said = np.stack([row[0, :2] - row[0, 2:] for row in rows]).ravel()
    assert score.metric == "r2"
    assert score.value == pytest.approx(sklearn.r2_score(true, said), abs=1e-6)
    assert score.others["mse"] == pytest.approx(sklearn.mean_squared_error(true, said), rel=1e-6)


@pytest.mark.slow
def test_an_engine_acts_the_same(tmp_path: Path) -> None:
    episodes(tmp_path / "data", moving=False)
    model = discrete()
    data = loaded(model, tmp_path / "data")
    assert scored_by_onnxruntime(model, data, tmp_path).value == scored_everywhere(model, data, tmp_path).value


def test_splits_are_folders(tmp_path: Path) -> None:
    episodes(tmp_path / "test", moving=False)
    episodes(tmp_path / "train", moving=False)
    np.savez(tmp_path / "train" / "9.npz", observations=np.ones((2, SIZE)), actions=np.array([0, 1]))
    samples = task_of(discrete()).read(tmp_path, {})
    assert [sum(sample.split == split for sample in samples) for split in ("train", "test")] == [62, 60]


def test_an_observation_in_an_action_out() -> None:
    model = discrete()
    pipeline = Pipeline(Reference(model), stored(task_of(model)), {})
    assert pipeline(pipeline.read("[0, 2.5, 1, 0]")) == 1
    assert pipeline.task.line(pipeline.answer([0.0, 0.0, 1.0, 9.0])) == "2"
    assert pipeline.task.described([0.0, np.nan, 1.0]) is None
    for text in ("[1, 2]", "1", "[1, 2, 3, null]", "x", '["a", 1, 2, 3]', "[1, 2, [3], 4]"):
        with pytest.raises(DataError, match=r"expected an observation|expected finite numbers of shape \[4\]"):
            pipeline(pipeline.read(text))
    moving = continuous()
    asked = Pipeline(Reference(moving), stored(task_of(moving)), {})
    assert asked([1.0, 2.0, 0.5, 0.5]) == [0.5, 1.5]


def test_names_of_actions_are_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {0: "left", 1: "stay", 2: "right"}}))
    assets = {"config.json": tmp_path / "config.json"}
    task = task_of(model_for("policy", Gives("logits", lambda x: x[:, :3]), assets, x=torch.zeros(1, SIZE)))
    assert task.line([0.0, 1.0, 2.0]) == "right"


def test_what_says_nothing_is_told() -> None:
    task = task_of(discrete())
    assert task.broken(0.5, [[1.0, 0.0, 0.0]] * 2, [0, 1]) == (
        "the metric is constant: every answer is action 0, 2 were recorded"
    )
    assert task.broken(0.5, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [0, 1]) == ""
    assert "no better than the mean" in task_of(continuous()).broken(-0.1, [], [])
    (metric,) = task.metrics
    assert metric.value([metric.statistics([np.nan, 1.0, 0.0], 1)]) == 0.0


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"observations": np.zeros((3, SIZE))}, "expected arrays observations and actions; got observations"),
        (
            {"observations": np.zeros((3, 2)), "actions": np.zeros(3, int)},
            r"\[steps, 4\] and actions \[steps\]; got",
        ),
        ({"observations": np.zeros((3, SIZE)), "actions": np.zeros(2, int)}, r"got \[3, 4\] and \[2\]"),
        ({"observations": np.zeros((3, SIZE)), "actions": np.array([0, 1, 3])}, "whole numbers from 0 to 2"),
        ({"observations": np.zeros((3, SIZE)), "actions": np.zeros(3)}, "whole numbers from 0 to 2"),
        ({"observations": np.full((3, SIZE), np.nan), "actions": np.zeros(3, int)}, "expected finite observations"),
    ],
)
def test_a_wrong_episode_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        loaded(discrete(), tmp_path)


def test_what_is_no_episode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a directory of episodes"):
        loaded(discrete(), tmp_path)
    (tmp_path / "a.npz").write_text("no npz")
    with pytest.raises(DataError, match="not a plain npz"):
        loaded(discrete(), tmp_path)
    (tmp_path / "a.npz").unlink()
    np.savez(tmp_path / "a.npz", observations=np.zeros((3, SIZE)), actions=np.zeros((3, 2), int))
    with pytest.raises(DataError, match=r"actions \[steps\]; got"):
        loaded(discrete(), tmp_path)


def test_a_model_of_something_else_is_refused() -> None:
    with pytest.raises(InputError, match="expected one observation, float"):
        model_for("policy", Gives("logits", lambda x: x.float()), x=torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="expected scores of at least 2 actions"):
        model_for("policy", Gives("logits", lambda x: x[:, :1]), x=torch.zeros(1, 3))
