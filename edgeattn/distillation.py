"""Distillation: a changed copy of a model learns to give the outputs of the model that it was made from.

What recovery after quantization and after pruning have in common (Hinton et al. 2015, arXiv 1503.02531): the loss,
which samples are held out, and a run that keeps to its time, goes on from a checkpoint and keeps the best weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeattn.bundle import write_atomically, writing
from edgeattn.errors import InputError
from edgeattn.model import attention_fast_path

HELD_OUT = 5  # one sample in so many is never trained on
MAX_HELD_OUT = 64  # samples: their loss is computed many times
SAMPLES_PER_CHECK = 6  # trained on per held-out sample and check: checks take a tenth of the time or less
LARGEST_GRADIENT = 1.0  # norm over all parameters, of one update
MOST_SCORES = 65_536  # classes; a last axis beyond is no distribution
SCORES = ("logits", "scores", "log_probs")  # last words of the names of outputs that are a distribution
KEPT_BYTES = 2**30  # of the teacher's outputs; the others are computed when they are needed
CHECKPOINT_SECONDS = 20.0  # between two files
SPARE = 1.2  # a step may take so much longer than the longest before
MEASURED = (0.0, 0.25, 0.5, 0.75)  # shares of the time at which the metric is measured; the end comes on top
MEASURE_SHARE = 0.05  # of the time: a metric that takes longer is measured at the start alone

Tensors = dict[str, Tensor]
Item = tuple[str, int]
"""Graph, number of its sample."""
T = TypeVar("T")


@contextlib.contextmanager
def training() -> Iterator[None]:
    """Gradients on; torch's fast path of attention off, which has none and computes padded positions otherwise."""
    with attention_fast_path(False), torch.inference_mode(False), torch.enable_grad():
        yield


class Kept(Generic[T]):
    """What the teacher computed, as far as it fits into :data:`KEPT_BYTES`."""

    def __init__(self) -> None:
        self._kept: dict[Item, T] = {}
        self._bytes = 0

    def get(self, item: Item) -> T | None:
        """What was kept of an item."""
        return self._kept.get(item)

    def keep(self, item: Item, value: T, tensors: Iterable[Tensor]) -> None:
        """Keep a value, which holds ``tensors``, if there is room."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if self._bytes + size <= KEPT_BYTES:
            self._kept[item] = value
            self._bytes += size


# --- the loss ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loss:
    """Distance of a student's outputs to the teacher's.

    The mean over float outputs of the squared error, relative to the mean square of the teacher's. Outputs that are a
    distribution over their last axis add their Kullback-Leibler divergence.

    Attributes:
        power: graph and output -> mean square of the teacher's.
        scores: graph and output, of those that are a distribution.
        temperature: that both distributions are softened by; their divergence is multiplied by its square, so that
            gradients keep their size (Hinton et al., section 2).
        squared: whether distributions have a squared error too, or their divergence alone.
    """

    power: Mapping[tuple[str, str], float]
    scores: frozenset[tuple[str, str]]
    temperature: float = 1.0
    squared: bool = True

    def __call__(self, graph: str, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """The loss of one sample, or the mean over the samples of a batch, shape ().

        Args:
            outputs: the student's; those without a target are not looked at.
            targets: the teacher's, float.
        """
        errors, divergence = [], torch.zeros(())
        for name, target in targets.items():
            if self.squared or (graph, name) not in self.scores:
                errors.append(self.error(graph, name, outputs[name], target))
            if (graph, name) in self.scores:
                classes = target.shape[-1]
                wanted = functional.log_softmax(target.reshape(-1, classes) / self.temperature, -1)
                got = functional.log_softmax(outputs[name].reshape(-1, classes) / self.temperature, -1)
                apart = functional.kl_div(got, wanted, reduction="batchmean", log_target=True)
                divergence = divergence + self.temperature**2 * apart
        return torch.stack(errors).mean() + divergence if errors else divergence

    def error(self, graph: str, name: str, got: Tensor, wanted: Tensor) -> Tensor:
        """Mean squared error over the entries that are finite in the teacher's, relative to its mean square."""
        difference = torch.where(wanted.isfinite(), got - wanted, 0.0)
        return (difference**2).mean() / self.power[graph, name]


def measured_loss(
    samples: Iterable[tuple[str, Mapping[str, Tensor]]],
    stream_scores: str | None,
    temperature: float = 1.0,
    hidden: frozenset[str] = frozenset(),
    squared: bool = True,
) -> Loss:
    """The loss for outputs like these of the teacher.

    Distributions are the outputs that the spec's stream decodes, those named ``logits``, ``scores`` or ``log_probs``,
    and log-probabilities by value.

    Args:
        samples: graph and float outputs.
        stream_scores: name of the output that a stream decodes, if there is one.
        hidden: names among them that are no outputs, and so no distributions.
    """
    scores: set[tuple[str, str]] = set()
    sums: dict[tuple[str, str], list[float]] = {}
    plain: dict[tuple[str, str], bool] = {}
    for graph, outputs in samples:
        for name, value in outputs.items():
            key = (graph, name)
            finite = value[value.isfinite()]
            sums.setdefault(key, []).append(float((finite**2).mean()) if finite.numel() else 0.0)
            if name in hidden:
                continue
            plain[key] = plain.get(key, True) and _are_log_probabilities(value)
            named = name == stream_scores or name.endswith(SCORES)
            if value.ndim > 1 and 2 <= value.shape[-1] <= MOST_SCORES and named:
                scores.add(key)
    power = {key: max(float(np.mean(values)), 1e-12) for key, values in sums.items()}
    return Loss(power, frozenset(scores | {key for key, yes in plain.items() if yes}), temperature, squared)


def _are_log_probabilities(value: Tensor) -> bool:
    if value.ndim < 2 or not 2 <= value.shape[-1] <= MOST_SCORES:
        return False
    return bool(((value.exp().sum(-1) - 1).abs() < 1e-3).all())


# --- samples ----------------------------------------------------------------------------------------------------------


def split(counts: Mapping[str, int]) -> tuple[list[Item], list[Item]]:
    """Held-out items, evenly from all of a recording, and those to train on; a lone sample is both."""
    held_out: list[Item] = []
    trained: list[Item] = []
    for graph, count in counts.items():
        stride = max(HELD_OUT, math.ceil(count * len(counts) / MAX_HELD_OUT))
        apart = set(range(stride // 2, count, stride)) or {count - 1}
        held_out += [(graph, number) for number in sorted(apart)]
        trained += [(graph, number) for number in range(count) if number not in apart or count == 1]
    return held_out, trained


class Batches:
    """Batch number i of a run, a pure function of the seed and i: each item once before any comes again.

    Items of one group stand together, so that few batches hold more than one.
    """

    def __init__(self, groups: Sequence[Sequence[Item]], size: int, seed: int) -> None:
        self._groups = [list(group) for group in groups if group]
        self._seed = seed
        self.per_epoch = math.ceil(sum(map(len, self._groups)) / size)
        self._epoch, self._batches = -1, [[("", 0)]]

    def __call__(self, number: int) -> list[Item]:
        """At most ``size`` items."""
        epoch, place = divmod(number, self.per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([self._seed, epoch])
            order = [
                self._groups[group][i]
                for group in rng.permutation(len(self._groups))
                for i in rng.permutation(len(self._groups[group]))
            ]
            parts = np.array_split(np.arange(len(order)), self.per_epoch)
            self._batches = [[order[i] for i in parts[part]] for part in rng.permutation(self.per_epoch)]
            self._epoch = epoch
        return self._batches[place]


# --- the run ----------------------------------------------------------------------------------------------------------


class Learner(Protocol):
    """What is trained."""

    @property
    def groups(self) -> Sequence[tuple[Sequence[nn.Parameter], float]]:
        """Parameters with the factor that their learning rate has."""

    def backward(self, items: Sequence[Item]) -> Iterator[float]:
        """Add gradients of the mean loss of items; the loss is told whenever an update is due."""

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
        told = {
            "key": self.key, "elapsed": self.saved, "steps": self.steps, "since": self.since, "before": self.before,
            "best": self.best_loss,
        }  # fmt: skip
        write_checkpoint(path, arrays, told)

    def _resume(self) -> None:
        path = self.schedule.checkpoint
        if path is None or not path.exists():
            return
        arrays, told = read_checkpoint(path)
        if told.get("key") != self.key:
            raise InputError(
                f"{path}: a checkpoint of another model, other data or other options; delete it, or name another file"
            )
        self.losses = arrays["losses"].tolist()
        self.history = [
            Point(seconds, loss, None if math.isnan(metric) else metric)
            for seconds, loss, metric in arrays["history"].tolist()
        ]
        self.spent, self.steps, self.since = float(told["elapsed"]), int(told["steps"]), int(told["since"])
        self.before, self.best_loss = float(told["before"]), float(told["best"])
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


# --- checkpoints ------------------------------------------------------------------------------------------------------


def digest(
    chosen: object, modules: Iterable[Mapping[str, nn.Module]], samples: Iterable[tuple[str, Mapping[str, np.ndarray]]]
) -> str:
    """What a checkpoint belongs to, as SHA-256.

    Args:
        chosen: name and options, but for the time, which may be prolonged; by their ``repr``.
        modules: graph -> module, of each model.
        samples: graph and arrays, in their order.
    """
    made = hashlib.sha256(repr(chosen).encode())
    for graphs in modules:
        for graph, module in graphs.items():
            made.update(graph.encode())
            for name, parameter in module.named_parameters():
                made.update(name.encode() + parameter.detach().numpy().tobytes())
    for graph, sample in samples:
        for name, array in sample.items():
            made.update(f"{graph} {name} {array.shape}".encode() + array.tobytes())
    return made.hexdigest()


def write_checkpoint(path: Path, arrays: Mapping[str, np.ndarray], told: Mapping[str, Any]) -> None:
    """Write arrays and plain JSON as an npz, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **{**arrays, "told": np.array(json.dumps(told))})  # type: ignore[arg-type]
    with writing(path):
        write_atomically(path, buffer.getvalue())


def read_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What :func:`write_checkpoint` wrote.

    Raises:
        InputError: if it is damaged or none.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        told = json.loads(str(arrays.pop("told")))
    except Exception as error:
        raise InputError(f"{path}: no checkpoint, or a damaged one ({error}); delete it to start anew") from error
    return arrays, told
