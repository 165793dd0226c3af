"""Converters: one file per engine, from an :class:`~edgeattn.model.EdgeModel` or its ONNX to what the engine loads."""
