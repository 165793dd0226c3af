"""What a converter is given."""

from __future__ import annotations

from dataclasses import dataclass

from edgeattn.model import Artifact, ModelFiles
from edgeattn.targets import Target


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """One artifact that is wanted.

    Attributes:
        source: the model and its exports, with a directory for what is made.
        recipe: "fp32", "fp16", or what ``quantized`` was made by.
        target: that it is for.
        quantized: what the engine's entry in :data:`edgeattn.quantize.engines.QUANTIZERS` made; None for a float.
    """

    source: ModelFiles
    recipe: str
    target: Target
    quantized: Artifact | None = None
