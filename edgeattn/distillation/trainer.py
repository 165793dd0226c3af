"""The run of a student: steps until the time is over, checks on held-out samples, and checkpoints."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from edgeattn.distillation.checkpoint import read_checkpoint, write_checkpoint
from edgeattn.distillation.items import Batches, Item
from edgeattn.errors import InputError
from edgeattn.model import attention_fast_path

SAMPLES_PER_CHECK = 6  # trained on per held-out sample and check: checks take a tenth of the time or less
LARGEST_GRADIENT = 1.0  # norm over all parameters, of one update
CHECKPOINT_SECONDS = 20.0  # between two files
SPARE = 1.2  # a step may take so much longer than the longest before
MEASURED = (0.0, 0.25, 0.5, 0.75)  # shares of the time at which the metric is measured; the end comes on top
MEASURE_SHARE = 0.05  # of the time: a metric that takes longer is measured at the start alone


@contextlib.contextmanager
def training() -> Iterator[None]:
    """Gradients on; torch's fast path of attention off, which has none and computes padded positions otherwise."""
    with attention_fast_path(False), torch.inference_mode(False), torch.enable_grad():
        yield


class Learner(Protocol):
    """What is trained."""

    @property
    def groups(self) -> Sequence[tuple[Sequence[nn.Parameter], float]]:
        """Parameters with the factor that their learning rate has."""

    def backward(self, items: Sequence[Item]) -> Iterator[float]:
        """Add gradients of the mean loss of items; the loss is given whenever an update is due."""

    def loss(self, items: Sequence[Item], over: Callable[[], bool]) -> float | None:
        """Mean loss of items without gradients; None if the time is over before it is known."""

    def changed(self) -> None:
        """Parameters were written."""


@dataclass(frozen=True)
class Schedule:
    """How a run goes.

    Attributes:
        seconds: after which it has ended, runs that went on from a checkpoint included.
        learning_rate: highest; it falls to zero over the time, half a cosine.
        batch: items per step.
        warm_up: share of the time over which the learning rate rises to its highest.
        checkpoint: file that is written on the way and left in place.
        student: what is trained, in words of a message.
    """

    seconds: float
    learning_rate: float
    batch: int
    warm_up: float = 0.0
    checkpoint: Path | None = None
    student: str = "model"

    def rate(self, share: float) -> float:
        """The learning rate after a share of the time.

        >>> schedule = Schedule(60.0, 1.0, 8, warm_up=0.1)
        >>> [round(schedule.rate(share), 3) for share in (0.0, 0.05, 0.1, 0.55, 1.0)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
        """
        if share < self.warm_up:
            return self.learning_rate * share / self.warm_up
        falling = min(1.0, (share - self.warm_up) / (1.0 - self.warm_up))
        return self.learning_rate * (1 + math.cos(math.pi * falling)) / 2


@dataclass(frozen=True)
class Point:
    """A check on the way.

    Attributes:
        seconds: since the start.
        loss: of the held-out samples, of the weights as they were.
        metric: of the best weights so far; None where only the loss was computed.
    """

    seconds: float
    loss: float
    metric: float | None = None


class Trainer:
    """Steps of Adam until the time is over, checks on held-out samples, and checkpoints.

    Attributes:
        losses: of each update, on its own samples.
        before: held-out loss at the start.
        best_loss: of the best weights, which are in place after :meth:`run`.
        history: the checks.
        note: why it ended early or changed nothing; empty otherwise.
    """

    def __init__(
        self,
        learner: Learner,
        batches: Batches,
        held_out: Sequence[Item],
        schedule: Schedule,
        key: str,
        clock: Callable[[], float],
        started: float,
        on_step: Callable[[float], None],
        measure: Callable[[], float] | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            key: of all that a checkpoint belongs to, see :func:`digest`.
            clock: seconds, and ``started`` what it said at the start.
            on_step: called after every step with the share of the time that is spent, 0 to 1.
            measure: gives the metric of the parameters as they are; its time counts.
        """
        self.learner, self.batches, self.held_out, self.schedule = learner, batches, list(held_out), schedule
        self.key, self.clock, self.started, self.on_step, self.measure = key, clock, started, on_step, measure
        self.values = [value for values, _ in learner.groups for value in values]
        groups = [{"params": list(values), "lr": 0.0, "factor": factor} for values, factor in learner.groups if values]
        self.optimizer = torch.optim.Adam(groups)
        self.spent = 0.0
        self.losses: list[float] = []
        self.steps = 0
        self.since = 0  # steps since the last check
        self.before = self.best_loss = math.nan
        self.best = [value.detach().clone() for value in self.values]
        self.step_seconds = self.check_seconds = self.measure_seconds = 0.0
        self.history: list[Point] = []
        self.saved = -math.inf
        self.note = ""

    def elapsed(self) -> float:
        """Seconds, of runs before included."""
        return self.spent + self.clock() - self.started

    def run(self) -> None:
        """Train; the best values are in place afterwards."""
        self._resume()
        first = self._check()
        if math.isnan(self.before) and first is not None:
            self.before = self.best_loss = first
        if first is None:
            self.note = self.note or f"{self.schedule.seconds:g} s were over before the first step"
        elif not math.isfinite(self.before):
            self.note = (
                f"the loss of the {self.schedule.student} is not finite before training; look for layers that overflow"
            )
        else:
            if not self.history:
                self._record(first)
            self._train()
        if not self.note and not self.best_loss < self.before:
            self.note = f"no step made the held-out loss lower: the weights are those of the {self.schedule.student}"
        self._put(self.best)

    def _train(self) -> None:
        interval = math.ceil(SAMPLES_PER_CHECK * len(self.held_out) / self.schedule.batch)
        while self.elapsed() + self._reserve() < self.schedule.seconds:
            begun = self.clock()
            losses = self._step()
            self.losses += losses
            if self.note:
                break
            self.steps += 1
            self.since += 1
            self.step_seconds = max(self.step_seconds, self.clock() - begun)
            self.on_step(min(1.0, self.elapsed() / self.schedule.seconds))
            if self.since >= interval:
                self._keep_if_better()
                self._save()
        if self.note:
            return
        if not self.steps:
            self.note = f"{self.schedule.seconds:g} s were over before the first step"
        elif self.since or (self._cheap() and self.history[-1].metric is None):
            self._keep_if_better(last=True)
            self._save(last=True)

    def _reserve(self) -> float:
        return SPARE * (self.step_seconds + self.check_seconds + (self.measure_seconds if self._cheap() else 0.0))

    def _cheap(self) -> bool:
        """Whether the metric can be measured again."""
        return self.measure is not None and self.measure_seconds <= MEASURE_SHARE * self.schedule.seconds

    def _keep_if_better(self, last: bool = False) -> None:
        self.since = 0
        loss = self._check()
        if loss is not None and loss < self.best_loss:
            self.best_loss = loss
            self.best = [value.detach().clone() for value in self.values]
        if loss is not None:
            self._record(loss, last)

    def _record(self, loss: float, last: bool = False) -> None:
        self.history.append(Point(self.elapsed(), loss, self._metric() if self._metric_due(last) else None))

    def _metric_due(self, last: bool) -> bool:
        """Whether a mark has been passed since the last metric, and measuring is cheap enough."""
        measured = [point.seconds for point in self.history if point.metric is not None]
        if not measured or not self._cheap():
            return not measured
        passed = [share for share in MEASURED if share * self.schedule.seconds <= self.elapsed()]
        return last or passed[-1] * self.schedule.seconds > measured[-1]

    def _metric(self) -> float | None:
        if self.measure is None:
            return None
        begun = self.clock()
        now = [value.detach().clone() for value in self.values]
        self._put(self.best)
        metric = float(self.measure())
        self._put(now)
        self.measure_seconds = max(self.measure_seconds, self.clock() - begun)
        return metric

    def _check(self) -> float | None:
        """Mean loss of the held-out samples, None if the time is over before it is known."""
        begun = self.clock()
        loss = self.learner.loss(self.held_out, lambda: self.elapsed() > self.schedule.seconds)
        self.check_seconds = max(self.check_seconds, self.clock() - begun)
        if not self.step_seconds:  # forward and backward take three times as long as forward
            self.step_seconds = 3 * self.check_seconds / len(self.held_out) * self.schedule.batch
        return loss

    def _step(self) -> list[float]:
        """The updates of one batch; those from the first on whose numbers are not finite change nothing."""
        rate = self.schedule.rate(min(1.0, self.elapsed() / self.schedule.seconds))
        for group in self.optimizer.param_groups:
            group["lr"] = group["factor"] * rate
        losses: list[float] = []
        self.optimizer.zero_grad()
        for loss in self.learner.backward(self.batches(self.steps)):
            norm = float(nn.utils.clip_grad_norm_(self.values, LARGEST_GRADIENT))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                step = self.steps + 1
                self.note = f"stopped at step {step}, whose loss or gradient is not finite; lower the learning rate"
                break
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.learner.changed()
            losses.append(loss)
        return losses

    def _put(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for value, wanted in zip(self.values, values, strict=True):
                value.copy_(wanted)
        self.learner.changed()

    def _save(self, last: bool = False) -> None:
        path = self.schedule.checkpoint
        if path is None or (not last and self.elapsed() - self.saved < CHECKPOINT_SECONDS):
            return
        self.saved = self.elapsed()
        history = [
            (point.seconds, point.loss, math.nan if point.metric is None else point.metric) for point in self.history
        ]
        arrays = {"losses": np.array(self.losses, np.float64), "history": np.array(history, np.float64)}
        for i, value in enumerate(self.values):
            state = self.optimizer.state.get(value, {})
            tensors = {"now": value.detach(), "best": self.best[i], **state}
            arrays.update({f"{kind}.{i}": np.asarray(tensor.cpu().numpy()) for kind, tensor in tensors.items()})
        facts = {
            "key": self.key, "elapsed": self.saved, "steps": self.steps, "since": self.since, "before": self.before,
            "best": self.best_loss,
        }  # fmt: skip
        write_checkpoint(path, arrays, facts)

    def _resume(self) -> None:
        path = self.schedule.checkpoint
        if path is None or not path.exists():
            return
        arrays, facts = read_checkpoint(path)
        if facts.get("key") != self.key:
            raise InputError(
                f"{path}: a checkpoint of another model, other data or other options; delete it, or name another file"
            )
        self.losses = arrays["losses"].tolist()
        self.history = [
            Point(seconds, loss, None if math.isnan(metric) else metric)
            for seconds, loss, metric in arrays["history"].tolist()
        ]
        self.spent, self.steps, self.since = float(facts["elapsed"]), int(facts["steps"]), int(facts["since"])
        self.before, self.best_loss = float(facts["before"]), float(facts["best"])
        self.best = [torch.from_numpy(arrays[f"best.{i}"]).to(value.device) for i, value in enumerate(self.values)]
        self._put([torch.from_numpy(arrays[f"now.{i}"]) for i in range(len(self.values))])
        for i, value in enumerate(self.values):
            kinds = [kind for kind in ("step", "exp_avg", "exp_avg_sq") if f"{kind}.{i}" in arrays]
            state = {kind: torch.from_numpy(arrays[f"{kind}.{i}"]) for kind in kinds}
            if state:  # moments lie where the parameter does, the count of steps on the host
                self.optimizer.state[value] = {
                    kind: tensor if kind == "step" else tensor.to(value.device) for kind, tensor in state.items()
                }
        self.note = "" if self.elapsed() < self.schedule.seconds else "the checkpoint's run was over"
