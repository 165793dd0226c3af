"""ONNX -> ONNX that says its own precision, plus the recipe by which the device builds its engine.

An engine is tied to one GPU, one TensorRT and its clocks, so the device builds it. Here the file is parsed and built as
a check with ``tensorrt_rtx``, whose builder needs no GPU; what that gave is recorded, never a latency.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from edgeattn.converters.conversion import Conversion
from edgeattn.converters.half import to_half
from edgeattn.converters.onnx import describe_node, infer_shapes, reduced_opset, with_exporter
from edgeattn.converters.shared_weights import share_onnx
from edgeattn.engines import TENSORRT
from edgeattn.errors import ConversionError, MissingExtraError, UnsupportedError, load_extra, unknown_name
from edgeattn.guards.silence import silenced
from edgeattn.model import Artifact
from edgeattn.runtimes.tensorrt_build import (
    BuildOutcome,
    BuildRecipe,
    build_engine,
    capabilities,
    recipe_from_build,
    recipe_to_build,
)
from edgeattn.targets import supports_2_4

if TYPE_CHECKING:
    import onnx

PRECISIONS = ("fp32", "fp16", "int8")
DEFAULT_CAPABILITY = "8.7"  # Orin


def convert(work: Conversion) -> Artifact:
    """ONNX and build recipe for the device. Parsed and built here as far as this host can."""
    source, made = work.source, work.quantized
    capability = work.target.compute_capability or DEFAULT_CAPABILITY
    recipe = BuildRecipe(sparsity=supports_2_4(capability))  # TensorRT itself looks which weights have it
    room = f"{TENSORRT.name}-{work.recipe}"
    if made is not None:
        artifact = to_tensorrt(made.models, source.new_directory(room), "int8", capability, recipe, source.islands)
        artifact = replace(
            artifact,
            precision=made.precision,
            recipe=f"{made.recipe}; {artifact.recipe}",
            treatments=made.treatments,
        )
    elif work.recipe == "fp16":
        artifact = to_tensorrt(source.onnx, source.new_directory(room), "fp16", capability, recipe, source.islands)
    else:
        artifact = to_tensorrt(source.onnx, source.new_directory(room), "fp32", capability, recipe)
    share_onnx(artifact.models)
    return artifact


def to_tensorrt(
    onnx: Mapping[str, Path],
    directory: Path,
    precision: Literal["fp32", "fp16", "int8"],
    capability: str = DEFAULT_CAPABILITY,
    recipe: BuildRecipe | None = None,
    islands: Mapping[str, Collection[str]] | None = None,
) -> Artifact:
    """Prepare ONNX files for TensorRT and check that it parses and builds them.

    Args:
        onnx: graph name -> float32 ONNX; for int8 with explicit Q/DQ in it.
        directory: existing directory; ``GRAPH.onnx`` is written into it.
        precision: fp16 computes in float16 with float32 islands (see :mod:`edgeattn.converters.half`); int8 has float16
            around its Q/DQ.
        capability: compute capability of the target's GPU. Where ``tensorrt_rtx`` cannot build for it, the nearest that
            it can build for stands in, and the record says so.
        recipe: workspace and optimization level of the device's build; its precision is set here.
        islands: graph name -> names of nodes that stay float32 beside those that always do, from ``half_islands`` on
            the float32 ONNX (a quantized file has the same names); fp32 needs none.

    Returns:
        ``build["recipe"]`` is the recipe; ``build["checked"]`` has tool, version, capability, target_capability, ok,
        seconds, engine_bytes, layers (type -> dtype -> count of the parsed network) and message. ``ok`` is None where
        ``tensorrt_rtx`` is not installed, and message says so.

    Raises:
        ConversionError: naming the node and its module, if TensorRT refuses the file.
        UnsupportedError: for an unknown precision, or int8 without Q/DQ.
        ValueError: for islands of a graph or with nodes that are not there.
    """
    if precision not in PRECISIONS:
        raise UnsupportedError(unknown_name("TensorRT precision", precision, PRECISIONS))
    kept = islands or {}
    if not kept.keys() <= onnx.keys():
        raise ValueError(unknown_name("graph of islands", next(iter(kept.keys() - onnx.keys())), tuple(onnx)))
    chosen = replace(recipe or BuildRecipe(), precision=precision)
    models, notes, pairs = {}, [], 0
    for graph, source in onnx.items():
        models[graph] = directory / f"{graph}.onnx"
        note, quantized = _prepare(source, models[graph], precision, graph, kept.get(graph, ()))
        notes.append(note)
        pairs += quantized
    if precision == "int8" and not pairs:
        raise UnsupportedError(f"int8 for TensorRT needs explicit Q/DQ in the ONNX of {', '.join(onnx)}, it has none")
    checked = _check(models, chosen, capability)
    made = with_exporter("; ".join(dict.fromkeys(notes)), onnx)
    return Artifact(TENSORRT.name, precision, models, made, recipe_to_build(chosen, checked))


def _prepare(source: Path, target: Path, precision: str, graph: str, islands: Collection[str]) -> tuple[str, int]:
    """Write the graph in its precision; what was done in words, and the number of tensors with Q/DQ."""
    import onnx

    from edgeattn.converters.passes import TENSORRT_PASSES

    model = onnx.load(source)
    quantized = sum(node.op_type == "DequantizeLinear" for node in model.graph.node)
    _refuse_zero_points(model, graph)
    if sum(rewrite(model) for rewrite in TENSORRT_PASSES):
        infer_shapes(model, graph)
    note = "float32"
    if precision != "fp32":
        report = to_half(model, islands)
        note = f"float16 strongly typed, {report.single} of {report.half + report.single} nodes kept float32"
        if report.named:
            note += f", {report.named} of them by the range scan"
    if precision == "int8" and not quantized:  # a decoder's step: a single row gains nothing, its encoder does
        note = f"{graph}: no layer is worth int8, {note}"
    elif precision == "int8":
        note = f"explicit int8 Q/DQ on {quantized} tensors, rest {note}; needs TensorRT 10"
    else:
        if quantized:  # an ONNX source that was quantized by someone else
            note += f", the source's own int8 Q/DQ on {quantized} tensors"
        note += f", opset {reduced_opset(model)}"
    onnx.save(model, target)
    return note, quantized


def asymmetric_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """QuantizeLinear and DequantizeLinear nodes with a zero-point that is not 0, which TensorRT does not take."""
    import onnx

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        and len(node.input) > 2
        and node.input[2] in constants
        and onnx.numpy_helper.to_array(constants[node.input[2]]).any()
    ]


def _refuse_zero_points(model: onnx.ModelProto, graph: str) -> None:
    # TensorRT's own message ("shiftIsAllZeros") does not say which module to look at.
    for node in asymmetric_nodes(model):
        raise ConversionError(
            f"graph {graph!r}: {describe_node(node)} has a non-zero zero-point, TensorRT takes symmetric int8 "
            "only; quantize it with zero-point 0 (ONNX Runtime's quantizer: activation_type and weight_type QInt8, "
            "extra_options ActivationSymmetric and WeightSymmetric)"
        )


def _check(models: Mapping[str, Path], recipe: BuildRecipe, capability: str) -> dict[str, Any]:
    checked: dict[str, Any] = {"tool": "tensorrt_rtx", "target_capability": capability}
    trt = _checker()
    if isinstance(trt, str):
        return {**checked, "ok": None, "message": trt}
    stand_in = nearest_capability(capability, capabilities(trt))
    outcomes = {}
    for graph, path in models.items():
        with silenced():
            outcomes[graph] = build_engine(trt, path, replace(recipe, dla=False), stand_in)
        if not outcomes[graph].ok:
            raise ConversionError(f"graph {graph!r}: {explain_failure(outcomes[graph], path)}")
    version = next(iter(outcomes.values())).version
    layers: dict[str, Counter[str]] = {}
    for outcome in outcomes.values():
        for kind, dtypes in outcome.network.items():
            layers.setdefault(kind, Counter()).update(dtypes)
    built_for = f"sm_{stand_in.replace('.', '')}"
    stands_in = "" if stand_in == capability else f", standing in for sm_{capability.replace('.', '')}"
    return {
        **checked,
        "version": version,
        "capability": stand_in,
        "ok": True,
        "seconds": round(sum(outcome.seconds for outcome in outcomes.values()), 3),
        "engine_bytes": sum(len(outcome.engine or b"") for outcome in outcomes.values()),
        "layers": {kind: dict(dtypes) for kind, dtypes in sorted(layers.items())},
        "message": f"built with tensorrt_rtx {version} for {built_for}{stands_in}; the device builds its own engine",
    }


def _checker() -> ModuleType | str:
    try:
        return load_extra(TENSORRT.tools[0], TENSORRT.extra)
    except MissingExtraError as error:
        return f"not checked: {error}"


def on_dla(artifact: Artifact) -> Artifact:
    """The same, whose engine the device builds for its DLA, as far as that can run it, and for its GPU.

    No host can try that: what was checked here is the engine for the GPU, and golden outputs tell on the device.

    Raises:
        UnsupportedError: for fp32.
    """
    recipe = recipe_from_build(artifact.build)
    if recipe.precision == "fp32":
        raise UnsupportedError("a DLA computes in fp16 and int8 alone: convert with --precision fp16, or without --dla")
    checked = dict((artifact.build or {}).get("checked", {}))
    checked["message"] = f"{checked.get('message', 'not checked')}; what its DLA takes is known on the device alone"
    return replace(artifact, build=recipe_to_build(replace(recipe, dla=True), checked))


def nearest_capability(wanted: str, available: tuple[str, ...]) -> str:
    """The capability that stands in for ``wanted``: itself, else the next lower one, else the lowest there is.

    >>> nearest_capability("8.7", ("7.5", "8.0", "8.6", "8.9"))
    '8.6'
    >>> nearest_capability("7.2", ("7.5", "8.0"))
    '7.5'
    """

    def number(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split("."))

    lower = [capability for capability in available if number(capability) <= number(wanted)]
    return max(lower, key=number) if lower else min(available, key=number)


def explain_failure(outcome: BuildOutcome, path: Path) -> str:
    """Why TensorRT refused a file, with the module that the node came from."""
    import onnx

    nodes = list(onnx.load(path, load_external_data=False).graph.node)
    node = None
    if outcome.parser_errors:
        name = outcome.parser_errors[0].node
        node = next((n for n in nodes if n.name == name), None) if name else None
        if node is None and name.isdigit() and int(name) < len(nodes):
            node = nodes[int(name)]
    else:
        # The builder names layers after nodes, somewhere in its sentences; the longest name is the most specific.
        named = [n for n in nodes if n.name and any(n.name in message for message in outcome.messages)]
        node = max(named, key=lambda n: len(n.name), default=None)
    failure = " ".join(outcome.failure.split())[:500]
    if node is None:
        return failure
    return (
        f"{failure.rstrip('.')}. It stems from {describe_node(node)}; replace that operation in the module, or "
        "choose another target"
    )
