"""The rules of preflight over a traced graph: one small function each, in the table :data:`RULES`.

A rule yields a :class:`Hit` per place. Severity is honest: ``stops`` only where conversion really fails today (a test
converts every known-bad case and holds the rules to it), ``slow`` where the engine runs it badly, ``risk`` else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgeattn.converters import preflight_ops as ops
from edgeattn.converters.half import HALF_MAX
from edgeattn.converters.preflight_view import PRODUCTS, SOFTMAX, VIEWS, Call, GraphView
from edgeattn.model import EdgeModel
from edgeattn.spec import HIDDEN, ModelSpec
from edgeattn.targets import Target

Severity = Literal["stops", "slow", "risk", "handled"]

ALL = ("tensorrt", "openvino", "litert", "onnxruntime")
ONNX_ENGINES = ("tensorrt", "openvino", "onnxruntime")  # reached through an ONNX file
HALF_ENGINES = ("tensorrt", "onnxruntime")  # fp16 computes in float16 there; elsewhere it only stores weights so
STATIC_INT8 = ("tensorrt", "openvino", "onnxruntime")  # activation ranges come from calibration

NORM_MAX = 32.0  # |x| of a norm whose square is far from what float16 ends at
SQUARE_MAX = math.sqrt(HALF_MAX)  # 255.9: beyond it x^2 is infinite in float16
SCORE_MAX = 64.0  # a float16 step is 0.06 there, 6 % of the softmax's weight
OUTLIER = 64.0  # max |x| over RMS: 127 steps then leave two for the usual value
NO_CHANGE = "nothing needs to be done"
TILE = 16  # K and N of a matrix product on tensor cores and DOT instructions
LONG_ATTENTION = 512
MAX_RANK = 4  # of the mobile GPU delegate
TENSORRT_MAX_RANK = 8
BROADCAST_MAX_RANK = 6  # of TFLite
LARGE_CONSTANT = 64 * 2**20  # bytes
FLATBUFFER_MAX = 2**31 - 1  # bytes of a TFLite file
PARTITIONS = 2  # of the LiteRT delegate that cost nothing worth a row
WEIGHT_SHARE = {"fp32": 1.0, "fp16": 0.5, "int8": 0.25}
ENGINE_SHARE = 0.5  # of a device's memory; the system, the engine's workspace and the application need the rest


@dataclass(frozen=True)
class Ask:
    """What is asked: a model on an engine of a target in some precisions.

    Attributes:
        calibrated: whether calibration data is given.
        ranges: whether every int8 that is asked for takes ranges from calibration; False if one works without.
    """

    model: EdgeModel
    target: Target
    engine: str
    precisions: tuple[str, ...]
    calibrated: bool
    ranges: bool = True


@dataclass(frozen=True)
class Hit:
    """A rule's find at one place; hits of the same reason are shown as one row.

    Attributes:
        node: its name in the traced graph or the ONNX file; empty for a graph as a whole.
        predicted: whether an engine would have to confirm it.
    """

    severity: Severity
    reason: str
    change: str
    node: str = ""
    module: str = ""
    line: str = ""
    predicted: bool = False


@dataclass(frozen=True)
class Rule:
    """A rule; the first line of its function's docstring is what the documentation says of it.

    Attributes:
        find: from a graph and what is asked to its hits.
        engines: where it applies.
        severities: that it may give.
    """

    find: Callable[[GraphView, Ask], Iterator[Hit]]
    engines: tuple[str, ...]
    severities: tuple[Severity, ...]

    @property
    def sees(self) -> str:
        """What it looks for."""
        return (self.find.__doc__ or "").partition("\n")[0].rstrip(".")


def at(call: Call, severity: Severity, reason: str, change: str, predicted: bool = False) -> Hit:
    """A hit at a traced operation."""
    return Hit(severity, reason, change, call.name, call.module, call.line, predicted)


# The request ----------------------------------------------------------------------------------------------------------


def missing_precision(view: GraphView, ask: Ask) -> Iterator[Hit]:
    """A precision that the engine does not have on the target."""
    offered = next((names for engine, names in ask.target.precisions.items() if engine == ask.engine), ())
    missing = [p for p in ask.precisions if p not in offered]
    if missing and _is_first(view, ask):
        left = len(missing) < len(ask.precisions)
        yield Hit(
            "risk" if left else "stops",
            f"{ask.engine} on {ask.target.name} has no {', '.join(missing)}",
            f"ask for {' or '.join(offered) or 'another engine'}",
        )


def missing_calibration(view: GraphView, ask: Ask) -> Iterator[Hit]:
    """int8 without data where ranges come from calibration."""
    if "int8" in ask.precisions and not ask.calibrated and _is_first(view, ask):
        only = ask.precisions == ("int8",) and ask.ranges
        without = "" if only else "; int8 is left out" if ask.ranges else "; activations are quantized as they come"
        yield Hit(
            "stops" if only else "risk",
            f"static int8 takes the ranges of its activations from data, and none is given{without}",
            "give --data with inputs like those of use" + (", or ask for fp16" if only else ""),
        )


def memory_need(spec: ModelSpec, weights_bytes: int, activation_bytes: int = 0) -> int:
    """Bytes that a model takes on a device at the least: weights, states twice (read and written), activations.

    Args:
        weights_bytes: in the precision that ships.
        activation_bytes: of the graph that needs most, see ``GraphView.activation_bytes``; without it inputs and
            outputs stand in.
    """
    states = 2 * sum(state.nbytes for graph in spec.graphs for state in graph.states)
    border = max(sum(t.nbytes for t in (*graph.all_inputs, *graph.all_outputs)) for graph in spec.graphs)
    return weights_bytes + states + max(activation_bytes, border)


def memory(view: GraphView, ask: Ask) -> Iterator[Hit]:
    """Weights, activations and states against the target's memory."""
    available = ask.target.memory_bytes
    if available is None:
        return
    needs = {
        p: memory_need(ask.model.spec, int(ask.model.source_size_bytes * WEIGHT_SHARE[p]), view.activation_bytes)
        for p in ask.precisions
    }
    short = {p: need for p, need in needs.items() if need > available}
    tight = {p: need for p, need in needs.items() if available * ENGINE_SHARE < need <= available}
    for severity, found, words in (
        ("stops" if len(short) == len(needs) else "risk", short, "more than"),
        ("risk", tight, "more than half of"),
    ):
        if found:
            shown = ", ".join(f"{p} {need / 1e9:.3g} GB" for p, need in found.items())
            yield Hit(
                severity,  # type: ignore[arg-type]
                f"weights, activations and states take {shown}: {words} the {available / 1e9:.3g} GB of "
                f"{ask.target.name}",
                "choose a smaller model, a shorter input, a lower precision or a target with more memory",
            )


def _is_first(view: GraphView, ask: Ask) -> bool:
    return view.spec.name == ask.model.spec.graphs[0].name


# Tracing and shapes ---------------------------------------------------------------------------------------------------


def untraceable(view: GraphView, ask: Ask) -> Iterator[Hit]:
    """A forward that torch.export cannot follow, such as a branch on values."""
    from_onnx = view.onnx is not None and ask.engine in ONNX_ENGINES
    if view.error and not from_onnx:
        told = re.sub(r"^graph '.*?': ", "", view.error)
        reason = re.split(r" \(unhinted| {2}\(Size-like| A branch depends", told)[0]
        change = "take the branch on values out of forward, or write it with torch.where; fix sizes and give a mask"
        if view.refusal:
            change = "write the operation in a torch factory, or choose a target with another engine"
        yield Hit("stops", reason, change, line=view.error_line)


def padded_positions(view: GraphView, _: Ask) -> Iterator[Hit]:
    """Outputs that read what ``nn.TransformerEncoder`` writes at padded positions."""
    if view.mismatch:
        reason, _colon, change = re.sub(r"^graph '.*?': ", "", view.mismatch).partition(": ")
        yield Hit("stops", reason, change)


def varying_dimension(view: GraphView, ask: Ask) -> Iterator[Hit]:
    """An axis that may vary, without buckets."""
    dims = ask.model.dims.get(view.spec.name, {})
    bucketed = {graph for bucket in getattr(ask.model.spec, "buckets", ()) for graph in bucket.graphs}
    if view.spec.name in bucketed:
        return
    names = sorted({name for axes in dims.values() for name in axes.values()})
    sizes = {
        name: next(t.shape[axis] for t in view.spec.all_inputs if t.name == given)
        for given, axes in dims.items()
        for axis, name in axes.items()
        if any(t.name == given for t in view.spec.all_inputs)
    }
    for name in names:
        npu = ask.engine == "openvino"
        yield Hit(
            "risk",
            f"dimension {name} varies, and is fixed at the example's {sizes.get(name, '?')}: shorter inputs must be "
            f"padded, longer ones do not fit{' (an NPU takes static shapes only)' if npu else ''}",
            f"give --bucket {name}=... with the sizes of use",
        )


VALUE_SIZED = frozenset(
    ("nonzero", "masked_select", "unique_consecutive", "_unique2", "unique_dim", "item", "_local_scalar_dense")
)


def value_dependent_shape(view: GraphView, ask: Ask) -> Iterator[Hit]:
    """A size that depends on values: nonzero, masked_select, a mask as an index, item."""
    for call in view.calls:
        if not _sized_by_values(view, call):
            continue
        severity: Severity = "stops"
        reaches = any(None in view.shape_of(name) for name in view.outputs)
        if ask.engine in ("onnxruntime", "openvino") and not reaches:
            severity = "risk"
        yield at(
            call,
            severity,
            f"the size of what {call.op} makes depends on values; {ask.engine} needs static shapes",
            "keep the full size and give a mask (torch.where, masked sum)",
        )


def _sized_by_values(view: GraphView, call: Call) -> bool:
    made_here = any(None in shape for _, shape in call.outputs)
    inherited = any(None in view.shape_of(name) for name in call.inputs)
    return (made_here and not inherited) or (call.op in VALUE_SIZED and not inherited)


def high_rank(view: GraphView, ask: Ask) -> Iterator[Hit]:
    """Tensors of more axes than a delegate takes."""
    for call in view.calls:
        rank = len(call.shape)
        if rank > TENSORRT_MAX_RANK and ask.engine == "tensorrt":
            yield at(call, "stops", f"{rank} axes, TensorRT takes {TENSORRT_MAX_RANK}", "merge axes with reshape", True)
        elif ask.engine == "litert" and rank > BROADCAST_MAX_RANK and _broadcasts(view, call):
            yield at(
                call, "stops", f"{rank} axes, TFLite broadcasts over {BROADCAST_MAX_RANK}", "merge axes with reshape"
            )
        elif rank > MAX_RANK and ask.engine == "litert" and call.dtype == "float32":
            yield at(
                call,
                "risk",
                f"more than {MAX_RANK} axes: mobile GPU delegates refuse the model; XNNPACK on the CPU takes it",
                "merge the batch with another axis before this operation, or stay on the CPU",
                True,
            )


def _broadcasts(view: GraphView, call: Call) -> bool:
    """Whether an operation spreads a smaller side, or a number, over its result."""
    return call.op in ("add", "sub", "mul", "div", "maximum", "minimum") and (
        len(call.inputs) == 1 or any(view.shape_of(name) != call.shape for name in call.inputs)
    )


# Operations -----------------------------------------------------------------------------------------------------------


def unsupported_operation(view: GraphView, ask: Ask) -> Iterator[Hit]:
    """An operation that the engine or its converter lacks."""
    if view.onnx is not None and ask.engine in ONNX_ENGINES:
        return  # the file itself goes to the engine
    for call in view.calls:
        why = ops.refused(view, call, ask.engine)
        if why:
            yield at(call, "stops", f"{call.op}: {why}", ops.substitute(call.op))


def untried_operation(view: GraphView, ask: Ask) -> Iterator[Hit]:
    """An operation that was never converted by edgeattn's own tests."""
    for call in view.calls:
        if call.overload.startswith("aten.") and not ops.known(call.overload):
            yield at(
                call,
                "risk",
                f"{call.op} is not among the operations that were tried on {ask.engine}; conversion tells",
                "nothing, if it converts",
                True,
            )


def litert_partitions(view: GraphView, _: Ask) -> Iterator[Hit]:
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
        for call in view.calls:
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


def wide_integers(view: GraphView, ask: Ask) -> Iterator[Hit]:
    """int64 inputs and outputs."""
    wide = [t.name for t in (*view.spec.all_inputs, *view.spec.all_outputs) if t.dtype == "int64"]
    if not wide:
        return
    if ask.engine == "litert":
        yield Hit(
            "handled",
            f"int64 {', '.join(wide)} become int32 in the file; the runtime narrows and widens",
            "nothing, while values fit 32 bits",
        )
    elif ask.engine == "tensorrt":
        yield Hit(
            "risk",
            f"TensorRT 8.6 computes int64 {', '.join(wide)} in int32; 10 keeps it",
            "keep values below 2^31",
        )


def cache_update(view: GraphView, ask: Ask) -> Iterator[Hit]:
    """A cache or state written by index."""
    for call in view.calls:
        if call.op not in (
            "index_copy",
            "index_put",
            "scatter",
            "scatter_add",
            "index_add",
            "slice_scatter",
            "index_copy_",
        ):
            continue
        if not ({call.name} & ops.folded(view)) and ask.engine == "litert" and call.op != "slice_scatter":
            yield at(
                call,
                "slow",
                f"{call.op} becomes a scatter, which XNNPACK leaves to a reference kernel",
                "move caches with cat and a slice of fixed size: torch.cat([cache, new], dim)[:, -length:]",
                True,
            )
        elif ask.engine == "tensorrt":
            yield at(
                call,
                "slow",
                f"{call.op} becomes ScatterND, which TensorRT cannot fuse into attention",
                "move caches with cat and a slice of fixed size: torch.cat([cache, new], dim)[:, -length:]",
                True,
            )


def grouped_expand(view: GraphView, _: Ask) -> Iterator[Hit]:
    """Keys and values repeated by expand for grouped queries."""
    for call in view.calls:
        source = view.shape_of(call.inputs[0]) if call.inputs else ()
        if call.op != "expand" or len(call.shape) <= MAX_RANK or len(source) != len(call.shape):
            continue
        grown = [axis for axis, (a, b) in enumerate(zip(source, call.shape, strict=True)) if a == 1 and b != 1]
        if grown and any(
            reader.op in ("reshape", "view", "clone", "_unsafe_view", "flatten") for reader in view.readers(call.name)
        ):
            yield at(
                call,
                "risk",
                "grouped queries by expand on 5 axes: BROADCAST_TO, which LiteRT's GPU delegate refuses (LiteRT#9191)",
                "torch.repeat_interleave over the heads, or cat of the heads",
                True,
            )


def mask_of_other_rank(view: GraphView, _: Ask) -> Iterator[Hit]:
    """A mask with fewer axes than the scores that it is added to."""
    for call in view.calls:
        if call.op != "add" or len(call.inputs) != 2 or not _reaches_softmax(view, call.name):
            continue
        ranks = [len(view.shape_of(name)) for name in call.inputs]
        if min(ranks) and max(ranks) == MAX_RANK and min(ranks) < max(ranks):
            yield at(
                call,
                "risk",
                f"a mask of {min(ranks)} axes on scores of {max(ranks)}: mobile GPU delegates take equal ranks only",
                "give the mask its axes: mask[None, None]",
                True,
            )


def _reaches_softmax(view: GraphView, name: str, depth: int = 6) -> bool:
    return any(
        reader.op in SOFTMAX
        or (
            depth > 0
            and reader.op in VIEWS | {"add", "mul", "div", "to", "where", "masked_fill"}
            and _reaches_softmax(view, reader.name, depth - 1)
        )
        for reader in view.readers(name)
    )


def scaled_scores(view: GraphView, _: Ask) -> Iterator[Hit]:
    """A scale on the scores in place of the queries."""
    for call in view.calls:
        if call.op not in ("mul", "div") or not call.inputs or not _reaches_softmax(view, call.name):
            continue
        made = view.maker(call.inputs[0])
        if made is None or made.op not in PRODUCTS - {"linear"}:
            continue
        if len(call.inputs) == 1 or call.inputs[1] in view.constants or call.inputs[1] in ops.folded(view):
            yield at(call, "handled", "the scale stands on the scores: pass scale_on_query moves it", NO_CHANGE)
        elif math.prod(size or 0 for size in view.shape_of(call.inputs[1])) == 1:
            yield at(
                call,
                "slow",
                "a computed scale stands on the scores: L x L more multiplications, and TensorRT's fused attention "
                "wants it on the queries (TensorRT#4537)",
                "scale the queries: (q * scale) @ k.transpose(-1, -2)",
                True,
            )


def position_table(view: GraphView, _: Ask) -> Iterator[Hit]:
    """A table of positions in a graph that carries states: the stream ends where the table ends."""
    if not view.spec.states:
        return
    for call in view.calls:
        table = next((n for n in call.inputs if n in view.constants), None)
        if table is None or call.op not in ("embedding", "index_select", "index", "gather", "slice", "select"):
            continue
        shape = view.constants[table].shape
        by_position = any("pos" in root for name in call.inputs if name != table for root in _roots(view, name))
        named = by_position or re.search(
            r"(^|[._])(pos|position|wpe|embed_positions|position_embeddings?|pos_emb\w*)([._]|$)",
            view.constant_names.get(table, ""),
        )
        indexed = any(_roots(view, name) for name in call.inputs if name != table)
        if named and len(shape) >= 2 and indexed:
            rows = max(shape[:-1]) - max((_offset(view, name) for name in call.inputs if name != table), default=0)
            yield at(
                call,
                "risk",
                f"{view.constant_names[table]} ends after {rows} positions: step {rows + 1} of a stream has none",
                "use relative positions (a bias per head, rotary), or reset the states before the table ends",
            )


def _offset(view: GraphView, name: str) -> int:
    """What is added to a position before its row is read, 2 in BART's tables."""
    made = view.maker(name)
    while made is not None and made.op in VIEWS and made.inputs:
        made = view.maker(made.inputs[0])
    if made is None or made.op != "add":
        return 0
    numbers = [value for value in made.arguments if isinstance(value, int)]
    constants = [view.constants[n] for n in made.inputs if n in view.constants and view.constants[n].numel() == 1]
    return numbers[0] if numbers else int(constants[0].item()) if constants else 0


def _roots(view: GraphView, name: str) -> set[str]:
    """The inputs of the graph that a node depends on."""
    made = view.maker(name)
    found = {view.inputs[name]} if name in view.inputs else set()
    return found.union(*(_roots(view, inner) for inner in made.inputs)) if made is not None else found


def passed_through(view: GraphView, _: Ask) -> Iterator[Hit]:
    """Outputs that are inputs handed through, or one tensor under two names."""
    for name, shown in view.outputs.items():
        made = view.maker(name)
        if (
            made is not None
            and made.op == "clone"
            and made.inputs
            and (made.inputs[0] in view.inputs or made.inputs[0] in view.outputs)
        ):
            yield at(
                made,
                "handled",
                f"output {shown} is {view.inputs.get(made.inputs[0], 'another output')} unchanged: it is copied, "
                "engines need a tensor of its own for each name",
                "drop the output, and keep the value outside of the model",
            )


def one_name_twice(view: GraphView, _: Ask) -> Iterator[Hit]:
    """One name for an input and an output."""
    for name in sorted(set(view.spec.input_names) & set(view.spec.output_names)):
        yield Hit(
            "stops",
            f"{name!r} names an input and an output, ONNX needs a name for each",
            "rename the output in forward",
        )


# Numbers --------------------------------------------------------------------------------------------------------------


def decomposed_norm(view: GraphView, ask: Ask) -> Iterator[Hit]:
    """LayerNorm or RMSNorm written out."""
    if "fp16" not in ask.precisions and "int8" not in ask.precisions:
        return
    for call in view.calls:
        if call.op != "rsqrt" or not _is_mean_square(view, call):
            continue
        squared = _squared(view, call)
        largest = None if view.ranges is None or squared is None else view.ranges.largest.get(squared)
        if squared is not None and _is_centred(view, squared):
            yield at(call, "handled", "a LayerNorm written out: pass fuse_layer_norm makes it one operation", NO_CHANGE)
        elif largest is not None and largest < NORM_MAX:
            yield at(
                call, "handled", f"an RMSNorm written out is kept in float32; |x| reached {largest:.3g}", NO_CHANGE
            )
        else:
            words = "" if largest is None else f"; |x| reached {largest:.3g} here"
            yield at(
                call,
                "risk",
                "a normalisation written out is kept in float32, but TensorRT 8.6 chooses types itself, and in float16 "
                f"x^2 overflows beyond 256{words}",
                "use TensorRT 10 or torch.nn.LayerNorm, or keep what is normalised small",
                True,
            )


def _is_centred(view: GraphView, name: str) -> bool:
    """Whether a node is x less its mean."""
    made = view.maker(name)
    if made is None or made.op != "sub" or len(made.inputs) != 2:
        return False
    mean = view.maker(made.inputs[1])
    return mean is not None and mean.op == "mean" and mean.inputs[:1] == made.inputs[:1]


def _is_mean_square(view: GraphView, call: Call, depth: int = 4) -> bool:
    for name in call.inputs:
        made = view.maker(name)
        if made is None or depth == 0:
            continue
        if made.op in ("mean", "var", "sum"):
            return True
        if made.op in ("add", "div", "to", "mul") and _is_mean_square(view, made, depth - 1):
            return True
    return False


def _squared(view: GraphView, call: Call, depth: int = 6) -> str | None:
    """The node that is squared on the way to a root."""
    for name in call.inputs if depth else ():
        made = view.maker(name)
        if made is None:
            continue
        if _is_square(made) or made.op == "var":
            return made.inputs[0]
        found = _squared(view, made, depth - 1)
        if found is not None:
            return found
    return None


def _is_square(call: Call) -> bool:
    return (
        call.op == "square"
        or (call.op == "pow" and len(call.arguments) > 1 and call.arguments[1] == 2)
        or (call.op == "mul" and len(call.arguments) > 1 and call.arguments[0] == call.arguments[1])
    )


def large_square(view: GraphView, ask: Ask) -> Iterator[Hit]:
    """x^2 beyond float16's range in the calibration batch."""
    if view.ranges is None or "fp16" not in ask.precisions:
        return
    for call in view.calls:
        largest = view.ranges.largest.get(call.inputs[0], 0.0) if call.inputs else 0.0
        if _is_square(call) and largest > SQUARE_MAX:
            yield at(
                call,
                "risk",
                f"x^2 with |x| up to {largest:.3g}: more than float16 holds. edgeattn keeps the square in float32; an "
                "engine that halves by itself does not",
                "normalise before squaring, or keep fp32 on engines that choose types themselves",
            )


def large_value(view: GraphView, ask: Ask) -> Iterator[Hit]:
    """Values beyond float16's range in the calibration batch."""
    if view.ranges is None or "fp16" not in ask.precisions:
        return
    for call in view.calls:
        largest = view.ranges.largest.get(call.name, 0.0)
        if largest > HALF_MAX and not _is_square(call) and not _only_masks(view, call):
            yield at(
                call,
                "risk",
                f"|x| reached {largest:.3g}, float16 ends at {HALF_MAX:g}: infinity in fp16",
                "scale the weights before it down, or ask for fp32",
            )


def _only_masks(view: GraphView, call: Call) -> bool:
    """Whether a node is a mask: large values that only hide."""
    return (
        call.name in ops.folded(view)
        or _reaches_softmax(view, call.name)
        or any(reader.op == "scaled_dot_product_attention" for reader in view.readers(call.name))
    )


def residual_outliers(view: GraphView, ask: Ask) -> Iterator[Hit]:
    """Inputs of linear layers with single values far beyond the rest."""
    if view.ranges is None or "int8" not in ask.precisions:
        return
    for call in view.calls:
        if call.op != "linear" or not call.inputs:
            continue
        largest, rms = view.ranges.largest.get(call.inputs[0]), view.ranges.rms.get(call.inputs[0], 0.0)
        if largest is not None and rms > 0 and largest > OUTLIER * rms:
            yield at(
                call,
                "risk",
                f"max |x| is {largest / rms:.0f} times the RMS: one int8 scale per tensor leaves the usual value "
                f"{127 * rms / largest:.1f} steps",
                "measure int8 with --data; keep this layer float, or smooth its input into the weights",
            )


def softmax_range(view: GraphView, ask: Ask) -> Iterator[Hit]:
    """Scores so large that float16 rounds them to whole per cents of weight."""
    if view.ranges is None or "fp16" not in ask.precisions:
        return
    for call in view.calls:
        largest = view.ranges.scores.get(call.name, 0.0)
        if largest > SCORE_MAX:
            yield at(
                call,
                "risk",
                f"scores reach {largest:.3g}: float16 has steps of {_half_step(largest):.3g} there, and the softmax "
                "turns them into factors",
                "normalise queries and keys, or ask for fp32",
            )


def _half_step(value: float) -> float:
    return float(2.0 ** (math.floor(math.log2(value)) - 10))


def large_constant_value(view: GraphView, ask: Ask) -> Iterator[Hit]:
    """-inf, or a constant beyond float16's range."""
    if "fp16" not in ask.precisions and "int8" not in ask.precisions:
        return
    for name, tensor in view.constants.items():
        value = _worst(tensor)
        if value is not None:
            reader = next(iter(view.readers(name)), None)
            where = Hit(
                "risk",
                "",
                "",
                view.constant_names.get(name, name),
                reader.module if reader else "",
                reader.line if reader else "",
            )
            yield _constant_hit(where, value)
    for call in view.calls:
        scalars = [v for v in (*call.arguments, *call.options.values()) if isinstance(v, float)]
        worst = next((v for v in scalars if abs(v) > HALF_MAX), None)
        if worst is not None and call.op not in ("clamp", "clamp_min", "clamp_max", "slice"):
            yield _constant_hit(at(call, "risk", "", ""), worst)


def _constant_hit(where: Hit, value: float) -> Hit:
    hides = value < 0
    reason = (
        f"{value:.3g} is beyond float16's {HALF_MAX:g}"
        + (": a row that is hidden as a whole becomes NaN" if math.isinf(value) else "")
        + ("; edgeattn writes -65504 in fp16" if hides and not math.isinf(value) else "")
    )
    change = f"hide with {HIDDEN:g} and not with -inf" if hides else "scale the constant, or ask for fp32"
    return Hit("risk", reason, change, where.node, where.module, where.line)


def _worst(tensor: Any) -> float | None:
    """A value of a constant that float16 does not hold."""
    if not tensor.is_floating_point() or not tensor.numel():
        return None
    low, high = (float(value) for value in tensor.aminmax())
    return low if low < -HALF_MAX else high if high > HALF_MAX else None


def small_product(view: GraphView, ask: Ask) -> Iterator[Hit]:
    """Linear layers with K or N below a tile, which int8 leaves float."""
    if "int8" not in ask.precisions or view.error:
        return
    linears = [call for call in view.calls if call.op in ("linear", "addmm", "mm") and _weight(view, call) is not None]
    small = [call for call in linears if min(_weight(view, call) or (TILE,)) < TILE]
    rows = {call.name: math.prod(size or 1 for size in call.shape[:-1]) for call in linears}
    static = ask.engine in HALF_ENGINES  # OpenVINO's dynamic int8 takes single rows as well
    taken = [call for call in linears if call not in small and (rows[call.name] > 1 or not static)]
    if not taken and len(ask.model.spec.graphs) == 1:
        yield Hit(
            "stops" if ask.precisions == ("int8",) else "risk",
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
    shapes = [tuple(view.constants[n].shape) for n in call.inputs if n in view.constants]
    return next((tuple(shape) for shape in shapes if len(shape) == 2), None)


# Size -----------------------------------------------------------------------------------------------------------------


def large_constant(view: GraphView, ask: Ask) -> Iterator[Hit]:
    """A table that is no weight and takes much room, such as a causal mask for the longest input."""
    weights = {name for name, _ in ask.model.modules[view.spec.name].named_parameters()}
    for name, tensor in view.constants.items():
        size = tensor.numel() * tensor.element_size()
        shown = view.constant_names.get(name, name)
        if size > LARGE_CONSTANT and not any(weight.endswith(shown) for weight in weights):
            reader = next(iter(view.readers(name)), None)
            yield Hit(
                "risk",
                f"a constant of {size / 2**20:.0f} MiB that is no weight goes into the file",
                "compute it in forward, or cut it to the length that is used",
                shown,
                reader.module if reader else "",
                reader.line if reader else "",
            )


def flatbuffer_size(view: GraphView, ask: Ask) -> Iterator[Hit]:
    """Weights beyond what a TFLite file holds."""
    if ask.model.source_size_bytes > FLATBUFFER_MAX and _is_first(view, ask):
        yield Hit(
            "stops",
            f"{ask.model.source_size_bytes / 1e9:.2f} GB of float32 weights: a TFLite file holds 2.15 GB",
            "split the model into graphs, prune it, or choose a target with another engine",
            predicted=True,
        )


RULES: Mapping[str, Rule] = {
    "missing-precision": Rule(missing_precision, ALL, ("stops", "risk")),
    "missing-calibration": Rule(missing_calibration, STATIC_INT8, ("stops", "risk")),
    "memory": Rule(memory, ALL, ("stops", "risk")),
    "untraceable": Rule(untraceable, ALL, ("stops",)),
    "padded-positions": Rule(padded_positions, ALL, ("stops",)),
    "varying-dimension": Rule(varying_dimension, ALL, ("risk",)),
    "value-dependent-shape": Rule(value_dependent_shape, ALL, ("stops", "risk")),
    "high-rank": Rule(high_rank, ("litert", "tensorrt"), ("stops", "risk")),
    "unsupported-operation": Rule(unsupported_operation, ALL, ("stops",)),
    "untried-operation": Rule(untried_operation, ALL, ("risk",)),
    "litert-partitions": Rule(litert_partitions, ("litert",), ("slow",)),
    "wide-integers": Rule(wide_integers, ("litert", "tensorrt"), ("risk", "handled")),
    "cache-update": Rule(cache_update, ("litert", "tensorrt"), ("slow",)),
    "grouped-expand": Rule(grouped_expand, ("litert",), ("risk",)),
    "mask-of-other-rank": Rule(mask_of_other_rank, ("litert",), ("risk",)),
    "scaled-scores": Rule(scaled_scores, ("tensorrt",), ("slow", "handled")),
    "position-table": Rule(position_table, ALL, ("risk",)),
    "passed-through": Rule(passed_through, ALL, ("handled",)),
    "one-name-twice": Rule(one_name_twice, ONNX_ENGINES, ("stops",)),
    "decomposed-norm": Rule(decomposed_norm, ("tensorrt",), ("risk", "handled")),
    "large-square": Rule(large_square, HALF_ENGINES, ("risk",)),
    "large-value": Rule(large_value, HALF_ENGINES, ("risk",)),
    "residual-outliers": Rule(residual_outliers, STATIC_INT8, ("risk",)),
    "softmax-range": Rule(softmax_range, HALF_ENGINES, ("risk",)),
    "large-constant-value": Rule(large_constant_value, HALF_ENGINES, ("risk",)),
    "small-product": Rule(small_product, ("openvino", "tensorrt", "onnxruntime"), ("stops", "slow", "risk")),
    "large-constant": Rule(large_constant, ALL, ("risk",)),
    "file-size": Rule(flatbuffer_size, ("litert",), ("stops",)),
}  # fmt: skip
