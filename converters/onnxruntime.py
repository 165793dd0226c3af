"""ONNX Runtime runs the exported ONNX as it is."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from edgeattn.converters import tensorrt
from edgeattn.converters.conversion import Conversion
from edgeattn.converters.shared_weights import share_onnx
from edgeattn.engines import ONNXRUNTIME
from edgeattn.model import Artifact


def convert(work: Conversion) -> Artifact:
    """The exported ONNX as it is; quantized with float32 around the Q/DQ; fp16 as for TensorRT."""
    if work.quantized is not None:
        room = work.source.new_directory(f"{ONNXRUNTIME.name}-{work.recipe}")
        models = {graph: Path(shutil.copy(path, room / path.name)) for graph, path in work.quantized.models.items()}
        share_onnx(models)
        return replace(work.quantized, models=models)
    if work.recipe == "fp16":
        return replace(tensorrt.convert(work), backend=ONNXRUNTIME.name, build=None)
    return Artifact(ONNXRUNTIME.name, "fp32", work.source.onnx, "ONNX, float32")
