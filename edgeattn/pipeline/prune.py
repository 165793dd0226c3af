"""prune(): the prune step of convert alone; the smaller model is saved as a MODEL for the next step."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from edgeattn.converters.onnx import export_onnx
from edgeattn.errors import InputError
from edgeattn.evaluation.data import Data
from edgeattn.guards.outputs import refuse_existing
from edgeattn.guards.scratch import scratch_directory
from edgeattn.model import EdgeModel
from edgeattn.pipeline.steps.baseline import baseline
from edgeattn.pipeline.steps.candidates import Candidates, add_recipe
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.options import ConvertOptions
from edgeattn.pipeline.steps.preflight import check_disk, describe, engine, removed_if_empty
from edgeattn.pipeline.steps.pruning import (
    PruneTask,
    Setting,
    for_target,
    forget,
    prune_file,
    prune_task,
)
from edgeattn.pipeline.steps.refusals import Refusals
from edgeattn.pipeline.steps.repeatable import confirmed
from edgeattn.pipeline.steps.rows import artifact_row
from edgeattn.profiling.measure import device_name
from edgeattn.progress import Progress
from edgeattn.pruning import is_saved, write_pruned
from edgeattn.results.importance import importance_figure
from edgeattn.results.report import Precision, Report, Result
from edgeattn.targets import Target

SUFFIX = ".pruned"


@dataclass(frozen=True)
class PruneOptions:
    """Beside what convert takes.

    Attributes:
        reference: MODEL as it was given; what is written names it.
        plot: picture of what every group is worth and what was removed; None for none.
    """

    reference: str
    plot: Path | None = None


def prune(
    model: EdgeModel, data: Data | None, options: ConvertOptions, more: PruneOptions, progress: Progress
) -> Report:
    """Prune for each target, measure the float artifact on its engine, and save the model.

    Writes ``OUT/NAME.TARGET.pruned/``, whole or not at all: see :mod:`edgeattn.pruning.saved`. It is written although a
    gate failed, since the best so far is worth keeping; the report says so.

    Raises:
        EdgeattnError: for anything that stops all targets, or the only one; what was written before stays.
    """
    assert options.prune is not None, "the command asks for it"
    if options.prune.saved is not None:
        raise InputError(f"{options.prune.saved} is pruned already: give it as MODEL to prune it further")
    for target in options.targets:
        path = options.path(model.spec.name, target, SUFFIX)
        refuse_existing(path, options.force, "a pruned model", is_saved(path))
    model = confirmed(model)
    with removed_if_empty(options.out), scratch_directory() as scratch:
        check_disk(model, scratch)
        exports = Exports(model, baseline(model, data, progress), scratch)
        checkpoint = prune_file(exports, options)
        task = prune_task(exports, options.prune, checkpoint, options.loss, options.accept_unproved)
        refused = Refusals(options.targets, options.backend, options.precision)
        results: list[Result] = []
        for target in options.targets:
            with refused.within(target, "pruning"):
                results.append(_prune_target(task, target, options, more, progress))
        forget(task)
    return Report(describe(model), refused.rows(results))


def _prune_target(
    task: PruneTask, target: Target, options: ConvertOptions, more: PruneOptions, progress: Progress
) -> Result:
    began = time.monotonic()
    backend = engine(target, options)
    threads = options.measure.threads
    made = for_target(task, Setting(target=target, backend=backend, threads=threads, progress=progress))
    exports = Exports(made.model, made.base, task.exports.new_directory(f"pruned-{target.name}"), made.pruning)
    with ExitStack() as stack:
        tried = add_recipe(Candidates(), exports, target, "fp32", options, stack, progress, alone=True)
    verified = tried.verified["fp32"]
    precision = Precision(asked="fp32", shipped=verified.artifact.precision)
    row = artifact_row(exports, target, verified, precision, device_name(), options.gates)
    result = replace(row, notes=(*row.notes, *made.pruning.notes))
    facts = result.pruning
    assert facts is not None, "this is a pruned model"
    if more.plot is not None and task.memory.importance is not None:
        importance_figure(task.memory.importance, made.cut, more.plot)
    if facts["kept"]:
        progress.begin(f"{target.name}: writing")
        path = options.path(task.exports.model.spec.name, target, SUFFIX)
        told = {**facts, "failures": [str(failure) for failure in made.pruning.failures]}
        write_pruned(path, made.model, task.source, made.cut, more.reference, told, options.force, export_onnx)
        result = replace(result, bundle=str(path))
    return replace(result, seconds=time.monotonic() - began)
