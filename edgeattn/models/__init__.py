"""Built-in reference models. Importing this loads no framework: the entries name what is imported when it is used."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BuiltIn:
    """A model that comes with edgeattn.

    Attributes:
        factory: ``module:function`` returning an :class:`~edgeattn.model.EdgeModel`.
        data: ``module:function(directory: Path | None, split: str | None, limit: int)`` returning the
            :class:`~edgeattn.evaluation.data.SpeechData` to calibrate and measure on, at most ``limit`` utterances
            each; without a directory the small sample that comes with the model.
        train: ``module:function`` that reproduces the weights (see ``edgeattn train``).
    """

    description: str
    task: str
    factory: str
    data: str
    train: str


_STREAMING_CONFORMER = "edgeattn.models.streaming_conformer"

MODELS = {
    "streaming-conformer": BuiltIn(
        "streaming Conformer-CTC: ten digits and ten commands as connected words, 8 kHz, 320 ms chunks",
        "speech-recognition",
        f"{_STREAMING_CONFORMER}:build",
        f"{_STREAMING_CONFORMER}:data",
        f"{_STREAMING_CONFORMER}.train:train",
    ),
}
