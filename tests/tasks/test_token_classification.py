"""Tags per word: what files say, the first tokens of words, entities, and each refusal with its line."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.errors import DataError
from edgeattn.model import Reference
from edgeattn.sources.tasks import described, load_samples
from edgeattn.spec import ModelSpec
from edgeattn.tasks import Pipeline, restored, stored
from edgeattn.tasks.tagged import is_tagged, read_tagged
from edgeattn.tasks.token_classification import TokenClassification

tokenizers: Any = pytest.importorskip("tokenizers", reason="it makes tokens of texts: edgeattn[hf]")
torch: Any = pytest.importorskip("torch", reason="models are torch modules: edgeattn[convert]")

from tests.tasks.text_models import PerToken, model_of, on_onnxruntime, scored, sent, spec_of, write_assets  # noqa: E402

WORDS = ("an", "##n", "bob", "in", "new", "york", "li", "##ves", "sees")
TAGS = ("O", "B-person", "I-person", "B-place", "I-place")
LENGTH = 8
SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def assets(tmp_path: Path) -> dict[str, Path]:
    return write_assets(tmp_path / "assets", WORDS, id2label=dict(enumerate(TAGS)))


def task_for(assets: dict[str, Path], spec: ModelSpec | None = None) -> TokenClassification:
    spec = spec or spec_of({"logits": (1, LENGTH, len(TAGS))}, LENGTH)
    return TokenClassification.fitted(described(spec, assets))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.conll", "a.bio", "a.txt", "a.tsv", "a.tsv.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_words_and_tags_are_columns_with_empty_lines_between_sentences(tmp_path: Path, name: str, end: str) -> None:
    path = write(tmp_path / name, end.join(["\u200b\tO", "New\tB-place", "York\tI-place", "", " ", "#x\tO", ""]))
    first, second = read_tagged(path)
    assert (first.words, first.tags["tag"]) == (("\u200b", "New", "York"), ("O", "B-place", "I-place"))
    assert (second.words, second.places) == (("#x",), (f"{path}:6",))


def test_columns_between_and_document_marks_are_passed_over(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.txt", "-DOCSTART- -X- -X- O\n\nAnn NNP B-NP B-PER\nleft VBD B-VP O\n\n\nBob NNP B-NP B-PER"
    )
    assert [(s.words, s.tags["tag"]) for s in read_tagged(path)] == [
        (("Ann", "left"), ("B-PER", "O")),
        (("Bob",), ("B-PER",)),
    ]


UNIVERSAL = """# text = Don't go
1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tDo\tdo\tAUX\tVB\t_\t3\taux\t_\t_
2\tn't\tnot\tPART\tRB\t_\t3\tadvmod\t_\t_
2.1\tghost\tghost\tVERB\tVB\t_\t_\t_\t_\t_
3\tgo\tgo\tVERB\tVB\t_\t0\troot\t_\t_

# another
1\tGo\tgo\tVERB\tVB\t_\t0\troot\t_\t_
"""


def test_conllu_has_words_of_syntax_and_three_columns_of_tags(tmp_path: Path) -> None:
    first, second = read_tagged(write(tmp_path / "a.conllu", UNIVERSAL))
    assert first.words == ("Do", "n't", "go")
    assert first.tags == {
        "UPOS": ("AUX", "PART", "VERB"),
        "XPOS": ("VB", "RB", "VB"),
        "DEPREL": ("aux", "advmod", "root"),
    }
    assert second.words == ("Go",)


@pytest.mark.parametrize(
    ("tags", "expected"), [(("VERB", "AUX", "PART"), ["AUX", "PART", "VERB"]), (("RB", "VB", "NN"), ["VB", "RB", "VB"])]
)
def test_the_column_is_the_one_whose_tags_are_the_models(
    tmp_path: Path, tags: tuple[str, ...], expected: list[str]
) -> None:
    assets = write_assets(tmp_path / "assets", WORDS, id2label=dict(enumerate(tags)))
    task = task_for(assets, spec_of({"logits": (1, LENGTH, 3)}, LENGTH))
    first = task.read(write(tmp_path / "a.conllu", UNIVERSAL), assets)[0]
    assert first.target == expected
    assert [metric.name for metric in task.metrics] == ["token-accuracy"]


def test_a_directory_has_a_file_per_split(tmp_path: Path) -> None:
    write(tmp_path / "set" / "en_x-ud-train.conllu.gz", UNIVERSAL)
    write(tmp_path / "set" / "dev.conll", "Ann\tO\n")
    write(tmp_path / "set" / "README.txt", "not of a split")
    assert is_tagged(tmp_path / "set")
    assert [sentence.split for sentence in read_tagged(tmp_path / "set")] == ["dev", "train", "train"]
    write(tmp_path / "set" / "train.txt", "Ann\tO\n")
    with pytest.raises(DataError, match=r"set: holds en_x-ud-train\.conllu\.gz and train\.txt; keep one"):
        read_tagged(tmp_path / "set")


@pytest.mark.parametrize(("name", "sentences"), [("wnut17_ner", 5690), ("ud_english_ewt", 16622)])
def test_published_corpora_are_read_as_they_are(name: str, sentences: int) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs {name}, which is not part of the repository")
    found = read_tagged(SHARED / name)
    assert {sentence.split for sentence in found} == {"train", "dev", "test"}
    assert len(found) == sentences


# --- tokens and words -------------------------------------------------------------------------------------------------


def test_only_first_tokens_of_words_count_and_what_is_cut_is_missing(tmp_path: Path, assets: dict[str, Path]) -> None:
    task = task_for(assets)
    encode = task.encoder(spec_of({"logits": (1, LENGTH, len(TAGS))}, LENGTH), assets)
    words = ["ann", "lives", "in", "new", "york"]  # [CLS] an ##n li ##ves in new [SEP], and york is left out
    encoded = encode(words)
    assert encoded.cut == f"at {LENGTH} tokens"
    assert encoded.facts["first"] == [1, 3, 5, 6]
    target = ["B-person", "O", "O", "B-place", "I-place"]
    np.testing.assert_array_equal(
        task.array_targets(target, encoded)[0]["logits"], [[-100, 1, -100, 0, -100, 0, 3, -100]]
    )
    scores = np.zeros((1, LENGTH, len(TAGS)), np.float32)
    for place, tag in zip((1, 3, 5, 6), target, strict=False):
        scores[0, place, TAGS.index(tag)] = 1
    answer = task.answer([{"logits": scores}], encoded.facts)
    assert answer["tags"] == target[:4]
    accuracy = task.metrics[1].statistics(answer, target)
    assert (accuracy[0], accuracy[1]) == (4, 5)  # the fifth word counts as wrong
    scores[0, 5] = np.nan
    assert task.answer([{"logits": scores}], encoded.facts)["tags"][2] is None


def test_a_byte_level_tokenizer_sees_each_word_behind_a_space(tmp_path: Path, assets: dict[str, Path]) -> None:
    vocabulary = {"[UNK]": 0, "\u0120new": 1, "\u0120york": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.save(str(assets["tokenizer.json"]))
    encode = task_for(assets).encoder(spec_of({"logits": (1, LENGTH, len(TAGS))}, LENGTH), assets)
    assert encode(["new", "york"]).calls[0]["input_ids"][0, :2].tolist() == [1, 2]


def test_the_score_is_that_of_seqeval_here_and_on_a_device(tmp_path: Path, assets: dict[str, Path]) -> None:
    seqeval: Any = pytest.importorskip("seqeval.metrics", reason="the oracle of entity F1: edgeattn[dev]")
    torch.manual_seed(3)
    model = model_of(PerToken(4 + len(WORDS), len(TAGS)), assets, 8, (8, 16))
    draw = np.random.default_rng(0)
    sentences = [draw.choice(["ann", "bob", "in", "new", "york", "lives"], 6).tolist() for _ in range(30)]
    truth = [[str(tag) for tag in draw.choice(TAGS, 6)] for _ in sentences]
    rows = [zip(*pair, strict=True) for pair in zip(sentences, truth, strict=True)]
    text = "\n\n".join("\n".join(map("\t".join, row)) for row in rows)
    task = task_for(assets, model.spec)
    data = load_samples(write(tmp_path / "a.conll", text), task, model.spec, assets, None, 0)
    ask = Pipeline(Reference(model), stored(task), assets)
    said = [ask.answer(sample.encoded.facts["text"])["tags"] for sample in data.evaluation]
    score = scored(model, data)
    assert score.metric == "entity-f1"
    targets = [sample.target for sample in data.evaluation]
    assert score.value == pytest.approx(seqeval.f1_score(targets, said), abs=1e-9)
    assert score.others["token-accuracy"] == pytest.approx(100 * seqeval.accuracy_score(targets, said), abs=1e-9)
    assert sent(model, data, tmp_path) == score
    assert restored(stored(task)) == task


@pytest.mark.slow
def test_an_engine_scores_as_the_source(tmp_path: Path, assets: dict[str, Path]) -> None:
    torch.manual_seed(3)
    model = model_of(PerToken(4 + len(WORDS), len(TAGS)), assets, 8)
    path = write(tmp_path / "a.conll", "\n\n".join(f"bob\tB-person\nin\tO\n{word}\tB-place" for word in WORDS))
    data = load_samples(path, task_for(assets, model.spec), model.spec, assets, None, 0)
    assert on_onnxruntime(model, data, tmp_path) == scored(model, data)


def test_a_text_gives_entities_with_their_places(assets: dict[str, Path]) -> None:
    task = task_for(assets)
    encode = task.encoder(spec_of({"logits": (1, LENGTH, len(TAGS))}, LENGTH), assets)
    encoded = encode(task.parsed("bob  sees new\tyork"))
    scores = np.zeros((1, LENGTH, len(TAGS)), np.float32)
    for place, tag in enumerate((1, 0, 3, 4), 1):
        scores[0, place, tag] = 1
    answer = task.answer([{"logits": scores}], encoded.facts)
    assert task.described(answer) == [
        {"entity": "person", "text": "bob", "start": 0, "end": 3},
        {"entity": "place", "text": "new\tyork", "start": 10, "end": 18},
    ]
    assert task.line(answer) == "person bob, place new\tyork"
    with pytest.raises(DataError, match="expected a text, got an empty one"):
        task.parsed(" \n")


def test_other_tags_are_told_word_by_word(tmp_path: Path) -> None:
    assets = write_assets(tmp_path / "assets", WORDS, id2label={0: "NOUN", 1: "VERB"})
    task = task_for(assets, spec_of({"logits": (1, LENGTH, 2)}, LENGTH))
    answer = {"tags": ["NOUN", "VERB"], "text": "bob sees", "spans": [[0, 3], [4, 8]]}
    assert task.line(answer) == "bob/NOUN sees/VERB"
    assert task.described(answer)[1] == {"tag": "VERB", "text": "sees", "start": 4, "end": 8}


def test_always_the_same_tag_is_broken(assets: dict[str, Path]) -> None:
    task = task_for(assets)
    answers = [{"tags": ["O", "O"]}] * 3
    assert "constant" in task.broken(0.5, answers, [["O", "B-person"]] * 3)
    assert task.broken(1.0, [{"tags": ["O", "B-person"]}], [["O", "B-person"]]) == ""


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.conll", "", r"a\.conll: no sample to measure on"),
        ("a.conll", "bob\tO\nann\n", r"a\.conll:2: expected a word and last its tag, 2 columns .* tabs.*got 'ann'"),
        ("a.conll", "bob\tO\nann\tO\tO\n", r"a\.conll:2: expected a word and last its tag, 2 columns"),
        ("a.conll", "bob\tO\nann\t\n", r"a\.conll:2: expected a word and last its tag"),
        ("a.conll", "bob\n", r"a\.conll:1: expected a word and last its tag, 2 columns separated by spaces"),
        ("a.conll", "bob\tO\nann\tB-animal\n", r"a\.conll:2: expected a label, .*B-person.*; got 'B-animal'"),
        ("a.conll", "bob\t-100\n", r"a\.conll:1: expected a tag, got -100"),
        ("a.conllu", "1\tbob\tO\n", r"a\.conllu:1: expected a word of CoNLL-U, 10 columns separated by tabs.*; got 3"),
        ("a.conllu", UNIVERSAL, r"a\.conllu:3: expected a label, .*; got 'AUX'"),
        ("a.conllu", UNIVERSAL.replace("3\tgo", "x\tgo"), r"a\.conllu:6: expected a word of CoNLL-U"),
    ],
    ids=[
        "empty",
        "short",
        "long",
        "no tag",
        "no column",
        "unknown",
        "ignored",
        "no CoNLL-U",
        "other tags",
        "no number",
    ],
)
def test_a_wrong_file_is_refused_with_its_line(
    tmp_path: Path, assets: dict[str, Path], name: str, content: str, message: str
) -> None:
    spec = spec_of({"logits": (1, LENGTH, len(TAGS))}, LENGTH)
    with pytest.raises(DataError, match=message):
        load_samples(write(tmp_path / name, content), task_for(assets), spec, assets, None, 0)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"logits": (1, 5)}, r"expected a model that scores tags for each token.*logits\[1, 5\]"),
        ({"logits": (1, 4, 5)}, r"as many tokens as input_ids has; this model takes .*gives logits\[1, 4, 5\]"),
    ],
)
def test_a_model_without_scores_per_token_is_refused(
    assets: dict[str, Path], outputs: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        task_for(assets, spec_of(outputs, LENGTH))
    with pytest.raises(DataError, match="texts need the model's tokenizer"):
        TokenClassification.fitted(described(spec_of({"logits": (1, LENGTH, 5)}, LENGTH), {}))
