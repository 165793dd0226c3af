"""A bundle that exists, run on this machine or on a device: its row of the report, and what judges its times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from edgeattn.bundle import Manifest
from edgeattn.errors import EdgeattnError
from edgeattn.evaluation.accuracy import Accuracy
from edgeattn.evaluation.parity import Parity
from edgeattn.profiling.benchmark_model import benchmark_on
from edgeattn.profiling.contract import MeasureOptions
from edgeattn.profiling.figures import Profile
from edgeattn.results.gates import Failure, Gates, executed_failures, timing_notes
from edgeattn.results.report import Candidate, Precision, Result, graph_results, with_gates
from edgeattn.results.verdicts import (
    Deadline,
    Judgement,
    clock_judged,
    deadline_foreseen,
    deadline_judged,
    deadline_of,
    executed_judged,
    foreseen,
    golden_judged,
    hashes_judged,
)
from edgeattn.runtimes.selftest import SelftestResult
from edgeattn.spec import from_json, to_json
from edgeattn.targets import Target, known_target
from edgeattn.targets.devices import Device, Inventory
from edgeattn.targets.host import HOST
from edgeattn.targets.roofline import Estimate


@dataclass(frozen=True, kw_only=True)
class BundleRun:
    """What one machine made of a bundle: this one, or a device.

    Attributes:
        golden: the replay of its golden outputs; None for a bundle without.
        profile: its figures; None for an emulated processor, whose clock says nothing, and which has ``golden`` then.
        away: why the clock says nothing of the bundle's target; empty if it does.
        device: where it ran, and what is there; None for this machine.
    """

    golden: SelftestResult | None
    profile: Profile | None
    away: str
    device: tuple[Device, Inventory] | None = None


def run_there(device: Device, golden: SelftestResult | None, profile: Profile | None, found: Inventory) -> BundleRun:
    """What :func:`edgeattn.jobs.remote.measure_on` gives, as a run on that device."""
    away = f"its processor is emulated ({found.emulator})" if found.emulator else ""
    return BundleRun(golden=golden, profile=profile, away=away, device=(device, found))


# --- rows -------------------------------------------------------------------------------------------------------------


def manifest_model(manifest: Manifest) -> dict[str, Any]:
    """The report's ``model`` object, of a bundle whose source is not here."""
    return {
        "name": manifest.name,
        "task": manifest.spec.task,
        "source_sha256": manifest.provenance.get("source_sha256"),
        "graphs": [graph.name for graph in manifest.spec.graphs],
    }


def bundle_row(path: Path, manifest: Manifest, device: str) -> Result:
    """What every row of a bundle that exists begins with."""
    return Result(
        target=manifest.target,
        device=device,
        backend=manifest.backend,
        bundle=str(path),
        precision=Precision(asked=str(manifest.precision["asked"]), shipped=str(manifest.precision["shipped"])),
    )


def run_row(path: Path, manifest: Manifest, run: BundleRun, parities: Mapping[str, Parity] | None = None) -> Result:
    """The figures of a run as a row, before its gates; of an emulated processor what it computes, and no time.

    Args:
        parities: by graph, where they were measured.
    """
    if run.profile is not None:
        row = _measured_row(path, manifest, run.profile, parities or {})
    else:
        assert run.golden is not None, "an emulated processor is refused without"
        assert run.device is not None, "this machine is none"
        row = _emulated_row(path, manifest, run.golden, run.device[1])
    row = replace(row, size_bytes=bundle_size(manifest))
    if run.device is None:
        return replace(row, notes=(*_clock_notes(manifest, run), *row.notes))
    device, found = run.device
    model = f" ({found.model})" if found.model else ""
    return replace(row, notes=(*row.notes, f"on {device.text}{model}"))


def _clock_notes(manifest: Manifest, run: BundleRun) -> tuple[str, ...]:
    """What to know of times that this machine took."""
    if run.away:
        return (f"timed here, and {run.away}",)
    if manifest.target == HOST:
        return ()
    return (f"this machine is taken for {manifest.target}, since it was named as the device",)


def _measured_row(path: Path, manifest: Manifest, profile: Profile, parities: Mapping[str, Parity]) -> Result:
    row = bundle_row(path, manifest, profile.device)
    note = f"a substitute: {profile.backend} on this machine runs what {manifest.backend} would run"
    tried_on = str(manifest.measured.get("device") or "a machine that the bundle does not tell")
    candidates = tuple(recorded_report(Candidate, c, "candidate") for c in manifest.precision.get("candidates", ()))
    buckets, graphs = graph_results(manifest.spec, parities, profile.latency)
    return replace(
        row,
        backend=profile.backend,
        precision=replace(
            row.precision,
            executed=profile.executed,
            candidates=candidates,
            tried_on=tried_on if candidates else None,
        ),
        latency=profile.latency,
        realtime=profile.realtime,
        memory=profile.memory,
        energy=profile.energy,
        board=profile.board,
        build=manifest.build,
        notes=(note,) * (profile.latency.kind != "measured") + timing_notes(profile),
        buckets=buckets,
        graphs=graphs,
        kind=profile.latency.kind,
    )


def _emulated_row(path: Path, manifest: Manifest, golden: SelftestResult, found: Inventory) -> Result:
    row = bundle_row(path, manifest, f"{found.arch}, emulated by {found.emulator}")
    note = (
        f"{golden.backend} {golden.engine_version} for {found.arch}: golden outputs over {golden.steps} steps at SQNR "
        f">= {golden.lowest_db:.1f} dB; emulated, so nothing is told of its time, deadline, memory or energy"
    )
    precision = replace(row.precision, executed=golden.executed)
    return replace(row, backend=golden.backend, precision=precision, notes=(note,), kind="emulated")


def unmeasured_row(device: Device, path: Path, manifest: Manifest, error: EdgeattnError) -> Result:
    """The row of a device that failed, with the failure "device"."""
    failure = Failure("device", "a measurement", str(error))
    return replace(bundle_row(path, manifest, device.text), failures=(failure,))


def benchmarked_row(device: Device, path: Path, manifest: Manifest, options: MeasureOptions, binary: Path) -> Result:
    """What LiteRT's ``benchmark_model`` measured on a phone, as a row.

    Raises:
        EdgeattnError: as :func:`edgeattn.profiling.benchmark_model.benchmark_on`.
    """
    figures, facts = benchmark_on(device, path, binary, options.runs, options.threads)
    notes = (
        "benchmark_model feeds random inputs and shows no output, so golden outputs were not compared; it tells no p99",
        f"{figures.runs} calls of the graph alone on {figures.threads} thread(s), features and decoding not in them",
        f"on {device.text}",
    )
    result = replace(
        bundle_row(path, manifest, facts.model or device.text),
        size_bytes=bundle_size(manifest),
        notes=notes,
        benchmark=to_json(figures),
        kind="measured",
    )
    return with_gates(result, unrun_judged(manifest, "benchmark_model shows no output"))


def bundle_size(manifest: Manifest) -> int:
    """Bytes of all files that the manifest lists."""
    return sum(entry.size for entry in manifest.files.values())


Recorded = TypeVar("Recorded", Accuracy, Candidate)


def recorded_report(kind: type[Recorded], value: Any, where: str) -> Recorded:
    """An object of a manifest's reports, which may have grown: fields that are not known here are left out.

    Raises:
        InputError: for another form.
    """
    known = {one.name for one in fields(kind)}
    return from_json(kind, {k: v for k, v in value.items() if k in known} if isinstance(value, dict) else value, where)


# --- gates ------------------------------------------------------------------------------------------------------------


def outputs_judged(manifest: Manifest, run: BundleRun) -> list[Judgement]:
    """The files and the golden outputs of a bundle that was run."""
    return [hashes_judged(manifest), *golden_judged(run.golden)]


def unrun_judged(manifest: Manifest, why: str) -> list[Judgement]:
    """The same of a bundle whose outputs nobody saw, and ``why``."""
    return [hashes_judged(manifest), *(replace(row, why=why) for row in golden_judged(None))]


def run_executed_judged(manifest: Manifest, run: BundleRun) -> list[Judgement]:
    """What a substitute executes says nothing of the bundle's engine."""
    ran = run.golden if run.profile is None else run.profile
    if ran is None:
        return []
    shipped, own = str(manifest.precision["shipped"]), ran.backend == manifest.backend
    layers = manifest.provenance.get("layers") or None
    return executed_judged(shipped, executed_failures(shipped, ran.executed, layers) if own else [], own)


def in_time_judged(
    path: Path, manifest: Manifest, run: BundleRun, options: MeasureOptions, gates: Gates
) -> list[Judgement]:
    """The deadline of a bundle, by the clock that it was measured with or by an estimate."""
    target, profile, away = known_target(manifest.target), run.profile, run.away
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
