"""Reads a Hugging Face directory as data: config.json and safetensors, bounded, and nothing that could run.

Both formats hold numbers and names alone. What this refuses is what a reader could be made to do with them: allocate
by a number in a header, leave the directory, or run for hours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeattn.errors import ModelError, load_extra
from edgeattn.guards.confined import confined_file

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack", "model.ckpt.index")

MAX_JSON_BYTES = 64 * 2**20  # the largest vocabulary of labels in use is a hundredth of it
MAX_NUMBER = 2**31 - 1  # of any size in config.json
FLOAT = "__float__"
NOT_IN_JSON = ("Infinity", "-Infinity", "NaN")


@dataclass(frozen=True)
class Weights:
    """Tensors of a checkpoint, by the names in its files, float ones as float32."""

    tensors: Mapping[str, torch.Tensor]

    @property
    def elements(self) -> int:
        """Numbers in all of them."""
        return sum(tensor.numel() for tensor in self.tensors.values())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of bounded size.

    Raises:
        ModelError: if the file is no JSON object, or larger than 64 MiB.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelError(f"{path}: {path.stat().st_size} bytes; a {path.name} has at most {MAX_JSON_BYTES}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ModelError(f"{path}: not readable as JSON: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: must hold a JSON object, got {type(value).__name__}")
    return value


def read_config(directory: Path) -> dict[str, Any]:
    """config.json, with numbers that a model can have.

    Raises:
        ModelError: naming the field that is out of bounds.
    """
    confined_file(directory / CONFIG, directory, ModelError)
    config = read_json(directory / CONFIG)
    for place, value in _numbers(config, ""):
        if abs(value) > MAX_NUMBER:
            raise ModelError(f"{directory / CONFIG}: {place} = {str(value)[:24]} is no size of a model")
    return config


def decoded_floats(value: Any) -> Any:
    """A config with what transformers writes for numbers that JSON lacks, ``{"__float__": "Infinity"}``, as floats."""
    if isinstance(value, dict):
        if set(value) == {FLOAT} and value[FLOAT] in NOT_IN_JSON:
            return float(value[FLOAT])
        return {key: decoded_floats(item) for key, item in value.items()}
    return [decoded_floats(item) for item in value] if isinstance(value, list) else value


def _numbers(value: Any, place: str) -> Iterator[tuple[str, int]]:
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        yield place, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _numbers(item, f"{place}[{index}]")


def read_tokenizer(path: Path, length: int) -> Any:
    """A tokenizer.json, for texts one by one: it cuts at ``length`` tokens and pads nothing, whatever the file says.

    Raises:
        ModelError: if it is no tokenizer, or one that leaves no room for a text in ``length`` tokens.
        MissingExtraError: without tokenizers.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ModelError(f"{path}: {path.stat().st_size} bytes; a tokenizer has at most {MAX_JSON_BYTES}")
    tokenizers: Any = load_extra("tokenizers", "hf")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        tokenizer.enable_truncation(length)
    except Exception as error:  # the Rust library raises bare Exceptions
        raise ModelError(f"{path}: not readable as a tokenizer: {' '.join(str(error).split())[:200]}") from error
    return tokenizer


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a directory, one or the shards of an index.

    Raises:
        ModelError: if there are none, saying what to do with what is there instead; if the index is damaged, names
            a file that is missing or one that is not in the directory.
    """
    if (directory / WEIGHTS).is_file():
        return [confined_file(directory / WEIGHTS, directory, ModelError)]
    if not (directory / INDEX).is_file():
        there = [name for name in PICKLED if (directory / name).exists()]
        found = f"only {there[0]}, which is not read" if there else "no weights"
        raise ModelError(
            f"{directory}: holds {found}; {WEIGHTS} is needed. Write it with "
            "model.save_pretrained(directory, safe_serialization=True)"
        )
    confined_file(directory / INDEX, directory, ModelError)
    index = read_json(directory / INDEX).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(name, str) for name in index.values()):
        raise ModelError(f"{directory / INDEX}: weight_map must map tensor names to files")
    names = sorted(set(index.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{directory / INDEX}: {name!r} is no safetensors file of this directory")
        if not (directory / name).is_file():
            raise ModelError(f"{directory}: shard {name} is missing; {INDEX} lists {len(names)}: copy them all")
    return [confined_file(directory / name, directory, ModelError) for name in names]


def read_weights(files: list[Path]) -> Weights:
    """All tensors of some safetensors files, see :func:`edgeattn.pruning.saved.read_tensors`.

    Raises:
        ModelError: naming the file that is truncated or damaged.
    """
    from edgeattn.pruning import read_tensors

    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        tensors |= read_tensors(path)
    if not tensors:
        raise ModelError(f"{files[0]}: holds no tensor")
    return Weights(tensors)


def check_depth(config: Mapping[str, Any], weights: Weights, path: Path) -> None:
    """Refuse more layers than there are tensors: building them would take hours before the first is missed.

    Raises:
        ModelError: naming the field.
    """
    allowed = max(1000, len(weights.tensors))
    for place, value in _numbers(config, ""):
        if value > allowed and any(word in place.lower() for word in ("layer", "depth", "block", "stage", "expert")):
            raise ModelError(f"{path}: {place} = {value}, but the weights hold {len(weights.tensors)} tensors")
