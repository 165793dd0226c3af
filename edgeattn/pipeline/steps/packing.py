"""The bundle: drafted, profiled in a process of its own, gated, and published whole."""

from __future__ import annotations

import importlib.metadata
import itertools
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

import edgeattn
from edgeattn.bundle import ASSETS, BundleDraft, Golden, Manifest, zip_bundle
from edgeattn.engines import ENGINES
from edgeattn.errors import InputError
from edgeattn.guards.outputs import refuse_existing, writing
from edgeattn.jobs.measure import profile_bundle
from edgeattn.model import Arrays, Artifact, EdgeModel
from edgeattn.pipeline.steps.baseline import Baseline
from edgeattn.pipeline.steps.candidates import VerifiedCandidate, artifact_files
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.options import ConvertOptions
from edgeattn.pipeline.steps.preflight import removed_if_empty
from edgeattn.pipeline.steps.rows import profiled_row
from edgeattn.profiling.figures import Profile
from edgeattn.progress import Progress
from edgeattn.results.gates import Gates, size_failures
from edgeattn.results.report import Candidate, Precision, Pruning, Result, with_gates
from edgeattn.results.verdicts import Judgement, deadline_foreseen, deadline_judged, deadline_of, foreseen, judged
from edgeattn.spec import to_json
from edgeattn.targets import Target, host_target
from edgeattn.targets.host import HOST
from edgeattn.tasks import stored

GOLDEN_STEPS = 6
LEAST_GOLDEN_STEPS = 2  # a state that is lost shows in the second
GOLDEN_BYTES = 2**26  # unpacked, from which on fewer steps are kept: logits of long prompts would outweigh the model
# What other kernels of the same precision must reach.
GOLDEN_SQNR_DB = {"fp32": 60.0, "fp16": 40.0, "int8": 15.0, "int4": 10.0}


def destination(model: EdgeModel, target: Target, options: ConvertOptions) -> Path:
    """Where the bundle goes.

    Raises:
        OutputError: if it cannot go there.
    """
    path = options.path(model.spec.name, target, options.suffix)
    with removed_if_empty(options.out):  # tried now, not after minutes of work
        if not options.archive:
            with BundleDraft(path, options.force):
                return path
        refuse_existing(path, options.force, "a file", path.is_file())
        with writing(path):
            options.out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=options.out):
                return path


def pack(
    exports: Exports,
    target: Target,
    chosen: VerifiedCandidate,
    candidates: tuple[Candidate, ...],
    golden: Arrays,
    options: ConvertOptions,
    progress: Progress,
) -> Result:
    """Draft the bundle, profile the draft, gate it, publish it."""
    model, artifact = exports.model, chosen.artifact
    path = destination(model, target, options)
    draft_path = exports.scratch / path.name if options.archive else path
    with BundleDraft(draft_path, options.force) as draft, writing(path):
        precision = Precision(asked=options.precision, shipped=artifact.precision, executed=None, candidates=candidates)
        manifest = draft_bundle(draft, exports, target, artifact, precision, golden)
        progress.begin(f"{target.name}: profile")
        profile = profile_bundle(draft.path, options.measure, ENGINES[artifact.backend].substitute)
        result = profiled_row(exports, target, chosen, candidates, profile, options)
        figures = {"parity": result.parity, "accuracy": result.accuracy, "latency": result.latency}
        written = draft.write_manifest(
            replace(
                manifest, precision=to_json(result.precision), measured=to_json({**figures, "device": result.device})
            )
        )
        size = sum(entry.size for entry in written.files.values())
        rows = [*in_time(draft.path, exports, target, profile, options), *size_judged(size, options.gates)]
        result = replace(with_gates(result, rows), size_bytes=size, bundle=str(path))
        if result.verdict == "failed" and not options.keep_failed:
            note = "not written: a gate failed (--keep-failed writes it)"
            return replace(result, bundle=None, notes=(*result.notes, note))
        if options.archive:
            options.out.mkdir(parents=True, exist_ok=True)
            zip_bundle(draft.path, path, options.force)
        else:
            draft.publish()
    return result


def in_time(path: Path, exports: Exports, target: Target, profile: Profile, options: ConvertOptions) -> list[Judgement]:
    """The deadline, by this machine's clock where it is the target, else by an estimate, which can pass nothing."""
    deadline = deadline_of(exports.model.spec, target, options.gates, options.measure)
    if deadline is None:
        return []
    if target.name == HOST:
        return deadline_judged(profile, deadline)
    found = foreseen(path, target, options.measure.threads)
    return [deadline_foreseen(deadline, target.name, found, f"this machine is not {target.name}")]


def size_judged(size: int, gates: Gates) -> list[Judgement]:
    """The size of a bundle, where one was asked for."""
    limit = gates.max_size_bytes
    if limit is None:
        return []
    return judged("size", size_failures(size, limit), f"at most {limit} bytes", f"{size} bytes", "flag")


def draft_bundle(
    draft: BundleDraft,
    exports: Exports,
    target: Target,
    artifact: Artifact,
    precision: Precision,
    golden: Arrays | None,
) -> Manifest:
    """Fill a draft with an artifact and all that belongs to it; without measurements.

    Args:
        golden: as :func:`~edgeattn.runtimes.selftest.make_golden` gives it; None for a bundle without.
    """
    model = exports.model
    for name, file in artifact_files(artifact).items():
        shutil.copyfile(file, draft.path / name)
    copy_assets(model.assets, draft.path)
    facts = None
    if golden:
        _save_arrays(draft.path / "golden.npz", golden)
        maker = f"{ENGINES[artifact.backend].here}, edgeattn {edgeattn.__version__}"
        facts = Golden("golden.npz", len(next(iter(golden.values()))), maker, GOLDEN_SQNR_DB[artifact.precision])
    manifest = Manifest(
        name=model.spec.name,
        target=target.name,
        backend=artifact.backend,
        spec=model.spec,
        models={graph: file.name for graph, file in artifact.models.items()},
        precision=to_json(precision),
        provenance=provenance(model, artifact, exports.pruning),
        measured={},
        golden=facts,
        build=artifact.build,
        task=None if model.task is None else stored(model.task),
    )
    draft.write_manifest(manifest)
    return manifest


def copy_assets(assets: Mapping[str, Path], draft: Path) -> None:
    """Put what travels with a model under ``assets/``, where the manifest lists and hashes it as any file.

    Raises:
        InputError: for a name that would leave that directory.
    """
    for name, source in assets.items():
        path = PurePosixPath(name)
        plain = name == path.as_posix() and path.parts and not path.is_absolute() and ".." not in path.parts
        if not plain or set(name) & set("\\:"):
            raise InputError(f"asset {name!r} is no path inside the bundle")
        target = draft / ASSETS / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def golden_inputs(base: Baseline) -> dict[str, list[Arrays]]:
    """The first recorded inputs of every graph, from the start again where fewer were recorded."""
    firsts = [records[0] for records in base.records.values()]
    size = sum(array.nbytes for first in firsts for array in (*first.inputs.values(), *first.outputs.values()))
    steps = max(LEAST_GOLDEN_STEPS, min(GOLDEN_STEPS, GOLDEN_BYTES // max(1, size)))
    return {
        graph: [dict(record.inputs) for record in itertools.islice(itertools.cycle(records), steps)]
        for graph, records in base.records.items()
    }


def provenance(model: EdgeModel, artifact: Artifact, pruning: Pruning | None = None) -> dict[str, Any]:
    """Where the bundle comes from: enough to make it again."""
    # What a device brings is not here, and what its files were checked with stands in ``build``.
    rows = [row for row in ENGINES.values() if not row.substitute]
    tools = (
        *("torch", "onnx", "onnxscript"),
        *(name for row in rows for name in (row.distribution, *(tool.replace("_", "-") for tool in row.tools))),
    )
    host = host_target()
    return {
        "source_sha256": model.source_sha256,
        "recipe": artifact.recipe,
        **({} if pruning is None else {"pruning": {key: pruning.facts.get(key) for key in ("asked", "kept", "cut")}}),
        "layers": dict(artifact.treatments),
        "machine": {"arch": host.cpu.arch, "isa": list(host.cpu.isa)},
        "tools": {"edgeattn": edgeattn.__version__, **{name: _version(name) for name in tools if _version(name)}},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _save_arrays(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
