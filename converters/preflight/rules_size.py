"""Rules of preflight: what is too large, or too small to pay."""

from __future__ import annotations

import math
from collections.abc import Iterator

from edgeattn.converters.preflight.graph import Call
from edgeattn.converters.preflight.rule import Issue, Question, at, is_first
from edgeattn.converters.preflight.view import GraphView
from edgeattn.engines import ENGINES
from edgeattn.spec import ModelSpec

TILE = 16  # K and N of a matrix product on tensor cores and DOT instructions
LARGE_CONSTANT = 64 * 2**20  # bytes
FLATBUFFER_MAX = 2**31 - 1  # bytes of a TFLite file
WEIGHT_SHARE = {"fp32": 1.0, "fp16": 0.5, "int8": 0.25}
ENGINE_SHARE = 0.5  # of a device's memory; the system, the engine's workspace and the application need the rest


def memory_need(spec: ModelSpec, weights_bytes: int, activation_bytes: int = 0) -> int:
    """Bytes that a model takes on a device at the least: weights, states twice (read and written), activations.

    Args:
        weights_bytes: in the precision that ships.
        activation_bytes: of the graph that needs most, see ``Figures.activation_bytes``; without it inputs and
            outputs stand in.
    """
    states = 2 * sum(state.nbytes for graph in spec.graphs for state in graph.states)
    border = max(sum(t.nbytes for t in (*graph.all_inputs, *graph.all_outputs)) for graph in spec.graphs)
    return weights_bytes + states + max(activation_bytes, border)


def memory(view: GraphView, question: Question) -> Iterator[Issue]:
    """Weights, activations and states against the target's memory."""
    available = question.target.memory_bytes
    if available is None:
        return
    activations = 0 if view.figures is None else view.figures.activation_bytes
    weights = question.model.source_size_bytes
    needs = {
        p: memory_need(question.model.spec, int(weights * WEIGHT_SHARE[p]), activations) for p in question.precisions
    }
    short = {p: need for p, need in needs.items() if need > available}
    tight = {p: need for p, need in needs.items() if available * ENGINE_SHARE < need <= available}
    for severity, found, words in (
        ("stops" if len(short) == len(needs) else "risk", short, "more than"),
        ("risk", tight, "more than half of"),
    ):
        if found:
            shown = ", ".join(f"{p} {need / 1e9:.3g} GB" for p, need in found.items())
            yield Issue(
                severity,  # type: ignore[arg-type]
                f"weights, activations and states take {shown}: {words} the {available / 1e9:.3g} GB of "
                f"{question.target.name}",
                "choose a smaller model, a shorter input, a lower precision or a target with more memory",
            )


def small_product(view: GraphView, question: Question) -> Iterator[Issue]:
    """Linear layers with K or N below a tile, which int8 leaves float."""
    if "int8" not in question.precisions or view.error:
        return
    products = [call for call in view.graph.calls if call.op in ("linear", "addmm", "mm")]
    linears = [call for call in products if _weight(view, call) is not None]
    small = [call for call in linears if min(_weight(view, call) or (TILE,)) < TILE]
    rows = {call.name: math.prod(size or 1 for size in call.shape[:-1]) for call in linears}
    static = "int8-dynamic" not in ENGINES[question.engine].tried  # OpenVINO's dynamic int8 takes single rows as well
    taken = [call for call in linears if call not in small and (rows[call.name] > 1 or not static)]
    if not taken and len(question.model.spec.graphs) == 1:
        yield Issue(
            "stops" if question.precisions == ("int8",) else "risk",
            f"no linear layer has K and N of at least {TILE} and more than one row: nothing is worth int8",
            "ship fp16",
        )
        return
    for call in small:
        yield at(
            call,
            "slow",
            f"K or N is below {TILE}: int8 pads it to a tile and gains nothing; it stays float",
            "nothing, or a wider layer",
        )


def _weight(view: GraphView, call: Call) -> tuple[int, ...] | None:
    shapes = [tuple(view.graph.constants[n].shape) for n in call.inputs if n in view.graph.constants]
    return next((tuple(shape) for shape in shapes if len(shape) == 2), None)


def large_constant(view: GraphView, question: Question) -> Iterator[Issue]:
    """A table that is no weight and takes much room, such as a causal mask for the longest input."""
    weights = {name for name, _ in question.model.modules[view.spec.name].named_parameters()}
    for name, tensor in view.graph.constants.items():
        size = tensor.numel() * tensor.element_size()
        shown = view.graph.constant_names.get(name, name)
        if size > LARGE_CONSTANT and not any(weight.endswith(shown) for weight in weights):
            reader = next(iter(view.graph.readers(name)), None)
            yield Issue(
                "risk",
                f"a constant of {size / 2**20:.0f} MiB that is no weight goes into the file",
                "compute it in forward, or cut it to the length that is used",
                shown,
                reader.module if reader else "",
                reader.line if reader else "",
            )


def flatbuffer_size(view: GraphView, question: Question) -> Iterator[Issue]:
    """Weights beyond what a TFLite file holds."""
    if question.model.source_size_bytes > FLATBUFFER_MAX and is_first(view, question):
        yield Issue(
            "stops",
            f"{question.model.source_size_bytes / 1e9:.2f} GB of float32 weights: a TFLite file holds 2.15 GB",
            "split the model into graphs, prune it, or choose a target with another engine",
            predicted=True,
        )
