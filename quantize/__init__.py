"""Quantization after training, one way per engine, each led by the same plan of layers."""

from edgeattn.quantize.litert import quantize_tflite
from edgeattn.quantize.openvino import int8_nncf
from edgeattn.quantize.qdq import quantize_onnx

__all__ = [
    "attention_maps",
    "engines",
    "int8_nncf",
    "plan",
    "quantization",
    "quantize_onnx",
    "quantize_tflite",
    "ranges",
    "recovery",
    "search",
    "sensitivity",
]
