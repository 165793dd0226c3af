"""Q/DQ in ONNX, which every engine starts from that is reached through it."""

from __future__ import annotations

from dataclasses import replace

from edgeattn.engines import ONNXRUNTIME, TREATMENT, precision_of
from edgeattn.model import Artifact
from edgeattn.quantize.plan import counted, recipe_plan
from edgeattn.quantize.qdq import QdqOptions, quantize_onnx
from edgeattn.quantize.quantization import Quantization
from edgeattn.quantize.saturation import narrow_for


def quantize(work: Quantization) -> Artifact:
    """ONNX with Q/DQ, as ONNX Runtime executes it; the converter of an engine makes its own files of that.

    Raises:
        DataError, InputError, UnsupportedError, MissingExtraError: as :func:`edgeattn.quantize.qdq.quantize_onnx`.
    """
    source, target = work.source, work.target
    options = QdqOptions(recipe_plan(work.recipe, work.plan), scales=work.scales, shared=work.engine.shares_pairs)
    narrow: frozenset[str] = frozenset()
    if TREATMENT[work.recipe] == "int8":
        narrow = narrow_for(target.isa, target.cpu.arch, source.onnx, source.calibration, options)
        options = replace(options, narrow=narrow)
    made = quantize_onnx(source.onnx, source.calibration, source.new_directory("qdq"), options)
    recipe = f"{work.recipe}: {counted(made.treatments)}, symmetric, per channel"
    if narrow:
        recipe += f", 7-bit weights in {len(narrow)} layers that would saturate"
    return Artifact(ONNXRUNTIME.name, precision_of(work.recipe), made.models, recipe, treatments=made.treatments)
