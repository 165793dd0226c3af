"""quantize(): the candidates of a target without the bundle: which layers in which precision, saved for ``convert``."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from edgeattn.bundle import refuse_existing, whole_directory
from edgeattn.engines import SUBSTITUTE
from edgeattn.errors import UnsupportedError
from edgeattn.evaluation.data import Data
from edgeattn.guards.scratch import scratch_room
from edgeattn.model import EdgeModel
from edgeattn.pipeline.steps.baseline import baseline
from edgeattn.pipeline.steps.candidates import Verified, artifact_files
from edgeattn.pipeline.steps.early import check_target
from edgeattn.pipeline.steps.exports import Workshop
from edgeattn.pipeline.steps.fallbacks import forget_trials, try_schemes
from edgeattn.pipeline.steps.options import ConvertOptions
from edgeattn.pipeline.steps.preflight import check_room, describe, preflight, removed_if_empty
from edgeattn.pipeline.steps.refusals import Refusals
from edgeattn.pipeline.steps.repeatable import confirmed
from edgeattn.pipeline.steps.rows import on_this_host, verified_gates
from edgeattn.profiling.measure import device_name
from edgeattn.progress import Progress
from edgeattn.quantize.plan import plan_text
from edgeattn.results.report import Candidate, Precision, Report, Result, with_gates
from edgeattn.targets import Target
from edgeattn.targets.host import HOST

SUFFIX = ".quantized"
PLAN, RESULT = "plan.toml", "quantize.json"


def quantize(model: EdgeModel, data: Data | None, options: ConvertOptions, progress: Progress) -> Report:
    """Measure the candidates of each target and save the one that convert would ship, with its plan.

    Writes ``OUT/NAME.TARGET.quantized/``: the engine's files, ``plan.toml`` (one rule per layer, for ``--plan``) and
    ``quantize.json`` (the report). Each directory is whole or absent.

    Raises:
        EdgeattnError: as convert.
    """
    refused = Refusals(options.targets, options.backend, options.precision)
    for target in options.targets:  # refused before any waiting
        own = options.of(target)
        path = destination(model, target, own)
        refuse_existing(path, own.force, "a quantized model", (path / PLAN).is_file())
        with refused.within(target, "target", UnsupportedError):
            check_target(target, own)
    model = confirmed(model)
    with removed_if_empty(options.out), scratch_room() as scratch:
        check_room(model, scratch)
        findings = preflight(model, data, options, refused, progress)
        results: list[Result] = []
        if refused.left():
            shop = Workshop(model, baseline(model, data, progress), scratch)
            for target in refused.left():
                with refused.within(target, "conversion"):
                    results.append(_quantize_target(shop, target, options.of(target), progress))
    return Report(describe(model), refused.rows(results, findings))


def destination(model: EdgeModel, target: Target, options: ConvertOptions) -> Path:
    """Where the result goes."""
    return options.out / f"{model.spec.name}.{target.name}{SUFFIX}"


def _quantize_target(shop: Workshop, target: Target, options: ConvertOptions, progress: Progress) -> Result:
    began = time.monotonic()
    with ExitStack() as stack:
        tried = try_schemes(shop, target, options, stack, progress)
        candidates, shipped = tried.choice(shop.base.score, options)
        executed = tried.sessions[shipped].executed()
    verified = tried.verified[shipped]
    result = _result(shop, target, verified, candidates, options, executed)
    path = destination(shop.model, target, options)
    result = _written(path, verified, result, options.force)
    if result.verdict != "failed":
        forget_trials(shop.model, target, options)
    return replace(result, notes=(*result.notes, *tried.notes), seconds=time.monotonic() - began)


def _result(
    shop: Workshop,
    target: Target,
    verified: Verified,
    candidates: tuple[Candidate, ...],
    options: ConvertOptions,
    executed: dict[str, dict[str, int]],
) -> Result:
    artifact = verified.artifact
    substitute = SUBSTITUTE.get(artifact.backend)
    foreign = (on_this_host(target, candidates),) if substitute is None and target.name != HOST else ()
    figures, rows = verified_gates(shop, verified, options.gates)
    result = Result(
        target=target.name,
        device=device_name() if substitute is None else f"{device_name()} ({substitute})",
        backend=artifact.backend,
        bundle=None,
        passed=True,
        failures=(),
        precision=Precision(
            asked=options.precision,
            shipped=artifact.precision,
            executed=None if substitute else executed,
            candidates=candidates,
        ),
        size_bytes=verified.size_bytes,
        source_size_bytes=shop.model.source_size_bytes,
        parity=verified.parity,
        accuracy=figures,
        build=artifact.build,
        notes=(*shop.model.notes, artifact.recipe, *foreign),
    )
    return with_gates(result, rows)


def _written(path: Path, verified: Verified, result: Result, force: bool) -> Result:
    """Write the directory, whole or not at all."""
    if result.verdict == "failed":
        return result
    with whole_directory(path, force) as directory:
        for name, file in artifact_files(verified.artifact).items():
            shutil.copyfile(file, directory / name)
        (directory / PLAN).write_text(plan_text(verified.artifact.treatments), encoding="utf-8")
        text = json.dumps(Report({}, (result,)).to_json(), indent=1, allow_nan=False)
        (directory / RESULT).write_text(f"{text}\n", encoding="utf-8")
    return result
