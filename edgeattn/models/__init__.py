"""Built-in reference models: a folder each, and a row in :data:`MODELS`. Importing this loads no framework."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from edgeattn.errors import InputError, load_extra, unknown_name
from edgeattn.models.training import OnProgress, Trained, TrainOptions

__all__ = [
    "DEFAULT",
    "MODELS",
    "BuiltIn",
    "built_in",
    "training",
]

if TYPE_CHECKING:
    from edgeattn.evaluation.data import Data
    from edgeattn.model import EdgeModel


class ReferenceModel(Protocol):
    """What the package of a built-in model holds. Importing it loads neither numpy nor a framework."""

    @property
    def Options(self) -> type[TrainOptions]:  # noqa: N802 - a class
        """What its training takes."""

    def build(self) -> EdgeModel:
        """The trained model.

        Raises:
            InputError: if its weights are missing or damaged.
            MissingExtraError: without what it is made with.
        """

    def data(self, directory: Path | None, split: str | None, limit: int) -> Data:
        """What to calibrate and measure on.

        Args:
            directory: with what the model's card names; None for the small sample that comes with the model.
            split: what to measure on; None for the model's own choice.
            limit: at most this many samples to measure on, and as many to calibrate on; 0 for all.

        Raises:
            DataError: if it is not of the form that the model's card names.
        """

    def train(self, data: Path, out: Path, options: Any, progress: OnProgress) -> Trained:
        """Make the weights from data.

        Args:
            data: directory with what the model's card names.
            out: directory for checkpoints and weights.
            options: of the type :attr:`Options`.
            progress: called now and then, and with each evaluation.

        Raises:
            InputError: if the data are not of the form that the model's card names, or an option fits nothing in it.
            TrainingError: if training cannot go on.
        """


@dataclass(frozen=True, kw_only=True)
class BuiltIn:
    """A model that comes with edgeattn.

    Attributes:
        name: as people write it.
        description: what it is, in a line.
        task: what it is for.
        package: where it is, see :class:`ReferenceModel`.
    """

    name: str
    description: str
    task: str
    package: str

    def build(self) -> EdgeModel:
        """See :class:`ReferenceModel`."""
        return self._model().build()

    def data(self, directory: Path | None, split: str | None, limit: int) -> Data:
        """See :class:`ReferenceModel`."""
        return self._model().data(directory, split, limit)

    def options(self) -> type[TrainOptions]:
        """The dataclass of what its training takes."""
        return self._model().Options

    def train(self, data: Path, out: Path, options: TrainOptions, progress: OnProgress) -> Trained:
        """See :class:`ReferenceModel`.

        Raises:
            MissingExtraError: without torch.
        """
        load_extra("torch", "convert")
        return self._model().train(data, out, options, progress)

    def _model(self) -> ReferenceModel:
        return cast(ReferenceModel, importlib.import_module(self.package))


MODELS = {
    model.name: model
    for model in (
        BuiltIn(
            name="streaming-conformer",
            description="streaming Conformer-CTC: ten digits and ten commands as connected words, 8 kHz, 320 ms chunks",
            task="speech-recognition",
            package="edgeattn.models.streaming_conformer",
        ),
    )
}
DEFAULT = "streaming-conformer"
"""What is converted, profiled and demonstrated where no model is named."""


def built_in(name: str) -> BuiltIn:
    """The model of a name.

    Raises:
        InputError: if there is none.
    """
    if name not in MODELS:
        raise InputError(unknown_name("model", name, MODELS))
    return MODELS[name]
