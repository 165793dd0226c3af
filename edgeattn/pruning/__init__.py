"""Pruning: what can be removed from a network, what of it is worth least, and what is left once it is gone.

A model is looked at (:func:`prunable`), what its parts are worth is measured (:func:`measure_importance`), a cut is
chosen by amounts or for milliseconds (:func:`select`), applied and compared with masking (:func:`prune`), repaired by
least squares (:func:`reconstruct`) and distillation (:func:`recover`), and written (:func:`write_pruned`). Each way to
make a network smaller is a row of :data:`FORMS`.

Names are loaded when they are asked for: most of them need torch, a request or a config does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeattn.pruning.anatomy import Anatomy, Prunable, Stack, Unit, Unknown, layer_of
    from edgeattn.pruning.apply import prune, reshape
    from edgeattn.pruning.configs import plain_config
    from edgeattn.pruning.cut import Cut
    from edgeattn.pruning.families import find_anatomy
    from edgeattn.pruning.forms import FORMS, check_cut, cut_to_json, reshaping, without_dropped
    from edgeattn.pruning.forms.form import Form, Planning, Study
    from edgeattn.pruning.graph_loss import Hook
    from edgeattn.pruning.importance import Importance, ImportanceOptions, leave_out, magnitude, measure_importance
    from edgeattn.pruning.knapsack import Selection, SelectOptions, select
    from edgeattn.pruning.latency import LatencyTable, Timing, timings
    from edgeattn.pruning.latency_estimated import estimate_table
    from edgeattn.pruning.latency_measured import MeasureOptions, cache_directory, measure_table, unit_rows
    from edgeattn.pruning.least_squares import ReconstructOptions, reconstruct
    from edgeattn.pruning.recovery import Recovery, recover
    from edgeattn.pruning.request import Request, amounts, parse_request, request_text
    from edgeattn.pruning.saved import (
        EXAMPLE,
        GRAPH,
        PROGRAM,
        PRUNING,
        WEIGHTS,
        PruningRecord,
        apply_saved,
        check_weights,
        is_saved,
        largest_difference,
        read_saved,
        with_cuts,
    )
    from edgeattn.pruning.states import groups_left, state_owners
    from edgeattn.pruning.student import RecoveryOptions
    from edgeattn.pruning.surgery import copied, set_number
    from edgeattn.pruning.trials import prunable
    from edgeattn.pruning.weights import read_tensors
    from edgeattn.pruning.writing import write_pruned

_HOMES = {
    "anatomy": "Anatomy Prunable Stack Unit Unknown layer_of",
    "apply": "prune reshape",
    "configs": "plain_config",
    "cut": "Cut",
    "families": "find_anatomy",
    "forms": "FORMS check_cut cut_to_json reshaping without_dropped",
    "forms.form": "Form Planning Study",
    "graph_loss": "Hook",
    "importance": "Importance ImportanceOptions leave_out magnitude measure_importance",
    "knapsack": "SelectOptions Selection select",
    "latency": "LatencyTable Timing timings",
    "latency_estimated": "estimate_table",
    "latency_measured": "MeasureOptions cache_directory measure_table unit_rows",
    "least_squares": "ReconstructOptions reconstruct",
    "recovery": "Recovery recover",
    "request": "Request amounts parse_request request_text",
    "saved": "EXAMPLE GRAPH PROGRAM PRUNING PruningRecord WEIGHTS "
    "apply_saved check_weights is_saved largest_difference read_saved with_cuts",
    "student": "RecoveryOptions",
    "states": "groups_left state_owners",
    "weights": "read_tensors",
    "writing": "write_pruned",
    "surgery": "copied set_number",
    "trials": "prunable",
}
"""Module -> what outsiders take from it."""

_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "EXAMPLE",
    "FORMS",
    "GRAPH",
    "PROGRAM",
    "PRUNING",
    "WEIGHTS",
    "Anatomy",
    "Cut",
    "Form",
    "Hook",
    "Importance",
    "ImportanceOptions",
    "LatencyTable",
    "MeasureOptions",
    "Planning",
    "Prunable",
    "PruningRecord",
    "ReconstructOptions",
    "Recovery",
    "RecoveryOptions",
    "Request",
    "SelectOptions",
    "Selection",
    "Stack",
    "Study",
    "Timing",
    "Unit",
    "Unknown",
    "amounts",
    "apply_saved",
    "cache_directory",
    "check_cut",
    "check_weights",
    "copied",
    "cut_to_json",
    "estimate_table",
    "find_anatomy",
    "groups_left",
    "is_saved",
    "largest_difference",
    "layer_of",
    "leave_out",
    "magnitude",
    "measure_importance",
    "measure_table",
    "parse_request",
    "plain_config",
    "prunable",
    "prune",
    "read_saved",
    "read_tensors",
    "reconstruct",
    "recover",
    "request_text",
    "reshape",
    "reshaping",
    "select",
    "set_number",
    "state_owners",
    "timings",
    "unit_rows",
    "with_cuts",
    "without_dropped",
    "write_pruned",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
