"""Recipes: the ways in which each engine's artifact can be made, by name, and what ``--precision`` stands for.

fp32, fp16        the engine's floats; float16 keeps islands in float32 where values would not fit
int8-static       weights and activations int8, ranges from calibration samples
int8-nncf         the same by NNCF for OpenVINO, its SmoothQuant swept
int8-dynamic      int8 weights, activations quantized row by row while the model runs: no ranges, no data needed
int8-weights      int8 weights, arithmetic as the engine does with them: float, but 8 bits in ONNX Runtime
int4-weights      int4 weights in groups of 32, arithmetic as the engine does with them
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgeattn.converters.conversion import Conversion
from edgeattn.converters.engines import CONVERTERS
from edgeattn.engines import ENGINES, PRECISIONS, precision_of, recipe_names
from edgeattn.errors import InputError, UnsupportedError, unknown_name
from edgeattn.model import Artifact
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.quantize.engines import QUANTIZERS
from edgeattn.quantize.plan import Plan
from edgeattn.quantize.quantization import Quantization
from edgeattn.targets import Target

FLOATS = ("fp32", "fp16")


@dataclass(frozen=True)
class QuantizeOptions:
    """What a quantized artifact is made with.

    Attributes:
        plan: treatment by module path; its "int8" is the recipe's own.
        scales: path -> activation scale that recovery learned.
    """

    plan: Plan = field(default_factory=Plan)
    scales: Mapping[str, float] = field(default_factory=dict)


def recipes(target: Target, backend: str, asked: str) -> tuple[str, ...]:
    """The recipes to try on an engine of a target, the safest first.

    Raises:
        InputError: for a name that is neither a precision nor a recipe.
        UnsupportedError: if the engine does not have it there; what it has is named.
    """
    row, allowed = ENGINES[backend], target.precisions[backend]
    offered = tuple(s for s in row.recipes if precision_of(s) in (*allowed, *(("int4",) * ("int8" in allowed))))
    tried = tuple(s for s in offered if s in (*FLOATS, *row.tried))
    if asked == "auto":
        return tried
    check_precision(asked)
    chosen = tuple(s for s in tried if precision_of(s) == asked) if asked == "int8" else (asked,)
    if not chosen or chosen[0] not in offered:
        raise UnsupportedError(f"{backend} on {target.name} has no {asked}; it has {', '.join(offered)}")
    return chosen


def check_precision(asked: str) -> None:
    """Refuse what names neither a precision nor a recipe.

    Raises:
        InputError: listing the names.
    """
    if asked not in (names := ("auto", *PRECISIONS, *recipe_names())):
        raise InputError(unknown_name("precision", asked, set(names)))


def build(
    backend: str, exports: Exports, recipe: str, target: Target, quantize_options: QuantizeOptions | None = None
) -> Artifact:
    """The artifact of one recipe; "int8" is the engine's first.

    Raises:
        EdgeattnError: if it cannot be made; the message says what to change.
    """
    row = ENGINES[backend]
    name = row.tried[0] if recipe == "int8" else recipe
    if name not in row.recipes:
        raise UnsupportedError(f"{backend} has no {name}; it has {', '.join(row.recipes)}")
    exports = exports.fit(backend)
    quantized = None
    if name not in FLOATS:
        wanted = quantize_options or QuantizeOptions()
        quantized = QUANTIZERS[backend](
            Quantization(engine=row, source=exports, recipe=name, target=target, plan=wanted.plan, scales=wanted.scales)
        )
    return CONVERTERS[backend](Conversion(source=exports, recipe=name, target=target, quantized=quantized))
