"""If, Loop and Scan as the nodes that run: the branch that is taken, each step one after the other.

What depends on values is put in the form that every engine runs, where there is one: both branches and a choice
between their results, and a loop of few steps whose carried values no longer change once it has ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.errors import ModelError, UnsupportedError
from edgeattn.sources.onnx.node_names import renamed
from edgeattn.sources.onnx.values import constant_value, describe

if TYPE_CHECKING:
    import onnx

    from edgeattn.sources.onnx.static import Walk

KINDS = ("If", "Loop", "Scan")
HALTING_STEPS = 64  # of a loop that ends on a value: all of them run


def replaced(walk: Walk, proto: onnx.NodeProto) -> str:
    """Walk over what a node of control flow runs, in its place.

    Returns:
        empty, or why that is not possible: the walk is then as it was.
    """
    held = {attribute.name: attribute.g for attribute in proto.attribute if attribute.HasField("g")}
    if proto.op_type == "If" and walk.values[proto.input[0]].constant is not None:
        _taken(walk, proto, held)
        return ""
    walk.step(proto, 1 + (len(walk.values) + len(walk.kept)) // 64)  # what the copies cost
    saved = (dict(walk.alias), list(walk.kept), dict(walk.values), walk.fresh)
    if proto.op_type == "If":
        why = _chosen(walk, proto, held)
    elif proto.op_type == "Loop":
        why = _loop(walk, proto, held["body"])
    else:
        why = _scan(walk, proto, held["body"])
    if why:
        walk.alias, walk.kept, walk.values, walk.fresh = saved
    return why


def refuse_sizes(proto: onnx.NodeProto, why: str) -> None:
    """Refuse what cannot be replaced and whose results have sizes that depend on values; a plain loop may stay.

    Raises:
        UnsupportedError: naming the node, and what to do.
    """
    loop = proto.op_type == "Loop"
    if loop and len(proto.output) <= len(proto.input) - 2:
        return
    why = f"{why}, and with it the size of what it collects" if loop else why
    change = "give a fixed number of steps and a mask" if loop else "give both branches results of one shape"
    raise UnsupportedError(
        f"{describe(proto)}: {why}; engines plan for one size: {change}, or bind what it depends on with "
        "--set INPUT=VALUE"
    )


def _taken(walk: Walk, proto: onnx.NodeProto, held: Mapping[str, onnx.GraphProto]) -> None:
    condition = walk.values[proto.input[0]].constant
    assert condition is not None
    body = held["then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"]
    for name, inner in zip(proto.output, _inlined(walk, body, _stored(walk, body)), strict=False):
        walk.alias[name] = inner


def _chosen(walk: Walk, proto: onnx.NodeProto, held: Mapping[str, onnx.GraphProto]) -> str:
    """Both branches, and a choice between what they make: no operator has an effect beside its outputs."""
    try:
        both = [_inlined(walk, held[key], _stored(walk, held[key])) for key in ("then_branch", "else_branch")]
    except (UnsupportedError, ModelError) as error:
        return f"its condition depends on values, and a branch is not read: {error}"
    for name, *inner in zip(proto.output, *both, strict=False):
        shapes = [list(walk.values[one].shape) for one in inner]
        types = {walk.values[one].dtype for one in inner}
        if shapes[0] != shapes[1] or len(types) > 1:
            return f"its condition depends on values, and its branches make {shapes[0]} and {shapes[1]} of {name!r}"
    condition = _scalar(walk, proto.input[0], f"{proto.output[0]}.condition")
    for name, *inner in zip(proto.output, *both, strict=False):
        if name:
            _emit(walk, "Where", [condition, *inner], name)
    return ""


def _loop(walk: Walk, proto: onnx.NodeProto, body: onnx.GraphProto) -> str:
    trip, go = (walk.values[name].constant if name else None for name in (*proto.input, "", "")[:2])
    if (proto.input[0] and trip is None) or (len(proto.input) > 1 and proto.input[1] and go is None):
        return "how often it runs depends on values"
    stored = _stored(walk, body)
    count = walk.most if trip is None else int(trip.reshape(-1)[0])
    running = go is None or bool(go.reshape(-1)[0])
    carried = [walk.resolve(name) for name in proto.input[2:]]
    rows: list[list[str]] = [[] for _ in range(len(body.output) - 1 - len(carried))]
    alive = ""  # name of whether it still runs, once that depends on values
    step = 0
    while step < count and running:
        names = [f"{proto.output[0]}.{key}.{step}" for key in ("iteration", "condition")]
        for name, array in zip(names, (np.array(step, np.int64), np.array(True)), strict=True):
            walk.values[name] = constant_value(array)
        walk.step(proto, 4)  # what a step without nodes costs
        bound = {v.name: g for v, g in zip(body.input, [*names, *carried], strict=True)}
        results = _inlined(walk, body, stored | bound)
        after = results[1 : 1 + len(carried)]
        if alive:
            if any(walk.values[a].shape != walk.values[b].shape for a, b in zip(after, carried, strict=True)):
                return "it ends on a value, and what it carries changes its shape"
            after = [
                _emit(walk, "Where", [alive, new, old], f"{new}.kept.{step}")
                for new, old in zip(after, carried, strict=True)
            ]
        answer = walk.values[results[0]].constant
        if answer is None:
            if rows or count > HALTING_STEPS:
                most = (
                    f"runs up to {count} steps, more than {HALTING_STEPS}" if not rows else "makes a row of each step"
                )
                return f"it ends on a value and {most}"
            still = _scalar(walk, results[0], f"{results[0]}.scalar.{step}")
            alive = _emit(walk, "And", [alive, still], f"{results[0]}.alive") if alive else still
        else:
            running = bool(answer.reshape(-1)[0])
        carried = after
        for row, name in zip(rows, results[1 + len(carried) :], strict=True):
            row.append(name)
        step += 1
    _hand_out(walk, proto, carried, rows, [0] * len(rows))
    return ""


def _scan(walk: Walk, proto: onnx.NodeProto, body: onnx.GraphProto) -> str:
    attributes = _integers(proto)
    scanned = int(attributes.get("num_scan_inputs", [0])[0])
    states = len(proto.input) - scanned
    if scanned < 1 or states < 0 or len(body.input) != len(proto.input) or len(body.output) < states:
        return "its inputs and those of its body do not fit"
    made = len(body.output) - states
    sources = [walk.resolve(name) for name in proto.input[states:]]
    axes = [
        axis % max(1, len(walk.values[name].shape))
        for name, axis in zip(sources, attributes.get("scan_input_axes", [0] * scanned), strict=True)
    ]
    lengths = {walk.values[name].shape[axis] for name, axis in zip(sources, axes, strict=True)}
    if len(lengths) != 1:
        return f"what it scans has lengths {sorted(lengths)}"
    length = lengths.pop()
    stored = _stored(walk, body)
    carried = [walk.resolve(name) for name in proto.input[:states]]
    backwards = attributes.get("scan_input_directions", [0] * scanned)
    rows: list[list[str]] = [[] for _ in range(made)]
    for step in range(length):
        walk.step(proto, 4)
        parts = []
        for name, axis, back in zip(sources, axes, backwards, strict=True):
            index = f"{proto.output[0]}.index.{name}.{step}"
            walk.values[index] = constant_value(np.array(length - 1 - step if back else step, np.int64))
            parts.append(_emit(walk, "Gather", [name, index], f"{index}.part", axis=axis))
        bound = {v.name: g for v, g in zip(body.input, [*carried, *parts], strict=True)}
        results = _inlined(walk, body, stored | bound)
        carried = results[:states]
        for row, name in zip(rows, results[states:], strict=True):
            row.append(name)
    for row, back in zip(rows, attributes.get("scan_output_directions", [0] * made), strict=True):
        if back:
            row.reverse()
    _hand_out(walk, proto, carried, rows, attributes.get("scan_output_axes", [0] * made))
    return ""


def _integers(proto: onnx.NodeProto) -> dict[str, list[int]]:
    return {a.name: list(a.ints) or [a.i] for a in proto.attribute if not a.HasField("g")}


def _hand_out(
    walk: Walk, proto: onnx.NodeProto, carried: Sequence[str], rows: Sequence[list[str]], axes: Sequence[int]
) -> None:
    """Give the outputs their names: what was carried last, and the rows of all steps as one tensor."""
    for name, inner in zip(proto.output, carried, strict=False):
        if name:
            walk.alias[name] = inner
    for name, row, axis in zip(proto.output[len(carried) :], rows, axes, strict=False):
        if not row:
            raise UnsupportedError(f"{describe(proto)}: a loop of no steps makes {name!r} empty")
        if name:
            _stack(walk, name, row, axis)


def _stack(walk: Walk, name: str, row: list[str], axis: int) -> None:
    import onnx

    rank = len(walk.values[walk.resolve(row[0])].shape) + 1
    axis = axis % rank
    lifted = []
    for position, source in enumerate(row):
        axes = f"{name}.axes"
        walk.values[axes] = constant_value(np.array([axis]))
        lifted.append(f"{name}.{position}")
        old = walk.versions[""] < 13
        node = onnx.helper.make_node("Unsqueeze", [source] if old else [source, axes], [lifted[-1]])
        if old:
            node.attribute.append(onnx.helper.make_attribute("axes", [axis]))
        walk.node(renamed(node, walk.alias))
    walk.node(renamed(onnx.helper.make_node("Concat", lifted, [name], axis=axis), walk.alias))


def _emit(walk: Walk, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
    """Walk over a node of our own; what it makes."""
    import onnx

    walk.node(renamed(onnx.helper.make_node(kind, list(inputs), [output], **attributes), walk.alias))
    return walk.resolve(output)


def _scalar(walk: Walk, name: str, output: str) -> str:
    """A condition without axes: it must not add one to what is chosen."""
    if not walk.values[name].shape:
        return name
    shape = f"{output}.shape"
    walk.values[shape] = constant_value(np.zeros(0, np.int64))
    return _emit(walk, "Reshape", [name, shape], output)


def _stored(walk: Walk, body: onnx.GraphProto) -> dict[str, str]:
    """The initializers of a body, one copy for all its steps: name inside -> outside."""
    import onnx

    walk.fresh += 1
    names = {tensor.name: f"{tensor.name}.{walk.fresh}" for tensor in body.initializer}
    for tensor in body.initializer:
        walk.values[names[tensor.name]] = constant_value(onnx.numpy_helper.to_array(tensor))
    return names


def _inlined(walk: Walk, body: onnx.GraphProto, bound: Mapping[str, str]) -> list[str]:
    """Walk over a body under names of its own; its outputs' names outside."""
    walk.fresh += 1
    inner: dict[str, str] = {}
    for node in body.node:
        inner |= {name: f"{name}.{walk.fresh}" for name in node.output if name}
    inner |= bound
    nodes = [renamed(node, inner, outputs=True) for node in body.node]
    for node in nodes:
        node.name = f"{node.name}.{walk.fresh}" if node.name else ""
    walk.nodes(nodes)
    return [walk.resolve(inner.get(value.name, value.name)) for value in body.output]
