"""Images into classes: what is on a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgeattn.spec import ModelSpec
from edgeattn.tasks.classification import Classification, class_scores
from edgeattn.tasks.image_inputs import (
    content_key,
    folders,
    has_images,
    holds_arrays,
    image_files,
    image_input,
    pixels_of,
    to_input,
)
from edgeattn.tasks.image_labels import ARRAYS, numbering, read_labelled
from edgeattn.tasks.images.settings import ImageSettings
from edgeattn.tasks.labels import of_scores
from edgeattn.tasks.metric import Metric
from edgeattn.tasks.metrics.classification import ACCURACY, top_k_accuracy
from edgeattn.tasks.tables import is_table
from edgeattn.tasks.task import Assets, Described, Encoded, Sample

if TYPE_CHECKING:
    from typing_extensions import Self

TOP = 5  # beside the first; it tells nothing of five classes or fewer


@dataclass(frozen=True, kw_only=True)
class ImageClassification(Classification):
    """See the module.

    Attributes:
        input: that takes the pixels.
        settings: how pixels become it.
    """

    name: ClassVar[str] = "image-classification"
    summary: ClassVar[str] = "a class per image: what is on a picture"
    forms: ClassVar[str] = (
        "a folder of images per class (or such ones in train, val, test), a table (.csv, .tsv, .jsonl) of path and "
        "label, an .npz of images and labels, or a folder of images without labels"
    )
    measured: ClassVar[tuple[str, ...]] = ("accuracy", "top-5-accuracy")
    model_tasks: ClassVar[tuple[str, ...]] = ("image-classification",)

    input: str
    settings: ImageSettings

    @classmethod
    def fitted(cls, model: Described) -> Self:
        """See :class:`~edgeattn.tasks.task.Task`."""
        name, settings = image_input(model, "labelled images are for an image classifier")
        output, classes = class_scores(model, "labelled images are for an image classifier")
        return cls(input=name, settings=settings, output=output, classes=classes, labels=model.labels[:classes])

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A folder, a table of files, or an npz of images and labels."""
        return path.exists()

    @classmethod
    def recognises_arrays(cls, path: Path) -> bool:
        """An npz of images and labels."""
        return holds_arrays(path, ARRAYS)

    def read(self, path: Path, assets: Assets) -> Sequence[Sample]:
        """Images with the number of their class; those of a folder without folders have none."""
        if _is_unlabelled(path):
            return [Sample(given=file, place=str(file), key=content_key(file)) for file in image_files(path, path)]
        return read_labelled(path, self.labels, self.classes, image_files, content_key)

    def remark(self, path: Path) -> str:
        """How folders were numbered, where the model does not say."""
        return "" if _is_unlabelled(path) else numbering(path, self.labels, self.classes)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Accuracy of the best class; beside it, of more than five classes, whether the right one is among five."""
        beside = (top_k_accuracy(TOP),) if self.classes > TOP else ()
        return (of_scores(ACCURACY), *beside)

    def parsed(self, text: str) -> np.ndarray:
        """The pixels of an image file."""
        return pixels_of(Path(text))

    def encoder(self, spec: ModelSpec, assets: Assets) -> Callable[[Any], Encoded]:
        """See :class:`~edgeattn.tasks.task.Task`."""
        made = to_input(self.input, self.settings)
        return lambda given: Encoded(calls=(made(pixels_of(given)),))


def _is_unlabelled(path: Path) -> bool:
    """Whether a folder holds images themselves, and none per class."""
    return has_images(path) and not folders(path) and not is_table(path)
