"""What is reported of pruning: what a cut leaves, what was promised and measured, and what was asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from edgeattn.evaluation.accuracy import Score, paired_drop
from edgeattn.model import EdgeModel
from edgeattn.pruning import Cut, Prunable, Timing, cut_to_json, layer_of, without_dropped


@dataclass(frozen=True, kw_only=True)
class CutFacts:
    """How a cut came about: facts that stay true of a model that is written and read again.

    Attributes:
        units: of each unit its path, kind, groups and how many are kept.
        layers: stack's path -> its layers and the numbers of those kept.
        cut: as it is written.
        order: of the steps.
        importance: method and samples; None where none was needed.
        reconstruction: units, and their error before and after; None without.
        recovery: of distillation; None without.
    """

    units: Sequence[Mapping[str, Any]] = ()
    layers: Mapping[str, Any] = field(default_factory=dict)
    cut: Mapping[str, Any] = field(default_factory=dict)
    order: Sequence[str] = ()
    importance: Mapping[str, Any] | None = None
    reconstruction: Mapping[str, Any] | None = None
    recovery: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {one.name: getattr(self, one.name) for one in fields(self)} | {
            "units": list(self.units),
            "order": list(self.order),
        }


def saved_facts(facts: Mapping[str, Any]) -> CutFacts:
    """Those of a model that is read, as they were reported when it was written."""
    return CutFacts(**{one.name: facts[one.name] for one in fields(CutFacts) if one.name in facts})


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What the table foresaw beside what was measured, each against the unpruned model in the same run.

    Attributes:
        kind: of the table; None where none was asked.
        difference_percent: of the time that was foreseen over the one that was measured.
    """

    kind: str | None = None
    predicted_ms: float | None = None
    predicted_speedup: float | None = None
    unpruned_ms: float | None = None
    pruned_ms: float | None = None
    speedup: float | None = None
    difference_percent: float | None = None


def promise(
    kind: str | None, predicted_ms: float | None, full_ms: float | None, measured: Mapping[str, Timing]
) -> Promise:
    """Of times that a table foresaw, and of those measured as "unpruned" and "pruned"; empty where none were."""
    predicted = None
    if predicted_ms is not None and full_ms is not None:
        predicted = full_ms / predicted_ms if predicted_ms else math.inf
    if not measured:
        return Promise(kind=kind, predicted_ms=predicted_ms, predicted_speedup=predicted)
    whole, cut = measured["unpruned"].ms, measured["pruned"].ms
    return Promise(
        kind=kind,
        predicted_ms=predicted_ms,
        predicted_speedup=predicted,
        unpruned_ms=whole,
        pruned_ms=cut,
        speedup=whole / cut,
        difference_percent=None if predicted is None else 100 * ((whole / predicted) / cut - 1),
    )


@dataclass(frozen=True, kw_only=True)
class PruneFacts:
    """Everything that is reported of pruning for a target.

    Attributes:
        asked: in one line.
        score: the metric before and after, see :func:`score_facts`.
        parameters: "original" and "pruned".
        kept: whether the pruned model is what goes on.
    """

    asked: str
    cut: CutFacts
    score: Mapping[str, Any] | None
    parameters: Mapping[str, int]
    promise: Promise
    seconds: float
    kept: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, all in one object."""
        promised = {one.name: getattr(self.promise, one.name) for one in fields(Promise)}
        return {
            "asked": self.asked, **self.cut.to_json(), "score": self.score, "parameters": dict(self.parameters),
            **promised, "seconds": self.seconds, "kept": self.kept,
        }  # fmt: skip


def score_facts(original: Score | None, pruned: Score | None, alpha: float) -> dict[str, Any] | None:
    """The metric before and after, as it is told; None without one."""
    if original is None or pruned is None:
        return None
    drop = paired_drop(original, pruned, alpha)
    return {
        "metric": pruned.metric, "original": original.told, "pruned": pruned.told, "drop": drop.points,
        "drop_upper": drop.upper, "unit": pruned.unit,
    }  # fmt: skip


def cut_summary(given: Prunable, cut: Cut) -> CutFacts:
    """What a cut leaves, in numbers: of every unit and stack, and the whole plan."""
    rest = without_dropped(given.anatomy, cut)
    rows = []
    for unit in given.anatomy.units:
        place = layer_of(given.anatomy, unit)
        gone = place is not None and place[1] not in cut.layers.get(place[0], (place[1],))
        kept = 0 if gone else len(rest.groups.get(unit.key, range(unit.groups)))
        rows.append({"unit": unit.path, "kind": unit.kind, "groups": unit.groups, "kept": kept})
    layers = {
        stack.path: {"layers": stack.layers, "kept": list(cut.layers.get(stack.path, range(stack.layers)))}
        for stack in given.anatomy.stacks
    }
    return CutFacts(units=rows, layers=layers, cut=cut_to_json(cut))


def parameter_count(model: EdgeModel) -> int:
    """Of a model that can be pruned."""
    assert model.network is not None, "only such are pruned"
    return sum(parameter.numel() for parameter in model.network.parameters())
