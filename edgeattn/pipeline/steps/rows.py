"""An artifact that was made and verified here, as a row of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from edgeattn.engines import ENGINES
from edgeattn.evaluation.accuracy import Accuracy, accuracy
from edgeattn.evaluation.identity import identified
from edgeattn.pipeline.steps.candidates import VerifiedCandidate
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.options import ConvertOptions
from edgeattn.profiling.figures import Profile
from edgeattn.results.gates import Failure, Gates
from edgeattn.results.report import Candidate, Precision, Result, graph_results, with_gates
from edgeattn.results.verdicts import (
    NO_METRIC,
    Judgement,
    adversarial_judged,
    drop_judged,
    executed_judged,
    failed_rows,
    metric_unmeasured,
    parity_judged,
)
from edgeattn.targets import Target
from edgeattn.targets.host import HOST


def artifact_row(
    exports: Exports, target: Target, verified: VerifiedCandidate, precision: Precision, device: str, gates: Gates
) -> Result:
    """What is known of an artifact without a clock and a bundle, and what became of the gates that need neither.

    Args:
        precision: what was asked, what ships and what the engine executed; of a substitute the last is left out.
        device: this machine.
    """
    artifact = verified.artifact
    substitute = ENGINES[artifact.backend].substitute
    figures, rows = verified_gates(exports, verified, gates)
    result = Result(
        target=target.name,
        device=device if substitute is None else f"{device} ({substitute})",
        backend=artifact.backend,
        precision=precision if substitute is None else replace(precision, executed=None),
        size_bytes=verified.size_bytes,
        source_size_bytes=exports.model.source_size_bytes,
        parity=verified.parity,
        accuracy=figures,
        build=artifact.build,
        notes=exports.model.notes,
        pruning=pruning_facts(exports, verified, precision.candidates),
    )
    return with_gates(result, rows)


def profiled_row(
    exports: Exports,
    target: Target,
    chosen: VerifiedCandidate,
    candidates: tuple[Candidate, ...],
    profile: Profile,
    options: ConvertOptions,
) -> Result:
    """The artifact that ships with its times. A substitute's say nothing about the device, so they are left out."""
    artifact = chosen.artifact
    precision = Precision(
        asked=options.precision, shipped=artifact.precision, executed=profile.executed, candidates=candidates
    )
    row = artifact_row(exports, target, chosen, precision, profile.device, options.gates)
    notes = [*row.notes, *target.notes, *timed_elsewhere(target, artifact.backend, candidates)]
    substitute = ENGINES[artifact.backend].substitute
    if substitute is not None:
        notes.append(f"checked with {substitute} on this host; time and memory are known on the device only")
    if artifact.build is not None:
        notes.append(str(artifact.build["checked"].get("message", "not built on this host")))
    if exports.pruning is not None:
        notes += exports.pruning.notes
    buckets, graphs = graph_results(exports.model.spec, chosen.graphs, None if substitute else profile.latency)
    row = replace(row, notes=tuple(notes), buckets=buckets, graphs=graphs)
    if substitute is not None:
        return row
    return replace(
        row,
        latency=profile.latency,
        realtime=profile.realtime,
        memory=profile.memory,
        energy=profile.energy,
        kind=profile.latency.kind,
    )


def timed_elsewhere(target: Target, backend: str, candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """What to know of times that this machine took for a target that it is not; nothing of an untimed substitute."""
    if ENGINES[backend].substitute or target.name == HOST:
        return ()
    several = sum(row.latency_ms is not None for row in candidates) > 1
    guess = f": which candidate is the fastest on {target.name} is a guess" if several else ""
    return (f"timed on this host, which is not the target{guess}",)


def verified_gates(
    exports: Exports, chosen: VerifiedCandidate, gates: Gates
) -> tuple[Accuracy | None, list[Judgement]]:
    """The metric of a candidate, and what became of the gates that need no clock and no bundle."""
    artifact, data, score = chosen.artifact, exports.base.data, chosen.score
    failures: dict[str, list[Failure]] = {}
    for failure in chosen.failures:
        failures.setdefault(failure.gate, []).append(failure)
    told = not ENGINES[artifact.backend].substitute or bool((artifact.build or {}).get("checked", {}).get("layers"))
    rows = parity_judged(chosen.parity, artifact.precision, failures.pop("parity", []))
    if exports.base.adversary is not None:
        rows += adversarial_judged(failures.pop("adversarial", []), exports.base.adversary.told())
    rows += executed_judged(artifact.precision, failures.pop("executed", []), told)
    figures = None
    if score is not None and data is not None:
        found = accuracy(exports.base.score, score, data.origin, chosen.drop, gates.max_drop)
        figures = identified(found, data)
        rows += drop_judged(figures, failures.pop("accuracy", []), gates.max_drop)
    else:
        rows += metric_unmeasured(gates, NO_METRIC, "no")
    for others in failures.values():
        rows += failed_rows(others)
    if exports.pruning is not None:
        rows += [*failed_rows(exports.pruning.failures, "flag"), *exports.pruning.gates]
    return figures, rows


def pruning_facts(
    exports: Exports, chosen: VerifiedCandidate, candidates: tuple[Candidate, ...]
) -> dict[str, Any] | None:
    """What pruning did, and how much faster than the unpruned float model that is which ships."""
    if exports.pruning is None:
        return None
    facts = dict(exports.pruning.facts)
    single = next((row.latency_ms for row in candidates if row.scheme == "fp32"), None)
    gain: float | None = facts["speedup"] if facts["kept"] else 1.0
    facts["shipped_speedup"] = None
    if gain is not None and single is not None and chosen.latency_ms is not None:
        facts["shipped_speedup"] = gain * single / chosen.latency_ms
    return facts
