"""Where no plain quantized candidate keeps the metric: some layers back to float, else a short training."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import edgeattn
from edgeattn.baseline import Progress
from edgeattn.candidates import SUBSTITUTE, Verified, time_candidates, verify, why_not
from edgeattn.errors import EdgeattnError
from edgeattn.gates import Gates
from edgeattn.model import Artifact
from edgeattn.quantize.recovery import RecoveryOptions, recover
from edgeattn.quantize.search import Found, Notebook, Trial, by_gain, search
from edgeattn.quantize.sensitivity import SensitivityOptions, sensitivity
from edgeattn.runtimes import Session, open_session
from edgeattn.schemes import TREATMENT, Choices, Workshop, build, scheme_plan
from edgeattn.spec import to_json
from edgeattn.targets import Target

MIXED, RECOVERED = "+mixed", "+recovered"
SECONDS = 120.0


@dataclass(frozen=True)
class Effort:
    """How long to look for what plain recipes do not give.

    Attributes:
        search_seconds: for trials of mixed plans.
        recover_seconds: of training with fake quantization; 0 for none.
        notebook: where the search keeps its trials; None for nowhere.
    """

    search_seconds: float = SECONDS
    recover_seconds: float = 0.0
    notebook: Path | None = None


@dataclass(frozen=True)
class Bench:
    """What trials are measured with, and against.

    Attributes:
        best: the float that ships if nothing quantized does, None if no float passes; ``session`` runs it.
        asked: as ``--precision``: "auto" needs a gain and confidence, a name needs its gates.
        alpha: of what is said of the metric of each trial, see :class:`~edgeattn.candidates.Looks`.
        accept_unproved: as for :func:`~edgeattn.candidates.choose`.
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


def open_artifact(artifact: Artifact, shop: Workshop, threads: int) -> Session:
    """A session on the engine, or on its substitute on this host."""
    backend = SUBSTITUTE.get(artifact.backend, artifact.backend)
    return open_session(backend, artifact.models, shop.model.spec, threads, artifact.build)


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
