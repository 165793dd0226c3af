"""Where no plain quantized candidate keeps the metric: some layers back to float, else a short training."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import edgeattn
from edgeattn.engines import FALLBACK, SUBSTITUTE, TREATMENT, precision_of
from edgeattn.errors import EdgeattnError, UnsupportedError
from edgeattn.evaluation.accuracy import within
from edgeattn.evaluation.confidence import ALPHA, zero_loss_samples
from edgeattn.model import Artifact, EdgeModel
from edgeattn.pipeline.steps.candidates import (
    FLOATS,
    PAYS,
    Looks,
    Tried,
    Verified,
    add_scheme,
    best_float,
    open_artifact,
    settled,
    time_candidates,
    verify,
    why_not,
)
from edgeattn.pipeline.steps.exports import Workshop
from edgeattn.pipeline.steps.options import ConvertOptions, Effort
from edgeattn.pipeline.steps.preflight import engine
from edgeattn.pipeline.steps.recipes import Choices, build, scheme_plan, schemes
from edgeattn.progress import Progress
from edgeattn.quantize.recovery import RecoveryOptions, recover
from edgeattn.quantize.search import Found, Notebook, Trial, by_gain, most_trials, search
from edgeattn.quantize.sensitivity import SensitivityOptions, sensitivity
from edgeattn.results.gates import Gates
from edgeattn.runtimes import Session
from edgeattn.spec import to_json
from edgeattn.targets import Target

MIXED, RECOVERED = "+mixed", "+recovered"


@dataclass(frozen=True)
class Bench:
    """What trials are measured with, and against.

    Attributes:
        best: the float that ships if nothing quantized does, None if no float passes; ``session`` runs it.
        asked: as ``--precision``: "auto" needs a gain and confidence, a name needs its gates.
        alpha: of what is said of the metric of each trial, see :class:`~edgeattn.pipeline.steps.candidates.Looks`.
        accept_unproved: as for :func:`~edgeattn.pipeline.steps.candidates.choose`.
    """

    shop: Workshop
    target: Target
    backend: str
    scheme: str
    choices: Choices
    best: Verified | None
    session: Session | None
    gates: Gates
    asked: str
    threads: int
    alpha: float
    accept_unproved: bool = False


@dataclass(frozen=True)
class Outcome:
    """A candidate that came out, with its session, and in words how it was found."""

    name: str
    verified: Verified
    session: Session
    words: str


def timed(bench: Bench, verified: Verified, session: Session) -> Verified:
    """With its time, taken in turns with the best float and scaled to that one's."""
    if bench.backend in SUBSTITUTE or bench.best is None or bench.session is None:
        return verified
    times = time_candidates({"float": bench.session, "trial": session})
    scale = (bench.best.latency_ms or times["float"]) / times["float"]  # as if timed with the other candidates
    return replace(verified, latency_ms=times["trial"] * scale)


def gain(best: Verified | None, verified: Verified) -> float | None:
    """Speed over the best float; None where this host cannot tell, or no float passes."""
    if best is None or best.latency_ms is None or verified.latency_ms is None:
        return None
    return best.latency_ms / verified.latency_ms


def complaint(bench: Bench, verified: Verified) -> str:
    """Why a candidate does not ship; empty if it does."""
    failures = "; ".join(map(str, verified.failures))
    source, max_drop = bench.shop.base.score, bench.gates.max_drop
    return failures or why_not(verified, bench.best, source, max_drop, bench.asked, bench.accept_unproved)


def find_mixed(bench: Bench, effort: Effort, stack: ExitStack, progress: Progress) -> tuple[Outcome | None, Found]:
    """Search which layers to give back to float.

    Args:
        stack: keeps the session of what was found open.
    """
    shop, where = bench.shop, f"{bench.target.name}: {bench.scheme}"
    order = ranking(bench, where, progress)
    sessions: dict[int, tuple[Verified, Session]] = {}

    def attempt(paths: tuple[str, ...]) -> tuple[Verified, Session]:
        choices = replace(bench.choices, plan=bench.choices.plan.with_float(paths))
        label = f"{where}, {len(paths)} of {len(order)} layers float"
        progress.begin(label)
        artifact = build(bench.backend, shop, bench.scheme, bench.target, choices)
        artifact = keep_files(artifact, shop, f"{bench.backend}-{bench.scheme}-{len(paths)}")
        session = stack.enter_context(open_artifact(artifact, shop, bench.threads))
        verified = verify(shop, artifact, session, bench.gates, label, progress, bench.alpha)
        return timed(bench, verified, session), session

    def evaluate(paths: tuple[str, ...]) -> Trial:
        try:
            verified, session = attempt(paths)
        except EdgeattnError as error:
            return Trial(len(paths), None, None, None, False, str(error))
        sessions[len(paths)] = verified, session
        why = complaint(bench, verified)
        drop = verified.drop
        points, upper = (None, None) if drop is None else (drop.points, drop.upper)
        return Trial(len(paths), gain(bench.best, verified), points, upper, not why, why)

    notebook = Notebook(effort.notebook, _key(bench, order))
    found = search(order, evaluate, notebook, effort.search_seconds)
    if found.best is None:
        return None, found
    returned = found.best.returned
    if returned not in sessions:  # from the notebook of an earlier run
        sessions[returned] = attempt(tuple(order[:returned]))
    verified, session = sessions[returned]
    words = f"{returned} of {len(order)} layers back in float after {len(found.trials)} trials; {found.ended}"
    return Outcome(bench.scheme + MIXED, verified, session, words), found


def ranking(bench: Bench, where: str, progress: Progress) -> tuple[str, ...]:
    """The layers in the order in which they go back to float."""
    shop = bench.shop
    treatment = TREATMENT[bench.scheme]
    progress.begin(f"{where}: sensitivity of each layer")
    options = SensitivityOptions(treatment=treatment)
    report = sensitivity(shop.onnx, {g: tuple(shop.seen(g)) for g in shop.onnx}, options, None, progress.advance)
    kept = {row.path for row in report.layers if bench.choices.plan.of(row.path) == "float"}
    rows = [row for row in report.layers if row.path not in kept]
    noise = {row.path: 10.0 ** (-row.sqnr_db / 10.0) for row in rows}
    return by_gain(noise, {row.path: float(row.flops) for row in rows})


def keep_files(artifact: Artifact, shop: Workshop, name: str) -> Artifact:
    """Move an artifact out of the room that the next build of the scheme empties."""
    room = shop.room(name)
    rooms = {path.parent for path in artifact.models.values()}
    for folder in rooms:
        for file in folder.iterdir():
            file.rename(room / file.name)
    return replace(artifact, models={graph: room / path.name for graph, path in artifact.models.items()})


def recovery_file(notebook: Path, key: str) -> Path:
    """Where a training keeps its checkpoint: beside the search's notebook, one of another model or data apart."""
    return notebook.with_name(f"{notebook.name}.{key[:12]}.recovery")


def find_recovered(bench: Bench, effort: Effort, stack: ExitStack, progress: Progress) -> Outcome:
    """Train with fake quantization for a while and make the scheme's artifact of the result."""
    shop = bench.shop
    where = f"{bench.target.name}: {bench.scheme}"
    progress.begin(f"{where}: recovery by distillation", round(effort.recover_seconds))
    static = TREATMENT[bench.scheme] == "int8"
    plan = bench.choices.plan
    # Of a plan's int8 layers the dynamic scheme rounds activations as well; the schemes of weights alone do not.
    trained = plan if bench.scheme == "int8-dynamic" else scheme_plan(bench.scheme, plan)
    options = RecoveryOptions(
        plan=trained,
        seconds=effort.recover_seconds,
        activations="static" if static else "dynamic",
        checkpoint=None if effort.notebook is None else recovery_file(effort.notebook, _key(bench, ())),
    )
    spent = 0

    def on_step(share: float) -> None:
        nonlocal spent
        while spent < int(share * effort.recover_seconds):
            spent += 1
            progress.advance()

    recovered = recover(shop.model, shop.onnx, shop.base.calibration, options, on_step)
    room = shop.room(f"recovered-{bench.backend}-{bench.scheme}")
    workshop = Workshop(recovered.model, shop.base, room)
    label = f"{where}, recovered"
    progress.begin(label)
    artifact = build(bench.backend, workshop, bench.scheme, bench.target, Choices(plan, recovered.scales))
    artifact = replace(artifact, recipe=f"{artifact.recipe}; weights trained for it {recovered.seconds:.0f} s")
    session = stack.enter_context(open_artifact(artifact, shop, bench.threads))
    verified = timed(bench, verify(shop, artifact, session, bench.gates, label, progress, bench.alpha), session)
    words = f"distilled from the float source for {recovered.seconds:.0f} s, {recovered.steps} steps"
    if recovered.note:
        words += f"; {recovered.note}"
    return Outcome(bench.scheme + RECOVERED, verified, session, words)


def _key(bench: Bench, order: tuple[str, ...]) -> str:
    """Changes with everything that a trial depends on."""
    data, model = bench.shop.base.data, bench.shop.model
    tools: Mapping[str, str] = {
        name: importlib.metadata.version(name)
        for name in ("openvino", "ai-edge-litert", "onnxruntime")
        if importlib.util.find_spec(name.replace("-", "_")) is not None
    }
    parts = [
        edgeattn.__version__, tools, model.spec.name, model.source_sha256, bench.target.name, bench.backend,
        bench.scheme, to_json(bench.choices.plan), bench.asked, bench.gates.max_drop, bench.alpha,
        bench.accept_unproved, order,
        None if data is None else (data.origin, len(data.calibration), len(data.evaluation)),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


MENDED_GAIN = 1.1  # a candidate that loses too much is worth mending if it is so much faster than what ships


def forget_trials(model: EdgeModel, target: Target, options: ConvertOptions) -> None:
    """Remove what a search and a training kept for going on: their result is in place."""
    notebook = search_file(model, target, options)
    for file in (notebook, *notebook.parent.glob(f"{notebook.name}.*.recovery")):
        file.unlink(missing_ok=True)


def search_file(model: EdgeModel, target: Target, options: ConvertOptions) -> Path:
    """Where a search keeps its trials until the bundle is there."""
    return options.out / f".{model.spec.name}.{target.name}.search.json"


def try_schemes(shop: Workshop, target: Target, options: ConvertOptions, stack: ExitStack, progress: Progress) -> Tried:
    """Every candidate of a target, measured; where none of the quantized ones would ship, more is tried.

    Raises:
        UnsupportedError: if nothing could be built.
        EdgeattnError: what stopped the only scheme that was asked for.
    """
    backend = engine(target, options)
    asked = schemes(target, backend, options.precision)
    plain = sum(precision_of(scheme) not in FLOATS for scheme in asked)
    tried = Tried()
    looks = Looks(plain, later_looks(shop, tried, backend, options), ALPHA if shop.pruning is None else ALPHA / 2)
    tried.alpha = looks.first_alpha
    for scheme in asked:
        add_scheme(tried, shop, target, scheme, options, stack, progress, alone=len(asked) == 1)
    if not tried.verified:
        raise UnsupportedError(f"{target.name}: no precision could be built: {tried.refused[0].why}")
    progress.begin(f"{target.name}: timing")
    if backend not in SUBSTITUTE:
        times = time_candidates(tried.sessions)
        tried.verified = {s: replace(v, latency_ms=times[s]) for s, v in tried.verified.items()}
    tried.verified = settled(tried.verified, shop.base.score, looks, options.gates.max_drop)
    tried.alpha = replace(looks, later=later_looks(shop, tried, backend, options)).later_alpha
    untimed = backend in SUBSTITUTE and options.precision == "auto"  # nothing quantized would ship: its gain is unknown
    if shop.base.score is not None and not untimed:
        try_harder(tried, shop, target, options, stack, progress)
    return tried


def later_looks(shop: Workshop, tried: Tried, backend: str, options: ConvertOptions) -> int:
    """How many quantized candidates :func:`try_harder` may look at, at most; 0 only where there will be none.

    How many trials a search may take depends on the layers, which the candidates that were built tell.
    """
    if shop.base.score is None or (backend in SUBSTITUTE and options.precision == "auto"):
        return 0
    effort = options.effort
    fallback = len(FALLBACK.get(backend, ())) if options.precision == "auto" else 0
    layers = max((len(v.artifact.treatments) for v in tried.verified.values()), default=0)
    return fallback + (most_trials(layers) if effort.search_seconds > 0 else 0) + (effort.recover_seconds > 0)


def try_harder(
    tried: Tried, shop: Workshop, target: Target, options: ConvertOptions, stack: ExitStack, progress: Progress
) -> None:
    """The slower recipes, the search over layers and recovery, while a candidate that loses too much is the fastest."""
    backend = engine(target, options)
    best = best_float(tried.verified)
    session = next((tried.sessions[s] for s, v in tried.verified.items() if v is best), None)
    effort = replace(options.effort, notebook=search_file(shop.model, target, options))

    def bench(scheme: str) -> Bench:
        return Bench(
            shop, target, backend, scheme, Choices(options.plan), best, session, options.gates, options.precision,
            options.measure.threads, tried.alpha, options.accept_unproved,
        )  # fmt: skip

    def worth_mending() -> str | None:
        """The fastest quantized candidate that loses too much, if it would be clearly faster than what ships now."""
        quantized = {s: v for s, v in tried.verified.items() if v.quantized}
        shipping = [v.latency_ms or 0.0 for s, v in quantized.items() if not complaint(bench(s), v)]
        limit = min(shipping, default=math.inf) / MENDED_GAIN
        lossy = {
            s: v
            for s, v in quantized.items()
            if loses_metric(v, options) and not is_slow(v, best) and (v.latency_ms or 0.0) < limit
        }
        return min(lossy, key=lambda s: lossy[s].latency_ms or 0.0, default=None)

    if worth_mending() is None:
        return
    if options.precision == "auto" and not options.accept_unproved:
        assert shop.base.score is not None, "candidates lose a metric"
        samples = shop.base.score.samples + len(shop.base.score.unlabelled)
        needed = zero_loss_samples(options.gates.max_drop / 100.0, tried.alpha)
        if samples < needed:  # whatever is mended could not be shown to keep the metric, either
            tried.notes.append(
                f"nothing was tried to mend int8: {samples} samples cannot show that it loses less than "
                f"{options.gates.max_drop:g} points, even if it changed none ({needed} would; --accept-unproved tries)"
            )
            return
    if options.precision == "auto":
        for scheme in FALLBACK.get(backend, ()):
            add_scheme(tried, shop, target, scheme, options, stack, progress)
            if scheme in tried.verified:
                tried.verified[scheme] = timed(bench(scheme), tried.verified[scheme], tried.sessions[scheme])
    lossy = worth_mending()
    if lossy is not None and effort.search_seconds > 0:
        outcome, found = find_mixed(bench(lossy), effort, stack, progress)
        if outcome is not None:
            tried.verified[outcome.name], tried.sessions[outcome.name] = outcome.verified, outcome.session
            tried.notes.append(f"{outcome.name}: {outcome.words}")
        else:
            tried.notes.append(f"{lossy}: {len(found.trials)} mixed plans tried, none ships; {found.ended}")
    lossy = worth_mending()
    if lossy is not None and effort.recover_seconds > 0:
        outcome = find_recovered(bench(lossy.partition("+")[0]), effort, stack, progress)
        tried.verified[outcome.name], tried.sessions[outcome.name] = outcome.verified, outcome.session
        tried.notes.append(f"{outcome.name}: {outcome.words}")


def loses_metric(verified: Verified, options: ConvertOptions) -> bool:
    """Whether the metric, and nothing else, is what a candidate fails."""
    if any(failure.gate != "accuracy" for failure in verified.failures):
        return False
    unsure = verified.drop is not None and not within(verified.drop, options.gates.max_drop)
    return bool(verified.failures) or (options.precision == "auto" and unsure and not options.accept_unproved)


def is_slow(verified: Verified, best: Verified | None) -> bool:
    """Whether it would not pay even if it kept the metric."""
    found = gain(best, verified)
    return found is not None and found < PAYS
