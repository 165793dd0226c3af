"""Arrays from an npz, a function of the user's or a tokenizer, checked against the model that takes them.

An array that does not fit is refused with its name, its sample and what was expected.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeattn.errors import DataError, InputError
from edgeattn.evaluation.arrays import ArrayData, ArraySample
from edgeattn.evaluation.data import IGNORED, SPLIT, TARGET_PREFIX, Listed, digest_of, divide
from edgeattn.guards.confined import regular_file
from edgeattn.guards.npz import read_npz
from edgeattn.spec import BucketSpec, GraphSpec, ModelSpec


def load_arrays(path: Path, spec: ModelSpec, split: str | None = None, limit: int = 0) -> ArrayData:
    """Samples from an npz whose arrays are named like the inputs of the model's first graph, first axis = samples.

    Raises:
        DataError: if it is no plain npz, or as :func:`array_data`.
    """
    regular_file(path, DataError)
    try:
        arrays = read_npz(path, texts=frozenset({SPLIT}))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except InputError as error:
        raise DataError(str(error)) from error
    return array_data(arrays, path.name, spec, split, limit)


def array_data(
    arrays: Mapping[str, np.ndarray], origin: str, spec: ModelSpec, split: str | None = None, limit: int = 0
) -> ArrayData:
    """Arrays, first axis = samples, as samples; those of another graph than the first are called ``GRAPH.NAME``.

    An array ``split`` of texts says what each sample is for, see :func:`divide`.

    Raises:
        DataError: for arrays of different lengths, fewer than two samples, or as :func:`sample_data`.
    """
    named = _by_graph(arrays, spec)
    first = next(iter(named))
    for unit, own in named.items():
        _check_names(origin, own, _largest(spec, unit)[0])
        counts = {len(array) if array.ndim else 0 for array in own.values()}
        if len(counts) != 1 or counts == {0} or (counts == {1} and unit == first):
            raise DataError(
                f"{origin}: all arrays need the same first axis, of at least 2 samples; got {sorted(counts)}"
            )
    rows = {u: [{n: a[i] for n, a in own.items()} for i in range(_count(own))] for u, own in named.items()}
    others = {unit: _samples(rows[unit], origin, spec, unit) for unit in rows if unit != first}
    return replace(_divided(rows[first], origin, spec, split, limit), others=others)


def _count(arrays: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(arrays.values())))


def sample_data(
    samples: Sequence[Mapping[str, np.ndarray]],
    origin: str,
    spec: ModelSpec,
    split: str | None = None,
    limit: int = 0,
) -> ArrayData:
    """Check samples for the first graph of a model, which may stand in several sizes.

    An array becomes the input itself if the shapes agree, else with a leading batch axis of 1; on an axis that is
    padded it may have any size up to the largest. ``target_NAME`` holds what output NAME should be, as long as it is
    unpadded; ``split`` what the sample is for, see :func:`divide`. A sample may hold inputs of other graphs too, called
    ``GRAPH.NAME``: they calibrate those.

    Raises:
        DataError: for missing, unknown or misshapen arrays, NaN, a split that is not there, or fewer than two samples.
    """
    if len(samples) < 2:
        raise DataError(f"{origin}: at least 2 samples are needed, to calibrate and to measure; got {len(samples)}")
    named = [_by_graph(sample, spec) for sample in samples]
    first = next(iter(spec.units()))
    rows = {unit: [own[unit] for own in named if unit in own] for unit in spec.units()}
    others = {unit: _samples(own, origin, spec, unit) for unit, own in rows.items() if own and unit != first}
    return replace(_divided(rows[first], origin, spec, split, limit), others=others)


def chosen_data(
    evaluation: Sequence[Mapping[str, np.ndarray]],
    calibration: Sequence[Mapping[str, np.ndarray]],
    origin: str,
    spec: ModelSpec,
) -> ArrayData:
    """As :func:`sample_data`, for samples that were divided already."""
    first = next(iter(spec.units()))
    made = _samples(calibration, f"{origin} (calibration)", spec, first), _samples(evaluation, origin, spec, first)
    return ArrayData(origin, *made)


def _divided(
    rows: Sequence[Mapping[str, np.ndarray]], origin: str, spec: ModelSpec, split: str | None, limit: int
) -> ArrayData:
    """Samples of the first graph; of a graph with states they are the steps of one run, which stays one."""
    unit = next(iter(spec.units()))
    made = _samples(rows, origin, spec, unit)
    inputs = {tensor.name for tensor in _largest(spec, unit)[0].all_inputs}
    splits = ["" if SPLIT in inputs else str(np.asarray(row.get(SPLIT, "")).item()) for row in rows]
    listed = Listed([digest_of(s.inputs) for s in made], splits, [_label(s) for s in made], bool(spec.graphs[0].states))
    divided = divide(listed, split, origin, limit)
    if not divided.evaluation:
        raise DataError(f"{origin}: no sample to measure on; at least 2 different ones are needed, or a split")
    origin = f"{origin}/{divided.split}" if divided.split else origin
    calibration, evaluation = divided.calibration, divided.evaluation
    return ArrayData(origin, tuple(made[i] for i in calibration), tuple(made[i] for i in evaluation))


def _label(sample: ArraySample) -> Hashable:
    """The class of a sample that has one, or all that its targets say; None without targets."""
    targets = sample.targets
    if len(targets) == 1 and (only := next(iter(targets.values()))).size == 1 and only.dtype.kind in "iub":
        return None if only.item() == IGNORED else int(only.item())
    return tuple((name, targets[name].tobytes()) for name in sorted(targets)) or None


def _samples(
    rows: Sequence[Mapping[str, np.ndarray]], origin: str, spec: ModelSpec, unit: str
) -> tuple[ArraySample, ...]:
    graph, bucket = _largest(spec, unit)
    for row in rows:
        _check_names(origin, row, graph)
    return tuple(_array_sample(origin, row, graph, bucket, index) for index, row in enumerate(rows))


def _by_graph(arrays: Mapping[str, np.ndarray], spec: ModelSpec) -> dict[str, dict[str, np.ndarray]]:
    """Arrays by the graph that they are for, the first graph first; ``GRAPH.NAME`` becomes ``NAME``."""
    units = list(spec.units())
    own = {t.name for t in _largest(spec, units[0])[0].all_inputs}
    named: dict[str, dict[str, np.ndarray]] = {units[0]: {}}
    for name, array in arrays.items():
        unit, _, short = name.partition(".")
        if name in own or unit not in units:
            named[units[0]][name] = array
        else:
            named.setdefault(unit, {})[short] = array
    return named


def _largest(spec: ModelSpec, unit: str) -> tuple[GraphSpec, BucketSpec | None]:
    """A graph at its largest size, with the bucket that it is in."""
    graphs = spec.units()[unit]
    return graphs[-1], next((bucket for bucket in spec.buckets if bucket.name == unit), None)


def _check_names(origin: str, arrays: Mapping[str, np.ndarray], graph: GraphSpec) -> None:
    wanted = {t.name: t for t in graph.all_inputs}
    outputs = {t.name for t in graph.outputs}
    for name, array in arrays.items():
        target = name.removeprefix(TARGET_PREFIX) if name.startswith(TARGET_PREFIX) else None
        if name == SPLIT and name not in wanted:
            _check_split(origin, array)
        elif name not in wanted and target not in outputs:
            raise DataError(
                f"{origin}: array {name!r} is neither an input ({', '.join(wanted)}) nor a target "
                f"({', '.join(TARGET_PREFIX + o for o in sorted(outputs))})"
            )
    missing = [t.name for t in graph.inputs if t.name not in arrays]
    if missing:
        raise DataError(f"{origin}: input {missing[0]!r} is missing; it holds {', '.join(arrays) or 'nothing'}")


def _check_split(origin: str, array: np.ndarray) -> None:
    if np.asarray(array).dtype.kind != "U":
        raise DataError(
            f"{origin}: {SPLIT} names what each sample is for: expected texts, got {np.asarray(array).dtype}"
        )


def _array_sample(
    origin: str, arrays: Mapping[str, np.ndarray], graph: GraphSpec, bucket: BucketSpec | None, index: int
) -> ArraySample:
    inputs = dict(graph.initial_states())
    padded = {(pad.tensor, pad.axis) for pad in bucket.pad} if bucket is not None else set()
    for spec in graph.all_inputs:
        if spec.name not in arrays:
            continue
        value = np.asarray(arrays[spec.name])
        if value.dtype.kind == "f" and bool((np.isnan(value) | np.isposinf(value)).any()):  # -inf hides, as in a mask
            raise DataError(f"{origin}: {spec.name}[{index}] holds NaN or +infinity")
        varying = [axis for axis in range(len(spec.shape)) if (spec.name, axis) in padded]
        shape = next((s for s in (value.shape, (1, *value.shape)) if _fits(s, spec.shape, varying)), None)
        if shape is None:
            longest = " or less" if varying else ""
            raise DataError(
                f"{origin}: {spec.name}[{index}] has shape {value.shape}, the model takes {spec.shape}{longest}"
            )
        if value.dtype.kind != np.dtype(spec.dtype).kind:
            raise DataError(f"{origin}: {spec.name} is {value.dtype}, the model takes {spec.dtype}")
        inputs[spec.name] = _as_dtype(f"{origin}: {spec.name}[{index}]", value.reshape(shape), spec.dtype)
    if bucket is not None:
        _check_lengths(origin, bucket, inputs, index)
    for name, array in arrays.items():
        if name != SPLIT and np.asarray(array).dtype.kind not in "biuf":
            raise DataError(f"{origin}: {name}[{index}] holds {np.asarray(array).dtype}, not numbers")
    targets = {
        name.removeprefix(TARGET_PREFIX): np.asarray(array)
        for name, array in arrays.items()
        if name.startswith(TARGET_PREFIX)
    }
    return ArraySample(inputs, targets, frozenset(arrays) & inputs.keys())


def _as_dtype(where: str, value: np.ndarray, dtype: str) -> np.ndarray:
    """The same numbers in another width.

    Raises:
        DataError: for numbers that the width does not hold.
    """
    with np.errstate(over="ignore"):
        made = np.ascontiguousarray(value, dtype=dtype)
    if made.dtype.kind == "f" and bool((np.isfinite(value) & ~np.isfinite(made)).any()):
        raise DataError(f"{where} holds numbers that {dtype} does not")
    if made.dtype.kind in "iu" and not np.array_equal(made, value):
        raise DataError(f"{where} holds {value.min()} to {value.max()}, which {dtype} does not")
    return made


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...], varying: Sequence[int]) -> bool:
    return len(shape) == len(wanted) and all(
        1 <= size <= limit if axis in varying else size == limit
        for axis, (size, limit) in enumerate(zip(shape, wanted, strict=True))
    )


def _check_lengths(origin: str, bucket: BucketSpec, inputs: Mapping[str, np.ndarray], index: int) -> None:
    for pad in bucket.pad:
        first = next(other for other in bucket.pad if other.dim == pad.dim)
        sizes = inputs[first.tensor].shape[first.axis], inputs[pad.tensor].shape[pad.axis]
        if sizes[0] != sizes[1]:
            raise DataError(
                f"{origin}: {pad.dim} of sample {index} is {sizes[0]} in {first.tensor} and {sizes[1]} in {pad.tensor}"
            )
