"""convert(): a trained model becomes one verified bundle per target.

The steps, in order:

    preflight      what would fail on a target is refused before anything is converted             (preflight.py)
    baseline       the float32 source, streamed: recorded steps, calibration samples, the metric    (baseline.py)
    prune          where asked: heads, neurons and layers are removed for a target's milliseconds   (compress.py)
    candidates     per target: each scheme built by the engine's converter and quantizer            (schemes.py)
    verify         each candidate against the baseline: parity, the task's metric, time             (candidates.py)
    mend           where the fastest loses the metric: layers back to float, else a short training  (mixed.py)
    choose         the fastest that keeps the metric; the reasons for the others are kept too       (candidates.py)
    pack           the bundle is drafted, profiled in a process of its own, gated, and published whole

Nothing appears under the destination before its last step; a failed gate publishes nothing unless asked to.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

import edgeattn
from edgeattn.baseline import Baseline, Progress, baseline
from edgeattn.bundle import ASSETS, SUFFIX, BundleDraft, Golden, Manifest, writing, zip_bundle
from edgeattn.candidates import (
    CUT_ALPHA,
    FLOATS,
    PAYS,
    SUBSTITUTE,
    Looks,
    Verified,
    artifact_files,
    best_float,
    choose,
    settled,
    time_candidates,
    verify,
)
from edgeattn.converters.preflight import Ask, Finding, GraphView, judge, look, refuse
from edgeattn.converters.tensorrt import on_dla
from edgeattn.errors import DataError, InputError, OutputError, UnsupportedError, unknown_name
from edgeattn.estimating import HOST
from edgeattn.evaluation.accuracy import Accuracy, accuracy, within
from edgeattn.evaluation.confidence import ALPHA, zero_loss_samples
from edgeattn.evaluation.data import ArrayData, Data
from edgeattn.evaluation.identity import identified
from edgeattn.gates import Failure, Gates, size_failures
from edgeattn.mixed import (
    Bench,
    Effort,
    complaint,
    find_mixed,
    find_recovered,
    gain,
    open_artifact,
    timed,
)
from edgeattn.model import Arrays, Artifact, EdgeModel
from edgeattn.profiling.contract import contract
from edgeattn.profiling.figures import Profile
from edgeattn.profiling.measure import MeasureOptions
from edgeattn.profiling.worker import profile_bundle
from edgeattn.pruning.request import Request
from edgeattn.quantize.plan import Plan
from edgeattn.quantize.search import most_trials
from edgeattn.refusals import Refusals
from edgeattn.repeatable import confirmed
from edgeattn.report import Candidate, Precision, Pruning, Report, Result, graph_results, with_gates
from edgeattn.runtimes import Session
from edgeattn.runtimes.selftest import make_golden
from edgeattn.schemes import BUILDERS, FALLBACK, TREATMENT, Choices, Workshop, precision_of, schemes
from edgeattn.scratch import scratch_room
from edgeattn.spec import to_json
from edgeattn.targets import Target, host_target, list_targets
from edgeattn.verdicts import (
    NO_METRIC,
    Judgement,
    adversarial_judged,
    deadline_foreseen,
    deadline_judged,
    deadline_of,
    drop_judged,
    executed_judged,
    failed_rows,
    foreseen,
    judged,
    metric_unmeasured,
    parity_judged,
)

if TYPE_CHECKING:
    from edgeattn.compress import Compressor
    from edgeattn.pruning.importance import Hook

GOLDEN_STEPS = 6
MENDED_GAIN = 1.1  # a candidate that loses too much is worth mending if it is so much faster than what ships
# What other kernels of the same precision must reach.
GOLDEN_SQNR_DB = {"fp32": 60.0, "fp16": 40.0, "int8": 15.0, "int4": 10.0}
SCRATCH_COPIES, SCRATCH_BYTES = 8, 16 * 2**20  # of the weights: one per export and precision; graphs, compilers


@dataclass(frozen=True)
class Own:
    """What one target has for itself; None for what all have. See :class:`ConvertOptions`."""

    precision: str | None = None
    deadline_ms: float | None = None
    prune: Request | None = None


@dataclass(frozen=True)
class ConvertOptions:
    """What to make and where.

    Attributes:
        precision: "auto", a precision, or a scheme of :mod:`edgeattn.schemes`.
        backend: engine, if not the target's first.
        out: directory that receives ``NAME.TARGET.edge``.
        archive: pack each bundle into one .zip instead of a directory.
        force: replace a bundle that is there.
        keep_failed: publish a bundle although a gate failed.
        measure: how the shipped bundle is profiled.
        plan: treatment of layers by module path, for every engine.
        effort: how long to search mixed plans and to train where plain recipes lose the metric.
        prune: what to remove before anything is quantized; None for nothing.
        loss: a loss of the user's, for the importance of what may be removed and for recovery.
        dla: have the device build its engine for its DLA, as far as that can run it.
        own: by the name of a target, what it has for itself.
        accept_unproved: ship what kept the metric on the samples, and say so, where they are too few to show it.
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
    plan: Plan = field(default_factory=Plan)
    effort: Effort = field(default_factory=Effort)
    prune: Request | None = None
    loss: Hook | None = None
    dla: bool = False
    own: Mapping[str, Own] = field(default_factory=dict)
    accept_unproved: bool = False

    def of(self, target: Target) -> ConvertOptions:
        """The options of one target: its own, else those of all; its default deadline where none was asked for."""
        own = self.own.get(target.name, Own())
        asked = self.gates.deadline_ms if own.deadline_ms is None else own.deadline_ms
        return replace(
            self,
            precision=own.precision or self.precision,
            gates=replace(self.gates, deadline_ms=asked),
            measure=replace(self.measure, deadline_ms=target.default_deadline_ms if asked is None else asked),
            prune=own.prune or self.prune,
            own={},
        )


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
    refused = Refusals(options.targets, options.backend, options.precision)
    for target in options.targets:  # refused before any waiting
        own = options.of(target)
        destination(model, target, own)
        contract(model.spec, own.measure)
        with refused.within(target, "target", UnsupportedError):
            schemes(target, engine(target, own), own.precision)
            if own.dla:
                check_dla(target, engine(target, own))
    model = confirmed(model)
    with removed_if_empty(options.out), scratch_room() as scratch:
        check_room(model, scratch)
        findings = preflight(model, data, options, refused, progress)
        results: list[Result] = []
        if refused.left():
            workshop = Workshop(model, baseline(model, data, progress), scratch)
            for target, shop in pruned(workshop, options, refused, progress):
                with refused.within(target, "conversion"):
                    result = convert_target(shop, target, options.of(target), progress)
                    results.append(replace(result, preflight=findings[target.name]))
    return Report(describe(model), refused.rows(results, findings))


def pruned(
    workshop: Workshop, options: ConvertOptions, refused: Refusals, progress: Progress
) -> Iterator[tuple[Target, Workshop]]:
    """Each target with what is converted for it: the source itself, or what pruning made of it."""
    compressors: dict[Request, Compressor] = {}  # what does not depend on the target is done once for each request
    for target in refused.left():
        request = options.of(target).prune
        if request is None:
            yield target, workshop
            continue
        with refused.within(target, "pruning"):
            if request not in compressors:
                from edgeattn.compress import Compressor  # it loads torch

                checkpoint = prune_file(workshop, options)
                compressors[request] = Compressor(
                    workshop, request, options.measure.threads, checkpoint, options.loss, options.accept_unproved
                )
            made = compressors[request].for_target(target, engine(target, options), progress)
        if target not in refused:
            yield target, Workshop(made.model, made.base, workshop.room(f"pruned-{target.name}"), made.pruning)
    for compressor in compressors.values():
        compressor.forget()


def prune_file(workshop: Workshop, options: ConvertOptions) -> Path:
    """What recovery keeps its checkpoints beside until everything is made."""
    return options.out / f".{workshop.model.spec.name}.prune.recovery"


def preflight(
    model: EdgeModel, data: Data | None, options: ConvertOptions, refused: Refusals, progress: Progress
) -> dict[str, tuple[Mapping[str, Any], ...]]:
    """What is foreseen for each target that is left, as plain JSON objects.

    Raises:
        UnsupportedError: of the only target: naming what would fail, why, and what to change.
    """
    if not refused.left():
        return {}
    progress.begin("preflight")
    views = look(model, calibration_sample(model, data))
    told = {}
    for target in refused.left():
        with refused.within(target, "preflight"):
            findings = foresee(model, views, target, data, options.of(target))
            told[target.name] = tuple(to_json(finding) for finding in findings)
            refuse(findings)
    return told


def foresee(
    model: EdgeModel, views: tuple[GraphView, ...], target: Target, data: Data | None, options: ConvertOptions
) -> tuple[Finding, ...]:
    """What preflight says of one target, for graphs that were looked at once."""
    backend = engine(target, options)
    names = schemes(target, backend, options.precision)
    asked = tuple(dict.fromkeys(map(precision_of, names)))
    ranges = all(TREATMENT[name] == "int8" for name in names if precision_of(name) == "int8")
    return judge(views, Ask(model, target, backend, asked, data is not None, ranges))


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
            f"{tempfile.gettempdir()}: the disk is full: {free / 1e6:.1f} MB are free and conversion takes about "
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


def check_dla(target: Target, backend: str) -> None:
    """Refuse a DLA where there is none.

    Raises:
        UnsupportedError: naming the targets that have one.
    """
    if backend == "tensorrt" and target.accelerator is not None and target.accelerator.dla_cores:
        return
    others = [t.name for t in list_targets() if t.accelerator is not None and t.accelerator.dla_cores]
    raise UnsupportedError(
        f"{target.name} with {backend} has no DLA; TensorRT has one on {', '.join(others)}. Leave out --dla"
    )


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


@dataclass
class Tried:
    """The candidates of one target, by scheme, and those that could not be made.

    Attributes:
        alpha: of what is said of the metric of the next quantized candidate.
    """

    verified: dict[str, Verified] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    refused: list[Candidate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    alpha: float = ALPHA


def convert_target(shop: Workshop, target: Target, options: ConvertOptions, progress: Progress) -> Result:
    """Candidates, verification, choice and bundle for one target, with the options that are its own."""
    began = time.monotonic()
    if shop.pruning is not None and shop.pruning.failures:  # it missed what was asked: a better plan will not mend it
        options = replace(options, effort=Effort(0.0))
    with ExitStack() as open_sessions:
        tried = try_schemes(shop, target, options, open_sessions, progress)
        candidates = (
            *choose(
                tried.verified, shop.base.score, options.precision, options.gates.max_drop, options.accept_unproved
            ),
            *tried.refused,
        )
        shipped = next(c.scheme for c in candidates if c.kept)
        golden = make_golden(tried.sessions[shipped], golden_inputs(shop.base))
    chosen = tried.verified[shipped]
    if options.dla:
        chosen = replace(chosen, artifact=on_dla(chosen.artifact))
    result = pack(shop, target, chosen, candidates, golden, options, progress)
    if result.bundle is not None:
        forget_trials(shop.model, target, options)
    return replace(result, notes=(*result.notes, *tried.notes), seconds=time.monotonic() - began)


def forget_trials(model: EdgeModel, target: Target, options: ConvertOptions) -> None:
    """Remove what a search and a training kept for going on: their result is in place."""
    notebook = search_file(model, target, options)
    for file in (notebook, *notebook.parent.glob(f"{notebook.name}.*.recovery")):
        file.unlink(missing_ok=True)


def search_file(model: EdgeModel, target: Target, options: ConvertOptions) -> Path:
    """Where a search keeps its trials until the bundle is there."""
    return options.out / f".{model.spec.name}.{target.name}.search.json"


def try_schemes(shop: Workshop, target: Target, options: ConvertOptions, stack: ExitStack, progress: Progress) -> Tried:
    """Every candidate of a target, measured; where none of the quantized ones would ship, more is tried.

    Raises:
        UnsupportedError: if nothing could be built.
        EdgeattnError: what stopped the only scheme that was asked for.
    """
    backend = engine(target, options)
    asked = schemes(target, backend, options.precision)
    plain = sum(precision_of(scheme) not in FLOATS for scheme in asked)
    tried = Tried()
    looks = Looks(plain, later_looks(shop, tried, backend, options), ALPHA if shop.pruning is None else ALPHA / 2)
    tried.alpha = looks.first_alpha
    for scheme in asked:
        add_scheme(tried, shop, target, scheme, options, stack, progress, alone=len(asked) == 1)
    if not tried.verified:
        raise UnsupportedError(f"{target.name}: no precision could be built: {tried.refused[0].why}")
    progress.begin(f"{target.name}: timing")
    if backend not in SUBSTITUTE:
        times = time_candidates(tried.sessions)
        tried.verified = {s: replace(v, latency_ms=times[s]) for s, v in tried.verified.items()}
    tried.verified = settled(tried.verified, shop.base.score, looks, options.gates.max_drop)
    tried.alpha = replace(looks, later=later_looks(shop, tried, backend, options)).later_alpha
    untimed = backend in SUBSTITUTE and options.precision == "auto"  # nothing quantized would ship: its gain is unknown
    if shop.base.score is not None and not untimed:
        try_harder(tried, shop, target, options, stack, progress)
    return tried


def later_looks(shop: Workshop, tried: Tried, backend: str, options: ConvertOptions) -> int:
    """How many quantized candidates :func:`try_harder` may look at, at most; 0 only where there will be none.

    How many trials a search may take depends on the layers, which the candidates that were built tell.
    """
    if shop.base.score is None or (backend in SUBSTITUTE and options.precision == "auto"):
        return 0
    effort = options.effort
    fallback = len(FALLBACK.get(backend, ())) if options.precision == "auto" else 0
    layers = max((len(v.artifact.treatments) for v in tried.verified.values()), default=0)
    return fallback + (most_trials(layers) if effort.search_seconds > 0 else 0) + (effort.recover_seconds > 0)


def add_scheme(
    tried: Tried,
    shop: Workshop,
    target: Target,
    scheme: str,
    options: ConvertOptions,
    stack: ExitStack,
    progress: Progress,
    alone: bool = False,
) -> None:
    """Build and verify one scheme; where it is not the only one, what cannot be made is a row with the reason."""
    backend = engine(target, options)
    progress.begin(f"{target.name}: {scheme} with {backend}")
    try:
        artifact = BUILDERS[backend](shop, scheme, target, Choices(options.plan))
    except (DataError, UnsupportedError) as error:
        if alone:
            raise
        tried.refused.append(Candidate(precision_of(scheme), None, None, None, False, str(error), scheme))
        return
    session = stack.enter_context(open_artifact(artifact, shop, options.measure.threads))
    tried.sessions[scheme] = session
    label = f"{target.name}: {scheme}"
    alpha = tried.alpha
    if precision_of(scheme) in FLOATS:
        alpha = ALPHA if shop.pruning is None else CUT_ALPHA
    tried.verified[scheme] = verify(shop, artifact, session, options.gates, label, progress, alpha)


def try_harder(
    tried: Tried, shop: Workshop, target: Target, options: ConvertOptions, stack: ExitStack, progress: Progress
) -> None:
    """The slower recipes, the search over layers and recovery, while a candidate that loses too much is the fastest."""
    backend = engine(target, options)
    best = best_float(tried.verified)
    session = next((tried.sessions[s] for s, v in tried.verified.items() if v is best), None)
    effort = replace(options.effort, notebook=search_file(shop.model, target, options))

    def bench(scheme: str) -> Bench:
        return Bench(
            shop, target, backend, scheme, Choices(options.plan), best, session, options.gates, options.precision,
            options.measure.threads, tried.alpha, options.accept_unproved,
        )  # fmt: skip

    def worth_mending() -> str | None:
        """The fastest quantized candidate that loses too much, if it would be clearly faster than what ships now."""
        quantized = {s: v for s, v in tried.verified.items() if v.quantized}
        shipping = [v.latency_ms or 0.0 for s, v in quantized.items() if not complaint(bench(s), v)]
        limit = min(shipping, default=math.inf) / MENDED_GAIN
        lossy = {
            s: v
            for s, v in quantized.items()
            if loses_metric(v, options) and not is_slow(v, best) and (v.latency_ms or 0.0) < limit
        }
        return min(lossy, key=lambda s: lossy[s].latency_ms or 0.0, default=None)

    if worth_mending() is None:
        return
    if options.precision == "auto" and not options.accept_unproved:
        assert shop.base.score is not None, "candidates lose a metric"
        samples = shop.base.score.samples + len(shop.base.score.unlabelled)
        needed = zero_loss_samples(options.gates.max_drop / 100.0, tried.alpha)
        if samples < needed:  # whatever is mended could not be shown to keep the metric, either
            tried.notes.append(
                f"nothing was tried to mend int8: {samples} samples cannot show that it loses less than "
                f"{options.gates.max_drop:g} points, even if it changed none ({needed} would; --accept-unproved tries)"
            )
            return
    if options.precision == "auto":
        for scheme in FALLBACK.get(backend, ()):
            add_scheme(tried, shop, target, scheme, options, stack, progress)
            if scheme in tried.verified:
                tried.verified[scheme] = timed(bench(scheme), tried.verified[scheme], tried.sessions[scheme])
    lossy = worth_mending()
    if lossy is not None and effort.search_seconds > 0:
        outcome, found = find_mixed(bench(lossy), effort, stack, progress)
        if outcome is not None:
            tried.verified[outcome.name], tried.sessions[outcome.name] = outcome.verified, outcome.session
            tried.notes.append(f"{outcome.name}: {outcome.words}")
        else:
            tried.notes.append(f"{lossy}: {len(found.trials)} mixed plans tried, none ships; {found.ended}")
    lossy = worth_mending()
    if lossy is not None and effort.recover_seconds > 0:
        outcome = find_recovered(bench(lossy.partition("+")[0]), effort, stack, progress)
        tried.verified[outcome.name], tried.sessions[outcome.name] = outcome.verified, outcome.session
        tried.notes.append(f"{outcome.name}: {outcome.words}")


def loses_metric(verified: Verified, options: ConvertOptions) -> bool:
    """Whether the metric, and nothing else, is what a candidate fails."""
    if any(failure.gate != "accuracy" for failure in verified.failures):
        return False
    unsure = verified.drop is not None and not within(verified.drop, options.gates.max_drop)
    return bool(verified.failures) or (options.precision == "auto" and unsure and not options.accept_unproved)


def is_slow(verified: Verified, best: Verified | None) -> bool:
    """Whether it would not pay even if it kept the metric."""
    found = gain(best, verified)
    return found is not None and found < PAYS


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
        precision = Precision(options.precision, artifact.precision, None, candidates)
        manifest = draft_bundle(draft, shop, target, artifact, precision, golden)
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
        rows = [*in_time(draft.path, shop, target, profile, options), *size_judged(size, options.gates)]
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


def in_time(path: Path, shop: Workshop, target: Target, profile: Profile, options: ConvertOptions) -> list[Judgement]:
    """The deadline, by this machine's clock where it is the target, else by an estimate, which can pass nothing."""
    deadline = deadline_of(shop.model.spec, target, options.gates, options.measure)
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
    shop: Workshop,
    target: Target,
    artifact: Artifact,
    precision: Precision,
    golden: Arrays | None,
) -> Manifest:
    """Fill a draft with an artifact and all that belongs to it; without measurements.

    Args:
        golden: as :func:`~edgeattn.runtimes.selftest.make_golden` gives it; None for a bundle without.
    """
    model = shop.model
    for name, file in artifact_files(artifact).items():
        shutil.copyfile(file, draft.path / name)
    copy_assets(model.assets, draft.path)
    facts = None
    if golden is not None:
        _save_arrays(draft.path / "golden.npz", golden)
        maker = f"{SUBSTITUTE.get(artifact.backend, artifact.backend)}, edgeattn {edgeattn.__version__}"
        facts = Golden("golden.npz", GOLDEN_STEPS, maker, GOLDEN_SQNR_DB[artifact.precision])
    manifest = Manifest(
        name=model.spec.name,
        target=target.name,
        backend=artifact.backend,
        spec=model.spec,
        models={graph: file.name for graph, file in artifact.models.items()},
        precision=to_json(precision),
        provenance=provenance(model, artifact, shop.pruning),
        measured={},
        golden=facts,
        build=artifact.build,
    )
    draft.write_manifest(manifest)
    return manifest


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
    elif target.name != HOST:
        notes.append(on_this_host(target, candidates))
    if artifact.build is not None:
        notes.append(_build_note(artifact.build))
    if shop.pruning is not None:
        notes += shop.pruning.notes
    figures, rows = verified_gates(shop, chosen, options.gates)
    latency = None if substitute else profile.latency
    buckets, graphs = graph_results(shop.model.spec, chosen.graphs, latency)
    result = Result(
        target=target.name,
        device=profile.device if substitute is None else f"{profile.device} ({substitute})",
        backend=artifact.backend,
        bundle=None,
        passed=True,
        failures=(),
        precision=Precision(
            options.precision, artifact.precision, None if substitute else profile.executed, candidates
        ),
        source_size_bytes=shop.model.source_size_bytes,
        parity=chosen.parity,
        accuracy=figures,
        latency=latency,
        realtime=None if substitute else profile.realtime,
        memory=None if substitute else profile.memory,
        energy=None if substitute else profile.energy,
        build=artifact.build,
        notes=(*shop.model.notes, *notes),
        buckets=buckets,
        graphs=graphs,
        pruning=pruning_facts(shop, chosen, candidates),
        kind=None if latency is None else latency.kind,
    )
    return with_gates(result, rows)


def on_this_host(target: Target, candidates: Sequence[Candidate]) -> str:
    """What to know of times that another machine than the target took."""
    several = sum(row.latency_ms is not None for row in candidates) > 1
    guess = f": which candidate is the fastest on {target.name} is a guess" if several else ""
    return f"timed on this host, which is not the target{guess}"


def verified_gates(shop: Workshop, chosen: Verified, gates: Gates) -> tuple[Accuracy | None, list[Judgement]]:
    """The metric of a candidate, and what became of the gates that need no clock and no bundle."""
    artifact, data, score = chosen.artifact, shop.base.data, chosen.score
    failures: dict[str, list[Failure]] = {}
    for failure in chosen.failures:
        failures.setdefault(failure.gate, []).append(failure)
    told = artifact.backend not in SUBSTITUTE or bool((artifact.build or {}).get("checked", {}).get("layers"))
    rows = parity_judged(chosen.parity, artifact.precision, failures.pop("parity", []))
    if shop.base.adversary is not None:
        rows += adversarial_judged(failures.pop("adversarial", []), shop.base.adversary.told())
    rows += executed_judged(artifact.precision, failures.pop("executed", []), told)
    figures = None
    if score is not None and data is not None:
        found = accuracy(shop.base.score, score, data.origin, chosen.drop, gates.max_drop)
        figures = identified(found, data)
        rows += drop_judged(figures, failures.pop("accuracy", []), gates.max_drop)
    else:
        rows += metric_unmeasured(gates, NO_METRIC, "no")
    for others in failures.values():
        rows += failed_rows(others)
    if shop.pruning is not None:
        rows += [*failed_rows(shop.pruning.failures, "flag"), *shop.pruning.gates]
    return figures, rows


def pruning_facts(shop: Workshop, chosen: Verified, candidates: tuple[Candidate, ...]) -> dict[str, Any] | None:
    """What pruning did, and how much faster than the unpruned float model that is which ships."""
    if shop.pruning is None:
        return None
    facts = dict(shop.pruning.facts)
    single = next((row.latency_ms for row in candidates if row.scheme == "fp32"), None)
    gain: float | None = facts["speedup"] if facts["kept"] else 1.0
    facts["shipped_speedup"] = None
    if gain is not None and single is not None and chosen.latency_ms is not None:
        facts["shipped_speedup"] = gain * single / chosen.latency_ms
    return facts


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


def provenance(model: EdgeModel, artifact: Artifact, pruning: Pruning | None = None) -> dict[str, Any]:
    """Where the bundle comes from: enough to make it again."""
    tools = (
        "torch", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "litert-torch", "ai-edge-quantizer",
        "ai-edge-litert",
    )  # fmt: skip
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


def _build_note(build: Mapping[str, Any]) -> str:
    return str(build["checked"].get("message", "not built on this host"))
