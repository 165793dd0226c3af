"""Operators of ONNX files that an engine has not: ONNX Runtime's own, and integer ones that only it runs.

A file that has such goes to ONNX Runtime as it is; another engine gets the torch module of the file, exported again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeattn.engines import OPENVINO, TENSORRT

if TYPE_CHECKING:
    import onnx

STANDARD = ("", "ai.onnx")
OPENVINO_TAKES = frozenset((
    "DequantizeLinear", "GatherBlockQuantized", "MatMulNBits",
    "QLinearAdd", "QLinearConcat", "QLinearLeakyRelu", "QLinearMul", "QLinearSigmoid", "QuantizeLinear",
))  # fmt: skip
"""Quantized operators of ``com.microsoft`` that OpenVINO's reader has, and computes as ONNX Runtime does.

It reads DynamicQuantizeMatMul and MatMulIntegerToFloat as well, and rounds otherwise in them.
"""
TENSORRT_LACKS = frozenset((
    "ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul",
))  # fmt: skip
"""Integer operators of the standard that TensorRT's parser refuses: it reads pairs of Q and DQ."""


def lacks(engine: str, node: onnx.NodeProto) -> bool:
    """Whether a node is no operator of an engine, though one of ONNX Runtime."""
    own = node.domain not in STANDARD
    if engine == TENSORRT.name:
        return own or node.op_type in TENSORRT_LACKS
    return engine == OPENVINO.name and own and node.op_type not in OPENVINO_TAKES


def takes(engine: str, model: onnx.ModelProto) -> bool:
    """Whether an engine gets a file as it is."""
    return not any(lacks(engine, node) for node in model.graph.node)
