"""Answers in texts: SQuAD's files, windows over long texts, no answer, and each refusal with its place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.errors import DataError
from edgeattn.model import Reference
from edgeattn.sources.tasks import described, load_samples
from edgeattn.tasks import Pipeline, restored, stored
from edgeattn.tasks.metrics.spans import SQUAD_F1
from edgeattn.tasks.question_answering import QuestionAnswering
from edgeattn.tasks.questions import read_squad

pytest.importorskip("tokenizers", reason="it makes tokens of texts: edgeattn[hf]")
torch: Any = pytest.importorskip("torch", reason="models are torch modules: edgeattn[convert]")

from tests.tasks.text_models import model_of, scored, sent, spec_of, write_assets  # noqa: E402

WORDS = ("who", "won", "?", "ann", "bob", "and", "the", "cup", "left", "中", "国")
LENGTH = 12
SHARED = Path(__file__).parents[3] / "shared" / "data"
CONTEXT = "the cup left and and and and and the cup bob won and and and left"


class Spans(torch.nn.Module):  # type: ignore[misc]  # torch is Any here
    """A score per token for both ends."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(vocabulary, 2)

    def forward(self, input_ids: Any, attention_mask: Any) -> dict[str, Any]:
        scores = self.table(input_ids) * attention_mask.unsqueeze(-1)
        return {"start_logits": scores[..., 0], "end_logits": scores[..., 1]}


@pytest.fixture
def assets(tmp_path: Path) -> dict[str, Path]:
    return write_assets(tmp_path / "assets", WORDS)


SPEC = spec_of({"start_logits": (1, LENGTH), "end_logits": (1, LENGTH)}, LENGTH)


def squad(tmp_path: Path, questions: list[tuple[str, str, list[str]]], name: str = "data.json") -> Path:
    rows = [
        {
            "context": c,
            "qas": [{"question": q, "id": str(i), "answers": [{"text": t, "answer_start": c.find(t)} for t in a]}],
        }
        for i, (q, c, a) in enumerate(questions)
    ]
    text = json.dumps({"version": "1.1", "data": [{"paragraphs": rows}]}).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return tmp_path / name


def perfect(encoded: Any, task: QuestionAnswering, target: Any) -> list[dict[str, np.ndarray]]:
    """Outputs that are sure of what they should be in training."""
    made = []
    for labels, call in zip(task.array_targets(target, encoded), encoded.calls, strict=True):
        outputs = {name: np.zeros(call["input_ids"].shape, np.float32) for name in labels}
        for name, label in labels.items():
            outputs[name][0, label[0]] = 5.0
        made.append(outputs)
    return made


def test_windows_cover_the_context_and_answers_are_found_in_the_text(assets: dict[str, Path]) -> None:
    task = QuestionAnswering.fitted(described(SPEC, assets))
    encoded = task.encoder(SPEC, assets)({"question": "who won?", "context": CONTEXT})
    assert len(encoded.calls) > 1
    seen = {tuple(span) for window in encoded.facts["windows"] for span in window["offsets"]}
    assert "".join(CONTEXT[s:e] for s, e in sorted(seen)) == CONTEXT.replace(" ", "")
    target = {"answers": ["cup bob"], "start": CONTEXT.index("cup bob")}
    answer = task.answer(perfect(encoded, task, target), encoded.facts)
    assert (answer["text"], answer["start"]) == ("cup bob", CONTEXT.index("cup bob"))
    assert 0 < answer["score"] <= 1
    assert task.line(answer).startswith("cup bob ")
    assert task.described(answer)["answer"] == "cup bob"
    assert task.as_target(answer) == {"answers": ["cup bob"], "start": answer["start"]}


def test_no_answer_is_said_only_where_the_data_has_such(tmp_path: Path, assets: dict[str, Path]) -> None:
    task = QuestionAnswering.fitted(described(SPEC, assets))
    path = squad(tmp_path, [("who won?", "ann won", ["ann"]), ("who left?", "ann won", [])])
    first, second = task.read(path, assets)
    encoded = task.encoder(SPEC, assets)(second.given)
    answer = task.answer(perfect(encoded, task, second.target), encoded.facts)
    assert answer["text"] == ""
    assert [metric.statistics(answer, second.target)[0] for metric in task.metrics] == [1, 1]
    assert task.line(answer).startswith("no answer")
    forced = task.answer(perfect(encoded, task, second.target), {**encoded.facts, "no_answer": False})
    assert forced["text"]
    nan = [{name: array * np.nan for name, array in row.items()} for row in perfect(encoded, task, second.target)]
    broken = task.answer(nan, encoded.facts)
    assert broken["text"] is None
    assert task.metrics[0].statistics(broken, second.target)[0] == 0
    assert "no question is answered" in task.broken(0.0, [answer], [first.target])


def test_chinese_answers_are_compared_by_character(assets: dict[str, Path]) -> None:
    f1 = QuestionAnswering.fitted(described(SPEC, assets)).metrics[0]
    assert f1.statistics({"text": "中"}, {"answers": ["中国"]})[0] == pytest.approx(2 / 3)
    assert f1.statistics({"text": "the cup"}, {"answers": ["Cup!"]})[0] == 1


def test_the_score_is_squads_of_what_the_model_answers(tmp_path: Path, assets: dict[str, Path]) -> None:
    torch.manual_seed(1)
    model = model_of(Spans(4 + len(WORDS)), assets, LENGTH, (8, LENGTH))
    rows = [
        ("who won?", f"{first} and {second} left {CONTEXT}", [first]) for first in WORDS[3:9] for second in WORDS[:9]
    ]
    task = QuestionAnswering.fitted(described(model.spec, assets))
    data = load_samples(squad(tmp_path, rows, "a.json.gz"), task, model.spec, assets, None, 0)
    ask = Pipeline(Reference(model), stored(task), assets)
    found = []
    for sample in data.evaluation:
        given = json.dumps({"question": "who won?", "context": sample.encoded.facts["context"]})
        found.append(SQUAD_F1.statistics(ask(ask.read(given))["answer"], sample.target["answers"]))
    score = scored(model, data)
    assert score.value == pytest.approx(SQUAD_F1.value(found))
    assert 0 < score.value < 1
    assert sent(model, data, tmp_path) == score
    assert restored(stored(task)) == task


def test_a_question_longer_than_half_of_the_model_is_cut_and_told(assets: dict[str, Path]) -> None:
    task = QuestionAnswering.fitted(described(SPEC, assets))
    encoded = task.encoder(SPEC, assets)({"question": "who won " * 20, "context": CONTEXT})
    assert encoded.cut == "in a question of 40 tokens"
    assert encoded.calls[0]["input_ids"].shape == (1, LENGTH)


@pytest.mark.parametrize(
    ("name", "questions"), [("cmrc2018_trial/cmrc2018_trial.json.gz", 1002), ("xquad/xquad.zh.json.gz", 1190)]
)
def test_published_corpora_are_read_as_they_are(name: str, questions: int) -> None:
    if not (SHARED / name).is_file():
        pytest.skip(f"needs {name}, which is not part of the repository")
    found = read_squad(SHARED / name)
    assert len(found) == questions
    assert all(one.answers and one.context[one.start :].startswith(one.answers[0]) for one in found if one.start >= 0)
    assert sum(one.start >= 0 for one in found) > 0.99 * questions


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "this is no JSON"),
        ("[]", r"expected JSON as of SQuAD.*; got \[\]"),
        ('{"data": [{"paragraphs": 3}]}', r"data\[0\]\.paragraphs: expected a list 'paragraphs' as SQuAD has it"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', r"data\[0\]\.paragraphs\[0\]: expected a text 'context'"),
        ('{"data": [{"paragraphs": [{"context": "x", "qas": [{}]}]}]}', r"qas\[0\]: expected a text 'question'"),
        (
            '{"data": [{"paragraphs": [{"context": "x", "qas": [{"question": "y", "answers": [1]}]}]}]}',
            r"qas\[0\]\[0\]: expected a text 'text'",
        ),
        ('{"data": []}', "no sample to measure on"),
    ],
    ids=["no JSON", "a list", "no paragraphs", "no context", "no question", "no answer text", "empty"],
)
def test_json_of_another_form_is_refused(tmp_path: Path, assets: dict[str, Path], content: str, message: str) -> None:
    (tmp_path / "x.json").write_text(content)
    task = QuestionAnswering.fitted(described(SPEC, assets))
    with pytest.raises(DataError, match=message) as caught:
        load_samples(tmp_path / "x.json", task, SPEC, assets, None, 0)
    assert "x.json" in str(caught.value)


@pytest.mark.parametrize("given", ['{"question": "who"}', "{", '{"question": "", "context": "x"}', "/nowhere.json"])
def test_an_input_that_is_no_question_is_refused(assets: dict[str, Path], given: str) -> None:
    with pytest.raises(DataError, match=r"expected JSON|cannot be read"):
        QuestionAnswering.fitted(described(SPEC, assets)).parsed(given)


def test_a_model_without_both_ends_is_refused(assets: dict[str, Path]) -> None:
    spec = spec_of({"start_logits": (1, LENGTH)}, LENGTH)
    with pytest.raises(DataError, match="outputs start_logits and end_logits"):
        QuestionAnswering.fitted(described(spec, assets))
