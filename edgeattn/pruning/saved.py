"""Pruned models on disk: smaller weights, and the cuts that say what their shapes are.

A directory holds ``pruning.json`` and safetensors. Of a Hugging Face source it is a Hugging Face directory again: where
config.json can say all sizes, ``cuts`` is empty and transformers alone loads it; else config.json is the original's and
``cuts`` lead from it to the weights. Of an ONNX file it holds an ONNX file again, for inputs of one size. Of any other
source it is the weights, to be put into what the source makes: a directory is data and never decides which code runs.

    {"format": 1, "source": MODEL as given, "source_sha256": ..., "weights_sha256": ..., "cuts": [...], "facts": {...}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from edgeattn.errors import EdgeattnError, InputError, ModelError
from edgeattn.guards.confined import confined_file
from edgeattn.model import EdgeModel
from edgeattn.pruning.anatomy import Prunable
from edgeattn.pruning.apply import shape
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.forms import cut_from_json, cut_to_json
from edgeattn.pruning.surgery import copied
from edgeattn.pruning.trials import prunable
from edgeattn.pruning.weights import file_sha256, load_tensors, read_tensors
from edgeattn.spec import from_json, to_json

FORMAT = 1
PRUNING = "pruning.json"
WEIGHTS = "weights.safetensors"
PROGRAM = "model.pt2"
GRAPH = "model.onnx"
EXAMPLE = "model.npz"  # inputs for it
CONFIG = "config.json"  # that of transformers, and its weights
HF_WEIGHTS = "model.safetensors"

MAX_JSON_BYTES = 64 * 2**20
MAX_CUTS = 100


@dataclass(frozen=True)
class PruningRecord:
    """pruning.json.

    Attributes:
        source: MODEL that was pruned, as it was given.
        source_sha256: of that model.
        weights_sha256: of the weights file.
        cuts: applied to the source one after the other; each names what the one before left.
        facts: what was measured, for people.
    """

    source: str
    source_sha256: str
    weights_sha256: str
    cuts: tuple[Cut, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, ``format`` included."""
        return {
            "format": FORMAT,
            "source": self.source,
            "source_sha256": self.source_sha256,
            "weights_sha256": self.weights_sha256,
            "cuts": [cut_to_json(cut) for cut in self.cuts],
            "facts": to_json(self.facts),
        }


def read_saved(directory: Path) -> PruningRecord:
    """pruning.json of a directory.

    Raises:
        ModelError: if it is missing, too large, damaged, or from a newer edgeattn.
    """
    path = directory / PRUNING
    confined_file(path, directory, ModelError)
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelError(f"{path}: {path.stat().st_size} bytes; it has at most {MAX_JSON_BYTES}")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not readable as JSON: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else None
        raise ModelError(f"{path}: expected a pruned model of format {FORMAT}, got {found!r:.40}")
    cuts = data.get("cuts")
    if not isinstance(cuts, list) or len(cuts) > MAX_CUTS:
        raise ModelError(f"{path}: cuts must be a list of at most {MAX_CUTS}")
    try:
        read = tuple(cut_from_json(cut, f"{path}: cuts[{number}]") for number, cut in enumerate(cuts))
        plain = {key: value for key, value in data.items() if key not in ("format", "cuts")}
        head = from_json(_Head, plain, str(path))
    except InputError as error:
        raise ModelError(str(error)) from error
    return PruningRecord(head.source, head.source_sha256, head.weights_sha256, read, head.facts)


@dataclass(frozen=True)
class _Head:
    source: str
    source_sha256: str
    weights_sha256: str
    facts: Mapping[str, Any]


def is_saved(directory: Path) -> bool:
    """Whether a directory holds a pruned model."""
    return (directory / PRUNING).is_file()


def largest_difference(one: EdgeModel, other: EdgeModel) -> float:
    """Of all outputs on the first one's example, relative to the largest of each beyond 1."""
    worst = 0.0
    for graph in one.spec.graphs:
        wanted, got = (model.run(one.example[graph.name], graph.name) for model in (one, other))
        for name, value in wanted.items():
            scale = max(1.0, float(np.abs(value).max(initial=0.0)))
            worst = max(worst, float(np.abs(value - got[name]).max(initial=0.0)) / scale)
    return worst


# --- reading ----------------------------------------------------------------------------------------------------------


def apply_saved(model: EdgeModel, directory: Path) -> EdgeModel:
    """The model that was written, from the source that it was pruned from.

    Args:
        model: as its MODEL reference was loaded.

    Raises:
        ModelError: if the directory is damaged, or belongs to another model.
    """
    saved = read_saved(directory)
    if model.source_sha256 != saved.source_sha256:
        raise ModelError(
            f"{directory}: it was pruned from {saved.source} of sha256 {saved.source_sha256[:16]}..., and this model "
            f"is {model.source_sha256[:16]}...: its weights or code have changed since; prune it again"
        )
    path = directory / WEIGHTS
    check_weights(path, saved)
    return with_cuts(model, saved.cuts, read_tensors(path), directory)


def check_weights(path: Path, saved: PruningRecord) -> None:
    """Refuse weights other than those that were written.

    Raises:
        ModelError: if the file is missing or was changed.
    """
    if not path.is_file():
        raise ModelError(f"{path}: the weights are missing; copy the directory again")
    confined_file(path, path.parent, ModelError)
    if file_sha256(path) != saved.weights_sha256:
        raise ModelError(f"{path}: was changed: its sha256 is not the one in {PRUNING}; copy the directory again")


def with_cuts(model: EdgeModel, cuts: tuple[Cut, ...], tensors: Mapping[str, Tensor], where: Path) -> EdgeModel:
    """A model given the shapes that cuts leave, and then the weights.

    Raises:
        ModelError: if a cut or a tensor does not fit.
    """
    if not cuts:
        raise ModelError(f"{where}: {PRUNING} names no cut")
    try:
        for number, cut in enumerate(cuts):
            given = prunable(model)
            network = shaped(given, cut)
            if number + 1 == len(cuts):
                load_tensors(network, tensors)
            assert given.model.rebuild is not None, "checked by prunable()"
            model = given.model.rebuild(network)
    except EdgeattnError as error:
        raise ModelError(f"{where}: {error}") from error
    except Exception as error:  # a forward of sizes that do not fit each other raises what it likes
        said = " ".join(str(error).split())[:200]
        raise ModelError(f"{where}: the cuts do not fit this model: {type(error).__name__}: {said}") from error
    return model


def shaped(given: Prunable, cut: Cut) -> nn.Module:
    """A copy of a network with the shapes that a cut leaves, its weights still to be loaded."""
    network = copied(given.network)
    shape(network, given.anatomy, cut)
    return network
