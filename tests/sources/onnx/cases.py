"""One small ONNX model per way of using an operator: what the importer is compared with ONNX Runtime on."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CONTRIB = "com.microsoft"


@dataclass(frozen=True)
class Case:
    """One node.

    Attributes:
        inputs: arrays that are inputs of the graph, by name, in the order of the node.
        constants: arrays that are initializers, by name; a name in ``order`` says where each stands.
        order: input names of the node; "" for one left out. Default: inputs, then constants.
        outputs: how many outputs are asked for, or a flag for each.
    """

    op: str
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int | Sequence[bool] = 1
    opset: int = 18
    domain: str = ""
    order: tuple[str, ...] | None = None
    tolerance: float = 1e-5
    note: str = ""

    @property
    def name(self) -> str:
        """A name for the test."""
        words = [self.op, str(self.opset), *(f"{k}={v}" for k, v in self.attributes.items()), self.note]
        return "-".join(words).strip("-")[:80]

    def model(self) -> onnx.ModelProto:
        """The graph of this node; output shapes are left to ONNX Runtime."""
        names = self.order or (*self.inputs, *self.constants)
        flags = [True] * self.outputs if isinstance(self.outputs, int) else list(self.outputs)
        made = [f"y{i}" if flag else "" for i, flag in enumerate(flags)]
        node = helper.make_node(self.op, list(names), made, name="the_node", domain=self.domain, **self.attributes)
        graph = helper.make_graph(
            [node],
            "one",
            [
                helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
                for k, v in self.inputs.items()
            ],
            [onnx.ValueInfoProto(name=name) for name in made if name],
            [numpy_helper.from_array(v, k) for k, v in self.constants.items()],
        )
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)


def normal(*shape: int, seed: str = "x", scale: float = 1.0) -> np.ndarray:
    """Standard normal float32."""
    rng = np.random.default_rng(zlib.crc32(f"{seed}{shape}".encode()))
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def whole(*values: int, dtype: type = np.int64) -> np.ndarray:
    """A list of integers."""
    return np.array(values, dtype)


def scalar(value: float, dtype: type = np.float32) -> np.ndarray:
    """One number without axes."""
    return np.array(value, dtype)


def integers(*shape: int, low: int = 0, high: int = 10, dtype: type = np.int64, seed: str = "i") -> np.ndarray:
    """Random integers."""
    rng = np.random.default_rng(zlib.crc32(f"{seed}{shape}".encode()))
    return rng.integers(low, high, shape).astype(dtype)


X = normal(2, 3, 4)
FLAGS = integers(2, 3, 4, high=2).astype(bool)


def elementwise() -> Iterator[Case]:
    """Arithmetic, comparison, logic, activations."""
    anywhere = (
        "Abs Atan Asinh Ceil Cos Erf Exp Floor HardSwish Identity Mish Neg Reciprocal Relu Round Sigmoid Sign Sin "
        "Sinh Cosh Softplus Softsign Tan Tanh IsNaN Elu Celu Selu LeakyRelu ThresholdedRelu HardSigmoid Shrink"
    )
    for name in anywhere.split():
        yield Case(name, {"x": 2 * X})
    for name in ("Sqrt", "Log"):
        yield Case(name, {"x": np.abs(X) + 0.1})
    for name in ("Acos", "Asin", "Atanh"):
        yield Case(name, {"x": np.clip(X / 4, -0.9, 0.9)})
    yield Case("Acosh", {"x": np.abs(X) + 1.1})
    yield Case("Round", {"x": np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32)}, note="half to even")
    for name in ("Not",):
        yield Case(name, {"x": FLAGS})
    for name in ("And", "Or", "Xor"):
        yield Case(name, {"a": FLAGS, "b": FLAGS[:, ::-1].copy()})
    for name in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        yield Case(name, {"a": integers(3, 4), "b": integers(3, 4, seed="b")})
    yield Case("BitwiseNot", {"a": integers(3, 4)})
    for direction in ("LEFT", "RIGHT"):
        yield Case(
            "BitShift", {"a": integers(6, dtype=np.uint8)}, {"b": whole(1, dtype=np.uint8)}, {"direction": direction}
        )
    for name in ("Add", "Sub", "Mul", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
        yield Case(name, {"a": X, "b": normal(3, 1, seed="b")})
    yield Case("Div", {"a": integers(6, low=-9)}, {"b": whole(4)}, note="integers truncate")
    yield Case("Mod", {"a": integers(6, low=-9)}, {"b": whole(4)})
    yield Case("Mod", {"a": 5 * X}, {"b": scalar(1.5).reshape(1)}, {"fmod": 1})
    for exponent in (2.0, 0.5, 3.0):
        yield Case("Pow", {"a": np.abs(X)}, {"b": np.array(exponent, np.float32)}, note=str(exponent))
    yield Case("Pow", {"a": np.abs(X), "b": X})
    yield Case("Pow", {"a": integers(4)}, {"b": whole(2)})
    for name in ("Max", "Min", "Sum", "Mean"):
        yield Case(name, {"a": X, "b": normal(4, seed="b"), "c": normal(3, 4, seed="c")})
    yield Case("PRelu", {"x": X}, {"slope": normal(3, 1, seed="s")})
    yield Case("Clip", {"x": X}, {"low": scalar(-0.5), "high": scalar(0.7)})
    yield Case("Clip", {"x": X}, {"high": scalar(0.7)}, order=("x", "", "high"))
    yield Case("Clip", {"x": X, "low": np.array(-0.5, np.float32)})
    yield Case("Clip", {"x": integers(5)}, {"low": scalar(2, np.int64), "high": scalar(5, np.int64)})
    yield Case("Where", {"c": FLAGS, "a": X, "b": normal(4, seed="b")})
    infinite = np.array([1, np.inf, -np.inf, np.nan], np.float32)
    yield Case("IsInf", {"x": infinite})
    yield Case("IsInf", {"x": infinite}, attributes={"detect_negative": 0})
    yield Case("IsNaN", {"x": infinite})
    for kind in (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.FLOAT16, TensorProto.DOUBLE):
        yield Case("Cast", {"x": 3 * X}, attributes={"to": kind})
    yield Case("Cast", {"x": FLAGS}, attributes={"to": TensorProto.FLOAT})
    yield Case("CastLike", {"x": X}, {"like": whole(1)})
    for approximate in ("none", "tanh"):
        yield Case("Gelu", {"x": X}, attributes={"approximate": approximate}, opset=20)
    yield Case("Swish", {"x": X}, attributes={"alpha": 1.5}, opset=24)
    yield Case("Gelu", {"x": X}, domain=CONTRIB)
    yield Case("FastGelu", {"x": X}, {"b": normal(4, seed="b")}, domain=CONTRIB, tolerance=1e-4)
    yield Case("BiasGelu", {"x": X}, {"b": normal(4, seed="b")}, domain=CONTRIB)
    yield Case("QuickGelu", {"x": X}, domain=CONTRIB)
    yield Case("Dropout", {"x": X}, {"ratio": scalar(0.5)})
    yield Case("Dropout", {"x": X}, outputs=2)
    yield Case("BitCast", {"x": X}, attributes={"to": TensorProto.INT32}, opset=26)


def shapes() -> Iterator[Case]:
    """Operators that move values."""
    for target in ([6, 4], [0, -1], [2, 3, 2, 2]):
        yield Case("Reshape", {"x": X}, {"shape": whole(*target)}, note=str(target))
    for axis in (0, 1, 2, -1):
        yield Case("Flatten", {"x": X}, attributes={"axis": axis})
    narrow = normal(1, 3, 1, 4)
    yield Case("Squeeze", {"x": narrow}, {"axes": whole(0, -2)})
    yield Case("Squeeze", {"x": narrow})
    yield Case("Squeeze", {"x": narrow}, attributes={"axes": [2]}, opset=11)
    yield Case("Unsqueeze", {"x": X}, {"axes": whole(0, -1)})
    yield Case("Unsqueeze", {"x": X}, attributes={"axes": [1]}, opset=11)
    yield Case("Transpose", {"x": X})
    yield Case("Transpose", {"x": X}, attributes={"perm": [1, 2, 0]})
    yield Case("Concat", {"a": X, "b": normal(2, 3, 2, seed="b")}, attributes={"axis": -1})
    yield Case("Split", {"x": X}, {"split": whole(1, 3)}, {"axis": 2}, outputs=2)
    yield Case("Split", {"x": normal(2, 5)}, attributes={"axis": -1, "num_outputs": 3}, outputs=3)
    yield Case("Split", {"x": X}, attributes={"axis": 1, "split": [1, 2]}, outputs=2, opset=11)
    for starts, ends, axes, steps in (
        ([1], [3], [2], [1]),
        ([-1], [-9], [2], [-1]),
        ([3, 0], [0, 9], [2, 1], [-2, 2]),
        ([0], [2**62], [-1], [3]),
        ([-3], [-1], [1], [1]),
        ([9], [-100], [2], [-1]),
    ):
        constants = {"starts": whole(*starts), "ends": whole(*ends), "axes": whole(*axes), "steps": whole(*steps)}
        yield Case("Slice", {"x": X}, constants, note=f"{starts}{ends}{steps}")
    yield Case("Slice", {"x": X}, {"starts": whole(0, 1), "ends": whole(1, 3)})
    yield Case("Expand", {"x": normal(3, 1)}, {"shape": whole(2, 1, 4)})
    yield Case("Tile", {"x": X}, {"repeats": whole(1, 2, 3)})
    for mode in ("constant", "reflect", "edge", "wrap"):
        yield Case("Pad", {"x": X}, {"pads": whole(0, 1, 2, 0, 1, 1)}, {"mode": mode}, opset=19)
    yield Case("Pad", {"x": X}, {"pads": whole(0, -1, 2, 0, 1, -1), "v": scalar(3)}, note="negative")
    yield Case("Pad", {"x": X}, {"pads": whole(2, 1), "v": scalar(3), "axes": whole(-1)})
    square = normal(1, 8, 2, 3)
    for mode in ("DCR", "CRD"):
        yield Case("DepthToSpace", {"x": square}, attributes={"blocksize": 2, "mode": mode})
    yield Case("SpaceToDepth", {"x": normal(1, 2, 4, 6)}, attributes={"blocksize": 2})
    for upper in (0, 1):
        yield Case("Trilu", {"x": X}, {"k": scalar(1, np.int64)}, {"upper": upper})
        yield Case("Trilu", {"x": integers(3, 4)}, attributes={"upper": upper})
    yield Case("EyeLike", {"x": normal(3, 4)}, attributes={"k": 1})
    yield Case("ReverseSequence", {"x": normal(4, 3, 2)}, {"lens": whole(2, 4, 1)}, {"time_axis": 0, "batch_axis": 1})
    yield Case("CenterCropPad", {"x": X}, {"shape": whole(3, 2)}, {"axes": [1, 2]})


def indexing() -> Iterator[Case]:
    """Gather, scatter, sort."""
    table = normal(9, 4)
    yield Case("Gather", {"i": integers(2, 5, high=9)}, {"t": table}, order=("t", "i"))
    yield Case("Gather", {"x": X}, {"i": whole(2, -1, 0)}, {"axis": 2})
    yield Case("Gather", {"x": X}, {"i": np.array([[0, 1], [1, 2]])}, {"axis": 1})
    yield Case("Gather", {"x": X}, {"i": scalar(-1, np.int64)}, {"axis": 1}, note="scalar")
    yield Case("Gather", {"x": X}, {"i": whole(1, 2)}, {"axis": 2}, note="neighbours")
    yield Case("Gather", {"x": X, "i": np.array([[-1, 0], [2, 3]])}, attributes={"axis": 2})
    yield Case("GatherElements", {"x": X, "i": integers(2, 3, 2, low=-4, high=4)}, attributes={"axis": -1})
    yield Case("GatherND", {"x": X, "i": np.array([[0, 2], [-1, 1]])})
    yield Case("GatherND", {"x": X, "i": np.array([[2], [-1]])}, attributes={"batch_dims": 1})
    places = np.array([[[0, 3], [1, 2], [2, 0]], [[3, 2], [1, 0], [0, -1]]])
    for reduction in ("none", "add", "mul", "max", "min"):
        yield Case("ScatterElements", {"x": X, "u": normal(2, 3, 2)}, {"i": places},
                   {"axis": 2, "reduction": reduction}, order=("x", "i", "u"))  # fmt: skip
        yield Case("ScatterND", {"x": X, "u": normal(2, 4)}, {"i": np.array([[0, 2], [1, 0]])},
                   {"reduction": reduction}, order=("x", "i", "u"))  # fmt: skip
    for largest in (0, 1):
        yield Case("TopK", {"x": X}, {"k": whole(2)}, {"axis": 1, "largest": largest}, outputs=2)
    for name in ("ArgMax", "ArgMin"):
        yield Case(name, {"x": X}, attributes={"axis": -1, "keepdims": 0})
        yield Case(name, {"x": integers(3, 8, high=3)}, attributes={"axis": 1, "select_last_index": 1})
    for exclusive, reverse in ((0, 0), (1, 0), (0, 1), (1, 1)):
        yield Case("CumSum", {"x": X}, {"axis": scalar(1, np.int64)}, {"exclusive": exclusive, "reverse": reverse})
    yield Case("CumProd", {"x": X}, {"axis": scalar(1, np.int64)}, opset=26)
    for mode in ("linear", "circular"):
        yield Case("TensorScatter", {"x": normal(2, 3, 6, 4), "u": normal(2, 3, 2, 4)},
                   {"i": whole(1, 4 if mode == "linear" else 5)}, {"mode": mode}, opset=24)  # fmt: skip
    yield Case("OneHot", {"i": integers(2, 3, low=-4, high=5)},
               {"depth": whole(5), "values": np.array([0.5, 2], np.float32)}, {"axis": 1})  # fmt: skip
    yield Case("Compress", {"x": X}, {"c": np.array([True, False, True])}, {"axis": 1})


def norms() -> Iterator[Case]:
    """Reductions, softmax, normalisation."""
    for name in ("L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"):
        yield Case(f"Reduce{name}", {"x": X}, {"axes": whole(-1, 0)})
        yield Case(f"Reduce{name}", {"x": X}, attributes={"keepdims": 0})
        yield Case(f"Reduce{name}", {"x": X}, attributes={"axes": [1], "keepdims": 0}, opset=12)
    yield Case("ReduceLogSum", {"x": np.abs(X)}, {"axes": whole(1)})
    yield Case("ReduceSum", {"x": X}, attributes={"noop_with_empty_axes": 1})
    yield Case("ReduceMax", {"x": integers(2, 3)}, {"axes": whole(1)})
    yield Case("ReduceSum", {"x": integers(2, 3)}, {"axes": whole(1)})
    for name in ("Softmax", "LogSoftmax", "Hardmax"):
        yield Case(name, {"x": X})
        yield Case(name, {"x": X}, attributes={"axis": 1})
        yield Case(name, {"x": X}, attributes={"axis": 1}, opset=11)
    image = normal(2, 6, 5, 4)
    c = {"s": normal(6, seed="s"), "b": normal(6, seed="b")}
    yield Case("LayerNormalization", {"x": X}, {"s": normal(4, seed="s"), "b": normal(4, seed="b")})
    yield Case("LayerNormalization", {"x": X}, {"s": normal(3, 4, seed="s")}, {"axis": 1, "epsilon": 1e-3}, outputs=3)
    yield Case("LayerNormalization", {"x": X, "s": normal(4, seed="s")})
    yield Case("BatchNormalization", {"x": image}, {**c, "m": normal(6, seed="m"), "v": np.abs(normal(6)) + 0.1})
    yield Case("InstanceNormalization", {"x": image}, c)
    yield Case("GroupNormalization", {"x": image}, c, {"num_groups": 3}, opset=21)
    yield Case("GroupNormalization", {"x": image}, {"s": normal(3, seed="s"), "b": normal(3, seed="b")},
               {"num_groups": 3})  # fmt: skip
    yield Case("RMSNormalization", {"x": X}, {"s": normal(4, seed="s")}, opset=23)
    yield Case("MeanVarianceNormalization", {"x": image})
    for p in (1, 2):
        yield Case("LpNormalization", {"x": X}, attributes={"p": p, "axis": 1})
    yield Case("LRN", {"x": image}, attributes={"size": 3, "alpha": 0.1})
    s = {"s": normal(4, seed="s"), "b": normal(4, seed="b"), "bias": normal(4, seed="c")}
    yield Case("SkipLayerNormalization", {"x": X, "skip": normal(2, 3, 4, seed="k")}, s, domain=CONTRIB,
               outputs=(True, False, False, True))  # fmt: skip
    yield Case("SkipSimplifiedLayerNormalization", {"x": X, "skip": normal(2, 3, 4, seed="k")},
               {"s": normal(4, seed="s")}, domain=CONTRIB, outputs=(True, False, False, True))  # fmt: skip
    yield Case("SimplifiedLayerNormalization", {"x": X}, {"s": normal(4, seed="s")}, {"axis": -1})
    yield Case(
        "EmbedLayerNormalization",
        {"ids": integers(2, 3, high=9, dtype=np.int32), "segments": integers(2, 3, high=2, dtype=np.int32)},
        {"w": normal(9, 4), "p": normal(5, 4), "t": normal(2, 4), "s": normal(4, seed="s"), "b": normal(4, seed="b")},
        {"epsilon": 1e-12},
        outputs=(True, False),
        domain=CONTRIB,
    )


def products() -> Iterator[Case]:
    """Products, convolutions, pooling, resizing."""
    w = normal(4, 5, seed="w")
    yield Case("MatMul", {"x": X}, {"w": w})
    yield Case("MatMul", {"x": X, "w": normal(2, 4, 5)})
    yield Case("MatMul", {"x": normal(4), "w": normal(4, 5)})
    yield Case("MatMul", {"x": X}, {"w": normal(4, seed="v")}, note="vector")
    yield Case("Gemm", {"x": normal(3, 4)}, {"w": w, "c": normal(5, seed="c")}, {"alpha": 0.5, "beta": 2.0})
    yield Case("Gemm", {"x": normal(3, 4)}, {"w": w.T.copy(), "c": normal(1, 5, seed="c")}, {"transB": 1})
    yield Case("Gemm", {"x": normal(4, 3), "w": normal(4, 5), "c": normal(3, 1)}, attributes={"transA": 1})
    yield Case("Gemm", {"x": normal(3, 4)}, {"w": w})
    yield Case("Einsum", {"a": X, "b": normal(2, 4, 5)}, attributes={"equation": "bij,bjk->bik"})
    yield Case("FusedMatMul", {"a": X, "b": normal(2, 5, 4)}, attributes={"alpha": 0.3, "transB": 1}, domain=CONTRIB)
    for count in (1, 2, 3):
        size, kernel = [6, 7, 5][:count], [3, 2, 3][:count]
        x, k = normal(1, 4, *size), normal(6, 2, *kernel, seed="k")
        yield Case("Conv", {"x": x}, {"w": k, "b": normal(6, seed="b")}, {"group": 2, "pads": [1] * (2 * count)})
        yield Case("Conv", {"x": x}, {"w": k}, {"group": 2, "auto_pad": "SAME_UPPER", "strides": [2] * count})
        yield Case("Conv", {"x": x, "w": k}, attributes={"group": 2, "pads": [1] * count + [0] * count})
        back = normal(4, 3, *kernel, seed="t")
        yield Case("ConvTranspose", {"x": x}, {"w": back, "b": normal(6, seed="b")},
                   {"group": 2, "strides": [2] * count, "pads": [1] * count + [0] * count})  # fmt: skip
        yield Case("ConvTranspose", {"x": x}, {"w": back}, {"group": 2, "strides": [2] * count,
                   "output_padding": [1] * count})  # fmt: skip
        for name in ("MaxPool", "AveragePool"):
            window = {"kernel_shape": [3] * count, "strides": [2] * count}
            yield Case(name, {"x": x}, attributes=window)
            yield Case(name, {"x": x}, attributes={**window, "pads": [1] * (2 * count)})
            yield Case(name, {"x": x}, attributes={**window, "ceil_mode": 1})
            yield Case(name, {"x": x}, attributes={**window, "auto_pad": "SAME_LOWER"})
        yield Case("AveragePool", {"x": x}, attributes={**window, "pads": [1] * (2 * count), "count_include_pad": 1})
        for name in ("GlobalAveragePool", "GlobalMaxPool"):
            yield Case(name, {"x": x})
    yield Case("Conv", {"x": normal(1, 2, 9)}, {"w": normal(3, 2, 3)}, {"dilations": [2]})
    yield Case("ConvTranspose", {"x": normal(1, 2, 5)}, {"w": normal(2, 3, 3)},
               {"strides": [2], "output_shape": [10], "auto_pad": "SAME_UPPER"})  # fmt: skip
    yield Case("Det", {"x": normal(2, 3, 3)})
    yield Case("GlobalLpPool", {"x": normal(1, 2, 5, 4)}, attributes={"p": 3})
    yield Case("LpPool", {"x": normal(1, 2, 6)}, attributes={"kernel_shape": [2], "p": 2})
    image = normal(1, 2, 5, 6)
    for mode, how in (
        ("nearest", "asymmetric"), ("nearest", "half_pixel"), ("nearest", "align_corners"), ("linear", "half_pixel"),
        ("linear", "align_corners"), ("linear", "asymmetric"), ("linear", "pytorch_half_pixel"),
        ("cubic", "half_pixel"), ("cubic", "align_corners"),
    ):  # fmt: skip
        for scales in ([1, 1, 2, 2], [1, 1, 1.5, 0.7]):
            yield Case("Resize", {"x": image}, {"scales": np.array(scales, np.float32)},
                       {"mode": mode, "coordinate_transformation_mode": how}, order=("x", "", "scales"),
                       note=str(scales))  # fmt: skip
        yield Case("Resize", {"x": image}, {"sizes": whole(1, 2, 7, 4)},
                   {"mode": mode, "coordinate_transformation_mode": how}, order=("x", "", "", "sizes"))  # fmt: skip
    for nearest in ("floor", "ceil", "round_prefer_ceil"):
        yield Case("Resize", {"x": image}, {"sizes": whole(1, 2, 7, 4)}, {"nearest_mode": nearest},
                   order=("x", "", "", "sizes"))  # fmt: skip
    grid = np.clip(normal(1, 3, 4, 2, scale=0.5), -1.2, 1.2)
    for padding in ("zeros", "border"):
        yield Case("GridSample", {"x": image, "grid": grid}, attributes={"mode": "linear", "padding_mode": padding},
                   opset=20)  # fmt: skip


def recurrent() -> Iterator[Case]:
    """LSTM, GRU, RNN in all directions and layouts."""
    steps, batch, size, hidden = 5, 2, 3, 4
    for name, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        last = 3 if name == "LSTM" else 2
        for direction, count in (("forward", 1), ("reverse", 1), ("bidirectional", 2)):
            constants = {
                "w": normal(count, gates * hidden, size, seed="w", scale=0.5),
                "r": normal(count, gates * hidden, hidden, seed="r", scale=0.5),
                "b": normal(count, 2 * gates * hidden, seed="b", scale=0.5),
            }
            states = {"h": normal(count, batch, hidden, seed="h")}
            states |= {"c": normal(count, batch, hidden, seed="c")} if name == "LSTM" else {}
            attributes = {"hidden_size": hidden, "direction": direction}
            order = ("x", "w", "r", "b", "", *states)
            x = normal(steps, batch, size)
            yield Case(name, {"x": x, **states}, constants, attributes, outputs=last, order=order)
            yield Case(name, {"x": x}, {k: constants[k] for k in ("w", "r")}, attributes, outputs=last)
            if name == "GRU":
                yield Case(name, {"x": x, **states}, constants, {**attributes, "linear_before_reset": 1}, last,
                           order=order)  # fmt: skip
        lens = {"lens": whole(steps, steps, dtype=np.int32)}
        yield Case(name, {"x": x}, constants | lens, attributes, outputs=last, note="all of one length")
        plain = {"hidden_size": hidden, "activations": ["HardSigmoid", "Softsign", "Tanh"][: max(1, gates - 1)]}
        yield Case(name, {"x": x}, {k: v[:1] for k, v in constants.items()}, plain, outputs=last)
    peepholes = {k: v[:1] for k, v in constants.items()} | {
        "w": normal(1, 4 * hidden, size, seed="w"), "r": normal(1, 4 * hidden, hidden, seed="r"),
        "b": normal(1, 8 * hidden, seed="b"), "p": normal(1, 3 * hidden, seed="p"),
    }  # fmt: skip
    yield Case("LSTM", {"x": x}, peepholes, {"hidden_size": hidden}, outputs=3,
               order=("x", "w", "r", "b", "", "", "", "p"), note="peepholes")  # fmt: skip


def quantized() -> Iterator[Case]:
    """Integer operators."""
    a, b = integers(3, 4, high=255, dtype=np.uint8), integers(4, 5, low=-127, high=127, dtype=np.int8)
    scale, zero = scalar(0.02), scalar(120, np.uint8)
    for kind in (np.uint8, np.int8):
        yield Case("QuantizeLinear", {"x": 3 * X}, {"s": scale, "z": np.array(7, kind)}, note=kind.__name__)
        data = integers(3, 4, high=100, dtype=kind)
        yield Case("DequantizeLinear", {"x": data}, {"s": scale, "z": np.array(7, kind)}, note=kind.__name__)
    each = {"s": np.abs(normal(3)) / 50 + 0.01, "z": integers(3, low=-9, high=9, dtype=np.int8)}
    yield Case("QuantizeLinear", {"x": X}, each, {"axis": 1})
    yield Case("DequantizeLinear", {"x": integers(2, 3, 4, low=-9, dtype=np.int8)}, each, {"axis": 1})
    yield Case("DequantizeLinear", {"x": integers(3, 4, dtype=np.int32)}, {"s": scale})
    yield Case("DequantizeLinear", {"x": integers(4, 6, low=-9, dtype=np.int8)},
               {"s": np.abs(normal(4, 2)) + 0.1}, {"axis": 1, "block_size": 3}, opset=21)  # fmt: skip
    yield Case("DynamicQuantizeLinear", {"x": X}, outputs=3)
    yield Case("MatMulInteger", {"a": a}, {"b": b, "az": zero, "bz": scalar(3, np.int8)})
    yield Case("MatMulInteger", {"a": a}, {"b": b})
    image, kernel = integers(1, 2, 5, 6, high=255, dtype=np.uint8), integers(4, 2, 3, 3, high=255, dtype=np.uint8)
    yield Case(
        "ConvInteger", {"x": image}, {"w": kernel, "xz": zero, "wz": scalar(128, np.uint8)}, {"pads": [1, 1, 1, 1]}
    )
    quanta = {"ys": scalar(0.3), "yz": scalar(128, np.uint8)}
    product = {"as": scale, "az": zero, "b": b, "bs": scalar(0.05), "bz": scalar(0, np.int8)}
    yield Case("QLinearMatMul", {"a": a}, product | quanta)
    convolution = {
        "xs": scale, "xz": zero, "w": kernel, "ws": np.abs(normal(4)) / 99 + 0.01, "wz": np.full(4, 128, np.uint8),
        **quanta, "bias": integers(4, low=-999, high=999, dtype=np.int32),
    }  # fmt: skip
    yield Case("QLinearConv", {"x": image}, convolution, {"pads": [1, 1, 1, 1], "strides": [2, 2]})
    sums = {"as": scale, "az": zero, "b": integers(3, 4, high=255, dtype=np.uint8, seed="b"), "bs": scalar(0.01),
            "bz": scalar(99, np.uint8), "ys": scalar(0.03), "yz": scalar(110, np.uint8)}  # fmt: skip
    for name in ("QLinearAdd", "QLinearMul"):
        yield Case(name, {"a": a}, sums, domain=CONTRIB)
    unary = {"xs": scale, "xz": zero, "ys": scalar(1 / 256), "yz": scalar(0, np.uint8)}
    yield Case("QLinearSigmoid", {"x": a}, unary, domain=CONTRIB)
    yield Case("QLinearLeakyRelu", {"x": a}, unary, {"alpha": 0.1}, domain=CONTRIB)
    yield Case("QLinearSoftmax", {"x": a}, unary, {"opset": 13, "axis": -1}, domain=CONTRIB)
    yield Case("QLinearGlobalAveragePool", {"x": image}, unary, domain=CONTRIB)
    yield Case("QLinearConcat", {"a": a}, {"ys": scalar(0.03), "yz": scalar(110, np.uint8), "as": scale, "az": zero},
               {"axis": 1}, order=("ys", "yz", "a", "as", "az", "a", "as", "az"), domain=CONTRIB)  # fmt: skip
    yield Case("QGemm", {"a": a}, {"as": scale, "az": zero, "b": b, "bs": scalar(0.05), "bz": scalar(0, np.int8),
               "c": integers(5, low=-99, dtype=np.int32), **quanta}, domain=CONTRIB)  # fmt: skip
    yield Case("MatMulIntegerToFloat", {"a": a}, {"b": b, "as": scale, "bs": scalar(0.05), "az": zero},
               domain=CONTRIB)  # fmt: skip
    yield Case("DynamicQuantizeMatMul", {"x": normal(3, 4)}, {"b": b, "bs": scalar(0.05)}, domain=CONTRIB)
    for bits, packed in ((4, integers(5, 2, 8, high=255, dtype=np.uint8)),):
        yield Case("MatMulNBits", {"x": normal(3, 32)}, {"b": packed, "s": np.abs(normal(10)) + 0.1},
                   {"K": 32, "N": 5, "bits": bits, "block_size": 16}, domain=CONTRIB, tolerance=1e-4)  # fmt: skip


def attention() -> Iterator[Case]:
    """Attention and rotary embedding as one operator."""
    q, k, v = normal(2, 4, 5, 8), normal(2, 2, 6, 8, seed="k"), normal(2, 2, 6, 8, seed="v")
    yield Case("Attention", {"q": q, "k": k, "v": v}, opset=23)
    yield Case("Attention", {"q": q, "k": k, "v": v, "m": normal(5, 6)}, attributes={"scale": 0.2}, opset=23)
    seen = integers(2, 1, 5, 6, high=2).astype(bool)
    seen[..., 0] = True
    yield Case("Attention", {"q": q, "k": k, "v": v, "m": seen}, opset=23)
    blind = seen.copy()
    blind[:, :, 2] = False  # a row that sees nothing is 0
    yield Case("Attention", {"q": q, "k": k, "v": v, "m": blind}, opset=23)
    yield Case("Attention", {"q": q, "k": k, "v": v, "m": np.where(blind, 0, -np.inf).astype(np.float32)}, opset=23)
    yield Case("Attention", {"q": normal(2, 5, 32), "k": normal(2, 5, 16), "v": normal(2, 5, 16)}, opset=23,
               attributes={"q_num_heads": 4, "kv_num_heads": 2, "is_causal": 1})  # fmt: skip
    yield Case("Attention", {"q": q, "k": k, "v": v, "pk": normal(2, 2, 3, 8), "pv": normal(2, 2, 3, 8, seed="pv")},
               outputs=3, opset=23, order=("q", "k", "v", "", "pk", "pv"))  # fmt: skip
    yield Case("Attention", {"q": q, "k": k, "v": v}, attributes={"softcap": 2.0}, opset=23)
    cache = {"cos": normal(9, 4), "sin": normal(9, 4, seed="s")}
    for interleaved in (0, 1):
        how = {"interleaved": interleaved}
        place = integers(2, 5, high=9)
        yield Case("RotaryEmbedding", {"x": q, "p": place}, cache, how, opset=23, order=("x", "cos", "sin", "p"))
        yield Case("RotaryEmbedding", {"x": q}, {"cos": normal(2, 5, 4), "sin": normal(2, 5, 4)}, how, opset=23)
        yield Case("RotaryEmbedding", {"x": normal(2, 5, 32), "p": place}, cache, {**how, "num_heads": 4}, opset=23,
                   order=("x", "cos", "sin", "p"))  # fmt: skip
        yield Case("RotaryEmbedding", {"x": normal(2, 5, 32), "p": place}, cache, how, domain=CONTRIB)
        yield Case("RotaryEmbedding", {"x": normal(2, 5, 32), "p": whole(2)}, cache, how, domain=CONTRIB)
    mask = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], np.int32)
    packed = {"w": normal(8, 24, scale=0.3), "b": normal(24, seed="b")}
    x = normal(2, 5, 8)
    yield Case("Attention", {"x": x, "m": mask}, packed, {"num_heads": 2}, domain=CONTRIB, order=("x", "w", "b", "m"))
    yield Case("Attention", {"x": x}, packed, {"num_heads": 2, "unidirectional": 1}, domain=CONTRIB)
    split = {"q": x, "k": normal(2, 5, 8, seed="k"), "v": normal(2, 5, 8, seed="v")}
    yield Case("MultiHeadAttention", split, attributes={"num_heads": 2}, domain=CONTRIB)
    yield Case("MultiHeadAttention", split | {"m": mask}, {"b": normal(24, seed="b")}, {"num_heads": 2}, domain=CONTRIB,
               order=("q", "k", "v", "b", "m"))  # fmt: skip
    yield Case("MultiHeadAttention", split | {"e": normal(1, 2, 5, 5)}, attributes={"num_heads": 2}, domain=CONTRIB,
               order=("q", "k", "v", "", "", "e"))  # fmt: skip


CASES = [
    case
    for family in (elementwise, shapes, indexing, norms, products, recurrent, quantized, attention)
    for case in family()
]
