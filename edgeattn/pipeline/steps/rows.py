"""A bundle's figures and verdicts as one row of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from edgeattn.bundle import Manifest
from edgeattn.engines import SUBSTITUTE
from edgeattn.errors import EdgeattnError
from edgeattn.evaluation.accuracy import Accuracy, accuracy
from edgeattn.evaluation.identity import identified
from edgeattn.evaluation.parity import Parity
from edgeattn.pipeline.steps.candidates import Verified
from edgeattn.pipeline.steps.exports import Workshop
from edgeattn.pipeline.steps.options import ConvertOptions
from edgeattn.profiling.benchmark_model import benchmark_on
from edgeattn.profiling.contract import MeasureOptions
from edgeattn.profiling.figures import Profile
from edgeattn.results.gates import Failure, Gates, executed_failures, timing_notes
from edgeattn.results.report import Candidate, Precision, Result, graph_results, with_gates
from edgeattn.results.verdicts import (
    NO_METRIC,
    Deadline,
    Judgement,
    adversarial_judged,
    clock_judged,
    deadline_foreseen,
    deadline_judged,
    deadline_of,
    drop_judged,
    elsewhere,
    executed_judged,
    failed_rows,
    foreseen,
    golden_judged,
    hashes_judged,
    metric_unmeasured,
    parity_judged,
)
from edgeattn.runtimes.selftest import SelftestResult
from edgeattn.spec import from_json, to_json
from edgeattn.targets.devices.device import Device
from edgeattn.targets.devices.events import Inventory
from edgeattn.targets.host import HOST
from edgeattn.targets.loader import known_target
from edgeattn.targets.roofline import Estimate
from edgeattn.targets.target import Target


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
            asked=options.precision,
            shipped=artifact.precision,
            executed=None if substitute else profile.executed,
            candidates=candidates,
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


def _build_note(build: Mapping[str, Any]) -> str:
    return str(build["checked"].get("message", "not built on this host"))


def judged_executed(manifest: Manifest, engine: str, executed: Mapping[str, Mapping[str, int]]) -> list[Judgement]:
    """What a substitute executes says nothing of the bundle's engine."""
    shipped, own = str(manifest.precision["shipped"]), engine == manifest.backend
    layers = manifest.provenance.get("layers") or None
    return executed_judged(shipped, executed_failures(shipped, executed, layers) if own else [], own)


def judged_in_time(
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


def judged_in_time_here(
    path: Path, manifest: Manifest, profile: Profile, options: MeasureOptions, gates: Gates, named: bool
) -> tuple[list[Judgement], tuple[str, ...]]:
    """As :func:`judged_in_time` for this machine, and what to know of its times.

    Args:
        named: whether the user named this machine as the device.
    """
    away = elsewhere(manifest, named)
    rows = judged_in_time(path, manifest, profile, options, gates, away)
    if away:
        return rows, (f"timed here, and {away}",)
    if manifest.target == HOST:
        return rows, ()
    return rows, (f"this machine is taken for {manifest.target}, since it was named as the device",)


def bundle_size(manifest: Manifest) -> int:
    """Bytes of all files that the manifest lists."""
    return sum(entry.size for entry in manifest.files.values())


def benchmarked(device: Device, path: Path, manifest: Manifest, options: MeasureOptions, binary: Path) -> Result:
    """What LiteRT's ``benchmark_model`` measured on a phone, as a row."""
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
        precision=Precision(asked=asked, shipped=shipped),
        size_bytes=bundle_size(manifest),
        notes=notes,
        benchmark=to_json(figures),
        kind="measured",
    )
    unseen = [replace(row, why="benchmark_model shows no output") for row in golden_judged(None)]
    return with_gates(result, [hashes_judged(manifest), *unseen])


def emulated(found: Inventory) -> str:
    """Why a device's clock says nothing; empty if it does."""
    return f"its processor is emulated ({found.emulator})" if found.emulator else ""


def unmeasured(device: Device, path: Path, manifest: Manifest, error: EdgeattnError) -> Result:
    """The row of a device that failed, with the failure "device"."""
    asked, shipped = str(manifest.precision["asked"]), str(manifest.precision["shipped"])
    return Result(
        target=manifest.target,
        device=device.text,
        backend=manifest.backend,
        bundle=str(path),
        passed=False,
        failures=(Failure("device", "a measurement", str(error)),),
        precision=Precision(asked=asked, shipped=shipped, executed=None, candidates=()),
    )


def device_row(
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
        return checked_result(path, manifest, measured, rows, parity, figures)
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
        precision=Precision(asked=asked, shipped=shipped, executed=golden.executed),
        size_bytes=bundle_size(manifest),
        parity=parity[0],
        accuracy=figures,
        notes=(note,),
        kind="emulated",
    )
    return with_gates(result, rows)


def on_device(device: Device, found: Inventory, result: Result) -> Result:
    """A row that names its device and the board's model."""
    model = f" ({found.model})" if found.model else ""
    return replace(result, notes=(*result.notes, f"on {device.text}{model}"))


def manifest_model(manifest: Manifest) -> dict[str, Any]:
    """The report's ``model`` object, of a bundle whose source is not here."""
    return {
        "name": manifest.name,
        "task": manifest.spec.task,
        "source_sha256": manifest.provenance.get("source_sha256"),
        "graphs": [graph.name for graph in manifest.spec.graphs],
    }


def checked_result(
    path: Path,
    manifest: Manifest,
    profile: Profile,
    rows: list[Judgement],
    parity: tuple[Parity | None, Mapping[str, Parity]],  # of all graphs together, and by graph
    figures: Accuracy | None,
) -> Result:
    """The figures and verdicts of a bundle that exists, as one row."""
    emulated = profile.latency.kind != "measured"
    note = f"a substitute: {profile.backend} on this machine runs what {manifest.backend} would run"
    tried_on = str(manifest.measured.get("device") or "a machine that the bundle does not tell")
    asked, shipped = str(manifest.precision["asked"]), str(manifest.precision["shipped"])
    candidates = tuple(recorded_report(Candidate, c, "candidate") for c in manifest.precision.get("candidates", ()))
    buckets, graphs = graph_results(manifest.spec, parity[1], profile.latency)
    result = Result(
        target=manifest.target,
        device=profile.device,
        backend=profile.backend,
        bundle=str(path),
        passed=True,
        failures=(),
        precision=Precision(
            asked=asked,
            shipped=shipped,
            executed=profile.executed,
            candidates=candidates,
            tried_on=tried_on if candidates else None,
        ),
        size_bytes=bundle_size(manifest),
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


Told = TypeVar("Told", Accuracy, Candidate)


def recorded_report(kind: type[Told], value: Any, where: str) -> Told:
    """An object of a manifest's reports, which may have grown: fields that are not known here are left out.

    Raises:
        InputError: for another form.
    """
    known = {one.name for one in fields(kind)}
    return from_json(kind, {k: v for k, v in value.items() if k in known} if isinstance(value, dict) else value, where)
