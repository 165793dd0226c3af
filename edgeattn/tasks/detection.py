"""Boxes around the things on an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgeattn.errors import DataError
from edgeattn.spec import ModelSpec
from edgeattn.tasks.boxes import is_boxes, read_boxes
from edgeattn.tasks.image_inputs import image_input, pixels_of, to_input
from edgeattn.tasks.images.masks import IGNORED, mask_to_input
from edgeattn.tasks.images.placement import placement
from edgeattn.tasks.images.settings import ImageSettings
from edgeattn.tasks.metric import Metric
from edgeattn.tasks.metrics.detection import MAP, MAP_50
from edgeattn.tasks.task import Arrays, Assets, Described, Encoded, Sample, Task, the_output

if TYPE_CHECKING:
    from typing_extensions import Self

MOST = 100  # boxes of an image, the best ones, as COCO counts
MASK = "pixel_mask"  # what transformers calls it
SHOWN = 0.5  # score from which people are told a box


@dataclass(frozen=True, kw_only=True)
class Detection(Task):
    """See the module. Outputs are those of transformers' detectors (DETR and its kin).

    Attributes:
        input: that takes the pixels.
        settings: how pixels become it.
        scores: output of class scores as logits, float [1, boxes, classes], with one more for "nothing" at the end
            where ``nothing``.
        boxes: output of center x, center y, width and height as shares of the input, float [1, boxes, 4].
        classes: how many there are, without "nothing".
        nothing: whether classes exclude each other and one is "nothing" (softmax, DETR); else each has a sigmoid of
            its own.
        mask: input that says which pixels are the image and which are padding, int64 [1, h, w]; empty without. Boxes
            are then shares of the image, as DETR learns them, and not of the padded input.
        labels: their names, see :func:`~edgeattn.tasks.labels.names_of`.
    """

    name: ClassVar[str] = "detection"
    summary: ClassVar[str] = "boxes around the things on an image"
    forms: ClassVar[str] = (
        "a COCO .json beside its images, a folder of images with Pascal VOC's .xml, or such folders in train, val, test"
    )
    measured: ClassVar[tuple[str, ...]] = ("map", "map-50")
    model_tasks: ClassVar[tuple[str, ...]] = ("object-detection",)

    input: str
    settings: ImageSettings
    scores: str
    boxes: str
    classes: int
    nothing: bool
    mask: str = ""
    labels: tuple[str, ...] = ()

    @classmethod
    def fitted(cls, model: Described) -> Self:
        """See :class:`~edgeattn.tasks.task.Task`."""
        what = "a model that gives logits [1, boxes, classes] and pred_boxes [1, boxes, 4]"
        name, settings = image_input(model, "images with boxes are for a detector", beside=(MASK,))
        scores, shape = the_output(model, 3, ("logits",), what)
        boxes, corners = the_output(model, 3, ("pred_boxes",), what)
        if scores == boxes or corners != (1, shape[1], 4):
            raise DataError(f"expected {what}; this model {model.told}")
        named = len(model.labels)
        nothing = named == 0 or shape[2] == named + 1
        classes = shape[2] - nothing
        if named not in (0, classes):
            raise DataError(
                f"expected scores of the {named} classes that config.json names (id2label), or of one more for "
                f"nothing; this model {model.told}"
            )
        mask = MASK if any(tensor.name == MASK for tensor in model.graph.inputs) else ""
        return cls(
            input=name, settings=settings, scores=scores, boxes=boxes, classes=classes, nothing=nothing, mask=mask,
            labels=model.labels,
        )  # fmt: skip

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A COCO .json, or a folder with one or with .xml files."""
        return is_boxes(path)

    def read(self, path: Path, assets: Assets) -> Sequence[Sample]:
        """See :func:`~edgeattn.tasks.boxes.read_boxes`."""
        return read_boxes(path, self.labels, self.classes)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """COCO's mean average precision over overlaps .5 to .95 gates; at .5 beside."""
        return MAP, MAP_50

    def parsed(self, text: str) -> np.ndarray:
        """The pixels of an image file."""
        return pixels_of(Path(text))

    def encoder(self, spec: ModelSpec, assets: Assets) -> Callable[[Any], Encoded]:
        """See :class:`~edgeattn.tasks.task.Task`."""
        made = to_input(self.input, self.settings)
        dtypes = {tensor.name: tensor.dtype for tensor in Described(spec=spec).graph.inputs}

        def encoded(given: Any) -> Encoded:
            pixels = pixels_of(given)
            call = made(pixels)
            if self.mask:
                seen = mask_to_input(np.zeros(pixels.shape[:2], np.uint8), self.settings) != IGNORED
                call[self.mask] = seen[None].astype(dtypes[self.mask])
            return Encoded(calls=(call,), facts={"h": pixels.shape[0], "w": pixels.shape[1]})

        return encoded

    def answer(self, outputs: Sequence[Arrays], facts: Mapping[str, Any]) -> list[list[float]]:
        """At most 100 boxes, best first: x_min, y_min, x_max, y_max in pixels of the image, score, class."""
        logits = np.asarray(outputs[0][self.scores][0], np.float64)
        scores = _softmax(logits)[:, :-1] if self.nothing else _sigmoid(logits)
        center, size = np.split(np.asarray(outputs[0][self.boxes][0], np.float64), 2, axis=-1)
        corners = np.concatenate([center - size / 2, center + size / 2], -1)
        h, w = int(facts["h"]), int(facts["w"])
        if self.mask:
            corners = np.clip(corners * np.array([w, h] * 2), 0.0, np.array([w, h] * 2))
        else:
            corners *= np.array([self.settings.width, self.settings.height] * 2)
            corners = placement(self.settings, h, w).boxes_to_image(corners)
        if self.nothing:
            rows, kinds = np.arange(len(scores)), scores.argmax(-1)
        else:
            rows, kinds = (index.ravel() for index in np.indices(scores.shape))
        best = scores[rows, kinds]
        order = np.argsort(-np.nan_to_num(best, nan=np.inf), kind="stable")[:MOST]
        found = [[*corners[rows[i]], best[i], kinds[i]] for i in order]
        return [[float(number) for number in row] for row in found]

    def described(self, answer: list[list[float]]) -> Any:
        """Boxes of a score of .5 and more, by name."""
        return [
            {
                "label": (self.labels[int(kind)] if int(kind) < len(self.labels) else "") or str(int(kind)),
                "score": round(score, 6),
                "box": [round(edge, 2) for edge in box],
            }
            for *box, score, kind in answer
            if score >= SHOWN
        ]

    def line(self, answer: list[list[float]]) -> str:
        """``car 0.98 at 10,20 to 200,180; person 0.71 at ...``."""
        told = (
            f"{row['label']} {row['score']:.2f} at {row['box'][0]:.0f},{row['box'][1]:.0f} to {row['box'][2]:.0f},"
            f"{row['box'][3]:.0f}"
            for row in self.described(answer)
        )
        return "; ".join(told) or "nothing"

    def as_target(self, answer: list[list[float]]) -> list[list[float]]:
        """The boxes that people would be told."""
        return [[*box, kind, 0] for *box, score, kind in answer if score >= SHOWN]


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1 + np.tanh(logits / 2)))  # exp would overflow
