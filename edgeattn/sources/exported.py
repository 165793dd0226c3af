"""MODEL as a torch.export program (``.pt2``), and a pickle (``.pt``, ``.pth``) refused."""

from __future__ import annotations

from pathlib import Path

from edgeattn.errors import ModelError, UnsupportedError
from edgeattn.model import EdgeModel
from edgeattn.sources.code import FORM


def owns(reference: str) -> bool:
    """Whether a reference is a .pt2, .pt or .pth file."""
    return Path(reference).suffix in (".pt2", ".pt", ".pth")


def load(reference: str) -> EdgeModel:
    """Not read yet."""
    if not Path(reference).exists():
        raise ModelError(f"{reference}: no such file. {FORM}")
    raise UnsupportedError(
        f"{reference}: torch.export programs and pickled modules are not read yet; write a factory. {FORM}"
    )
