"""convert(): a trained model becomes one verified bundle per target.

The steps, in order, are the functions of this file:

    baseline       the float32 source, streamed: recorded steps, calibration samples, the metric
    candidates     per target: each precision built by the engine's converter and quantizer
    verify         each candidate against the baseline: parity, the task's metric, time
    choose         the fastest that keeps the metric; the reasons for the others are kept too
    pack           the bundle is drafted, profiled in a process of its own, gated, and published whole

Nothing appears under the destination before its last step; a failed gate publishes nothing unless asked to.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import edgeattn
from edgeattn.bundle import SUFFIX, BundleDraft, Golden, Manifest, writing, zip_bundle
from edgeattn.errors import DataError, InputError, OutputError, UnsupportedError, unknown_name
from edgeattn.evaluation.accuracy import Score, accuracy, score_arrays, score_speech
from edgeattn.evaluation.data import ArrayData, SpeechData
from edgeattn.evaluation.parity import Parity
from edgeattn.evaluation.replay import Record, record_calls, record_stream, record_utterances, replay
from edgeattn.gates import (
    Failure,
    Gates,
    accuracy_failures,
    deadline_failures,
    executed_failures,
    parity_failures,
    size_failures,
)
from edgeattn.model import Arrays, Artifact, EdgeModel, ReferenceStep, one_thread
from edgeattn.profiling.figures import Profile
from edgeattn.profiling.measure import MeasureOptions, time_step, white_noise
from edgeattn.profiling.worker import profile_bundle
from edgeattn.report import Candidate, Precision, Report, Result
from edgeattn.runtimes import Session, Stream, open_session
from edgeattn.runtimes.selftest import make_golden
from edgeattn.spec import StreamSpec, to_json
from edgeattn.targets import Precision as Name
from edgeattn.targets import Target

Data = SpeechData | ArrayData

PRECISIONS: tuple[Name, ...] = ("fp32", "fp16", "int8")
PARITY_STEPS = 500  # with carried states: an error that grows shows by then
CALIBRATION_STEPS = 256
GOLDEN_STEPS = 6
GOLDEN_SQNR_DB = {"fp32": 60.0, "fp16": 40.0, "int8": 15.0}  # what other kernels of the same precision must reach
DEFAULT_CAPABILITY = "8.7"  # Orin
PAYS = 1.05  # int8 ships only if it is at least this much faster than the best float
TIMING_ROUNDS, TIMING_RUNS = 6, 25  # candidates take turns, so that a slow moment of the host meets all of them
SCRATCH_COPIES, SCRATCH_BYTES = 8, 16 * 2**20  # of the weights: one per export and precision; graphs, compilers
REFERENCE = "float32 source in torch"


class Progress(Protocol):
    """Where convert tells what it is doing."""

    def begin(self, what: str, total: int | None = None) -> None:
        """A new phase of ``total`` units, or of unknown length."""

    def advance(self) -> None:
        """One unit of the phase is done."""


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


@dataclass(frozen=True)
class Baseline:
    """What the float32 source does, measured once for all targets.

    Attributes:
        records: steps to replay on every candidate.
        calibration: full input sets per graph, states included; empty without data.
        score: the task's metric of the source, None without one.
        data: what the metric is measured on, None without.
    """

    records: Mapping[str, tuple[Record, ...]]
    calibration: Mapping[str, tuple[Arrays, ...]]
    score: Score | None
    data: Data | None


@dataclass(frozen=True)
class Verified:
    """A candidate that was built and measured. ``latency_ms`` is None where this host cannot tell."""

    artifact: Artifact
    parity: Parity
    score: Score | None
    latency_ms: float | None
    failures: tuple[Failure, ...]
    size_bytes: int


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
        workshop = Workshop(model, baseline(model, data, progress), Path(scratch))
        results = [convert_target(workshop, target, options, progress) for target in options.targets]
    return Report(describe(model), tuple(results))


def check_room(model: EdgeModel, scratch: Path) -> None:
    """Refuse a temporary directory that will not hold the exports: the engines' own writers die without a word there.

    Raises:
        OutputError: saying how much is missing.
    """
    needed, free = SCRATCH_COPIES * model.source_size_bytes + SCRATCH_BYTES, shutil.disk_usage(scratch).free
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


def baseline(model: EdgeModel, data: Data | None, progress: Progress) -> Baseline:
    """Run the float32 source: steps to replay, samples to calibrate with, and the task's metric."""
    if model.spec.stream is not None and not isinstance(data, ArrayData):
        with one_thread():
            return _stream_baseline(model, model.spec.stream, data, progress)
    if data is not None and not isinstance(data, ArrayData):
        raise DataError(f"{model.spec.name} does not take speech; its data is an npz with arrays named like its inputs")
    progress.begin("baseline: recording the source")
    graph = model.spec.graphs[0].name
    calls: dict[str, Sequence[Arrays]] = {name: [model.example[name]] for name in model.example}
    if data is not None:
        calls[graph] = [dict(sample.inputs) for sample in data.evaluation]
    recorded = {name: record_calls(ReferenceStep(model, name), given) for name, given in calls.items()}
    if data is None:
        return Baseline(recorded, {}, None, None)
    score_or_none = score_arrays(lambda inputs: model.run(inputs, graph), data.evaluation, progress.advance)
    return Baseline(recorded, {graph: tuple(dict(s.inputs) for s in data.calibration)}, score_or_none, data)


def _stream_baseline(model: EdgeModel, stream: StreamSpec, data: SpeechData | None, progress: Progress) -> Baseline:
    graph = model.spec.graphs[0].name
    step = ReferenceStep(model)
    progress.begin("baseline: recording the source")
    if data is None:  # parity needs no words: noise carries the states as far as speech does
        noise = white_noise(2 * stream.frontend.sample_rate)
        return Baseline({graph: record_stream(step, stream, [noise], PARITY_STEPS)}, {}, None, None)
    records = record_stream(step, stream, (u.samples for u in data.evaluation), PARITY_STEPS)
    calibration = record_utterances(step, stream, (u.samples for u in data.calibration), CALIBRATION_STEPS)
    progress.begin("baseline: word error of the source", len(data.evaluation))
    score = score_speech(Stream(step, stream), data.evaluation, progress.advance)
    inputs = tuple({**record.inputs, **record.states} for record in calibration)
    return Baseline({graph: records}, {graph: inputs}, score, data)


class Workshop:
    """The source with its exports, made once and shared by the targets."""

    def __init__(self, model: EdgeModel, base: Baseline, scratch: Path) -> None:
        self.model = model
        self.base = base
        self.scratch = scratch

    @functools.cached_property
    def onnx(self) -> Mapping[str, Path]:
        """fp32 ONNX, one file per graph."""
        from edgeattn.converters.onnx import export_onnx

        return export_onnx(self.model, self.room("onnx"))

    @functools.cached_property
    def tflite(self) -> Artifact:
        """fp32 TFLite."""
        from edgeattn.converters.tflite import to_tflite

        return to_tflite(self.model, self.room("tflite-fp32"), "fp32")

    def room(self, name: str) -> Path:
        """An empty directory for one artifact."""
        path = self.scratch / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path


def build_openvino(shop: Workshop, precision: Name, _: Target) -> Artifact:
    """ONNX -> OpenVINO IR; int8 by nncf."""
    room = shop.room(f"openvino-{precision}")
    if precision == "int8":
        from edgeattn.quantize.openvino import int8_openvino

        return int8_openvino(shop.onnx, shop.base.calibration, room)
    from edgeattn.converters.openvino import to_openvino

    return to_openvino(shop.onnx, room, precision)


def build_litert(shop: Workshop, precision: Name, _: Target) -> Artifact:
    """Torch -> TFLite; int8 weights with dynamic activations."""
    if precision == "fp32":
        return shop.tflite
    room = shop.room(f"tflite-{precision}")
    if precision == "int8":
        from edgeattn.quantize.tflite import int8_tflite

        return int8_tflite(shop.tflite, shop.base.calibration, room)
    from edgeattn.converters.tflite import to_tflite

    return to_tflite(shop.model, room, precision)


def build_tensorrt(shop: Workshop, precision: Name, target: Target) -> Artifact:
    """ONNX and build recipe for the device; int8 as explicit Q/DQ. Parsed and built here as far as this host can."""
    from edgeattn.converters.tensorrt import to_tensorrt

    onnx = shop.onnx
    if precision == "int8":
        from edgeattn.quantize.qdq import int8_qdq

        onnx = int8_qdq(onnx, shop.base.calibration, shop.room("qdq"))
    capability = target.compute_capability or DEFAULT_CAPABILITY
    return to_tensorrt(onnx, shop.room(f"tensorrt-{precision}"), precision, capability)


def build_onnxruntime(shop: Workshop, precision: Name, target: Target) -> Artifact:
    """The exported ONNX as it is; int8 as Q/DQ, fp16 as for TensorRT."""
    if precision == "fp32":
        return Artifact("onnxruntime", precision, shop.onnx, "ONNX, float32")
    return replace(build_tensorrt(shop, precision, target), backend="onnxruntime", build=None)


BUILDERS: Mapping[str, Callable[[Workshop, Name, Target], Artifact]] = {
    "openvino": build_openvino,
    "litert": build_litert,
    "tensorrt": build_tensorrt,
    "onnxruntime": build_onnxruntime,
}
SUBSTITUTE = {"tensorrt": "onnxruntime"}  # runs the same ONNX file where there is no NVIDIA GPU


def convert_target(shop: Workshop, target: Target, options: ConvertOptions, progress: Progress) -> Result:
    """Candidates, verification, choice and bundle for one target."""
    began = time.monotonic()
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
        baseline_score = shop.base.score
        candidates = (*choose(verified, baseline_score, options), *refused)
        shipped = next(c.precision for c in candidates if c.kept)
        golden = make_golden(sessions[shipped], golden_inputs(shop.base))
    result = pack(shop, target, verified[shipped], candidates, golden, options, progress)
    return replace(result, seconds=time.monotonic() - began)


def verify(
    shop: Workshop, artifact: Artifact, session: Session, gates: Gates, label: str, progress: Progress
) -> Verified:
    """Parity over the recorded steps and the metric over the data, on the runtime that ships."""
    progress.begin(f"{label}: parity", sum(len(records) for records in shop.base.records.values()))
    parity = replay_baseline(shop.base, session, progress)
    score = None
    if shop.base.score is not None and shop.base.data is not None:
        score = score_of(session, shop.base.data, label, progress)
    failures = parity_failures(parity, artifact.precision)
    failures += executed_failures(artifact.precision, session.executed())
    if score is not None and shop.base.score is not None:
        failures += accuracy_failures(shop.base.score, score, gates.max_drop)
    size = sum(path.stat().st_size for path in _artifact_files(artifact).values())
    return Verified(artifact, parity, score, None, tuple(failures), size)


def replay_baseline(base: Baseline, session: Session, progress: Progress) -> Parity:
    """The recorded steps on a session: a stream carries its own states, calls that were recorded apart do not."""
    carried = session.spec.stream is not None and not isinstance(base.data, ArrayData)
    parities = [
        replay(records, session.step(graph), REFERENCE, carried, progress.advance)
        for graph, records in base.records.items()
    ]
    outputs = {name: output for parity in parities for name, output in parity.outputs.items()}
    return Parity(REFERENCE, sum(p.steps for p in parities), outputs)


def score_of(session: Session, data: Data, label: str, progress: Progress) -> Score | None:
    """The task's metric of a session, None where the data has no targets."""
    progress.begin(f"{label}: metric", len(data.evaluation))
    if isinstance(data, SpeechData):
        return score_speech(session.stream(), data.evaluation, progress.advance)
    return score_arrays(session.run, data.evaluation, progress.advance)


def time_candidates(sessions: Mapping[str, Session]) -> dict[str, float]:
    """Median milliseconds of one call of the first graph; the candidates take turns in one run."""
    steps = {name: session.step() for name, session in sessions.items()}
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(TIMING_ROUNDS):
        for name, step in steps.items():
            samples[name] += time_step(step, TIMING_RUNS)[1]
    return {name: 1e3 * statistics.median(times) for name, times in samples.items()}


def choose(verified: Mapping[str, Verified], source: Score | None, options: ConvertOptions) -> tuple[Candidate, ...]:
    """The fastest candidate that keeps the metric, and why each of the others is not it.

    int8 must be :data:`PAYS` times faster than the best float, and its metric must be known; among floats that are
    equally fast the smaller one ships. Where the time is only known on the device, fp16 ships.
    """
    passing = {p: v for p, v in verified.items() if not v.failures}
    floats = {p: v for p, v in passing.items() if p != "int8"}
    kept = _best_float(floats)
    why = dict.fromkeys(floats, "slower or larger than the float that ships")
    int8 = passing.get("int8")
    if int8 is not None:
        why["int8"] = _why_not_int8(int8, floats.get(kept or ""), source)
        if not why["int8"]:
            kept = "int8"
            why |= dict.fromkeys(floats, f"int8 is at least {PAYS}x faster")
    if kept is None:  # nothing passed: the safest one is reported with its failures
        kept = next(iter(verified))
    why[kept] = "fastest that keeps the metric" if options.precision == "auto" else "asked for"
    if verified[kept].latency_ms is None and options.precision == "auto":
        why[kept] = "the float default where time is only known on the device"
    return tuple(
        Candidate(
            p,
            v.latency_ms,
            None if v.score is None else 100.0 * v.score.value,
            v.size_bytes,
            p == kept,
            "; ".join(str(f) for f in v.failures) or why[p],
        )
        for p, v in verified.items()
    )


def _best_float(floats: Mapping[str, Verified]) -> str | None:
    if not floats:
        return None
    timed = {p: v.latency_ms for p, v in floats.items() if v.latency_ms is not None}
    if len(timed) < len(floats):
        return "fp16" if "fp16" in floats else next(iter(floats))
    fastest = min(timed.values())
    return min((p for p in timed if timed[p] <= PAYS * fastest), key=lambda p: floats[p].size_bytes)


def _why_not_int8(int8: Verified, best: Verified | None, source: Score | None) -> str:
    """Empty if int8 should ship."""
    if best is None:
        return ""
    if source is None:
        return "no data with a metric: its loss is unknown"
    if int8.latency_ms is None or best.latency_ms is None:
        return "its gain must be measured on the device"
    gain = best.latency_ms / int8.latency_ms
    if gain < PAYS:
        return f"{gain:.2f}x the speed of {best.artifact.precision}, less than the {PAYS}x that it must pay"
    return ""


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
        for name, file in _artifact_files(artifact).items():
            shutil.copyfile(file, draft.path / name)
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
    notes = []
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
        latency=None if substitute else profile.latency,
        realtime=None if substitute else profile.realtime,
        memory=None if substitute else profile.memory,
        build=artifact.build,
        notes=tuple(notes),
    )


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


def _artifact_files(artifact: Artifact) -> dict[str, Path]:
    """Every file of an artifact, by the name that it has in the bundle: its models and what lies beside them."""
    rooms = {path.parent for path in artifact.models.values()}
    return {file.name: file for room in rooms for file in sorted(room.iterdir()) if file.is_file()}


def _save_arrays(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _build_note(build: Mapping[str, Any]) -> str:
    return str(build["checked"].get("message", "not built on this host"))
