"""Sequences of tensors whose lengths and places are known: lists of names on the walk, and none in the static graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.errors import UnsupportedError
from edgeattn.sources.onnx.node_names import renamed
from edgeattn.sources.onnx.values import constant_value, describe

if TYPE_CHECKING:
    import onnx

    from edgeattn.sources.onnx.static import Walk


def resolved(walk: Walk, proto: onnx.NodeProto) -> bool:
    """Walk over a node that makes or reads a sequence; False for any other node.

    Raises:
        UnsupportedError: if a place or a length depends on values.
    """
    write = KINDS.get(proto.op_type) if not proto.domain else None
    if write is None:
        if proto.op_type == "Identity" and proto.input[0] in walk.sequences:
            walk.sequences[proto.output[0]] = walk.sequences[proto.input[0]]
            return True
        for name in proto.input:
            if name in walk.sequences:
                raise UnsupportedError(f"{describe(proto)}: reads a sequence, and sequences are no tensors")
        return False
    write(walk, proto)
    return True


def _construct(walk: Walk, proto: onnx.NodeProto) -> None:
    walk.sequences[proto.output[0]] = [walk.resolve(name) for name in proto.input]


def _insert(walk: Walk, proto: onnx.NodeProto) -> None:
    made = list(_sequence(walk, proto))
    last = len(proto.input) < 3 or not proto.input[2]
    made.insert(len(made) if last else _place(walk, proto, 2, len(made)), walk.resolve(proto.input[1]))
    walk.sequences[proto.output[0]] = made


def _erase(walk: Walk, proto: onnx.NodeProto) -> None:
    made = list(_sequence(walk, proto))
    made.pop(_place(walk, proto, 1, len(made)) if len(proto.input) > 1 and proto.input[1] else -1)
    walk.sequences[proto.output[0]] = made


def _at(walk: Walk, proto: onnx.NodeProto) -> None:
    sequence = _sequence(walk, proto)
    place = _place(walk, proto, 1, len(sequence))
    if not 0 <= place < len(sequence):
        raise UnsupportedError(f"{describe(proto)}: place {place} of a sequence of {len(sequence)}")
    walk.alias[proto.output[0]] = walk.resolve(sequence[place])


def _length(walk: Walk, proto: onnx.NodeProto) -> None:
    walk.values[proto.output[0]] = constant_value(np.array(len(_sequence(walk, proto)), np.int64))


def _split(walk: Walk, proto: onnx.NodeProto) -> None:
    """Parts of the sizes given, of one size (the last may be smaller), or of 1 without the axis."""
    attributes = _integers(proto)
    source = walk.values[proto.input[0]]
    axis = attributes.get("axis", 0) % max(1, len(source.shape))
    size, keep = source.shape[axis], True
    if len(proto.input) > 1 and proto.input[1]:
        given = walk.values[proto.input[1]].constant
        if given is None:
            raise UnsupportedError(f"{describe(proto)}: the sizes of its parts depend on values")
        step = max(1, int(given.reshape(-1)[0]))
        sizes = [int(n) for n in given] if given.ndim else [min(step, size - i) for i in range(0, size, step)]
    else:
        sizes, keep = [1] * size, bool(attributes.get("keepdims", 1))
    if sum(sizes) != size or min(sizes, default=1) < 0:
        raise UnsupportedError(f"{describe(proto)}: parts of {sizes[:8]} of an axis of {size}")
    walk.step(proto, len(sizes))
    parts, start = [], 0
    for number, width in enumerate(sizes):
        name = f"{proto.output[0]}.{number}"
        if keep:
            bounds = {"starts": [start], "ends": [start + width], "axes": [axis]}
            _emit(walk, "Slice", [proto.input[0], *_constants(walk, name, bounds)], name)
        else:
            walk.values[f"{name}.place"] = constant_value(np.array(start, np.int64))
            _emit(walk, "Gather", [proto.input[0], f"{name}.place"], name, axis=axis)
        parts.append(walk.resolve(name))
        start += width
    walk.sequences[proto.output[0]] = parts


def _concat(walk: Walk, proto: onnx.NodeProto) -> None:
    attributes = _integers(proto)
    sequence = [walk.resolve(name) for name in _sequence(walk, proto)]
    if not sequence:
        raise UnsupportedError(f"{describe(proto)}: joins a sequence of nothing")
    axis = attributes.get("axis", 0)
    if attributes.get("new_axis", 0):
        rank = len(walk.values[sequence[0]].shape) + 1
        axis %= rank
        lifted = []
        for number, name in enumerate(sequence):
            shape = list(walk.values[name].shape)
            shape.insert(axis, 1)
            lifted.append(f"{proto.output[0]}.{number}")
            _emit(walk, "Reshape", [name, *_constants(walk, lifted[-1], {"shape": shape})], lifted[-1])
        sequence = lifted
    _emit(walk, "Concat", sequence, proto.output[0], axis=axis)


def _sequence(walk: Walk, proto: onnx.NodeProto) -> list[str]:
    if proto.input[0] not in walk.sequences:
        raise UnsupportedError(f"{describe(proto)}: reads a sequence whose parts are not known")
    return walk.sequences[proto.input[0]]


def _place(walk: Walk, proto: onnx.NodeProto, position: int, length: int) -> int:
    value = walk.values[proto.input[position]].constant
    if value is None:
        raise UnsupportedError(f"{describe(proto)}: its place in the sequence depends on values")
    place = int(value.reshape(-1)[0])
    return place + length if place < 0 else place


def _integers(proto: onnx.NodeProto) -> dict[str, int]:
    return {attribute.name: int(attribute.i) for attribute in proto.attribute}


def _constants(walk: Walk, name: str, given: Mapping[str, list[int]]) -> list[str]:
    names = []
    for key, numbers in given.items():
        names.append(f"{name}.{key}")
        walk.values[names[-1]] = constant_value(np.array(numbers, np.int64))
    return names


def _emit(walk: Walk, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
    import onnx

    walk.node(renamed(onnx.helper.make_node(kind, inputs, [output], **attributes), walk.alias))


KINDS: Mapping[str, Callable[[Any, Any], None]] = {
    "SequenceConstruct": _construct, "SequenceEmpty": _construct, "SequenceInsert": _insert, "SequenceErase": _erase,
    "SequenceAt": _at, "SequenceLength": _length, "SplitToSequence": _split, "ConcatFromSequence": _concat,
}  # fmt: skip
