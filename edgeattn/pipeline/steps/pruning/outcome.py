"""What pruning comes to on a target: the pruned model and its report, or the original where that does not pay."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgeattn.engines import ENGINES
from edgeattn.evaluation.confidence import ALPHA
from edgeattn.model import EdgeModel
from edgeattn.pipeline.steps.baseline import PRUNED, Baseline, recorded
from edgeattn.pipeline.steps.candidates import PAYS
from edgeattn.pipeline.steps.pruning import timing
from edgeattn.pipeline.steps.pruning.facts import PruneFacts, parameter_count, promise, score_facts
from edgeattn.pipeline.steps.pruning.plan import REACHED, CutPlan, plan
from edgeattn.pipeline.steps.pruning.task import CutModel, PruneTask, Setting
from edgeattn.pipeline.steps.pruning.work import carry_out, read_model, untouched
from edgeattn.pruning import Cut, Prunable, Request, Timing, request_text
from edgeattn.results.gates import Failure
from edgeattn.results.report import Pruning
from edgeattn.results.verdicts import Judgement, failed
from edgeattn.targets import Target, head_dim_note
from edgeattn.targets.host import HOST


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What goes on from the prune step, and how it came about.

    Attributes:
        model: the original itself where nothing is removed, or pruning does not pay.
        base: records of the pruned model, scores of the original: what its artifacts are compared with.
        cut: relative to the original; empty where it was read from a directory.
        pruning: for the report.
    """

    model: EdgeModel
    base: Baseline
    cut: Cut
    pruning: Pruning


def for_target(task: PruneTask, setting: Setting) -> Outcome:
    """The pruned model of a target.

    Raises:
        EdgeattnError: for a request that cannot be followed, or an engine that does not take the model.
    """
    began = time.monotonic()
    planned, made = _made(task, setting)
    measured = _measured(task, setting, made)
    why = _why_not(task, planned, measured)
    facts = PruneFacts(
        asked=request_text(task.request),
        cut=made.facts,
        score=score_facts(task.exports.base.score, made.score, ALPHA if task.request.saved else task.alpha),
        parameters={"original": parameter_count(task.given.model), "pruned": parameter_count(made.model)},
        promise=promise(planned.kind, planned.predicted_ms, planned.full_ms, measured),
        seconds=round(time.monotonic() - began, 1),
        kept=why is None,
    )
    rows = [_unreachable_there(setting.target, one) for one in planned.failures]
    rows = rows or budget_judged(task.request, facts, setting.target)
    notes = (*planned.notes, *head_notes(task.given, setting.target), *filter(None, (why,)))
    gates = tuple(row for row in rows if row.verdict != "failed")
    pruning = Pruning(facts.to_json(), failed(rows), notes, gates)
    whole = task.exports.base
    if why is not None:
        return Outcome(model=task.exports.model, base=whole, cut=Cut(), pruning=pruning)
    base = replace(recorded(made.model, whole.data, setting.progress), score=whole.score, reference=PRUNED)
    return Outcome(model=made.model, base=base, cut=planned.cut, pruning=pruning)


def _made(task: PruneTask, setting: Setting) -> tuple[CutPlan, CutModel]:
    """The plan and the model of it; where nothing is to be removed, nothing is done."""
    if task.request.saved is not None:
        return CutPlan(cut=Cut()), read_model(task, task.request.saved)
    planned = plan(task, setting)
    return planned, untouched(task) if planned.cut.empty else carry_out(task, planned.cut, setting.progress)


def _measured(task: PruneTask, setting: Setting, made: CutModel) -> Mapping[str, Timing]:
    """Both models in one run; nothing where the engine is on the device alone."""
    if ENGINES[setting.backend].substitute:
        return {}
    return timing.time_models(setting, {"unpruned": task.given.model, "pruned": made.model})


def _why_not(task: PruneTask, planned: CutPlan, measured: Mapping[str, Timing]) -> str | None:
    """Why the original goes on, in a note; empty if the plan says it, None if the pruned model does."""
    request = task.request
    gain = measured["unpruned"].ms / measured["pruned"].ms if measured else None
    if gain is not None and gain < PAYS and request.budget is None:  # amounts have no budget to fail
        return f"pruned it is {gain:.2f}x as fast, less than the {PAYS}x that it must pay: not pruned"
    if request.saved is None and planned.cut.empty:
        explained = request.max_drop is not None or planned.failures
        return "" if explained else f"{request_text(request)} removes nothing: not pruned"
    return None


def budget_judged(request: Request, facts: PruneFacts, target: Target) -> list[Judgement]:
    """What was asked for beside what was measured; of a target that is not this machine nothing is judged by it."""
    rows = []
    asked, got = request.speedup, facts.promise.speedup
    if asked is not None:
        found = None if got is None else f"{got:.2f}x"
        kept = got is not None and got >= REACHED * asked
        rows.append(("speedup", f"{asked:g}x the unpruned float model", found, kept))
    deadline, pruned_ms = request.deadline_ms, facts.promise.pruned_ms
    if deadline is not None:
        found = None if pruned_ms is None else f"{pruned_ms:.2f} ms"
        kept = pruned_ms is not None and pruned_ms * REACHED <= deadline
        rows.append(("deadline", f"{deadline:g} ms by pruning", found, kept))
    return [_budget(target, *row) for row in rows]


def head_notes(given: Prunable, target: Target) -> tuple[str, ...]:
    """Head dimensions that the target's kernels do not like, each once."""
    sizes = dict.fromkeys(unit.head_dim for unit in given.anatomy.units if unit.kind == "attention")
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
