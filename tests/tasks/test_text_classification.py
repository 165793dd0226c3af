"""Labelled texts: what a tokenizer makes of them, what measures or calibrates, and each refusal with its line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.errors import DataError, ModelError
from edgeattn.evaluation.task_data import TaskData, TaskSample
from edgeattn.model import Reference
from edgeattn.sources import load_data, load_model
from edgeattn.sources.sizes import with_buckets
from edgeattn.sources.tasks import described, load_samples
from edgeattn.spec import GraphSpec, ModelSpec, TensorSpec
from edgeattn.tasks import tables
from edgeattn.tasks.tables import read_table
from edgeattn.tasks.text_classification import TextClassification
from tests.texts import CLASSES, LABELS, LENGTH, PAD, TABLE, write_classifier, write_config, write_tokenizer

tokenizers: Any = pytest.importorskip("tokenizers", reason="it makes tokens of texts: edgeattn[hf]")


@pytest.fixture
def assets(tmp_path: Path) -> dict[str, Path]:
    """A tokenizer of whole words with [CLS] and [SEP], whose file asks for padding, and a config with names."""
    directory = tmp_path / "assets"
    directory.mkdir()
    return {"tokenizer.json": write_tokenizer(directory), "config.json": write_config(directory)}


def spec_of(
    inputs: Sequence[str] = ("input_ids", "attention_mask", "token_type_ids"),
    outputs: Mapping[str, tuple[int, ...]] | None = None,
    batch: int = 1,
    length: int = LENGTH,
) -> ModelSpec:
    taken = tuple(TensorSpec(name, "int64", (batch, length)) for name in inputs)
    given = tuple(TensorSpec(n, "float32", shape) for n, shape in (outputs or {"logits": (1, CLASSES)}).items())
    return ModelSpec("m", "text-classification", (GraphSpec("main", taken, given),))


def load_texts(path: Path, spec: ModelSpec, assets: Mapping[str, Path], split: str | None, limit: int) -> TaskData:
    task = TextClassification.fitted(described(spec, assets))
    return load_samples(path, task, spec, assets, split, limit)


def target(sample: TaskSample) -> int:
    """The label as training sees it."""
    return int(sample.targets[0]["logits"][0])


def table(tmp_path: Path, content: str | bytes = TABLE, name: str = "data.tsv") -> Path:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def oracle(assets: Mapping[str, Path], sentence: str, length: int | None) -> dict[str, list[list[int]]]:
    """The tokenizers library's own truncation and, with a length, its own padding."""
    tokenizer = tokenizers.Tokenizer.from_file(str(assets["tokenizer.json"]))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LENGTH)
    if length is not None:
        tokenizer.enable_padding(length=length, pad_id=PAD, pad_token="[PAD]")
    one = tokenizer.encode(sentence)
    return {"input_ids": [one.ids], "attention_mask": [one.attention_mask], "token_type_ids": [one.type_ids]}


def same(sample: TaskSample, expected: Mapping[str, list[list[int]]]) -> bool:
    return all(np.array_equal(sample.inputs[name], expected[name]) for name in sample.inputs)


# --- what is read -----------------------------------------------------------------------------------------------------


def test_texts_are_padded_and_cut_to_a_static_length_as_the_tokenizer_does(
    tmp_path: Path, assets: dict[str, Path]
) -> None:
    sentences = ["good", "very very very very good film", "good film", "unheard of"]
    content = "".join(f"{sentence}\t{i % CLASSES}\n" for i, sentence in enumerate(sentences))
    rows = "".join(f"{line}\ttest\n" for line in content.splitlines())
    data = load_texts(table(tmp_path, f"text\tlabel\tsplit\nx film\t0\ttrain\n{rows}"), spec_of(), assets, None, 0)
    assert len(data.evaluation) == len(sentences)
    for index, sentence in enumerate(sentences):
        sample = next(sample for sample in data.evaluation if same(sample, oracle(assets, sentence, LENGTH)))
        assert len(sample.inputs) == 3
        assert {(a.shape, str(a.dtype)) for a in sample.inputs.values()} == {((1, LENGTH), "int64")}
        assert target(sample) == sample.target == index % CLASSES
    assert data.origin == f"data.tsv/test (1 of 4 samples cut at {LENGTH} tokens)"
    assert len(data.calibration) == 1
    assert same(data.calibration[0], oracle(assets, "x film", LENGTH))


def test_only_the_inputs_that_the_model_has_are_made(tmp_path: Path, assets: dict[str, Path]) -> None:
    data = load_texts(table(tmp_path), spec_of(("attention_mask", "input_ids")), assets, None, 0)
    assert set(data.evaluation[0].inputs) == {"input_ids", "attention_mask"}


def test_without_a_mask_texts_must_fill_the_length(tmp_path: Path, assets: dict[str, Path]) -> None:
    spec = spec_of(("input_ids",), length=5)
    full = "".join(f"good film {i}\t0\n" for i in range(5))
    assert len(load_texts(table(tmp_path, full), spec, assets, None, 0).evaluation) == 4
    with pytest.raises(DataError, match=r"data\.tsv:2: 4 tokens, but the model takes 5 and no attention_mask"):
        load_texts(table(tmp_path, "bad plot 0\t0\ngood film\t0\n"), spec, assets, None, 0)


@pytest.mark.parametrize("name", ["data.tsv", "data.tsv.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\N{ZERO WIDTH NO-BREAK SPACE}"])
def test_a_header_names_columns_in_any_order(tmp_path: Path, name: str, end: str, mark: str) -> None:
    lines = ["split\ttext\tid\tlabel", 'test\tgood "film\t7\t2', "", "\tbad\t8\t0"]
    rows = read_table(table(tmp_path, mark + end.join(lines), name), ("text", "label"))
    assert [(row.cells["text"], row.cells["label"], row.split) for row in rows] == [
        ('good "film', "2", "test"),
        ("bad", "0", ""),
    ]
    assert [row.place for row in rows] == [f"{tmp_path / name}:2", f"{tmp_path / name}:4"]


def test_labels_are_names_or_numbers(tmp_path: Path, assets: dict[str, Path]) -> None:
    content = "x\t0\n" + "".join(f"film {i}\t{label}\n" for i, label in enumerate((*LABELS, 0, 1, 2)))
    data = load_texts(table(tmp_path, content), spec_of(), assets, None, 0)
    given = [*data.calibration, *data.evaluation]
    assert sorted(target(sample) for sample in given) == [0, 0, 0, 1, 1, 2, 2]


def test_names_that_are_numbers_are_taken_as_names(tmp_path: Path, assets: dict[str, Path]) -> None:
    write_config(tmp_path / "assets", id2label={"0": "1", "1": "2", "2": "3"})
    data = load_texts(table(tmp_path, "x\t1\nfilm\t3\n"), spec_of(), assets, None, 0)
    assert sorted(target(s) for s in (*data.calibration, *data.evaluation)) == [0, 2]
    with pytest.raises(DataError, match=r"data\.tsv:2: expected a label, one of 1, 2, 3; got '0'"):
        load_texts(table(tmp_path, "x\t1\nfilm\t0\n"), spec_of(), assets, None, 0)


def test_the_score_is_that_of_transformers_on_the_unpadded_texts(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="models are torch modules: edgeattn[convert]")
    pytest.importorskip("transformers", reason="directories are read by it: edgeattn[hf]")
    source = write_classifier(tmp_path / "net")
    path = table(tmp_path)
    model = with_buckets(load_model(str(tmp_path / "net")), {"seq": (4, LENGTH)})
    data = load_data("net", model.spec, str(path), None, 60, model.assets)
    assert isinstance(data, TaskData)
    beside = {"tokenizer.json": tmp_path / "net" / "tokenizer.json"}
    rows, best = [], []
    for sample in data.evaluation:
        row, expected = next(
            (row, expected)
            for row in read_table(path, ("text", "label"))
            if same(
                sample,
                expected := oracle(beside, row.cells["text"], None),
            )
        )
        rows.append(row)
        with torch.inference_mode():
            best.append(int(source(**{name: torch.tensor(ids) for name, ids in expected.items()}).logits.argmax()))
    score = data.score(Reference(model), data.evaluation, lambda: None)
    assert len(set(best)) > 1
    assert score is not None
    assert score.value == pytest.approx(
        np.mean([label == int(row.cells["label"]) for label, row in zip(best, rows, strict=True)])
    )


# --- splits -----------------------------------------------------------------------------------------------------------


def split_table(tmp_path: Path, splits: Sequence[str]) -> Path:
    lines = "".join(f"{'very ' * i}good\t0\t{split}\n" for i, split in enumerate(splits))
    return table(tmp_path, "text\tlabel\tsplit\n" + lines)


def lengths(samples: Sequence[TaskSample]) -> list[int]:
    """How often each text says "very", by which it is recognised."""
    return [int(sample.inputs["attention_mask"].sum()) - 3 for sample in samples]


@pytest.mark.parametrize(
    ("splits", "split", "calibration", "evaluation"),
    [
        (("train", "dev", "test", "train"), None, [0, 3], [2]),
        (("train", "dev", "train", ""), None, [0, 2], [1]),
        (("train", "dev", "test", "test"), "dev", [0], [1]),
        (("train", "train", "test", ""), "train", [], [0, 1]),
        (("dev", "test", "dev", ""), None, [0, 2, 3], [1]),  # no train: whatever is not measured
        (("train", "val", "train"), None, [0, 2], [1]),
    ],
)
def test_what_is_measured_never_calibrates(
    tmp_path: Path,
    assets: dict[str, Path],
    splits: Sequence[str],
    split: str | None,
    calibration: list[int],
    evaluation: list[int],
) -> None:
    data = load_texts(split_table(tmp_path, splits), spec_of(length=12), assets, split, 0)
    assert (sorted(lengths(data.calibration)), sorted(lengths(data.evaluation))) == (calibration, evaluation)


@pytest.mark.parametrize("splits", [("",) * 6, ("train",) * 6])
def test_without_a_split_to_measure_a_fifth_calibrates(
    tmp_path: Path, assets: dict[str, Path], splits: Sequence[str]
) -> None:
    data = load_texts(split_table(tmp_path, splits), spec_of(length=12), assets, None, 0)
    assert (len(data.calibration), len(data.evaluation)) == (2, 4)
    assert sorted(lengths((*data.calibration, *data.evaluation))) == list(range(6))


def test_a_label_of_minus_100_is_none(tmp_path: Path, assets: dict[str, Path]) -> None:
    data = load_texts(table(tmp_path, "good\t-100\nbad\t0\n"), spec_of(), assets, None, 0)
    assert sorted(target(s) for s in (*data.calibration, *data.evaluation)) == [-100, 0]


@pytest.mark.parametrize("head", ["", "text\n", "text\tsplit\n"])
def test_texts_alone_have_no_labels(tmp_path: Path, assets: dict[str, Path], head: str) -> None:
    end = "\ttest\n" if "split" in head else "\n"
    content = head + "".join(f"{'very ' * i}good{end}" for i in range(6))
    data = load_texts(table(tmp_path, content), spec_of(length=12), assets, None, 0)
    given = [*data.calibration, *data.evaluation]
    assert (len(given), {one.target for one in given}) == (6, {None})


def test_a_text_of_two_splits_only_measures(tmp_path: Path, assets: dict[str, Path]) -> None:
    path = table(tmp_path, "text\tlabel\tsplit\ngood\t0\ttrain\nvery good\t0\ttrain\ngood\t0\ttest\n")
    data = load_texts(path, spec_of(), assets, None, 0)
    assert (lengths(data.calibration), lengths(data.evaluation)) == ([1], [0])


def test_a_directory_has_a_table_per_split(tmp_path: Path, assets: dict[str, Path]) -> None:
    table(tmp_path, "text\tlabel\ngood\t0\nvery good\t1\n", "set/train.tsv.gz")
    table(tmp_path, "very very good\t1\n", "set/dev.tsv")
    table(tmp_path, "no table\n", "set/notes.tsv")
    data = load_data("net", spec_of(), str(tmp_path / "set"), None, 60, assets)
    assert isinstance(data, TaskData)
    assert (sorted(lengths(data.calibration)), lengths(data.evaluation), data.origin) == ([0, 1], [2], "set/dev")
    with pytest.raises(DataError, match=r"set: no split 'test'; it has dev, train"):
        load_data("net", spec_of(), str(tmp_path / "set"), "test", 60, assets)


def test_the_limit_holds_for_both_sides_and_spreads(tmp_path: Path, assets: dict[str, Path]) -> None:
    data = load_texts(split_table(tmp_path, ["train", "test"] * 5), spec_of(length=16), assets, None, 3)
    assert [len(data.calibration), len(data.evaluation)] == [3, 3]
    assert {said % 2 for said in lengths(data.calibration)} == {0}
    assert {said % 2 for said in lengths(data.evaluation)} == {1}
    assert max(lengths((*data.calibration, *data.evaluation))) > 5  # not the first ones


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"data\.tsv: no sample to measure on; at least 2 different ones"),
        ("text\tlabel\n", "no sample to measure on"),
        ("good\t0\n", "no sample to measure on"),
        ("good\t0\ngood\t1\n", "no sample to measure on"),
        ("good\t0\nbad\n", r":2: expected 2 columns separated by tabs, text label; got 1"),
        ("good\t0\tx\n", r":1: expected 2 columns separated by tabs, text label; got 3"),
        ("text\tlabel\tsplit\ngood\t0\n", r":2: expected 3 columns separated by tabs, text label split; got 2"),
        ("text\tlabel\ttext\ngood\t0\tbad\n", r":1: expected each column once.* got text label text"),
        ("good\t0\n \t0\n", r":2: expected a text before the label"),
        (b"good\t0\nb\xffd\t0\n", r":2: not UTF-8 \(byte 1 of the line\)"),
        ("sentence\tlabel\ngood\t0\n", r":1: expected a label, a number from 0 to 2, or one of neg.*; got 'label'"),
        ("good\t0\nbad\tawful\n", r":2: expected a label, .* or one of negative, neutral, positive; got 'awful'"),
        ("good\t0\nbad\t3\n", r":2: expected a label, a number from 0 to 2, .*; got '3'"),
        ("good\t0\nbad\t-1\n", r":2: expected a label, .*; got '-1'"),
        ("good\t0\nbad\t\n", r":2: expected a label, .*; got ''"),
        ("good\t0\nbad " + "x" * 2**17 + "\t0\n", r":2: a line of more than 131072 bytes"),
    ],
    ids=[
        "empty",
        "header only",
        "one text",
        "one text twice",
        "short line",
        "long line",
        "short line under a header",
        "column twice",
        "no text",
        "not UTF-8",
        "unknown header",
        "unknown name",
        "too large",
        "negative",
        "no label",
        "endless line",
    ],
)
def test_a_wrong_table_is_refused_with_its_line(
    tmp_path: Path, assets: dict[str, Path], content: str | bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_texts(table(tmp_path, content), spec_of(), assets, None, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config", [None, {}, {"id2label": None}, {"id2label": ["a", "b", "c"]}, {"id2label": {"x": "a"}}]
)
def test_without_names_of_labels_only_numbers_are_taken(
    tmp_path: Path, assets: dict[str, Path], config: dict[str, Any] | None
) -> None:
    if config is None:
        del assets["config.json"]
    else:
        assets["config.json"].write_text(json.dumps(config))
    with pytest.raises(DataError, match=r":2: .* from 0 to 2 \(the model's config.json has no names .* got 'positive'"):
        load_texts(table(tmp_path, "good\t0\nbad\tpositive\n"), spec_of(), assets, None, 0)
    assert load_texts(table(tmp_path), spec_of(), assets, None, 0).evaluation


def test_a_name_of_two_labels_names_none(tmp_path: Path, assets: dict[str, Path]) -> None:
    write_config(tmp_path / "assets", id2label={"0": "other", "1": "other", "2": "good"})
    with pytest.raises(DataError, match="or one of good; got 'other'"):
        load_texts(table(tmp_path, "good\t0\nbad\tother\n"), spec_of(), assets, None, 0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (spec_of(("input_ids", "bbox")), r"this model takes input_ids, bbox"),
        (spec_of(("attention_mask",)), r"this model takes attention_mask"),
        (spec_of(batch=2), r"texts are run one by one.*input_ids\[2, 6\]"),
        (spec_of(outputs={"logits": (1, 6, 3)}), r"for a text classifier.* this model has logits\[1, 6, 3\]"),
        (spec_of(outputs={"logits": (1, 1)}), r"this model has logits\[1, 1\]"),
        (spec_of(outputs={"a": (1, 3), "b": (1, 3)}), r"this model has a\[1, 3\], b\[1, 3\]"),
    ],
    ids=["other inputs", "no ids", "batch", "a label per token", "regression", "two outputs"],
)
def test_a_model_that_is_no_text_classifier_is_refused(
    tmp_path: Path, assets: dict[str, Path], spec: ModelSpec, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_texts(table(tmp_path), spec, assets, None, 0)


def test_the_only_output_is_the_scores_whatever_it_is_called(tmp_path: Path, assets: dict[str, Path]) -> None:
    data = load_texts(table(tmp_path), spec_of(outputs={"scores": (1, CLASSES)}), assets, None, 0)
    assert set(data.evaluation[0].targets[0]) == {"scores"}


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.tsv: texts need the model's tokenizer, and this model brings no"):
        load_data("net", spec_of(), str(table(tmp_path)), None, 60)


def test_a_damaged_tokenizer_is_refused(tmp_path: Path, assets: dict[str, Path]) -> None:
    assets["tokenizer.json"].write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json: not readable as a tokenizer"):
        load_texts(table(tmp_path), spec_of(), assets, None, 0)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, assets: dict[str, Path]) -> None:
    write_config(tmp_path / "assets", vocab_size=4)
    with pytest.raises(DataError, match=r"data\.tsv:2: token 5, but the model has 4: its tokenizer\.json belongs to"):
        load_texts(table(tmp_path, "x\t0\nbad\t0\n"), spec_of(), assets, None, 0)


def test_a_text_without_a_token_is_refused(tmp_path: Path, assets: dict[str, Path]) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(assets["tokenizer.json"]))
    tokenizer.post_processor = None
    bare = json.loads(tokenizer.to_str()) | {
        "normalizer": {"type": "Replace", "pattern": {"String": "?"}, "content": ""}
    }
    assets["tokenizer.json"].write_text(json.dumps(bare))
    with pytest.raises(DataError, match=r"data\.tsv:2: expected a text; the model's tokenizer finds no token in '\?'"):
        load_texts(table(tmp_path, "x\t0\n?\t0\n"), spec_of(), assets, None, 0)


def test_two_tables_of_one_split_are_refused(tmp_path: Path, assets: dict[str, Path]) -> None:
    table(tmp_path, TABLE, "set/test.tsv")
    table(tmp_path, TABLE, "set/test.tsv.gz")
    with pytest.raises(DataError, match=r"set: holds test\.tsv and test\.tsv\.gz; keep one"):
        load_texts(tmp_path / "set", spec_of(), assets, None, 0)


def test_a_split_column_in_a_directory_is_refused(tmp_path: Path, assets: dict[str, Path]) -> None:
    table(tmp_path, "text\tlabel\tsplit\ngood\t0\tdev\n", "set/test.tsv")
    with pytest.raises(DataError, match=r"test\.tsv:1: .*a split column only in a table that is given by itself"):
        load_texts(tmp_path / "set", spec_of(), assets, None, 0)


@pytest.mark.parametrize("keep", [0, 10, 60])
def test_a_damaged_archive_is_refused(tmp_path: Path, assets: dict[str, Path], keep: int) -> None:
    path = table(tmp_path, TABLE, "data.tsv.gz")
    path.write_bytes(path.read_bytes()[:keep] or b"text\t0\n")
    with pytest.raises(DataError, match=r"data\.tsv\.gz: cannot be read"):
        load_texts(path, spec_of(), assets, None, 0)


@pytest.mark.parametrize(("bound", "value"), [("MAX_ROWS", 19), ("MAX_BYTES", 100)])
def test_an_endless_table_is_refused(
    tmp_path: Path, assets: dict[str, Path], monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    monkeypatch.setattr(tables, bound, value)
    with pytest.raises(DataError, match=r"data\.tsv\.gz: more than .*; split it"):
        load_texts(table(tmp_path, TABLE, "data.tsv.gz"), spec_of(), assets, None, 0)
