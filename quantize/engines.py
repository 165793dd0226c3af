"""One entry per engine: what quantizes a model for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgeattn.engines import LITERT, ONNXRUNTIME, OPENVINO, TENSORRT
from edgeattn.model import Artifact
from edgeattn.quantize.quantization import Quantization

Quantizer = Callable[[Quantization], Artifact]
"""Gives what the engine's converter takes: ONNX with Q/DQ, or the engine's own files. Raises an
:class:`~edgeattn.errors.EdgeattnError` that says what to change."""

# What a quantizer works with is imported when it is called; naming them here keeps that visible to type checkers.


def _openvino(work: Quantization) -> Artifact:
    from edgeattn.quantize.openvino import quantize

    return quantize(work)


def _litert(work: Quantization) -> Artifact:
    from edgeattn.quantize.litert import quantize

    return quantize(work)


def _onnx(work: Quantization) -> Artifact:
    from edgeattn.quantize.onnx import quantize

    return quantize(work)


QUANTIZERS: Mapping[str, Quantizer] = {
    OPENVINO.name: _openvino,
    LITERT.name: _litert,
    ONNXRUNTIME.name: _onnx,
    TENSORRT.name: _onnx,
}
"""Engine -> what quantizes a model for it."""
