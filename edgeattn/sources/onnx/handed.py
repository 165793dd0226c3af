"""Which files go to engines as they are, and which are exported again from the torch module that was made of them.

Operators of ``com.microsoft`` are ONNX Runtime's own: TensorRT has none of them, OpenVINO some. What the standard added
after opset 18 is read by neither of the TensorRT versions on a Jetson.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeattn.sources.onnx.values import STANDARD

if TYPE_CHECKING:
    import onnx

OLDEST = 18  # an operator that this opset has, engines have
TAKEN = frozenset(("Gelu",))  # later ones that they have
RUNTIME_OWN = ("SimplifiedLayerNormalization",)  # in the standard's domain, but of no opset
QUANTIZED = frozenset((
    "DequantizeLinear", "DynamicQuantizeMatMul", "GatherBlockQuantized", "MatMulIntegerToFloat", "MatMulNBits",
    "QAttention", "QGemm", "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearGlobalAveragePool",
    "QLinearLeakyRelu", "QLinearMul", "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere", "QuantizeLinear",
))  # fmt: skip
"""Integer operators of ``com.microsoft``: a file stays quantized for the engines that have them."""


def not_handed(model: onnx.ModelProto) -> tuple[str, ...]:
    """Operators for which a file is exported again for every engine, each once; none where it is not."""
    found = dict.fromkeys(name for node in model.graph.node if (name := _own_name(node)))
    return () if found.keys() <= QUANTIZED else tuple(found)


def _own_name(node: onnx.NodeProto) -> str:
    import onnx

    if node.domain not in STANDARD:
        return str(node.op_type)
    known = node.op_type in TAKEN or onnx.defs.has(node.op_type, OLDEST)
    return "" if known else str(node.op_type)
