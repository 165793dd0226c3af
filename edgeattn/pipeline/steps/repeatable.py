"""Confidence in the source itself, before anything is converted: an artifact can only repeat what repeats itself.

Two calls on the same inputs must give the same outputs, bit by bit: torch on a CPU computes the same inputs in the same
order. A call on other inputs comes in between, so that what the first leaves behind (a cache in a buffer, a counter)
shows. A row of a batch must not depend on the rows beside it; kernels for other sizes round differently, so that is
held to :data:`ROUNDING`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.errors import ModelError
from edgeattn.model import Arrays, EdgeModel

if TYPE_CHECKING:
    import torch

ROUNDING = 1e-5  # relative to the largest value of an output; float32 kernels for two rows differ by 1e-6
MOST_NAMED = 3
SLOW_SECONDS = 1.0  # of a call, beyond which one other input is tried in place of several


@dataclass(frozen=True)
class Difference:
    """Where two calls differ.

    Attributes:
        largest: absolute; infinite where one is NaN or infinite and the other is not.
        relative: to the largest finite value of the output.
    """

    graph: str
    output: str
    largest: float
    relative: float


def confirmed(model: EdgeModel) -> EdgeModel:
    """The model, with a note where a row of a batch depends on its neighbours.

    Raises:
        ModelError: if it gives other outputs when it is called again, naming the output and the likely cause.
    """
    found = repeat_difference(model)
    if found is not None:
        raise ModelError(
            f"output {found.output} of graph {found.graph!r} is another when the model is called again on the same "
            f"inputs (largest difference {found.largest:.3g}), with a call on other inputs in between: "
            f"{_cause(model, found.graph)}. No artifact could be compared with it"
        )
    note = batch_note(model)
    return model if note is None or note in model.notes else replace(model, notes=(*model.notes, note))


def repeat_difference(model: EdgeModel) -> Difference | None:
    """The first output that two calls on the example differ in, a call on changed inputs in between; None if none do.

    One size of each graph is tried: the sizes of a graph share their modules.
    """
    for graphs in model.spec.units().values():
        name = graphs[0].name
        example = model.example[name]
        first, seconds = _called(model, name)
        for other in _others(example, seconds):
            with contextlib.suppress(Exception):  # forward may refuse inputs in any way
                model.run(other, name)
        found = _difference(name, first, model.run(example, name), 0.0)
        if found is not None:
            return found
    return None


def batch_note(model: EdgeModel) -> str | None:
    """What to know where a row's answer depends on the rows beside it, or on their order.

    Tried where every input and output of a graph has one row along its first axis; a source that takes one row alone is
    as good as any.
    """
    for graphs in model.spec.units().values():
        graph = graphs[0]
        example = model.example[graph.name]
        if any(tensor.shape[:1] != (1,) for tensor in (*graph.all_inputs, *graph.all_outputs)):
            continue
        alone, seconds = _called(model, graph.name)
        for other in _others(example, seconds):
            with contextlib.suppress(Exception):  # made for one row, or these inputs are refused
                pair = [(example, other), (other, example)]
                for place, rows in enumerate(pair[: 1 if seconds > SLOW_SECONDS else 2]):
                    both = _run_rows(model.modules[graph.name], rows)
                    if any(both[name].shape != (2, *alone[name].shape[1:]) for name in alone):
                        break
                    row = {name: both[name][place : place + 1] for name in alone}
                    found = _difference(graph.name, alone, row, ROUNDING)
                    if found is not None:
                        return (
                            f"a row of a batch depends on the rows beside it: output {found.output} of graph "
                            f"{found.graph!r} differs by {found.relative:.1e} of its largest value between a batch of "
                            "one and of two; the bundle answers as a batch of one does (batch norm in training mode, "
                            "or a softmax or mean over axis 0?)"
                        )
    return None


def _called(model: EdgeModel, graph: str) -> tuple[Arrays, float]:
    """What the source gives on the example, and how long it takes."""
    began = time.monotonic()
    return _copied(model.run(model.example[graph], graph)), time.monotonic() - began


def _others(example: Mapping[str, np.ndarray], seconds: float) -> Iterator[Arrays]:
    """:func:`changed`; the last of them alone where a call is slow."""
    others = list(changed(example))
    yield from others[-1:] if seconds > SLOW_SECONDS else others


def changed(example: Mapping[str, np.ndarray]) -> Iterator[Arrays]:
    """Inputs beside an example: the same rolled along the last axis, and its floats shrunk and moved as well.

    Ids stay in their range and masks keep what they show.
    """
    rolled = {name: np.roll(value, 1, -1) if value.ndim else value for name, value in example.items()}
    yield rolled
    yield {
        name: (value * 0.5 + 0.25).astype(value.dtype) if value.dtype.kind == "f" else value
        for name, value in rolled.items()
    }


def _run_rows(module: torch.nn.Module, rows: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]) -> Arrays:
    import torch

    with torch.no_grad():
        stacked = {name: torch.from_numpy(np.concatenate([row[name] for row in rows])) for name in rows[0]}
        return {name: tensor.numpy() for name, tensor in module(**stacked).items()}


def _copied(outputs: Mapping[str, np.ndarray]) -> Arrays:
    return {name: array.copy() for name, array in outputs.items()}  # it may be a view of what the next call writes


def _difference(
    graph: str, first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], bound: float
) -> Difference | None:
    for name, one in first.items():
        two = second[name]
        if one.shape != two.shape:
            return Difference(graph, name, np.inf, np.inf)
        if np.array_equal(one, two, equal_nan=one.dtype.kind == "f"):
            continue
        wide, other = one.astype(np.float64), two.astype(np.float64)
        finite = np.isfinite(wide) & np.isfinite(other)
        same = finite | (wide == other) | (np.isnan(wide) & np.isnan(other))
        if not same.all():
            return Difference(graph, name, np.inf, np.inf)
        largest = float(np.abs(wide[finite] - other[finite]).max(initial=0.0))
        relative = largest / max(float(np.abs(wide[finite]).max(initial=0.0)), float(np.finfo(np.float32).tiny))
        if relative > bound:
            return Difference(graph, name, largest, relative)
    return None


def _cause(model: EdgeModel, graph: str) -> str:
    """What of a module is likely to blame: buffers that a call writes, random numbers, training mode."""
    import torch

    module = model.modules[graph]
    buffers = {name: tensor.clone() for name, tensor in module.named_buffers()}
    drawn = torch.get_rng_state()
    model.run(next(changed(model.example[graph])), graph)
    written = [name for name, tensor in module.named_buffers() if not torch.equal(tensor, buffers[name])]
    training = [name or "the module itself" for name, part in module.named_modules() if part.training]
    if written:
        return f"forward writes buffer {_listed(written)}: make it a state, an input that comes back as an output"
    if not torch.equal(drawn, torch.get_rng_state()):
        where = f" ({_listed(training)} in training mode: call .eval())" if training else ""
        return f"forward draws random numbers, as dropout and sampling do{where or ': pass them as an input'}"
    if training:
        return f"{_listed(training)} in training mode: call .eval()"
    return "forward keeps something between calls, or draws random numbers from elsewhere than torch"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
