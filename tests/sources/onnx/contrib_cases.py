"""Operators that ONNX Runtime's and Optimum's optimizers write: one small model per way of using them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.sources.onnx.cases import CONTRIB, Case, integers, normal, scalar, whole

X = normal(2, 5, 8)
QKV = {"w": normal(8, 24, scale=0.3), "b": normal(24, seed="b")}
MASK = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], np.int32)
CUBE = integers(2, 5, 5, high=2, dtype=np.int32)
HALF = {"num_heads": 2}


def contrib(name: str, *given: object, **named: object) -> Case:
    """A case of the domain."""
    return Case(name, *given, **{"domain": CONTRIB, **named})  # type: ignore[arg-type]


def attention() -> Iterator[Case]:
    """Every form of a mask, alone and with causal; biases, pasts and other widths."""
    masks = {
        "keys": MASK, "queries": CUBE, "ends": whole(4, 2, dtype=np.int32),
        "ends and starts": whole(4, 5, 1, 2, dtype=np.int32), "nothing": np.zeros((2, 5), np.int32),
    }  # fmt: skip
    for note, mask in masks.items():
        for causal in (0, 1):
            how = {**HALF, "unidirectional": causal}
            # Where a mask hides all, ONNX Runtime's scores of -10,000 and more are rounded to a thousandth.
            tolerance = 2e-3 if causal else 1e-5
            yield contrib("Attention", {"x": X, "m": mask}, QKV, how, order=("x", "w", "b", "m"), note=note,
                          tolerance=tolerance)  # fmt: skip
    past = normal(2, 2, 2, 3, 4, seed="past")
    for causal in (0, 1):
        yield contrib("Attention", {"x": X, "p": past}, QKV, {**HALF, "unidirectional": causal}, outputs=2,
                      order=("x", "w", "b", "", "p"))  # fmt: skip
    longer = np.array([[0, 1, 1, 1, 1, 1, 1, 0], [1] * 8], np.int32)
    yield contrib("Attention", {"x": X, "p": past, "m": longer}, QKV, {**HALF, "unidirectional": 1}, outputs=2,
                  order=("x", "w", "b", "m", "p"))  # fmt: skip
    yield contrib("Attention", {"x": X}, QKV | {"e": normal(1, 2, 5, 5)}, {**HALF, "scale": 0.2},
                  order=("x", "w", "b", "", "", "e"))  # fmt: skip
    yield contrib("Attention", {"x": X, "w": QKV["w"]}, {"b": QKV["b"]}, HALF, note="weight as input")
    wide = {"w": normal(8, 16, scale=0.3), "b": normal(16, seed="b")}
    yield contrib("Attention", {"x": X}, wide, {**HALF, "qkv_hidden_sizes": [4, 4, 8]})
    coded = {"x": integers(2, 5, 8, high=255, dtype=np.uint8)}
    held = {"w": integers(8, 24, low=-63, high=63, dtype=np.int8), "b": QKV["b"], "xs": scalar(0.02),
            "ws": scalar(0.01), "xz": scalar(120, np.uint8), "wz": scalar(0, np.int8)}  # fmt: skip
    for given in ({}, {"m": MASK}):
        order = ("x", "w", "b", "xs", "ws", "m" if given else "", "xz", "wz")
        yield contrib("QAttention", coded | given, held, {**HALF, "unidirectional": len(given)}, order=order)


def multi_head() -> Iterator[Case]:
    """Queries, keys and values apart."""
    split = {"q": X, "k": normal(2, 5, 8, seed="k"), "v": normal(2, 5, 8, seed="v")}
    yield contrib("MultiHeadAttention", split, attributes=HALF)
    for note, mask in {"keys": MASK, "queries": CUBE, "ends": whole(4, 2, dtype=np.int32)}.items():
        for causal in (0, 1):
            yield contrib("MultiHeadAttention", split | {"m": mask}, {"b": normal(24, seed="b")},
                          {**HALF, "unidirectional": causal}, order=("q", "k", "v", "b", "m"), note=note,
                          tolerance=2e-3 if causal else 1e-5)  # fmt: skip
    yield contrib("MultiHeadAttention", split | {"e": normal(1, 2, 5, 5)}, attributes=HALF,
                  order=("q", "k", "v", "", "", "e"))  # fmt: skip
    past = {"pk": normal(2, 2, 3, 4, seed="pk"), "pv": normal(2, 2, 3, 4, seed="pv")}
    for causal in (0, 1):
        yield contrib("MultiHeadAttention", split | past, attributes={**HALF, "unidirectional": causal}, outputs=3,
                      order=("q", "k", "v", "", "", "", "pk", "pv"))  # fmt: skip
    crossed = {"q": X, "k": normal(2, 2, 7, 4, seed="k"), "v": normal(2, 2, 7, 4, seed="v")}
    yield contrib("MultiHeadAttention", crossed, attributes=HALF, note="heads given")


def grouped() -> Iterator[Case]:
    """Caches that are full, partly full, longer than what counts; rotary embedding, windows, sinks."""
    heads = {"num_heads": 4, "kv_num_heads": 2}
    cache = {"cos": normal(12, 8, seed="cos"), "sin": normal(12, 8, seed="sin")}

    def form(new: int, past: int, total: int, ends: tuple[int, ...], note: str = "", **how: object) -> Case:
        batch = len(ends)
        given = {"q": normal(batch, new, 64), "k": normal(batch, new, 32, seed="k"), "v": normal(batch, new, 32)}
        order = ["q", "k", "v", "", "", "l", "t"]
        if past:
            given |= {n: normal(batch, 2, past, 16, seed=n) for n in ("pk", "pv")}
            order[3:5] = ["pk", "pv"]
        held = {"t": whole(total, dtype=np.int32)}
        if how.get("do_rotary"):
            held |= cache
            order += ["cos", "sin"]
        if how.pop("sink", False):
            held |= {"sink": normal(4, seed="sink")}
            order += [""] * (11 - len(order)) + ["sink"]
        given["l"] = whole(*ends, dtype=np.int32)
        return contrib("GroupQueryAttention", given, held, {**heads, **how}, outputs=3, order=tuple(order), note=note)

    for rotary in (0, 1):
        yield form(5, 0, 5, (4, 4), do_rotary=rotary)
        yield form(1, 6, 7, (6, 6), do_rotary=rotary)
        yield form(1, 6, 7, (4, 6), "partly full", do_rotary=rotary)
        yield form(1, 9, 5, (4, 2), "longer", do_rotary=rotary)
        yield form(3, 6, 9, (8,), "a second prompt", do_rotary=rotary)
    yield form(5, 8, 5, (4, 4), "a prompt into a cache")
    yield form(1, 6, 7, (5, 6), do_rotary=1, rotary_interleaved=1)
    yield form(5, 0, 5, (4, 4), local_window_size=2)
    yield form(1, 6, 7, (6, 4), local_window_size=3)
    yield form(5, 0, 5, (4, 4), softcap=1.5)
    yield form(5, 0, 5, (4, 4), smooth_softmax=1)
    yield form(5, 0, 5, (4, 4), "sink", sink=True)
    packed = {"q": normal(2, 5, 128), "l": whole(4, 4, dtype=np.int32)}
    yield contrib("GroupQueryAttention", packed, {"t": whole(5, dtype=np.int32)}, heads, outputs=3, note="packed",
                  order=("q", "", "", "", "", "l", "t"))  # fmt: skip


def fused() -> Iterator[Case]:
    """A product or a convolution with its activation, embeddings with their mask, products of turned batches."""
    image, kernel = normal(1, 3, 6, 6), {"w": normal(4, 3, 3, 3), "b": normal(4, seed="b")}
    shape = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    for name, numbers in (("Relu", []), ("LeakyRelu", [0.2]), ("Clip", [0.0, 1.5]), ("HardSigmoid", [0.3, 0.4]),
                          ("Sigmoid", []), ("Tanh", [])):  # fmt: skip
        how = {"activation": name, **shape, **({"activation_params": numbers} if numbers else {})}
        yield contrib("FusedConv", {"x": image}, kernel, how)
    yield contrib("FusedConv", {"x": image, "z": normal(1, 4, 6, 6, seed="z")}, kernel,
                  {"activation": "Relu", **shape}, order=("x", "w", "b", "z"))  # fmt: skip
    product = {"w": normal(5, 4, seed="w"), "b": normal(5, seed="b")}
    for name, more in (("Relu", {}), ("LeakyRelu", {"activation_alpha": 0.3}), ("Tanh", {})):
        yield contrib("FusedGemm", {"x": normal(3, 4)}, product, {"activation": name, "transB": 1, **more})
    a, b = normal(2, 3, 4), normal(2, 5, 4, seed="b")
    yield contrib("FusedMatMul", {"a": a, "b": b}, attributes={"alpha": 0.3, "transB": 1})
    yield contrib("FusedMatMul", {"a": normal(3, 2, 4), "b": b}, attributes={"transBatchA": 1, "transB": 1})
    yield contrib("TransposeMatMul", {"a": a, "b": b}, attributes={"alpha": 0.3, "transB": 1})
    tables = {
        "w": normal(9, 4),
        "p": normal(5, 4),
        "t": normal(2, 4),
        "s": normal(4, seed="s"),
        "b": normal(4, seed="b"),
    }
    ids = {"i": integers(2, 3, high=9, dtype=np.int32), "k": integers(2, 3, high=2, dtype=np.int32)}
    mask = {"m": np.array([[1, 1, 0], [1, 0, 0]], np.int32)}
    for outputs in (2, 3):
        yield contrib("EmbedLayerNormalization", ids | mask, tables, {"epsilon": 1e-12}, outputs=outputs,
                      order=("i", "k", "w", "p", "t", "s", "b", "m"))  # fmt: skip
    places = {"place": integers(2, 3, high=5, dtype=np.int32)}
    yield contrib("EmbedLayerNormalization", {"i": ids["i"]} | places, tables, outputs=(True, False),
                  order=("i", "", "w", "p", "", "s", "b", "", "place"))  # fmt: skip
    added = {"s": normal(4, seed="s"), "c": normal(4, seed="c")}
    yield contrib("SkipLayerNormalization", {"x": normal(2, 3, 4), "k": normal(3, 4, seed="k")}, added,
                  order=("x", "k", "s", "", "c"))  # fmt: skip
    yield contrib("SkipSimplifiedLayerNormalization", {"x": normal(2, 3, 4), "k": normal(2, 3, 4, seed="k")}, added)


def packed() -> Iterator[Case]:
    """Weights of few bits and quantized forms."""
    for bits in (2, 4, 8):
        codes = integers(5, 2, 2 * bits, high=255, dtype=np.uint8)
        weights = {"b": codes, "s": np.abs(normal(10)) + 0.1}
        how = {"K": 32, "N": 5, "bits": bits, "block_size": 16}
        yield contrib("MatMulNBits", {"x": normal(3, 32)}, weights, how, tolerance=1e-4)
        zeros = {"z": integers(5, -(-2 * bits // 8), high=255, dtype=np.uint8)}
        yield contrib("MatMulNBits", {"x": normal(3, 32)}, weights | zeros, how, tolerance=1e-4, note="zero-points")
    ids = {"i": integers(2, 3, high=9)}
    for bits in (4, 8):
        held = {"d": integers(9, 4 * bits, high=255, dtype=np.uint8), "s": np.abs(normal(9, 2)) + 0.1}
        how = {"bits": bits, "block_size": 16, "gather_axis": 0, "quantize_axis": 1}
        yield contrib("GatherBlockQuantized", ids, held, how, order=("d", "i", "s"), opset=21)
        zeros = {"z": integers(9, bits // 4, high=255, dtype=np.uint8)}
        yield contrib("GatherBlockQuantized", ids, held | zeros, how, order=("d", "i", "s", "z"), opset=21)
    image = integers(1, 3, 6, 6, high=255, dtype=np.uint8)
    ends = {"xs": scalar(0.02), "xz": scalar(120, np.uint8), "ys": scalar(0.01), "yz": scalar(99, np.uint8)}
    yield contrib("QLinearAveragePool", {"x": image}, ends, {"kernel_shape": [2, 2], "strides": [2, 2]})
    other = {"y": integers(1, 3, 6, 6, high=255, dtype=np.uint8, seed="y")}
    yield contrib("QLinearWhere", {"c": image > 99, "x": image, **other},
                  {"xs": scalar(0.02), "xz": scalar(120, np.uint8), "zs": scalar(0.03), "zz": scalar(90, np.uint8)},
                  order=("c", "x", "xs", "xz", "y", "xs", "xz", "zs", "zz"))  # fmt: skip


CASES = [case for family in (attention, multi_head, grouped, fused, packed) for case in family()]
