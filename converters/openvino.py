"""ONNX -> OpenVINO IR (``GRAPH.xml`` with ``GRAPH.bin`` beside it)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeattn.converters.conversion import Conversion
from edgeattn.converters.onnx import describe_node, with_exporter
from edgeattn.converters.shared_weights import share_ir
from edgeattn.engines import OPENVINO
from edgeattn.errors import ConversionError, UnsupportedError, unknown_name
from edgeattn.guards.silence import silenced
from edgeattn.model import Artifact

if TYPE_CHECKING:
    import openvino

PRECISIONS = ("fp32", "fp16")


def convert(work: Conversion) -> Artifact:
    """IR of the exported ONNX, or of what was quantized; equal weights stored once."""
    made = work.quantized
    if made is not None and made.backend == OPENVINO.name:  # NNCF writes IR
        artifact = made
    else:
        room = work.source.new_directory(f"{OPENVINO.name}-{work.recipe}")
        if made is not None:
            artifact = replace(made, backend=OPENVINO.name, models=to_openvino(made.models, room, "fp16").models)
        else:
            artifact = to_openvino(work.source.onnx, room, "fp16" if work.recipe == "fp16" else "fp32")
    share_ir(artifact.models)
    return artifact


def to_openvino(onnx: Mapping[str, Path], directory: Path, precision: Literal["fp32", "fp16"]) -> Artifact:
    """Convert exported ONNX files to OpenVINO IR.

    fp16 halves the weights on disk; a CPU without float16 arithmetic unpacks them and computes in float32, GPU and NPU
    compute in float16.

    Args:
        onnx: graph name -> float32 ONNX with static shapes, from ``export_onnx``.
        directory: existing directory to write into.
        precision: of the weights.

    Raises:
        ConversionError: naming the node and its module, if OpenVINO has no such operation.
        UnsupportedError: for any other precision.
        MissingExtraError: without openvino.
    """
    if precision not in PRECISIONS:
        raise UnsupportedError(unknown_name("OpenVINO precision", precision, PRECISIONS))
    models = {}
    for graph, path in onnx.items():
        model = read_onnx(path, graph)
        stable_choices(model)
        _check_shapes(model, path, graph)
        forget_inner_names(model, path)
        models[graph] = save_ir(model, directory / f"{graph}.xml", compress_to_fp16=precision == "fp16")
    recipe = {"fp32": "float32 IR", "fp16": "IR with float16 weights"}[precision]
    return Artifact(OPENVINO.name, precision, models, with_exporter(f"{recipe}, OpenVINO {_version()}", onnx))


def read_onnx(path: Path, graph: str) -> openvino.Model:
    """Read an ONNX file as an OpenVINO model and check that every shape is static.

    Raises:
        ConversionError: naming the node and its module.
    """
    openvino_module = OPENVINO.load()
    with silenced():
        try:
            model = openvino_module.Core().read_model(path)
        except RuntimeError as error:
            raise ConversionError(f"graph {graph!r}: OpenVINO cannot convert {_refused(error, path)}") from error
    for port in (*model.inputs, *model.outputs):
        if port.partial_shape.is_dynamic:
            raise ConversionError(
                f"graph {graph!r}: {port.any_name} has the dynamic shape {port.partial_shape} in OpenVINO; "
                "an operation whose result size depends on values (nonzero, masked select) causes this: take it out"
            )
    return model


def stable_choices(model: openvino.Model) -> None:
    """Let every TopK put the lower index of equal values first, as ONNX defines it; OpenVINO does on request alone."""
    OPENVINO.load()
    from openvino import opset11

    for op in model.get_ordered_ops():
        given = op.get_attributes() if op.get_type_name() == "TopK" else {}
        if given.get("sort") != "value" or given.get("stable"):
            continue
        count = op.input_value(1)
        made = opset11.topk(
            op.input_value(0), count, given["axis"], given["mode"], "value", given["index_element_type"], stable=True
        )
        made.set_friendly_name(op.get_friendly_name())
        for old, new in zip(op.outputs(), made.outputs(), strict=True):
            names = old.get_names()
            old.replace(new)
            new.add_names(names)


def _check_shapes(model: openvino.Model, path: Path, graph: str) -> None:
    """Hold the outputs to the ONNX file's: a conversion rule that gets a shape wrong shows here, not when it runs."""
    import onnx

    for port, value in zip(model.outputs, onnx.load(path, load_external_data=False).graph.output, strict=True):
        wanted = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        got = list(port.partial_shape.to_shape())
        if got != wanted:
            raise ConversionError(
                f"graph {graph!r}: output {value.name!r} is {got} in OpenVINO and {wanted} in the ONNX file: one of "
                "its conversion rules is wrong for this model; choose another target"
            )


def forget_inner_names(model: openvino.Model, onnx: Path) -> None:
    """Leave tensor names to the inputs and outputs of the ONNX file alone.

    Where compiling drops an operation that does nothing (x * 1), its tensor's name moves to the port beside it, and a
    runtime then finds an input called ``mul``.
    """
    import onnx as onnx_module

    graph = onnx_module.load(onnx, load_external_data=False).graph
    kept = {value.name for value in (*graph.input, *graph.output)}
    for operation in model.get_ops():
        for port in operation.outputs():
            port.get_tensor().set_names(port.get_names() & kept)


def save_ir(model: openvino.Model, path: Path, compress_to_fp16: bool) -> Path:
    """Write an IR; the weights go into a ``.bin`` beside it."""
    import openvino

    with silenced():
        openvino.save_model(model, path, compress_to_fp16=compress_to_fp16)
    # A third of the XML is indentation: a tenth of a small int8 model.
    path.write_bytes(re.sub(rb">\s+<", b"><", path.read_bytes()))
    return path


def _refused(error: RuntimeError, path: Path) -> str:
    import onnx

    text = str(error)
    nodes = onnx.load(path, load_external_data=False).graph.node
    # Either the operators without a conversion rule are listed, "Det-18", or the node's name stands in the message.
    named = [n for n in nodes if n.name and re.search(rf"(?<![\w/]){re.escape(n.name)}(?![\w/])", text)]
    unsupported = re.search(r"(?:following ONNX operations:|No conversion rule found for operations:) ([\w.]+)", text)
    if not named and unsupported:
        operator = unsupported.group(1).rsplit(".", 1)[-1]
        named = [node for node in nodes if node.op_type == operator]
    if not named:
        return f"this model: {_reason(text)}"
    reason = "it has no such operation" if unsupported else _reason(text)
    return f"{describe_node(named[0])}: {reason}; replace that operation in the module, or choose another target"


def _reason(text: str) -> str:
    # C++ prints where it gave up first and why last.
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else text)[:300]


def _version() -> Any:
    import openvino

    return openvino.__version__.split("-")[0]
