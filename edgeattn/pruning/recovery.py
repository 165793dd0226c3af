"""Recovery after pruning: the smaller network learns from the original, by distillation without labels.

The student learns the original's outputs and its residual stream after each layer that is left (Sun et al. 2019,
arXiv 1908.09355; Jiao et al. 2020, arXiv 1909.10351). What a left-out run of layers did is learned by the layer before
it. A graph with states is trained over whole runs, each side carrying its own states.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic

import torch

from edgeattn.distillation import (
    Batches,
    Point,
    Schedule,
    Trainer,
    digest,
    split,
    training,
)
from edgeattn.errors import InputError, UnsupportedError
from edgeattn.model import EdgeModel
from edgeattn.pruning.anatomy import Prunable
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.graph_loss import Hook
from edgeattn.pruning.linear import dense, linear_at
from edgeattn.pruning.runs import Run, checked_runs
from edgeattn.pruning.student import Learner, RecoveryOptions, matched
from edgeattn.pruning.surgery import copied

WARM_UP = 0.05  # share of the time over which the learning rate rises
NARROW, HIGHEST_RATE = 128, 1e-3  # width of a residual stream up to which the learning rate is the highest
Metric = Callable[[EdgeModel], float]


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """A trained model, the best by the held-out runs; the pruned one as it was if none was better.

    Attributes:
        model: the pruned model's spec, with the trained weights.
        losses: of each update, on its own runs.
        seconds: it took, runs before a checkpoint included.
        before: loss on the held-out runs of the pruned model at the start.
        after: of the best.
        history: held-out loss, and now and then the metric, on the way.
        together: whether runs were trained in batches; else one by one.
        note: why it ended early or changed nothing; empty otherwise.
    """

    model: EdgeModel
    losses: tuple[float, ...]
    seconds: float
    before: float
    after: float
    history: tuple[Point, ...]
    together: bool
    note: str


def recover(
    given: Prunable,
    cut: Cut,
    pruned: EdgeModel,
    runs: Mapping[str, Sequence[Run]],
    options: RecoveryOptions,
    on_step: Callable[[float], None],
    metric: Metric | None = None,
    hook: Hook | None = None,
) -> Recovery:
    """Train a copy of a pruned model so that its outputs come back to those of the original.

    All float parameters of the network are trained; dropout is off. The loss is that of
    :func:`~edgeattn.distillation.measured_loss` at every step of a run, distributions by their divergence alone, plus
    ``options.hidden`` times the error of the residual stream, plus the hook's. A fifth of each graph's runs, at most
    64, is held out and chooses the best weights.

    Runs are stacked along the first axis where the modules compute the same for samples together as for each alone.

    Args:
        given: the original, the teacher.
        cut: what ``pruned`` has left.
        pruned: the student; it is not changed.
        runs: graph -> runs. Inputs are shaped as the original's, or shorter on axes that a bucket pads: they are not
            padded here, since a model with buckets gives the same for them as for padded ones.
        on_step: called after every step with the share of the time that is spent, 0 to 1. What it raises ends the run
            and leaves the last checkpoint in place, as Ctrl-C does.
        metric: for ``history`` now and then, only at the start if it takes over a twentieth of the time.
        hook: a loss of the user's, added.

    Raises:
        DataError: if a run does not fit the model or holds NaN.
        InputError: if there is no run, or the checkpoint is damaged or of another run.
        UnsupportedError: if the network has nothing to train or cannot be copied.
    """
    started = monotonic()
    checked = _checked(given, pruned, runs)
    assert pruned.rebuild is not None, "checked before"
    rate = options.learning_rate or fitting_rate(given)
    with _threads(options.threads or (1 if pruned.spec.stream is not None else 0)), training():
        learner = _learner(given, cut, pruned, checked, options, hook)
        held_out, trained = split({graph: len(own) for graph, own in checked.items()})
        learner.prepare(held_out)
        run = Trainer(
            learner,
            Batches(learner.grouped(trained), options.batch, options.seed),
            held_out,
            Schedule(options.seconds, rate, options.batch, WARM_UP, options.checkpoint, "pruned model"),
            _key(given, pruned, checked, (pruned.spec.name, cut, rate, *_said(options, hook))),
            monotonic,
            started,
            on_step,
            None if metric is None else _measurement(metric, pruned, learner),
        )
        run.run()
        learner.finish()
    return Recovery(
        model=pruned.rebuild(learner.network.cpu()), losses=tuple(run.losses), seconds=run.elapsed(), before=run.before,
        after=run.best_loss, history=tuple(run.history), together=all(learner.together.values()), note=run.note,
    )  # fmt: skip


def _checked(given: Prunable, pruned: EdgeModel, runs: Mapping[str, Sequence[Run]]) -> dict[str, list[Run]]:
    """Graph -> its runs, where there are any and both models can be trained."""
    checked = {graph: checked_runs(given.model, graph, own) for graph, own in runs.items() if own}
    if not checked:
        raise InputError("there is nothing to recover on: give data, whose calibration samples are trained on")
    if any(model.network is None or model.rebuild is None for model in (given.model, pruned)):
        raise UnsupportedError(f"{pruned.spec.name}: it has no modules of its own to train")
    return checked


def _said(options: RecoveryOptions, hook: Hook | None) -> tuple[object, ...]:
    """Options that change what is learned."""
    own = (options.batch, options.hidden, options.temperature, options.truncate, options.seed)
    return (*own, hook is not None)


def _key(given: Prunable, pruned: EdgeModel, runs: Mapping[str, list[Run]], chosen: tuple[object, ...]) -> str:
    """What a checkpoint belongs to."""
    samples = ((graph, arrays) for graph, own in runs.items() for run in own for arrays in run)
    return digest(chosen, (given.model.modules, pruned.modules), samples)


def _learner(
    given: Prunable,
    cut: Cut,
    pruned: EdgeModel,
    runs: Mapping[str, list[Run]],
    options: RecoveryOptions,
    hook: Hook | None,
) -> Learner:
    """Both models on the device that is trained on, the student a copy."""
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    teacher = given.model if device.type == "cpu" else _copy(given.model, device)
    return Learner(teacher, matched(given.anatomy, cut), _copy(pruned, device), runs, options, hook, device)


def _measurement(metric: Metric, pruned: EdgeModel, learner: Learner) -> Callable[[], float]:
    """The metric of the student as it is."""

    def measure() -> float:
        assert pruned.rebuild is not None, "checked before"
        with torch.no_grad():
            return metric(pruned.rebuild(copied(learner.network).cpu()))

    return measure


def fitting_rate(given: Prunable) -> float:
    """The learning rate of Adam that fits a model: it falls with the width of the residual stream.

    Yang et al. 2022, arXiv 2203.03466, table 3. It is 1e-3 up to the width of the built-in stream.
    """
    widths = [dense(linear_at(given.network, unit.exit)).shape[0] for unit in given.anatomy.units]
    return HIGHEST_RATE * min(1.0, NARROW / max(widths, default=NARROW))


def _copy(model: EdgeModel, device: torch.device) -> EdgeModel:
    """A copy of a model on a device; a builder may look at its network's values, so it is made before it moves."""
    assert model.network is not None, "checked before"
    assert model.rebuild is not None, "checked before"
    made = model.rebuild(copied(model.network))
    for module in made.modules.values():
        module.to(device)
    return made


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Torch's threads while open; 0 changes nothing."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
