"""A class for each pixel of an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgeattn.errors import DataError
from edgeattn.spec import ModelSpec
from edgeattn.tasks.image_inputs import content_key, image_files, image_input, pixels_of, split_folders, to_input
from edgeattn.tasks.images.masks import check_mask, mask_to_image
from edgeattn.tasks.images.reading import read_mask
from edgeattn.tasks.images.settings import ImageSettings
from edgeattn.tasks.metric import Metric
from edgeattn.tasks.metrics.segmentation import dice, mean_iou
from edgeattn.tasks.task import Arrays, Assets, Described, Encoded, Sample, Task, the_output

if TYPE_CHECKING:
    from typing_extensions import Self

IMAGES, MASKS = "images", "masks"  # folders of the data
MASK = "mask"  # of an answer and of a target
NO_CLASS = 254  # of a pixel whose scores are no numbers
MOST_CLASSES = NO_CLASS


@dataclass(frozen=True, kw_only=True)
class Segmentation(Task):
    """See the module.

    Attributes:
        input: that takes the pixels.
        settings: how pixels become it.
        output: that holds scores, float [1, classes, h, w], or [1, h, w, classes] where ``last``; h and w may be a part
            of the input's. One score per pixel is that of class 1 against 0, as a logit.
        classes: how many there are, the background included.
        labels: their names, see :func:`~edgeattn.tasks.labels.names_of`.
    """

    name: ClassVar[str] = "segmentation"
    summary: ClassVar[str] = "a class for each pixel of an image"
    forms: ClassVar[str] = "folders images and masks with files of equal names (or such ones in train, val, test)"
    measured: ClassVar[tuple[str, ...]] = ("miou", "dice")
    model_tasks: ClassVar[tuple[str, ...]] = ("image-segmentation", "semantic-segmentation")

    input: str
    settings: ImageSettings
    output: str
    classes: int
    last: bool = False
    labels: tuple[str, ...] = ()

    @classmethod
    def fitted(cls, model: Described) -> Self:
        """See :class:`~edgeattn.tasks.task.Task`."""
        what = "a model that scores each pixel, output [1, classes, h, w] or [1, h, w, classes]"
        name, settings = image_input(model, "images with masks are for a model of images")
        output, shape = the_output(model, 4, ("logits",), what)
        last = _is_last(shape, len(model.labels), settings.layout == "channels_last")
        classes = max(shape[-1] if last else shape[1], 2)
        if shape[0] != 1 or classes > MOST_CLASSES:
            raise DataError(f"expected {what}, of at most {MOST_CLASSES} classes; this model {model.told}")
        labels = model.labels[:classes]
        return cls(input=name, settings=settings, output=output, classes=classes, last=last, labels=labels)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A folder."""
        return path.is_dir()

    def read(self, path: Path, assets: Assets) -> Sequence[Sample]:
        """Images with the classes of their pixels."""
        samples = []
        for split, home in split_folders(path):
            for folder in (IMAGES, MASKS):
                if not (home / folder).is_dir():
                    raise DataError(f"{home}: expected the folders {IMAGES} and {MASKS}; {folder} is missing")
            masks = {file.stem: file for file in image_files(home / MASKS, path)}
            for file in image_files(home / IMAGES, path):
                if file.stem not in masks:
                    raise DataError(f"{file}: expected a mask of the same name in {home / MASKS}, and there is none")
                target = {MASK: self._mask(masks[file.stem])}
                samples.append(
                    Sample(
                        given=(file, target[MASK]), target=target, split=split, place=str(file), key=content_key(file)
                    )
                )
        return samples

    def _mask(self, path: Path) -> np.ndarray:
        mask = read_mask(path)
        beyond = mask[(mask >= self.classes) & (mask != 255)]
        if beyond.size:
            raise DataError(
                f"{path}: holds class {beyond[0]}, and the model has {self.classes}, from 0; 255 is a pixel of no class"
            )
        return mask

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Mean intersection over union gates; Dice beside."""
        return tuple(map(_of_masks, (mean_iou(self.classes), dice(self.classes))))

    def parsed(self, text: str) -> np.ndarray:
        """The pixels of an image file."""
        return pixels_of(Path(text))

    def encoder(self, spec: ModelSpec, assets: Assets) -> Callable[[Any], Encoded]:
        """See :class:`~edgeattn.tasks.task.Task`."""
        made = to_input(self.input, self.settings)

        def encoded(given: Any) -> Encoded:
            """Pixels, a path, or with a mask beside, whose size is looked at."""
            image, mask = given if isinstance(given, tuple) else (given, None)
            pixels = pixels_of(image)
            height, width = pixels.shape[:2]
            if mask is not None:
                check_mask(mask, height, width)
            return Encoded(calls=(made(pixels),), facts={"h": height, "w": width})

        return encoded

    def answer(self, outputs: Sequence[Arrays], facts: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The class of each pixel of the image, uint8 [h, w]; scores are interpolated up to the input's size first."""
        scores = np.asarray(outputs[0][self.output][0], np.float64)
        scores = scores if self.last else np.moveaxis(scores, 0, -1)
        scores = interpolated(scores, self.settings.height, self.settings.width)
        found = (scores[..., 0] > 0) if scores.shape[-1] == 1 else scores.argmax(-1)
        found = np.where(np.isnan(scores).any(-1), NO_CLASS, found).astype(np.uint8)
        return {MASK: mask_to_image(found, self.settings, int(facts["h"]), int(facts["w"]), outside=NO_CLASS)}

    def described(self, answer: dict[str, np.ndarray]) -> Any:
        """Each class that there is with its share of the pixels, largest first, and the size of the image."""
        mask = answer[MASK]
        counts = np.bincount(mask.ravel(), minlength=self.classes)[: self.classes]
        rows = [
            {"label": self._label(int(c)), "share": round(float(counts[c]) / mask.size, 6)}
            for c in np.argsort(-counts, kind="stable")
            if counts[c]
        ]
        return {"classes": rows, "height": mask.shape[0], "width": mask.shape[1]}

    def _label(self, number: int) -> str:
        return (self.labels[number] if number < len(self.labels) else "") or str(number)

    def line(self, answer: dict[str, np.ndarray]) -> str:
        """``road 61.2 %, car 8.0 %``."""
        return ", ".join(f"{row['label']} {100 * row['share']:.1f} %" for row in self.described(answer)["classes"])


def _is_last(shape: tuple[int, ...], named: int, images_last: bool) -> bool:
    """Whether the classes stand last: as many as are named, or else as the image's own channels do."""
    if named > 1 and (shape[1] == named) != (shape[-1] == named):
        return shape[-1] == named
    return images_last


def interpolated(scores: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scores in another size, bilinear between the centers of pixels (torch's ``align_corners=False``).

    Args:
        scores: float64 [h, w, classes].
    """
    for axis, size in ((0, height), (1, width)):
        old = scores.shape[axis]
        if old == size:
            continue
        places = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
        low = np.floor(places).astype(np.int64)
        high = np.minimum(low + 1, old - 1)
        share = (places - low).reshape([-1, 1, 1] if axis == 0 else [1, -1, 1])
        scores = scores.take(low, axis) * (1 - share) + scores.take(high, axis) * share
    return scores


def _of_masks(metric: Metric) -> Metric:
    return replace(metric, statistics=lambda answer, target: metric.statistics(answer[MASK], target[MASK]))
