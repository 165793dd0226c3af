"""Buckets: a model whose inputs vary in length becomes one graph per size, and padding is proved to change nothing.

Edge engines plan memory for static shapes. So ``main`` with ``seq`` of 64, 128 and 256 becomes ``main_64``,
``main_128`` and ``main_256``, on the same weights; the runtime pads a call to the smallest that it fits into and cuts
the outputs (:mod:`edgeattn.runtimes.buckets`). That is right only if the model hides padded positions, which is
checked here with numbers, before anything is converted.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.errors import InputError, ModelError, unknown_name
from edgeattn.evaluation.parity import MAX_ABS_FP32
from edgeattn.model import Arrays, EdgeModel, graph_from_example
from edgeattn.runtimes.buckets import run_padded
from edgeattn.spec import HIDDEN, BucketSpec, CutAxis, GraphSpec, ModelSpec, PaddedAxis

if TYPE_CHECKING:
    import torch

Sizes = Mapping[str, int]
Buckets = Mapping[str, Sequence[int]]

MAX_GRAPHS = 64  # per graph of the model; each is converted, compiled and measured
MAX_SIZE = 2**24
BATCH = ("batch", "batch_size")  # names of the first axis, where a model declares none
SHORTER = ((3, 4), (1, 2), (7, 8), (1, 1))  # shares of a bucket to try as the length of the input that is padded


def parse_buckets(options: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """``["seq=64,128", "tgt=32"]`` -> dimension -> sizes, each once and ascending.

    Raises:
        InputError: for another form, a size that is no positive integer, or a dimension given twice.
    """
    buckets: dict[str, tuple[int, ...]] = {}
    for option in options:
        name, equals, sizes = option.partition("=")
        name = name.strip()
        if not equals or not name or not sizes.strip():
            raise InputError(f"--bucket {option}: expected NAME=SIZE,SIZE such as seq=64,128,256")
        if name in buckets:
            raise InputError(f"--bucket {name} is given twice; list all its sizes in one: {name}=64,128")
        buckets[name] = tuple(_size(option, text.strip()) for text in sizes.split(","))
    return checked_buckets(buckets)


def parse_fills(options: Sequence[str]) -> dict[str, float]:
    """``["mask=1", "ids=-100"]`` -> input -> value.

    Raises:
        InputError: for another form, a value that is no finite number, or an input given twice.
    """
    fills: dict[str, float] = {}
    for option in options:
        name, equals, text = (part.strip() for part in option.partition("="))
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not equals or not name or not math.isfinite(value):
            raise InputError(f"--fill {option}: expected INPUT=NUMBER such as mask=1")
        if name in fills:
            raise InputError(f"--fill {name} is given twice")
        fills[name] = value
    return fills


def _size(option: str, text: str) -> int:
    if not re.fullmatch(r"[+-]?\d{1,18}", text):
        raise InputError(f"--bucket {option}: {text!r} is not a whole number; expected NAME=SIZE,SIZE")
    return int(text)


def checked_buckets(buckets: Buckets) -> dict[str, tuple[int, ...]]:
    """Sizes ascending and each once: their order carries no meaning, so any is taken.

    Raises:
        InputError: for sizes that are no integers from 1 to :data:`MAX_SIZE`, or none at all.
    """
    for name, sizes in buckets.items():
        if not isinstance(sizes, (tuple, list)) or not sizes:
            raise InputError(f"bucket {name}: expected at least one size, got {sizes!r}")
        for size in sizes:
            if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= MAX_SIZE:
                raise InputError(f"bucket {name}: sizes are whole numbers from 1 to {MAX_SIZE}, got {size!r}")
    return {name: tuple(sorted(set(sizes))) for name, sizes in buckets.items()}


def with_buckets(model: EdgeModel, buckets: Buckets, fills: Mapping[str, float] | None = None) -> EdgeModel:
    """A model with one graph per size, weights shared.

    Args:
        model: whose :attr:`~edgeattn.model.EdgeModel.dims` say which axes vary. Where it declares none, a name stands
            for axis 1 (``batch`` for axis 0) of every input that is there as long as in the first such input; and
            ``INPUT.AXIS``, or several joined by ``+``, always names axes themselves.
        buckets: dimension -> sizes. Several dimensions of one graph give every combination. A model that declares
            buckets itself has the others from there.
        fills: input -> what its padded positions hold; what is not given is the model's, else 0.

    Returns:
        the model itself if there is no bucket at all.

    Raises:
        InputError: for an unknown dimension or input, a size that the model cannot take (with forward's own message),
            outputs whose sizes follow no input, or a model whose results padding changes.
    """
    wanted = checked_buckets({**model.buckets, **buckets})
    if not wanted:
        if fills:
            raise InputError(f"--fill {next(iter(fills))}: nothing is padded without --bucket NAME=SIZE,SIZE")
        return model
    filled = {**model.fills, **(fills or {})}
    _check_fill_names(model, filled)
    parts: list[_Part] = []
    found: set[str] = set()
    for graph in model.spec.graphs:
        axes = _axes(model, graph, wanted)
        found |= {dim for _, _, dim in axes}
        parts.append(_Part(model, graph, axes, wanted, filled))
    missing = sorted(set(wanted) - found)
    if missing:
        raise InputError(_unknown_dimension(model, missing[0]))
    if model.spec.stream is not None:
        raise InputError(f"{model.spec.name} is a stream: its chunk has one size, and it takes no bucket")
    sized, rebuild = _assembled(model, parts), model.rebuild
    if rebuild is None:
        return sized
    return replace(sized, rebuild=lambda network: with_buckets(rebuild(network), buckets, fills))


@dataclass(frozen=True)
class _Part:
    """A graph with the axes of it that get buckets: (input, axis, dimension)."""

    model: EdgeModel
    graph: GraphSpec
    axes: tuple[tuple[str, int, str], ...]
    buckets: Mapping[str, tuple[int, ...]]
    fills: Mapping[str, float]

    @property
    def dims(self) -> tuple[str, ...]:
        """Dimensions of this graph, in the order of its inputs."""
        return tuple(dict.fromkeys(dim for _, _, dim in self.axes))

    def combinations(self) -> list[dict[str, int]]:
        """Every combination of sizes, the smallest volume first.

        Raises:
            InputError: if there are more than :data:`MAX_GRAPHS`.
        """
        count = math.prod(len(self.buckets[dim]) for dim in self.dims)
        if count > MAX_GRAPHS:
            raise InputError(
                f"{count} combinations of bucket sizes for graph {self.graph.name!r}: {MAX_GRAPHS} at most"
            )
        every = itertools.product(*(self.buckets[dim] for dim in self.dims))
        return sorted((dict(zip(self.dims, sizes, strict=True)) for sizes in every), key=_volume)

    def inputs(self, sizes: Sizes) -> Arrays:
        """The example at other sizes: repeated or shortened, so that its values stay in their range."""
        arrays = dict(self.model.example[self.graph.name])
        for name, axis, dim in self.axes:
            arrays[name] = np.take(arrays[name], np.arange(sizes[dim]) % arrays[name].shape[axis], axis)
        return arrays

    def made(self, sizes: Sizes) -> tuple[torch.nn.Module, Any]:
        """The module for these sizes, and its ONNX where the source is one."""
        if self.model.resize is not None:
            return self.model.resize(self.graph.name, self.inputs(sizes))
        return self.model.modules[self.graph.name], None

    def run(self, module: torch.nn.Module, inputs: Arrays) -> Arrays:
        """Outputs of the source by name; what forward raises passes through."""
        import torch

        names = self.graph.input_names
        with torch.inference_mode():
            given = {name: torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in names}
            return {name: value.numpy() for name, value in module(**given).items()}


def _volume(sizes: Sizes) -> tuple[int, tuple[int, ...]]:
    return math.prod(sizes.values()), tuple(sizes.values())


def _axes(model: EdgeModel, graph: GraphSpec, buckets: Buckets) -> tuple[tuple[str, int, str], ...]:
    """Which axes of a graph get buckets."""
    shapes = {tensor.name: tensor.shape for tensor in graph.inputs}
    states = {state.input for state in graph.states}
    declared = model.dims.get(graph.name, {})
    axes = [(name, axis, dim) for name, by_axis in declared.items() for axis, dim in by_axis.items() if dim in buckets]
    for dim in buckets:
        if _is_known(model, dim):
            continue
        named = _named_axes(dim)
        if named is not None:
            axes += [(name, axis, dim) for name, axis in named if name in shapes]
        elif not any(model.dims.values()):
            place = 0 if dim in BATCH else 1
            long = {name: shape[place] for name, shape in shapes.items() if len(shape) > place}
            axes += [(name, place, dim) for name, size in long.items() if size == next(iter(long.values()))]
    for name, axis, dim in axes:
        if name in states:
            raise InputError(f"{dim} is axis {axis} of the state {name!r}: a state keeps its size from step to step")
        if not 0 <= axis < len(shapes.get(name, ())):
            raise InputError(f"--bucket {dim}: input {name!r} has shape {shapes.get(name)}, and no axis {axis}")
    twice = [axis for axis in axes if sum(axis[:2] == other[:2] for other in axes) > 1]
    if twice:
        raise InputError(f"axis {twice[0][1]} of input {twice[0][0]!r} is in two dimensions: {twice[0][2]} and others")
    order = list(shapes)
    return tuple(sorted(axes, key=lambda found: (order.index(found[0]), found[1])))


def _is_known(model: EdgeModel, dim: str) -> bool:
    return dim in _declared(model)


def _declared(model: EdgeModel) -> list[str]:
    axes = (by_axis for dims in model.dims.values() for by_axis in dims.values())
    return sorted({dim for by_axis in axes for dim in by_axis.values()})


def _named_axes(dim: str) -> list[tuple[str, int]] | None:
    """``input_ids.1+attention_mask.1`` -> pairs of input and axis; None if it is no such name."""
    matches = [re.fullmatch(r"(.+)\.(\d{1,2})", part.strip()) for part in dim.split("+")]
    return [(match[1], int(match[2])) for match in matches if match] if all(matches) else None


def _unknown_dimension(model: EdgeModel, dim: str) -> str:
    inputs = [f"{t.name}{list(t.shape)}" for graph in model.spec.graphs for t in graph.inputs]
    if _named_axes(dim) is not None:
        return f"--bucket {dim}: there is no such input. Inputs: {', '.join(inputs)}"
    declared = _declared(model)
    if declared:
        return f"{unknown_name('dimension', dim, declared)}. An axis can be named too: {_axis_of(model)}"
    return f"--bucket {dim}: no input has a second axis that could be {dim}. Inputs: {', '.join(inputs)}"


def _axis_of(model: EdgeModel) -> str:
    return next((f"{t.name}.{len(t.shape) - 1}" for t in model.spec.graphs[0].inputs if t.shape), "x.0")


def _check_fill_names(model: EdgeModel, fills: Mapping[str, float]) -> None:
    names = {tensor.name for graph in model.spec.graphs for tensor in graph.inputs}
    unknown = sorted(set(fills) - names)
    if unknown:
        raise InputError(f"fill: {unknown_name('input', unknown[0], names)}")


def _assembled(model: EdgeModel, parts: Sequence[_Part]) -> EdgeModel:
    graphs: list[GraphSpec] = []
    buckets: list[BucketSpec] = []
    modules: dict[str, torch.nn.Module] = {}
    examples: dict[str, Arrays] = {}
    onnx: dict[str, Any] = {}
    for part in parts:
        name = part.graph.name
        if not part.axes:
            graphs.append(part.graph)
            modules[name], examples[name] = model.modules[name], model.example[name]
            onnx |= {name: model.onnx[name]} if name in model.onnx else {}
            continue
        made = _sized_graphs(part)
        graphs += [sized.spec for sized in made]
        buckets.append(_bucket(part, made))
        modules |= {sized.spec.name: sized.module for sized in made}
        examples |= {sized.spec.name: sized.inputs for sized in made}
        onnx |= {sized.spec.name: sized.onnx for sized in made if sized.onnx is not None}
    try:
        spec = ModelSpec(model.spec.name, model.spec.task, tuple(graphs), model.spec.stream, tuple(buckets))
    except ValueError as error:
        raise InputError(str(error)) from error
    dims = {name: dims for name, dims in model.dims.items() if name in modules}
    return replace(
        model, spec=spec, modules=modules, example=examples, onnx=onnx, dims=dims, buckets={}, fills={}, resize=None
    )


@dataclass(frozen=True)
class _Sized:
    """A graph in one size."""

    spec: GraphSpec
    sizes: Sizes
    module: torch.nn.Module
    inputs: Arrays
    outputs: Arrays
    onnx: Any


def _sized_graphs(part: _Part) -> list[_Sized]:
    return [_sized(part, sizes) for sizes in part.combinations()]


def _sized(part: _Part, sizes: Sizes) -> _Sized:
    inputs = part.inputs(sizes)
    try:
        module, onnx = part.made(sizes)
        outputs = part.run(module, inputs)
    except Exception as error:
        raise InputError(_refused(part, sizes, error)) from error
    name = "_".join([part.graph.name, *(str(sizes[dim]) for dim in part.dims)])
    carried = {state.input: state.output for state in part.graph.states}
    for name_, value in outputs.items():
        if value.dtype.kind == "f" and np.isnan(value).any():
            raise InputError(f"{_words(sizes)}: output {name_} is NaN; leave that size out or mend the model")
    try:
        spec = graph_from_example(name, inputs, outputs, carried)
    except ValueError as error:
        raise InputError(f"{_words(sizes)}: {error}") from error
    changed = [s.input for s in part.graph.states if outputs[s.output].shape != s.shape]
    if changed:
        raise InputError(
            f"{_words(sizes)}: the state {changed[0]!r} changes its size with it; a state must keep its size"
        )
    return _Sized(spec, sizes, module, inputs, outputs, onnx)


def _words(sizes: Sizes) -> str:
    return "bucket " + ", ".join(f"{dim}={size}" for dim, size in sizes.items())


def _refused(part: _Part, sizes: Sizes, error: BaseException) -> str:
    """Forward's own words, and whether the size is below or above what the model was given as its example."""
    said = " ".join(str(error).split())[:300] or type(error).__name__
    shapes = {name: part.model.example[part.graph.name][name].shape[axis] for name, axis, _ in part.axes}
    known = {dim: shapes[name] for name, _, dim in part.axes}
    side = next(("less" if sizes[d] < known[d] else "more" for d in sizes if sizes[d] != known[d]), None)
    others = [t.name for t in part.graph.inputs if t.name not in shapes and len(t.shape) > 1]
    if others and not isinstance(error, ModelError):
        why = f" Inputs {', '.join(others)} keep their size; name axes that go along, such as {_joined(part)}"
    else:
        why = "" if side is None else f" Most likely that is {side} than the model takes"
    return f"{_words(sizes)}: forward of graph {part.graph.name!r} refuses it: {said}.{why}"


def _joined(part: _Part) -> str:
    others = [t for t in part.graph.inputs if t.name not in {name for name, _, _ in part.axes} and len(t.shape) > 1]
    axes = [f"{name}.{axis}" for name, axis, _ in part.axes] + [f"{others[0].name}.{len(others[0].shape) - 1}"]
    return "+".join(axes)


def _bucket(part: _Part, made: Sequence[_Sized]) -> BucketSpec:
    """Which axes are padded and cut, and the proof that padding changes nothing.

    Raises:
        InputError: if a shorter input does not give what it gives padded, or no other size runs to compare with.
    """
    pad = tuple(PaddedAxis(name, axis, dim, float(part.fills.get(name, 0.0))) for name, axis, dim in part.axes)
    short, room = _shorter(part, made)
    cut = _cut_axes(part, [*made, short])
    bucket = BucketSpec(part.graph.name, tuple(sized.spec.name for sized in made), pad, cut)
    try:
        ModelSpec("check", "check", tuple(sized.spec for sized in made), buckets=(replace(bucket, name="check"),))
    except ValueError as error:
        raise InputError(str(error)) from error
    for sized in dict.fromkeys((room, made[-1].spec.name)):
        fits = next(other for other in made if other.spec.name == sized)
        if all(fits.sizes[dim] >= size for dim, size in short.sizes.items()):
            _prove(part, bucket, short, fits)
    return bucket


def _shorter(part: _Part, made: Sequence[_Sized]) -> tuple[_Sized, str]:
    """The source on an input shorter than a bucket, and the bucket that it goes into."""
    for sized in made:
        for number, (share, whole) in itertools.product(range(2), SHORTER):
            # Different lengths for different dimensions, so that an output's length names its dimension.
            sizes = {
                dim: max(1, size * share // whole - (index + number if share < whole else index + 1))
                for index, (dim, size) in enumerate(sized.sizes.items())
            }
            if all(sizes[dim] == sized.sizes[dim] for dim in sizes):
                continue
            try:
                return _sized(part, sizes), sized.spec.name
            except InputError:
                continue
    dims = " and ".join(part.dims)
    raise InputError(
        f"{_words(made[0].sizes)}: forward of graph {part.graph.name!r} takes no shorter {dims}, so nothing can be "
        "padded: give inputs of one size and leave --bucket away, or take a larger bucket"
    )


def _cut_axes(part: _Part, runs: Sequence[_Sized]) -> tuple[CutAxis, ...]:
    """Output axes that are as long as a padded axis in every run.

    Raises:
        InputError: for an axis that changes and is not.
    """
    cut = []
    for output in runs[0].spec.outputs:
        for axis, _ in enumerate(output.shape):
            lengths = [run.outputs[output.name].shape[axis] for run in runs]
            if len(set(lengths)) == 1:
                continue
            like = [(n, a) for n, a, dim in part.axes if lengths == [run.sizes[dim] for run in runs]]
            if not like:
                sizes = "; ".join(_words(run.sizes).removeprefix("bucket ") for run in runs)
                raise InputError(
                    f"axis {axis} of output {output.name!r} has the sizes {lengths} for {sizes}: no input is as long, "
                    "so it cannot be cut to what it would be unpadded. Leave --bucket away, or return the input length"
                )
            cut.append(CutAxis(output.name, axis, *like[0]))
    return tuple(cut)


def _prove(part: _Part, bucket: BucketSpec, short: _Sized, room: _Sized) -> None:
    worst = _padding_changes(part, bucket, short, room)
    if worst is None:
        return
    name, difference = worst
    works = _fill_that_works(part, bucket, short, room)
    masks = [t.name for t in part.graph.inputs if "mask" in t.name or t.dtype == "bool"]
    if works:
        help_ = (
            f"it does not if {works[0]!r} is filled with {works[1]:g}: pass --fill {works[0]}={works[1]:g} or declare"
        )
        help_ += f" fills={{{works[0]!r}: {works[1]:g}}}"
    elif masks:
        help_ = f"{', '.join(masks)} must hide padded positions: declare a fill, name its axis, or mask before pooling"
    else:
        help_ = "give forward a mask input (attention_mask) that hides padded positions, among the example inputs too"
    raise InputError(
        f"{_words(room.sizes)}: padding changes output {name!r} by {difference:.1e} (an input of "
        f"{_words(short.sizes).removeprefix('bucket ')}): {help_}. Or leave --bucket away and give inputs of one size"
    )


def _padding_changes(part: _Part, bucket: BucketSpec, short: _Sized, room: _Sized) -> tuple[str, float] | None:
    """The output that differs most when the short input is padded, None if all are equal within rounding."""
    outputs = run_padded(bucket, room.spec, short.inputs, lambda padded: part.run(room.module, padded))
    worst: tuple[str, float] | None = None
    for name, got in outputs.items():
        wanted = short.outputs[name]
        if wanted.dtype.kind != "f":
            difference = 0.0 if np.array_equal(wanted, got) else float("inf")
        else:
            scale = max(1.0, float(np.abs(wanted).max(initial=0.0)))
            difference = float(np.abs(wanted.astype(np.float64) - got).max(initial=0.0)) / scale
        if not difference <= MAX_ABS_FP32 and (worst is None or not difference <= worst[1]):
            worst = name, difference
    return worst


def _fill_that_works(part: _Part, bucket: BucketSpec, short: _Sized, room: _Sized) -> tuple[str, float] | None:
    """A fill of one mask-like input under which padding would change nothing: to name it, never to take it."""
    for pad in bucket.pad:
        dtype = next(t.dtype for t in part.graph.inputs if t.name == pad.tensor)
        for fill in (1.0,) if dtype == "bool" else (HIDDEN,) if dtype.startswith("float") else (1.0,):
            changed = tuple(replace(p, fill=fill) if p.tensor == pad.tensor else p for p in bucket.pad)
            with contextlib.suppress(Exception):  # a fill that forward cannot take is none to name
                if _padding_changes(part, replace(bucket, pad=changed), short, room) is None:
                    return pad.tensor, fill
    return None
