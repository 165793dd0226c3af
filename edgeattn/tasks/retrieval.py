"""The texts that answer a query, among all there are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgeattn.errors import DataError
from edgeattn.guards.plain import strict_json
from edgeattn.spec import ModelSpec
from edgeattn.tasks.embeddings import embedding_output, encoded_texts, unit_vectors
from edgeattn.tasks.metric import Metric, Statistics
from edgeattn.tasks.metrics.ranking import mrr_at, recall_at
from edgeattn.tasks.questions import MAX_INPUT_BYTES, read_bounded
from edgeattn.tasks.tables import is_table, read_table
from edgeattn.tasks.task import Arrays, Assets, Described, Encoded, Sample, Task
from edgeattn.tasks.texts import text_encoder

if TYPE_CHECKING:
    from typing_extensions import Self

DEEPEST = 10  # places of a ranking that metrics look at
BLOCK = 256  # queries that are compared with all texts at once
MAX_TEXTS = 256  # of one query
QUERY, POSITIVE, NEGATIVE = 0.0, 1.0, 2.0


@dataclass(frozen=True, kw_only=True)
class Retrieval(Task):
    """See the module.

    A sample is a query with its own texts; the metric compares each query with the texts of all samples together.

    Attributes:
        output: that holds embeddings, float [1, size] or [1, tokens, size].
        per_token: whether it has one per token: the mean of those that are no padding is the text's.
    """

    name: ClassVar[str] = "retrieval"
    summary: ClassVar[str] = "the texts that answer a query, by the cosine of embeddings"
    forms: ClassVar[str] = "a table (.tsv, .csv, .jsonl) of query and positive, or a directory with one per split"
    measured: ClassVar[tuple[str, ...]] = ("mrr@10", "recall@1", "recall@10")
    model_tasks: ClassVar[tuple[str, ...]] = ("retrieval",)

    output: str
    per_token: bool

    @classmethod
    def fitted(cls, model: Described) -> Self:
        """See :class:`~edgeattn.tasks.task.Task`."""
        output, per_token = embedding_output(model)
        return cls(output=output, per_token=per_token)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A table, or a directory of tables."""
        return is_table(path)

    def read(self, path: Path, assets: Assets) -> Sequence[Sample]:
        """Lines of a query, a text that answers it (or a list of them), and maybe ``negatives``, texts that do not."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        places: dict[tuple[str, str], str] = {}
        for line in read_table(path, ("query", "positive")):
            query = line.cells["query"]
            if not isinstance(query, str) or not query.strip():
                raise DataError(f"{line.place}: expected a query, got an empty one")
            own = found.setdefault((query, line.split), {"query": query, "positives": [], "negatives": []})
            own["positives"] += _texts(line.cells["positive"], "positive", line.place)
            own["negatives"] += _texts(line.cells.get("negatives", []), "negatives", line.place)
            places.setdefault((query, line.split), line.place)
            if len(own["positives"]) + len(own["negatives"]) > MAX_TEXTS:
                raise DataError(f"{line.place}: a query has {MAX_TEXTS} texts at most; leave some out")
        return [
            Sample(
                given=given,
                target={"positives": len(dict.fromkeys(given["positives"]))},
                split=split,
                place=places[query, split],
                key=query,
            )
            for (query, split), given in found.items()
        ]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The place of the first text that answers, and how many of those that do are found."""
        return _over_all(mrr_at(DEEPEST)), _over_all(recall_at(1)), _over_all(recall_at(DEEPEST))

    def parsed(self, text: str) -> dict[str, Any]:
        """``{"query": ..., "documents": [...]}``, or the name of a file of it."""
        where, given = "the input", text.encode()
        if not text.lstrip().startswith("{"):
            where, given = text[:80], read_bounded(Path(text), MAX_INPUT_BYTES)
        try:
            values = strict_json(given)
        except (ValueError, RecursionError):
            values = None
        documents = values.get("documents") if isinstance(values, dict) else None
        query = values.get("query") if isinstance(values, dict) else None
        if not isinstance(query, str) or not query.strip() or not _are_texts(documents) or not documents:
            raise DataError(f"{where}: expected JSON, {json.dumps({'query': '...', 'documents': ['...']})}")
        return {"query": query, "positives": documents, "negatives": []}

    def encoder(self, spec: ModelSpec, assets: Assets) -> Callable[[Any], Encoded]:
        """See :class:`~edgeattn.tasks.task.Task`."""
        encode = text_encoder(Described(spec=spec, assets=assets))

        def encoded(given: Mapping[str, Any]) -> Encoded:
            texts = list(dict.fromkeys([*given["positives"], *given["negatives"]]))
            made = encoded_texts(encode, [given["query"], *texts])
            facts = {**made.facts, "texts": texts}
            return Encoded(calls=made.calls, facts=facts, cut=made.cut)

        return encoded

    def answer(self, outputs: Sequence[Arrays], facts: Mapping[str, Any]) -> dict[str, Any]:
        """``vectors`` of the query and of its texts, of length 1, and the ``texts``."""
        return {"vectors": unit_vectors(outputs, self.output, self.per_token, facts), "texts": facts["texts"]}

    def described(self, answer: Any) -> Any:
        """The texts, the nearest first, with their cosines."""
        cosines = answer["vectors"][1:] @ answer["vectors"][0]
        order = np.argsort(-np.nan_to_num(cosines, nan=-2.0), kind="stable").tolist()
        known = [None if np.isnan(cosines[i]) else round(float(cosines[i]), 6) for i in order]
        return [{"text": answer["texts"][i], "cosine": cosine} for i, cosine in zip(order, known, strict=True)]

    def line(self, answer: Any) -> str:
        """The nearest text with its cosine."""
        best = self.described(answer)[0]
        return f"{best['text']} {best['cosine']}"

    def as_target(self, answer: Any) -> dict[str, Any]:
        """The text that the source finds nearest is the one that answers: not used, since this data has labels."""
        return {"positives": 1}

    def broken(self, value: float, answers: Sequence[Any], targets: Sequence[Any]) -> str:
        """All texts have one embedding."""
        vectors = np.concatenate([answer["vectors"] for answer in answers])
        if np.isnan(vectors).all() or float(np.nanmax(np.ptp(vectors, axis=0))) == 0.0:
            return "the metric is constant: all texts have one embedding"
        return ""


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) and one.strip() for one in value)


def _texts(cell: Any, name: str, place: str) -> list[str]:
    found = cell if isinstance(cell, list) else [cell]
    if not _are_texts(found) or (name == "positive" and not found):
        raise DataError(f"{place}: expected {name} to be a text, or in a .jsonl a list of them, got {str(cell)[:80]!r}")
    return [str(one) for one in found]


def _number(text: str) -> float:
    """A number of a text that a float64 holds exactly."""
    return float(int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big"))


def _rows(answer: Any, target: Any) -> np.ndarray:
    """Kind, number and embedding of the query and of each text, float64, shape (1 + texts, 2 + size)."""
    vectors, texts, positives = answer["vectors"], answer["texts"], target["positives"]
    kinds = [QUERY, *[POSITIVE] * positives, *[NEGATIVE] * (len(texts) - positives)]
    numbers = [0.0, *map(_number, texts)]
    return np.column_stack([kinds, numbers, np.nan_to_num(vectors, nan=0.0, posinf=0.0, neginf=0.0)])


def _over_all(metric: Metric) -> Metric:
    """A metric of rankings as one of embeddings: each query ranks the texts of all samples, an equal one goes last."""

    def value(statistics: Statistics) -> float:
        samples = [np.asarray(sample) for sample in statistics]
        rows = np.concatenate(samples)
        rows = rows[rows[:, 0] != QUERY]
        numbers, first = np.unique(rows[:, 1], return_index=True)
        documents = rows[first, 2:]
        queries = np.stack([sample[0, 2:] for sample in samples])
        told = []
        for start in range(0, len(samples), BLOCK):
            cosines = queries[start : start + BLOCK] @ documents.T
            for row, sample in zip(cosines, samples[start : start + BLOCK], strict=True):
                relevant = np.isin(numbers, sample[sample[:, 0] == POSITIVE, 1])
                row[relevant & ~documents.any(axis=1)] = -np.inf  # NaN is never right
                if not sample[0, 2:].any():
                    row[relevant] = -np.inf
                order = np.lexsort((relevant, -row))[:DEEPEST]
                ids = [int(number) for number in numbers[order]]
                told.append(metric.statistics(ids, [int(number) for number in numbers[relevant]]))
        return float(metric.value(told))

    return Metric(name=metric.name, statistics=_rows, value=value)
