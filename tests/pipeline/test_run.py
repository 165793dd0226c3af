"""Raw texts through a bundle: answers with names and scores, the same here, through a session, and on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.bundle import read_manifest
from edgeattn.errors import DataError, InputError
from edgeattn.jobs.answers import main
from edgeattn.pipeline.run import run
from edgeattn.runtimes import load
from edgeattn.tasks import Pipeline
from tests.once import made_once, shared_root
from tests.texts import LABELS, convert_classifier

pytest.importorskip("onnxscript", reason="conversion needs edgeattn[convert]")
pytest.importorskip("transformers", reason="directories are read by it: edgeattn[hf]")
pytest.importorskip("openvino", reason="the bundle is made for it: edgeattn[openvino]")

TEXTS = ("good film", "very very bad plot", "film")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(shared_root(tmp_path_factory), "classifier", convert_classifier)


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max())
    return np.asarray(shifted / shifted.sum())


@pytest.mark.slow
def test_a_text_gets_a_label_and_a_score(bundle: Path) -> None:
    with load(bundle) as session:
        pipeline = session.pipeline()
        for text in TEXTS:
            told = pipeline(text)
            ids = pipeline.task.encoder(session.spec, session.assets)(text).calls[0]
            expected = softmax(session.run(ids)["logits"][0])
            assert [row["label"] for row in told] == [LABELS[i] for i in np.argsort(-expected)]
            assert [row["score"] for row in told] == pytest.approx(sorted(expected, reverse=True), abs=1e-6)


@pytest.mark.slow
def test_run_answers_each_input(bundle: Path) -> None:
    found = run(bundle, TEXTS)
    with load(bundle) as session:
        assert list(found.answers) == [session.pipeline()(text) for text in TEXTS]
    assert [line.split()[0] for line in found.lines] == [answer[0]["label"] for answer in found.answers]


@pytest.mark.slow
def test_the_manifest_says_what_the_model_is_for(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest.format_version == 3
    assert manifest.task == {
        "name": "text-classification", "settings": {"output": "logits", "classes": 3, "labels": list(LABELS)}
    }  # fmt: skip
    accuracy = manifest.measured["accuracy"]
    assert (accuracy["metric"], accuracy["unit"], accuracy["higher_is_better"]) == ("accuracy", "%", True)
    assert set(accuracy["others"]) == {"macro-f1", "matthews"}


@pytest.mark.slow
def test_a_device_answers_what_was_encoded_here(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The job that runs there, in this process; the way to a device has tests of its own."""
    import json

    from edgeattn.jobs.answers import Answers
    from edgeattn.pipeline import run as module
    from edgeattn.spec import from_json

    def task_on(device: Any, path: Path, task: Any, backend: str | None, threads: int) -> tuple[Answers, None]:
        (tmp_path / "parcel").write_bytes(task.parcel)
        assert main([str(path), str(tmp_path / "parcel"), json.dumps({"backend": backend, "threads": threads})]) == 0
        return from_json(task.answer, json.loads(capsys.readouterr().out)[task.key]), None

    monkeypatch.setattr(module, "task_on", task_on)
    there, here = run(bundle, TEXTS, "ssh://somewhere"), run(bundle, TEXTS)
    assert there == here


@pytest.mark.slow
def test_an_input_that_is_none_is_named(bundle: Path) -> None:
    with pytest.raises(DataError, match=r"' ': expected a text, got an empty one"):
        run(bundle, ["good film", " "])


def test_a_bundle_without_a_task_says_what_to_do() -> None:
    with pytest.raises(InputError, match="convert it again with --task, one of text-classification"):
        Pipeline(None, None, {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "no-task", "settings": {}}, "unknown task 'no-task'"),
        ({"name": "text-classification", "settings": {"output": "y"}}, "'classes' is missing"),
        ({"name": "text-classification", "settings": {"output": "y", "classes": "3"}}, "expected int"),
        ({"name": "text-classification", "settings": {}, "code": "x"}, "expected a name and settings"),
        ({}, "expected a name and settings"),
    ],
    ids=["unknown", "missing", "wrong type", "more", "empty"],
)
def test_a_manifests_task_is_read_strictly(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Pipeline(None, values, {})  # type: ignore[arg-type]
