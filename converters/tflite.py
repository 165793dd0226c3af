"""torch -> TFLite: one file per graph with one signature, inputs and outputs bound by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgeattn.converters.trace import (
    compare,
    conversion_error,
    example_tensors,
    named_wrapper,
    reference_outputs,
    trace,
)
from edgeattn.errors import ConversionError, UnsupportedError, load_extra, unknown_name
from edgeattn.model import Artifact, EdgeModel
from edgeattn.silence import silenced
from edgeattn.spec import GraphSpec

if TYPE_CHECKING:
    import torch

PRECISIONS = ("fp32", "fp16")
PARITY = 1e-4  # largest absolute difference to torch, float32
HALF_PARITY = 3e-2  # float16 weights have 11 bits; a wrong graph is off by far more


def to_tflite(model: EdgeModel, directory: Path, precision: Literal["fp32", "fp16"]) -> Artifact:
    """Convert every graph of a model to TFLite, checked against torch on the example inputs.

    fp16 stores the weights as float16; XNNPACK widens them when it loads and computes in float32, a GPU delegate
    computes in float16. int64 inputs and outputs become int32: the format's kernels know no other index type.

    Args:
        model: modules in eval mode.
        directory: existing directory; ``GRAPH.tflite`` is written into it.
        precision: of the weights.

    Raises:
        ConversionError: naming the node and the module path, or the output that differs from torch's.
        UnsupportedError: for any other precision.
        MissingExtraError: without litert-torch, ai-edge-litert or ai-edge-quantizer.
    """
    if precision not in PRECISIONS:
        raise UnsupportedError(unknown_name("TFLite precision", precision, PRECISIONS))
    notes = []
    models = {}
    for graph in model.spec.graphs:
        path = directory / f"{graph.name}.tflite"
        _convert_graph(model, graph, path)
        reference = reference_outputs(model, graph)
        example = model.example[graph.name]
        compare(reference, _run(path, graph, example), PARITY, graph.name, "TFLite")
        if precision == "fp16":
            _halve_weights(path, graph.name)
            compare(reference, _run(path, graph, example), HALF_PARITY, graph.name, "float16 TFLite")
        models[graph.name] = path
        narrowed = [tensor.name for tensor in (*graph.all_inputs, *graph.all_outputs) if tensor.dtype == "int64"]
        if narrowed:
            notes.append(f"int64 as int32: {', '.join(narrowed)}")
    recipe = {"fp32": "float32", "fp16": "float16 weights, float32 input and output"}[precision]
    return Artifact("litert", precision, models, "; ".join([recipe, *notes]))


def _convert_graph(model: EdgeModel, graph: GraphSpec, path: Path) -> None:
    program = None
    with silenced({"TF_CPP_MIN_LOG_LEVEL": "3"}):
        litert_torch: Any = load_extra("litert_torch", "tflite")
        config = load_extra("litert_torch._config", "tflite").config
        shown, config.show_progress = config.show_progress, False
        try:
            # Traced here first: a forward that cannot be traced is then named by module, as for the other engines.
            program = trace(model, graph)
            module = _keyword_module(model.modules[graph.name], graph)
            sample = example_tensors(model, graph)
            converted = litert_torch.signature(graph.name, module, sample_kwargs=sample).convert()
        except ConversionError:
            raise
        except Exception as error:
            if program is None:
                raise
            raise conversion_error(error, program, graph.name, "LiteRT") from error
        finally:
            config.show_progress = shown
        converted.export(str(path))


def _keyword_module(module: torch.nn.Module, graph: GraphSpec) -> torch.nn.Module:
    """The wrapper with a signature of named inputs: LiteRT names a signature's inputs after the keywords."""
    import torch

    inner = named_wrapper(module, graph)
    names = graph.input_names

    class Keywords(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, **tensors: torch.Tensor) -> Any:
            return self.inner(*(tensors[name] for name in names))

    return Keywords().eval()


def _halve_weights(path: Path, graph: str) -> None:
    with silenced():
        quantizer: Any = load_extra("ai_edge_quantizer.quantizer", "tflite")
        types: Any = load_extra("ai_edge_quantizer.qtyping", "tflite")
        algorithms: Any = load_extra("ai_edge_quantizer.algorithm_manager", "tflite")
        half = types.OpQuantizationConfig(
            weight_tensor_config=types.TensorQuantizationConfig(num_bits=16, dtype=types.TensorDataType.FLOAT),
            compute_precision=types.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        )
        work = quantizer.Quantizer(str(path))
        for operator in (types.TFLOperationName.ALL_SUPPORTED,):
            work.update_quantization_recipe(".*", operator, half, algorithms.AlgorithmName.FLOAT_CASTING)
        try:
            halved = work.quantize()
        except Exception as error:
            raise ConversionError(f"graph {graph!r}: float16 weights failed: {error}; ask for fp32") from error
        halved.export_model(str(path), overwrite=True)


def _run(path: Path, graph: GraphSpec, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    with silenced():
        interpreter_module: Any = load_extra("ai_edge_litert.interpreter", "tflite")
        try:
            runner = interpreter_module.Interpreter(str(path), num_threads=1).get_signature_runner(graph.name)
        except (RuntimeError, ValueError) as error:
            raise ConversionError(f"graph {graph.name!r}: LiteRT cannot load the converted model: {error}") from error
        details = runner.get_input_details()
        feed = {
            tensor.name: tensor.check(inputs[tensor.name]).astype(details[tensor.name]["dtype"])
            for tensor in graph.all_inputs
            if tensor.name in details
        }
        outputs = runner(**feed)
        return {tensor.name: outputs[tensor.name].astype(tensor.dtype) for tensor in graph.all_outputs}
