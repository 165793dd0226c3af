"""What became of each gate: passed, failed, or not measured; and what that makes of a bundle.

A gate that nobody could judge has not passed. A time is judged by the clock of the device that it is asked of, and by
no other machine's; an estimate can say that a deadline would be missed, and never that it was kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgeattn.bundle import Manifest
from edgeattn.errors import EdgeattnError
from edgeattn.evaluation.accuracy import Accuracy
from edgeattn.evaluation.parity import MAX_ABS_FP32, MIN_SQNR_FP16, MIN_SQNR_FP32, Parity
from edgeattn.graphs.estimate import estimate_bundle
from edgeattn.profiling.contract import MeasureOptions
from edgeattn.profiling.figures import Profile
from edgeattn.results.gates import Failure, Gates, accuracy_failures, clock_failures, deadline_failures
from edgeattn.runtimes.selftest import SelftestResult
from edgeattn.spec import ModelSpec
from edgeattn.targets import Target, host_target, known_target
from edgeattn.targets.host import HOST
from edgeattn.targets.roofline import Estimate

Verdict = Literal["passed", "failed", "not measured"]
Asked = Literal["flag", "default", "no"]
NO_METRIC = "no labelled data was given (--data)"


@dataclass(frozen=True)
class Judgement:
    """What became of one gate.

    Attributes:
        gate: hashes, golden, parity, adversarial, accuracy, metric, executed, deadline, clock, speedup, size, device or
            target.
        got: what was found; of a gate that was not judged, what is known instead, empty for nothing.
        why: what keeps it from being judged, or what to know of the verdict; mostly empty.
        asked: by whom. Not judged, a gate of the user's own ("flag") makes the exit code 5, too; one that stands
            without being asked for ("default") makes the result "not measured"; one that is told alone ("no") nothing.
    """

    gate: str
    verdict: Verdict
    wanted: str
    got: str
    why: str = ""
    asked: Asked = "default"

    def __str__(self) -> str:
        why = f" ({self.why})" if self.why else ""
        if self.verdict == "not measured":
            known = "; ".join(filter(None, (self.got, self.why)))
            return f"{self.gate}: not measured: wanted {self.wanted}; {known}"
        if self.verdict == "failed":
            return f"{self.gate}: wanted {self.wanted}, got {self.got}{why}"
        return f"{self.gate}: {self.got}{why}"


def overall(gates: Iterable[Judgement]) -> Verdict:
    """Of a bundle: failed if any gate failed, not measured if one that matters could not be judged, else passed.

    >>> overall([Judgement("size", "passed", "1 MB", "0.9 MB"), Judgement("deadline", "not measured", "5 ms", "")])
    'not measured'
    """
    every = list(gates)
    if any(gate.verdict == "failed" for gate in every):
        return "failed"
    if any(gate.verdict == "not measured" and gate.asked != "no" for gate in every):
        return "not measured"
    return "passed"


def failed(gates: Iterable[Judgement]) -> tuple[Failure, ...]:
    """The gates that failed."""
    return tuple(
        Failure(gate.gate, gate.wanted, f"{gate.got} ({gate.why})" if gate.why else gate.got)
        for gate in gates
        if gate.verdict == "failed"
    )


def judged(gate: str, failures: Sequence[Failure], wanted: str, got: str, asked: Asked = "default") -> list[Judgement]:
    """A gate that was judged: a row for each failure, or one that says what passed.

    Args:
        wanted, got: of the row that says so.
    """
    return failed_rows(failures, asked) or [Judgement(gate, "passed", wanted, got, asked=asked)]


def failed_rows(failures: Iterable[Failure], asked: Asked = "default") -> list[Judgement]:
    """A row for each failure."""
    return [Judgement(one.gate, "failed", one.wanted, one.got, asked=asked) for one in failures]


# --- what needs no clock ----------------------------------------------------------------------------------------------


def hashes_judged(manifest: Manifest) -> Judgement:
    """Of a bundle that was opened: what differs from its manifest is refused before anything else."""
    return Judgement(
        "hashes", "passed", "every file as the manifest lists it", f"{len(manifest.files)} files, all hashes right"
    )


def golden_judged(golden: SelftestResult | None, asked: Asked = "default") -> list[Judgement]:
    """What the replay of the golden inputs gave, None for a bundle that has none."""
    if golden is None:
        wanted = "golden outputs that are compared"
        return [Judgement("golden", "not measured", wanted, "", "the bundle holds none: convert it again", asked)]
    failures = [
        Failure("golden", f"{name} at SQNR >= {golden.min_sqnr_db:g} dB", f"{output.sqnr_db:.1f} dB")
        for name, output in golden.outputs.items()
        if not output.passed
    ]
    wanted = f"every output at SQNR >= {golden.min_sqnr_db:g} dB"
    bound = f"bound {golden.min_sqnr_db:g} dB"
    got = (
        f"{golden.steps} steps at >= {golden.lowest_db:.1f} dB ({bound}) with {golden.backend} {golden.engine_version}"
    )
    return judged("golden", failures, wanted, got, asked)


def parity_judged(parity: Parity, precision: str, failures: Sequence[Failure]) -> list[Judgement]:
    """Outputs against the source's, of which :func:`edgeattn.results.gates.parity_failures` gave ``failures``."""
    wanted = {
        "fp32": f"every output within {MAX_ABS_FP32:g} or SQNR >= {MIN_SQNR_FP32:g} dB",
        "fp16": f"every output at SQNR >= {MIN_SQNR_FP16:g} dB",
    }.get(precision, "finite outputs; how near they come is the metric's affair")
    largest = max((output.max_abs for output in parity.outputs.values()), default=0.0)
    lowest = min((output.sqnr_db for output in parity.outputs.values()), default=0.0)
    got = f"within {largest:.2g} and >= {lowest:.1f} dB over {parity.steps} steps of the {parity.reference}"
    return judged("parity", failures, wanted, got)


def adversarial_judged(failures: Sequence[Failure], told: str) -> list[Judgement]:
    """Outputs on inputs that the example does not hold, of which the probes gave ``failures``.

    Args:
        told: how many such inputs were tried, and how many not.
    """
    return judged("adversarial", failures, "outputs on unusual inputs as the source gives them", told)


def executed_judged(precision: str, failures: Sequence[Failure], told: bool) -> list[Judgement]:
    """Whether int8 executes in integers, of which :mod:`edgeattn.results.gates` gave ``failures``.

    Args:
        told: whether the engine that ships told it, or its parser; a substitute's census says nothing of it.
    """
    if precision not in ("int8", "int4"):
        return []
    wanted = f"{precision} layers in integers"
    if not told:
        return [Judgement("executed", "not measured", wanted, "", "the bundle's own engine alone tells", "no")]
    return judged("executed", failures, wanted, "as the plan says")


def metric_judged(figures: Accuracy, gates: Gates) -> list[Judgement]:
    """The absolute gates on the metric, ``--min-metric`` and ``--max-metric``, in the unit that it is printed in."""
    rows = []
    got = f"{figures.text(figures.deployed)} on {figures.samples} samples of {figures.data}"
    for limit, sign, kept in (
        (gates.min_metric, ">=", figures.deployed >= (gates.min_metric or 0.0) - 1e-9),
        (gates.max_metric, "<=", figures.deployed <= (gates.max_metric or 0.0) + 1e-9),
    ):
        if limit is not None:
            wanted = f"{figures.metric} {sign} {limit:g} {figures.unit}".rstrip()
            rows.append(Judgement("metric", "passed" if kept else "failed", wanted, got, asked="flag"))
    return rows


def metric_unmeasured(gates: Gates, why: str, asked: Asked) -> list[Judgement]:
    """The rows of the metric where there is none.

    Args:
        asked: whether data were given, which is to ask for the metric.
    """
    rows = []
    for limit, sign in ((gates.min_metric, ">="), (gates.max_metric, "<=")):
        if limit is not None:
            rows.append(Judgement("metric", "not measured", f"a metric {sign} {limit:g} %", "", why, "flag"))
    drop: Asked = "flag" if gates.max_drop_asked else asked
    return [Judgement("accuracy", "not measured", f"a metric {_within(gates.max_drop)}", "", why, drop), *rows]


def accuracy_judged(
    figures: Accuracy, recorded: Accuracy | None, gates: Gates, asked: Asked
) -> tuple[Accuracy, list[Judgement]]:
    """The deployed metric against the source's: measured beside it, else as the manifest recorded it.

    The manifest's figure is of certain samples. Whether these are the same is told by their digests, and for bundles
    without by the name of the data and the number of samples. Of other labels, or other samples under the same name, a
    metric that fell is a failure, since one of the two is wrong; one that did not fall proves nothing.

    Args:
        figures: as measured; with a source where that was measured, too.
        recorded: of the manifest.

    Returns:
        the figures, with the source that they were compared with; and the rows.
    """
    if gates.max_drop_asked:
        asked = "flag"
    elif gates.min_metric is not None or gates.max_metric is not None:
        asked = "no"  # the user said what to hold it to
    absolute = metric_judged(figures, gates)
    if figures.source is not None:
        failures = accuracy_failures(figures, gates.max_drop)
        return figures, [*drop_judged(figures, failures, gates.max_drop, asked), *absolute]
    got = f"{figures.metric} {figures.text(figures.deployed)} on {figures.samples} samples of {figures.data}"
    compared = None if recorded is None else replace(figures, source=recorded.source)
    if recorded is None or recorded.source is None or compared is None:
        why = "not gated: the manifest holds no metric of the source; give --model, --min-metric or --max-metric"
        row = Judgement("accuracy", "not measured", f"a metric {_within(gates.max_drop)}", got, why, asked)
        return figures, [row, *absolute]
    same, why = _same_samples(figures, recorded)
    if same is None:
        wanted = f"{recorded.metric} {_within(gates.max_drop)}"
        why = f"not gated: {why}; give the same data, --model, --min-metric or --max-metric"
        return figures, [Judgement("accuracy", "not measured", wanted, got, why, asked), *absolute]
    failures = accuracy_failures(compared, gates.max_drop)
    rows = [replace(row, why=why) for row in drop_judged(compared, failures, gates.max_drop, asked)]
    if same or any(row.verdict == "failed" for row in rows):
        return compared, [*rows, *absolute]
    why = f"not gated: {why}, so a metric that did not fall proves nothing; give the same data, or --model"
    return figures, [replace(row, verdict="not measured", why=why) for row in rows] + absolute


def drop_judged(
    figures: Accuracy, failures: Sequence[Failure], max_drop: float, asked: Asked = "default"
) -> list[Judgement]:
    """What was lost against the source, of which :func:`edgeattn.results.gates.accuracy_failures` gave ``failures``."""
    source = "" if figures.source is None else f" {figures.text(figures.source)}"
    wanted = f"{figures.metric} within {max_drop:g} points of the source's{source}"
    got = f"{figures.text(figures.deployed)} on {figures.samples} samples of {figures.data}"
    return judged("accuracy", failures, wanted, got, asked)


def _within(max_drop: float) -> str:
    return f"within {max_drop:g} points of the source's"


def _same_samples(figures: Accuracy, recorded: Accuracy) -> tuple[bool | None, str]:
    """Whether a metric is of the samples that the manifest's is of: True, False for others under one name, or None."""
    if figures.metric != recorded.metric:
        return None, f"the manifest's metric is {recorded.metric}, this one {figures.metric}"
    if recorded.labelled_sha256 is not None and figures.labelled_sha256 is not None:
        if figures.labelled_sha256 == recorded.labelled_sha256:
            return True, ""
        if figures.inputs_sha256 == recorded.inputs_sha256:
            return False, "the inputs are those of the source's figure and the labels are not"
    if (figures.data, figures.samples) != (recorded.data, recorded.samples):
        ours, theirs = (f"{one.samples} samples of {one.data}" for one in (figures, recorded))
        return None, f"the manifest's metric of the source is of {theirs}, this one of {ours}"
    if recorded.labelled_sha256 is None or figures.labelled_sha256 is None:
        return True, "the same data by name alone"
    return False, f"{figures.data} holds other samples than when the source's figure was measured"


# --- time -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deadline:
    """What a chunk or call is held to; ``origin`` says by what."""

    ms: float
    origin: str
    asked: Asked

    def __str__(self) -> str:
        return f"{self.ms:g} ms ({self.origin})"


def deadline_of(spec: ModelSpec, target: Target | None, gates: Gates, measure: MeasureOptions) -> Deadline | None:
    """The deadline that the user asked for, else the target's own, else the hop; None where there is none of them.

    Args:
        target: None for one that is not known here.
    """
    if gates.deadline_ms is not None:
        return Deadline(gates.deadline_ms, "asked for", "flag")
    if target is not None and target.default_deadline_ms is not None:
        return Deadline(target.default_deadline_ms, f"default of {target.name}", "default")
    if spec.stream is not None:
        return Deadline(1e3 * float(spec.stream.hop_seconds), "the stream's hop", "default")
    return None if measure.hop_ms is None else Deadline(measure.hop_ms, "the hop", "flag")


def deadline_judged(profile: Profile, deadline: Deadline) -> list[Judgement]:
    """A deadline by the clock of the device that it is for."""
    failures = deadline_failures(profile, deadline.ms)
    runs = [run for run in (profile.realtime, profile.realtime and profile.realtime.loaded) if run]
    late = [f"{run.misses} of {run.chunks} late" for run in runs if run.misses is not None]
    got = ", ".join([*late, f"p99 {profile.latency.p99_ms:.2f} ms"])
    return judged("deadline", failures, f"p99 and every chunk or call within {deadline}", got, deadline.asked)


def clock_judged(profile: Profile) -> list[Judgement]:
    """Clocks that fell make a run invalid, not slow; those that held, or that nobody tells, need no row."""
    return [Judgement(one.gate, "failed", one.wanted, one.got) for one in clock_failures(profile)]


def deadline_foreseen(deadline: Deadline, target: str, foreseen: Estimate | str, why: str) -> Judgement:
    """A deadline of a device whose clock nobody read.

    An estimate that lies wholly above it fails it; no estimate passes it.

    Args:
        foreseen: the range, or why there is none.
        why: there is no measurement.
    """
    wanted = f"every chunk or call within {deadline} on {target}"
    help_ = f"{why}: give --device, or measure there"
    if isinstance(foreseen, str):
        help_ += f"; no estimate either: {foreseen}"
        return Judgement("deadline", "not measured", wanted, "", help_, deadline.asked)
    got = f"estimated {foreseen.low_ms:.3g} to {foreseen.high_ms:.3g} ms"
    limit = f"{deadline.ms:g} ms"
    if foreseen.low_ms > deadline.ms:
        return Judgement("deadline", "failed", wanted, f"{got}: would miss {limit}", help_, deadline.asked)
    word = "should keep" if foreseen.high_ms <= deadline.ms else "may miss"
    return Judgement("deadline", "not measured", wanted, f"{got}: {word} {limit}", help_, deadline.asked)


def foreseen(path: Path, target: Target, threads: int) -> Estimate | str:
    """The time of a bundle on a device that is not here, as a range; or why there is no estimate of it."""
    try:
        return estimate_bundle(path, target, threads)
    except EdgeattnError as error:
        return str(error)


def elsewhere(manifest: Manifest, named: bool) -> str:
    """Why this machine's clock says nothing of the target of a bundle; empty if it does.

    Only the user knows that this machine is a Raspberry Pi of a certain kind, by ``--device local``; what contradicts
    it is looked at: the architecture and the instruction sets.

    Args:
        named: whether the user named this machine as the device.
    """
    host = host_target()
    if manifest.target == HOST:
        if named:
            return ""
        made = manifest.provenance.get("machine")
        if not isinstance(made, Mapping) or not isinstance(made.get("isa"), list):
            return ""  # made before bundles told it
        arch, isa = made.get("arch"), set(map(str, made["isa"]))
        name = f"the machine that the bundle was made for ({arch})"
    else:
        target = known_target(manifest.target)
        if not named:
            return f"this machine is not {manifest.target}"
        if target is None:
            return ""
        arch, isa, name = target.cpu.arch, set(target.cpu.isa), target.name
    missing = sorted(isa - set(host.cpu.isa))
    if arch != host.cpu.arch:
        return f"this machine is {host.cpu.arch} and {name} is {arch}"
    if missing:
        return f"this machine is not {name}: it has no {', '.join(missing)}"
    return ""
