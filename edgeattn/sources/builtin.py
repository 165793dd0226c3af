"""MODEL as the name of a model that comes with edgeattn."""

from __future__ import annotations

import importlib

from edgeattn.model import EdgeModel
from edgeattn.models import MODELS


def owns(reference: str) -> bool:
    """Whether a reference is a built-in name."""
    return reference in MODELS


def load(reference: str) -> EdgeModel:
    """Build it."""
    module, _, factory = MODELS[reference].factory.partition(":")
    model: EdgeModel = getattr(importlib.import_module(module), factory)()
    return model
