"""Converters: one file per engine, from an :class:`~edgeattn.model.EdgeModel` or its ONNX to what the engine loads."""

__all__ = [
    "conversion",
    "engines",
    "litert",
    "onnx",
    "onnx_operators",
    "openvino",
    "shared_weights",
    "tensorrt",
    "trace",
]
