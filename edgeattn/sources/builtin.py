"""MODEL as the name of a model that comes with edgeattn."""

from __future__ import annotations

from edgeattn.model import EdgeModel
from edgeattn.models import MODELS


def owns(reference: str) -> bool:
    """Whether a reference is a built-in name."""
    return reference in MODELS


def load(reference: str) -> EdgeModel:
    """Build it."""
    return MODELS[reference].build()
