"""Rules of preflight: operations that an engine lacks, or runs badly."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from edgeattn.converters.preflight import tried as ops
from edgeattn.converters.preflight.graph import PRODUCTS, SOFTMAX, VIEWS, Call
from edgeattn.converters.preflight.rule import NO_CHANGE, Issue, Question, at, given_as_file
from edgeattn.converters.preflight.rules_tracing import MAX_RANK
from edgeattn.converters.preflight.view import GraphView
from edgeattn.converters.transposed import convolved_otherwise
from edgeattn.engines import LITERT, TENSORRT

PARTITIONS = 2  # of the LiteRT delegate that cost nothing worth a row


def unsupported_operation(view: GraphView, question: Question) -> Iterator[Issue]:
    """An operation that the engine or its converter lacks."""
    if given_as_file(view, question):
        return
    for call in view.graph.calls:
        why = ops.refused(view, call, question.engine)
        if why:
            yield at(call, "stops", f"{call.op}: {why}", ops.substitute(call.op))


def complex_number(view: GraphView, question: Question) -> Iterator[Issue]:
    """A complex tensor that no pass could tell by its real and imaginary part."""
    if given_as_file(view, question):
        return
    change = "write it with real tensors: torch.view_as_real, or its real and imaginary part apart"
    for call in view.graph.calls:
        if call.name in view.refused:
            yield at(call, "stops", f"{call.op} of a complex tensor {view.refused[call.name]}", change)


def untried_operation(view: GraphView, question: Question) -> Iterator[Issue]:
    """An operation that was never converted by edgeattn's own tests."""
    for call in view.graph.calls:
        if call.overload.startswith("aten.") and not ops.known(call.overload):
            yield at(
                call,
                "risk",
                f"{call.op} is not among the operations that were tried on {question.engine}; conversion tells",
                "nothing, if it converts",
                True,
            )


def litert_forms(view: GraphView, _: Question) -> Iterator[Issue]:
    """A convolution that LiteRT lacks, and gets in others."""
    for call in view.graph.calls:
        given = dict(enumerate(call.arguments))
        if call.op == "conv3d":
            otherwise = given.get(6, 1) != 1
        elif call.op.startswith("conv_transpose"):
            kernel = [size or 1 for size in view.graph.shape_of(call.inputs[1])[2:]]
            sizes = [list(given.get(place, default)) for place, default in ((3, [1]), (4, [0]), (5, [0]), (7, [1]))]
            otherwise = convolved_otherwise(kernel, *(s * (len(kernel) if len(s) == 1 else 1) for s in sizes))
        else:
            continue
        if otherwise:
            yield at(call, "handled", f"{call.op}: LiteRT has it in plain convolutions over two axes", NO_CHANGE)


def litert_partitions(view: GraphView, _: Question) -> Iterator[Issue]:
    """Operations in the middle of a graph that XNNPACK leaves to LiteRT's own kernels, which cut it into partitions."""
    cut = Partitions(view)
    if cut.count > PARTITIONS:
        kinds = ", ".join(dict.fromkeys(call.op for call in cut.cutting))
        yield at(
            cut.cutting[0],
            "slow",
            f"XNNPACK leaves out {kinds}: about {cut.count} partitions, with reference kernels and copies between them",
            "move these operations before or behind the model, or write them with arithmetic that XNNPACK has",
            True,
        )


class Partitions:
    """What LiteRT's delegate is expected to take.

    LiteRT takes in turn all operations of one kind (delegated, not delegated) that can run, so an operation's turn is
    the first of its kind that is not before those of its inputs; partitions are the delegated turns.

    Attributes:
        count: of partitions.
        cutting: operations between two of them.
    """

    def __init__(self, view: GraphView) -> None:
        turn: dict[str, int] = {}
        delegated: set[int] = set()
        left_out: list[Call] = []
        fixed = ops.folded(view)
        for call in view.graph.calls:
            before = max((turn[name] for name in call.inputs if name in turn), default=0)
            if call.name in fixed:
                continue
            if call.op in VIEWS or call.op in ops.NOTHING:
                turn[call.name] = before
                continue
            taken = not ops.undelegated(view, call)
            turn[call.name] = before if (before % 2 == 0) == taken else before + 1
            if taken:
                delegated.add(turn[call.name])
            else:
                left_out.append(call)
        self.count = len(delegated)
        first, last = min(delegated, default=0), max(delegated, default=0)
        self.cutting = tuple(call for call in left_out if first < turn[call.name] < last)


def wide_integers(view: GraphView, question: Question) -> Iterator[Issue]:
    """int64 inputs and outputs, and int16 where an engine has none."""
    short = [t.name for t in (*view.spec.all_inputs, *view.spec.all_outputs) if t.dtype == "int16"]
    if short and question.engine == TENSORRT.name:
        yield Issue(
            "stops",
            f"TensorRT has no int16, which {', '.join(short)} {'is' if len(short) == 1 else 'are'}",
            "let forward take and give int32 there: a session widens what it is given",
        )
    wide = [t.name for t in (*view.spec.all_inputs, *view.spec.all_outputs) if t.dtype == "int64"]
    if not wide:
        return
    if question.engine == LITERT.name:
        yield Issue(
            "handled",
            f"int64 {', '.join(wide)} become int32 in the file; the runtime narrows and widens",
            "nothing, while values fit 32 bits",
        )
    elif question.engine == TENSORRT.name:
        yield Issue(
            "risk",
            f"TensorRT 8.6 computes int64 {', '.join(wide)} in int32; 10 keeps it",
            "keep values below 2^31",
        )


def cache_update(view: GraphView, question: Question) -> Iterator[Issue]:
    """A cache or state written by index, and sums by index."""
    for call in view.graph.calls:
        if call.op not in (
            "index_copy",
            "index_put",
            "scatter",
            "scatter_add",
            "scatter_reduce",
            "slice_scatter",
            "index_copy_",
        ):
            continue
        if call.op in ops.SUMS:
            if question.engine in (LITERT.name, TENSORRT.name):
                yield at(
                    call,
                    "slow",
                    f"{call.op} becomes a comparison of every place with every index: {ops.dense_scatter(view, call)} "
                    "of them",
                    "nothing for short lists; for long ones a product with a table that is known (a fixed graph)",
                    True,
                )
        elif not ({call.name} & ops.folded(view)) and question.engine == LITERT.name and call.op != "slice_scatter":
            yield at(
                call,
                "slow",
                f"{call.op} becomes a scatter, which XNNPACK leaves to a reference kernel",
                "move caches with cat and a slice of fixed size: torch.cat([cache, new], dim)[:, -length:]",
                True,
            )
        elif question.engine == TENSORRT.name:
            yield at(
                call,
                "slow",
                f"{call.op} becomes ScatterND, which TensorRT cannot fuse into attention",
                "move caches with cat and a slice of fixed size: torch.cat([cache, new], dim)[:, -length:]",
                True,
            )


def grouped_expand(view: GraphView, _: Question) -> Iterator[Issue]:
    """Keys and values repeated by expand for grouped queries."""
    for call in view.graph.calls:
        source = view.graph.shape_of(call.inputs[0]) if call.inputs else ()
        if call.op != "expand" or len(call.shape) <= MAX_RANK or len(source) != len(call.shape):
            continue
        grown = [axis for axis, (a, b) in enumerate(zip(source, call.shape, strict=True)) if a == 1 and b != 1]
        copying = ("reshape", "view", "clone", "_unsafe_view", "flatten")
        if grown and any(reader.op in copying for reader in view.graph.readers(call.name)):
            yield at(
                call,
                "risk",
                "grouped queries by expand on 5 axes: BROADCAST_TO, which LiteRT's GPU delegate refuses (LiteRT#9191)",
                "torch.repeat_interleave over the heads, or cat of the heads",
                True,
            )


def mask_of_other_rank(view: GraphView, _: Question) -> Iterator[Issue]:
    """A mask with fewer axes than the scores that it is added to."""
    for call in view.graph.calls:
        if call.op != "add" or len(call.inputs) != 2 or not reaches_softmax(view, call.name):
            continue
        ranks = [len(view.graph.shape_of(name)) for name in call.inputs]
        if min(ranks) and max(ranks) == MAX_RANK and min(ranks) < max(ranks):
            yield at(
                call,
                "risk",
                f"a mask of {min(ranks)} axes on scores of {max(ranks)}: mobile GPU delegates take equal ranks only",
                "give the mask its axes: mask[None, None]",
                True,
            )


def reaches_softmax(view: GraphView, name: str, depth: int = 6) -> bool:
    """Whether a softmax reads a value, with at most ``depth`` operations in between."""
    return any(
        reader.op in SOFTMAX
        or (
            depth > 0
            and reader.op in VIEWS | {"add", "mul", "div", "to", "where", "masked_fill"}
            and reaches_softmax(view, reader.name, depth - 1)
        )
        for reader in view.graph.readers(name)
    )


def scaled_scores(view: GraphView, _: Question) -> Iterator[Issue]:
    """A scale on the scores in place of the queries."""
    for call in view.graph.calls:
        if call.op not in ("mul", "div") or not call.inputs or not reaches_softmax(view, call.name):
            continue
        made = view.graph.maker(call.inputs[0])
        if made is None or made.op not in PRODUCTS - {"linear"}:
            continue
        if len(call.inputs) == 1 or call.inputs[1] in view.graph.constants or call.inputs[1] in ops.folded(view):
            yield at(call, "handled", "the scale stands on the scores: pass scale_on_query moves it", NO_CHANGE)
        elif math.prod(size or 0 for size in view.graph.shape_of(call.inputs[1])) == 1:
            yield at(
                call,
                "slow",
                "a computed scale stands on the scores: L x L more multiplications, and TensorRT's fused attention "
                "wants it on the queries (TensorRT#4537)",
                "scale the queries: (q * scale) @ k.transpose(-1, -2)",
                True,
            )


def position_table(view: GraphView, _: Question) -> Iterator[Issue]:
    """A table of positions in a graph that carries states: the stream ends where the table ends."""
    if not view.spec.states:
        return
    for call in view.graph.calls:
        table = next((n for n in call.inputs if n in view.graph.constants), None)
        if table is None or call.op not in ("embedding", "index_select", "index", "gather", "slice", "select"):
            continue
        shape = view.graph.constants[table].shape
        by_position = any("pos" in root for name in call.inputs if name != table for root in _roots(view, name))
        named = by_position or re.search(
            r"(^|[._])(pos|position|wpe|embed_positions|position_embeddings?|pos_emb\w*)([._]|$)",
            view.graph.constant_names.get(table, ""),
        )
        indexed = any(_roots(view, name) for name in call.inputs if name != table)
        if named and len(shape) >= 2 and indexed:
            rows = max(shape[:-1]) - max((_offset(view, name) for name in call.inputs if name != table), default=0)
            yield at(
                call,
                "risk",
                f"{view.graph.constant_names[table]} ends after {rows} positions: step {rows + 1} of a stream has none",
                "use relative positions (a bias per head, rotary), or reset the states before the table ends",
            )


def _offset(view: GraphView, name: str) -> int:
    """What is added to a position before its row is read, 2 in BART's tables."""
    made = view.graph.maker(name)
    while made is not None and made.op in VIEWS and made.inputs:
        made = view.graph.maker(made.inputs[0])
    if made is None or made.op != "add":
        return 0
    numbers = [value for value in made.arguments if isinstance(value, int)]
    read = [view.graph.constants[name] for name in made.inputs if name in view.graph.constants]
    constants = [tensor for tensor in read if tensor.numel() == 1]
    return numbers[0] if numbers else int(constants[0].item()) if constants else 0


def _roots(view: GraphView, name: str) -> set[str]:
    """The inputs of the graph that a node depends on."""
    made = view.graph.maker(name)
    found = {view.graph.inputs[name]} if name in view.graph.inputs else set()
    return found.union(*(_roots(view, inner) for inner in made.inputs)) if made is not None else found


def passed_through(view: GraphView, _: Question) -> Iterator[Issue]:
    """Outputs that are inputs handed through, or one tensor under two names."""
    for name, shown in view.graph.outputs.items():
        made = view.graph.maker(name)
        if (
            made is not None
            and made.op == "clone"
            and made.inputs
            and (made.inputs[0] in view.graph.inputs or made.inputs[0] in view.graph.outputs)
        ):
            yield at(
                made,
                "handled",
                f"output {shown} is {view.graph.inputs.get(made.inputs[0], 'another output')} unchanged: it is copied, "
                "engines need a tensor of its own for each name",
                "drop the output, and keep the value outside of the model",
            )


def one_name_twice(view: GraphView, _: Question) -> Iterator[Issue]:
    """One name for an input and an output."""
    for name in sorted(set(view.spec.input_names) & set(view.spec.output_names)):
        yield Issue(
            "handled",
            f"{name!r} names an input and an output: {view.spec.stored_outputs[name]!r} is that output in the file "
            "alone",
            NO_CHANGE,
        )
