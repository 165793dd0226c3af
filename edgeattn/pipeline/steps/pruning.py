"""The prune step of convert: an original model and a request become a pruned model, for one target.

In order: importance, measured once for all targets; the cut, as it was asked or by a knapsack over the target's latency
table; removal, checked against masking; least squares; distillation. Then both models are timed in turns on the
target's engine, and what was promised stands in the report beside what was measured.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.metadata
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeattn.bundle import writing
from edgeattn.engines import SUBSTITUTE
from edgeattn.errors import DataError, InputError, UnsupportedError
from edgeattn.evaluation.accuracy import Drop, Score, paired_drop
from edgeattn.evaluation.confidence import ALPHA
from edgeattn.evaluation.data import spread
from edgeattn.guards.scratch import scratch_room
from edgeattn.model import Arrays, EdgeModel
from edgeattn.pipeline.steps.baseline import PRUNED, Baseline, recorded, source_score
from edgeattn.pipeline.steps.candidates import CUT_ALPHA, CUT_LOOKS, PAYS, open_artifact, time_candidates
from edgeattn.pipeline.steps.exports import Workshop
from edgeattn.pipeline.steps.options import ConvertOptions
from edgeattn.pipeline.steps.recipes import build
from edgeattn.profiling.measure import device_name
from edgeattn.progress import Progress, Quiet
from edgeattn.pruning.anatomy import Unit, layer_of
from edgeattn.pruning.apply import Subject, prune, subject
from edgeattn.pruning.cut import Cut, check_cut, uniform_cut, without_dropped
from edgeattn.pruning.forms import Guide, form, has_forms
from edgeattn.pruning.grouped import grouping
from edgeattn.pruning.importance import Hook, Importance, ImportanceOptions, importance, leave_out, magnitude
from edgeattn.pruning.latency import (
    LatencyTable,
    MeasureOptions,
    Timing,
    cache_directory,
    estimate_table,
    measure_table,
    timings,
)
from edgeattn.pruning.linear import dense, linear_at
from edgeattn.pruning.lowrank import rank_for
from edgeattn.pruning.moments import second_moments
from edgeattn.pruning.reconstruct import ReconstructOptions, reconstruct
from edgeattn.pruning.recovery import RecoveryOptions, recover
from edgeattn.pruning.request import Request, request_text
from edgeattn.pruning.saved import apply_saved, read_saved
from edgeattn.pruning.select import Selection, SelectOptions, select
from edgeattn.pruning.sparsity import GROUP
from edgeattn.results.gates import Failure
from edgeattn.results.report import Pruning
from edgeattn.results.verdicts import Judgement, failed
from edgeattn.runtimes import Session
from edgeattn.spec import to_json
from edgeattn.targets import Target, head_dim_note, supports_2_4
from edgeattn.targets.host import HOST

REACHED = 0.97  # of the speed that was asked for: timings of one run repeat within 3 %
WRONG = 0.15  # a table that is so far off for the first cut is measured anew
CORRECTIONS = 3  # of the limit, where a cut is slower than its table says
ROUNDS, TURNS = 5, 3  # in which the variants of a table are timed, and turns in each
TABLE_MS = 40_000.0  # of timing, about, for a table
PARTS = 100  # of a phase that tells shares
MOMENT_SAMPLES = 64  # that inputs of layers of low rank are looked at on
METRIC_SAMPLES = 200  # that the metric is looked at on while recovery runs
SPEEDUPS = (1.1, 1.25, 1.4, 1.6, 1.8, 2.1, 2.5, 3.0, 4.0)  # among which the largest that keeps the metric is looked for
SUMMARY = ("units", "layers", "cut", "order", "importance", "reconstruction", "recovery")
"""Facts that stay true of a model that is read again."""
ENGINES = {"openvino": "openvino", "litert": "ai-edge-litert", "onnxruntime": "onnxruntime"}
"""Engine -> the package whose version its times belong to."""


@dataclass(frozen=True)
class Compressed:
    """A pruned model and how it came about.

    Attributes:
        model: the original itself where pruning does not pay.
        base: records of the pruned model, scores of the original: what its artifacts are compared with.
        cut: relative to the original; empty where it was read from a directory.
        pruning: for the report.
    """

    model: EdgeModel
    base: Baseline
    cut: Cut
    pruning: Pruning


@dataclass(frozen=True)
class Planned:
    """A cut, and what the latency table says of it.

    Attributes:
        predicted_ms: of the pruned float model; None where no table was asked.
        full_ms: of the whole one, in the same table.
    """

    cut: Cut
    predicted_ms: float | None = None
    full_ms: float | None = None
    kind: str | None = None
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Made:
    """A cut carried out.

    Attributes:
        score: of the float32 modules, None without a metric.
        facts: for the report.
    """

    model: EdgeModel
    score: Score | None
    facts: Mapping[str, Any]


class Compressor:
    """The prune step for all targets of a run: what does not depend on the target is done once.

    Args:
        shop: the original with its baseline.
        request: what to remove, or the budget.
        threads: of the engine that is timed.
        checkpoint: what distillation keeps its state beside, a file for each cut; None keeps none.
        hook: a loss of the user's, for importance and distillation.
        accept_unproved: a cut keeps the metric if it does on the samples, be they too few to show it.

    Raises:
        InputError: for recovery without data, or a directory that holds no pruned model of this one.
        UnsupportedError: if nothing can be cut in the model.
    """

    def __init__(
        self,
        shop: Workshop,
        request: Request,
        threads: int,
        checkpoint: Path | None = None,
        hook: Hook | None = None,
        accept_unproved: bool = False,
    ) -> None:
        if request.recover_seconds and shop.base.data is None:
            raise InputError(
                "recovery trains on --data, which is not given: give inputs like those of use; labels are not needed"
            )
        self.request = request
        self.threads = threads
        self.checkpoint = checkpoint
        self.hook = hook
        self.accept_unproved = accept_unproved
        self.source = shop.model
        self.given = subject(shop.model)
        # Where a block gave way to one that can be cut, that copy is the original from here on.
        own = self.given.model is shop.model
        self.shop = shop if own else Workshop(self.given.model, shop.base, shop.room("prunable"))
        self.measured: Importance | None = None
        self._made: dict[str, Made] = {}

    def for_target(self, target: Target, backend: str, progress: Progress) -> Compressed:
        """The pruned model of a target.

        Raises:
            EdgeattnError: for a request that cannot be followed, or an engine that does not take the model.
        """
        began = time.monotonic()
        if self.request.saved is not None:
            planned, made = Planned(Cut()), self.saved(self.request.saved)
        else:
            planned = self.plan(target, backend, progress)
            made = self.carried_out(planned.cut, progress)
        measured = (
            {}
            if backend in SUBSTITUTE
            else self.times(target, backend, progress)({"unpruned": self.given.model, "pruned": made.model})
        )
        facts = {
            "asked": request_text(self.request),
            **({} if self.request.saved is not None else summary(self.given, planned.cut)),
            **made.facts,
            "parameters": {"original": _parameters(self.given.model), "pruned": _parameters(made.model)},
            **promise(planned, measured),
            "seconds": round(time.monotonic() - began, 1),
        }
        notes = (*planned.notes, *self.head_notes(target))
        gain = facts["speedup"]
        if gain is not None and gain < PAYS and self.request.budget is None:
            why = f"{target.name}: pruned it is {gain:.2f}x as fast, less than the {PAYS}x that it must pay: not pruned"
            pruning = Pruning({**facts, "kept": False}, notes=(*notes, why))  # amounts have no budget to fail
            return Compressed(self.shop.model, self.shop.base, Cut(), pruning)
        whole = self.shop.base
        base = replace(recorded(made.model, whole.data, progress), score=whole.score, reference=PRUNED)
        rows = [_unreachable_there(target, one) for one in planned.failures] or self.budget_judged(facts, target)
        gates = tuple(row for row in rows if row.verdict != "failed")
        return Compressed(made.model, base, planned.cut, Pruning({**facts, "kept": True}, failed(rows), notes, gates))

    # --- the plan -----------------------------------------------------------------------------------------------------

    def plan(self, target: Target, backend: str, progress: Progress) -> Planned:
        """The cut that the request asks for, on a target."""
        request = self.request
        if request.budget is None:
            return Planned(self.with_forms(self.shares(target, progress), target))
        found = self.importance(progress)
        if found is None:
            raise DataError(
                f"--prune {request_text(request)} measures what can be spared on inputs like those of use: give --data "
                "(npz, labelled texts, recordings or file.py:function), or shares to remove such as heads=0.25"
            )
        table = self.table(target, backend, progress)
        if request.max_drop is not None:
            return self.most_within(request.max_drop, table, target, progress)
        chosen = self.selected(table, request.limit_ms(table.full_ms), target)
        if table.kind != "measured":
            failures = () if chosen.reached else (unreachable(request, chosen, table),)
            return self.planned(chosen, table, target, failures)
        took = self.took([chosen], table, target, backend, progress)
        if abs(took[0] / chosen.predicted_ms - 1) > WRONG:  # the table was measured in a busy moment
            table = self.table(target, backend, progress, fresh=True)
            chosen = self.selected(table, request.limit_ms(table.full_ms), target)
            took = self.took([chosen], table, target, backend, progress)
        if not chosen.reached:
            return self.planned(chosen, table, target, (unreachable(request, chosen, table),))
        chosen = self.corrected(chosen, took, table, request.limit_ms(table.full_ms), target, backend, progress)
        return self.planned(chosen, table, target)

    def took(
        self, tried: Sequence[Selection], table: LatencyTable, target: Target, backend: str, progress: Progress
    ) -> list[float]:
        """Milliseconds of selections, timed in one run with the whole model and told in those of the table."""
        models = {str(number): prune(self.given, one.cut) for number, one in enumerate(tried)}
        timed = self.times(target, backend, progress)({"unpruned": self.given.model, **models})
        return [table.full_ms * timed[name].ms / timed["unpruned"].ms for name in models]

    def selected(self, table: LatencyTable, limit_ms: float, target: Target) -> Selection:
        """The least foreseen loss within a latency."""
        assert self.measured is not None, "a budget needs it"
        options = SelectOptions(multiple=target.kernels.channels)
        return select(self.given.anatomy, self.measured, table, limit_ms, options)

    def planned(
        self, chosen: Selection, table: LatencyTable, target: Target, failures: tuple[Failure, ...] = ()
    ) -> Planned:
        """A selection with the forms that were asked for beside it."""
        cut = self.with_forms(chosen.cut, target)
        notes = table.notes
        if cut != chosen.cut:
            notes = (*notes, f"{target.name}: the prediction counts heads, neurons and layers alone")
        return Planned(cut, chosen.predicted_ms, table.full_ms, table.kind, failures, notes)

    def corrected(
        self,
        chosen: Selection,
        took: Sequence[float],
        table: LatencyTable,
        limit: float,
        target: Target,
        backend: str,
        progress: Progress,
    ) -> Selection:
        """The selection, or one with a stricter limit where the engine takes longer than the table says.

        All that were tried are timed again with the next one: a moment in which the machine was busy does not decide.

        Args:
            took: what the selection took, see :meth:`took`.
        """
        tried, strict = [chosen], limit
        while not any(ms * REACHED <= limit for ms in took) and len(tried) <= CORRECTIONS:
            strict *= limit / took[-1]
            tighter = self.selected(table, strict, target)
            if not tighter.reached:
                break
            tried.append(tighter)
            took = self.took(tried, table, target, backend, progress)
        reaching = [one for one, ms in zip(tried, took, strict=True) if ms * REACHED <= limit]
        return reaching[0] if reaching else tried[-1]  # of those that reach it, the one that removes least

    def most_within(self, max_drop: float, table: LatencyTable, target: Target, progress: Progress) -> Planned:
        """The fastest cut of a few whose float model keeps the metric, found by bisection.

        It keeps it with 95 % confidence together with what is said of its quantized candidates: half of the 5 % is
        shared by the cuts that a bisection looks at (:class:`~edgeattn.pipeline.steps.candidates.Looks` has the rest).

        Raises:
            DataError: without a metric.
        """
        if self.shop.base.score is None:
            raise DataError("--prune max-drop=... looks at the metric, and the data has no targets: give labelled data")
        selections = [self.selected(table, table.full_ms / speedup, target) for speedup in SPEEDUPS]
        least: Drop | None = None  # what the smallest cut that was tried, and is too much, loses
        low, high = -1, next((i for i, one in enumerate(selections) if not one.reached), len(selections))
        while high - low > 1:
            middle = (low + high) // 2
            made = self.carried_out(self.with_forms(selections[middle].cut, target), progress)
            assert made.score is not None, "the original has one"
            drop = paired_drop(self.shop.base.score, made.score, self.alpha, max_drop)
            lost = drop.points if self.accept_unproved else drop.upper
            if lost <= max_drop + 1e-9:
                low = middle
            else:
                high, least = middle, drop
        if low < 0:
            note = f"{target.name}: {unkept(least, self.shop.base.score, max_drop)}: nothing is removed"
            return Planned(Cut(), table.full_ms, table.full_ms, table.kind, notes=(note,))
        return self.planned(selections[low], table, target)

    def shares(self, target: Target, progress: Progress) -> Cut:
        """The same share of every unit, the least important groups; and the layers whose absence costs least."""
        request = self.request
        found = self.importance(progress) if request.heads or request.neurons else None
        scores = magnitude(self.given) if found is None else found.scores
        cut = uniform_cut(
            self.given.anatomy, scores, request.heads or 0.0, request.neurons or 0.0, target.kernels.channels
        )
        if request.layers is None:
            return cut
        samples = self.samples()
        if not samples:
            raise DataError("layers are left out by what their absence costs on inputs like those of use: give --data")
        progress.begin("pruning: what the absence of layers costs", PARTS)
        gone = leave_out(self.given, samples, request.layers, self.importance_options(), _parts(progress))
        if sum(map(len, gone.values())) < request.layers:
            raise InputError(
                f"layers={request.layers}: only {sum(map(len, gone.values()))} layers of {self.given.model.spec.name} "
                "can be left out"
            )
        stacks = self.given.anatomy.stacks
        return replace(
            cut,
            layers={
                stack.path: tuple(n for n in range(stack.layers) if n not in gone[stack.path])
                for stack in stacks
                if stack.path in gone
            },
        )

    def with_forms(self, cut: Cut, target: Target) -> Cut:
        """A cut of groups and layers with the other forms that were asked for.

        Raises:
            InputError: if they do not fit the model.
            UnsupportedError: for 2:4 on a target without kernels for it.
        """
        request = self.request
        units = [unit for unit in self.given.anatomy.units if self._stays(unit, cut)]
        if request.kv_heads is not None:
            wanted = request.kv_heads
            heads = {u.key: len(cut.groups.get(u.key, range(u.groups))) for u in units if u.kind == "attention"}
            cut = replace(cut, merged={key: wanted for key, there in heads.items() if there > wanted})
        linears = tuple(dict.fromkeys(path for unit in units for path in (*unit.entries, unit.exit)))
        if request.rank is not None:
            network = self.given.network
            ranks = {path: rank_for(linear_at(network, path), request.rank) for path in linears}
            cut = replace(cut, ranks={path: rank for path, rank in ranks.items() if rank})
        if request.sparsity is not None:
            capability = target.compute_capability
            if capability is None or not supports_2_4(capability):
                raise UnsupportedError(
                    f"{target.name} has no kernels for 2:4 sparsity, which NVIDIA GPUs from compute capability 8.0 on "
                    "have; leave sparsity out for it"
                )
            cut = replace(
                cut, sparse=tuple(p for p in linears if dense(linear_at(self.given.network, p)).shape[1] % GROUP == 0)
            )
        cut = replace(cut, left=request.left)
        check_cut(self.given.anatomy, cut)
        return cut

    def _stays(self, unit: Unit, cut: Cut) -> bool:
        place = layer_of(self.given.anatomy, unit)
        return place is None or place[1] in cut.layers.get(place[0], (place[1],))

    # --- the measurements ---------------------------------------------------------------------------------------------

    def importance(self, progress: Progress) -> Importance | None:
        """Measured when it is first asked for; None without data."""
        if self.measured is None and self.samples():
            progress.begin("pruning: importance of heads, neurons and layers", PARTS)
            self.measured = importance(self.given, self.samples(), self.importance_options(), _parts(progress))
        return self.measured

    def importance_options(self) -> ImportanceOptions:
        """As the request asks."""
        return ImportanceOptions(samples=self.request.samples, loss=self.hook)

    def samples(self) -> Mapping[str, tuple[Arrays, ...]]:
        """What importance is measured on, with targets for a loss of the user's; empty without data."""
        samples = {graph: own for graph, own in self.shop.base.calibration.items() if own}
        data = self.shop.base.data
        return samples if self.hook is None or data is None else data.with_targets(self.given.model.spec, samples)

    def table(self, target: Target, backend: str, progress: Progress, fresh: bool = False) -> LatencyTable:
        """Of this host's engine, or estimated where the engine is on the device alone."""
        progress.begin(f"{target.name}: latency table with {backend}")
        if backend in SUBSTITUTE:
            return estimate_table(self.given, target, threads=self.threads)
        version = importlib.metadata.version(ENGINES[backend])
        options = MeasureOptions(f"{backend} {version}", "fp32", device_name(), self.threads, target.kernels.channels)
        return measure_table(
            self.given, self.times(target, backend, progress), options, cache_directory(), progress.begin, fresh
        )

    def times(
        self, target: Target, backend: str, progress: Progress
    ) -> Callable[[Mapping[str, EdgeModel]], Mapping[str, Timing]]:
        """What builds models for an engine and times them in turns in one run."""

        def timed(models: Mapping[str, EdgeModel]) -> Mapping[str, Timing]:
            progress.begin(f"{target.name}: building {len(models)} models to time", len(models))
            with ExitStack() as stack, scratch_room() as scratch:
                sessions: dict[str, Session] = {}
                for number, name in enumerate(models):
                    room = scratch / str(number)
                    room.mkdir()
                    shop = Workshop(models[name], Baseline({}, {}, None, None), room)
                    artifact = build(backend, shop, "fp32", target)
                    sessions[name] = stack.enter_context(open_artifact(artifact, shop, self.threads))
                    progress.advance()
                progress.begin(f"{target.name}: timing")
                once = sum(time_candidates(sessions, 1, 2).values())
                runs = max(1, min(25, int(TABLE_MS / (ROUNDS * TURNS * once))))
                return timings([time_candidates(sessions, TURNS, runs) for _ in range(ROUNDS)])

        return timed

    # --- the work -----------------------------------------------------------------------------------------------------

    def carried_out(self, cut: Cut, progress: Progress) -> Made:
        """The cut, least squares and distillation; once for each cut."""
        key = json.dumps(cut.to_json(), sort_keys=True)
        if key not in self._made:
            self._made[key] = self._carried_out(cut, progress)
        return self._made[key]

    def _carried_out(self, cut: Cut, progress: Progress) -> Made:
        base = self.shop.base
        progress.begin("pruning: removing")
        plain = replace(cut, merged={}, ranks={}, sparse=(), left=None)
        model = prune(self.given, plain)
        facts: dict[str, Any] = {"order": ["prune"], "importance": None, "reconstruction": None, "recovery": None}
        if self.measured is not None:
            facts["importance"] = {"method": self.measured.method, "samples": self.measured.samples}
        elif cut.groups:
            facts["importance"] = {"method": "magnitude", "samples": 0}
        if any(base.calibration.values()) and without_dropped(self.given.anatomy, cut).groups:
            progress.begin("pruning: least squares", PARTS)
            rebuilt = reconstruct(self.given, plain, model, base.calibration, ReconstructOptions(), _parts(progress))
            facts["order"].append("reconstruct")
            facts["reconstruction"] = {
                "units": len(rebuilt),
                "error_before": _mean([one.before for one in rebuilt]),
                "error_after": _mean([one.after for one in rebuilt]),
            }
        if has_forms(cut):
            progress.begin("pruning: heads merged, ranks, 2:4, left context")
            model = form(model, self.given.anatomy, cut, self.guide(model, plain, cut))
            facts["order"].append("forms")
        seconds = self.recover_seconds
        if seconds and base.data is not None:
            model, facts["recovery"] = self.recovered(cut, model, seconds, progress)
            facts["order"].append("recover")
        score = None if base.data is None else source_score(model, base.data, "pruned", progress)
        facts["order"].append("quantize")
        facts["score"] = score_facts(base.score, score, self.alpha)
        return Made(replace(model, source_size_bytes=self.given.model.source_size_bytes), score, facts)

    @property
    def alpha(self) -> float:
        """Of what is said of the metric of a cut: several are looked at where the metric decides."""
        return ALPHA if self.request.max_drop is None else CUT_ALPHA

    @property
    def recover_seconds(self) -> float:
        """Of one distillation: the trials among which a cut is looked for by its metric share what was given."""
        trials = 1 if self.request.max_drop is None else CUT_LOOKS
        return self.request.recover_seconds / trials

    def guide(self, model: EdgeModel, plain: Cut, cut: Cut) -> Guide:
        """What makes the forms lose less: inputs of the layers that get a low rank, similar heads side by side."""
        anatomy, data = self.given.anatomy, self.shop.base.data
        orders = {}
        for key, heads in cut.merged.items():
            unit = anatomy.unit(key)
            if self._stays(unit, cut):
                orders[key] = grouping(self.given.network, unit, heads, cut.groups.get(key))
        if not cut.ranks or data is None:
            return Guide(orders=orders)
        # With the states of this model, which has fewer heads than the one that was recorded.
        samples = recorded(model, data.limited(1), Quiet()).calibration
        few = {graph: spread(own, MOMENT_SAMPLES) for graph, own in samples.items()}
        return Guide(second_moments(model, plain, cut.ranks, few), orders)

    def state_file(self, cut: Cut) -> Path | None:
        """Where the distillation of a cut keeps its state: targets may ask for different cuts."""
        if self.checkpoint is None:
            return None
        digest = hashlib.sha256(json.dumps(cut.to_json(), sort_keys=True).encode()).hexdigest()
        return self.checkpoint.with_name(f"{self.checkpoint.name}.{digest[:12]}")

    def forget(self) -> None:
        """Remove what distillation kept for going on: its result is in place."""
        if self.checkpoint is not None:
            for file in self.checkpoint.parent.glob(f"{glob.escape(self.checkpoint.name)}.*"):
                file.unlink(missing_ok=True)

    def recovered(
        self, cut: Cut, model: EdgeModel, seconds: float, progress: Progress
    ) -> tuple[EdgeModel, dict[str, Any]]:
        """Distillation, its progress in seconds."""
        data = self.shop.base.data
        assert data is not None, "checked when the request was taken"
        progress.begin("pruning: recovery by distillation", round(seconds))
        spent = 0

        def on_step(share: float) -> None:
            nonlocal spent
            while spent < int(share * seconds):
                spent += 1
                progress.advance()

        def metric(student: EdgeModel) -> float:
            score = source_score(student, data.limited(METRIC_SAMPLES), "recovery", Quiet())
            value = math.nan if score is None else 100 * score.value
            progress.begin(f"pruning: recovery by distillation, {value:.2f} % so far", round(seconds))
            for _ in range(spent):
                progress.advance()
            return value

        state = self.state_file(cut)
        if state is not None:
            with writing(state):
                state.parent.mkdir(parents=True, exist_ok=True)
        options = RecoveryOptions(seconds=seconds, checkpoint=state)
        runs = data.training_runs(self.given.model.spec)
        watched = metric if self.shop.base.score is not None else None
        found = recover(self.given, cut, model, runs, options, on_step, watched, self.hook)
        return found.model, {
            "seconds": round(found.seconds, 1), "steps": len(found.losses), "loss_before": found.before,
            "loss_after": found.after, "history": to_json(found.history), "note": found.note,
        }  # fmt: skip

    def saved(self, directory: Path) -> Made:
        """A model whose cut and weights are read; what was told of it when it was written is kept."""
        model = apply_saved(self.shop.model, directory)
        data, original = self.shop.base.data, self.shop.base.score
        score = None if data is None else source_score(model, data, "pruned", Quiet())
        facts = {key: value for key, value in read_saved(directory).facts.items() if key in SUMMARY}
        return Made(model, score, {**facts, "score": score_facts(original, score, ALPHA)})

    def budget_judged(self, facts: Mapping[str, Any], target: Target) -> list[Judgement]:
        """What was asked for beside what was measured; of a target that is not this machine nothing is judged by it."""
        rows = []
        asked, got = self.request.speedup, facts["speedup"]
        if asked is not None:
            found = None if got is None else f"{got:.2f}x"
            kept = got is not None and got >= REACHED * asked
            rows.append(("speedup", f"{asked:g}x the unpruned float model", found, kept))
        deadline, took = self.request.deadline_ms, facts["pruned_ms"]
        if deadline is not None:
            found = None if took is None else f"{took:.2f} ms"
            kept = took is not None and took * REACHED <= deadline
            rows.append(("deadline", f"{deadline:g} ms by pruning", found, kept))
        return [_budget(target, *row) for row in rows]

    def head_notes(self, target: Target) -> tuple[str, ...]:
        """Head dimensions that the target's kernels do not like, each once."""
        sizes = dict.fromkeys(unit.head_dim for unit in self.given.anatomy.units if unit.kind == "attention")
        return tuple(note for size in sizes if (note := head_dim_note(target, size)))


def _unreachable_there(target: Target, failure: Failure) -> Judgement:
    """A budget that the latency table cannot reach: a plan that fails, unless it is milliseconds of another machine."""
    if target.name == HOST or failure.gate != "deadline":
        return Judgement(failure.gate, "failed", failure.wanted, failure.got, asked="flag")
    return _budget(target, failure.gate, failure.wanted, failure.got, False)


def _budget(target: Target, gate: str, wanted: str, got: str | None, kept: bool) -> Judgement:
    if target.name == HOST and got is not None:
        return Judgement(gate, "passed" if kept else "failed", wanted, got, asked="flag")
    known = "" if got is None else f"{got} on this machine"
    why = f"this machine is not {target.name}: measure the bundle there"
    return Judgement(gate, "not measured", f"{wanted} on {target.name}", known, why, "flag")


def unkept(drop: Drop | None, source: Score, max_drop: float) -> str:
    """Why the smallest cut is too much; the drop is None where none was tried."""
    if drop is None:
        return f"not even {SPEEDUPS[0]}x can be reached"
    if drop.points > max_drop:
        return f"already {SPEEDUPS[0]}x loses more than {max_drop:g} points"
    more = "" if drop.needed is None else f"; {drop.needed} samples like these would be needed"
    return (
        f"what {SPEEDUPS[0]}x loses is not surely within {max_drop:g} points: {drop.points:+.2f}, up to "
        f"{drop.upper:.2f} with 95 % confidence on {source.samples} samples{more}"
    )


def score_facts(original: Score | None, pruned: Score | None, alpha: float) -> dict[str, Any] | None:
    """The metric before and after, in percent; None without one."""
    if original is None or pruned is None:
        return None
    drop = paired_drop(original, pruned, alpha)
    return {
        "metric": pruned.metric, "original": 100 * original.value, "pruned": 100 * pruned.value, "drop": drop.points,
        "drop_upper": drop.upper,
    }  # fmt: skip


def promise(planned: Planned, measured: Mapping[str, Timing]) -> dict[str, Any]:
    """What the table foresaw beside what was measured, each against the unpruned model in the same run."""
    predicted = None
    if planned.predicted_ms is not None and planned.full_ms is not None:
        predicted = planned.full_ms / planned.predicted_ms if planned.predicted_ms else math.inf
    facts: dict[str, Any] = {
        "kind": planned.kind, "predicted_ms": planned.predicted_ms, "predicted_speedup": predicted,
        "unpruned_ms": None, "pruned_ms": None, "speedup": None, "difference_percent": None,
    }  # fmt: skip
    if measured:
        whole, cut = measured["unpruned"].ms, measured["pruned"].ms
        facts |= {"unpruned_ms": whole, "pruned_ms": cut, "speedup": whole / cut}
        if predicted is not None:
            facts["difference_percent"] = 100 * ((whole / predicted) / cut - 1)
    return facts


def unreachable(request: Request, chosen: Selection, table: LatencyTable) -> Failure:
    """The nearest that can be reached, and what it is foreseen to cost."""
    nearest = (
        f"{table.full_ms / chosen.predicted_ms:.2f}x at most ({chosen.predicted_ms:.2f} ms {table.kind}), where the "
        f"loss is foreseen to rise by {chosen.predicted_loss:.3g}"
    )
    if request.deadline_ms is not None:
        return Failure("deadline", f"{request.deadline_ms:g} ms by pruning", nearest)
    return Failure("speedup", f"{request.speedup:g}x by pruning", nearest)


def summary(given: Subject, cut: Cut) -> dict[str, Any]:
    """What a cut leaves, in numbers: of every unit and stack, and the whole plan."""
    rest = without_dropped(given.anatomy, cut)
    rows = []
    for unit in given.anatomy.units:
        place = layer_of(given.anatomy, unit)
        gone = place is not None and place[1] not in cut.layers.get(place[0], (place[1],))
        kept = 0 if gone else len(rest.groups.get(unit.key, range(unit.groups)))
        rows.append({"unit": unit.path, "kind": unit.kind, "groups": unit.groups, "kept": kept})
    return {
        "units": rows,
        "layers": {
            stack.path: {"layers": stack.layers, "kept": list(cut.layers.get(stack.path, range(stack.layers)))}
            for stack in given.anatomy.stacks
        },
        "cut": cut.to_json(),
    }


def _parameters(model: EdgeModel) -> int:
    assert model.network is not None, "only such are pruned"
    return sum(parameter.numel() for parameter in model.network.parameters())


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _parts(progress: Progress) -> Callable[[float], None]:
    """Shares from 0 to 1 as units of a phase of :data:`PARTS`."""
    done = 0

    def on_step(share: float) -> None:
        nonlocal done
        while done < int(share * PARTS):
            done += 1
            progress.advance()

    return on_step


def prune_file(workshop: Workshop, options: ConvertOptions) -> Path:
    """What recovery keeps its checkpoints beside until everything is made."""
    return options.out / f".{workshop.model.spec.name}.prune.recovery"
