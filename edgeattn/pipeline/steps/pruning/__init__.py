"""The prune step of convert: an original model and a request become a pruned model, for one target.

In order: importance, measured once for all targets; the cut, as it was asked or by a knapsack over the target's latency
table; removal, checked against masking; least squares; the other forms; distillation. Then both models are timed in
turns on the target's engine, and what was promised stands in the report beside what was measured.
"""

from __future__ import annotations

from edgeattn.pipeline.steps.pruning.outcome import Outcome, for_target
from edgeattn.pipeline.steps.pruning.plan import SPEEDUPS
from edgeattn.pipeline.steps.pruning.task import PruneTask, Setting, forget, prune_file, prune_task
from edgeattn.pipeline.steps.pruning.timing import latency_table

__all__ = [
    "SPEEDUPS",
    "Outcome",
    "PruneTask",
    "Setting",
    "for_target",
    "forget",
    "latency_table",
    "prune_file",
    "prune_task",
]
