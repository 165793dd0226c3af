"""Where no plain quantized candidate keeps the metric: some layers back to float, else a short training."""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import edgeattn
from edgeattn.engines import ENGINES, TREATMENT, precision_of
from edgeattn.errors import EdgeattnError, UnsupportedError
from edgeattn.evaluation.accuracy import within
from edgeattn.evaluation.confidence import ALPHA, zero_loss_samples
from edgeattn.model import Artifact, EdgeModel
from edgeattn.pipeline.steps.candidates import (
    FLOATS,
    PAYS,
    Candidates,
    Looks,
    VerifiedCandidate,
    add_recipe,
    best_float,
    open_artifact,
    settled,
    time_candidates,
    verify,
    why_not,
)
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.options import ConvertOptions
from edgeattn.pipeline.steps.preflight import engine
from edgeattn.pipeline.steps.recipes import QuantizeOptions, build, recipes
from edgeattn.progress import Progress, shares
from edgeattn.quantize.plan import recipe_plan
from edgeattn.quantize.recovery import RecoveryOptions, recover
from edgeattn.quantize.search import Found, SearchLog, Trial, by_gain, most_trials, search
from edgeattn.quantize.sensitivity import SensitivityOptions, sensitivity
from edgeattn.runtimes import Session, backends
from edgeattn.spec import to_json
from edgeattn.targets import Target

MIXED, RECOVERED = "+mixed", "+recovered"
MENDED_GAIN = 1.1  # a candidate that loses too much is worth mending if it is so much faster than what ships


@dataclass(frozen=True, kw_only=True)
class TrialContext:
    """What trials are measured with, and against.

    Attributes:
        options: of the target; "auto" as its precision needs a gain and confidence, a name needs its gates.
        recipe: that is mended.
        best: the float that ships if nothing quantized does, None if no float passes; ``session`` runs it.
        alpha: of what is said of the metric of each trial, see :class:`~edgeattn.pipeline.steps.candidates.Looks`.
        stack: keeps the sessions of what is found open.
    """

    exports: Exports
    target: Target
    options: ConvertOptions
    recipe: str
    best: VerifiedCandidate | None
    session: Session | None
    alpha: float
    stack: ExitStack
    progress: Progress

    @property
    def backend(self) -> str:
        """The engine that is converted for."""
        return engine(self.target, self.options)

    @property
    def label(self) -> str:
        """What a phase of work begins with."""
        return f"{self.target.name}: {self.recipe}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A candidate that came out, with its session, and in words how it was found."""

    name: str
    verified: VerifiedCandidate
    session: Session
    words: str


# --- whether to try harder, and in which order ------------------------------------------------------------------------


def try_recipes(
    exports: Exports, target: Target, options: ConvertOptions, stack: ExitStack, progress: Progress
) -> Candidates:
    """Every candidate of a target, measured; where none of the quantized ones would ship, more is tried.

    Raises:
        UnsupportedError: if nothing could be built.
        EdgeattnError: what stopped the only recipe that was asked for.
    """
    backend = engine(target, options)
    asked = recipes(target, backend, options.precision)
    plain = sum(precision_of(recipe) not in FLOATS for recipe in asked)
    tried = Candidates()
    looks = Looks(plain, later_looks(exports, tried, backend, options), ALPHA if exports.pruning is None else ALPHA / 2)
    tried = replace(tried, alpha=looks.first_alpha)
    for recipe in asked:
        tried = add_recipe(tried, exports, target, recipe, options, stack, progress, alone=len(asked) == 1)
    if not tried.verified:
        raise UnsupportedError(f"{target.name}: no precision could be built: {tried.refused[0].why}")
    progress.begin(f"{target.name}: timing")
    if not ENGINES[backend].substitute:
        times = time_candidates(tried.sessions)
        tried = replace(tried, verified={s: replace(v, latency_ms=times[s]) for s, v in tried.verified.items()})
    tried = replace(tried, verified=settled(tried.verified, exports.base.score, looks, options.gates.max_drop))
    tried = replace(tried, alpha=replace(looks, later=later_looks(exports, tried, backend, options)).later_alpha)
    # The gain of an engine that is not here is unknown, so that nothing quantized would ship.
    untimed = ENGINES[backend].substitute is not None and options.precision == "auto"
    if exports.base.score is not None and not untimed:
        tried = try_harder(tried, exports, target, options, stack, progress)
    return tried


def later_looks(exports: Exports, tried: Candidates, backend: str, options: ConvertOptions) -> int:
    """How many quantized candidates :func:`try_harder` may look at, at most; 0 only where there will be none.

    How many trials a search may take depends on the layers, which the candidates that were built tell.
    """
    if exports.base.score is None or (ENGINES[backend].substitute and options.precision == "auto"):
        return 0
    effort = options.effort
    fallback = len(ENGINES[backend].fallback) if options.precision == "auto" else 0
    layers = max((len(v.artifact.treatments) for v in tried.verified.values()), default=0)
    return fallback + (most_trials(layers) if effort.search_seconds > 0 else 0) + (effort.recover_seconds > 0)


def try_harder(
    tried: Candidates, exports: Exports, target: Target, options: ConvertOptions, stack: ExitStack, progress: Progress
) -> Candidates:
    """The slower recipes, the search over layers and recovery, while a candidate that loses too much is the fastest."""
    best = best_float(tried.verified)
    effort = replace(options.effort, search_log=search_file(exports.model, target, options))
    context = TrialContext(
        exports=exports,
        target=target,
        options=replace(options, effort=effort),
        recipe="",
        best=best,
        session=next((tried.sessions[s] for s, v in tried.verified.items() if v is best), None),
        alpha=tried.alpha,
        stack=stack,
        progress=progress,
    )
    if worth_mending(tried, context) is None:
        return tried
    if why := too_few_samples(context):
        return tried.with_note(why)
    for attempt in (slower_recipes, mixed_plan, training):
        if (lossy := worth_mending(tried, context)) is None:
            break
        tried = attempt(tried, replace(context, recipe=lossy))
    return tried


def worth_mending(tried: Candidates, context: TrialContext) -> str | None:
    """The fastest quantized candidate that loses too much, if it would be clearly faster than what ships now."""
    quantized = {s: v for s, v in tried.verified.items() if v.quantized}
    shipping = [v.latency_ms or 0.0 for v in quantized.values() if not complaint(context, v)]
    limit = min(shipping, default=math.inf) / MENDED_GAIN
    lossy = {
        s: v
        for s, v in quantized.items()
        if loses_metric(v, context.options) and not is_slow(v, context.best) and (v.latency_ms or 0.0) < limit
    }
    return min(lossy, key=lambda s: lossy[s].latency_ms or 0.0, default=None)


def too_few_samples(context: TrialContext) -> str:
    """Why nothing is tried where whatever is mended could not be shown to keep the metric, either; empty if it can."""
    options, score = context.options, context.exports.base.score
    if options.precision != "auto" or options.accept_unproved:
        return ""
    assert score is not None, "candidates lose a metric"
    samples = score.samples + len(score.unlabelled)
    needed = zero_loss_samples(options.gates.max_drop / 100.0, context.alpha)
    if samples >= needed:
        return ""
    return (
        f"nothing was tried to mend int8: {samples} samples cannot show that it loses less than "
        f"{options.gates.max_drop:g} points, even if it changed none ({needed} would; --accept-unproved tries)"
    )


def slower_recipes(tried: Candidates, context: TrialContext) -> Candidates:
    """The engine's recipes that are tried only where the others fail."""
    if context.options.precision != "auto":
        return tried
    for recipe in ENGINES[context.backend].fallback:
        tried = add_recipe(
            tried, context.exports, context.target, recipe, context.options, context.stack, context.progress
        )
        if recipe in tried.verified:
            session = tried.sessions[recipe]
            tried = tried.with_candidate(recipe, timed(context, tried.verified[recipe], session), session)
    return tried


def mixed_plan(tried: Candidates, context: TrialContext) -> Candidates:
    """Some layers back to float, as few as it takes."""
    if context.options.effort.search_seconds <= 0:
        return tried
    outcome, found = find_mixed(context)
    if outcome is None:
        return tried.with_note(f"{context.recipe}: {len(found.trials)} mixed plans tried, none ships; {found.ended}")
    return _with_outcome(tried, outcome)


def training(tried: Candidates, context: TrialContext) -> Candidates:
    """A short training with fake quantization."""
    if context.options.effort.recover_seconds <= 0:
        return tried
    return _with_outcome(tried, find_recovered(replace(context, recipe=context.recipe.partition("+")[0])))


def _with_outcome(tried: Candidates, outcome: Outcome) -> Candidates:
    found = tried.with_candidate(outcome.name, outcome.verified, outcome.session)
    return found.with_note(f"{outcome.name}: {outcome.words}")


def loses_metric(verified: VerifiedCandidate, options: ConvertOptions) -> bool:
    """Whether the metric, and nothing else, is what a candidate fails."""
    if any(failure.gate != "accuracy" for failure in verified.failures):
        return False
    unsure = verified.drop is not None and not within(verified.drop, options.gates.max_drop)
    return bool(verified.failures) or (options.precision == "auto" and unsure and not options.accept_unproved)


def is_slow(verified: VerifiedCandidate, best: VerifiedCandidate | None) -> bool:
    """Whether it would not pay even if it kept the metric."""
    found = gain(best, verified)
    return found is not None and found < PAYS


# --- the trials -------------------------------------------------------------------------------------------------------


def timed(context: TrialContext, verified: VerifiedCandidate, session: Session) -> VerifiedCandidate:
    """With its time, taken in turns with the best float and scaled to that one's."""
    if ENGINES[context.backend].substitute or context.best is None or context.session is None:
        return verified
    times = time_candidates({"float": context.session, "trial": session})
    scale = (context.best.latency_ms or times["float"]) / times["float"]  # as if timed with the other candidates
    return replace(verified, latency_ms=times["trial"] * scale)


def gain(best: VerifiedCandidate | None, verified: VerifiedCandidate) -> float | None:
    """Speed over the best float; None where this host cannot tell, or no float passes."""
    if best is None or best.latency_ms is None or verified.latency_ms is None:
        return None
    return best.latency_ms / verified.latency_ms


def complaint(context: TrialContext, verified: VerifiedCandidate) -> str:
    """Why a candidate does not ship; empty if it does."""
    failures = "; ".join(map(str, verified.failures))
    source, options = context.exports.base.score, context.options
    return failures or why_not(
        verified, context.best, source, options.gates.max_drop, options.precision, options.accept_unproved
    )


def find_mixed(context: TrialContext) -> tuple[Outcome | None, Found]:
    """Search which layers to give back to float."""
    exports, effort = context.exports, context.options.effort
    order = ranking(context)
    sessions: dict[int, tuple[VerifiedCandidate, Session]] = {}

    def attempt(paths: tuple[str, ...]) -> tuple[VerifiedCandidate, Session]:
        label = f"{context.label}, {len(paths)} of {len(order)} layers float"
        context.progress.begin(label)
        quantize_options = QuantizeOptions(context.options.plan.with_float(paths))
        artifact = build(context.backend, exports, context.recipe, context.target, quantize_options)
        return verified_trial(
            context, keep_files(artifact, exports, f"{context.backend}-{context.recipe}-{len(paths)}"), label
        )

    def evaluate(paths: tuple[str, ...]) -> Trial:
        try:
            verified, session = attempt(paths)
        except EdgeattnError as error:
            return Trial(len(paths), None, None, None, False, str(error))
        sessions[len(paths)] = verified, session
        why = complaint(context, verified)
        drop = verified.drop
        points, upper = (None, None) if drop is None else (drop.points, drop.upper)
        return Trial(len(paths), gain(context.best, verified), points, upper, not why, why)

    search_log = SearchLog(effort.search_log, _key(context, order))
    found = search(order, evaluate, search_log, effort.search_seconds)
    if found.best is None:
        return None, found
    returned = found.best.returned
    if returned not in sessions:  # from the search log of an earlier run
        sessions[returned] = attempt(tuple(order[:returned]))
    verified, session = sessions[returned]
    words = f"{returned} of {len(order)} layers back in float after {len(found.trials)} trials; {found.ended}"
    return Outcome(name=context.recipe + MIXED, verified=verified, session=session, words=words), found


def verified_trial(context: TrialContext, artifact: Artifact, label: str) -> tuple[VerifiedCandidate, Session]:
    """An artifact verified and timed, with the session that runs it."""
    threads, gates = context.options.measure.threads, context.options.gates
    session = context.stack.enter_context(open_artifact(artifact, context.exports, threads))
    verified = verify(context.exports, artifact, session, gates, label, context.progress, context.alpha)
    return timed(context, verified, session), session


def ranking(context: TrialContext) -> tuple[str, ...]:
    """The layers in the order in which they go back to float."""
    exports = context.exports
    context.progress.begin(f"{context.label}: sensitivity of each layer")
    options = SensitivityOptions(treatment=TREATMENT[context.recipe])
    report = sensitivity(
        exports.onnx, {g: tuple(exports.seen(g)) for g in exports.onnx}, options, None, context.progress.advance
    )
    kept = {row.path for row in report.layers if context.options.plan.of(row.path) == "float"}
    rows = [row for row in report.layers if row.path not in kept]
    noise = {row.path: 10.0 ** (-row.sqnr_db / 10.0) for row in rows}
    return by_gain(noise, {row.path: float(row.flops) for row in rows})


def keep_files(artifact: Artifact, exports: Exports, name: str) -> Artifact:
    """Move an artifact out of the room that the next build of the recipe empties."""
    room = exports.new_directory(name)
    rooms = {path.parent for path in artifact.models.values()}
    for folder in rooms:
        for file in folder.iterdir():
            file.rename(room / file.name)
    return replace(artifact, models={graph: room / path.name for graph, path in artifact.models.items()})


def recovery_file(search_log: Path, key: str) -> Path:
    """Where a training keeps its checkpoint: beside the search's search log, one of another model or data apart."""
    return search_log.with_name(f"{search_log.name}.{key[:12]}.recovery")


def find_recovered(context: TrialContext) -> Outcome:
    """Train with fake quantization for a while and make the recipe's artifact of the result."""
    exports, effort, plan = context.exports, context.options.effort, context.options.plan
    context.progress.begin(f"{context.label}: recovery by distillation", round(effort.recover_seconds))
    # Of a plan's int8 layers the dynamic recipe rounds activations as well; the recipes of weights alone do not.
    options = RecoveryOptions(
        plan=plan if context.recipe == "int8-dynamic" else recipe_plan(context.recipe, plan),
        seconds=effort.recover_seconds,
        activations="static" if TREATMENT[context.recipe] == "int8" else "dynamic",
        checkpoint=None if effort.search_log is None else recovery_file(effort.search_log, _key(context, ())),
    )
    on_step = shares(context.progress, effort.recover_seconds)
    recovered = recover(exports.model, exports.onnx, exports.base.calibration, options, on_step)
    room = exports.new_directory(f"recovered-{context.backend}-{context.recipe}")
    trained = Exports(recovered.model, exports.base, room)
    label = f"{context.label}, recovered"
    context.progress.begin(label)
    artifact = build(context.backend, trained, context.recipe, context.target, QuantizeOptions(plan, recovered.scales))
    artifact = replace(artifact, recipe=f"{artifact.recipe}; weights trained for it {recovered.seconds:.0f} s")
    verified, session = verified_trial(context, artifact, label)
    words = f"distilled from the float source for {recovered.seconds:.0f} s, {recovered.steps} steps"
    if recovered.note:
        words += f"; {recovered.note}"
    return Outcome(name=context.recipe + RECOVERED, verified=verified, session=session, words=words)


def _key(context: TrialContext, order: tuple[str, ...]) -> str:
    """Changes with everything that a trial depends on."""
    data, model, options = context.exports.base.data, context.exports.model, context.options
    tools = {status.name: status.version for status in backends()}
    parts = [
        edgeattn.__version__, tools, model.spec.name, model.source_sha256, context.target.name, context.backend,
        context.recipe, to_json(options.plan), options.precision, options.gates.max_drop, context.alpha,
        options.accept_unproved, order,
        None if data is None else (data.origin, len(data.calibration), len(data.evaluation)),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


# --- what is kept until the result is in place ------------------------------------------------------------------------


def forget_trials(model: EdgeModel, target: Target, options: ConvertOptions) -> None:
    """Remove what a search and a training kept for going on: their result is in place."""
    search_log = search_file(model, target, options)
    for file in (search_log, *search_log.parent.glob(f"{search_log.name}.*.recovery")):
        file.unlink(missing_ok=True)


def search_file(model: EdgeModel, target: Target, options: ConvertOptions) -> Path:
    """Where a search keeps its trials until the bundle is there."""
    return options.out / f".{model.spec.name}.{target.name}.search.json"
