"""check(): a bundle that exists is verified and measured again, with or without its source.

Evidence is gathered on this machine or by jobs on a device; one function judges it, wherever it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgeattn.bundle import Manifest, open_bundle, read_manifest
from edgeattn.errors import InputError
from edgeattn.evaluation.accuracy import Accuracy, accuracy
from edgeattn.evaluation.confidence import SAMPLES
from edgeattn.evaluation.data import Data
from edgeattn.evaluation.identity import identified
from edgeattn.evaluation.parity import Parity
from edgeattn.evaluation.probing import Deviation, Probe
from edgeattn.jobs.evaluate import Evaluation
from edgeattn.jobs.measure import TIMEOUT_SECONDS, profile_bundle
from edgeattn.jobs.parcel import Steps, pack
from edgeattn.jobs.remote import Task, measure_on, task_on
from edgeattn.model import EdgeModel
from edgeattn.pipeline.steps.adversarial import deviation_failures
from edgeattn.pipeline.steps.baseline import Baseline, baseline, replay_baseline, score_of, whole_parity
from edgeattn.pipeline.steps.packing import size_judged
from edgeattn.pipeline.steps.runs import (
    BundleRun,
    bundle_size,
    in_time_judged,
    manifest_model,
    outputs_judged,
    recorded_report,
    run_executed_judged,
    run_row,
    run_there,
)
from edgeattn.profiling.contract import contract
from edgeattn.profiling.holding import held
from edgeattn.profiling.measure import MeasureOptions
from edgeattn.progress import Progress
from edgeattn.results.gates import Gates, parity_failures
from edgeattn.results.report import Report, Result, with_gates
from edgeattn.results.verdicts import (
    NO_METRIC,
    Asked,
    Judgement,
    accuracy_judged,
    adversarial_judged,
    elsewhere,
    metric_unmeasured,
    parity_judged,
)
from edgeattn.runtimes import Session, load
from edgeattn.runtimes.selftest import selftest
from edgeattn.sources import Examples, load_data, load_model
from edgeattn.sources.metrics import with_metric
from edgeattn.sources.sizes import with_buckets
from edgeattn.spec import ModelSpec, from_json
from edgeattn.targets.devices import Device, parse_device
from edgeattn.tasks import restored

EVALUATION = "edgeattn.jobs.evaluate"
SLOWEST_SAMPLE = 10.0  # seconds of a board for one sample, a recording of some seconds among them


@dataclass(frozen=True)
class CheckOptions:
    """What to check a bundle against.

    Attributes:
        backend: engine to run on, if not the bundle's own.
        model: MODEL that it came from; without it parity is that of the golden outputs.
        bound: inputs of that MODEL that are constants, as ``--set``.
        data: as ``--data`` of convert; without it the metric is not measured.
        metric: as ``--metric`` of convert; None for the first of the task.
        samples: at most this many samples to measure on.
        device: as ``--device``; golden outputs, executed precision, time and memory are those found there. None for
            this machine, whose clock then judges the target ``cpu`` alone; "local" says that it is the target.
    """

    gates: Gates = field(default_factory=Gates)
    measure: MeasureOptions = field(default_factory=MeasureOptions)
    backend: str | None = None
    model: str | None = None
    bound: tuple[str, ...] = ()
    data: str | None = None
    metric: str | None = None
    split: str | None = None
    samples: int = SAMPLES
    device: str | None = None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was found out about a bundle: all that its gates are judged by.

    Attributes:
        source: the float32 source, measured; None where it was not given.
        data: that the metric was measured on; None without.
        evaluated: parity, metric and probes, as far as source and data allow; they are empty without.
    """

    run: BundleRun
    source: Baseline | None
    data: Data | None
    evaluated: Evaluation


def check(path: Path, options: CheckOptions, progress: Progress) -> Report:
    """Verify a bundle: hashes, golden outputs, parity and metric where source and data are given, deadline, size.

    Raises:
        EdgeattnError: if the bundle, the source or the data cannot be used.
    """
    manifest = read_manifest(path)
    contract(manifest.spec, options.measure)  # refuses what makes no sense before minutes of work
    _refuse_gates_without_data(options)
    device = parse_device(options.device or "local")
    if device.kind == "local":
        evidence = _found_here(path, manifest, options, progress)
    else:
        evidence = _found_there(device, path, manifest, options, progress)
    return Report(manifest_model(manifest), (judged(path, manifest, evidence, options),))


def judged(path: Path, manifest: Manifest, evidence: Evidence, options: CheckOptions) -> Result:
    """What the gates make of what was found out about a bundle, here or on a device, as its row.

    Raises:
        InputError: if the manifest's own figures are malformed.
    """
    run, source, evaluated = evidence.run, evidence.source, evidence.evaluated
    shipped = str(manifest.precision["shipped"])
    rows, parity = outputs_judged(manifest, run), None
    if source is not None:
        parity = whole_parity(manifest.spec, evaluated.parities)
        rows += parity_judged(parity, shipped, parity_failures(parity, shipped, _recorded_parity(manifest, parity)))
        if source.adversary is not None:
            rows += adversarial_judged(deviation_failures(evaluated.deviations), source.adversary.told())
    figures, metric = _metric(manifest, evidence, options)
    rows += [
        *metric,
        *run_executed_judged(manifest, run),
        *in_time_judged(path, manifest, run, options.measure, options.gates),
        *size_judged(bundle_size(manifest), options.gates),
    ]
    row = run_row(path, manifest, run, evaluated.parities)
    return with_gates(replace(row, parity=parity, accuracy=figures), rows)


def _metric(manifest: Manifest, evidence: Evidence, options: CheckOptions) -> tuple[Accuracy | None, list[Judgement]]:
    """The metric, and what it is held to: the source's, beside it or as it was recorded, and absolute limits."""
    data, score, source = evidence.data, evidence.evaluated.score, evidence.source
    asked: Asked = "no" if options.data is None else "flag"
    if data is None or score is None:
        origin = NO_METRIC if data is None else f"{data.origin} holds no labels (target_NAME) that a metric is made of"
        return None, metric_unmeasured(options.gates, origin, asked)
    beside = None if source is None else source.score
    found = identified(accuracy(beside, score, data.origin, max_drop=options.gates.max_drop), data)
    recorded = manifest.measured.get("accuracy")
    before = recorded_report(Accuracy, recorded, "manifest.measured.accuracy") if recorded else None
    return accuracy_judged(found, before, options.gates, asked)


# --- evidence ---------------------------------------------------------------------------------------------------------


def _found_here(path: Path, manifest: Manifest, options: CheckOptions, progress: Progress) -> Evidence:
    measure = options.measure
    with held(measure.power_mode, measure.lock_clocks):  # what is built here is tied to that
        progress.begin("golden outputs")
        golden = selftest(path, options.backend, measure.threads)
        with load(path, backend=options.backend, threads=measure.threads) as session:
            source, data = _source(manifest, session.assets, options, progress)
            evaluated = _evaluated_here(session, source, data, str(manifest.precision["shipped"]), progress)
    progress.begin("profile")
    profile = profile_bundle(path, measure, options.backend)
    run = BundleRun(golden=golden, profile=profile, away=elsewhere(manifest, options.device is not None))
    return Evidence(run=run, source=source, data=data, evaluated=evaluated)


def _found_there(device: Device, path: Path, manifest: Manifest, options: CheckOptions, progress: Progress) -> Evidence:
    """The same on a device: what is computed is computed there, the source and the data are read here."""
    with open_bundle(path) as opened:
        assets = {name: opened.asset(name) for name in opened.assets}
        source, data = _source(manifest, assets, options, progress)
    progress.begin(f"golden outputs and profile on {device.text}")
    run = run_there(device, *measure_on(device, path, options.measure, options.backend))
    evaluated = Evaluation({}, None)
    if source is not None or data is not None:
        progress.begin(f"parity and metric on {device.text}")
        shipped = str(manifest.precision["shipped"])
        evaluated = _evaluated_there(device, path, options, source, data, shipped)
    return Evidence(run=run, source=source, data=data, evaluated=evaluated)


def _evaluated_here(
    session: Session, source: Baseline | None, data: Data | None, precision: str, progress: Progress
) -> Evaluation:
    parities: Mapping[str, Parity] = {}
    deviations: tuple[Deviation, ...] = ()
    if source is not None:
        progress.begin("parity", sum(len(records) for records in source.records.values()))
        parities = replay_baseline(source, session, progress)
        if source.adversary is not None:
            deviations = tuple(source.adversary.deviations(session, precision))
    score = None if data is None else score_of(session, data, "check", progress)
    return Evaluation(parities, score, deviations)


def _evaluated_there(
    device: Device, path: Path, options: CheckOptions, source: Baseline | None, data: Data | None, precision: str
) -> Evaluation:
    """Parity and metric, computed there; the source's recorded steps, its probes and the samples are sent.

    Raises:
        EdgeattnError: as :func:`edgeattn.jobs.remote.task_on`; DataError for more than is sent.
    """
    steps, reference = {}, ""
    probes: tuple[Probe, ...] = ()
    if source is not None:
        steps = {graph: Steps(graph in source.carried, records) for graph, records in source.records.items()}
        reference = source.reference
        if source.adversary is not None:
            probes = source.adversary.probes(precision, certain=True)
    task = Task(EVALUATION, pack(steps, reference, data, probes), "evaluated", Evaluation)
    seconds = TIMEOUT_SECONDS + SLOWEST_SAMPLE * (0 if data is None else len(data.evaluation))
    answer, _ = task_on(device, path, task, options.backend, options.measure.threads, seconds)
    return answer


def _refuse_gates_without_data(options: CheckOptions) -> None:
    """Gates on a metric that nothing can measure.

    Raises:
        InputError: naming them.
    """
    gates = options.gates
    given = {"--min-metric": gates.min_metric is not None, "--max-metric": gates.max_metric is not None}
    if names := [name for name, asked in given.items() if asked and options.data is None and options.model is None]:
        raise InputError(f"{' and '.join(names)}: the metric is measured on data, and none is given: give --data")


def _source(
    manifest: Manifest, assets: Mapping[str, Path], options: CheckOptions, progress: Progress
) -> tuple[Baseline | None, Data | None]:
    spec = manifest.spec
    if options.model is None:
        if options.data is None:
            return None, None
        own = None if manifest.task is None else restored(manifest.task)
        return None, _measured(
            load_data(manifest.name, spec, options.data, options.split, options.samples, assets, own), spec, options
        )
    model = _sized(load_model(options.model, Examples(bound=options.bound, data=options.data)), spec)
    if manifest.task is not None:
        model = replace(model, task=restored(manifest.task))
    if model.spec != spec:
        raise InputError(f"{options.model} is not what this bundle was made from: names, shapes or states differ")
    data = load_data(options.model, model.spec, options.data, options.split, options.samples, model.assets, model.task)
    source = baseline(model, _measured(data, spec, options), progress)
    return source, source.data


def _measured(data: Data | None, spec: ModelSpec, options: CheckOptions) -> Data | None:
    """The data with the metric that was asked for."""
    return data if data is None or options.metric is None else with_metric(data, spec, options.metric)


def _sized(model: EdgeModel, spec: ModelSpec) -> EdgeModel:
    """The source in the sizes that the bundle has it in."""
    sizes: dict[str, set[int]] = {}
    for bucket in spec.buckets:
        for name in bucket.graphs:
            for dim, size in bucket.sizes(spec.graph(name)).items():
                sizes.setdefault(dim, set()).add(size)
    fills = {pad.tensor: pad.fill for bucket in spec.buckets for pad in bucket.pad}
    return with_buckets(replace(model, buckets={}), {dim: tuple(sorted(found)) for dim, found in sizes.items()}, fills)


def _recorded_parity(manifest: Manifest, parity: Parity) -> Parity | None:
    """What the conversion measured against the same kind of reference; None where a figure of it is null."""
    try:
        recorded = from_json(Parity, manifest.measured.get("parity"), "manifest.measured.parity")
    except InputError:
        return None
    return recorded if recorded.reference == parity.reference else None
