"""profile(): a bundle measured on this machine, on others, or estimated; a model is converted for that alone first."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgeattn.bundle import SUFFIX, BundleDraft, Manifest, read_manifest
from edgeattn.converters.preflight.judge import refuse
from edgeattn.converters.preflight.view import GraphView, look
from edgeattn.errors import DeviceError, EdgeattnError, InputError, UnsupportedError
from edgeattn.graphs.estimate import estimate_bundle
from edgeattn.guards.scratch import scratch_directory
from edgeattn.jobs.measure import profile_bundle
from edgeattn.jobs.remote import measure_on
from edgeattn.model import EdgeModel
from edgeattn.pipeline.steps.baseline import Baseline, recorded
from edgeattn.pipeline.steps.candidates import open_artifact
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.options import ConvertOptions
from edgeattn.pipeline.steps.packing import draft_bundle, golden_inputs
from edgeattn.pipeline.steps.preflight import check_disk, describe, engine, foresee
from edgeattn.pipeline.steps.recipes import QuantizeOptions, build, recipes
from edgeattn.pipeline.steps.refusals import Refusals, unserved_row
from edgeattn.pipeline.steps.runs import (
    BundleRun,
    benchmarked_row,
    bundle_row,
    bundle_size,
    in_time_judged,
    manifest_model,
    outputs_judged,
    run_row,
    run_there,
    unmeasured_row,
    unrun_judged,
)
from edgeattn.profiling.contract import MeasureOptions
from edgeattn.profiling.holding import held
from edgeattn.progress import Progress
from edgeattn.results.gates import Failure, Gates
from edgeattn.results.report import Precision, Report, Result, with_gates
from edgeattn.results.verdicts import deadline_foreseen, deadline_of, elsewhere, golden_judged
from edgeattn.runtimes.selftest import SelftestResult, make_golden, selftest
from edgeattn.spec import to_json
from edgeattn.targets import Target
from edgeattn.targets.devices import Device, parse_device
from edgeattn.targets.host import HOST

PRECISION = "fp32"
NOTE = (
    "converted for this alone, in float32: precision was not chosen and accuracy not checked; edgeattn convert makes a "
    "verified bundle"
)


@dataclass
class Trials:
    """Bundles of one model in a directory of its own; exports are shared by the targets."""

    model: EdgeModel
    folder: Path
    progress: Progress

    def bundle(self, target: Target, backend: str | None, threads: int, golden: bool) -> Path:
        """Convert for a target.

        Args:
            backend: engine, if not the target's first.
            threads: of the session that golden outputs are made with.
            golden: whether a device will compare its outputs.

        Raises:
            EdgeattnError: if it cannot be made; preflight says why and what to change.
        """
        options = ConvertOptions((target,), PRECISION, backend)
        chosen = engine(target, options)
        recipes(target, chosen, PRECISION)  # refused before any waiting
        check_disk(self.model, self.folder)
        self.progress.begin(f"{target.name}: {PRECISION} with {chosen}")
        refuse(foresee(self.model, self._views, target, None, options))
        artifact = build(chosen, self._exports, PRECISION, target, QuantizeOptions())
        arrays = None
        if golden:
            self._exports.base = self._base
            with open_artifact(artifact, self._exports, threads) as session:
                arrays = make_golden(session, golden_inputs(self._base))
        with BundleDraft(self.folder / f"{self.model.spec.name}.{target.name}{SUFFIX}") as draft:
            draft_bundle(draft, self._exports, target, artifact, Precision(asked=PRECISION, shipped=PRECISION), arrays)
            return draft.publish()

    @functools.cached_property
    def _views(self) -> tuple[GraphView, ...]:
        return look(self.model, {})

    @functools.cached_property
    def _exports(self) -> Exports:
        return Exports(self.model, Baseline({}, {}, None, None), self.folder)

    @functools.cached_property
    def _base(self) -> Baseline:
        return recorded(self.model, None, self.progress)


SLOWEST_OPS = 10  # of an estimate that a report names


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
        EdgeattnError: as :func:`edgeattn.runtimes.load` and :func:`edgeattn.jobs.remote.measure_on`, where there
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
        return Report(manifest_model(manifest), (result,))

    outcomes: dict[Device, Result | BaseException] = {}

    def one(device: Device) -> None:
        try:
            outcomes[device] = _profiled(device, path, manifest, options, backend, benchmark, True)
        except EdgeattnError as error:
            outcomes[device] = unmeasured_row(device, path, manifest, error)
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
    return Report(manifest_model(manifest), tuple(results))


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
        EdgeattnError: as :meth:`Trials.bundle`, :func:`profile` and :func:`estimated`, where there is but one target.
    """
    results: list[Result] = []
    with scratch_directory() as folder:
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
        row = unserved_row(target, options.backend, Precision(asked=PRECISION, shipped=PRECISION))
        return [replace(row, device=", ".join(devices) or target.title, failures=(failure,))]
    return [replace(result, bundle=None, notes=(NOTE, *result.notes)) for result in report.results]


def estimated(
    path: Path, targets: Sequence[Target], threads: int, deadlines: Mapping[str, float | None] | None = None
) -> Report:
    """What a bundle would take on devices that are not here: a range for each, by the roofline, never a measurement.

    Nothing passes by it: what lies wholly above the deadline failed, and all else is not measured.

    Args:
        deadlines: target -> milliseconds per chunk or call; without, its default or the stream's hop.

    Raises:
        EdgeattnError: as :func:`edgeattn.graphs.counting.estimate_bundle`, where there is but one target.
    """
    manifest = read_manifest(path)
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
        rows = unrun_judged(manifest, "an estimate runs nothing")
        deadline = deadline_of(
            manifest.spec, target, Gates(deadline_ms=(deadlines or {}).get(target.name)), MeasureOptions()
        )
        if deadline is not None:
            rows.append(deadline_foreseen(deadline, target.name, found, "an estimate is no measurement"))
        result = replace(
            bundle_row(path, manifest, f"{target.title}, {threads} thread(s)"),
            target=target.name,
            size_bytes=bundle_size(manifest),
            notes=tuple(notes),
            estimate={**to_json(found), "ops": to_json(found.ops[:SLOWEST_OPS])},
            kind="estimated",
        )
        results.append(with_gates(result, rows))
    return Report(manifest_model(manifest), refused.rows(results))


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
        return benchmarked_row(device, path, manifest, options, benchmark)
    if device.kind == "local":
        with held(options.power_mode, options.lock_clocks):  # what is built here is tied to that
            golden = None if manifest.golden is None else selftest(path, backend, options.threads)
        _refuse_other_outputs(device, golden)
        measured = profile_bundle(path, options, backend)
        run = BundleRun(golden=golden, profile=measured, away=elsewhere(manifest, named))
    else:
        run = run_there(device, *measure_on(device, path, options, backend))
        _refuse_other_outputs(device, run.golden)
    gates = Gates(deadline_ms=options.deadline_ms)
    rows = [*outputs_judged(manifest, run), *in_time_judged(path, manifest, run, options, gates)]
    return with_gates(run_row(path, manifest, run), rows)


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
