"""What the user says of the inputs of a model file: constants for some, an example of all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.errors import InputError, ModelError, unknown_name
from edgeattn.guards.confined import regular_file
from edgeattn.guards.npz import read_npz

NPZ = ".npz"
SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What the user gives beside a model file.

    Attributes:
        bound: ``INPUT=VALUE``, inputs that are constants.
        data: ``--data``; the first sample of an npz is the example.
    """

    bound: tuple[str, ...] = ()
    data: str | None = None

    def values(self) -> dict[str, np.ndarray]:
        """The constants.

        Raises:
            InputError: for another form, or an input given twice.
        """
        return parse_bound(self.bound)

    def file(self) -> Path | None:
        """The npz whose first sample is the example."""
        path = None if self.data is None else Path(self.data)
        return path if path is not None and path.suffix == NPZ and path.is_file() else None


NONE = Examples()


def parse_bound(options: Sequence[str]) -> dict[str, np.ndarray]:
    """``["sr=16000", "use_cache=false", "ids=[1, 2]"]`` -> input -> value.

    Raises:
        InputError: for another form, or an input given twice.
    """
    bound: dict[str, np.ndarray] = {}
    for option in options:
        name, equals, text = (part.strip() for part in option.partition("="))
        wrong = (
            f"--set {option[:SHOWN]}: expected INPUT=VALUE, where VALUE is a number, true, false or a list: [[1, 2]]"
        )
        if not equals or not name:
            raise InputError(wrong)
        if name in bound:
            raise InputError(f"--set {name} is given twice")
        try:
            value = json.loads(text.lower() if text.lower() in ("true", "false") else text)
            array = np.array(value)
        except (ValueError, RecursionError) as error:
            raise InputError(wrong) from error
        if array.dtype.kind not in "biuf" or not array.size:
            raise InputError(wrong)
        bound[name] = array
    return bound


def refuse_unknown(bound: Mapping[str, np.ndarray], inputs: Sequence[str]) -> None:
    """Names that the model does not have, and a model without an input.

    Raises:
        InputError: naming them.
    """
    for name in bound:
        if name not in inputs:
            raise InputError(f"--set: {unknown_name('input', name, inputs)}")
    if bound and len(bound) == len(inputs):
        raise InputError("--set binds every input: nothing is left to compute; leave one free")


def fitted(name: str, value: np.ndarray, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """A constant in the shape and type of its input: a single value fills it.

    Raises:
        InputError: if it does not fit.
    """
    kind = "number" if value.ndim == 0 else f"array {list(value.shape)}"
    single = value.size == 1
    if not single and value.shape != shape:
        raise InputError(f"--set {name}: an {kind}, the model takes {dtype}{list(shape)} or one number")
    filled = np.full(shape, value.reshape(-1)[0]) if single else value
    with np.errstate(all="ignore"):
        made = filled.astype(dtype)
    kept = made == filled if dtype.kind in "biu" else np.isclose(made, filled, rtol=1e-5, equal_nan=True)
    if not np.all(kept):
        raise InputError(f"--set {name}: {str(value.tolist())[:SHOWN]} is no {dtype}, which the model takes")
    return np.ascontiguousarray(made).reshape(shape)


def first_sample(file: Path, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """The first sample of an npz whose arrays are named like the inputs; None if it has other names.

    Raises:
        ModelError: if it is no plain npz.
    """
    regular_file(file, ModelError)
    try:
        arrays = read_npz(file, texts=frozenset({"split"}))
    except (OSError, InputError) as error:
        raise ModelError(f"{file}: cannot be read as example inputs: {error}") from error
    if any(name not in arrays or not arrays[name].ndim or not len(arrays[name]) for name in names):
        return None
    return {name: arrays[name][0] for name in names}
