"""The targets of a command, one after another: refused at once, refused by preflight, or served, each in a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from edgeattn.errors import UnsupportedError
from edgeattn.evaluation.data import Data
from edgeattn.guards.scratch import scratch_directory
from edgeattn.model import EdgeModel
from edgeattn.pipeline.steps.baseline import baseline
from edgeattn.pipeline.steps.early import check_target
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.options import ConvertOptions
from edgeattn.pipeline.steps.preflight import check_disk, describe, preflight, removed_if_empty
from edgeattn.pipeline.steps.refusals import Refusals
from edgeattn.pipeline.steps.repeatable import confirmed
from edgeattn.progress import Progress
from edgeattn.results.report import Report, Result
from edgeattn.targets import Target

Findings: TypeAlias = Mapping[str, tuple[Mapping[str, Any], ...]]
"""Target -> what preflight foresees, as plain JSON objects."""


def serve_targets(
    model: EdgeModel,
    data: Data | None,
    options: ConvertOptions,
    progress: Progress,
    check: Callable[[Target, ConvertOptions], None],
    serve: Callable[[Exports, Refusals, Findings], Iterable[Result]],
) -> Report:
    """Refuse what can be refused before any waiting, then measure the source once and serve the targets that are left.

    Args:
        check: raises what stops the command, given a target and the options that are its own.
        serve: gives a row for each target that nothing stopped, and leaves the error of the others with the refusals.

    Raises:
        EdgeattnError: for anything that stops all targets, or the only one.
    """
    refused = Refusals(options.targets, options.backend, options.precision)
    for target in options.targets:
        own = options.of(target)
        check(target, own)
        with refused.within(target, "target", UnsupportedError):
            check_target(target, own)
    model = confirmed(model)
    with removed_if_empty(options.out), scratch_directory() as scratch:
        check_disk(model, scratch)
        findings = preflight(model, data, options, refused, progress)
        results: list[Result] = []
        if refused.left():
            results += serve(Exports(model, baseline(model, data, progress), scratch), refused, findings)
    return Report(describe(model), refused.rows(results, findings))
