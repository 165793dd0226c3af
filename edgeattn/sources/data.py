"""``--data`` as samples: recordings, labelled texts, arrays, a built-in's own layout, or a function of the user's."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.errors import DataError, unknown_name
from edgeattn.evaluation.data import (
    SPLIT,
    TARGET_PREFIX,
    TRANSCRIPTS,
    ArrayData,
    Data,
    SpeechData,
    load_arrays,
    load_speech,
    sample_data,
)
from edgeattn.guards.confined import regular_file
from edgeattn.models import MODELS
from edgeattn.printable import excerpt
from edgeattn.sources import pruned
from edgeattn.sources.code import functions_of, run_file, split_reference
from edgeattn.sources.text import is_text, load_texts
from edgeattn.sources.usercode import import_path, users_code
from edgeattn.spec import ModelSpec

MAX_SAMPLES, MAX_BYTES = 100_000, 2 * 2**30  # of a function: all are read, so that all can be drawn


def load_data(
    reference: str,
    spec: ModelSpec,
    source: str | None,
    split: str | None,
    limit: int,
    assets: Mapping[str, Path] | None = None,
) -> Data | None:
    """Load ``--data`` for a model.

    Args:
        reference: the MODEL that it is for; a built-in, pruned or not, knows the layout of its own data and brings a
            sample.
        source: a directory with transcripts.tsv, a table of labelled texts (:mod:`edgeattn.sources.text`), an npz, a
            directory that a built-in trains on, ``file.py:function`` yielding dicts of arrays, or None.
        split: what to measure on, where the data has splits.
        limit: at most so many samples to measure on, and as many to calibrate on, drawn from all that there are.
        assets: what travels with the model, by name: texts go through its tokenizer.

    Raises:
        DataError: if it is missing or not of a form that the model can use.
    """
    reference = pruned.source_of(reference)
    if source is None:
        return None if reference not in MODELS else _builtin_data(reference, None, split, limit)
    name, _ = split_reference(source)
    path = Path(name)
    if not path.exists():
        raise DataError(f"{path}: no such data")
    if path.suffix == ".py":
        regular_file(path, DataError)
        return _load_samples(source, spec, split, limit)
    if path.suffix == ".npz":
        return load_arrays(path, spec, split, limit)
    if spec.stream is not None and (path / TRANSCRIPTS).is_file():
        return load_speech(path, spec.stream.frontend.sample_rate, split, limit)
    if reference in MODELS:
        return _builtin_data(reference, path, split, limit)
    if is_text(path):
        return load_texts(path, spec, assets or {}, split, limit)
    raise DataError(
        f"{path}: expected a directory with {TRANSCRIPTS}, a .tsv of texts and labels, an npz, or file.py:function"
    )


def _builtin_data(reference: str, directory: Path | None, split: str | None, limit: int) -> SpeechData:
    module, _, function = MODELS[reference].data.partition(":")
    data: SpeechData = getattr(importlib.import_module(module), function)(directory, split, limit)
    return data


def _load_samples(source: str, spec: ModelSpec, split: str | None, limit: int) -> ArrayData:
    path, function = split_reference(source)
    module = run_file(Path(path), source, DataError)
    make = getattr(module, function, None)
    if not callable(make):
        raise DataError(f"{source}: {unknown_name('function', function, functions_of(module))}")
    with import_path(Path(path).resolve().parent), users_code(source, DataError):
        yielded = make()
        samples = _read(yielded, source) if isinstance(yielded, Iterable) else []
    if not samples:
        raise DataError(f"{source}: must yield dicts of arrays named like the model's inputs")
    first = _inputs(samples[0])
    if any(_inputs(sample) != first for sample in samples):
        raise DataError(f"{source}: all samples need the same names; the first has {', '.join(samples[0])}")
    return sample_data(samples, source, spec, split, limit)


def _read(yielded: Iterable[object], source: str) -> list[dict[str, np.ndarray]]:
    """All samples: the first of many may be all of one class."""
    samples: list[dict[str, np.ndarray]] = []
    size = 0
    for sample in yielded:
        if not isinstance(sample, Mapping):
            raise DataError(f"{source}: must yield dicts of arrays named like the model's inputs")
        arrays = _named(f"{source}: sample {len(samples)}", sample)
        size += sum(array.nbytes for array in arrays.values())
        if len(samples) == MAX_SAMPLES or size > MAX_BYTES:
            raise DataError(
                f"{source}: more than {MAX_SAMPLES} samples or {MAX_BYTES / 2**30:.0f} GiB; all are read before some "
                "are drawn, so yield fewer, drawn at random over the whole"
            )
        samples.append(arrays)
    return samples


def _inputs(sample: Mapping[str, np.ndarray]) -> set[str]:
    """Names that every sample must have; a target may be missing, which makes a sample unlabelled."""
    return {name for name in sample if name != SPLIT and not name.startswith(TARGET_PREFIX)}


def _named(where: str, sample: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    """What a user's function yielded, as arrays of numbers by name, and the split as a text.

    Raises:
        DataError: naming what is none.
    """
    named = {}
    for name, value in list(sample.items()):
        if not isinstance(name, str):
            raise DataError(f"{where}: expected names of inputs, got {excerpt(name)}")
        if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
            raise DataError(f"{where}: {excerpt(name)} is a masked array: fill what is masked, no engine leaves it out")
        try:
            array = np.array(value)  # copied: a generator may reuse its buffers
        except Exception as error:  # of a list of unequal rows, a tensor on a GPU, a class of the user's
            raise DataError(f"{where}: {excerpt(name)} is no array: {error}") from error
        if array.dtype.kind not in "biuf" and not (name == SPLIT and array.dtype.kind == "U"):
            raise DataError(f"{where}: {excerpt(name)} holds {array.dtype}, not numbers")
        named[name] = array
    return named
