"""A square weight that is read both as it is and transposed gets a transposed copy for the second.

OpenVINO's CPU plugin keeps what it packs of a weight under the address and the packed form, and forgets which way round
it was read: of ``x @ W`` and ``x @ W.T`` over one square constant, as in a tied projection, one is silently computed
with the other's matrix. Equal bytes are one address in an IR. Where W is not square the packed forms differ.

NNCF has one axis of scales per constant besides, which is wrong for one of the two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import onnx

from edgeattn.converters.passes.onnx_graph import View


def one_orientation(model: onnx.ModelProto) -> int:
    """Let each Gemm that transposes a shared square constant read a copy; returns how many there were."""
    view = View(model)
    transposing = [node for node in model.graph.node if _is_square(view, node) and _transposes(node)]
    shapes = {view.shape(node.input[1]) for node in transposing}
    plain = {_digest(view, name) for name in _read_as_it_is(view, shapes)}
    copies: dict[str, str] = {}
    changed = 0
    for node in transposing if plain else ():
        name = node.input[1]
        if _digest(view, name) not in plain:
            continue
        if name not in copies:
            copies[name] = view.constant(_matrix(view, name).T, f"{name}_transposed")
        node.input[1] = copies[name]
        next(a for a in node.attribute if a.name == "transB").i = 0
        changed += 1
    if changed:
        view.drop_unread()
    return changed


def _read_as_it_is(view: View, shapes: set[tuple[int, ...] | None]) -> Iterator[str]:
    """Constants of one of the shapes on the right of a product."""
    for node in view.graph.node:
        right = node.input[1] if node.op_type in ("Gemm", "MatMul") else ""
        if right in view.constants and view.shape(right) in shapes and not _transposes(node):
            yield right


def _is_square(view: View, node: onnx.NodeProto) -> bool:
    shape = view.shape(node.input[1]) if node.op_type == "Gemm" and node.input[1] in view.constants else None
    return shape is not None and shape[0] == shape[1]


def _transposes(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _matrix(view: View, name: str) -> np.ndarray:
    value = view.value(name)
    assert value is not None
    return np.ascontiguousarray(value)


def _digest(view: View, name: str) -> bytes:
    return hashlib.sha256(_matrix(view, name).tobytes()).digest()
