"""torch -> TFLite: one file with a signature per graph, inputs and outputs bound by name."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgeattn.converters.conversion import Conversion
from edgeattn.converters.trace import (
    compare_with_source,
    conversion_error,
    example_tensors,
    first_line,
    named_wrapper,
    strip_wrapper,
    trace,
    wrapper_prefix,
)
from edgeattn.engines import LITERT
from edgeattn.errors import ConversionError, UnsupportedError, load_extra, unknown_name
from edgeattn.evaluation.parity import MAX_ABS_FP32
from edgeattn.guards.silence import silenced
from edgeattn.model import Artifact, EdgeModel
from edgeattn.spec import HALF_MAX, GraphSpec

if TYPE_CHECKING:
    import torch

Copies = dict[Any, "torch.Tensor"]
PRECISIONS = ("fp32", "fp16")
SEVERAL = "model.tflite"  # file that holds all graphs of a model that has several
HALF_PARITY = 3e-2  # float16 weights have 11 bits; a wrong graph is off by far more


def convert(work: Conversion) -> Artifact:
    """TFLite of the model, made once; halved or quantized, it is made of that file."""
    if work.quantized is not None:
        return work.quantized
    if work.recipe == "fp16":
        return halve_tflite(work.source.model, work.source.tflite, work.source.new_directory(f"{LITERT.name}-fp16"))
    return work.source.tflite


def to_tflite(model: EdgeModel, directory: Path, precision: Literal["fp32", "fp16"]) -> Artifact:
    """Convert every graph of a model to TFLite, checked against torch on the example inputs.

    fp16 stores the weights as float16; XNNPACK widens them when it loads and computes in float32, a GPU delegate
    computes in float16. Inputs and outputs that the spec calls int64 are int32 in the file, as delegates want them; the
    runtime narrows and widens at its border, and checks the range.

    Args:
        model: modules in eval mode.
        directory: existing directory; ``GRAPH.tflite`` is written into it, or ``model.tflite`` for several graphs.
        precision: of the weights.

    Raises:
        ConversionError: naming the node and the module path, or the output that differs from torch's.
        UnsupportedError: for any other precision.
        MissingExtraError: without litert-torch, ai-edge-litert or ai-edge-quantizer.
    """
    if precision not in PRECISIONS:
        raise UnsupportedError(unknown_name("TFLite precision", precision, PRECISIONS))
    for graph in model.spec.graphs:
        unsupported = getattr(model.modules[graph.name], "unsupported", "")
        if unsupported:  # an ONNX source that could not be imported into torch
            raise UnsupportedError(f"graph {graph.name!r}: {unsupported}")
    models = _convert(model, directory)
    for graph in model.spec.graphs:
        _compare_with_source(model, graph, models[graph.name], MAX_ABS_FP32, "TFLite")
    single = Artifact(LITERT.name, "fp32", models, "float32")
    return single if precision == "fp32" else _halved(model, single)


def halve_tflite(model: EdgeModel, tflite: Artifact, directory: Path) -> Artifact:
    """float16 weights for the float32 files of :func:`to_tflite`, without converting the model again.

    Args:
        model: that they came from.
        tflite: float32.
        directory: existing directory, another one than the artifact's.

    Raises:
        ConversionError: if an output differs from torch's by more than float16 weights explain.
        UnsupportedError: if the artifact is not float32 TFLite.
    """
    if tflite.backend != LITERT.name or tflite.precision != "fp32":
        raise UnsupportedError(f"float16 TFLite starts from float32 TFLite, got {tflite.backend} {tflite.precision}")
    copies = {path: directory / path.name for path in dict.fromkeys(tflite.models.values())}
    for path, copy in copies.items():
        shutil.copyfile(path, copy)
    return _halved(model, replace(tflite, models={graph: copies[path] for graph, path in tflite.models.items()}))


def _halved(model: EdgeModel, single: Artifact) -> Artifact:
    models = single.models
    for path in sorted(set(models.values())):
        _halve_weights(path, ", ".join(graph for graph in models if models[graph] == path))
    for graph in model.spec.graphs:
        _compare_with_source(model, graph, models[graph.name], HALF_PARITY, "float16 TFLite")
    return Artifact(LITERT.name, "fp16", models, "float16 weights, float32 input and output")


def _compare_with_source(model: EdgeModel, graph: GraphSpec, path: Path, tolerance: float, tool: str) -> None:
    got = _run(path, graph, model.example[graph.name], wrapper_prefix(model.modules[graph.name]))
    compare_with_source(model, graph, got, tolerance, tool)


def _convert(model: EdgeModel, directory: Path) -> dict[str, Path]:
    """One file with a signature per graph, which share their weights there; graph -> file.

    Where graphs cannot stand in one file together, each has a file of its own.
    """
    graphs = model.spec.graphs
    if len(graphs) > 1:
        path = directory / SEVERAL
        with contextlib.suppress(ConversionError):  # by itself each graph tells what is wrong with it
            _convert_graphs(model, graphs, path)
            return {graph.name: path for graph in graphs}
    paths = {graph.name: directory / f"{graph.name}.tflite" for graph in graphs}
    for graph in graphs:
        _convert_graphs(model, (graph,), paths[graph.name])
    return paths


def _convert_graphs(model: EdgeModel, graphs: tuple[GraphSpec, ...], path: Path) -> None:
    from edgeattn.converters.litert_forms import litert_forms  # it needs torch

    with silenced({"TF_CPP_MIN_LOG_LEVEL": "3"}):
        litert_torch: Any = load_extra("litert_torch", "tflite")
        programs = {}
        signatures = litert_torch
        for graph in graphs:
            module = named_wrapper(model.modules[graph.name], graph)
            programs[module] = trace(model, graph)
            signatures = signatures.signature(graph.name, module, sample_kwargs=example_tensors(model, graph))
        try:
            with _given_programs(programs), litert_forms(), _infinite_constants():
                # Without 64-bit integers: delegates and NPUs refuse them, the runtime narrows at the border.
                signatures.convert(enable_x64=False).export(str(path))
        except OSError:
            raise
        except Exception as error:
            prefix, program = wrapper_prefix(model.modules[graphs[0].name]), next(iter(programs.values()))
            raise conversion_error(error, program, graphs[0].name, "LiteRT", prefix) from error


@contextlib.contextmanager
def _given_programs(programs: Mapping[torch.nn.Module, torch.export.ExportedProgram]) -> Iterator[None]:
    """Let litert-torch convert programs that are traced and rewritten already, where it would trace by itself."""
    import torch

    def given(module: torch.nn.Module, *_: Any, **__: Any) -> torch.export.ExportedProgram:
        return programs[module]

    original = torch.export.export
    with contextlib.ExitStack() as stack:
        copies: Copies = {}
        for program in programs.values():
            stack.enter_context(_plain_weights(program, copies))
        stack.enter_context(torch.no_grad())
        torch.export.export = given  # type: ignore[assignment]
        try:
            yield
        finally:
            torch.export.export = original


@contextlib.contextmanager
def _infinite_constants() -> Iterator[None]:
    """Let litert-torch keep -inf in constants: it makes the lowest float32 of it, which is another mask.

    A row that it hides as a whole would be uniform and not NaN, and an output would say -3.4e38.
    """
    constants: Any = load_extra("litert_torch.backend.inline_consts", "tflite")
    original = constants._clamp_inf_values  # noqa: SLF001  # put back after
    constants._clamp_inf_values = lambda tensor: tensor  # noqa: SLF001
    try:
        yield
    finally:
        constants._clamp_inf_values = original  # noqa: SLF001


@contextlib.contextmanager
def _plain_weights(program: torch.export.ExportedProgram, copies: Copies) -> Iterator[None]:
    """Weights that litert-torch 0.10 can take, and the program's own back afterwards.

    It keys its cache of constants by address, and makes a contiguous copy first, which is freed at once: two weights
    with strides may then share an address, and the second silently becomes the first. Tensors that a module made in
    inference mode and kept cannot be traced again.
    """
    import torch

    saved = []
    for tensors in (program.state_dict, program.constants):
        for name, tensor in tensors.items():
            if not isinstance(tensor, torch.Tensor):
                continue
            if not tensor.is_contiguous() or tensor.is_inference():
                saved.append((tensors, name, tensor))
    for tensors, name, tensor in saved:
        # Programs that share a weight share its copy: litert-torch stores once what has one address.
        key = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
        if key not in copies:
            copy = tensor.detach().clone(memory_format=torch.contiguous_format)
            learned = isinstance(tensor, torch.nn.Parameter)  # a program asks of each weight that it is what it was
            copies[key] = torch.nn.Parameter(copy, tensor.requires_grad) if learned else copy
        tensors[name] = copies[key]
    try:
        yield
    finally:
        for tensors, name, tensor in saved:
            tensors[name] = tensor


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
        every = types.TFLOperationName.ALL_SUPPORTED
        work.update_quantization_recipe(".*", every, half, algorithms.AlgorithmName.FLOAT_CASTING)
        for name in _beyond_half(path):
            scope = f"^{re.escape(name)}"
            work.update_quantization_recipe(scope, every, algorithm_key=algorithms.AlgorithmName.NO_QUANTIZE)
        try:
            halved = work.quantize()
        except Exception as error:
            raise ConversionError(f"graph {graph!r}: float16 weights failed: {error}; ask for fp32") from error
        halved.export_model(str(path), overwrite=True)


def _beyond_half(path: Path) -> list[str]:
    """First outputs, by which a recipe selects, of the operators with a constant that float16 makes infinite."""
    schema: Any = load_extra("ai_edge_litert.schema_py_generated", "tflite")
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    names = []
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            tensors = [subgraph.tensors[index] for index in operator.inputs if index >= 0]
            floats = [tensor for tensor in tensors if tensor.type == schema.TensorType.FLOAT32]
            data = [model.buffers[tensor.buffer].data for tensor in floats]
            arrays = [np.asarray(stored).view(np.float32) for stored in data if stored is not None and len(stored)]
            if any(np.abs(array).max() > HALF_MAX for array in arrays):
                names.append(subgraph.tensors[operator.outputs[0]].name.decode())
    return names


def _run(path: Path, graph: GraphSpec, inputs: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    with silenced():
        interpreter_module: Any = load_extra("ai_edge_litert.interpreter", "tflite")
        try:
            runner = interpreter_module.Interpreter(str(path), num_threads=1).get_signature_runner(graph.name)
        except (RuntimeError, ValueError) as error:
            raise ConversionError(
                f"graph {graph.name!r}: LiteRT has no kernel for {_unknown_operation(path, str(error), prefix)}; "
                "replace that operation in the module, or choose another target"
            ) from error
        details = runner.get_input_details()
        feed = {
            tensor.name: tensor.check(inputs[tensor.name]).astype(details[tensor.name]["dtype"], copy=False)
            for tensor in graph.all_inputs
            if tensor.name in details
        }
        try:
            outputs = runner(**feed)
        except (RuntimeError, ValueError) as error:
            raise ConversionError(
                f"graph {graph.name!r}: LiteRT converts this model and cannot run it: {first_line(error)}; replace "
                "that operation in the module, or choose another target"
            ) from error
        return {tensor.name: outputs[tensor.name] for tensor in graph.all_outputs}


def _unknown_operation(path: Path, message: str, prefix: str) -> str:
    """The operation that an interpreter stumbled over, with its module where the file tells it.

    Tensors are named ``pkg.Class/pkg.Class_attribute/.../pkg.Class_attribute;n``.
    """
    schema: Any = load_extra("ai_edge_litert.schema_py_generated", "tflite")
    found = re.search(r"builtin opcode '(\w+)'", message)
    if found is None:
        return f"this model: {message.splitlines()[0]}"
    code = getattr(schema.BuiltinOperator, found.group(1), None)
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            if model.operatorCodes[operator.opcodeIndex].builtinCode == code:
                name = subgraph.tensors[operator.outputs[0]].name.decode()
                return f"operation {found.group(1)}{_module_of(name, prefix)}"
    return f"operation {found.group(1)}"


def _module_of(tensor: str, prefix: str) -> str:
    segments = tensor.partition(";")[0].split("/")[1:]
    attributes = [segment.rpartition(".")[2].lstrip("_").partition("_")[2] for segment in segments]
    path = strip_wrapper(".".join(attributes), prefix)
    return f" of module {path}" if path else f", which makes {tensor}"
