"""Names of classes: what a label in the data may be called, and what an answer is called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgeattn.errors import DataError
from edgeattn.tasks.metric import Metric

IGNORED = -100  # a label that is none: the ignored index of torch and transformers
NAMED = 20  # in a message
TOLD = 5  # classes of an answer that people are shown
FEWEST = 2


def names_of(config: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """Names of the classes in their order up to the last that has one, "" for one without (``id2label``)."""
    listed = config.get("id2label")
    if not isinstance(listed, dict):
        return ()
    found = {
        int(key): name
        for key, name in listed.items()
        if isinstance(name, str) and re.fullmatch("[0-9]{1,9}", str(key)) and int(key) < classes
    }
    return tuple(found.get(number, "") for number in range(max(found) + 1)) if found else ()


class Labels:
    """What labels may be called: their names, and their numbers unless names are numbers themselves.

    Args:
        names: as :func:`names_of`; a name that two classes share names none.
        classes: how many there are.
    """

    def __init__(self, names: Sequence[str], classes: int) -> None:
        self._names = {name: number for number, name in enumerate(names) if name and list(names).count(name) == 1}
        self._classes = classes
        numbered = not any(re.fullmatch("[0-9]+", name) for name in names)
        self._numbers = {str(number): number for number in range(classes)} if numbered else {}

    def number(self, label: str, place: str) -> int | None:
        """The number of a label, None for -100, which is no label.

        Raises:
            DataError: naming the place and the labels.
        """
        if label == str(IGNORED) and label not in self._names:
            return None
        found = self._names.get(label, self._numbers.get(label))
        if found is None:
            raise DataError(f"{place}: expected a label, {self._expected()}; got {label[:80]!r}")
        return found

    def _expected(self) -> str:
        names, more = list(self._names)[:NAMED], len(self._names) > NAMED
        listed = ", ".join(names) + (f" ... ({len(self._names)} in all)" if more else "")
        number = f"a number from 0 to {self._classes - 1}"
        if not self._names:
            return f"{number} (the model's config.json has no names for labels, id2label)"
        return f"{number}, or one of {listed}" if self._numbers else f"one of {listed}"


def scored(names: Sequence[str], scores: np.ndarray) -> list[dict[str, Any]]:
    """The best classes of an answer with their probabilities (softmax), best first, for people and programs.

    Args:
        names: as :func:`names_of`.
        scores: float, shape (classes,): logits.
    """
    stable = np.nan_to_num(np.asarray(scores, np.float64), nan=-np.inf)
    shifted = np.exp(stable - stable.max()) if np.isfinite(stable.max()) else np.ones(len(stable))
    probabilities = shifted / shifted.sum()
    return [
        {"label": (names[c] if c < len(names) else "") or str(c), "score": round(float(probabilities[c]), 6)}
        for c in np.argsort(-stable, kind="stable")[:TOLD].tolist()
    ]


def best_class(scores: Any) -> int:
    """The class of the highest score, the first of equal ones; -1, which is none, where a score is NaN."""
    array = np.asarray(scores, np.float64)
    return -1 if np.isnan(array).any() else int(array.argmax())


def of_scores(metric: Metric) -> Metric:
    """A metric of class indices as one of scores by class."""
    return replace(metric, statistics=lambda answer, target: metric.statistics(best_class(answer), target))


def why_broken(value: float, answers: Sequence[int], targets: Sequence[int]) -> str:
    """Why accuracy tells nothing: always the same class, or no better than chance; empty if it tells something."""
    true = len(set(targets))
    if true < FEWEST:
        return ""
    if len(set(answers)) == 1:
        return f"the metric is constant: every answer is class {answers[0]}, the labels have {true}"
    if value <= 1.0 / true:
        return f"accuracy is {100 * value:.1f} %, no better than guessing one of {true} classes"
    return ""
