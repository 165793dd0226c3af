"""TFLite files as models: read with care, written as ONNX in float32, and imported like one."""

__all__ = [
    "file",
]
