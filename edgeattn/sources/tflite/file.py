"""MODEL as a TFLite file: read with care, written as ONNX in float32, imported like one, compared with LiteRT.

docs/sources.md says what is read and how far a quantized file may differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.errors import ConversionError, ModelError, UnsupportedError, load_extra
from edgeattn.evaluation.parity import MAX_ABS_FP32, ParityMeter
from edgeattn.guards.silence import silenced, without_info
from edgeattn.model import Arrays, EdgeModel
from edgeattn.sources.examples import NONE, Examples
from edgeattn.sources.modules import GRAPH
from edgeattn.sources.onnx import file as onnx_file

if TYPE_CHECKING:
    import onnx

    from edgeattn.sources.tflite.read import Graph

SUFFIX = ".tflite"
QUANTIZED_SQNR_DB = 12.0  # of a float reading against the integers of the file: a wrong operator is far below


def owns(reference: str) -> bool:
    """Whether a reference is a .tflite file."""
    return Path(reference).suffix == SUFFIX


def load(reference: str, examples: Examples = NONE) -> EdgeModel:
    """Read a TFLite file.

    Example inputs are as for an .onnx file.

    Raises:
        ModelError: for a file that is damaged, hostile or incomplete.
        UnsupportedError: for an operator that is not read, by name.
        ConversionError: if what was read gives other numbers than LiteRT.
    """
    load_extra("ai_edge_litert.interpreter", "tflite")
    path = Path(reference)
    from edgeattn.sources.tflite.read import read_tflite

    graph = read_tflite(path)
    model = onnx_file.load_read(path, examples, lambda _: _written(path, graph))
    notes = [*model.notes, *_notes(graph), _compared(path, graph, model)]
    return replace(model, notes=tuple(note for note in notes if note))


def _written(path: Path, graph: Graph) -> onnx.ModelProto:
    from edgeattn.sources.onnx.read import checked
    from edgeattn.sources.tflite.translate import to_onnx

    try:
        return checked(to_onnx(graph), path)
    except UnsupportedError as error:
        raise type(error)(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error


def _notes(graph: Graph) -> list[str]:
    notes = []
    quantized = {name for name, index in graph.inputs.items() if graph.tensors[index].quantized}
    if any(tensor.quantized for tensor in graph.tensors):
        notes.append("read as float32: the file's integers are taken for the numbers that they stand for")
    if quantized:
        notes.append(f"inputs {', '.join(sorted(quantized))} are integers in the file and float32 here")
    if graph.open:
        notes.append(f"inputs {', '.join(graph.open)} have the sizes that the file was made with; others are not read")
    return notes


def _compared(path: Path, graph: Graph, model: EdgeModel) -> str:
    """A note on how far the reading agrees with LiteRT on the file; empty where it does to 1e-4.

    Raises:
        ConversionError: if it does not.
    """
    from edgeattn.sources.onnx.reference import difference

    bound = {name: index for name, index in graph.inputs.items() if name not in model.example[GRAPH]}
    example = dict(model.example[GRAPH])
    if bound:  # constants of the user's: the file still wants them, and the module no longer tells them
        return "not compared with LiteRT: inputs are bound"
    expected = interpreted(path, graph, example)
    got = model.run(example)
    exact = not any(tensor.quantized for tensor in graph.tensors)
    worst, meter = 0.0, ParityMeter()
    for name, wanted in expected.items():
        ours = np.asarray(got[name])
        if ours.shape != wanted.shape:
            raise ConversionError(
                f"{path}: output {name} has shape {list(wanted.shape)} in LiteRT and {list(ours.shape)} as it was read"
            )
        worst = max(worst, difference(wanted, ours))
    meter.add(expected, got)
    least = min(output.sqnr_db for output in meter.result("LiteRT").outputs.values())
    if worst <= MAX_ABS_FP32:
        return ""
    if exact or least < QUANTIZED_SQNR_DB:
        raise ConversionError(
            f"{path}: as it was read it differs from LiteRT's by {worst:.1e} ({least:.1f} dB); allowed is "
            f"{MAX_ABS_FP32:.0e}, or {QUANTIZED_SQNR_DB:.0f} dB for a quantized file; please report this model"
        )
    return f"as float32 it agrees with LiteRT's integers to {least:.1f} dB"


def interpreted(path: Path, graph: Graph, inputs: Mapping[str, np.ndarray]) -> Arrays:
    """What LiteRT makes of a file: inputs and outputs as the real numbers that they stand for.

    Raises:
        ModelError: if it refuses the file or the inputs.
    """
    module: Any = load_extra("ai_edge_litert.interpreter", "tflite")
    try:
        with silenced(), without_info():
            interpreter = module.Interpreter(str(path), num_threads=1)
            interpreter.allocate_tensors()
            for name, index in graph.inputs.items():
                interpreter.set_tensor(index, graph.tensors[index].stored(inputs[name]))
            interpreter.invoke()
            made = {name: interpreter.get_tensor(index) for name, index in graph.outputs.items()}
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: LiteRT refuses it: {' '.join(str(error).split())[:300]}") from error
    return {name: graph.tensors[graph.outputs[name]].real(array) for name, array in made.items()}
