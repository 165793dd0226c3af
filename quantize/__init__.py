"""Post-training int8, one recipe per engine, with the engine's own defaults where they were measured to hold."""

from edgeattn.quantize.openvino import int8_openvino
from edgeattn.quantize.qdq import quantize_onnx
from edgeattn.quantize.tflite import int8_tflite

__all__ = ["int8_openvino", "int8_tflite", "quantize_onnx"]
