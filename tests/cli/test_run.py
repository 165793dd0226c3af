"""``edgeattn run`` and ``edgeattn tasks``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeattn.tasks import TASKS
from tests.cli.conftest import Command
from tests.once import made_once, shared_root
from tests.texts import LABELS, convert_classifier


def test_tasks_are_listed_with_their_data_and_metrics(edgeattn: Command) -> None:
    outcome = edgeattn("tasks")
    assert outcome.code == 0
    for task in TASKS.values():
        assert task.name in outcome.out
        assert task.forms in outcome.out
    listed = json.loads(edgeattn("tasks", "--json").out)
    assert [row["name"] for row in listed["tasks"]] == list(TASKS)
    assert all(row["metrics"] for row in listed["tasks"])


@pytest.mark.slow
def test_run_prints_an_answer_a_line_or_one_object(edgeattn: Command, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("onnxscript", reason="conversion needs edgeattn[convert]")
    pytest.importorskip("transformers", reason="directories are read by it: edgeattn[hf]")
    bundle: Path = made_once(shared_root(tmp_path_factory), "classifier", convert_classifier)
    lines = edgeattn("run", bundle, "good film", "bad plot").out.splitlines()
    assert [line.split()[0] in LABELS for line in lines] == [True, True]
    told = json.loads(edgeattn("run", bundle, "good film", "bad plot", "--json").out)
    assert [row["input"] for row in told["answers"]] == ["good film", "bad plot"]
    assert [f"{row['answer'][0]['label']} {row['answer'][0]['score']:.2f}" for row in told["answers"]] == lines


def test_run_of_a_bundle_without_a_task_exits_2(edgeattn: Command, bundle: Path) -> None:
    outcome = edgeattn("run", bundle, "good film")
    assert outcome.code == 2
