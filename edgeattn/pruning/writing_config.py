"""Pruned models of transformers written as such: with a config.json that says the new sizes, where one can."""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from edgeattn.guards.silence import silenced
from edgeattn.model import EdgeModel
from edgeattn.pruning.configs import plain_config
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.families import find_anatomy
from edgeattn.pruning.saved import CONFIG, HF_WEIGHTS, largest_difference
from edgeattn.pruning.weights import write_weights

SAME = 1e-6  # largest difference of an output of the model that was written and the one that was read back

# How configs of transformers call what pruning changes; a field counts only if the shapes that follow are those cut.
SIZE = re.compile(r"(^|_)(layers?|depth|heads?|ffn_dim|d_ff|intermediate_size|hidden_dim|n_inner|ffn_hidden_size)$")


def write_hugging_face(
    draft: Path, pruned: EdgeModel, source: Path, cuts: tuple[Cut, ...]
) -> tuple[tuple[Cut, ...], dict[str, str]]:
    """A Hugging Face directory; the cuts that config.json does not say, and who can load it."""
    network = cast(nn.Module, pruned.network)
    for name, path in pruned.assets.items():
        if Path(name).name == name and path.is_file():
            shutil.copyfile(path, draft / name)
    original = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    said = config_of(network, original)
    if said is not None:
        _write_json(draft / CONFIG, said)
        with silenced():
            cast(Any, network).save_pretrained(draft / "saved", max_shard_size="1TB")
        (draft / "saved" / HF_WEIGHTS).rename(draft / HF_WEIGHTS)
        shutil.rmtree(draft / "saved")
        (draft / HF_WEIGHTS).chmod(0o644)
        if _reads_back(draft, pruned):
            return (), {"loads": "with transformers alone"}
    shutil.copyfile(source / CONFIG, draft / CONFIG)
    write_weights(draft / HF_WEIGHTS, network)
    return cuts, {"loads": "with edgeattn: config.json cannot say these sizes"}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def config_of(network: nn.Module, original: Mapping[str, Any]) -> dict[str, Any] | None:
    """config.json of a pruned network, if its fields can say all sizes; None if they cannot.

    Fields that hold numbers of layers, heads or neurons are set, one at a time, to the number in the network that
    leaves the fewest tensors of another shape, until none is left. Whether a network of the same shapes computes the
    same is seen by loading it.
    """
    config = cast(Any, network).config
    if original.get("model_type") != config.model_type:
        return None
    anatomy = find_anatomy(network)
    sizes = {1, *(stack.layers for stack in anatomy.stacks)}
    sizes |= {size for unit in anatomy.units for size in (unit.groups, unit.heads) if size}
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    best: dict[str, Any] = plain_config(original)  # it is loaded below, and must not name other code or weights
    least = _differing(network, best, wanted)
    while least:
        tried = [
            (_differing(network, changed, wanted), changed)
            for place in _size_fields(config.to_dict())
            for size in sorted(sizes)
            for changed in [_with_field(best, place, size)]
        ]
        wrong, closest = min(tried, key=lambda pair: pair[0], default=(least, best))
        if wrong >= least:
            return None
        least, best = wrong, closest
    return best


def _size_fields(config: Mapping[str, Any], place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The place of every field that is called like a size."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            if "model_type" in value:  # the config of a part
                yield from _size_fields(value, (*place, key))
        elif SIZE.search(key) and (value is None or (isinstance(value, int) and not isinstance(value, bool))):
            yield (*place, key)


def _with_field(config: Mapping[str, Any], place: tuple[str, ...], value: int) -> dict[str, Any]:
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    inner = changed
    for key in place[:-1]:
        inner = inner.setdefault(key, {})
    inner[place[-1]] = value
    return changed


def _differing(network: nn.Module, config: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]) -> float:
    """Tensors whose name or shape is another in a network of this config; infinite if there is none of it."""
    kind: Any = type(network)
    try:
        with silenced(), torch.device("meta"):
            made = kind(type(cast(Any, network).config).from_dict(dict(config)))
    except Exception:  # noqa: BLE001 - each class refuses sizes that do not fit in its own way
        return math.inf
    shapes = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
    return sum(shapes.get(name) != wanted.get(name) for name in {*shapes, *wanted})


def _reads_back(directory: Path, pruned: EdgeModel) -> bool:
    """Whether transformers alone loads a directory, and what it loads computes the same."""
    assert pruned.rebuild is not None, "checked by write_pruned()"
    try:
        with silenced():
            network = cast(Any, type(pruned.network)).from_pretrained(
                str(directory), dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
        network = network.eval().requires_grad_(False)
        # Each its own copy, and as transformers leaves it: a wrong count that no shape shows is in the outputs.
        read = pruned.rebuild(network)
        return read.spec.graphs == pruned.spec.graphs and largest_difference(pruned, read) <= SAME
    except Exception:  # noqa: BLE001 - what does not load is written in the other way
        return False
