"""The cut that a request asks for on a target: amounts of each form, or the least loss within a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeattn.errors import DataError
from edgeattn.evaluation.accuracy import Drop, Score, paired_drop
from edgeattn.pipeline.steps.pruning.task import (
    PARTS,
    PruneTask,
    Setting,
    importance_of,
    importance_options,
    importance_samples,
)
from edgeattn.pipeline.steps.pruning.timing import latency_table, selection_ms
from edgeattn.pipeline.steps.pruning.work import carry_out
from edgeattn.progress import shares
from edgeattn.pruning import (
    FORMS,
    Cut,
    LatencyTable,
    Planning,
    Request,
    Selection,
    SelectOptions,
    check_cut,
    leave_out,
    magnitude,
    request_text,
    select,
)
from edgeattn.results.gates import Failure

REACHED = 0.97  # of the speed that was asked for: timings of one run repeat within 3 %
WRONG = 0.15  # a table that is so far off for the first cut is measured again
CORRECTIONS = 3  # of the limit, where a cut is slower than its table says
SPEEDUPS = (1.1, 1.25, 1.4, 1.6, 1.8, 2.1, 2.5, 3.0, 4.0)  # among which the largest that keeps the metric is looked for


@dataclass(frozen=True, kw_only=True)
class CutPlan:
    """A cut, and what the latency table says of it.

    Attributes:
        predicted_ms: of the pruned float model; None where no table was asked.
        full_ms: of the whole one, in the same table.
        kind: of the table.
        failures: of the budget, where the table cannot reach it.
    """

    cut: Cut
    predicted_ms: float | None = None
    full_ms: float | None = None
    kind: str | None = None
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()


def plan(task: PruneTask, setting: Setting) -> CutPlan:
    """The cut that the request asks for, on a target.

    Raises:
        DataError: for a budget without data, or one of the metric without labels.
        InputError: for amounts that the model does not have.
        UnsupportedError: for a form that the target has no kernels for.
    """
    request = task.request
    if request.budget is None:
        return CutPlan(cut=with_amounts(task, setting, Cut()))
    if importance_of(task, setting.progress) is None:
        raise DataError(
            f"--prune {request_text(request)} measures what can be spared on inputs like those of use: give --data "
            "(npz, labelled texts, recordings or file.py:function), or shares to remove such as heads=0.25"
        )
    table = latency_table(task, setting)
    if request.max_drop is not None:
        return _within_drop(task, setting, table, request.max_drop)
    chosen = _selected(task, setting, table, request.limit_ms(table.full_ms))
    if table.kind != "measured":
        failures = () if chosen.reached else (unreachable(request, chosen, table),)
        return _planned(task, setting, chosen, table, failures)
    times = selection_ms(task, setting, [chosen], table)
    if abs(times[0] / chosen.predicted_ms - 1) > WRONG:  # the table was measured in a busy moment
        table = latency_table(task, setting, fresh=True)
        chosen = _selected(task, setting, table, request.limit_ms(table.full_ms))
        times = selection_ms(task, setting, [chosen], table)
    if not chosen.reached:
        return _planned(task, setting, chosen, table, (unreachable(request, chosen, table),))
    return _planned(task, setting, _corrected(task, setting, chosen, times, table), table)


def with_amounts(task: PruneTask, setting: Setting, cut: Cut) -> Cut:
    """A cut with the forms that were asked for by amount.

    Raises:
        DataError: for layers without data.
        InputError: if they do not fit the model.
        UnsupportedError: if the target does not take them.
    """
    planning = Planning(
        given=task.given,
        target=setting.target,
        scores=lambda: _scores(task, setting),
        spared=lambda count: _spared(task, setting, count),
    )
    for key, asked in task.request.amounts:
        cut = FORMS[key].plan(asked, cut, planning)
    check_cut(task.given.anatomy, cut)
    return cut


def _scores(task: PruneTask, setting: Setting) -> Mapping[str, Any]:
    """Importance of each group, by the size of its weights where there is no data."""
    found = importance_of(task, setting.progress)
    return magnitude(task.given) if found is None else found.scores


def _spared(task: PruneTask, setting: Setting, count: int) -> Mapping[str, tuple[int, ...]]:
    samples = importance_samples(task)
    if not samples:
        raise DataError("layers are left out by what their absence costs on inputs like those of use: give --data")
    setting.progress.begin("pruning: what the absence of layers costs", PARTS)
    return leave_out(task.given, samples, count, importance_options(task), shares(setting.progress, PARTS))


# --- within a budget --------------------------------------------------------------------------------------------------


def _selected(task: PruneTask, setting: Setting, table: LatencyTable, limit_ms: float) -> Selection:
    """The least foreseen loss within a latency."""
    assert task.memory.importance is not None, "a budget needs it"
    options = SelectOptions(multiple=setting.target.kernels.channels)
    return select(task.given.anatomy, task.memory.importance, table, limit_ms, options)


def _planned(
    task: PruneTask, setting: Setting, chosen: Selection, table: LatencyTable, failures: tuple[Failure, ...] = ()
) -> CutPlan:
    """A selection with the forms that were asked for beside it."""
    cut, notes = with_amounts(task, setting, chosen.cut), table.notes
    if cut != chosen.cut:
        notes = (*notes, "the prediction counts heads, neurons and layers alone")
    return CutPlan(
        cut=cut,
        predicted_ms=chosen.predicted_ms,
        full_ms=table.full_ms,
        kind=table.kind,
        failures=failures,
        notes=notes,
    )


def _corrected(
    task: PruneTask, setting: Setting, chosen: Selection, times: Sequence[float], table: LatencyTable
) -> Selection:
    """The selection, or one with a stricter limit where the engine takes longer than the table says.

    All that were tried are timed again with the next one: a moment in which the machine was busy does not decide.

    Args:
        times: of the selection, see :func:`~edgeattn.pipeline.steps.pruning.timing.selection_ms`.
    """
    limit = strict = task.request.limit_ms(table.full_ms)
    candidates = [chosen]
    while not any(ms * REACHED <= limit for ms in times) and len(candidates) <= CORRECTIONS:
        strict *= limit / times[-1]
        tighter = _selected(task, setting, table, strict)
        if not tighter.reached:
            break
        candidates.append(tighter)
        times = selection_ms(task, setting, candidates, table)
    reaching = [one for one, ms in zip(candidates, times, strict=True) if ms * REACHED <= limit]
    return reaching[0] if reaching else candidates[-1]  # of those that reach it, the one that removes least


def _within_drop(task: PruneTask, setting: Setting, table: LatencyTable, max_drop: float) -> CutPlan:
    """The fastest cut of a few whose float model keeps the metric, found by bisection.

    It keeps it with 95 % confidence together with what is said of its quantized candidates: half of the 5 % is
    shared by the cuts that a bisection looks at (:class:`~edgeattn.pipeline.steps.candidates.Looks` has the rest).

    Raises:
        DataError: without a metric.
    """
    original = task.exports.base.score
    if original is None:
        raise DataError("--prune max-drop=... looks at the metric, and the data has no targets: give labelled data")
    selections = [_selected(task, setting, table, table.full_ms / speedup) for speedup in SPEEDUPS]
    least: Drop | None = None  # what the smallest cut that was tried, and is too much, loses
    low, high = -1, next((i for i, one in enumerate(selections) if not one.reached), len(selections))
    while high - low > 1:
        middle = (low + high) // 2
        made = carry_out(task, with_amounts(task, setting, selections[middle].cut), setting.progress)
        assert made.score is not None, "the original has one"
        drop = paired_drop(original, made.score, task.alpha, max_drop)
        lost = drop.points if task.accept_unproved else drop.upper
        if lost <= max_drop + 1e-9:
            low = middle
        else:
            high, least = middle, drop
    if low < 0:
        note = f"{unkept(least, original, max_drop)}: nothing is removed"
        return CutPlan(cut=Cut(), predicted_ms=table.full_ms, full_ms=table.full_ms, kind=table.kind, notes=(note,))
    return _planned(task, setting, selections[low], table)


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


def unreachable(request: Request, chosen: Selection, table: LatencyTable) -> Failure:
    """The nearest that can be reached, and what it is foreseen to cost."""
    nearest = (
        f"{table.full_ms / chosen.predicted_ms:.2f}x at most ({chosen.predicted_ms:.2f} ms {table.kind}), where the "
        f"loss is foreseen to rise by {chosen.predicted_loss:.3g}"
    )
    if request.deadline_ms is not None:
        return Failure("deadline", f"{request.deadline_ms:g} ms by pruning", nearest)
    return Failure("speedup", f"{request.speedup:g}x by pruning", nearest)
