"""Post-training int8, one recipe per engine, with the engine's own defaults where they were measured to hold."""

from edgeattn.quantize.openvino import int8_openvino
from edgeattn.quantize.qdq import int8_qdq
from edgeattn.quantize.tflite import int8_tflite

__all__ = ["int8_openvino", "int8_qdq", "int8_tflite"]
