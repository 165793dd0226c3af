"""convert(): a trained model becomes one verified bundle per target.

The steps, in order:

    preflight      what would fail on a target is refused before anything is converted             (preflight.py)
    baseline       the float32 source, streamed: recorded steps, calibration samples, the metric    (baseline.py)
    candidates     per target: each precision built by the engine's converter and quantizer         (candidates.py)
    verify         each candidate against the baseline: parity, the task's metric, time             (candidates.py)
    choose         the fastest that keeps the metric; the reasons for the others are kept too       (candidates.py)
    pack           the bundle is drafted, profiled in a process of its own, gated, and published whole

Nothing appears under the destination before its last step; a failed gate publishes nothing unless asked to.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

import edgeattn
from edgeattn.baseline import Baseline, Progress, baseline
from edgeattn.bundle import ASSETS, SUFFIX, BundleDraft, Golden, Manifest, writing, zip_bundle
from edgeattn.candidates import (
    BUILDERS,
    PRECISIONS,
    SUBSTITUTE,
    Verified,
    Workshop,
    artifact_files,
    choose,
    time_candidates,
    verify,
)
from edgeattn.converters.preflight import Ask, Finding, GraphView, judge, look, refuse
from edgeattn.errors import DataError, InputError, OutputError, UnsupportedError, unknown_name
from edgeattn.evaluation.accuracy import accuracy
from edgeattn.evaluation.data import ArrayData, Data
from edgeattn.gates import Gates, deadline_failures, size_failures
from edgeattn.model import Arrays, Artifact, EdgeModel
from edgeattn.profiling.figures import Profile
from edgeattn.profiling.measure import MeasureOptions
from edgeattn.profiling.worker import profile_bundle
from edgeattn.report import Candidate, Precision, Report, Result, graph_results
from edgeattn.runtimes import Session, open_session
from edgeattn.runtimes.selftest import make_golden
from edgeattn.spec import to_json
from edgeattn.targets import Precision as Name
from edgeattn.targets import Target

GOLDEN_STEPS = 6
GOLDEN_SQNR_DB = {"fp32": 60.0, "fp16": 40.0, "int8": 15.0}  # what other kernels of the same precision must reach
SCRATCH_COPIES, SCRATCH_BYTES = 8, 16 * 2**20  # of the weights: one per export and precision; graphs, compilers


@dataclass(frozen=True)
class ConvertOptions:
    """What to make and where.

    Attributes:
        precision: "auto", or one of :data:`PRECISIONS`.
        backend: engine, if not the target's first.
        out: directory that receives ``NAME.TARGET.edge``.
        archive: pack each bundle into one .zip instead of a directory.
        force: replace a bundle that is there.
        keep_failed: publish a bundle although a gate failed.
        measure: how the shipped bundle is profiled.
    """

    targets: tuple[Target, ...]
    precision: str = "auto"
    backend: str | None = None
    out: Path = Path("out")
    gates: Gates = field(default_factory=Gates)
    measure: MeasureOptions = field(default_factory=MeasureOptions)
    archive: bool = False
    force: bool = False
    keep_failed: bool = False


def convert(model: EdgeModel, data: Data | None, options: ConvertOptions, progress: Progress) -> Report:
    """Make one verified bundle per target.

    Args:
        model: what :func:`edgeattn.sources.load_model` returned.
        data: to calibrate and to measure the metric on; without it int8 needs an engine that quantizes dynamically,
            and no accuracy figure is given.

    Raises:
        EdgeattnError: for anything that stops a target; what was published before stays.
    """
    for target in options.targets:
        precisions(target, engine(target, options), options.precision)  # refused before any waiting
        destination(model, target, options)
    with removed_if_empty(options.out), tempfile.TemporaryDirectory(prefix="edgeattn-") as scratch:
        check_room(model, Path(scratch))
        foreseen = preflight(model, data, options, progress)
        workshop = Workshop(model, baseline(model, data, progress), Path(scratch))
        results = [
            replace(convert_target(workshop, target, options, progress), preflight=foreseen[target.name])
            for target in options.targets
        ]
    return Report(describe(model), tuple(results))


def preflight(
    model: EdgeModel, data: Data | None, options: ConvertOptions, progress: Progress
) -> dict[str, tuple[Mapping[str, Any], ...]]:
    """What is foreseen for each target, as plain JSON objects.

    Raises:
        UnsupportedError: naming what would fail, why, and what to change.
    """
    progress.begin("preflight")
    views = look(model, calibration_sample(model, data))
    foreseen = {}
    for target in options.targets:
        findings = foresee(model, views, target, data, options)
        refuse(findings)
        foreseen[target.name] = tuple(to_json(finding) for finding in findings)
    return foreseen


def foresee(
    model: EdgeModel, views: tuple[GraphView, ...], target: Target, data: Data | None, options: ConvertOptions
) -> tuple[Finding, ...]:
    """What preflight says of one target, for graphs that were looked at once."""
    backend = engine(target, options)
    asked = precisions(target, backend, options.precision)
    return judge(views, Ask(model, target, backend, asked, data is not None))


def calibration_sample(model: EdgeModel, data: Data | None) -> dict[str, Arrays]:
    """One set of inputs of the first graph from the data, where the data holds arrays."""
    if not isinstance(data, ArrayData) or not data.calibration:
        return {}
    return {model.spec.graphs[0].name: dict(data.calibration[0].inputs)}


def check_room(model: EdgeModel, scratch: Path) -> None:
    """Refuse a temporary directory that will not hold the exports: the engines' own writers die without a word there.

    Raises:
        OutputError: saying how much is missing.
    """
    graphs = max(len(graphs) for graphs in model.spec.units().values())  # each size is exported before sizes share
    needed = SCRATCH_COPIES * graphs * model.source_size_bytes + SCRATCH_BYTES
    free = shutil.disk_usage(scratch).free
    if free < needed:
        raise OutputError(
            f"{scratch.parent}: the disk is full: {free / 1e6:.1f} MB are free and conversion takes about "
            f"{needed / 1e6:.1f} MB; make room or set TMPDIR to another directory"
        )


def describe(model: EdgeModel) -> dict[str, Any]:
    """The report's ``model`` object."""
    return {
        "name": model.spec.name,
        "task": model.spec.task,
        "source_sha256": model.source_sha256,
        "source_size_bytes": model.source_size_bytes,
        "graphs": [graph.name for graph in model.spec.graphs],
        "buckets": {bucket.name: list(bucket.graphs) for bucket in model.spec.buckets},
    }


def engine(target: Target, options: ConvertOptions) -> str:
    """The engine to convert for.

    Raises:
        UnsupportedError: if the target does not have the one that was asked for.
    """
    backend = options.backend or target.backends[0]
    if backend not in target.backends:
        raise UnsupportedError(f"target {target.name}: {unknown_name('engine', backend, target.backends)}")
    return backend


def precisions(target: Target, backend: str, asked: str) -> tuple[Name, ...]:
    """The precisions to try on an engine of a target, the safest first.

    Raises:
        InputError: for a name that is no precision.
        UnsupportedError: if the engine does not have it there.
    """
    offered = tuple(p for p in PRECISIONS if p in target.precisions[backend])
    if asked == "auto":
        return offered
    if asked not in PRECISIONS:
        raise InputError(unknown_name("precision", asked, ("auto", *PRECISIONS)))
    chosen = tuple(p for p in offered if p == asked)
    if not chosen:
        raise UnsupportedError(f"{backend} on {target.name} has no {asked}; it has {', '.join(offered)}")
    return chosen


def destination(model: EdgeModel, target: Target, options: ConvertOptions) -> Path:
    """Where the bundle goes.

    Raises:
        OutputError: if it cannot go there.
    """
    path = options.out / f"{model.spec.name}.{target.name}{SUFFIX}"
    with removed_if_empty(options.out):  # tried now, not after minutes of work
        if not options.archive:
            with BundleDraft(path, options.force):
                return path
        archive = path.with_suffix(f"{SUFFIX}.zip")
        if archive.exists() and not (options.force and archive.is_file()):
            raise OutputError(f"{archive} exists; remove it, choose another --out, or pass --force")
        with writing(archive):
            options.out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=options.out):
                return archive


@contextlib.contextmanager
def removed_if_empty(directory: Path) -> Iterator[None]:
    """Take a directory that was not there before away again if nothing came into it."""
    there = directory.exists()
    try:
        yield
    finally:
        if not there:
            with contextlib.suppress(OSError):  # not empty, which is how it should be
                directory.rmdir()


def with_deadline(options: ConvertOptions, target: Target) -> ConvertOptions:
    """The options with the target's own deadline, where none was asked for."""
    if options.gates.deadline_ms is not None or target.default_deadline_ms is None:
        return options
    deadline = target.default_deadline_ms
    return replace(
        options,
        gates=replace(options.gates, deadline_ms=deadline),
        measure=replace(options.measure, deadline_ms=deadline),
    )


def convert_target(shop: Workshop, target: Target, options: ConvertOptions, progress: Progress) -> Result:
    """Candidates, verification, choice and bundle for one target."""
    began = time.monotonic()
    options = with_deadline(options, target)
    backend = engine(target, options)
    verified: dict[str, Verified] = {}
    refused: list[Candidate] = []
    with ExitStack() as open_sessions:
        sessions: dict[str, Session] = {}
        for precision in precisions(target, backend, options.precision):
            progress.begin(f"{target.name}: {precision} with {backend}")
            try:
                artifact = BUILDERS[backend](shop, precision, target)
            except (DataError, UnsupportedError) as error:
                if options.precision != "auto":
                    raise
                refused.append(Candidate(precision, None, None, None, False, str(error)))
                continue
            session = open_session(
                SUBSTITUTE.get(artifact.backend, artifact.backend),
                artifact.models,
                shop.model.spec,
                options.measure.threads,
                artifact.build,
            )
            sessions[precision] = open_sessions.enter_context(session)
            label = f"{target.name}: {precision}"
            verified[precision] = verify(shop, artifact, session, options.gates, label, progress)
        if not verified:
            raise UnsupportedError(f"{target.name}: no precision could be built: {refused[0].why}")
        progress.begin(f"{target.name}: timing")
        if backend not in SUBSTITUTE:
            times = time_candidates(sessions)
            verified = {p: replace(v, latency_ms=times[p]) for p, v in verified.items()}
        candidates = (*choose(verified, shop.base.score, options.precision), *refused)
        shipped = next(c.precision for c in candidates if c.kept)
        golden = make_golden(sessions[shipped], golden_inputs(shop.base))
    result = pack(shop, target, verified[shipped], candidates, golden, options, progress)
    return replace(result, seconds=time.monotonic() - began)


def pack(
    shop: Workshop,
    target: Target,
    chosen: Verified,
    candidates: tuple[Candidate, ...],
    golden: Arrays,
    options: ConvertOptions,
    progress: Progress,
) -> Result:
    """Draft the bundle, profile the draft, gate it, publish it."""
    model, artifact = shop.model, chosen.artifact
    path = destination(model, target, options)
    draft_path = shop.scratch / path.name if options.archive else path
    with BundleDraft(draft_path, options.force) as draft, writing(path):
        for name, file in artifact_files(artifact).items():
            shutil.copyfile(file, draft.path / name)
        copy_assets(model.assets, draft.path)
        _save_arrays(draft.path / "golden.npz", golden)
        maker = f"{SUBSTITUTE.get(artifact.backend, artifact.backend)}, edgeattn {edgeattn.__version__}"
        manifest = Manifest(
            name=model.spec.name,
            target=target.name,
            backend=artifact.backend,
            spec=model.spec,
            models={graph: file.name for graph, file in artifact.models.items()},
            precision=to_json(Precision(options.precision, artifact.precision, None, candidates)),
            provenance=provenance(model, artifact),
            measured={},
            golden=Golden("golden.npz", GOLDEN_STEPS, maker, GOLDEN_SQNR_DB[artifact.precision]),
            build=artifact.build,
        )
        draft.write_manifest(manifest)
        progress.begin(f"{target.name}: profile")
        profile = profile_bundle(draft.path, options.measure, SUBSTITUTE.get(artifact.backend))
        result = assemble(shop, target, chosen, candidates, profile, options)
        figures = {"parity": result.parity, "accuracy": result.accuracy, "latency": result.latency}
        written = draft.write_manifest(
            replace(
                manifest, precision=to_json(result.precision), measured=to_json({**figures, "device": result.device})
            )
        )
        size = sum(entry.size for entry in written.files.values())
        failures = (*result.failures, *size_failures(size, options.gates.max_size_bytes))
        result = replace(result, size_bytes=size, failures=failures, passed=not failures, bundle=str(path))
        if not result.passed and not options.keep_failed:
            note = "not written: a gate failed (--keep-failed writes it)"
            return replace(result, bundle=None, notes=(*result.notes, note))
        if options.archive:
            options.out.mkdir(parents=True, exist_ok=True)
            zip_bundle(draft.path, path, options.force)
        else:
            draft.publish()
    return result


def assemble(
    shop: Workshop,
    target: Target,
    chosen: Verified,
    candidates: tuple[Candidate, ...],
    profile: Profile,
    options: ConvertOptions,
) -> Result:
    """All figures of a bundle as one result. A substitute's time says nothing about the device, so it is left out."""
    artifact = chosen.artifact
    substitute = SUBSTITUTE.get(artifact.backend)
    notes = list(target.notes)
    if substitute is not None:
        notes.append(f"checked with {substitute} on this host; time and memory are known on the device only")
    elif target.name != "cpu":
        notes.append("timed on this host, which is not the target")
    if artifact.build is not None:
        notes.append(_build_note(artifact.build))
    failures = list(chosen.failures)
    if substitute is None:
        failures += deadline_failures(profile, options.gates.deadline_ms)
    data = shop.base.data
    latency = None if substitute else profile.latency
    buckets, graphs = graph_results(shop.model.spec, chosen.graphs, latency)
    return Result(
        target=target.name,
        device=profile.device if substitute is None else f"{profile.device} ({substitute})",
        backend=artifact.backend,
        bundle=None,
        passed=not failures,
        failures=tuple(failures),
        precision=Precision(
            options.precision, artifact.precision, None if substitute else profile.executed, candidates
        ),
        source_size_bytes=shop.model.source_size_bytes,
        parity=chosen.parity,
        accuracy=None if chosen.score is None or data is None else accuracy(shop.base.score, chosen.score, data.origin),
        latency=latency,
        realtime=None if substitute else profile.realtime,
        memory=None if substitute else profile.memory,
        build=artifact.build,
        notes=(*shop.model.notes, *notes),
        buckets=buckets,
        graphs=graphs,
    )


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
    return {
        graph: [dict(record.inputs) for record in itertools.islice(itertools.cycle(records), GOLDEN_STEPS)]
        for graph, records in base.records.items()
    }


def provenance(model: EdgeModel, artifact: Artifact) -> dict[str, Any]:
    """Where the bundle comes from: enough to make it again."""
    tools = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "litert-torch", "ai-edge-quantizer")
    return {
        "source_sha256": model.source_sha256,
        "recipe": artifact.recipe,
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


def _build_note(build: Mapping[str, Any]) -> str:
    return str(build["checked"].get("message", "not built on this host"))
