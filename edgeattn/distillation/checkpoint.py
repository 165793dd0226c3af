"""Checkpoints of a run: what they belong to, written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from edgeattn.errors import InputError
from edgeattn.guards.outputs import write_atomically, writing


def digest(
    chosen: object, modules: Iterable[Mapping[str, nn.Module]], samples: Iterable[tuple[str, Mapping[str, np.ndarray]]]
) -> str:
    """What a checkpoint belongs to, as SHA-256.

    Args:
        chosen: name and options, but for the time, which may be prolonged; by their ``repr``.
        modules: graph -> module, of each model.
        samples: graph and arrays, in their order.
    """
    made = hashlib.sha256(repr(chosen).encode())
    for graphs in modules:
        for graph, module in graphs.items():
            made.update(graph.encode())
            for name, parameter in module.named_parameters():
                made.update(name.encode() + parameter.detach().numpy().tobytes())
    for graph, sample in samples:
        for name, array in sample.items():
            made.update(f"{graph} {name} {array.shape}".encode() + array.tobytes())
    return made.hexdigest()


def write_checkpoint(path: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Write arrays and plain JSON as an npz, whole or not at all; its directory is made where it is not there."""
    buffer = io.BytesIO()
    np.savez(buffer, **{**arrays, "facts": np.array(json.dumps(facts))})  # type: ignore[arg-type]
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())


def read_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What :func:`write_checkpoint` wrote.

    Raises:
        InputError: if it is damaged or none.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        facts = json.loads(str(arrays.pop("facts")))
    except Exception as error:
        raise InputError(f"{path}: no checkpoint, or a damaged one ({error}); delete it to start again") from error
    return arrays, facts
