"""Recordings into classes: sounds, and the keyword that is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgeattn.errors import DataError
from edgeattn.spec import ModelSpec
from edgeattn.tasks.classification import Classification, class_scores
from edgeattn.tasks.labels import Labels, best_class, of_scores
from edgeattn.tasks.metric import Metric
from edgeattn.tasks.metrics.classification import ACCURACY, macro_f1
from edgeattn.tasks.metrics.keyword import FALSE_ALARMS_PER_HOUR
from edgeattn.tasks.sounds import (
    TRANSCRIPTS,
    Heard,
    SoundInput,
    has_recordings,
    in_folders,
    listed,
    recording,
    sound_encoder,
    sound_input,
)
from edgeattn.tasks.task import Assets, Described, Encoded, Sample

if TYPE_CHECKING:
    from typing_extensions import Self

BACKGROUND = ("_silence_", "silence", "_background_noise_", "background", "noise", "_unknown_", "unknown", "negative")
"""Classes in which no keyword is said."""


@dataclass(frozen=True, kw_only=True)
class AudioClassification(Classification):
    """See the module.

    Attributes:
        sound: how a recording becomes the input.
    """

    name: ClassVar[str] = "audio-classification"
    summary: ClassVar[str] = "a class per recording: a sound, a command, a language"
    forms: ClassVar[str] = "a directory with a folder of recordings per class, or with transcripts.tsv of path and text"
    measured: ClassVar[tuple[str, ...]] = ("accuracy", "macro-f1")
    model_tasks: ClassVar[tuple[str, ...]] = ("audio-classification",)

    sound: SoundInput

    @classmethod
    def fitted(cls, model: Described) -> Self:
        """See :class:`~edgeattn.tasks.task.Task`."""
        sound = sound_input(model)
        output, classes = class_scores(model, "labelled recordings are for an audio classifier")
        return cls(sound=sound, output=output, classes=classes, labels=model.labels[:classes])

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A directory with transcripts.tsv, or with folders of recordings."""
        return has_recordings(path)

    def read(self, path: Path, assets: Assets) -> Sequence[Sample]:
        """Recordings and their labels: the folder's name, or of a table the column label..., else text."""
        table = (path / TRANSCRIPTS).is_file()
        labels = Labels(self.labels, self.classes)

        def sample(heard: Heard) -> Sample:
            number = labels.number(_label(heard) if table else heard.folder, heard.place)
            return Sample(
                given=str(heard.path),
                target=number,
                split=heard.split,
                place=heard.place,
                key=str(heard.path),
                stratum=number,
            )

        return [sample(heard) for heard in (listed(path) if table else in_folders(path))]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Accuracy; macro F1 beside it."""
        return tuple(map(of_scores, (ACCURACY, macro_f1(self.classes))))

    def parsed(self, text: str) -> str:
        """The path of a recording."""
        return recording(text)

    def encoder(self, spec: ModelSpec, assets: Assets) -> Callable[[Any], Encoded]:
        """See :class:`~edgeattn.tasks.task.Task`."""
        return sound_encoder(self.sound, spec)


@dataclass(frozen=True, kw_only=True)
class KeywordSpotting(AudioClassification):
    """The keyword of a recording; where a class is background, how often a keyword is heard in that."""

    name: ClassVar[str] = "keyword-spotting"
    summary: ClassVar[str] = "the keyword of a recording, or none; false alarms in background"
    measured: ClassVar[tuple[str, ...]] = ("accuracy", "macro-f1", "false-alarms-per-hour")
    model_tasks: ClassVar[tuple[str, ...]] = ("keyword-spotting",)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Accuracy; macro F1 and, where there is background, false alarms per hour of it."""
        silent = frozenset(c for c, name in enumerate(self.labels) if name.lower() in BACKGROUND)
        known = super().metrics
        return (*known, false_alarms(silent, self.sound.seconds)) if silent else known


def false_alarms(silent: frozenset[int], seconds: float) -> Metric:
    """Keywords heard per hour of background.

    Args:
        silent: classes in which no keyword is said.
        seconds: that a model hears of a recording.
    """
    metric = FALSE_ALARMS_PER_HOUR

    def statistics(answer: Any, target: Any) -> np.ndarray:
        heard = best_class(answer)
        found = [] if heard in silent else [(0.0, heard)]
        counted = metric.statistics(found, {"hours": seconds / 3600})
        return counted if target in silent else np.zeros_like(counted)

    return replace(metric, statistics=statistics)


def _label(heard: Heard) -> str:
    own = next((name for name in heard.cells if name.startswith("label")), "text")
    label = heard.cells[own]
    if not isinstance(label, str):
        raise DataError(f"{heard.place}: expected a label, a text; got {type(label).__name__}")
    return label
