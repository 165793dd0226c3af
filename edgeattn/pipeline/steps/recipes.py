"""Schemes: the ways in which each engine's artifact can be made, by name, and what ``--precision`` stands for.

fp32, fp16        the engine's floats; float16 keeps islands in float32 where values would not fit
int8-static       weights and activations int8, ranges from calibration samples
int8-nncf         the same by NNCF for OpenVINO, its SmoothQuant swept
int8-dynamic      int8 weights, activations quantized row by row while the model runs: no ranges, no data needed
int8-weights      int8 weights, arithmetic as the engine does with them: float, but 8 bits in ONNX Runtime
int4-weights      int4 weights in groups of 32, arithmetic as the engine does with them
"""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgeattn.engines import PRECISIONS, SCHEME_NAMES, SCHEMES, TREATMENT, TRIED, Treatment, precision_of
from edgeattn.errors import ConversionError, InputError, UnsupportedError, unknown_name
from edgeattn.model import Artifact
from edgeattn.pipeline.steps.exports import Workshop
from edgeattn.quantize.plan import Plan, counted
from edgeattn.targets import Target, supports_2_4

DEFAULT_CAPABILITY = "8.7"  # Orin


@dataclass(frozen=True)
class Choices:
    """What a quantized artifact is made with.

    Attributes:
        plan: treatment by module path; its "int8" is the scheme's own.
        scales: path -> activation scale that recovery learned.
    """

    plan: Plan = field(default_factory=Plan)
    scales: Mapping[str, float] = field(default_factory=dict)


def schemes(target: Target, backend: str, asked: str) -> tuple[str, ...]:
    """The schemes to try on an engine of a target, the safest first.

    Raises:
        InputError: for a name that is neither a precision nor a scheme.
        UnsupportedError: if the engine does not have it there; what it has is named.
    """
    allowed = target.precisions[backend]
    offered = tuple(s for s in SCHEMES[backend] if precision_of(s) in (*allowed, *(("int4",) * ("int8" in allowed))))
    tried = tuple(s for s in offered if s in ("fp32", "fp16", *TRIED[backend]))
    if asked == "auto":
        return tried
    check_precision(asked)
    chosen = tuple(s for s in tried if precision_of(s) == asked) if asked == "int8" else (asked,)
    if not chosen or chosen[0] not in offered:
        raise UnsupportedError(f"{backend} on {target.name} has no {asked}; it has {', '.join(offered)}")
    return chosen


def check_precision(asked: str) -> None:
    """Refuse what names neither a precision nor a scheme.

    Raises:
        InputError: listing the names.
    """
    if asked not in (names := ("auto", *PRECISIONS, *SCHEME_NAMES)):
        raise InputError(unknown_name("precision", asked, set(names)))


def scheme_plan(scheme: str, plan: Plan) -> Plan:
    """A plan whose "int8" is spelled as the scheme means it."""
    own = TREATMENT[scheme]

    def treatment(asked: Treatment) -> Treatment:
        return own if asked == "int8" else asked

    return Plan(treatment(plan.default), tuple(replace(r, treatment=treatment(r.treatment)) for r in plan.rules))


def _quantized(shop: Workshop, scheme: str, target: Target, choices: Choices, shared: bool = True) -> Artifact:
    """Q/DQ in ONNX, which OpenVINO, TensorRT and ONNX Runtime all start from.

    Args:
        shared: one pair for all layers that read a tensor, as TensorRT wants; ONNX Runtime computes these in float.
    """
    from edgeattn.quantize.qdq import QdqOptions, quantize_onnx
    from edgeattn.quantize.saturation import narrow_for

    options = QdqOptions(scheme_plan(scheme, choices.plan), scales=choices.scales, shared=shared)
    narrow: frozenset[str] = frozenset()
    if TREATMENT[scheme] == "int8":
        narrow = narrow_for(target.isa, target.cpu.arch, shop.onnx, shop.base.calibration, options)
        options = replace(options, narrow=narrow)
    made = quantize_onnx(shop.onnx, shop.base.calibration, shop.room("qdq"), options)
    recipe = f"{scheme}: {counted(made.treatments)}, symmetric, per channel"
    if narrow:
        recipe += f", 7-bit weights in {len(narrow)} layers that would saturate"
    return Artifact("onnxruntime", precision_of(scheme), made.models, recipe, treatments=made.treatments)


def build_openvino(shop: Workshop, scheme: str, target: Target, choices: Choices) -> Artifact:
    """ONNX -> OpenVINO IR."""
    from edgeattn.converters.openvino import to_openvino
    from edgeattn.converters.shared_weights import share_ir

    room = shop.room(f"openvino-{scheme}")
    if scheme == "int8-nncf":
        from edgeattn.quantize.openvino import int8_nncf
        from edgeattn.quantize.saturation import narrow_for

        narrow = bool(narrow_for(target.isa, target.cpu.arch, shop.onnx, shop.base.calibration))
        artifact = int8_nncf(shop.onnx, shop.base.calibration, room, choices.plan, narrow=narrow)
    elif scheme in ("fp32", "fp16"):
        artifact = to_openvino(shop.onnx, room, "fp16" if scheme == "fp16" else "fp32")
    else:
        source = _quantized(shop, scheme, target, choices)
        artifact = replace(source, backend="openvino", models=to_openvino(source.models, room, "fp16").models)
    share_ir(artifact.models)
    return artifact


def build_litert(shop: Workshop, scheme: str, _: Target, choices: Choices) -> Artifact:
    """Torch -> TFLite, once; the other schemes are made of that file."""
    if scheme == "fp32":
        return shop.tflite
    room = shop.room(f"litert-{scheme}")
    if scheme == "fp16":
        from edgeattn.converters.tflite import halve_tflite

        return halve_tflite(shop.model, shop.tflite, room)
    from edgeattn.quantize.tflite import quantize_tflite

    onnx: Mapping[str, Path] = {}
    plan = choices.plan if choices.plan != Plan() else None
    with contextlib.ExitStack() as unless:
        if plan is None:  # without a plan, layers need no names, and a model that is no ONNX is no worse for it
            unless.enter_context(contextlib.suppress(ConversionError))
        onnx = shop.onnx
    return quantize_tflite(shop.tflite, onnx, shop.base.calibration, room, scheme, plan)  # type: ignore[arg-type]


def build_tensorrt(shop: Workshop, scheme: str, target: Target, choices: Choices) -> Artifact:
    """ONNX and build recipe for the device. Parsed and built here as far as this host can."""
    from edgeattn.converters.shared_weights import share_onnx
    from edgeattn.converters.tensorrt import to_tensorrt
    from edgeattn.runtimes.tensorrt_build import BuildRecipe

    capability = target.compute_capability or DEFAULT_CAPABILITY
    recipe = BuildRecipe(sparsity=supports_2_4(capability))  # TensorRT itself looks which weights have it
    room = f"tensorrt-{scheme}"
    if scheme == "fp32":
        artifact = to_tensorrt(shop.onnx, shop.room(room), "fp32", capability, recipe)
    elif scheme == "fp16":
        artifact = to_tensorrt(shop.onnx, shop.room(room), "fp16", capability, recipe, shop.islands)
    else:
        source = _quantized(shop, scheme, target, choices)
        artifact = to_tensorrt(source.models, shop.room(room), "int8", capability, recipe, shop.islands)
        artifact = replace(
            artifact,
            precision=source.precision,
            recipe=f"{source.recipe}; {artifact.recipe}",
            treatments=source.treatments,
        )
    share_onnx(artifact.models)
    return artifact


def build_onnxruntime(shop: Workshop, scheme: str, target: Target, choices: Choices) -> Artifact:
    """The exported ONNX as it is; quantized with float32 around the Q/DQ; fp16 as for TensorRT."""
    if scheme == "fp32":
        return Artifact("onnxruntime", "fp32", shop.onnx, "ONNX, float32")
    if scheme == "fp16":
        return replace(build_tensorrt(shop, scheme, target, choices), backend="onnxruntime", build=None)
    from edgeattn.converters.shared_weights import share_onnx

    source = _quantized(shop, scheme, target, choices, shared=False)
    room = shop.room(f"onnxruntime-{scheme}")
    models = {graph: Path(shutil.copy(path, room / path.name)) for graph, path in source.models.items()}
    share_onnx(models)
    return replace(source, models=models)


def build(backend: str, shop: Workshop, scheme: str, target: Target, choices: Choices | None = None) -> Artifact:
    """The artifact of one scheme; "int8" is the engine's first.

    Raises:
        EdgeattnError: if it cannot be made; the message says what to change.
    """
    name = TRIED[backend][0] if scheme == "int8" else scheme
    if name not in SCHEMES[backend]:
        raise UnsupportedError(f"{backend} has no {name}; it has {', '.join(SCHEMES[backend])}")
    return _BUILDERS[backend](shop, name, target, choices or Choices())


_BUILDERS: Mapping[str, Callable[[Workshop, str, Target, Choices], Artifact]] = {
    "openvino": build_openvino,
    "litert": build_litert,
    "tensorrt": build_tensorrt,
    "onnxruntime": build_onnxruntime,
}
BUILDERS: Mapping[str, Callable[..., Artifact]] = {name: functools.partial(build, name) for name in _BUILDERS}
"""Engine -> ``(workshop, scheme, target, choices)`` -> artifact."""
