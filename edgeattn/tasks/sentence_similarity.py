"""How alike two texts are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgeattn.errors import DataError
from edgeattn.spec import ModelSpec
from edgeattn.tasks.embeddings import embedding_output, encoded_texts, unit_vectors
from edgeattn.tasks.metric import Metric
from edgeattn.tasks.metrics.similarity import PEARSON, SPEARMAN
from edgeattn.tasks.tables import is_table, read_table
from edgeattn.tasks.task import Arrays, Assets, Described, Encoded, Sample, Task
from edgeattn.tasks.texts import text_encoder

if TYPE_CHECKING:
    from typing_extensions import Self

COLUMNS = ("sentence1", "sentence2", "score")


@dataclass(frozen=True, kw_only=True)
class SentenceSimilarity(Task):
    """See the module.

    Attributes:
        output: that holds embeddings, float [1, size] or [1, tokens, size].
        per_token: whether it has one per token: the mean of those that are no padding is the text's.
    """

    name: ClassVar[str] = "sentence-similarity"
    summary: ClassVar[str] = "how alike two texts are, by the cosine of their embeddings"
    forms: ClassVar[str] = (
        "a table (.tsv, .csv, .jsonl) of sentence1, sentence2 and score, or a directory with one per split"
    )
    measured: ClassVar[tuple[str, ...]] = ("spearman", "pearson")
    model_tasks: ClassVar[tuple[str, ...]] = ("sentence-similarity",)

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
        """Lines of two texts and a number, larger for what is more alike."""
        samples = []
        for line in read_table(path, COLUMNS):
            pair = [line.cells[name] for name in COLUMNS[:2]]
            if not all(isinstance(text, str) and text.strip() for text in pair):
                raise DataError(f"{line.place}: expected two texts before the score, got an empty one")
            score = _score(line.cells["score"], line.place)
            samples.append(Sample(given=pair, target=score, split=line.split, place=line.place, key=tuple(pair)))
        return samples

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Spearman's correlation with the scores; Pearson's beside it."""
        return SPEARMAN, PEARSON

    def parsed(self, text: str) -> list[str]:
        """Two texts with a TAB between."""
        pair = text.split("\t")
        if len(pair) != 2 or not all(one.strip() for one in pair):
            raise DataError(f"expected two texts with a TAB between, got {text[:80]!r}")
        return pair

    def encoder(self, spec: ModelSpec, assets: Assets) -> Callable[[Any], Encoded]:
        """See :class:`~edgeattn.tasks.task.Task`."""
        encode = text_encoder(Described(spec=spec, assets=assets))
        return lambda pair: encoded_texts(encode, pair)

    def answer(self, outputs: Sequence[Arrays], facts: Mapping[str, Any]) -> float | None:
        """The cosine; None of NaN."""
        first, second = unit_vectors(outputs, self.output, self.per_token, facts)
        cosine = float(first @ second)
        return cosine if math.isfinite(cosine) else None

    def described(self, answer: Any) -> Any:
        """The cosine."""
        return {"cosine": answer if answer is None else round(answer, 6)}

    def line(self, answer: Any) -> str:
        """``0.8123``."""
        return "not a number" if answer is None else f"{answer:.4f}"

    def as_target(self, answer: Any) -> float:
        """The cosine of the source's embeddings; 0 where it has none."""
        return 0.0 if answer is None else float(answer)

    def broken(self, value: float, answers: Sequence[Any], targets: Sequence[Any]) -> str:
        """Always the same cosine, or none at all."""
        known = [answer for answer in answers if answer is not None]
        if not known or float(np.ptp(known)) == 0.0:
            return "the metric is constant: all pairs are as alike as each other"
        return ""


def _score(cell: Any, place: str) -> float:
    try:
        score = float(cell) if isinstance(cell, (str, int, float)) and not isinstance(cell, bool) else math.nan
    except (ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise DataError(f"{place}: expected a finite number as score, got {str(cell)[:80]!r}")
    return score
