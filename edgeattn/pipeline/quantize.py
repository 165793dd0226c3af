"""quantize(): the candidates of a target without the bundle: which layers in which precision, saved for ``convert``."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from edgeattn.evaluation.data import Data
from edgeattn.guards.outputs import refuse_existing, whole_directory
from edgeattn.model import Artifact, EdgeModel
from edgeattn.pipeline.steps.candidates import artifact_files
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.fallbacks import forget_trials, try_recipes
from edgeattn.pipeline.steps.options import ConvertOptions
from edgeattn.pipeline.steps.refusals import Refusals
from edgeattn.pipeline.steps.rows import artifact_row, timed_elsewhere
from edgeattn.pipeline.steps.served import Findings, serve_targets
from edgeattn.profiling.measure import device_name
from edgeattn.progress import Progress
from edgeattn.quantize.plan import plan_text
from edgeattn.results.report import Precision, Report, Result
from edgeattn.targets import Target

SUFFIX = ".quantized"
PLAN, RESULT = "plan.toml", "quantize.json"


def quantize(model: EdgeModel, data: Data | None, options: ConvertOptions, progress: Progress) -> Report:
    """Measure the candidates of each target and save the one that convert would ship, with its plan.

    Writes ``OUT/NAME.TARGET.quantized/``: the engine's files, ``plan.toml`` (one rule per layer, for ``--plan``) and
    ``quantize.json`` (the report). Each directory is whole or absent.

    Raises:
        EdgeattnError: as convert.
    """

    def check(target: Target, own: ConvertOptions) -> None:
        path = own.path(model.spec.name, target, SUFFIX)
        refuse_existing(path, own.force, "a quantized model", (path / PLAN).is_file())

    def serve(exports: Exports, refused: Refusals, _: Findings) -> list[Result]:
        results = []
        for target in refused.left():
            with refused.within(target, "conversion"):
                results.append(_quantize_target(exports, target, options.of(target), progress))
        return results

    return serve_targets(model, data, options, progress, check, serve)


def _quantize_target(exports: Exports, target: Target, options: ConvertOptions, progress: Progress) -> Result:
    began = time.monotonic()
    with ExitStack() as stack:
        tried = try_recipes(exports, target, options, stack, progress)
        candidates, shipped = tried.choice(exports.base.score, options)
        executed = tried.sessions[shipped].executed()
    verified = tried.verified[shipped]
    artifact = verified.artifact
    precision = Precision(asked=options.precision, shipped=artifact.precision, executed=executed, candidates=candidates)
    row = artifact_row(exports, target, verified, precision, device_name(), options.gates)
    notes = (artifact.recipe, *timed_elsewhere(target, artifact.backend, candidates))
    result = replace(row, notes=(*row.notes, *notes))
    if result.verdict != "failed":
        _write(options.path(exports.model.spec.name, target, SUFFIX), artifact, result, options.force)
        forget_trials(exports.model, target, options)
    return replace(result, notes=(*result.notes, *tried.notes), seconds=time.monotonic() - began)


def _write(path: Path, artifact: Artifact, result: Result, force: bool) -> None:
    """Write the directory, whole or not at all."""
    with whole_directory(path, force) as directory:
        for name, file in artifact_files(artifact).items():
            shutil.copyfile(file, directory / name)
        (directory / PLAN).write_text(plan_text(artifact.treatments), encoding="utf-8")
        text = json.dumps(Report({}, (result,)).to_json(), indent=1, allow_nan=False)
        (directory / RESULT).write_text(f"{text}\n", encoding="utf-8")
