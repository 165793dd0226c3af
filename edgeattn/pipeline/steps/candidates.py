"""Candidates for a target: verified, timed in turns, and one of them chosen."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgeattn.engines import ENGINES, precision_of
from edgeattn.errors import DataError, UnsupportedError
from edgeattn.evaluation.accuracy import Drop, Score, accuracy, paired_drop, within
from edgeattn.evaluation.confidence import ALPHA, step_down
from edgeattn.evaluation.parity import Parity
from edgeattn.model import Artifact
from edgeattn.pipeline.steps.baseline import replay_baseline, score_of, whole_parity
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.options import ConvertOptions
from edgeattn.pipeline.steps.preflight import engine
from edgeattn.pipeline.steps.recipes import QuantizeOptions, build
from edgeattn.profiling.measure import time_step
from edgeattn.progress import Progress
from edgeattn.results.gates import (
    Failure,
    Gates,
    accuracy_failures,
    executed_failures,
    parity_failures,
    parsed_failures,
)
from edgeattn.results.report import Candidate
from edgeattn.runtimes import Session, open_session
from edgeattn.targets import Target

FLOATS = ("fp32", "fp16")
PAYS = 1.05  # what is quantized or pruned ships only if it is at least this much faster than the float before
TIMING_ROUNDS, TIMING_RUNS = 6, 25  # candidates take turns, so that a slow moment of the host meets all of them
TURN_SECONDS = 3.0
CUT_LOOKS = 4  # of the cuts of a pruned model, where the metric decides between them
CUT_ALPHA = ALPHA / 2 / CUT_LOOKS  # of what is said of each; the quantized candidates have the other half


@dataclass(frozen=True)
class Looks:
    """How many quantized candidates of a target are looked at, and how sure each claim about one must be for that.

    What ships is the fastest of those that keep the metric, so that the luckiest may win. That none of them is wrongly
    said to keep it holds with 95 % confidence: the plain candidates, whose number is known before any is measured, have
    a part of the 5 % together, which Holm's step-down gives out (:func:`settled`); those that are tried only because
    they failed have the rest, each an equal share of it, as many as may come at most (Bonferroni).

    Attributes:
        plain: candidates that are tried anyway.
        later: candidates that may be tried after them, at most.
        alpha: what all of them have together.
    """

    plain: int
    later: int = 0
    alpha: float = ALPHA

    @property
    def plain_alpha(self) -> float:
        """Of the plain candidates together."""
        return self.alpha / 2 if self.later else self.alpha

    @property
    def first_alpha(self) -> float:
        """Of each plain candidate, before Holm's step-down."""
        return self.plain_alpha / max(self.plain, 1)

    @property
    def later_alpha(self) -> float:
        """Of each candidate that is tried later."""
        return self.alpha / 2 / max(self.later, 1)


@dataclass(frozen=True, kw_only=True)
class VerifiedCandidate:
    """A candidate that was built and measured.

    Attributes:
        parity: of all graphs together; ``graphs`` has it by graph.
        latency_ms: None where this host cannot tell.
        drop: of the metric against the source; None without one.
    """

    artifact: Artifact
    parity: Parity
    score: Score | None
    latency_ms: float | None
    failures: tuple[Failure, ...]
    size_bytes: int
    graphs: Mapping[str, Parity] = field(default_factory=dict)
    drop: Drop | None = None

    @property
    def quantized(self) -> bool:
        """Whether it is no float, and must therefore pay."""
        return self.artifact.precision not in FLOATS


def verify(
    exports: Exports,
    artifact: Artifact,
    session: Session,
    gates: Gates,
    label: str,
    progress: Progress,
    alpha: float = ALPHA,
) -> VerifiedCandidate:
    """Parity over the recorded steps and the metric over the data, on the runtime that ships.

    Args:
        alpha: of what is said of its metric, see :class:`Looks`.
    """
    progress.begin(f"{label}: parity", sum(len(records) for records in exports.base.records.values()))
    graphs = replay_baseline(exports.base, session, progress)
    parity = whole_parity(session.spec, graphs)
    score = None
    if exports.base.score is not None and exports.base.data is not None:
        score = score_of(session, exports.base.data, label, progress)
    failures = parity_failures(parity, artifact.precision)
    if exports.base.adversary is not None:
        failures += exports.base.adversary.failures(session, artifact.precision)
    if ENGINES[artifact.backend].substitute:  # what another engine executes says nothing; what the parser took does
        failures += parsed_failures(artifact.treatments, (artifact.build or {}).get("checked", {}).get("layers"))
    else:
        failures += executed_failures(artifact.precision, session.executed(), artifact.treatments)
    drop = None
    if score is not None and exports.base.score is not None:
        drop = paired_drop(exports.base.score, score, alpha, gates.max_drop)
        failures += accuracy_failures(accuracy(exports.base.score, score, "", drop), gates.max_drop)
    size = sum(path.stat().st_size for path in artifact_files(artifact).values())
    return VerifiedCandidate(
        artifact=artifact,
        parity=parity,
        score=score,
        latency_ms=None,
        failures=tuple(failures),
        size_bytes=size,
        graphs=graphs,
        drop=drop,
    )


def settled(
    verified: Mapping[str, VerifiedCandidate], source: Score | None, looks: Looks, max_drop: float
) -> dict[str, VerifiedCandidate]:
    """The plain candidates with what can be said of all of them at once.

    Those that Holm's step-down shows to keep the metric lose ``max_drop`` at most; of each the simultaneous bound is
    told, which is that of Bonferroni where that is smaller.

    Source: Strassburger and Bretz, "Compatible simultaneous lower confidence bounds for the Holm procedure and other
    Bonferroni-based closed tests", Statistics in Medicine 27 (2008).
    """
    judged = {n: v for n, v in verified.items() if v.quantized and v.score is not None and v.drop is not None}
    if source is None or not judged:
        return dict(verified)
    count = max(looks.plain, len(judged))
    bounds = []
    for one in judged.values():
        assert one.score is not None, "chosen for it"
        levels = [looks.plain_alpha / (count - step) for step in range(len(judged))]
        bounds.append([paired_drop(source, one.score, level).upper for level in levels])
    shown = dict(zip(judged, step_down(bounds, max_drop + 1e-9), strict=True))
    return {
        name: replace(one, drop=replace(one.drop, upper=min(one.drop.upper, max(max_drop, one.drop.points))))
        if shown.get(name) and one.drop is not None
        else one
        for name, one in verified.items()
    }


def time_candidates(
    sessions: Mapping[str, Session], rounds: int = TIMING_ROUNDS, runs: int = TIMING_RUNS
) -> dict[str, float]:
    """Median milliseconds of one call of every graph, added up; the candidates take turns in one run.

    A graph that stands in several sizes counts with its largest, the worst case of a call. One alone has no turns to
    take, and calls so slow that a turn would last longer than :data:`TURN_SECONDS` are timed fewer times.
    """
    rounds = rounds if len(sessions) > 1 else 1
    totals = dict.fromkeys(sessions, 0.0)
    units = next(iter(sessions.values())).spec.units() if sessions else {}
    for graphs in units.values():
        steps = {name: session.step(graphs[-1].name) for name, session in sessions.items()}
        samples: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(rounds):
            for name, step in steps.items():
                samples[name] += time_step(step, runs, TURN_SECONDS)[1]
        for name, times in samples.items():
            totals[name] += 1e3 * statistics.median(times)
    return totals


def choose(
    verified: Mapping[str, VerifiedCandidate],
    source: Score | None,
    asked: str,
    max_drop: float,
    accept_unproved: bool = False,
) -> tuple[Candidate, ...]:
    """The fastest candidate that keeps the metric, and why each of the others is not it.

    A quantized one must be :data:`PAYS` times faster than the best float, its metric must be known, and what it loses
    must be within ``max_drop`` with 95 % confidence for all that were looked at (:class:`Looks`); among floats that are
    equally fast the smaller one ships. Where the time is only known on the device, fp16 ships. What was asked for by
    name ships if it passes its gates.

    Args:
        verified: by the name of the recipe.
        asked: "auto", a precision or a recipe.
        accept_unproved: where none is shown to keep the metric, the fastest ships of those that kept it on the samples.
    """
    passing = {name: v for name, v in verified.items() if not v.failures}
    floats = {name: v for name, v in passing.items() if not v.quantized}
    kept = _best_float(floats)
    why = dict.fromkeys(floats, "slower or larger than the float that ships")
    best = floats.get(kept or "")
    quantized = {name: v for name, v in passing.items() if v.quantized}
    why |= {name: why_not(v, best, source, max_drop, asked) for name, v in quantized.items()}
    shippable = [name for name in quantized if not why[name]]
    if not shippable and accept_unproved:
        unproved = {name: why_not(v, best, source, max_drop, asked, True) for name, v in quantized.items()}
        shippable = [name for name in quantized if not unproved[name]]
    if shippable:
        kept = min(shippable, key=lambda name: quantized[name].latency_ms or 0.0)
        why |= dict.fromkeys(floats, f"{kept} is at least {PAYS}x faster")
        why |= {name: why[name] or f"slower than {kept}" for name in shippable if name != kept}
    if kept is None:  # nothing passed: the safest one is reported with its failures
        kept = next(iter(passing or verified))
    why[kept] = _why_kept(verified[kept], source, asked, max_drop)
    return tuple(
        Candidate(
            precision=v.artifact.precision,
            latency_ms=v.latency_ms,
            accuracy=None if v.score is None else v.score.told,
            size_bytes=v.size_bytes,
            kept=name == kept,
            why="; ".join(str(f) for f in v.failures) or why[name],
            scheme=name,
            drop=None if v.drop is None else v.drop.points,
            drop_upper=None if v.drop is None else v.drop.upper,
        )
        for name, v in verified.items()
    )


def _why_kept(kept: VerifiedCandidate, source: Score | None, asked: str, max_drop: float) -> str:
    drop = kept.drop
    unproved = "" if source is None or drop is None or within(drop, max_drop) else _unproved(drop, source)
    if asked != "auto":
        return f"asked for; {unproved}" if unproved and kept.quantized else "asked for"
    if kept.latency_ms is None:
        return "the float default where time is only known on the device"
    if source is None or drop is None:
        return "fastest; there is no metric that it could keep"
    if not unproved:
        return "fastest that keeps the metric"
    return f"fastest; {unproved}" if kept.quantized else f"fastest float; {unproved}"


def _unproved(drop: Drop, source: Score) -> str:
    """``not proved: 12 samples (at most 22.09 points lost); 598 like these would be needed``."""
    more = f" and {len(source.unlabelled)} without labels" if source.unlabelled else ""
    return f"not proved: {source.samples} samples{more} (at most {drop.upper:.2f} points lost){_needed(drop)}"


def _needed(drop: Drop) -> str:
    return "; more of them would not show it" if drop.needed is None else f"; {drop.needed} like these would be needed"


def _best_float(floats: Mapping[str, VerifiedCandidate]) -> str | None:
    if not floats:
        return None
    timed = {p: v.latency_ms for p, v in floats.items() if v.latency_ms is not None}
    if len(timed) < len(floats):
        return "fp16" if "fp16" in floats else next(iter(floats))
    fastest = min(timed.values())
    return min((p for p in timed if timed[p] <= PAYS * fastest), key=lambda p: floats[p].size_bytes)


def best_float(verified: Mapping[str, VerifiedCandidate]) -> VerifiedCandidate | None:
    """The float that ships if nothing quantized does, None if none passes."""
    floats = {name: v for name, v in verified.items() if not v.quantized and not v.failures}
    return floats.get(_best_float(floats) or "")


def why_not(
    candidate: VerifiedCandidate,
    best: VerifiedCandidate | None,
    source: Score | None,
    max_drop: float,
    asked: str,
    accept_unproved: bool = False,
) -> str:
    """Why a quantized candidate that passes its gates should not ship; empty if it should."""
    if best is None or asked != "auto":
        return ""
    if source is None or candidate.drop is None:
        return "no data with a metric: its loss is unknown"
    if not (accept_unproved or within(candidate.drop, max_drop)):
        return (
            f"{candidate.drop.points:+.2f} points lost, up to {candidate.drop.upper:.2f} with 95 % confidence on "
            f"{source.samples} samples: not surely within {max_drop:g}{_needed(candidate.drop)}"
        )
    if candidate.latency_ms is None or best.latency_ms is None:
        return "its gain must be measured on the device"
    gain = best.latency_ms / candidate.latency_ms
    if gain < PAYS:
        return f"{gain:.2f}x the speed of {best.artifact.precision}, less than the {PAYS}x that it must pay"
    return ""


def artifact_files(artifact: Artifact) -> dict[str, Path]:
    """Every file of an artifact, by the name that it has in the bundle: its models and what lies beside them."""
    rooms = {path.parent for path in artifact.models.values()}
    return {file.name: file for room in rooms for file in sorted(room.iterdir()) if file.is_file()}


def open_artifact(artifact: Artifact, exports: Exports, threads: int) -> Session:
    """A session on the engine, or on its substitute on this host."""
    backend = ENGINES[artifact.backend].here
    return open_session(backend, artifact.models, exports.model.spec, threads, artifact.build)


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The candidates of one target, by recipe, and those that could not be made.

    Attributes:
        sessions: that run them, open as long as the stack that they were entered into.
        alpha: of what is said of the metric of the next quantized candidate.
    """

    verified: Mapping[str, VerifiedCandidate] = field(default_factory=dict)
    sessions: Mapping[str, Session] = field(default_factory=dict)
    refused: tuple[Candidate, ...] = ()
    notes: tuple[str, ...] = ()
    alpha: float = ALPHA

    def with_candidate(self, name: str, verified: VerifiedCandidate, session: Session) -> Candidates:
        """These and one more, or one again."""
        both = {**self.verified, name: verified}, {**self.sessions, name: session}
        return replace(self, verified=both[0], sessions=both[1])

    def with_note(self, note: str) -> Candidates:
        """The same, and one more thing to know of them."""
        return replace(self, notes=(*self.notes, note))

    def choice(self, source: Score | None, options: ConvertOptions) -> tuple[tuple[Candidate, ...], str]:
        """Each as a row that says why it ships or not, and the recipe of the one that does; see :func:`choose`."""
        rows = choose(self.verified, source, options.precision, options.gates.max_drop, options.accept_unproved)
        return (*rows, *self.refused), next(row.scheme for row in rows if row.kept)


def add_recipe(
    tried: Candidates,
    exports: Exports,
    target: Target,
    recipe: str,
    options: ConvertOptions,
    stack: ExitStack,
    progress: Progress,
    alone: bool = False,
) -> Candidates:
    """Build and verify one recipe beside what was tried.

    Args:
        stack: keeps its session open.
        alone: it is the only one; else what cannot be made is a row with the reason.

    Raises:
        EdgeattnError: if it cannot be made or verified.
    """
    backend = engine(target, options)
    progress.begin(f"{target.name}: {recipe} with {backend}")
    try:
        artifact = build(backend, exports, recipe, target, QuantizeOptions(options.plan))
    except (DataError, UnsupportedError) as error:
        if alone:
            raise
        refused = Candidate(
            precision=precision_of(recipe),
            latency_ms=None,
            accuracy=None,
            size_bytes=None,
            kept=False,
            why=str(error),
            scheme=recipe,
        )
        return replace(tried, refused=(*tried.refused, refused))
    session = stack.enter_context(open_artifact(artifact, exports, options.measure.threads))
    alpha = tried.alpha
    if precision_of(recipe) in FLOATS:
        alpha = ALPHA if exports.pruning is None else CUT_ALPHA
    verified = verify(exports, artifact, session, options.gates, f"{target.name}: {recipe}", progress, alpha)
    return tried.with_candidate(recipe, verified, session)
