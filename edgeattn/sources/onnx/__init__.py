"""MODEL as an ONNX file: read, made static, and rebuilt as a torch module."""

__all__ = [
    "file",
    "read",
    "reference",
]
