"""What a traced graph costs: multiply-adds, memory, and where its attention is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from edgeattn.converters.preflight.graph import PRODUCTS, SOFTMAX, VIEWS, Call, TracedGraph
from edgeattn.graphs.work import (
    Lifetime,
    attention_macs,
    convolution_macs,
    einsum_macs,
    peak_bytes,
    recurrent_macs,
    transposed_convolution_macs,
)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one call of a graph.

    Attributes:
        parameters: number of weights; each once.
        macs: multiply-adds. ``flops`` adds one per element of every other result.
        activation_bytes: largest sum of tensors that live at the same time, in the types of the source.
        attention: places of attention, module path or node.
    """

    parameters: int
    macs: int
    flops: int
    activation_bytes: int
    attention: tuple[str, ...]


def figures_of(graph: TracedGraph, parameters: int) -> Figures:
    """Count a graph; sizes that depend on values count as 1."""
    macs = {call.name: macs_of(graph, call) for call in graph.calls}
    others = (
        call
        for call in graph.calls
        if not macs[call.name] and call.op not in VIEWS and call.dtype.startswith(("float", "bf"))
    )
    total = sum(macs.values())
    return Figures(
        parameters=parameters,
        macs=total,
        flops=2 * total + sum(math.prod(size or 1 for size in call.shape) for call in others),
        activation_bytes=activation_peak(graph),
        attention=tuple(attention_blocks(graph)),
    )


def macs_of(graph: TracedGraph, call: Call) -> int:
    """Multiply-adds of one operation; 0 for all that is no product. Sizes that depend on values count as 1."""
    shapes = [tuple(size or 1 for size in graph.shape_of(name)) for name in call.inputs]
    result = tuple(size or 1 for size in call.shape)
    match call.op:
        case "linear" | "matmul" | "mm" | "bmm" | "mv" | "dot":
            return math.prod(result) * shapes[0][-1] if shapes and shapes[0] else 0
        case "addmm" | "baddbmm" | "addbmm":
            return math.prod(result) * shapes[1][-1] if len(shapes) > 1 else 0
        case "scaled_dot_product_attention" if len(shapes) >= 3:
            return attention_macs(*shapes[:3])
        case "einsum" if call.arguments and isinstance(call.arguments[0], str):
            return einsum_macs(call.arguments[0], shapes)
        case "lstm" | "gru" | "rnn_tanh" | "rnn_relu":
            return recurrent_macs(shapes[0][:-1], [s for s in shapes if len(s) == 2]) if shapes else 0
    if call.op.startswith("conv_transpose") and len(shapes) > 1:
        return transposed_convolution_macs(shapes[0], shapes[1])
    if call.op.startswith(("conv1d", "conv2d", "conv3d", "convolution")) and len(shapes) > 1:
        return convolution_macs(result, shapes[1])
    return 0


def activation_peak(graph: TracedGraph) -> int:
    """Bytes of the tensors that live at once at the worst moment, inputs, states and outputs always among them.

    A view lives in the tensor that it shows. Engines fuse and so need less, or keep packed copies and need more.
    """
    steps = [
        Lifetime(
            inputs=call.inputs,
            outputs={call.name: call.nbytes},
            views=call.inputs[0] if call.op in VIEWS and call.inputs else None,
        )
        for call in graph.calls
    ]
    bound = {tensor.name: tensor.nbytes for tensor in graph.spec.all_inputs}
    given = {node: bound[name] for node, name in graph.inputs.items() if name in bound}
    return peak_bytes(steps, given, graph.outputs)


def attention_blocks(graph: TracedGraph) -> Iterator[str]:
    """Where attention is computed: one torch op, or a softmax between two products."""
    for call in graph.calls:
        written_out = call.op in SOFTMAX and scores_of(graph, call) is not None and feeds_product(graph, call.name)
        if written_out or call.op == "scaled_dot_product_attention":
            yield call.module or call.name


THROUGH = VIEWS | frozenset((
    "add", "sub", "mul", "div", "masked_fill", "where", "to", "_to_copy", "clamp", "clamp_min", "maximum",
))  # fmt: skip
"""What may stand between the product of queries and keys and its softmax."""


def scores_of(graph: TracedGraph, call: Call, depth: int = 8) -> Call | None:
    """The product that a softmax's input comes from, through masks, scale and views."""
    for name in call.inputs if depth else ():
        made = graph.maker(name)
        if made is not None and made.op in PRODUCTS - {"linear"}:
            return made
        if made is not None and made.op in THROUGH:
            found = scores_of(graph, made, depth - 1)
            if found is not None:
                return found
    return None


def feeds_product(graph: TracedGraph, name: str, depth: int = 4) -> bool:
    """Whether a node reaches a product of two tensors through views alone."""
    return any(
        reader.op in PRODUCTS - {"linear"}
        or (depth > 0 and reader.op in THROUGH and feeds_product(graph, reader.name, depth - 1))
        for reader in graph.readers(name)
    )
