"""Dynamic-range int8 for TFLite: int8 weights, activations quantized as they come, float input and output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeattn.errors import ConversionError, UnsupportedError, load_extra
from edgeattn.model import Artifact
from edgeattn.quantize.calibration import Calibration
from edgeattn.silence import silenced


def int8_tflite(tflite: Artifact, calibration: Calibration, directory: Path) -> Artifact:
    """Quantize the weights of float32 TFLite files per output channel.

    Activations are quantized per row while the model runs: no ranges to calibrate, hence none to be wrong, and under
    XNNPACK several times faster than static int8, whose graph falls apart into dozens of partitions. Depthwise
    convolutions stay float32: XNNPACK has no such kernel, and each would split the graph (6 partitions, not 1).

    Args:
        tflite: the float32 artifact of ``to_tflite``.
        calibration: not needed by this recipe; taken so that all recipes are called alike.
        directory: existing directory, another one than the artifact's; its files are written into it
            under the same names.

    Raises:
        UnsupportedError: if the artifact is not float32 TFLite.
        ConversionError: if the quantizer fails.
        MissingExtraError: without ai-edge-quantizer.
    """
    del calibration
    if tflite.backend != "litert" or tflite.precision != "fp32":
        raise UnsupportedError(f"int8 for TFLite starts from float32 TFLite, got {tflite.backend} {tflite.precision}")
    paths = dict.fromkeys(tflite.models.values())  # graphs may stand in one file, each under its signature
    written = {path: _quantize(path, directory / path.name, _graphs(tflite, path)) for path in paths}
    models = {graph: written[path] for graph, path in tflite.models.items()}
    return Artifact("litert", "int8", models, "dynamic-range int8, weights per channel, float32 input and output")


def _graphs(tflite: Artifact, path: Path) -> str:
    return ", ".join(graph for graph, file in tflite.models.items() if file == path)


def _quantize(source: Path, target: Path, graph: str) -> Path:
    with silenced():
        types: Any = load_extra("ai_edge_quantizer.qtyping", "tflite")
        names = types.TFLOperationName
        # A constant on the left of a batched product is quantized too, and no kernel takes that: only then are those
        # products left out, because on the right they gain as linear layers do.
        for left_out in ((names.DEPTHWISE_CONV_2D,), (names.DEPTHWISE_CONV_2D, names.BATCH_MATMUL)):
            _quantize_all_but(left_out, source, target, graph)
            refusal = _refusal(target)
            if refusal is None:
                return target
    raise ConversionError(f"graph {graph!r}: LiteRT cannot run its int8 model: {refusal:.300}; ship fp16 instead")


def _quantize_all_but(left_out: tuple[Any, ...], source: Path, target: Path, graph: str) -> None:
    quantizer: Any = load_extra("ai_edge_quantizer.quantizer", "tflite")
    recipes: Any = load_extra("ai_edge_quantizer.recipe", "tflite")
    algorithms: Any = load_extra("ai_edge_quantizer.algorithm_manager", "tflite")
    try:
        work = quantizer.Quantizer(str(source), recipes.dynamic_wi8_afp32())
        for operation in left_out:
            work.update_quantization_recipe(".*", operation, algorithm_key=algorithms.AlgorithmName.NO_QUANTIZE)
        quantized = work.quantize()
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ConversionError(
            f"graph {graph!r}: ai-edge-quantizer cannot quantize this model: {reason}; ship fp16 instead"
        ) from error
    quantized.export_model(str(target), overwrite=True)


def _refusal(path: Path) -> str | None:
    """What the interpreter says against a file; None if it takes it."""
    interpreters: Any = load_extra("ai_edge_litert.interpreter", "tflite")
    try:
        interpreter = interpreters.Interpreter(str(path), num_threads=1)
        interpreter.allocate_tensors()
        for name in interpreter.get_signature_list():
            interpreter.get_signature_runner(name)
    except (RuntimeError, ValueError) as error:
        return " ".join(str(error).split())
    return None
