"""One entry per engine: what makes the files that it loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgeattn.converters.conversion import Conversion
from edgeattn.engines import LITERT, ONNXRUNTIME, OPENVINO, TENSORRT
from edgeattn.model import Artifact

Converter = Callable[[Conversion], Artifact]
"""Raises an :class:`~edgeattn.errors.EdgeattnError` that says what to change."""

# What a converter works with is imported when it is called; naming them here keeps that visible to type checkers.


def _openvino(work: Conversion) -> Artifact:
    from edgeattn.converters.openvino import convert

    return convert(work)


def _litert(work: Conversion) -> Artifact:
    from edgeattn.converters.litert import convert

    return convert(work)


def _onnxruntime(work: Conversion) -> Artifact:
    from edgeattn.converters.onnxruntime import convert

    return convert(work)


def _tensorrt(work: Conversion) -> Artifact:
    from edgeattn.converters.tensorrt import convert

    return convert(work)


CONVERTERS: Mapping[str, Converter] = {
    OPENVINO.name: _openvino,
    LITERT.name: _litert,
    ONNXRUNTIME.name: _onnxruntime,
    TENSORRT.name: _tensorrt,
}
"""Engine -> what makes its files."""
