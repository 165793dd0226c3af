"""What the training of the built-in speech model takes. Importing this loads no framework."""

from __future__ import annotations

from dataclasses import dataclass

from edgeattn.models.training import TrainOptions, option


@dataclass(frozen=True, kw_only=True)
class Options(TrainOptions):
    """What its training takes."""

    synthetic: bool = option(True, "Add synthesised voices (needs espeak-ng).")
