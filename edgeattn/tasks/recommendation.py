"""The items that a user takes next, from those that they took (SASRec, BERT4Rec)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgeattn.errors import DataError
from edgeattn.spec import ModelSpec
from edgeattn.tasks.metric import Metric
from edgeattn.tasks.metrics.ranking import hits_at, ndcg_at
from edgeattn.tasks.tables import Line, is_table, read_table
from edgeattn.tasks.task import Arrays, Assets, Described, Encoded, Sample, Task

if TYPE_CHECKING:
    from typing_extensions import Self

COLUMNS = ("user", "item")
TIME = "time"
MASK = "attention_mask"
ITEMS = "items"
FIRST = 10  # items of an answer, which metrics look at
TRAIN, VALID, TEST = "train", ("dev", "val", "valid", "validation"), "test"


@dataclass(frozen=True, kw_only=True)
class Recommendation(Task):
    """See the module.

    Attributes:
        input: that takes a history, int [1, length].
        length: of it: the last items count.
        mask: name of an input that tells items (1) from padding (0); empty for none.
        output: that holds a score per item, float [1, items], or [1, length, items], whose last place counts.
        items: how many there are, those that stand for padding included.
        pad: item that is padding, before the history.
        asked: item behind the history that asks for the next one, as BERT4Rec's mask; None for none.
        labels: names of the items, empty without.
    """

    name: ClassVar[str] = "recommendation"
    summary: ClassVar[str] = "the items that a user takes next"
    forms: ClassVar[str] = "a table (.tsv, .csv) of user, item and, if wanted, time and split"
    measured: ClassVar[tuple[str, ...]] = ("ndcg@10", "hr@10")
    model_tasks: ClassVar[tuple[str, ...]] = ("recommendation", "sequential-recommendation")

    input: str
    length: int
    mask: str = ""
    output: str
    items: int
    pad: int = 0
    asked: int | None = None
    labels: tuple[str, ...] = ()

    @classmethod
    def fitted(cls, model: Described) -> Self:
        """See :class:`~edgeattn.tasks.task.Task`."""
        taken = {tensor.name: tensor for tensor in model.graph.inputs}
        mask = MASK if MASK in taken and len(taken) > 1 else ""
        rest = [tensor for name, tensor in taken.items() if name != mask]
        outputs = [tensor for tensor in model.graph.outputs if len(tensor.shape) in (2, 3) and tensor.shape[0] == 1]
        whole = len(rest) == 1 and rest[0].dtype in ("int64", "int32")
        if not whole or len(rest[0].shape) != 2 or rest[0].shape[0] != 1 or len(outputs) != 1:
            raise DataError(
                "expected a history of items, int [1, length], and a score per item, float [1, items]; this model "
                f"{model.told}"
            )
        items = outputs[0].shape[-1]
        pad, asked = (_item(model.config, name, items) for name in ("pad_token_id", "mask_token_id"))
        return cls(
            input=rest[0].name,
            length=rest[0].shape[1],
            mask=mask,
            output=outputs[0].name,
            items=items,
            pad=pad or 0,
            asked=asked,
            labels=model.labels[:items],
        )

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A table, or a directory of tables."""
        return is_table(path)

    def read(self, path: Path, assets: Assets) -> Sequence[Sample]:
        """Users with what they took before, and what they take next.

        Without splits each user's last item is ``test``, the one before ``valid``, the one before that ``train``; a
        user with fewer than two items asks nothing. With splits all items of the split are right, and the history is
        what came in the splits before it.
        """
        users: dict[str, list[tuple[float, int, str, str]]] = {}
        numbers = {name: number for number, name in enumerate(self.labels) if name}
        for line in read_table(path, COLUMNS):
            item = self._number(line, numbers)
            users.setdefault(str(line.cells["user"]), []).append((_time(line), item, line.split, line.place))
        samples = []
        for user, rows in users.items():
            rows.sort(key=lambda row: row[0])  # stable: without times the table's order
            items = [row[1] for row in rows]
            if not any(row[2] for row in rows):
                asked = [(items[:-back], items[-back:][:1], s) for back, s in ((1, TEST), (2, "valid"), (3, TRAIN))]
            else:
                old = [row[1] for row in rows if row[2] == TRAIN]
                valid = [row[1] for row in rows if row[2] in VALID]
                new = [row[1] for row in rows if row[2] == TEST]
                asked = [(old + valid, new, TEST), (old, valid, "valid"), (old[:-1], old[-1:], TRAIN)]
            samples += [
                Sample(given=history, target=right, split=split, place=rows[-1][3], key=(user, split))
                for history, right, split in asked
                if history and right
            ]
        return samples

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """NDCG of the first ten items; how often a right one is among them beside it."""
        return NDCG, HIT_RATE

    def parsed(self, text: str) -> list[int]:
        """Items separated by commas, the oldest first."""
        numbers = {name: number for number, name in enumerate(self.labels) if name}
        cells = [cell.strip() for cell in text.split(",")]
        return [self._number(Line(cells={"item": cell}, split="", place="history"), numbers) for cell in cells]

    def encoder(self, spec: ModelSpec, assets: Assets) -> Callable[[Any], Encoded]:
        """See :class:`~edgeattn.tasks.task.Task`."""
        kinds = {tensor.name: tensor.dtype for tensor in next(iter(spec.units().values()))[-1].inputs}

        def encoded(given: Any) -> Encoded:
            history = [*given, *([] if self.asked is None else [self.asked])]
            kept = history[-self.length :]
            ids = [self.pad] * (self.length - len(kept)) + kept
            call = {self.input: np.array([ids], kinds[self.input])}
            if self.mask:
                shown = [0] * (self.length - len(kept)) + [1] * len(kept)
                call[self.mask] = np.array([shown], kinds[self.mask])
            cut = f"at {self.length} items" if len(history) > self.length else ""
            return Encoded(calls=(call,), facts={"seen": sorted(set(given))}, cut=cut)

        return encoded

    def answer(self, outputs: Sequence[Arrays], facts: Mapping[str, Any]) -> Any:
        """The best ten items that are not in the history, best first; none where a score is NaN."""
        scores = np.array(outputs[0][self.output], np.float64).reshape(-1, self.items)[-1]
        if np.isnan(scores).any():
            return {ITEMS: []}
        hidden = {self.pad, *([] if self.asked is None else [self.asked]), *facts.get("seen", [])}
        order = [item for item in np.argsort(-scores, kind="stable").tolist() if item not in hidden]
        return {ITEMS: [[item, float(scores[item])] for item in order[:FIRST]]}

    def described(self, answer: Any) -> Any:
        """Items by name with their scores, best first."""
        return [
            {"item": (self.labels[item] if self.labels else "") or item, "score": score}
            for item, score in answer[ITEMS]
        ]

    def line(self, answer: Any) -> str:
        """The items, best first."""
        return ", ".join(str(one["item"]) for one in self.described(answer))

    def as_target(self, answer: Any) -> list[int]:
        """The item that the source puts first."""
        return [item for item, _ in answer[ITEMS][:1]]

    def broken(self, value: float, answers: Sequence[Any], targets: Sequence[Any]) -> str:
        """Nothing right is found."""
        return "no item that is taken is among the first ten of anybody" if value <= 0 else ""

    def _number(self, line: Line, numbers: Mapping[str, int]) -> int:
        cell = str(line.cells["item"])
        digits = cell.isascii() and cell.isdigit() and len(cell) < 10
        found = numbers.get(cell, int(cell) if digits else -1)
        if not 0 <= found < self.items or found in (self.pad, self.asked):
            raise DataError(
                f"{line.place}: expected an item, a number from 0 to {self.items - 1} but {self.pad} (padding)"
                f"{' or a name of the model (id2label)' if numbers else ''}, got {cell[:80]!r}"
            )
        return found


def _item(config: Mapping[str, Any], name: str, items: int) -> int | None:
    value = config.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < items else None


def _time(line: Line) -> float:
    text = str(line.cells.get(TIME, "0"))
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise DataError(f"{line.place}: expected a number as the time, got {text[:80]!r}")
    return value


def _found(answer: Any) -> list[int]:
    return [int(item) for item, _ in answer[ITEMS]]


def _place(answer: Any, target: Any) -> float:
    """Of the first right item, from 1; infinite where none is found."""
    places = (place for place, item in enumerate(_found(answer), 1) if item in target)
    return next(places, math.inf)


_NDCG, _HITS = ndcg_at(FIRST), hits_at(FIRST)
NDCG = replace(_NDCG, statistics=lambda answer, target: _NDCG.statistics(_found(answer), target))
HIT_RATE = replace(
    _HITS, name=f"hr@{FIRST}", statistics=lambda answer, target: _HITS.statistics(_place(answer, target), None)
)
"""How often at least one of the right items is among the first ten."""
