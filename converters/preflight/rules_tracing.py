"""Rules of preflight: what a static graph cannot hold."""

from __future__ import annotations

import re
from collections.abc import Iterator

from edgeattn.converters.preflight.graph import Call
from edgeattn.converters.preflight.rule import NO_CHANGE, Issue, Question, Severity, at, given_as_file, is_first
from edgeattn.converters.preflight.view import GraphView
from edgeattn.engines import LITERT, ONNXRUNTIME, OPENVINO, TENSORRT

MAX_RANK = 4  # of the mobile GPU delegate
TENSORRT_MAX_RANK = 8
BROADCAST_MAX_RANK = 6  # of TFLite


def untraceable(view: GraphView, question: Question) -> Iterator[Issue]:
    """A forward that torch.export cannot follow, such as a branch on values."""
    if view.error and not given_as_file(view, question):
        told = re.sub(r"^graph '.*?': ", "", view.error)
        reason = re.split(r" \(unhinted| {2}\(Size-like| A branch depends", told)[0]
        change = "take the branch on values out of forward, or write it with torch.where; fix sizes and give a mask"
        if view.refusal:
            change = "write the operation in a torch factory, or choose a target with another engine"
        yield Issue("stops", reason, change, line=view.error_line)


def padded_positions(view: GraphView, _: Question) -> Iterator[Issue]:
    """Padded positions of an ``nn.TransformerEncoder``, where it gives zeros in inference."""
    if view.zeroed:
        yield Issue(
            "handled",
            "at padded positions nn.TransformerEncoder gives zeros in inference, and so does what is converted",
            NO_CHANGE,
        )
    if view.mismatch:
        reason, _colon, change = re.sub(r"^graph '.*?': ", "", view.mismatch).partition(": ")
        yield Issue("stops", reason, change)


def varying_dimension(view: GraphView, question: Question) -> Iterator[Issue]:
    """An axis that may vary, without buckets."""
    dims = question.model.dims.get(view.spec.name, {})
    bucketed = {graph for bucket in getattr(question.model.spec, "buckets", ()) for graph in bucket.graphs}
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
        npu = question.engine == OPENVINO.name
        yield Issue(
            "risk",
            f"dimension {name} varies, and is fixed at the example's {sizes.get(name, '?')}: shorter inputs must be "
            f"padded, longer ones do not fit{' (an NPU takes static shapes only)' if npu else ''}",
            f"give --bucket {name}=... with the sizes of use",
        )


VALUE_SIZED = frozenset(
    ("nonzero", "masked_select", "unique_consecutive", "_unique2", "unique_dim", "item", "_local_scalar_dense")
)

SELECTED = "keep all rows and return the mask beside them (torch.where, masked sum), or take a fixed number with topk"
PADDED_FORM = {
    "unique_consecutive": "return every step and a mask (ids[1:] != ids[:-1]); a CTC decoder drops repeats after it",
    "_unique2": "sort, and return which values differ from the one before",
    "unique_dim": "sort, and return which rows differ from the one before",
    "repeat_interleave": "give output_size, or repeat by a fixed number, or gather with fixed positions and a mask",
    **dict.fromkeys(("nonzero", "index", "where", "masked_select"), SELECTED),
}
"""Operation -> the form of a fixed size that is usual in its place."""


def cut_samples(view: GraphView, question: Question) -> Iterator[Issue]:
    """Samples of the data that are longer than the model's largest size."""
    if question.cut and is_first(view, question):
        yield Issue(
            "risk",
            f"{question.cut}: what is beyond is never seen, here and in use",
            "convert for longer ones, with a larger --bucket NAME=SIZE",
        )


def value_dependent_shape(view: GraphView, question: Question) -> Iterator[Issue]:
    """A size that depends on values: nonzero, masked_select, a mask as an index, item."""
    for call in view.graph.calls:
        if not _sized_by_values(view, call):
            continue
        severity: Severity = "stops"
        reaches = any(None in view.graph.shape_of(name) for name in view.graph.outputs)
        if question.engine in (ONNXRUNTIME.name, OPENVINO.name) and not reaches:
            severity = "risk"
        yield at(
            call,
            severity,
            f"the size of what {call.op} makes depends on values; {question.engine} needs static shapes",
            PADDED_FORM.get(call.op, "keep the full size and give a mask (torch.where, masked sum)"),
        )


def _sized_by_values(view: GraphView, call: Call) -> bool:
    made_here = any(None in shape for _, shape in call.outputs)
    inherited = any(None in view.graph.shape_of(name) for name in call.inputs)
    return (made_here and not inherited) or (call.op in VALUE_SIZED and not inherited)


def high_rank(view: GraphView, question: Question) -> Iterator[Issue]:
    """Tensors of more axes than a delegate takes."""
    for call in view.graph.calls:
        rank = len(call.shape)
        if rank > TENSORRT_MAX_RANK and question.engine == TENSORRT.name:
            yield at(call, "stops", f"{rank} axes, TensorRT takes {TENSORRT_MAX_RANK}", "merge axes with reshape", True)
        elif question.engine == LITERT.name and rank > BROADCAST_MAX_RANK and _broadcasts(view, call):
            yield at(
                call, "stops", f"{rank} axes, TFLite broadcasts over {BROADCAST_MAX_RANK}", "merge axes with reshape"
            )
        elif rank > MAX_RANK and question.engine == LITERT.name and call.dtype == "float32":
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
        len(call.inputs) == 1 or any(view.graph.shape_of(name) != call.shape for name in call.inputs)
    )
