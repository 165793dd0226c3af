"""Weights on disk: safetensors, float16, with the configuration in the metadata."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from edgeattn.errors import InputError
from edgeattn.models.streaming_conformer.model import ConformerConfig, StreamingConformer

AUXILIARY = "auxiliary."  # prefix of the training-only layer


def save_state(path: Path, model: StreamingConformer, auxiliary: nn.Linear | None = None) -> None:
    """Writes the weights in float16, half the size and 60 dB above anything that matters, whole or not at all."""
    from safetensors.torch import save_file

    tensors = {name: tensor.to(torch.float16).contiguous() for name, tensor in model.state_dict().items()}
    if auxiliary is not None:
        tensors.update({AUXILIARY + name: t.to(torch.float16) for name, t in auxiliary.state_dict().items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, {"config": json.dumps(asdict(model.config))})
    partial.replace(path)


def read_file(path: Path) -> tuple[dict[str, Tensor], ConformerConfig]:
    """All tensors in float32, and the configuration.

    Raises:
        InputError: the file is missing, truncated or of another model.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    try:
        with safe_open(path, "pt") as file:
            fields = json.loads((file.metadata() or {})["config"])
            tensors = {name: file.get_tensor(name).to(torch.float32) for name in file.keys()}  # noqa: SIM118
        fields["channels"] = tuple(fields["channels"])
        return tensors, ConformerConfig(**fields)
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(f"{path} is not a weights file of the streaming conformer: {error}") from error


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State of the model, and of the auxiliary layer (empty where the file has none). Raises InputError."""
    tensors, _ = read_file(path)
    auxiliary = {name[len(AUXILIARY) :]: t for name, t in tensors.items() if name.startswith(AUXILIARY)}
    return {name: t for name, t in tensors.items() if not name.startswith(AUXILIARY)}, auxiliary


def load_model(path: Path) -> StreamingConformer:
    """The model of a weights file, in evaluation mode.

    Raises:
        InputError: the file is missing, truncated, of another model, or holds values that are not finite.
    """
    tensors, config = read_file(path)
    model = StreamingConformer(config)
    try:
        model.load_state_dict({name: t for name, t in tensors.items() if not name.startswith(AUXILIARY)})
    except RuntimeError as error:
        raise InputError(f"{path} does not fit the streaming conformer: {error}") from error
    broken = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise InputError(f"{path} holds values that are not finite in {', '.join(broken[:3])}")
    return model.eval()
