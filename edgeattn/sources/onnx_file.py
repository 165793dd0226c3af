"""MODEL as an ONNX file."""

from __future__ import annotations

from pathlib import Path

from edgeattn.errors import ModelError, UnsupportedError
from edgeattn.model import EdgeModel
from edgeattn.sources.code import FORM


def owns(reference: str) -> bool:
    """Whether a reference is an .onnx file."""
    return Path(reference).suffix == ".onnx"


def load(reference: str) -> EdgeModel:
    """Not read yet."""
    if not Path(reference).exists():
        raise ModelError(f"{reference}: no such file. {FORM}")
    raise UnsupportedError(f"{reference}: ONNX files are not read yet; write a factory that builds the module. {FORM}")
