"""Rules of preflight: values that do not fit into what an engine computes in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from edgeattn.converters.preflight import tried as ops
from edgeattn.converters.preflight.graph import Call
from edgeattn.converters.preflight.rule import NO_CHANGE, Issue, Question, at
from edgeattn.converters.preflight.rules_operations import reaches_softmax
from edgeattn.converters.preflight.view import GraphView
from edgeattn.spec import HALF_MAX, HIDDEN

NORM_MAX = 32.0  # |x| of a norm whose square is far from what float16 ends at
SQUARE_MAX = math.sqrt(HALF_MAX)  # 255.9: beyond it x^2 is infinite in float16
SCORE_MAX = 64.0  # a float16 step is 0.06 there, 6 % of the softmax's weight
OUTLIER = 64.0  # max |x| over RMS: 127 steps then leave two for the usual value


def decomposed_norm(view: GraphView, question: Question) -> Iterator[Issue]:
    """LayerNorm or RMSNorm written out."""
    if "fp16" not in question.precisions and "int8" not in question.precisions:
        return
    for call in view.graph.calls:
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
    made = view.graph.maker(name)
    if made is None or made.op != "sub" or len(made.inputs) != 2:
        return False
    mean = view.graph.maker(made.inputs[1])
    return mean is not None and mean.op == "mean" and mean.inputs[:1] == made.inputs[:1]


def _is_mean_square(view: GraphView, call: Call, depth: int = 4) -> bool:
    for name in call.inputs:
        made = view.graph.maker(name)
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
        made = view.graph.maker(name)
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


def large_square(view: GraphView, question: Question) -> Iterator[Issue]:
    """x^2 beyond float16's range in the calibration batch."""
    if view.ranges is None or "fp16" not in question.precisions:
        return
    for call in view.graph.calls:
        largest = view.ranges.largest.get(call.inputs[0], 0.0) if call.inputs else 0.0
        if _is_square(call) and largest > SQUARE_MAX:
            yield at(
                call,
                "risk",
                f"x^2 with |x| up to {largest:.3g}: more than float16 holds. edgeattn keeps the square in float32; an "
                "engine that halves by itself does not",
                "normalise before squaring, or keep fp32 on engines that choose types themselves",
            )


def large_value(view: GraphView, question: Question) -> Iterator[Issue]:
    """Values beyond float16's range in the calibration batch."""
    if view.ranges is None or "fp16" not in question.precisions:
        return
    for call in view.graph.calls:
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
        or reaches_softmax(view, call.name)
        or any(reader.op == "scaled_dot_product_attention" for reader in view.graph.readers(call.name))
    )


def residual_outliers(view: GraphView, question: Question) -> Iterator[Issue]:
    """Inputs of linear layers with single values far beyond the rest."""
    if view.ranges is None or "int8" not in question.precisions:
        return
    for call in view.graph.calls:
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


def softmax_range(view: GraphView, question: Question) -> Iterator[Issue]:
    """Scores so large that float16 rounds them to whole per cents of weight."""
    if view.ranges is None or "fp16" not in question.precisions:
        return
    for call in view.graph.calls:
        largest = view.ranges.scores.get(call.name, 0.0)
        if largest > SCORE_MAX:
            yield at(
                call,
                "risk",
                f"scores reach {largest:.3g}: float16 has steps of {_half_step(largest):.3g} there, and the softmax "
                "turns them into factors",
                "normalise queries and keys, or ask for fp32",
            )


def hidden_scores(view: GraphView, _: Question) -> Iterator[Issue]:
    """Scores so large that a mask no longer hides what it should: it becomes -1e4."""
    if view.ranges is None:
        return
    for call in view.graph.calls:
        largest = view.ranges.scores.get(call.name, 0.0)
        if largest > -HIDDEN / 2:
            yield at(
                call,
                "risk",
                f"scores reach {largest:.3g}, and what a mask hides is {-HIDDEN:.0f} below the others: it would show",
                "normalise or scale queries and keys",
            )


def _half_step(value: float) -> float:
    return float(2.0 ** (math.floor(math.log2(value)) - 10))


def large_constant_value(view: GraphView, question: Question) -> Iterator[Issue]:
    """-inf, or a constant beyond float16's range."""
    if "fp16" not in question.precisions and "int8" not in question.precisions:
        return
    for name, tensor in view.graph.constants.items():
        value = _worst(tensor)
        if value is not None:
            reader = next(iter(view.graph.readers(name)), None)
            where = Issue(
                "risk",
                "",
                "",
                view.graph.constant_names.get(name, name),
                reader.module if reader else "",
                reader.line if reader else "",
            )
            yield _constant_hit(where, value)
    for call in view.graph.calls:
        scalars = [v for v in (*call.arguments, *call.options.values()) if isinstance(v, float)]
        worst = next((v for v in scalars if abs(v) > HALF_MAX), None)
        if worst is not None and call.op not in ("clamp", "clamp_min", "clamp_max", "slice"):
            yield _constant_hit(at(call, "risk", "", ""), worst)


def _constant_hit(where: Issue, value: float) -> Issue:
    hides = value < 0
    reason = (
        f"{value:.3g} is beyond float16's {HALF_MAX:g}"
        + (": a row that is hidden as a whole becomes NaN" if math.isinf(value) else "")
        + (f"; edgeattn writes {-HALF_MAX:g} in fp16" if hides and not math.isinf(value) else "")
    )
    change = f"hide with {HIDDEN:g} and not with -inf" if hides else "scale the constant, or ask for fp32"
    return Issue("risk", reason, change, where.node, where.module, where.line)


def _worst(tensor: Any) -> float | None:
    """A value of a constant that float16 does not hold."""
    if not tensor.is_floating_point() or not tensor.numel():
        return None
    low, high = (float(value) for value in tensor.aminmax())
    return low if low < -HALF_MAX else high if high > HALF_MAX else None
