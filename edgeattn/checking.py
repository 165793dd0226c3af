"""check() and profile(): a bundle that exists is verified and measured again, with or without its source."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from edgeattn.adversarial import deviation_failures
from edgeattn.baseline import Baseline, Progress, baseline, replay_baseline, score_of, whole_parity
from edgeattn.buckets import with_buckets
from edgeattn.bundle import Manifest, open_bundle, read_manifest
from edgeattn.errors import DeviceError, EdgeattnError, InputError, UnsupportedError
from edgeattn.estimating import HOST, estimate_bundle
from edgeattn.evaluation.accuracy import Accuracy, Score, accuracy
from edgeattn.evaluation.confidence import SAMPLES
from edgeattn.evaluation.data import Data
from edgeattn.evaluation.identity import identified
from edgeattn.evaluation.parcel import Steps, pack
from edgeattn.evaluation.parity import Parity
from edgeattn.evaluation.probing import Probe
from edgeattn.evaluation.worker import Evaluated
from edgeattn.gates import Failure, Gates, executed_failures, parity_failures, timing_notes
from edgeattn.model import EdgeModel
from edgeattn.pipeline import describe, size_judged
from edgeattn.profiling.benchmark_model import benchmark_on
from edgeattn.profiling.contract import contract
from edgeattn.profiling.figures import Profile
from edgeattn.profiling.holding import held
from edgeattn.profiling.measure import MeasureOptions
from edgeattn.profiling.remote import Task, measure_on, task_on
from edgeattn.profiling.worker import TIMEOUT_SECONDS, profile_bundle
from edgeattn.refusals import Refusals
from edgeattn.report import Candidate, Precision, Report, Result, graph_results, with_gates
from edgeattn.runtimes import load
from edgeattn.runtimes.selftest import SelftestResult, selftest
from edgeattn.scratch import scratch_room
from edgeattn.sources import load_data, load_model
from edgeattn.spec import ModelSpec, from_json, to_json
from edgeattn.targets import Target, known_target
from edgeattn.targets.devices import Device, Inventory, parse_device
from edgeattn.targets.roofline import Estimate
from edgeattn.trial import NOTE, PRECISION, Trials
from edgeattn.verdicts import (
    NO_METRIC,
    Asked,
    Deadline,
    Judgement,
    accuracy_judged,
    adversarial_judged,
    clock_judged,
    deadline_foreseen,
    deadline_judged,
    deadline_of,
    elsewhere,
    executed_judged,
    foreseen,
    golden_judged,
    hashes_judged,
    metric_unmeasured,
    parity_judged,
)

EVALUATION = "edgeattn.evaluation.worker"
SLOWEST_SAMPLE = 10.0  # seconds of a board for one sample, a recording of some seconds among them
SLOWEST_OPS = 10  # of an estimate that a report names
Told = TypeVar("Told", Accuracy, Candidate)


@dataclass(frozen=True)
class CheckOptions:
    """What to check a bundle against.

    Attributes:
        backend: engine to run on, if not the bundle's own.
        model: MODEL that it came from; without it parity is that of the golden outputs.
        data: as ``--data`` of convert; without it the metric is not measured.
        samples: at most so many samples to measure on.
        device: as ``--device``; golden outputs, executed precision, time and memory are those found there. None for
            this machine, whose clock then judges the target ``cpu`` alone; "local" says that it is the target.
    """

    gates: Gates = field(default_factory=Gates)
    measure: MeasureOptions = field(default_factory=MeasureOptions)
    backend: str | None = None
    model: str | None = None
    data: str | None = None
    split: str | None = None
    samples: int = SAMPLES
    device: str | None = None


def check(path: Path, options: CheckOptions, progress: Progress) -> Report:
    """Verify a bundle: hashes, golden outputs, parity and metric where source and data are given, deadline, size.

    Raises:
        EdgeattnError: if the bundle, the source or the data cannot be used.
    """
    manifest = read_manifest(path)
    contract(manifest.spec, options.measure)  # refuses what makes no sense before minutes of work
    _refuse_gates_without_data(options)
    device = parse_device(options.device or "local")
    if device.kind != "local":
        return _check_on(device, path, manifest, options, progress)
    shipped = str(manifest.precision["shipped"])
    parities: dict[str, Parity] = {}
    parity, score = None, None
    with held(options.measure.power_mode, options.measure.lock_clocks):  # what is built here is tied to that
        progress.begin("golden outputs")
        rows = [hashes_judged(manifest), *golden_judged(selftest(path, options.backend, options.measure.threads))]
        with load(path, backend=options.backend, threads=options.measure.threads) as session:
            base, data = _source(manifest, session.assets, options, progress)
            if base is not None:
                progress.begin("parity", sum(len(records) for records in base.records.values()))
                parities = replay_baseline(base, session, progress)
                parity = whole_parity(session.spec, parities)
                rows += parity_judged(
                    parity, shipped, parity_failures(parity, shipped, _recorded_parity(manifest, parity))
                )
                if base.adversary is not None:
                    rows += adversarial_judged(base.adversary.failures(session, shipped), base.adversary.told())
            if data is not None:
                score = score_of(session, data, "check", progress)
            figures, more = _metric(manifest, base, data, score, options)
            rows += more
            rows += _executed(manifest, session.backend, session.executed())
    progress.begin("profile")
    measured = profile_bundle(path, options.measure, options.backend)
    here, notes = _in_time_here(path, manifest, measured, options.measure, options.gates, options.device is not None)
    rows += [*here, *size_judged(_size(manifest), options.gates)]
    result = _result(path, manifest, measured, rows, (parity, parities), figures)
    return Report(_model(manifest), (replace(result, notes=(*notes, *result.notes)),))


def _refuse_gates_without_data(options: CheckOptions) -> None:
    """Gates on a metric that nothing can measure.

    Raises:
        InputError: naming them.
    """
    gates = options.gates
    given = {"--min-metric": gates.min_metric is not None, "--max-metric": gates.max_metric is not None}
    if names := [name for name, asked in given.items() if asked and options.data is None and options.model is None]:
        raise InputError(f"{' and '.join(names)}: the metric is measured on data, and none is given: give --data")


def _metric(
    manifest: Manifest, base: Baseline | None, data: Data | None, score: Score | None, options: CheckOptions
) -> tuple[Accuracy | None, list[Judgement]]:
    """The metric, and what it is held to: the source's, beside it or as it was recorded, and absolute limits."""
    asked: Asked = "no" if options.data is None else "flag"
    if data is None or score is None:
        origin = NO_METRIC if data is None else f"{data.origin} holds no labels (target_NAME) that a metric is made of"
        return None, metric_unmeasured(options.gates, origin, asked)
    source = None if base is None else base.score
    found = identified(accuracy(source, score, data.origin, max_drop=options.gates.max_drop), data)
    recorded = manifest.measured.get("accuracy")
    before = _recorded(Accuracy, recorded, "manifest.measured.accuracy") if recorded else None
    return accuracy_judged(found, before, options.gates, asked)


def _recorded(kind: type[Told], value: Any, where: str) -> Told:
    """An object of a manifest's reports, which may have grown: fields that are not known here are left out.

    Raises:
        InputError: for another form.
    """
    known = {one.name for one in fields(kind)}
    return from_json(kind, {k: v for k, v in value.items() if k in known} if isinstance(value, dict) else value, where)


def _executed(manifest: Manifest, engine: str, executed: Mapping[str, Mapping[str, int]]) -> list[Judgement]:
    """What a substitute executes says nothing of the bundle's engine."""
    shipped, own = str(manifest.precision["shipped"]), engine == manifest.backend
    layers = manifest.provenance.get("layers") or None
    return executed_judged(shipped, executed_failures(shipped, executed, layers) if own else [], own)


def _in_time(
    path: Path, manifest: Manifest, profile: Profile | None, options: MeasureOptions, gates: Gates, away: str
) -> list[Judgement]:
    """The deadline of a bundle, by the clock that it was measured with or by an estimate.

    Args:
        profile: None where nothing was timed.
        away: why that clock says nothing of the target; empty if it does.
    """
    target = known_target(manifest.target)
    deadline = deadline_of(manifest.spec, target, gates, options)
    if profile is not None and profile.latency.kind != "measured":
        away = f"{profile.backend} ran as a substitute for {manifest.backend}"
    if profile is not None and not away:
        return [*([] if deadline is None else deadline_judged(profile, deadline)), *clock_judged(profile)]
    return [] if deadline is None else [_foreseen(path, manifest.target, target, deadline, options.threads, away)]


def _foreseen(path: Path, name: str, target: Target | None, deadline: Deadline, threads: int, why: str) -> Judgement:
    if target is None:
        found: Estimate | str = f"{name} is a target of your own, and bundles do not hold its figures"
    elif target.name == HOST:
        found = "the target is the machine that converted it"
    else:
        found = foreseen(path, target, threads)
    return deadline_foreseen(deadline, name, found, why)


def _in_time_here(
    path: Path, manifest: Manifest, profile: Profile, options: MeasureOptions, gates: Gates, named: bool
) -> tuple[list[Judgement], tuple[str, ...]]:
    """As :func:`_in_time` for this machine, and what to know of its times.

    Args:
        named: whether the user named this machine as the device.
    """
    away = elsewhere(manifest, named)
    rows = _in_time(path, manifest, profile, options, gates, away)
    if away:
        return rows, (f"timed here, and {away}",)
    if manifest.target == HOST:
        return rows, ()
    return rows, (f"this machine is taken for {manifest.target}, since it was named as the device",)


def _size(manifest: Manifest) -> int:
    return sum(entry.size for entry in manifest.files.values())


def profile(
    path: Path,
    options: MeasureOptions,
    backend: str | None,
    devices: Sequence[str] = (),
    benchmark: Path | None = None,
) -> Report:
    """Measure a bundle, in a process of its own, on this machine or on others at the same time.

    Args:
        devices: as ``--device``, and as that of :class:`CheckOptions` where none is given. Of several, one that fails
            is a result with the failure "device"; the others go on.
        benchmark: LiteRT's ``benchmark_model``, built for phones; it measures where it is given.

    Raises:
        InputError: for a malformed or repeated device, or a ``benchmark`` for anything but phones.
        EdgeattnError: as :func:`edgeattn.runtimes.load` and :func:`edgeattn.profiling.remote.measure_on`, where there
            is but one device.
    """
    manifest = read_manifest(path)
    parsed = [parse_device(text) for text in devices or ("local",)]
    if len(set(devices)) != len(devices):
        raise InputError(f"--device: each may be given once, got {', '.join(devices)}")
    if benchmark is not None:
        _check_benchmark(parsed, options, backend)
    if len(parsed) == 1:
        result = _profiled(parsed[0], path, manifest, options, backend, benchmark, bool(devices))
        return Report(_model(manifest), (result,))

    outcomes: dict[Device, Result | BaseException] = {}

    def one(device: Device) -> None:
        try:
            outcomes[device] = _profiled(device, path, manifest, options, backend, benchmark, True)
        except EdgeattnError as error:
            outcomes[device] = _unmeasured(device, path, manifest, error)
        except BaseException as error:  # noqa: BLE001 - raised again below, where somebody sees it
            outcomes[device] = error

    # Daemons, unlike the threads of a pool: Ctrl-C ends us at once, and with us the links, on which the devices wait.
    threads = [threading.Thread(target=one, args=(device,), daemon=True) for device in parsed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results = []
    for device in parsed:
        outcome = outcomes[device]
        if isinstance(outcome, BaseException):
            raise outcome
        results.append(outcome)
    return Report(_model(manifest), tuple(results))


@dataclass(frozen=True)
class ProfileOptions:
    """How a model that is no bundle yet is profiled.

    Attributes:
        devices: target -> its devices; one without is estimated, and ``cpu`` is this machine.
        backend: engine, if not the target's first.
        benchmark: as for :func:`profile`.
        deadlines: target -> its deadline in milliseconds, where it is not that of ``measure``.
    """

    measure: MeasureOptions = field(default_factory=MeasureOptions)
    devices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    backend: str | None = None
    benchmark: Path | None = None
    deadlines: Mapping[str, float] = field(default_factory=dict)


def profile_model(model: EdgeModel, targets: Sequence[Target], options: ProfileOptions, progress: Progress) -> Report:
    """Convert a model for each target, in float32 and for this alone, and measure it there or estimate it.

    Of several targets, one that fails is a result with the failure "target" (or "device"); the others go on.

    Raises:
        EdgeattnError: as :meth:`edgeattn.trial.Trials.bundle`, :func:`profile` and :func:`estimated`, where there is
            but one target.
    """
    results: list[Result] = []
    with scratch_room() as folder:
        trials = Trials(model, folder, progress)
        for target in targets:
            results += _tried(trials, target, options, progress, alone=len(targets) == 1)
    return Report(describe(model), tuple(results))


def _tried(trials: Trials, target: Target, options: ProfileOptions, progress: Progress, alone: bool) -> list[Result]:
    devices = tuple(options.devices.get(target.name, ("local",) if target.name == HOST else ()))
    measure = replace(options.measure, deadline_ms=options.deadlines.get(target.name, options.measure.deadline_ms))
    try:
        path = trials.bundle(target, options.backend, measure.threads, golden=bool(devices))
        if devices:
            progress.begin(f"{target.name}: profile on {', '.join(devices)}")
            report = profile(path, measure, None, devices, options.benchmark)
        else:
            report = estimated(path, (target,), measure.threads, {target.name: measure.deadline_ms})
    except EdgeattnError as error:
        if alone:
            raise
        failure = Failure("device" if isinstance(error, DeviceError) else "target", "a figure", str(error))
        row = Result(
            target=target.name,
            device=", ".join(devices) or target.title,
            backend=options.backend or target.backends[0],
            bundle=None,
            passed=False,
            failures=(failure,),
            precision=Precision(PRECISION, PRECISION),
        )
        return [row]
    return [replace(result, bundle=None, notes=(NOTE, *result.notes)) for result in report.results]


def estimated(
    path: Path, targets: Sequence[Target], threads: int, deadlines: Mapping[str, float | None] | None = None
) -> Report:
    """What a bundle would take on devices that are not here: a range for each, by the roofline, never a measurement.

    Nothing passes by it: what lies wholly above the deadline failed, and all else is not measured.

    Args:
        deadlines: target -> milliseconds per chunk or call; without, its default or the stream's hop.

    Raises:
        EdgeattnError: as :func:`edgeattn.estimating.estimate_bundle`, where there is but one target.
    """
    manifest = read_manifest(path)
    shipped = str(manifest.precision["shipped"])
    results = []
    refused = Refusals(targets, manifest.backend, str(manifest.precision["asked"]))
    for target in targets:
        with refused.within(target, "target"):
            found = estimate_bundle(path, target, threads)
        if target in refused:
            continue
        notes = [f"estimated by a roofline, not measured; {found.source}", *found.notes]
        if found.fits is False:
            notes.append(
                "its memory is too small: weights, states and activations need "
                f"{(found.needs_bytes or 0) / 1e6:.3g} MB of {(target.memory.bytes or 0) / 1e6:.3g} MB"
            )
        nothing_ran = "an estimate runs nothing"
        rows = [hashes_judged(manifest), *(replace(row, why=nothing_ran) for row in golden_judged(None))]
        deadline = deadline_of(
            manifest.spec, target, Gates(deadline_ms=(deadlines or {}).get(target.name)), MeasureOptions()
        )
        if deadline is not None:
            rows.append(deadline_foreseen(deadline, target.name, found, "an estimate is no measurement"))
        result = Result(
            target=target.name,
            device=f"{target.title}, {threads} thread(s)",
            backend=manifest.backend,
            bundle=str(path),
            passed=False,
            failures=(),
            precision=Precision(str(manifest.precision["asked"]), shipped),
            size_bytes=_size(manifest),
            notes=tuple(notes),
            estimate={**to_json(found), "ops": to_json(found.ops[:SLOWEST_OPS])},
            kind="estimated",
        )
        results.append(with_gates(result, rows))
    return Report(_model(manifest), refused.rows(results))


def _check_benchmark(devices: Sequence[Device], options: MeasureOptions, backend: str | None) -> None:
    """What ``benchmark_model`` cannot do is refused.

    Raises:
        InputError: naming it.
    """
    others = [device.text for device in devices if device.kind != "adb"]
    if others:
        raise InputError(
            f"--benchmark-binary runs on phones, as adb:SERIAL, and not on {', '.join(others)}: leave one out"
        )
    asked = {
        "--backend": backend is not None,
        "--deadline": options.deadline_ms is not None,
        "--layers": options.layers,
        "--power-mode": options.power_mode is not None,
        "--lock-clocks": options.lock_clocks,
    }
    if names := [name for name, wanted in asked.items() if wanted]:
        raise InputError(f"--benchmark-binary tells times of whole calls alone: leave out {', '.join(names)}")


def _benchmarked(device: Device, path: Path, manifest: Manifest, options: MeasureOptions, binary: Path) -> Result:
    figures, facts = benchmark_on(device, path, binary, options.runs, options.threads)
    notes = (
        "benchmark_model feeds random inputs and shows no output, so golden outputs were not compared; it tells no p99",
        f"{figures.runs} calls of the graph alone on {figures.threads} thread(s), features and decoding not in them",
        f"on {device.text}",
    )
    asked, shipped = str(manifest.precision["asked"]), str(manifest.precision["shipped"])
    result = Result(
        target=manifest.target,
        device=facts.model or device.text,
        backend=manifest.backend,
        bundle=str(path),
        passed=False,
        failures=(),
        precision=Precision(asked, shipped),
        size_bytes=_size(manifest),
        notes=notes,
        benchmark=to_json(figures),
        kind="measured",
    )
    unseen = [replace(row, why="benchmark_model shows no output") for row in golden_judged(None)]
    return with_gates(result, [hashes_judged(manifest), *unseen])


def _profiled(
    device: Device,
    path: Path,
    manifest: Manifest,
    options: MeasureOptions,
    backend: str | None,
    benchmark: Path | None,
    named: bool,
) -> Result:
    """A bundle measured on a device; ``named`` says whether the user named that."""
    if benchmark is not None:
        return _benchmarked(device, path, manifest, options, benchmark)
    gates = Gates(deadline_ms=options.deadline_ms)
    if device.kind == "local":
        with held(options.power_mode, options.lock_clocks):  # what is built here is tied to that
            golden = None if manifest.golden is None else selftest(path, backend, options.threads)
        _refuse_other_outputs(device, golden)
        measured = profile_bundle(path, options, backend)
        rows, notes = _in_time_here(path, manifest, measured, options, gates, named)
        rows = [hashes_judged(manifest), *golden_judged(golden), *rows]
        result = _result(path, manifest, measured, rows, (None, {}), None)
        return replace(result, notes=(*notes, *result.notes))
    golden, there, found = measure_on(device, path, options, backend)
    _refuse_other_outputs(device, golden)
    rows = [hashes_judged(manifest), *golden_judged(golden)]
    rows += _in_time(path, manifest, there, options, gates, _emulated(found))
    return _on(device, found, _told(path, manifest, golden, there, found, rows))


def _refuse_other_outputs(device: Device, golden: SelftestResult | None) -> None:
    """What computes something else is not timed.

    Raises:
        UnsupportedError: naming the output.
    """
    if golden is None or golden.passed:
        return
    worst = next(row for row in golden_judged(golden) if row.verdict == "failed")
    where = "this machine" if device.kind == "local" else device.text
    raise UnsupportedError(
        f"{where}: outputs there are not the golden ones ({worst.wanted}, got {worst.got}): "
        "figures of another computation mean nothing; update the engine, or convert for this device"
    )


def _emulated(found: Inventory) -> str:
    """Why a device's clock says nothing; empty if it does."""
    return f"its processor is emulated ({found.emulator})" if found.emulator else ""


def _unmeasured(device: Device, path: Path, manifest: Manifest, error: EdgeattnError) -> Result:
    asked, shipped = str(manifest.precision["asked"]), str(manifest.precision["shipped"])
    return Result(
        target=manifest.target,
        device=device.text,
        backend=manifest.backend,
        bundle=str(path),
        passed=False,
        failures=(Failure("device", "a measurement", str(error)),),
        precision=Precision(asked, shipped, None, ()),
    )


def _check_on(device: Device, path: Path, manifest: Manifest, options: CheckOptions, progress: Progress) -> Report:
    """The same on a device: what is computed is computed there, the source and the data are read here."""
    with open_bundle(path) as opened:
        assets = {name: opened.asset(name) for name in opened.assets}
        base, data = _source(manifest, assets, options, progress)
    progress.begin(f"golden outputs and profile on {device.text}")
    golden, measured, found = measure_on(device, path, options.measure, options.backend)
    rows = [hashes_judged(manifest), *golden_judged(golden)]
    shipped = str(manifest.precision["shipped"])
    parities: Mapping[str, Parity] = {}
    parity, score = None, None
    if base is not None or data is not None:
        progress.begin(f"parity and metric on {device.text}")
        evaluated = _evaluated_on(device, path, options, base, data, shipped)
        parities = evaluated.parities
        if base is not None:
            parity = whole_parity(manifest.spec, parities)
            rows += parity_judged(parity, shipped, parity_failures(parity, shipped, _recorded_parity(manifest, parity)))
            if base.adversary is not None:
                rows += adversarial_judged(deviation_failures(evaluated.deviations), base.adversary.told())
        score = evaluated.score
    figures, more = _metric(manifest, base, data, score, options)
    rows += more
    ran = golden if measured is None else measured
    if ran is not None:
        rows += _executed(manifest, ran.backend, ran.executed)
    rows += _in_time(path, manifest, measured, options.measure, options.gates, _emulated(found))
    rows += size_judged(_size(manifest), options.gates)
    result = _told(path, manifest, golden, measured, found, rows, (parity, parities), figures)
    return Report(_model(manifest), (_on(device, found, result),))


def _evaluated_on(
    device: Device, path: Path, options: CheckOptions, base: Baseline | None, data: Data | None, precision: str
) -> Evaluated:
    """Parity and metric, computed there; the source's recorded steps, its probes and the samples are sent.

    Raises:
        EdgeattnError: as :func:`edgeattn.profiling.remote.task_on`; DataError for more than is sent.
    """
    steps, reference = {}, ""
    probes: tuple[Probe, ...] = ()
    if base is not None:
        steps = {graph: Steps(graph in base.carried, records) for graph, records in base.records.items()}
        reference = base.reference
        if base.adversary is not None:
            probes = base.adversary.probes(precision, certain=True)
    task = Task(EVALUATION, pack(steps, reference, data, probes), "evaluated", Evaluated)
    seconds = TIMEOUT_SECONDS + SLOWEST_SAMPLE * (0 if data is None else len(data.evaluation))
    answer, _ = task_on(device, path, task, options.backend, options.measure.threads, seconds)
    return answer


def _told(
    path: Path,
    manifest: Manifest,
    golden: SelftestResult | None,
    measured: Profile | None,
    found: Inventory,
    rows: list[Judgement],
    parity: tuple[Parity | None, Mapping[str, Parity]] = (None, {}),
    figures: Accuracy | None = None,
) -> Result:
    """What a device told; of an emulated processor what it computes, and no figure of time."""
    if measured is not None:
        return _result(path, manifest, measured, rows, parity, figures)
    assert golden is not None, "an emulated processor is refused without"
    asked, shipped = str(manifest.precision["asked"]), str(manifest.precision["shipped"])
    lowest = min(output.sqnr_db for output in golden.outputs.values())
    note = (
        f"{golden.backend} {golden.engine_version} for {found.arch}: golden outputs over {golden.steps} steps at SQNR "
        f">= {lowest:.1f} dB; emulated, so nothing is told of its time, deadline, memory or energy"
    )
    result = Result(
        target=manifest.target,
        device=f"{found.arch}, emulated by {found.emulator}",
        backend=golden.backend,
        bundle=str(path),
        passed=True,
        failures=(),
        precision=Precision(asked, shipped, golden.executed),
        size_bytes=_size(manifest),
        parity=parity[0],
        accuracy=figures,
        notes=(note,),
        kind="emulated",
    )
    return with_gates(result, rows)


def _on(device: Device, found: Inventory, result: Result) -> Result:
    model = f" ({found.model})" if found.model else ""
    return replace(result, notes=(*result.notes, f"on {device.text}{model}"))


def _source(
    manifest: Manifest, assets: Mapping[str, Path], options: CheckOptions, progress: Progress
) -> tuple[Baseline | None, Data | None]:
    spec = manifest.spec
    if options.model is None:
        if options.data is None:
            return None, None
        return None, load_data(manifest.name, spec, options.data, options.split, options.samples, assets)
    model = _sized(load_model(options.model), spec)
    if model.spec != spec:
        raise InputError(f"{options.model} is not what this bundle was made from: names, shapes or states differ")
    data = load_data(options.model, model.spec, options.data, options.split, options.samples, model.assets)
    return baseline(model, data, progress), data


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


def _model(manifest: Manifest) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "task": manifest.spec.task,
        "source_sha256": manifest.provenance.get("source_sha256"),
        "graphs": [graph.name for graph in manifest.spec.graphs],
    }


def _result(
    path: Path,
    manifest: Manifest,
    profile: Profile,
    rows: list[Judgement],
    parity: tuple[Parity | None, Mapping[str, Parity]],  # of all graphs together, and by graph
    figures: Accuracy | None,
) -> Result:
    emulated = profile.latency.kind != "measured"
    note = f"a substitute: {profile.backend} on this machine runs what {manifest.backend} would run"
    tried_on = str(manifest.measured.get("device") or "a machine that the bundle does not tell")
    asked, shipped = str(manifest.precision["asked"]), str(manifest.precision["shipped"])
    candidates = tuple(_recorded(Candidate, c, "candidate") for c in manifest.precision.get("candidates", ()))
    buckets, graphs = graph_results(manifest.spec, parity[1], profile.latency)
    result = Result(
        target=manifest.target,
        device=profile.device,
        backend=profile.backend,
        bundle=str(path),
        passed=True,
        failures=(),
        precision=Precision(asked, shipped, profile.executed, candidates, tried_on if candidates else None),
        size_bytes=_size(manifest),
        parity=parity[0],
        accuracy=figures,
        latency=profile.latency,
        realtime=profile.realtime,
        memory=profile.memory,
        energy=profile.energy,
        board=profile.board,
        build=manifest.build,
        notes=(note,) * emulated + timing_notes(profile),
        buckets=buckets,
        graphs=graphs,
        kind=profile.latency.kind,
    )
    return with_gates(result, rows)
