"""Operators that move, cut, join and look up (schema.fbs and the reference kernels of LiteRT)."""

from __future__ import annotations

import numpy as np

from edgeattn.sources.tflite.builder import Builder, op

FIRST, LAST = -(2**31), 2**31 - 1


@op("RESHAPE", "SQUEEZE", "EXPAND_DIMS")
def _reshape(b: Builder) -> None:
    b.give(b.reshaped(b.value(), b.out_shape()))


@op("TRANSPOSE")
def _transpose(b: Builder) -> None:
    b.give(b.add("Transpose", [b.value()], perm=b.axes(1)))


@op("CONCATENATION")
def _concatenation(b: Builder) -> None:
    axis = b.axis(b.option("Axis"), len(b.shape()))
    b.finish(b.add("Concat", [b.value(i) for i in range(len(b.operator.inputs))], axis=axis))


@op("PACK")
def _pack(b: Builder) -> None:
    rank = len(b.shape()) + 1
    axis = b.axis(b.option("Axis"), rank)
    shape = list(b.shape())
    shape.insert(axis, 1)
    b.give(b.add("Concat", [b.reshaped(b.value(i), shape) for i in range(len(b.operator.inputs))], axis=axis))


@op("UNPACK")
def _unpack(b: Builder) -> None:
    axis = b.axis(b.option("Axis"), len(b.shape()))
    count = len(b.operator.outputs)
    parts = b.several("Split", [b.value(), b.constant([1] * count, "sizes")], count, axis=axis)
    b.give(*[b.reshaped(part, b.out_shape()) for part in parts])


@op("SPLIT", "SPLIT_V")
def _split(b: Builder) -> None:
    source, axis_at = (1, 0) if b.operator.kind == "SPLIT" else (0, 2)
    axis = b.axis(b.static(axis_at)[0], len(b.shape(source)))
    count = len(b.operator.outputs)
    sizes = [b.out_shape(i)[axis] for i in range(count)]
    b.give(*b.several("Split", [b.value(source), b.constant(sizes, "sizes")], count, axis=axis))


@op("SLICE")
def _slice(b: Builder) -> None:
    starts, axes = b.static(1), list(range(len(b.shape())))
    ends = [start + size for start, size in zip(starts, b.out_shape(), strict=True)]
    b.give(
        b.add("Slice", [b.value(), b.constant(starts, "starts"), b.constant(ends, "ends"), b.constant(axes, "axes")])
    )


@op("STRIDED_SLICE")
def _strided_slice(b: Builder) -> None:
    if b.option("EllipsisMask") or b.option("NewAxisMask") or b.option("Offset", False):
        raise b.refuse("an ellipsis, a new axis or ends as offsets are not read")
    begins, ends, steps = (b.static(i) for i in (1, 2, 3))
    masks = [int(b.option(name)) for name in ("BeginMask", "EndMask", "ShrinkAxisMask")]
    for axis, step in enumerate(steps):
        free, until, single = (bool(mask >> axis & 1) for mask in masks)
        if free and not single:
            begins[axis] = 0 if step > 0 else LAST
        if single:
            ends[axis], steps[axis] = begins[axis] + 1 if begins[axis] != -1 else LAST, 1
        elif until:
            ends[axis] = LAST if step > 0 else FIRST
    parts = {"starts": begins, "ends": ends, "axes": list(range(len(begins))), "steps": steps}
    made = b.add("Slice", [b.value(), *(b.constant(part, name) for name, part in parts.items())])
    b.give(b.reshaped(made, b.out_shape()))


@op("REVERSE_V2")
def _reverse(b: Builder) -> None:
    axes = b.axes(1)
    parts = {"starts": [LAST] * len(axes), "ends": [FIRST] * len(axes), "axes": axes, "steps": [-1] * len(axes)}
    b.give(b.add("Slice", [b.value(), *(b.constant(part, name) for name, part in parts.items())]))


@op("PAD", "PADV2", "MIRROR_PAD")
def _pad(b: Builder) -> None:
    pads = b.constant(np.array(b.static(1)).reshape(-1, 2).T.reshape(-1), "pads")
    if b.operator.kind == "MIRROR_PAD":
        if b.option("Mode"):
            raise b.refuse("SYMMETRIC padding has no ONNX operator; use REFLECT")
        b.give(b.add("Pad", [b.value(), pads], mode="reflect"))
        return
    fill = b.known(2) if b.has(2) else np.zeros(1)
    if fill is None:
        raise b.refuse("what it pads with is computed at run time")
    b.give(b.add("Pad", [b.value(), pads, b.number(float(fill.reshape(-1)[0]))]))


@op("GATHER")
def _gather(b: Builder) -> None:
    if b.option("BatchDims"):
        raise b.refuse("batch_dims is not read")
    axis = b.axis(b.option("Axis"), len(b.shape()))
    b.give(b.add("Gather", [b.value(0), b.value(1)], axis=axis))


@op("EMBEDDING_LOOKUP")
def _embedding(b: Builder) -> None:
    b.give(b.add("Gather", [b.value(1), b.value(0)], axis=0))


@op("GATHER_ND")
def _gather_nd(b: Builder) -> None:
    b.give(b.add("GatherND", [b.value(0), b.cast(b.value(1), np.dtype(np.int64))]))


@op("SCATTER_ND")
def _scatter_nd(b: Builder) -> None:
    zeros = b.constant(np.zeros(b.out_shape(), b.out_dtype()), "zeros")
    b.give(b.add("ScatterND", [zeros, b.cast(b.value(0), np.dtype(np.int64)), b.value(1)], reduction="add"))


@op("TILE")
def _tile(b: Builder) -> None:
    b.give(b.add("Tile", [b.value(), b.constant(b.static(1), "repeats")]))


@op("BROADCAST_TO")
def _broadcast(b: Builder) -> None:
    b.give(b.add("Expand", [b.value(), b.constant(list(b.out_shape()), "shape")]))


@op("FILL")
def _fill(b: Builder) -> None:
    b.give(b.add("Expand", [b.value(1), b.constant(list(b.out_shape()), "shape")]))


@op("SHAPE")
def _shape(b: Builder) -> None:
    b.give(b.constant(np.array(b.shape(), b.out_dtype()), "shape"))


@op("RANK")
def _rank(b: Builder) -> None:
    b.give(b.constant(np.array(len(b.shape()), b.out_dtype()), "rank"))


@op("RANGE")
def _range(b: Builder) -> None:
    start, limit, step = (b.known(i) for i in range(3))
    if start is None or limit is None or step is None:
        raise b.refuse("its ends are computed at run time")
    size = b.out_shape()[0] if b.out_shape() else 0
    made = start.reshape(-1)[0] + np.arange(size, dtype=b.out_dtype()) * step.reshape(-1)[0]
    b.give(b.constant(made.astype(b.out_dtype()), "range"))


@op("ONE_HOT")
def _one_hot(b: Builder) -> None:
    """A negative place is none; ONNX would count it from the end, and has none beyond the depth."""
    places, wide = b.value(), np.dtype(np.int64)
    depth = b.constant(np.array(b.static(1)[0], wide), "depth")
    places = b.cast(places, wide)
    below = b.add("Less", [places, b.constant(np.array(0, wide), "first")])
    places = b.add("Where", [below, depth, places])
    on, off = b.known(2), b.known(3)
    if on is None or off is None:
        raise b.refuse("its values are computed at run time")
    values = b.constant(np.stack([off.reshape(()), on.reshape(())]).astype(b.out_dtype()), "values")
    b.give(b.add("OneHot", [places, depth, values], axis=int(b.option("Axis", -1))))
