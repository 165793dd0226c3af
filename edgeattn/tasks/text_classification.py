"""Texts into classes: topic, sentiment, intent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgeattn.errors import DataError
from edgeattn.spec import ModelSpec
from edgeattn.tasks.labels import IGNORED, Labels, best_class, of_scores, scored, why_broken
from edgeattn.tasks.metric import Metric
from edgeattn.tasks.metrics.classification import ACCURACY, macro_f1, matthews
from edgeattn.tasks.tables import is_table, read_table
from edgeattn.tasks.task import Arrays, Assets, Described, Encoded, Sample, Task
from edgeattn.tasks.texts import check_takes_text, text_encoder

if TYPE_CHECKING:
    from typing_extensions import Self

SCORES = "logits"  # what transformers calls the output of every classifier


@dataclass(frozen=True, kw_only=True)
class TextClassification(Task):
    """See the module.

    Attributes:
        output: that holds a score per class, float [1, classes].
        classes: how many there are.
        labels: their names, see :func:`~edgeattn.tasks.labels.names_of`.
    """

    name: ClassVar[str] = "text-classification"
    summary: ClassVar[str] = "a class per text: topic, sentiment, intent"
    forms: ClassVar[str] = (
        "a table (.tsv, .csv, .jsonl) of text and label, or of texts alone, or a directory with one per split"
    )
    measured: ClassVar[tuple[str, ...]] = ("accuracy", "macro-f1", "matthews")
    plain: ClassVar[bool] = True
    model_tasks: ClassVar[tuple[str, ...]] = ("text-classification",)

    output: str
    classes: int
    labels: tuple[str, ...] = ()

    @classmethod
    def fitted(cls, model: Described) -> Self:
        """See :class:`~edgeattn.tasks.task.Task`."""
        check_takes_text(model)
        output, classes = class_scores(model, "labelled texts are for a text classifier")
        return cls(output=output, classes=classes, labels=model.labels[:classes])

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A table, or a directory of tables."""
        return is_table(path)

    def read(self, path: Path, assets: Assets) -> Sequence[Sample]:
        """Lines of text and label; a label of -100 is none, and a table may have no labels at all."""
        labels = Labels(self.labels, self.classes)
        samples = []
        for line in read_table(path, ("text",), optional=("label",)):
            text, label = line.cells["text"], line.cells.get("label", IGNORED)
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"{line.place}: expected a text before the label, got an empty one")
            number = labels.number(str(label), line.place)
            samples.append(
                Sample(given=text, target=number, split=line.split, place=line.place, key=text, stratum=number)
            )
        return samples

    def array_targets(self, target: Any, encoded: Encoded) -> tuple[Arrays, ...]:
        """See :class:`~edgeattn.tasks.task.Task`."""
        return ({self.output: np.array([IGNORED if target is None else target])},) * len(encoded.calls)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Accuracy; macro F1 and Matthews' correlation beside it."""
        return tuple(map(of_scores, (ACCURACY, macro_f1(self.classes), matthews(self.classes))))

    def parsed(self, text: str) -> str:
        """The text itself."""
        if not text.strip():
            raise DataError("expected a text, got an empty one")
        return text

    def encoder(self, spec: ModelSpec, assets: Assets) -> Callable[[Any], Encoded]:
        """See :class:`~edgeattn.tasks.task.Task`."""
        encode = text_encoder(Described(spec=spec, assets=assets))

        def encoded(text: str) -> Encoded:
            tokens = encode(text)
            return Encoded(calls=(tokens.arrays,), cut=tokens.cut)

        return encoded

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
