"""What is asked of a model, and where: the same request is carried out for several targets, one setting each."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgeattn.errors import InputError
from edgeattn.evaluation.accuracy import Score
from edgeattn.evaluation.confidence import ALPHA
from edgeattn.model import Arrays, EdgeModel
from edgeattn.pipeline.steps.candidates import CUT_ALPHA, CUT_LOOKS
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.options import ConvertOptions
from edgeattn.pipeline.steps.pruning.facts import CutFacts
from edgeattn.progress import Progress, shares
from edgeattn.pruning import (
    Cut,
    Hook,
    Importance,
    ImportanceOptions,
    Prunable,
    Request,
    cut_to_json,
    measure_importance,
    prunable,
)
from edgeattn.targets import Target

PARTS = 100  # of a phase that counts shares


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where a model is pruned for.

    Attributes:
        backend: engine that is timed.
        threads: of it.
    """

    target: Target
    backend: str
    threads: int
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class CutModel:
    """A cut carried out.

    Attributes:
        score: of the float32 modules, None without a metric.
    """

    model: EdgeModel
    score: Score | None
    facts: CutFacts


@dataclass(kw_only=True)
class Memory:
    """What targets share because it does not depend on them.

    Attributes:
        importance: measured when it is first asked for.
        made: text of a cut -> the cut carried out.
    """

    importance: Importance | None = None
    made: dict[str, CutModel] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PruneTask:
    """A model and what to remove of it, for all targets of a run.

    Attributes:
        source: the model as it was given.
        given: what is cut: the source, or a copy where a block gave way to one that can be cut.
        exports: exports and baseline of ``given``.
        checkpoint: what distillation keeps its state beside, a file for each cut; None keeps none.
        hook: a loss of the user's, for importance and distillation.
        accept_unproved: a cut keeps the metric if it does on the samples, be they too few to show it.
    """

    request: Request
    source: EdgeModel
    given: Prunable
    exports: Exports
    checkpoint: Path | None = None
    hook: Hook | None = None
    accept_unproved: bool = False
    memory: Memory = field(default_factory=Memory)

    @property
    def alpha(self) -> float:
        """Of what is said of the metric of a cut: several are looked at where the metric decides."""
        return ALPHA if self.request.max_drop is None else CUT_ALPHA

    @property
    def recover_seconds(self) -> float:
        """Of one distillation: the trials among which a cut is looked for by its metric share what was given."""
        return self.request.recover_seconds / (1 if self.request.max_drop is None else CUT_LOOKS)


def prune_task(
    exports: Exports,
    request: Request,
    checkpoint: Path | None = None,
    hook: Hook | None = None,
    accept_unproved: bool = False,
) -> PruneTask:
    """Look at a model and at what is asked of it; see :class:`PruneTask`.

    Args:
        exports: the original with its baseline.

    Raises:
        InputError: for recovery without data.
        UnsupportedError: if nothing can be cut in the model.
    """
    if request.recover_seconds and exports.base.data is None:
        raise InputError(
            "recovery trains on --data, which is not given: give inputs like those of use; labels are not needed"
        )
    given = prunable(exports.model)
    own = given.model is exports.model
    return PruneTask(
        request=request,
        source=exports.model,
        given=given,
        exports=exports if own else Exports(given.model, exports.base, exports.new_directory("prunable")),
        checkpoint=checkpoint,
        hook=hook,
        accept_unproved=accept_unproved,
    )


# --- importance -------------------------------------------------------------------------------------------------------


def importance_of(task: PruneTask, progress: Progress) -> Importance | None:
    """Measured once; None without data."""
    if task.memory.importance is None and importance_samples(task):
        progress.begin("pruning: importance of heads, neurons and layers", PARTS)
        task.memory.importance = measure_importance(
            task.given, importance_samples(task), importance_options(task), shares(progress, PARTS)
        )
    return task.memory.importance


def importance_options(task: PruneTask) -> ImportanceOptions:
    """As the request asks."""
    return ImportanceOptions(samples=task.request.samples, loss=task.hook)


def importance_samples(task: PruneTask) -> Mapping[str, tuple[Arrays, ...]]:
    """What importance is measured on, with targets for a loss of the user's; empty without data."""
    samples = {graph: own for graph, own in task.exports.base.calibration.items() if own}
    data = task.exports.base.data
    return samples if task.hook is None or data is None else data.with_targets(task.given.model.spec, samples)


# --- files ------------------------------------------------------------------------------------------------------------


def cut_text(cut: Cut) -> str:
    """A cut as text: the same for cuts that are the same."""
    return json.dumps(cut_to_json(cut), sort_keys=True)


def state_file(task: PruneTask, cut: Cut) -> Path | None:
    """Where the distillation of a cut keeps its state: targets may ask for different cuts."""
    if task.checkpoint is None:
        return None
    digest = hashlib.sha256(cut_text(cut).encode()).hexdigest()
    return task.checkpoint.with_name(f"{task.checkpoint.name}.{digest[:12]}")


def prune_file(exports: Exports, options: ConvertOptions) -> Path:
    """What recovery keeps its checkpoints beside until everything is made."""
    return options.out / f".{exports.model.spec.name}.prune.recovery"


def forget(task: PruneTask) -> None:
    """Remove what distillation kept for going on: its result is in place."""
    if task.checkpoint is not None:
        for file in task.checkpoint.parent.glob(f"{glob.escape(task.checkpoint.name)}.*"):
            file.unlink(missing_ok=True)
