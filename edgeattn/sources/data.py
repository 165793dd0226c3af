"""``--data`` as samples: recordings, labelled texts, arrays, a built-in's own layout, or a function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.errors import DataError, unknown_name
from edgeattn.evaluation.array_reading import load_arrays, sample_data
from edgeattn.evaluation.arrays import ArrayData
from edgeattn.evaluation.data import SPLIT, TARGET_PREFIX, Data
from edgeattn.evaluation.speech import TRANSCRIPTS, SpeechData, load_speech
from edgeattn.evaluation.task_data import TaskData
from edgeattn.guards.confined import regular_file
from edgeattn.models import MODELS
from edgeattn.printable import excerpt
from edgeattn.sources import pruned
from edgeattn.sources.code import functions_of, run_file, split_reference
from edgeattn.sources.tasks import as_task_data, described, load_samples
from edgeattn.sources.usercode import import_path, users_code
from edgeattn.spec import ModelSpec
from edgeattn.tasks import Task
from edgeattn.tasks.anything import Anything
from edgeattn.tasks.tables import is_table
from edgeattn.tasks.text_classification import TextClassification

ARRAYS = (".npz", ".py")
MAX_SAMPLES, MAX_BYTES = 100_000, 2 * 2**30  # of a function: all are read, so that all can be drawn


@dataclass(frozen=True, kw_only=True)
class Given:
    """``--data`` and the model that it is for.

    Attributes:
        source: as it was given.
        path: of it, without the name of a function; it exists.
        spec: of the model.
        assets: what travels with the model, by name.
        task: of the model; None where it is not known.
        split: what to measure on.
        limit: at most this many samples to measure on, and as many to calibrate on.
    """

    source: str
    path: Path
    spec: ModelSpec
    assets: Mapping[str, Path]
    split: str | None
    limit: int
    task: Task | None


@dataclass(frozen=True, kw_only=True)
class Form:
    """One form of data.

    Attributes:
        expected: what it is, for who gave something else; empty for that of the model's task.
        recognises: whether something is of this form.
        load: reads it; raises DataError if it is not what it seemed.
    """

    expected: str
    recognises: Callable[[Given], bool]
    load: Callable[[Given], Data]


def load_data(
    reference: str,
    spec: ModelSpec,
    source: str | None,
    split: str | None,
    limit: int,
    assets: Mapping[str, Path] | None = None,
    task: Task | None = None,
) -> Data | None:
    """Load ``--data`` for a model.

    Args:
        reference: the MODEL that it is for; a built-in, pruned or not, knows the layout of its own data and brings a
            sample.
        source: a directory with transcripts.tsv, the form of data of the model's task (:mod:`edgeattn.tasks`), an npz,
            a directory that a built-in trains on, ``file.py:function`` yielding dicts of arrays, or None.
        split: what to measure on, where the data has splits.
        limit: at most this many samples to measure on, and as many to calibrate on, drawn from all that there are.
        assets: what travels with the model, by name: texts go through its tokenizer.
        task: of the model, see :func:`edgeattn.sources.tasks.task_of`; None where it is not known.

    Raises:
        DataError: if it is missing or not of a form that the model can use.
    """
    own = MODELS.get(pruned.source_of(reference))
    if source is None:
        return None if own is None else own.data(None, split, limit)
    path = Path(split_reference(source)[0])
    if not path.exists():
        raise DataError(f"{path}: no such data")
    given = Given(source=source, path=path, spec=spec, assets=assets or {}, split=split, limit=limit, task=task)
    for form in FORMS:
        if form.recognises(given):
            return _agreeable(form.load(given), given)
    if own is not None:
        return own.data(path, split, limit)
    own_forms = [] if task is None else [f"{task.forms} (the model's task is {task.name})"]
    *others, last = [*own_forms, *(form.expected for form in FORMS if form.expected)]
    more = "" if task is not None else "; --task names what else the model may be for, see edgeattn tasks"
    raise DataError(f"{path}: expected {', '.join(others)}, or {last}{more}")


def _agreeable(data: Data, given: Given) -> Data:
    """Arrays without labels as samples of the model's task, or of any: answers can be compared with the source's.

    Those of a model with several graphs, or with states, whose samples are the steps of one run, stay as they are.
    """
    if not isinstance(data, ArrayData) or data.others or any(graph.states for graph in given.spec.graphs):
        return data
    if any(sample.targets for sample in (*data.evaluation, *data.calibration)):
        return data
    if given.task is not None and given.task.plain:
        return as_task_data(data, given.task)
    return as_task_data(data, Anything.fitted(described(given.spec, given.assets)))


def _is_speech(given: Given) -> bool:
    return given.spec.stream is not None and (given.path / TRANSCRIPTS).is_file()


def _load_speech(given: Given) -> SpeechData:
    assert given.spec.stream is not None, "as recognised"
    return load_speech(given.path, given.spec.stream.frontend.sample_rate, given.split, given.limit)


def _load_function(given: Given) -> ArrayData:
    regular_file(given.path, DataError)
    return _load_samples(given.source, given.spec, given.split, given.limit)


def _is_own(task: Task, path: Path) -> bool:
    return task.recognises_arrays(path) if path.suffix in ARRAYS else task.recognises(path)


def _load_task(given: Given) -> TaskData:
    task = given.task
    if task is None:
        try:
            task = TextClassification.fitted(described(given.spec, given.assets))
        except DataError as error:
            raise DataError(f"{given.path}: {error}") from error
    return load_samples(given.path, task, given.spec, given.assets, given.split, given.limit)


FORMS = (
    Form(expected=f"a directory with {TRANSCRIPTS}", recognises=_is_speech, load=_load_speech),
    Form(
        expected="",
        recognises=lambda given: given.task is not None and _is_own(given.task, given.path),
        load=_load_task,
    ),
    Form(
        expected="a .tsv of texts and labels",
        recognises=lambda given: is_table(given.path),
        load=_load_task,
    ),
    Form(
        expected="an npz",
        recognises=lambda given: given.path.suffix == ".npz",
        load=lambda given: load_arrays(given.path, given.spec, given.split, given.limit),
    ),
    Form(
        expected="file.py:function",
        recognises=lambda given: given.path.suffix == ".py",
        load=_load_function,
    ),
)
"""The first that recognises what is given reads it."""


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
