"""A cut carried out on a model: removal, least squares, the other forms, distillation; or one read from a directory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeattn.evaluation.data import Data, spread
from edgeattn.model import Arrays, EdgeModel
from edgeattn.pipeline.steps.baseline import recorded, source_score
from edgeattn.pipeline.steps.pruning.facts import cut_summary, saved_facts
from edgeattn.pipeline.steps.pruning.task import PARTS, CutModel, PruneTask, cut_text, state_file
from edgeattn.progress import Progress, Quiet, shares
from edgeattn.pruning import (
    Cut,
    ReconstructOptions,
    RecoveryOptions,
    Study,
    apply_saved,
    prune,
    read_saved,
    reconstruct,
    recover,
    reshape,
    reshaping,
    without_dropped,
)
from edgeattn.spec import to_json

STUDY_SAMPLES = 64  # that forms look at before they are applied
METRIC_SAMPLES = 200  # that the metric is looked at on while recovery runs


def carry_out(task: PruneTask, cut: Cut, progress: Progress) -> CutModel:
    """The cut, least squares and distillation; once for each cut of a task.

    Raises:
        InputError: if the cut does not fit.
        UnsupportedError: if the model does not take it.
    """
    key = cut_text(cut)
    if key not in task.memory.made:
        task.memory.made[key] = _carry_out(task, cut, progress)
    return task.memory.made[key]


def untouched(task: PruneTask) -> CutModel:
    """The model of which nothing is removed."""
    return CutModel(model=task.given.model, score=task.exports.base.score, facts=cut_summary(task.given, Cut()))


def read_model(task: PruneTask, directory: Path) -> CutModel:
    """A model whose cut and weights are read; what was reported of it when it was written is kept.

    Raises:
        ModelError: if the directory holds no pruned model of this one.
    """
    model = apply_saved(task.exports.model, directory)
    data = task.exports.base.data
    score = None if data is None else source_score(model, data, "pruned", Quiet())
    return CutModel(model=model, score=score, facts=saved_facts(read_saved(directory).facts))


def _carry_out(task: PruneTask, cut: Cut, progress: Progress) -> CutModel:
    base, anatomy = task.exports.base, task.given.anatomy
    progress.begin("pruning: removing")
    model = prune(task.given, cut.removal)
    order = ["prune"]
    facts = replace(cut_summary(task.given, cut), importance=_importance_facts(task, cut))
    if any(base.calibration.values()) and without_dropped(anatomy, cut).groups:
        progress.begin("pruning: least squares", PARTS)
        fits = reconstruct(
            task.given, cut.removal, model, base.calibration, ReconstructOptions(), shares(progress, PARTS)
        )
        order.append("reconstruct")
        before, after = ([getattr(fit, when) for fit in fits] for when in ("before", "after"))
        errors = {"error_before": _mean(before), "error_after": _mean(after)}
        facts = replace(facts, reconstruction={"units": len(fits), **errors})
    forms = reshaping(anatomy, cut)
    if forms:
        progress.begin(f"pruning: {', '.join(form.key for form in forms)}")
        study = Study(given=task.given, cut=cut, model=model, samples=lambda: _study_samples(model, base.data))
        model = reshape(model, anatomy, cut, {form.key: form.study(study) for form in forms})
        order.append("forms")
    if task.recover_seconds and base.data is not None:
        model, recovery = _recovered(task, cut, model, progress)
        facts = replace(facts, recovery=recovery)
        order.append("recover")
    score = None if base.data is None else source_score(model, base.data, "pruned", progress)
    order.append("quantize")
    sized = replace(model, source_size_bytes=task.given.model.source_size_bytes)
    return CutModel(model=sized, score=score, facts=replace(facts, order=order))


def _importance_facts(task: PruneTask, cut: Cut) -> dict[str, Any] | None:
    measured = task.memory.importance
    if measured is not None:
        return {"method": measured.method, "samples": measured.samples}
    return {"method": "magnitude", "samples": 0} if cut.groups else None


def _study_samples(model: EdgeModel, data: Data | None) -> Mapping[str, Sequence[Arrays]]:
    """Inputs with the states of a model, which has fewer heads than the one that was recorded; none without data."""
    if data is None:
        return {}
    samples = recorded(model, data.limited(1), Quiet()).calibration
    return {graph: spread(own, STUDY_SAMPLES) for graph, own in samples.items()}


def _recovered(task: PruneTask, cut: Cut, model: EdgeModel, progress: Progress) -> tuple[EdgeModel, dict[str, Any]]:
    """Distillation, its progress in seconds."""
    data, seconds = task.exports.base.data, task.recover_seconds
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
        value = math.nan if score is None else score.told
        progress.begin(f"pruning: recovery by distillation, the metric {value:.2f} so far", round(seconds))
        for _ in range(spent):
            progress.advance()
        return value

    options = RecoveryOptions(seconds=seconds, checkpoint=state_file(task, cut))
    runs = data.training_runs(task.given.model.spec)
    watched = metric if task.exports.base.score is not None else None
    found = recover(task.given, cut, model, runs, options, on_step, watched, task.hook)
    return found.model, {
        "seconds": round(found.seconds, 1), "steps": len(found.losses), "loss_before": found.before,
        "loss_after": found.after, "history": to_json(found.history), "note": found.note,
    }  # fmt: skip


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
