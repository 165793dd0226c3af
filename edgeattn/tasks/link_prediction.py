"""Which entity completes a triple of a knowledge graph: (head, relation, ?)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgeattn.errors import DataError
from edgeattn.guards.confined import confined_file
from edgeattn.spec import ModelSpec
from edgeattn.tasks.metric import Metric
from edgeattn.tasks.metrics.ranking import MRR, hits_at
from edgeattn.tasks.tables import is_table, lines, read_table
from edgeattn.tasks.task import Arrays, Assets, Described, Encoded, Sample, Task, the_output

if TYPE_CHECKING:
    from typing_extensions import Self

COLUMNS = ("head", "relation", "tail")
SUFFIXES = (".tsv", ".tsv.gz", ".txt")
ENTITIES, RELATIONS = "entities.txt", "relations.txt"
TOLD = 10  # entities of an answer


@dataclass(frozen=True, kw_only=True)
class LinkPrediction(Task):
    """See the module.

    Attributes:
        inputs: head and relation, int [1] or [1, 1] each; or one that holds both, int [1, 2].
        output: that holds a score per entity, float [1, entities].
        entities: how many there are.
        relations: how many there are, where relation n + relations is the inverse of relation n; 0 without inverses.
        labels: names of the entities, empty without.
    """

    name: ClassVar[str] = "link-prediction"
    summary: ClassVar[str] = "the entity that completes a triple of a knowledge graph"
    forms: ClassVar[str] = "a directory with train, valid and test (.txt or .tsv) of head, relation and tail"
    measured: ClassVar[tuple[str, ...]] = ("mrr", "hits@1", "hits@3", "hits@10")
    model_tasks: ClassVar[tuple[str, ...]] = ("link-prediction",)

    inputs: tuple[str, ...]
    output: str
    entities: int
    relations: int = 0
    labels: tuple[str, ...] = ()

    @classmethod
    def fitted(cls, model: Described) -> Self:
        """See :class:`~edgeattn.tasks.task.Task`."""
        taken = {tensor.name: tensor for tensor in model.graph.inputs}
        names = COLUMNS[:2] if set(COLUMNS[:2]) == set(taken) else tuple(taken)
        sizes = [int(np.prod(taken[name].shape)) for name in names]
        whole = all(tensor.dtype in ("int64", "int32") for tensor in taken.values())
        if not whole or sizes not in ([1, 1], [2]):
            raise DataError(
                f"expected head and relation, int [1] each, or both in one, int [1, 2]; this model {model.told}"
            )
        output, shape = the_output(model, 2, ("scores", "logits"), "a score per entity, float [1, entities]")
        if shape[0] != 1 or shape[1] < 2:
            raise DataError(f"expected a score per entity, float [1, entities]; this model {model.told}")
        inverse, count = model.config.get("inverse_relations"), model.config.get("num_relations", 0)
        relations = count if inverse is True and isinstance(count, int) and count > 0 else 0
        return cls(
            inputs=names, output=output, entities=shape[1], relations=int(relations), labels=model.labels[: shape[1]]
        )

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A directory of triples by split, or one table of them."""
        return is_table(path, SUFFIXES)

    def read(self, path: Path, assets: Assets) -> Sequence[Sample]:
        """A question per triple, and the inverse one where the model has inverse relations."""
        entities = self._numbers(path, ENTITIES, self.labels)
        relations = self._numbers(path, RELATIONS, ())
        known: dict[tuple[int, int], list[int]] = {}
        asked: list[tuple[int, int, int, str, str]] = []
        for line in read_table(path, COLUMNS, SUFFIXES):
            head, tail = (_number(line.cells[c], entities, self.entities, line.place, c) for c in ("head", "tail"))
            relation = _number(line.cells["relation"], relations, self.relations or None, line.place, "relation")
            questions = [(head, relation, tail)]
            questions += [(tail, relation + self.relations, head)] if self.relations else []
            for one, of, right in questions:
                known.setdefault((one, of), []).append(right)
                asked.append((one, of, right, line.split, line.place))
        return [
            Sample(
                given={"head": one, "relation": of, "right": right, "known": known[one, of]},
                target=right,
                split=split,
                place=place,
                key=(one, of, right),
                stratum=of,
            )
            for one, of, right, split, place in asked
        ]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Mean reciprocal rank; how often the right one is among the first 1, 3 and 10 beside it."""
        return MRR_OF_RANKS, *HITS_OF_RANKS

    def parsed(self, text: str) -> Any:
        """Head and relation, separated by a tab or comma: numbers, or the head's name where the model has names."""
        cells = [cell.strip() for cell in text.replace("\t", ",").split(",")]
        if len(cells) != 2:
            raise DataError(f"expected HEAD,RELATION; got {text[:80]!r}")
        head = _number(cells[0], _named(self.labels), self.entities, "head", "entity")
        return {"head": head, "relation": _number(cells[1], {}, None, "relation", "relation")}

    def encoder(self, spec: ModelSpec, assets: Assets) -> Callable[[Any], Encoded]:
        """See :class:`~edgeattn.tasks.task.Task`."""
        taken = {tensor.name: tensor for tensor in next(iter(spec.units().values()))[-1].inputs}

        def encoded(given: Any) -> Encoded:
            values = [given["head"], given["relation"]]
            parts = [[value] for value in values] if len(self.inputs) == 2 else [values]
            call = {
                name: np.array(part, taken[name].dtype).reshape(taken[name].shape)
                for name, part in zip(self.inputs, parts, strict=True)
            }
            return Encoded(calls=(call,), facts={name: given[name] for name in ("right", "known") if name in given})

        return encoded

    def answer(self, outputs: Sequence[Arrays], facts: Mapping[str, Any]) -> Any:
        """The best entities with their scores; where the right one is known, its filtered rank.

        Entities that are right as well (known triples of any split) are left out; equal scores share the mean of their
        ranks. A rank is None where a score is NaN.

        Source: Bordes et al., "Translating embeddings for modeling multi-relational data", NeurIPS 2013 (filtered);
        Berrendorf et al., "On the ambiguity of rank-based evaluation", 2020 (realistic rank).
        """
        scores = np.asarray(outputs[0][self.output], np.float64).ravel()
        lost = bool(np.isnan(scores).any())
        rank = None
        if "right" in facts and not lost:
            right, others = scores[facts["right"]], scores.copy()
            others[[other for other in facts["known"] if other != facts["right"]]] = -np.inf
            others = np.delete(others, [facts["right"]])
            left = np.isfinite(others) | (others > 0)
            rank = 1 + float((others > right).sum()) + float((left & (others == right)).sum()) / 2
        order = [] if lost else np.argsort(-scores, kind="stable")[:TOLD].tolist()
        return {"rank": rank, "best": [[number, float(scores[number])] for number in order]}

    def described(self, answer: Any) -> Any:
        """The best entities with their scores, best first."""
        return [
            {"entity": (self.labels[number] if self.labels else "") or number, "score": score}
            for number, score in answer["best"]
        ]

    def line(self, answer: Any) -> str:
        """The best three."""
        return ", ".join(f"{one['entity']} {one['score']:.3g}" for one in self.described(answer)[:3])

    def broken(self, value: float, answers: Sequence[Any], targets: Sequence[Any]) -> str:
        """No better than ranks at random."""
        chance = float((1 / np.arange(1, self.entities + 1)).mean())
        return f"mrr is {100 * value:.2f} %, no better than chance" if value <= chance else ""

    def _numbers(self, path: Path, name: str, labels: Sequence[str]) -> dict[str, int]:
        """Number of each name: lines of a file beside the triples, or the model's labels; empty for numbers alone."""
        home = path if path.is_dir() else path.parent
        if not (home / name).is_file():
            return _named(labels)
        confined_file(home / name, home, DataError)
        found: dict[str, int] = {}
        for number, text in lines(home / name):
            if text in found:
                raise DataError(f"{home / name}:{number}: {text[:80]!r} stands there twice")
            found[text] = len(found)
        return found


def _named(labels: Sequence[str]) -> dict[str, int]:
    """Name -> number; numbers are names, too, unless a name is one."""
    names = {name: number for number, name in enumerate(labels) if name}
    numbers = {str(number): number for number in range(len(labels))}
    return names if any(name.isdigit() for name in names) else names | numbers


def _number(cell: str, names: Mapping[str, int], count: int | None, place: str, what: str) -> int:
    found = names.get(cell) if names else int(cell) if cell.isascii() and cell.isdigit() and len(cell) < 10 else None
    if found is None or (count is not None and found >= count):
        below = "from 0" if count is None else f"from 0 to {count - 1}"
        listed = f"{ENTITIES} and {RELATIONS} beside the triples list the model's names, one a line"
        expected = "a listed name of that range" if names else f"a number {below}; {listed}"
        raise DataError(f"{place}: {what}: expected {expected}, got {cell[:80]!r}")
    return found


def _of_ranks(metric: Metric) -> Metric:
    return replace(metric, statistics=lambda answer, target: metric.statistics(answer["rank"], target))


MRR_OF_RANKS = _of_ranks(MRR)
HITS_OF_RANKS: tuple[Metric, ...] = tuple(_of_ranks(hits_at(k)) for k in (1, 3, 10))
