"""MODEL as a local Hugging Face directory (config.json and safetensors)."""

from __future__ import annotations

from pathlib import Path

from edgeattn.errors import ModelError, UnsupportedError
from edgeattn.model import EdgeModel
from edgeattn.sources.code import FORM


def owns(reference: str) -> bool:
    """Whether a reference is a directory with config.json."""
    return (Path(reference) / "config.json").is_file()


def load(reference: str) -> EdgeModel:
    """Not read yet."""
    if not Path(reference).exists():
        raise ModelError(f"{reference}: no such file. {FORM}")
    raise UnsupportedError(f"{reference}: Hugging Face directories are not read yet; write a factory. {FORM}")
