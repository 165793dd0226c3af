"""Texts that models write: those of transformers, scored as sacrebleu does; and each refusal."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from edgeattn.errors import DataError, InputError
from edgeattn.jobs.parcel import pack, unpacked
from edgeattn.model import EdgeModel, Reference
from edgeattn.sources import load_model, with_task
from edgeattn.tasks import Pipeline, stored
from edgeattn.tasks.text_generation import Dialogue, Summarization, Translation
from tests.runtimes.generation.language_models import of_transformers, write
from tests.tasks.end_to_end import Gives, loaded, model_for, task_of

pytest.importorskip("tokenizers", reason="it makes tokens of texts: edgeattn[hf]")

WORDS = 97
SOURCES = ("w5 w9 w40", "w11 w12", "w90 w3 w3 w7", "w20 w21 w22 w23 w24", "w60", "w33 w44 w55")


def write_tokenizer(directory: Path) -> None:
    tokenizers: Any = importlib.import_module("tokenizers")
    names = {"[pad]": 0, "[end]": 1} | {f"w{number}": number for number in range(2, WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(names, unk_token="w2"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[pad]", "[end]"])
    tokenizer.save(str(directory / "tokenizer.json"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write("t5", tmp_path_factory.mktemp("writer"))
    write_tokenizer(path)
    generation = json.loads((path / "generation_config.json").read_text())
    (path / "generation_config.json").write_text(json.dumps(generation | {"max_new_tokens": 8}))
    return path


@pytest.fixture(scope="module")
def model(directory: Path) -> EdgeModel:
    return with_task(load_model(str(directory)), "translation")


def written(directory: Path, model: EdgeModel, text: str) -> str:
    """What transformers writes."""
    encode = task_of(model).encoder(model.spec, model.assets)
    ids = of_transformers("t5", directory, encode(text).calls[0], max_new_tokens=8)
    return " ".join(f"w{number}" for number in ids if number > 1)


@pytest.mark.slow
def test_the_text_is_that_of_transformers(directory: Path, model: EdgeModel) -> None:
    pipeline = Pipeline(Reference(model), stored(task_of(model)), model.assets)
    for text in SOURCES[:3]:
        assert pipeline(pipeline.read(text)) == written(directory, model, text)


@pytest.mark.slow
def test_the_score_is_that_of_sacrebleu(tmp_path: Path, directory: Path, model: EdgeModel) -> None:
    sacrebleu = pytest.importorskip("sacrebleu", reason="the oracle")
    answers = [written(directory, model, text) for text in SOURCES]
    targets = [answer if index % 2 else f"w50 {answer} w51" for index, answer in enumerate(answers)]
    lines = "".join(f"{s}\t{t}\ttest\n" for s, t in zip(SOURCES, targets, strict=True))
    (tmp_path / "pairs.tsv").write_text("source\ttarget\tsplit\nw8\tw9\ttrain\n" + lines)
    data = loaded(model, tmp_path / "pairs.tsv")
    score = data.score(Reference(model), data.evaluation, lambda: None)
    assert score is not None
    assert (score.metric, set(score.others)) == ("bleu", {"chrf", "bleu-zh", "exact-match"})
    assert score.value == pytest.approx(sacrebleu.corpus_bleu(answers, [targets]).score / 100, abs=1e-9)
    assert score.others["chrf"] == pytest.approx(sacrebleu.corpus_chrf(answers, [targets]).score, abs=1e-7)
    assert score.others["exact-match"] == pytest.approx(50.0)
    (tmp_path / "parcel").write_bytes(pack({}, "", data))
    with unpacked(tmp_path / "parcel") as opened:
        assert opened.data is not None
        assert opened.data.score(Reference(model), opened.samples, lambda: None) == score


@pytest.mark.slow
def test_sources_alone_agree_in_equal_texts(tmp_path: Path, model: EdgeModel) -> None:
    (tmp_path / "texts.tsv").write_text("".join(f"{text}\n" for text in SOURCES))
    data = loaded(model, tmp_path / "texts.tsv").agreeing(Reference(model), lambda: None)
    assert data is not None
    score = data.score(Reference(model), data.evaluation, lambda: None)
    assert score is not None
    assert (score.metric, score.value) == ("agreement-exact-match", 1.0)


def test_several_targets_are_references(tmp_path: Path) -> None:
    row = {"source": "a b", "target": ["x", "y"]}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
    (sample,) = Dialogue().read(tmp_path / "t.jsonl", {})
    assert sample.target == ["x", "y"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tb\nc\n", r":2: expected 2 columns"),
        ("a\t \n", r":1: expected a target text, or a list of them, got ' '"),
        ("source\ttarget\n \tx\n", r":2: expected a text to begin with"),
    ],
    ids=["a column less", "no target", "no source"],
)
def test_a_broken_line_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.tsv").write_text(content)
    with pytest.raises(DataError, match=message):
        Summarization().read(tmp_path / "t.tsv", {})


def test_a_model_that_does_not_write_is_refused() -> None:
    import torch

    with pytest.raises(InputError, match=r"expected a model that writes: .*; this model has main"):
        model_for("translation", Gives("y", torch.neg), x=torch.zeros(1, 3))


def test_the_first_metric_is_the_fields() -> None:
    tasks = (Translation(), Summarization(), Dialogue())
    assert [task.metrics[0].name for task in tasks] == ["bleu", "rouge-l", "bleu"]
    assert [tuple(metric.name for metric in task.metrics) for task in tasks] == [task.measured for task in tasks]
