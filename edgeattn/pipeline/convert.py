"""convert(): a trained model becomes one verified bundle per target.

The steps, in order, each a file of steps/:

    preflight      what would fail on a target is refused before anything is converted             (preflight.py)
    baseline       the float32 source, streamed: recorded steps, calibration samples, the metric    (baseline.py)
    prune          where asked: heads, neurons and layers are removed for a target's milliseconds   (pruning/)
    candidates     per target: each recipe built by the engine's converter and quantizer            (recipes.py)
    verify         each candidate against the baseline: parity, the task's metric, time             (candidates.py)
    fall back      where the fastest loses the metric: layers back to float, else a short training  (fallbacks.py)
    choose         the fastest that keeps the metric; the reasons for the others are kept too       (candidates.py)
    pack           the bundle is drafted, profiled in a process of its own, gated, published whole  (packing.py)

Nothing appears under the destination before its last step; a failed gate publishes nothing unless asked to.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from edgeattn.converters.tensorrt import on_dla
from edgeattn.evaluation.data import Data
from edgeattn.model import EdgeModel
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.fallbacks import forget_trials, try_recipes
from edgeattn.pipeline.steps.options import ConvertOptions, Effort
from edgeattn.pipeline.steps.packing import destination, golden_inputs, pack
from edgeattn.pipeline.steps.preflight import engine
from edgeattn.pipeline.steps.refusals import Refusals
from edgeattn.pipeline.steps.served import Findings, serve_targets
from edgeattn.profiling.contract import contract
from edgeattn.progress import Progress
from edgeattn.pruning import Request
from edgeattn.results.report import Report, Result
from edgeattn.runtimes.selftest import make_golden
from edgeattn.targets import Target

if TYPE_CHECKING:
    from edgeattn.pipeline.steps.pruning import PruneTask


def convert(model: EdgeModel, data: Data | None, options: ConvertOptions, progress: Progress) -> Report:
    """Make one verified bundle per target.

    Args:
        model: what :func:`edgeattn.sources.load_model` returned.
        data: to calibrate and to measure the metric on; without it int8 needs an engine that quantizes dynamically,
            and no accuracy figure is given.

    What one target of several cannot take is a row with its error, and the others go on.

    Raises:
        EdgeattnError: for anything that stops all targets, or the only one; what was published before stays.
    """

    def check(target: Target, own: ConvertOptions) -> None:
        destination(model, target, own)
        contract(model.spec, own.measure)

    def serve(exports: Exports, refused: Refusals, findings: Findings) -> list[Result]:
        results = []
        for target, own in pruned(exports, options, refused, progress):
            with refused.within(target, "conversion"):
                result = convert_target(own, target, options.of(target), progress)
                results.append(replace(result, preflight=findings[target.name]))
        return results

    return serve_targets(model, data, options, progress, check, serve)


def pruned(
    exports: Exports, options: ConvertOptions, refused: Refusals, progress: Progress
) -> Iterator[tuple[Target, Exports]]:
    """Each target with what is converted for it: the source itself, or what pruning made of it."""
    tasks: dict[Request, PruneTask] = {}  # what does not depend on the target is done once for each request
    for target in refused.left():
        request = options.of(target).prune
        if request is None:
            yield target, exports
            continue
        with refused.within(target, "pruning"):
            from edgeattn.pipeline.steps.pruning import Setting, for_target, prune_file, prune_task  # they load torch

            if request not in tasks:
                checkpoint = prune_file(exports, options)
                tasks[request] = prune_task(exports, request, checkpoint, options.loss, options.accept_unproved)
            backend, threads = engine(target, options), options.measure.threads
            setting = Setting(target=target, backend=backend, threads=threads, progress=progress)
            made = for_target(tasks[request], setting)
        if target not in refused:
            yield target, Exports(made.model, made.base, exports.new_directory(f"pruned-{target.name}"), made.pruning)
    if tasks:
        from edgeattn.pipeline.steps.pruning import forget

        for task in tasks.values():
            forget(task)


def convert_target(exports: Exports, target: Target, options: ConvertOptions, progress: Progress) -> Result:
    """Candidates, verification, choice and bundle for one target, with the options that are its own."""
    began = time.monotonic()
    if (
        exports.pruning is not None and exports.pruning.failures
    ):  # it missed what was asked: a better plan will not mend it
        options = replace(options, effort=Effort(0.0))
    with ExitStack() as open_sessions:
        tried = try_recipes(exports, target, options, open_sessions, progress)
        candidates, shipped = tried.choice(exports.base.score, options)
        golden = make_golden(tried.sessions[shipped], golden_inputs(exports.base))
    chosen = tried.verified[shipped]
    if options.dla:
        chosen = replace(chosen, artifact=on_dla(chosen.artifact))
    result = pack(exports, target, chosen, candidates, golden, options, progress)
    if result.bundle is not None:
        forget_trials(exports.model, target, options)
    return replace(result, notes=(*result.notes, *tried.notes), seconds=time.monotonic() - began)
