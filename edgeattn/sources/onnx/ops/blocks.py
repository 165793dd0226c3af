"""Weights of 2, 4 or 8 bits in blocks of ``com.microsoft``: widened on import, which every engine can run."""

from __future__ import annotations

import numpy as np
from torch import nn

from edgeattn.sources.onnx.ops.indexing import Table, gathered
from edgeattn.sources.onnx.ops.node import CONTRIB, Function, Node, NotImportableError, op, to_tensor
from edgeattn.sources.onnx.ops.products import Linear


@op("MatMulNBits", domain=CONTRIB)
def _matmul_nbits(node: Node) -> nn.Module:
    """Blocks along the input axis, (out, blocks, bytes)."""
    bits, size = node.integer("bits", 4), node.integer("block_size")
    rows, columns = node.integer("K"), node.integer("N")
    node.refuse("weight_prepacked", 0)
    if bits not in (2, 4, 8) or (node.has(4) and node.shape(4) != (0,)):
        raise NotImportableError(f"bits = {bits} or a group index is not imported, 2, 4 and 8 bits in order are")
    blocks = -(-rows // size)
    packed = node.static(1).reshape(columns, blocks, -1)
    values = _unpacked(packed, bits).reshape(columns, blocks, size).astype(np.float32)
    scales = node.static(2).reshape(columns, blocks, 1).astype(np.float32)
    zeros = np.full((columns, blocks, 1), 2.0 ** (bits - 1), np.float32)
    if node.has(3):
        given = node.static(3)
        exact = given.dtype.kind == "f"
        whole = given.reshape(columns, -1) if exact else _unpacked(given.reshape(columns, -1), bits)
        zeros = whole[:, :blocks].reshape(columns, blocks, 1).astype(np.float32)
    weight = ((values - zeros) * scales).reshape(columns, -1)[:, :rows]
    bias = to_tensor(node.static(5)) if node.has(5) else None
    return Linear(to_tensor(np.ascontiguousarray(weight)), bias)


@op("GatherBlockQuantized", domain=CONTRIB)
def _gather_block_quantized(node: Node) -> Function | nn.Module:
    """A lookup in a table of blocks: the table is made real, then read."""
    data, scales = node.static(0), node.static(2).astype(np.float32)
    bits = node.integer("bits", 4)
    packed = data.dtype == np.uint8 and bits < 8
    if data.dtype.kind not in "iu" and data.dtype.name not in ("int4", "uint4", "int2", "uint2"):
        raise NotImportableError(f"a table of {data.dtype} is not imported, integers are")
    codes = _unpacked(data, bits) if packed else data
    values = codes.astype(np.float32)
    axis = node.integer("quantize_axis", 1) % values.ndim
    size = node.integer("block_size", 128)
    if node.has(3):
        zeros = node.static(3)
        zeros = (_unpacked(zeros, bits) if packed else zeros).astype(np.float32)
        zeros = np.take(zeros, range(scales.shape[axis]), axis)
    else:
        zeros = np.full(scales.shape, 2.0 ** (bits - 1) if data.dtype == np.uint8 else 0.0, np.float32)
    spread = [np.repeat(part, size, axis).take(range(values.shape[axis]), axis) for part in (zeros, scales)]
    table = to_tensor(np.ascontiguousarray((values - spread[0]) * spread[1]))
    along = node.integer("gather_axis") % table.ndim
    if along == 0 and table.ndim == 2:
        layer = Table(table)
        return layer if 1 not in node.constants else lambda _, ids, *__: layer(None, ids)
    return lambda _, ids, *__: gathered(table, ids, along)


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """Several numbers of each byte, the lowest bits first, along the last axis."""
    if bits == 8:
        return packed
    parts = [(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, -1).reshape(*packed.shape[:-1], -1)
