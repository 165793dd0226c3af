"""A class per input, whatever the input is: what the tasks of texts, images and sounds into classes share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgeattn.errors import DataError
from edgeattn.tasks.labels import IGNORED, best_class, scored, why_broken
from edgeattn.tasks.task import Arrays, Described, Encoded, Task

SCORES = "logits"  # what transformers calls the output of every classifier


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """Scores of classes; an answer is the score of each, a target the number of the right one.

    Attributes:
        output: that holds a score per class, float [1, classes].
        classes: how many there are.
        labels: their names, see :func:`~edgeattn.tasks.labels.names_of`.
    """

    plain: ClassVar[bool] = True

    output: str
    classes: int
    labels: tuple[str, ...] = ()

    def array_targets(self, target: Any, encoded: Encoded) -> tuple[Arrays, ...]:
        """See :class:`~edgeattn.tasks.task.Task`."""
        return ({self.output: np.array([IGNORED if target is None else target])},) * len(encoded.calls)

    def answer(self, outputs: Sequence[Arrays], facts: Mapping[str, Any]) -> list[float]:
        """Its scores by class."""
        return [float(score) for score in outputs[0][self.output].ravel()]

    def described(self, answer: Any) -> Any:
        """The best classes by name, with probabilities."""
        return scored(self.labels, np.array(answer))

    def line(self, answer: Any) -> str:
        """``positive 0.98``."""
        best = self.described(answer)[0]
        return f"{best['label']} {best['score']:.2f}"

    def as_target(self, answer: Any) -> int:
        """The class that the source says."""
        return best_class(answer)

    def broken(self, value: float, answers: Sequence[Any], targets: Sequence[Any]) -> str:
        """See :func:`~edgeattn.tasks.labels.why_broken`."""
        return why_broken(value, list(map(best_class, answers)), targets)


def class_scores(model: Described, what: str) -> tuple[str, int]:
    """The output that holds a score per class, [1, classes], and how many those are.

    Args:
        what: the data is for, for the message.

    Raises:
        DataError: if there is none.
    """
    outputs = {tensor.name: tensor.shape for tensor in model.graph.outputs}
    name = SCORES if SCORES in outputs else next(iter(outputs))
    shape = outputs[name]
    if (name != SCORES and len(outputs) > 1) or len(shape) != 2 or shape[0] != 1 or shape[1] < 2:
        found = ", ".join(f"{output}{list(size)}" for output, size in outputs.items())
        raise DataError(
            f"{what}, whose output {SCORES} or only output has shape [1, labels]; this model has {found}. "
            "Give an npz, or file.py:function"
        )
    return name, shape[1]
