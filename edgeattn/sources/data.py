"""``--data`` as samples: recordings, labelled texts, arrays, a built-in's own layout, or a function of the user's."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.confined import regular_file
from edgeattn.errors import DataError, unknown_name
from edgeattn.evaluation.data import TRANSCRIPTS, ArrayData, Data, SpeechData, load_arrays, load_speech, sample_data
from edgeattn.models import MODELS
from edgeattn.printable import excerpt
from edgeattn.sources import pruned
from edgeattn.sources.code import functions_of, run_file, split_reference
from edgeattn.sources.text import is_text, load_texts
from edgeattn.sources.usercode import import_path, users_code
from edgeattn.spec import ModelSpec


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
        limit: at most so many samples to measure on.
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
        return _load_samples(source, spec, limit)
    if path.suffix == ".npz":
        return load_arrays(path, spec)
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


def _load_samples(source: str, spec: ModelSpec, limit: int) -> ArrayData:
    path, function = split_reference(source)
    module = run_file(Path(path), source, DataError)
    make = getattr(module, function, None)
    if not callable(make):
        raise DataError(f"{source}: {unknown_name('function', function, functions_of(module))}")
    with import_path(Path(path).resolve().parent), users_code(source, DataError):
        yielded = make()
        samples = list(itertools.islice(yielded, limit)) if isinstance(yielded, Iterable) else []
    if not samples or not all(isinstance(sample, Mapping) for sample in samples):
        raise DataError(f"{source}: must yield dicts of arrays named like the model's inputs")
    named = [_named(f"{source}: sample {number}", sample) for number, sample in enumerate(samples)]
    if any(sample.keys() != named[0].keys() for sample in named):
        raise DataError(f"{source}: all samples need the same names; the first has {', '.join(named[0])}")
    return sample_data(named, source, spec)


def _named(where: str, sample: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    """What a user's function yielded, as arrays of numbers by name.

    Raises:
        DataError: naming what is none.
    """
    named = {}
    with users_code(where, DataError):  # a mapping of the user's own class
        items = list(sample.items())
    for name, value in items:
        if not isinstance(name, str):
            raise DataError(f"{where}: expected names of inputs, got {excerpt(name)}")
        if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
            raise DataError(f"{where}: {excerpt(name)} is a masked array: fill what is masked, no engine leaves it out")
        try:
            array = np.asarray(value)
        except Exception as error:  # of a list of unequal rows, a tensor on a GPU, a class of the user's
            raise DataError(f"{where}: {excerpt(name)} is no array: {error}") from error
        if array.dtype.kind not in "biuf":
            raise DataError(f"{where}: {excerpt(name)} holds {array.dtype}, not numbers")
        named[name] = array
    return named
