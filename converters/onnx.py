"""torch -> ONNX: named inputs and outputs, static shapes, LayerNormalization as one op, module paths kept.

Two exporters: torch's own, on the traced program; where it has no translation, the older one for TorchScript, on the
same program. What is ONNX already is written as it is. :data:`edgeattn.converters.passes.ONNX_PASSES` are done on all.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.converters.trace import (
    compare_with_source,
    conversion_error,
    example_tensors,
    first_line,
    strip_wrapper,
    trace,
    wrapper_prefix,
)
from edgeattn.engines import ONNXRUNTIME
from edgeattn.errors import ConversionError, load_extra
from edgeattn.evaluation.parity import MAX_ABS_FP32
from edgeattn.graphs.layers import MODULE_KEY, module_path
from edgeattn.guards.scratch import scratch_directory
from edgeattn.guards.silence import silenced
from edgeattn.model import EdgeModel
from edgeattn.runtimes.onnxruntime import BROKEN_FUSIONS
from edgeattn.spec import GraphSpec, to_json

if TYPE_CHECKING:
    import onnx
    import torch

OPSET = 18  # what torch's exporter is written for; LayerNormalization is one op since 17
MODEL_KEY = "edgeattn.model"
SPEC_KEY = "edgeattn.graph"
EXPORTER_KEY = "edgeattn.exporter"  # which of the ways below made the file
FIRST, SECOND, GIVEN = "torch.onnx of the traced program", "torch.onnx for TorchScript", "the source's own ONNX"
SECOND_OPSET = 17  # the newest that the TorchScript exporter writes well
QUANTIZED_SQNR_DB = 30.0  # a file that rounds to integers: engines may differ by single steps
MAX_INLINE_BYTES = 2**31 - 2**24  # a protobuf holds 2 GiB, the graph beside the weights included
SMALL_BYTES = 2**12  # of a constant that shape inference may look into


def export_onnx(model: EdgeModel, directory: Path) -> Mapping[str, Path]:
    """Export every graph of a model to float32 ONNX, checked against torch on the example inputs.

    Args:
        model: modules in eval mode.
        directory: existing directory; one ``GRAPH.onnx`` per graph is written into it.

    Returns:
        graph name -> file.

    Raises:
        ConversionError: if torch.export or both exporters cannot take the model (the node and the module path are
            named), if the file is no valid ONNX or larger than 2 GiB, or if ONNX Runtime's outputs differ from torch's
            by more than 1e-4 (a file that holds integers of its own: less than 30 dB).
        MissingExtraError: without onnx, onnxscript or onnxruntime.
    """
    for module in ("torch", "onnx", "onnxscript", ONNXRUNTIME.module):
        load_extra(module, "convert")
    return {graph.name: _export_graph(model, graph, directory / f"{graph.name}.onnx") for graph in model.spec.graphs}


def describe_node(node: onnx.NodeProto) -> str:
    """``node 'node_linear_3' (MatMul) of module encoder.0``, for messages."""
    path = module_path(node)
    return f"node {node.name!r} ({node.op_type})" + (f" of module {path}" if path else "")


def reduced_opset(model: onnx.ModelProto) -> int:
    """Lower a model from opset 18 to 17 in place where that only changes how the same thing is written.

    TensorRT 8.6 (JetPack 6.0) reads opset 17. There reductions take their axes as an attribute, Split its sizes as an
    input.

    Returns:
        the opset that the model has now: 17, or unchanged if a node of it means something else there.
    """
    import onnx

    opset = next(entry for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset.version != OPSET:
        return int(opset.version)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    changed = [n for n in model.graph.node if onnx.defs.get_schema(n.op_type, OPSET, n.domain).since_version == OPSET]
    shapes = {value.name: value.type.tensor_type.shape for value in model.graph.value_info}
    reductions = [n for n in changed if n.op_type.startswith("Reduce") and n.op_type != "ReduceSum"]
    splits = [n for n in changed if n.op_type == "Split"]
    if len(reductions) + len(splits) < len(changed) or any(
        a.HasField("g") for n in model.graph.node for a in n.attribute
    ):
        return OPSET
    if any(len(n.input) > 1 and n.input[1] not in constants for n in reductions):
        return OPSET
    for node in reductions:
        if len(node.input) > 1:
            axes = onnx.numpy_helper.to_array(constants[node.input[1]]).tolist()
            del node.input[1:]
            node.attribute.append(onnx.helper.make_attribute("axes", axes))
        kept = [a for a in node.attribute if a.name != "noop_with_empty_axes"]
        del node.attribute[:]
        node.attribute.extend(kept)
    for node in splits:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if len(node.input) < 2:
            sizes = [shapes[name].dim[axis].dim_value for name in node.output]
            name = f"{node.output[0]}_sizes"
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(sizes, np.int64), name))
            node.input.append(name)
        kept = [a for a in node.attribute if a.name != "num_outputs"]
        del node.attribute[:]
        node.attribute.extend(kept)
    opset.version = 17
    onnx.checker.check_model(model)
    return 17


def with_exporter(recipe: str, onnx: Mapping[str, Path]) -> str:
    """A recipe with the way that the files of :func:`export_onnx` came; as it is for files of other origin."""
    import onnx as onnx_module

    found = []
    for path in onnx.values():
        properties = onnx_module.load(path, load_external_data=False).metadata_props
        found += [entry.value for entry in properties if entry.key == EXPORTER_KEY]
    return f"{recipe}; ONNX by {', '.join(dict.fromkeys(found))}" if found else recipe


def _export_graph(model: EdgeModel, graph: GraphSpec, path: Path) -> Path:
    _check_size(model, graph)
    proto, exporter = _proto(model, graph)
    quantized = _write(proto, exporter, model, graph, path)
    del proto  # its weights: ONNX Runtime is about to hold them twice
    got = _run(path, graph, model.example[graph.name])
    rounds = quantized or getattr(model.modules[graph.name], "rounds", False)
    least = QUANTIZED_SQNR_DB if rounds else None
    compare_with_source(model, graph, got, MAX_ABS_FP32, "ONNX", least)
    return path


def _check_size(model: EdgeModel, graph: GraphSpec) -> None:
    weights = {id(tensor): tensor.numel() * tensor.element_size() for tensor in model.modules[graph.name].parameters()}
    if sum(weights.values()) >= MAX_INLINE_BYTES:
        raise ConversionError(
            f"graph {graph.name!r}: its weights are {sum(weights.values()) / 2**30:.1f} GiB, an ONNX file holds less "
            "than 2 GiB; split the model into several graphs, or take layers out"
        )


def _proto(model: EdgeModel, graph: GraphSpec) -> tuple[onnx.ModelProto, str]:
    """The graph as ONNX with tidy metadata, and the way it came."""
    import onnx

    prefix = wrapper_prefix(model.modules[graph.name])
    given = model.onnx.get(graph.name)
    if given is not None:
        proto = onnx.ModelProto()
        proto.CopyFrom(given)
        _name_handed_through(proto, graph)
        _tidy(proto, prefix)
        return proto, GIVEN
    with silenced():
        program = trace(model, graph)
        try:
            proto, exporter = _exported_first(program, graph), FIRST
        except Exception as error:  # noqa: BLE001  # exporters raise anything
            try:
                proto, exporter = exported_second(model, graph, program), SECOND
            except Exception:  # noqa: BLE001  # whatever it is, the first exporter says more about the model
                raise conversion_error(error, program, graph.name, "torch's ONNX exporter", prefix) from error
    _tidy(proto, prefix)
    _rewrite(proto, graph)
    _check_layer_norms(proto, program, graph.name)
    return proto, exporter


def _name_handed_through(proto: onnx.ModelProto, graph: GraphSpec) -> None:
    """Give outputs of a file that are its inputs names of their own, see :attr:`GraphSpec.stored_outputs`."""
    import onnx

    for value in proto.graph.output:
        stored = graph.stored_outputs.get(value.name, value.name)
        if stored != value.name:
            proto.graph.node.append(onnx.helper.make_node("Identity", [value.name], [stored], stored))
            value.name = stored


def _exported_first(program: torch.export.ExportedProgram, graph: GraphSpec) -> onnx.ModelProto:
    import torch

    with torch.no_grad(), exact_rules():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(temporary := _temporary_names(graph))[: len(graph.input_names)],
            output_names=list(temporary)[len(graph.input_names) :],
            verbose=False,
        )
    assert exported is not None
    proto: onnx.ModelProto = exported.model_proto
    _rename(proto.graph, temporary)
    return proto


def _temporary_names(graph: GraphSpec) -> dict[str, str]:
    """What no value of a traced program is called -> names of inputs and outputs, which may be those of inner values.

    An input ``pad`` and the result of an operation ``pad`` become one tensor in torch's exporter.
    """
    names = (*graph.input_names, *graph.stored_outputs.values())
    return {f"edgeattn.{place}": name for place, name in enumerate(names)}


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give inputs and outputs their names; inner values that are called so get others."""
    inner = {name for node in graph.node for name in node.output} | {tensor.name for tensor in graph.initializer}
    moved = {name: f"edgeattn.{name}" for name in inner & set(names.values())}
    every = {**moved, **names}
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = every.get(value.name, value.name)
    for node in graph.node:
        for part in (node.input, node.output):
            part[:] = [every.get(name, name) for name in part]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, every)


@contextlib.contextmanager
def exact_rules() -> Iterator[None]:
    """Let the rewrite rules of torch's exporter match a constant only where it is the number of their pattern.

    The optimizer of onnxscript, which the exporter runs, takes numbers within 1e-8 or a part in 1e5 of each other for
    the same. Its rule for ``x + 0`` then drops the epsilon of ``p / (p.sum() + 1e-9)``, and a row of zeros, which torch
    leaves zero, becomes 0 / 0.
    """
    matcher: Any = load_extra("onnxscript.rewriter._matcher", "convert").SimplePatternMatcher
    original = matcher._match_constant  # noqa: SLF001  # rules have no option for it; put back below

    def exact(self: Any, pattern: Any, value: Any) -> bool:
        tolerances = pattern._rel_tol, pattern._abs_tol  # noqa: SLF001
        pattern._rel_tol = pattern._abs_tol = 0.0  # noqa: SLF001
        try:
            return bool(original(self, pattern, value))
        finally:
            pattern._rel_tol, pattern._abs_tol = tolerances  # noqa: SLF001

    matcher._match_constant = exact  # noqa: SLF001
    try:
        yield
    finally:
        matcher._match_constant = original  # noqa: SLF001


def exported_second(model: EdgeModel, graph: GraphSpec, program: torch.export.ExportedProgram) -> onnx.ModelProto:
    """The TorchScript exporter on the program that torch.export traced: no branch of forward is baked in unseen."""
    import onnx
    import torch

    class Ordered(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            unlifted = program.module(check_guards=False)
            self.traced = torch.fx.GraphModule(unlifted, unlifted.graph)  # train() of the unlifted one raises

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            results = self.traced(*inputs)
            return tuple(results[name] for name in graph.output_names)

    with torch.no_grad(), scratch_directory() as scratch:
        file = scratch / "graph.onnx"
        torch.onnx.export(
            Ordered(),
            tuple(example_tensors(model, graph).values()),
            file,
            dynamo=False,
            opset_version=SECOND_OPSET,
            input_names=list(graph.input_names),
            output_names=list(graph.stored_outputs.values()),
        )
        proto = onnx.load(file)
    _keep_unread_inputs(proto, graph)
    return proto


def _keep_unread_inputs(proto: onnx.ModelProto, graph: GraphSpec) -> None:
    """Inputs that no node reads stay inputs; the TorchScript exporter leaves them out."""
    import onnx

    found = {value.name: value for value in proto.graph.input}
    inputs = []
    for tensor in graph.all_inputs:
        dtype = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
        declared = onnx.helper.make_tensor_value_info(tensor.name, dtype, tensor.shape)
        inputs.append(found.get(tensor.name, declared))
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)


def _rewrite(proto: onnx.ModelProto, graph: GraphSpec) -> None:
    from edgeattn.converters.passes import ONNX_PASSES

    infer_shapes(proto, graph.name)  # the passes look at shapes
    for rewrite in ONNX_PASSES:
        rewrite(proto)


def _write(proto: onnx.ModelProto, exporter: str, model: EdgeModel, graph: GraphSpec, path: Path) -> bool:
    """Check and save; whether the file holds integers of its own."""
    import onnx

    from edgeattn.graphs.layers import is_quantized

    proto.producer_name = "edgeattn"
    described = {
        MODEL_KEY: model.spec.name,
        SPEC_KEY: json.dumps(to_json(graph), separators=(",", ":")),
        EXPORTER_KEY: exporter,
    }
    onnx.helper.set_model_props(proto, described)
    infer_shapes(proto, graph.name)
    _check_signature(proto, graph)
    onnx.save(proto, path)
    return is_quantized(proto)


def _tidy(proto: onnx.ModelProto, prefix: str) -> None:
    # torch writes stack traces with the paths of the machine into every node: larger than the small models' weights,
    # and nobody's business. The module path is what an error message needs.
    del proto.metadata_props[:]
    for node in proto.graph.node:
        path = strip_wrapper(module_path(node), prefix)
        del node.metadata_props[:]
        if path:
            node.metadata_props.add(key=MODULE_KEY, value=path)
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]


def infer_shapes(proto: onnx.ModelProto, graph: str) -> None:
    """Check a model and write the type and shape of every tensor into it.

    Inference and checks serialise what they are given: large constants take part as inputs, by type and shape.

    Raises:
        ConversionError: if it is no valid ONNX.
    """
    import onnx

    light = onnx.ModelProto()
    light.ir_version = proto.ir_version
    light.opset_import.extend(proto.opset_import)
    light.functions.extend(proto.functions)
    light.graph.name = proto.graph.name or graph
    light.graph.node.extend(proto.graph.node)
    light.graph.input.extend(proto.graph.input)
    light.graph.output.extend(proto.graph.output)
    given = {value.name for value in proto.graph.input}
    for tensor in proto.graph.initializer:
        if len(tensor.raw_data) <= SMALL_BYTES:
            light.graph.initializer.append(tensor)
        elif tensor.name not in given:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            light.graph.input.append(value)
    try:
        inferred = onnx.shape_inference.infer_shapes(light, strict_mode=True, data_prop=True)
        onnx.checker.check_model(inferred, full_check=False)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConversionError(f"graph {graph!r}: the exported ONNX is not valid: {first_line(error)}") from error
    for values, found in (
        (proto.graph.output, inferred.graph.output),
        (proto.graph.value_info, inferred.graph.value_info),
    ):
        del values[:]
        values.extend(found)


def _check_signature(proto: onnx.ModelProto, graph: GraphSpec) -> None:
    import onnx

    for kind, values, wanted in (
        ("input", proto.graph.input, graph.all_inputs),
        ("output", proto.graph.output, graph.all_outputs),
    ):
        got = [
            (
                value.name,
                str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
                tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim),
            )
            for value in values
        ]
        stored = graph.stored_outputs if kind == "output" else {}
        expected = [(stored.get(tensor.name, tensor.name), tensor.dtype, tensor.shape) for tensor in wanted]
        for value, tensor in zip(values, wanted, strict=True):
            if any(not dim.dim_value for dim in value.type.tensor_type.shape.dim):
                source = next((node for node in proto.graph.node if value.name in node.output), None)
                raise ConversionError(
                    f"graph {graph.name!r}: the shape of {kind} {tensor.name!r} depends on values"
                    f"{f', made by {describe_node(source)}' if source else ''}; edge engines need static shapes: "
                    "return a fixed size and a mask"
                )
        if got != expected:
            raise ConversionError(f"graph {graph.name!r}: {kind}s of the spec are {expected}, the ONNX has {got}")


def _check_layer_norms(proto: onnx.ModelProto, program: torch.export.ExportedProgram, graph: str) -> None:
    # Decomposed, x^2 overflows in float16 on TensorRT (TensorRT#2564): top-1 of a ViT fell from 85 % to 19 %.
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    wanted = sum(getattr(node.target, "__name__", "").startswith("layer_norm") for node in calls)
    got = sum(node.op_type == "LayerNormalization" for node in proto.graph.node)
    if got < wanted:
        raise ConversionError(
            f"graph {graph!r}: torch's ONNX exporter took {wanted - got} of {wanted} layer_norm apart, which overflows "
            "in float16; use torch 2.9 or later"
        )


def _run(path: Path, graph: GraphSpec, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    onnxruntime: Any = ONNXRUNTIME.load()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(BROKEN_FUSIONS)
        )
    except Exception as error:
        raise ConversionError(f"graph {graph.name!r}: ONNX Runtime refuses the exported model: {error}") from error
    names = {value.name for value in session.get_inputs()}
    feed = {tensor.name: tensor.check(inputs[tensor.name]) for tensor in graph.all_inputs if tensor.name in names}
    outputs = session.run(list(graph.stored_outputs.values()), feed)
    return dict(zip(graph.output_names, outputs, strict=True))
