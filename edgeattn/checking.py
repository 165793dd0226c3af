"""check() and profile(): a bundle that exists is verified and measured again, with or without its source."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeattn.baseline import Baseline, Progress, baseline, replay_baseline, score_of, whole_parity
from edgeattn.buckets import with_buckets
from edgeattn.bundle import Manifest, open_bundle, read_manifest
from edgeattn.errors import DeviceError, EdgeattnError, InputError, UnsupportedError
from edgeattn.estimating import HOST, estimate_bundle
from edgeattn.evaluation.accuracy import Accuracy, Score, accuracy
from edgeattn.evaluation.data import Data
from edgeattn.evaluation.parcel import Steps, pack
from edgeattn.evaluation.parity import Parity
from edgeattn.evaluation.worker import Evaluated
from edgeattn.gates import (
    Failure,
    Gates,
    accuracy_failures,
    clock_failures,
    deadline_failures,
    executed_failures,
    parity_failures,
    size_failures,
    timing_notes,
)
from edgeattn.model import EdgeModel
from edgeattn.pipeline import describe
from edgeattn.profiling.benchmark_model import benchmark_on
from edgeattn.profiling.contract import contract
from edgeattn.profiling.figures import Profile
from edgeattn.profiling.holding import held
from edgeattn.profiling.measure import MeasureOptions
from edgeattn.profiling.remote import Task, measure_on, task_on
from edgeattn.profiling.worker import TIMEOUT_SECONDS, profile_bundle
from edgeattn.report import Candidate, Precision, Report, Result, graph_results
from edgeattn.runtimes import load
from edgeattn.runtimes.selftest import SelftestResult, selftest
from edgeattn.scratch import scratch_room
from edgeattn.sources import load_data, load_model
from edgeattn.spec import ModelSpec, from_json, to_json
from edgeattn.targets import Target
from edgeattn.targets.devices import Device, Inventory, parse_device
from edgeattn.trial import NOTE, PRECISION, Trials

EVALUATION = "edgeattn.evaluation.worker"
SLOWEST_SAMPLE = 10.0  # seconds of a board for one sample, a recording of some seconds among them
SLOWEST_OPS = 10  # of an estimate that a report names


@dataclass(frozen=True)
class CheckOptions:
    """What to check a bundle against.

    Attributes:
        backend: engine to run on, if not the bundle's own.
        model: MODEL that it came from; without it parity is that of the golden outputs.
        data: as ``--data`` of convert; without it the metric is not measured.
        samples: at most so many samples to measure on.
        device: as ``--device``; golden outputs, executed precision, time and memory are those found there.
    """

    gates: Gates = field(default_factory=Gates)
    measure: MeasureOptions = field(default_factory=MeasureOptions)
    backend: str | None = None
    model: str | None = None
    data: str | None = None
    split: str | None = None
    samples: int = 400
    device: str = "local"


def check(path: Path, options: CheckOptions, progress: Progress) -> Report:
    """Verify a bundle: hashes, golden outputs, parity and metric where source and data are given, deadline, size.

    Raises:
        EdgeattnError: if the bundle, the source or the data cannot be used.
    """
    manifest = read_manifest(path)
    contract(manifest.spec, options.measure)  # refuses what makes no sense before minutes of work
    device = parse_device(options.device)
    if device.kind != "local":
        return _check_on(device, path, manifest, options, progress)
    shipped = str(manifest.precision["shipped"])
    parities: dict[str, Parity] = {}
    parity, figures = None, None
    with held(options.measure.power_mode, options.measure.lock_clocks):  # what is built here is tied to that
        progress.begin("golden outputs")
        failures = _golden_failures(selftest(path, options.backend, options.measure.threads))
        with load(path, backend=options.backend, threads=options.measure.threads) as session:
            base, data = _source(manifest, session.assets, options, progress)
            if base is not None:
                progress.begin("parity", sum(len(records) for records in base.records.values()))
                parities = replay_baseline(base, session, progress)
                parity = whole_parity(session.spec, parities)
                failures += parity_failures(parity, shipped)
            if data is not None:
                score = score_of(session, data, "check", progress)
                if score is not None:
                    figures = _accuracy(base, manifest, score, data)
                    failures += accuracy_failures(figures, options.gates.max_drop)
            if session.backend == manifest.backend:  # what a substitute executes says nothing of the engine
                failures += executed_failures(shipped, session.executed(), manifest.provenance.get("layers") or None)
    progress.begin("profile")
    profile = profile_bundle(path, options.measure, options.backend)
    if profile.latency.kind == "measured":
        failures += deadline_failures(profile, options.gates.deadline_ms)
        failures += clock_failures(profile)
    size = sum(entry.size for entry in manifest.files.values())
    failures += size_failures(size, options.gates.max_size_bytes)
    return Report(_model(manifest), (_result(path, manifest, profile, failures, (parity, parities), figures),))


def profile(
    path: Path,
    options: MeasureOptions,
    backend: str | None,
    devices: Sequence[str] = ("local",),
    benchmark: Path | None = None,
) -> Report:
    """Measure a bundle, in a process of its own, on this machine or on others at the same time.

    Args:
        devices: as ``--device``. Of several, one that fails is a result with the failure "device"; the others go on.
        benchmark: LiteRT's ``benchmark_model``, built for phones; it measures where it is given.

    Raises:
        InputError: for a malformed or repeated device, or a ``benchmark`` for anything but phones.
        EdgeattnError: as :func:`edgeattn.runtimes.load` and :func:`edgeattn.profiling.remote.measure_on`, where there
            is but one device.
    """
    manifest = read_manifest(path)
    parsed = [parse_device(text) for text in devices]
    if len(set(devices)) != len(devices):
        raise InputError(f"--device: each may be given once, got {', '.join(devices)}")
    if benchmark is not None:
        _check_benchmark(parsed, options, backend)
    if len(parsed) == 1:
        return Report(_model(manifest), (_profiled(parsed[0], path, manifest, options, backend, benchmark),))

    outcomes: dict[Device, Result | BaseException] = {}

    def one(device: Device) -> None:
        try:
            outcomes[device] = _profiled(device, path, manifest, options, backend, benchmark)
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
    """

    measure: MeasureOptions = field(default_factory=MeasureOptions)
    devices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    backend: str | None = None
    benchmark: Path | None = None


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
    try:
        path = trials.bundle(target, options.backend, options.measure.threads, golden=bool(devices))
        if devices:
            progress.begin(f"{target.name}: profile on {', '.join(devices)}")
            report = profile(path, options.measure, None, devices, options.benchmark)
        else:
            report = estimated(path, (target,), options.measure.threads)
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


def estimated(path: Path, targets: Sequence[Target], threads: int) -> Report:
    """What a bundle would take on devices that are not here: a range for each, by the roofline, never a measurement.

    Raises:
        EdgeattnError: as :func:`edgeattn.estimating.estimate_bundle`.
    """
    manifest = read_manifest(path)
    shipped = str(manifest.precision["shipped"])
    results = []
    for target in targets:
        found = estimate_bundle(path, target, threads)
        notes = [f"estimated by a roofline, not measured; {found.source}", *found.notes]
        if found.fits is False:
            notes.append(
                "its memory is too small: weights, states and activations need "
                f"{(found.needs_bytes or 0) / 1e6:.3g} MB of {(target.memory.bytes or 0) / 1e6:.3g} MB"
            )
        results.append(
            Result(
                target=target.name,
                device=f"{target.title}, {threads} thread(s)",
                backend=manifest.backend,
                bundle=str(path),
                passed=True,
                failures=(),
                precision=Precision(str(manifest.precision["asked"]), shipped),
                size_bytes=sum(entry.size for entry in manifest.files.values()),
                notes=tuple(notes),
                estimate={**to_json(found), "ops": to_json(found.ops[:SLOWEST_OPS])},
                kind="estimated",
            )
        )
    return Report(_model(manifest), tuple(results))


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
    return Result(
        target=manifest.target,
        device=facts.model or device.text,
        backend=manifest.backend,
        bundle=str(path),
        passed=True,
        failures=(),
        precision=Precision(asked, shipped),
        size_bytes=sum(entry.size for entry in manifest.files.values()),
        notes=notes,
        benchmark=to_json(figures),
        kind="measured",
    )


def _profiled(
    device: Device,
    path: Path,
    manifest: Manifest,
    options: MeasureOptions,
    backend: str | None,
    benchmark: Path | None,
) -> Result:
    if benchmark is not None:
        return _benchmarked(device, path, manifest, options, benchmark)
    if device.kind == "local":
        return _result(path, manifest, profile_bundle(path, options, backend), [], (None, {}), None)
    golden, measured, found = measure_on(device, path, options, backend)
    failures = [] if golden is None else _golden_failures(golden)
    if failures:
        raise UnsupportedError(
            f"{device.text}: outputs there are not the golden ones ({failures[0].wanted}, got {failures[0].got}): "
            "figures of another computation mean nothing; update the engine, or convert for this device"
        )
    return _on(device, found, _told(path, manifest, golden, measured, found, []))


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
    failures = [] if golden is None else _golden_failures(golden)
    shipped = str(manifest.precision["shipped"])
    parities: Mapping[str, Parity] = {}
    parity, figures = None, None
    if base is not None or data is not None:
        progress.begin(f"parity and metric on {device.text}")
        evaluated = _evaluated_on(device, path, options, base, data)
        parities = evaluated.parities
        if base is not None:
            parity = whole_parity(manifest.spec, parities)
            failures += parity_failures(parity, shipped)
        if data is not None and evaluated.score is not None:
            figures = _accuracy(base, manifest, evaluated.score, data)
            failures += accuracy_failures(figures, options.gates.max_drop)
    ran = golden if measured is None else measured
    if ran is not None and ran.backend == manifest.backend:
        failures += executed_failures(shipped, ran.executed, manifest.provenance.get("layers") or None)
    if measured is not None and measured.latency.kind == "measured":
        failures += deadline_failures(measured, options.gates.deadline_ms)
        failures += clock_failures(measured)
    size = sum(entry.size for entry in manifest.files.values())
    failures += size_failures(size, options.gates.max_size_bytes)
    result = _told(path, manifest, golden, measured, found, failures, (parity, parities), figures)
    return Report(_model(manifest), (_on(device, found, result),))


def _evaluated_on(
    device: Device, path: Path, options: CheckOptions, base: Baseline | None, data: Data | None
) -> Evaluated:
    """Parity and metric, computed there; the source's recorded steps and the samples are sent.

    Raises:
        EdgeattnError: as :func:`edgeattn.profiling.remote.task_on`; DataError for more than is sent.
    """
    steps, reference = {}, ""
    if base is not None:
        steps = {graph: Steps(graph in base.carried, records) for graph, records in base.records.items()}
        reference = base.reference
    task = Task(EVALUATION, pack(steps, reference, data), "evaluated", Evaluated)
    seconds = TIMEOUT_SECONDS + SLOWEST_SAMPLE * (0 if data is None else len(data.evaluation))
    answer, _ = task_on(device, path, task, options.backend, options.measure.threads, seconds)
    return answer


def _told(
    path: Path,
    manifest: Manifest,
    golden: SelftestResult | None,
    measured: Profile | None,
    found: Inventory,
    failures: list[Failure],
    parity: tuple[Parity | None, Mapping[str, Parity]] = (None, {}),
    figures: Accuracy | None = None,
) -> Result:
    """What a device told; of an emulated processor what it computes, and no figure of time."""
    if measured is not None:
        return _result(path, manifest, measured, failures, parity, figures)
    assert golden is not None, "an emulated processor is refused without"
    asked, shipped = str(manifest.precision["asked"]), str(manifest.precision["shipped"])
    lowest = min(output.sqnr_db for output in golden.outputs.values())
    note = (
        f"{golden.backend} {golden.engine_version} for {found.arch}: golden outputs over {golden.steps} steps at SQNR "
        f">= {lowest:.1f} dB; emulated, so nothing is told of its time, deadline, memory or energy"
    )
    return Result(
        target=manifest.target,
        device=f"{found.arch}, emulated by {found.emulator}",
        backend=golden.backend,
        bundle=str(path),
        passed=not failures,
        failures=tuple(failures),
        precision=Precision(asked, shipped, golden.executed),
        size_bytes=sum(entry.size for entry in manifest.files.values()),
        parity=parity[0],
        accuracy=figures,
        notes=(note,),
        kind="emulated",
    )


def _golden_failures(golden: SelftestResult) -> list[Failure]:
    return [
        Failure("golden", f"{name} at SQNR >= {golden.min_sqnr_db:g} dB", f"{output.sqnr_db:.1f} dB")
        for name, output in golden.outputs.items()
        if not output.passed
    ]


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


def _accuracy(base: Baseline | None, manifest: Manifest, score: Score, data: Data) -> Accuracy:
    if base is not None:
        return accuracy(base.score, score, data.origin)
    figures = accuracy(None, score, data.origin)
    recorded = manifest.measured.get("accuracy")
    if not recorded:
        return figures
    before = from_json(Accuracy, recorded, "manifest.measured.accuracy")
    same = (before.data, before.samples, before.metric) == (figures.data, figures.samples, figures.metric)
    source = before.source if same else None  # another set of samples has another source figure
    return Accuracy(figures.metric, source, figures.deployed, figures.ci95, figures.samples, figures.data)


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
    failures: list[Failure],
    parity: tuple[Parity | None, Mapping[str, Parity]],  # of all graphs together, and by graph
    figures: Accuracy | None,
) -> Result:
    emulated = profile.latency.kind != "measured"
    note = f"a substitute: {profile.backend} on this machine runs what {manifest.backend} would run"
    asked, shipped = str(manifest.precision["asked"]), str(manifest.precision["shipped"])
    candidates = tuple(from_json(Candidate, c, "candidate") for c in manifest.precision.get("candidates", ()))
    buckets, graphs = graph_results(manifest.spec, parity[1], profile.latency)
    return Result(
        target=manifest.target,
        device=profile.device,
        backend=profile.backend,
        bundle=str(path),
        passed=not failures,
        failures=tuple(failures),
        precision=Precision(asked, shipped, profile.executed, candidates),
        size_bytes=sum(entry.size for entry in manifest.files.values()),
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
