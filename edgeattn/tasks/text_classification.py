"""Texts into classes: topic, sentiment, intent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeattn.errors import DataError
from edgeattn.spec import ModelSpec
from edgeattn.tasks.classification import Classification, class_scores
from edgeattn.tasks.labels import IGNORED, Labels, of_scores
from edgeattn.tasks.metric import Metric
from edgeattn.tasks.metrics.classification import ACCURACY, macro_f1, matthews
from edgeattn.tasks.tables import is_table, read_table
from edgeattn.tasks.task import Assets, Described, Encoded, Sample
from edgeattn.tasks.texts import check_takes_text, text_encoder

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class TextClassification(Classification):
    """See the module."""

    name: ClassVar[str] = "text-classification"
    summary: ClassVar[str] = "a class per text: topic, sentiment, intent"
    forms: ClassVar[str] = (
        "a table (.tsv, .csv, .jsonl) of text and label, or of texts alone, or a directory with one per split"
    )
    measured: ClassVar[tuple[str, ...]] = ("accuracy", "macro-f1", "matthews")
    model_tasks: ClassVar[tuple[str, ...]] = ("text-classification",)

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
