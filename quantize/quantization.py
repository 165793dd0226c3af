"""What a quantizer is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgeattn.engines import Engine
from edgeattn.model import ModelFiles
from edgeattn.quantize.plan import Plan
from edgeattn.targets import Target


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """One quantized artifact that is wanted.

    Attributes:
        engine: that it is for.
        source: the model and its exports, with a directory for what is made.
        recipe: of the engine's, no float.
        target: that it is for.
        plan: treatment by module path; its "int8" is the recipe's own.
        scales: path -> activation scale that recovery learned.
    """

    engine: Engine
    source: ModelFiles
    recipe: str
    target: Target
    plan: Plan = field(default_factory=Plan)
    scales: Mapping[str, float] = field(default_factory=dict)
