"""The rules of preflight over a traced graph: one small function each, in the table :data:`RULES`.

A rule yields a :class:`Issue` per place. Severity is honest: ``stops`` only where conversion really fails today (a test
converts every known-bad case and holds the rules to it), ``slow`` where the engine runs it badly, ``risk`` else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from edgeattn.converters.preflight.rule import Issue, Question, Rule, every, half, is_first, only, ranged, through_onnx
from edgeattn.converters.preflight.rules_numbers import (
    decomposed_norm,
    hidden_scores,
    large_constant_value,
    large_square,
    large_value,
    residual_outliers,
    softmax_range,
)
from edgeattn.converters.preflight.rules_operations import (
    cache_update,
    complex_number,
    grouped_expand,
    litert_forms,
    litert_partitions,
    mask_of_other_rank,
    one_name_twice,
    passed_through,
    position_table,
    scaled_scores,
    unsupported_operation,
    untried_operation,
    wide_integers,
)
from edgeattn.converters.preflight.rules_size import flatbuffer_size, large_constant, memory, small_product
from edgeattn.converters.preflight.rules_tracing import (
    cut_samples,
    high_rank,
    padded_positions,
    untraceable,
    value_dependent_shape,
    varying_dimension,
)
from edgeattn.converters.preflight.view import GraphView
from edgeattn.engines import LITERT, TENSORRT

LONG_ATTENTION = 512


# The request ----------------------------------------------------------------------------------------------------------


def missing_precision(view: GraphView, question: Question) -> Iterator[Issue]:
    """A precision that the engine does not have on the target."""
    offered = next((names for engine, names in question.target.precisions.items() if engine == question.engine), ())
    missing = [p for p in question.precisions if p not in offered]
    if missing and is_first(view, question):
        left = len(missing) < len(question.precisions)
        yield Issue(
            "risk" if left else "stops",
            f"{question.engine} on {question.target.name} has no {', '.join(missing)}",
            f"ask for {' or '.join(offered) or 'another engine'}",
        )


def missing_calibration(view: GraphView, question: Question) -> Iterator[Issue]:
    """int8 without data where ranges come from calibration."""
    if "int8" in question.precisions and not question.calibrated and is_first(view, question):
        only = question.precisions == ("int8",) and question.ranges
        without = (
            "" if only else "; int8 is left out" if question.ranges else "; activations are quantized as they come"
        )
        yield Issue(
            "stops" if only else "risk",
            f"static int8 takes the ranges of its activations from data, and none is given{without}",
            "give --data with inputs like those of use" + (", or ask for fp16" if only else ""),
        )


# Tracing and shapes ---------------------------------------------------------------------------------------------------


# Operations -----------------------------------------------------------------------------------------------------------


# Numbers --------------------------------------------------------------------------------------------------------------


# Size -----------------------------------------------------------------------------------------------------------------


RULES: Mapping[str, Rule] = {
    "missing-precision": Rule(missing_precision, every, ("stops", "risk")),
    "missing-calibration": Rule(missing_calibration, ranged, ("stops", "risk")),
    "memory": Rule(memory, every, ("stops", "risk")),
    "untraceable": Rule(untraceable, every, ("stops",)),
    "padded-positions": Rule(padded_positions, every, ("stops", "handled")),
    "varying-dimension": Rule(varying_dimension, every, ("risk",)),
    "cut-samples": Rule(cut_samples, every, ("risk",)),
    "value-dependent-shape": Rule(value_dependent_shape, every, ("stops", "risk")),
    "high-rank": Rule(high_rank, only(LITERT, TENSORRT), ("stops", "risk")),
    "unsupported-operation": Rule(unsupported_operation, every, ("stops",)),
    "complex-number": Rule(complex_number, every, ("stops",)),
    "untried-operation": Rule(untried_operation, every, ("risk",)),
    "litert-forms": Rule(litert_forms, only(LITERT), ("handled",)),
    "litert-partitions": Rule(litert_partitions, only(LITERT), ("slow",)),
    "wide-integers": Rule(wide_integers, only(LITERT, TENSORRT), ("stops", "risk", "handled")),
    "cache-update": Rule(cache_update, only(LITERT, TENSORRT), ("slow",)),
    "grouped-expand": Rule(grouped_expand, only(LITERT), ("risk",)),
    "mask-of-other-rank": Rule(mask_of_other_rank, only(LITERT), ("risk",)),
    "scaled-scores": Rule(scaled_scores, only(TENSORRT), ("slow", "handled")),
    "position-table": Rule(position_table, every, ("risk",)),
    "passed-through": Rule(passed_through, every, ("handled",)),
    "one-name-twice": Rule(one_name_twice, through_onnx, ("handled",)),
    "decomposed-norm": Rule(decomposed_norm, only(TENSORRT), ("risk", "handled")),
    "large-square": Rule(large_square, half, ("risk",)),
    "large-value": Rule(large_value, half, ("risk",)),
    "residual-outliers": Rule(residual_outliers, ranged, ("risk",)),
    "hidden-scores": Rule(hidden_scores, every, ("risk",)),
    "softmax-range": Rule(softmax_range, half, ("risk",)),
    "large-constant-value": Rule(large_constant_value, half, ("risk",)),
    "small-product": Rule(small_product, through_onnx, ("stops", "slow", "risk")),
    "large-constant": Rule(large_constant, every, ("risk",)),
    "file-size": Rule(flatbuffer_size, only(LITERT), ("stops",)),
}  # fmt: skip
