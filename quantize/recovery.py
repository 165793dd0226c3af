"""Recovery of a budget that search alone cannot meet: the rounded model learns from the float model.

Distillation on the calibration data (Hinton et al. 2015, arXiv 1503.02531) with fake quantization (Jacob et al. 2018,
arXiv 1712.05877), for a few minutes. Weights keep the scales that every engine's quantizer computes from them;
scales of static activations are learned (LSQ, Esser et al. 2020, arXiv 1902.08153) and go into the export.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgeattn.bundle import write_atomically, writing
from edgeattn.errors import InputError, load_extra
from edgeattn.model import Arrays, EdgeModel, one_thread
from edgeattn.quantize.calibration import Calibration, checked_samples
from edgeattn.quantize.plan import EVERYTHING, Plan

if TYPE_CHECKING:
    import torch

    from edgeattn.quantize.student import Student


HELD_OUT = 5  # one sample in so many is never trained on
MAX_HELD_OUT = 64  # samples: their loss is computed many times
SAMPLES_PER_CHECK = 6  # trained on per held-out sample and check: checks take a tenth of the time or less
LARGEST_GRADIENT = 1.0  # norm over all parameters, of one step
SCALE_RATE = 10.0  # of the logarithm of a scale, over that of weights
MOST_SCORES = 65_536  # classes; a last axis beyond is no distribution
SCORES = ("logits", "scores", "log_probs")  # last words of the names of outputs that are a distribution
KEPT_BYTES = 2**30  # of the float model's outputs; the others are computed when they are needed
CHECKPOINT_SECONDS = 20.0  # between two files
SPARE = 1.2  # a step may take so much longer than the longest before

Tensors = dict[str, "torch.Tensor"]
Item = tuple[str, int]
"""Graph, number of its sample."""


@dataclass(frozen=True)
class RecoveryOptions:
    """How to train.

    Attributes:
        plan: treatment by module path, as the export will have it; layers that it leaves float are trained too.
        seconds: after which it has ended, from reading the files to the last check; runs that went on from a
            checkpoint included.
        activations: of int8 layers: ``static`` has one learned scale per tensor, as ONNX with Q/DQ; ``dynamic`` has one
            per row, from its largest |x|, as LiteRT and OpenVINO's weight compression compute.
        learning_rate: of weights at the start; it falls to zero over the time, half a cosine.
        seed: of the order of the samples.
        samples_per_step: whose gradients are averaged.
        checkpoint: file that is written on the way and left in place; a run of the same model, data and options goes on
            from it, also with more seconds.
    """

    plan: Plan = EVERYTHING
    seconds: float = 180.0
    activations: Literal["static", "dynamic"] = "static"
    learning_rate: float = 1e-4
    seed: int = 0
    samples_per_step: int = 8
    checkpoint: Path | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ValueError(f"seconds must be positive, got {self.seconds}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.samples_per_step < 1:
            raise ValueError(f"samples_per_step must be at least 1, got {self.samples_per_step}")
        if self.activations not in ("static", "dynamic"):
            raise ValueError(f"activations must be static or dynamic, got {self.activations!r}")


@dataclass(frozen=True)
class Recovered:
    """A trained model, the best by the held-out samples; the source itself if none was better.

    Attributes:
        model: the source's spec, and modules of its own with the trained weights, float32.
        scales: layer path -> learned activation scale, real units per step, for ``QdqOptions.scales``; empty for
            dynamic activations. A module with several products, as ``nn.MultiheadAttention``, has one path for
            activations of different ranges; those are in ``calibrated``.
        losses: of each step, on its own samples.
        seconds: it took, runs before a checkpoint included.
        before: loss on the held-out samples of the rounded model at the start.
        after: of the best.
        calibrated: paths of int8 layers with calibrated scales, which the export computes anew.
        untrained: paths of layers of the plan that keep their weights: no product of the module has them, or no
            parameter holds them. The former were trained around without being rounded.
        note: why it ended early or changed nothing; empty otherwise.
    """

    model: EdgeModel
    scales: Mapping[str, float]
    losses: tuple[float, ...]
    seconds: float
    before: float
    after: float
    calibrated: tuple[str, ...]
    untrained: tuple[str, ...]
    note: str

    @property
    def steps(self) -> int:
        """Of the optimizer."""
        return len(self.losses)


def recover(
    model: EdgeModel,
    onnx: Mapping[str, Path],
    calibration: Calibration,
    options: RecoveryOptions,
    on_step: Callable[[float], None],
) -> Recovered:
    """Train a copy of a model so that its rounded outputs come back to those of the float model.

    What is trained are the weights of linear layers, their biases and the weights and biases of normalisations; of a
    graph that is an ONNX file itself, the weights alone, which are found in that file again.

    The loss is the mean over all float outputs and states of the squared error, relative to the mean square of the
    float model's. Outputs that are a distribution over their last axis add their Kullback-Leibler divergence: those
    that the spec's stream decodes, those named ``logits``, ``scores`` or ``log_probs``, and log-probabilities by value.

    A fifth of each graph's samples, at most 64, is held out and chooses the best weights. Dropout is off. torch uses
    the threads that it has, one for streams.

    Args:
        model: the float32 source; it is not changed.
        onnx: graph name -> its float32 ONNX from ``export_onnx``.
        calibration: graph name -> full input sets, states included.
        options: the plan and the time.
        on_step: called after every step with the share of the time that is spent, 0 to 1. What it raises ends the run
            and leaves the last checkpoint in place, as Ctrl-C does.

    Raises:
        DataError: if the calibration does not fit the model or holds NaN.
        InputError: if a pattern of the plan matches no layer, or the checkpoint is damaged or of another run.
        UnsupportedError: if no layer of the plan can be trained.
        MissingExtraError: without torch, onnx or onnxruntime.
    """
    started = monotonic()
    for extra in ("torch", "onnx", "onnxruntime"):
        load_extra(extra, "convert")
    from edgeattn.quantize.student import Student

    samples = {graph: checked_samples(calibration, graph, path) for graph, path in onnx.items()}
    with one_thread() if model.spec.stream is not None else contextlib.nullcontext(), _training():
        student = Student(model, onnx, samples, options.plan, options.activations == "dynamic")
        run = _Run(student, _Teacher(model, student.inputs), options, started, on_step)
        run.key = _key(model, onnx, samples, options)
        run.run()
        student.finish()
    return Recovered(
        student.model(), student.learned(), tuple(run.losses), run.elapsed(), run.before, run.best_loss,
        student.calibrated, student.untrained, run.note,
    )  # fmt: skip


@contextlib.contextmanager
def _training() -> Iterator[None]:
    """Gradients on; torch's fast path of attention off, which has none and computes padded positions otherwise."""
    import torch

    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


# --- the loss ---------------------------------------------------------------------------------------------------------


class _Teacher:
    """Outputs of the float model, computed once as far as they fit into :data:`KEPT_BYTES`."""

    def __init__(self, model: EdgeModel, inputs: Mapping[str, Sequence[Tensors]]) -> None:
        self.modules = model.modules
        self.inputs = inputs
        self.stream_scores = model.spec.stream.scores if model.spec.stream is not None else None
        self.kept: dict[Item, Tensors] = {}
        self.bytes = 0

    def outputs(self, item: Item) -> Tensors:
        """Float outputs and states of one sample."""
        import torch

        if item in self.kept:
            return self.kept[item]
        graph, number = item
        with torch.no_grad():
            everything = self.modules[graph](**self.inputs[graph][number])
        outputs = {name: value.clone() for name, value in everything.items() if value.is_floating_point()}
        size = sum(value.numel() * value.element_size() for value in outputs.values())
        if self.bytes + size <= KEPT_BYTES:
            self.kept[item] = outputs
            self.bytes += size
        return outputs


class _Loss:
    """Distance of outputs to the float model's; see :func:`recover`."""

    def __init__(self, teacher: _Teacher, items: Sequence[Item]) -> None:
        self.teacher = teacher
        self.power: dict[tuple[str, str], float] = {}
        self.scores: set[tuple[str, str]] = set()
        sums: dict[tuple[str, str], list[float]] = {}
        plain: dict[tuple[str, str], bool] = {}
        for item in items:
            for name, value in teacher.outputs(item).items():
                key = (item[0], name)
                finite = value[value.isfinite()]
                sums.setdefault(key, []).append(float((finite**2).mean()) if finite.numel() else 0.0)
                plain[key] = plain.get(key, True) and _are_log_probabilities(value)
                if value.ndim > 1 and 2 <= value.shape[-1] <= MOST_SCORES and self._named(name):
                    self.scores.add(key)
        self.power = {key: max(float(np.mean(values)), 1e-12) for key, values in sums.items()}
        self.scores |= {key for key, yes in plain.items() if yes}

    def __call__(self, item: Item, outputs: Tensors) -> torch.Tensor:
        """The loss of one sample, shape ()."""
        import torch
        from torch.nn import functional

        targets = self.teacher.outputs(item)
        errors, divergence = [], torch.zeros(())
        for name, target in targets.items():
            finite = target.isfinite()
            error = torch.where(finite, outputs[name] - target, 0.0)
            errors.append((error**2).mean() / self.power[item[0], name])
            if (item[0], name) in self.scores:
                classes = target.shape[-1]
                wanted = functional.log_softmax(target.reshape(-1, classes), -1)
                got = functional.log_softmax(outputs[name].reshape(-1, classes), -1)
                divergence = divergence + functional.kl_div(got, wanted, reduction="batchmean", log_target=True)
        return torch.stack(errors).mean() + divergence

    def _named(self, name: str) -> bool:
        return name == self.teacher.stream_scores or name.endswith(SCORES)


def _are_log_probabilities(value: torch.Tensor) -> bool:
    if value.ndim < 2 or not 2 <= value.shape[-1] <= MOST_SCORES:
        return False
    return bool(((value.exp().sum(-1) - 1).abs() < 1e-3).all())


# --- the run ----------------------------------------------------------------------------------------------------------


class _Run:
    """Steps until the time is over, checks on held-out samples, and checkpoints."""

    def __init__(
        self,
        student: Student,
        teacher: _Teacher,
        options: RecoveryOptions,
        started: float,
        on_step: Callable[[float], None],
    ) -> None:
        import torch

        self.student, self.options, self.on_step = student, options, on_step
        self.key = ""
        self.held_out, self.items = _split({graph: len(given) for graph, given in student.inputs.items()})
        self.loss = _Loss(teacher, self.held_out)
        self.values = [*student.trained, *student.learned_scales]
        weights = {"params": student.trained, "lr": 0.0}
        scales = {"params": student.learned_scales, "lr": 0.0}
        self.optimizer = torch.optim.Adam([weights, scales] if scales["params"] else [weights])
        self.started, self.spent = started, 0.0
        self.losses: list[float] = []
        self.since = 0  # steps since the last check
        self.before = self.best_loss = math.nan
        self.best = [value.detach().clone() for value in self.values]
        self.step_seconds = self.check_seconds = 0.0
        self.saved = -math.inf
        self.note = ""

    def elapsed(self) -> float:
        """Seconds, of runs before included."""
        return self.spent + monotonic() - self.started

    def run(self) -> None:
        """Train; the best values are in place afterwards."""
        self._resume()
        first = self._check()
        if math.isnan(self.before) and first is not None:
            self.before = self.best_loss = first
        if first is None:
            self.note = self.note or f"{self.options.seconds:g} s were over before the first step"
        elif not math.isfinite(self.before):
            self.note = "the loss of the rounded model is not finite before training; look for layers that overflow"
        else:
            self._train()
        if not self.note and not self.best_loss < self.before:
            self.note = "no step made the held-out loss lower: the weights are the source's"
        self._put(self.best)

    def _train(self) -> None:
        interval = math.ceil(SAMPLES_PER_CHECK * len(self.held_out) / self.options.samples_per_step)
        while self.elapsed() + SPARE * (self.step_seconds + self.check_seconds) < self.options.seconds:
            begun = monotonic()
            loss = self._step()
            if loss is None:
                step = len(self.losses) + 1
                self.note = f"stopped at step {step}, whose loss or gradient is not finite; lower the learning rate"
                return
            self.losses.append(loss)
            self.since += 1
            self.step_seconds = max(self.step_seconds, monotonic() - begun)
            self.on_step(min(1.0, self.elapsed() / self.options.seconds))
            if self.since >= interval:
                self._keep_if_better()
                self._save()
        if self.since:
            self._keep_if_better()
            self._save(last=True)

    def _keep_if_better(self) -> None:
        self.since = 0
        loss = self._check()
        if loss is not None and loss < self.best_loss:
            self.best_loss = loss
            self.best = [value.detach().clone() for value in self.values]

    def _check(self) -> float | None:
        """Mean loss of the held-out samples, None if the time is over before it is known."""
        import torch

        begun = monotonic()
        total = 0.0
        with torch.no_grad():
            for item in self.held_out:
                if self.elapsed() > self.options.seconds:
                    return None
                graph, number = item
                total += float(self.loss(item, self.student.run(graph, self.student.inputs[graph][number])))
        self.check_seconds = max(self.check_seconds, monotonic() - begun)
        if not self.step_seconds:  # forward and backward take three times as long as forward
            self.step_seconds = 3 * self.check_seconds / len(self.held_out) * self.options.samples_per_step
        return total / len(self.held_out)

    def _step(self) -> float | None:
        """One step of Adam; None, and nothing is changed, if a number is not finite."""
        import torch

        rate = (
            self.options.learning_rate * (1 + math.cos(math.pi * min(1.0, self.elapsed() / self.options.seconds))) / 2
        )
        for group, factor in zip(self.optimizer.param_groups, (1.0, SCALE_RATE), strict=False):
            group["lr"] = factor * rate
        self.optimizer.zero_grad()
        total = 0.0
        batch = self._batch()
        for item in batch:
            graph, number = item
            loss = self.loss(item, self.student.run(graph, self.student.inputs[graph][number])) / len(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(self.values, LARGEST_GRADIENT))
        if not (math.isfinite(total) and math.isfinite(norm)):
            return None
        self.optimizer.step()
        self.student.changed()
        return total

    def _batch(self) -> list[Item]:
        """The samples of the next step: each once before any comes again, in an order of its own every time."""
        count = len(self.items)
        first = len(self.losses) * self.options.samples_per_step
        places = range(first, first + min(self.options.samples_per_step, count))
        orders = {
            place // count: np.random.default_rng([self.options.seed, place // count]).permutation(count)
            for place in (places[0], places[-1])
        }
        return [self.items[orders[place // count][place % count]] for place in places]

    def _put(self, values: Sequence[torch.Tensor]) -> None:
        import torch

        with torch.no_grad():
            for value, wanted in zip(self.values, values, strict=True):
                value.copy_(wanted)
        self.student.changed()

    def _save(self, last: bool = False) -> None:
        path = self.options.checkpoint
        if path is None or (not last and self.elapsed() - self.saved < CHECKPOINT_SECONDS):
            return
        self.saved = self.elapsed()
        arrays = {"losses": np.array(self.losses, np.float64)}
        for i, value in enumerate(self.values):
            state = self.optimizer.state.get(value, {})
            tensors = {"now": value.detach(), "best": self.best[i], **state}
            arrays.update({f"{kind}.{i}": np.asarray(tensor.numpy()) for kind, tensor in tensors.items()})
        told = {
            "key": self.key, "elapsed": self.saved, "since": self.since, "before": self.before, "best": self.best_loss,
        }  # fmt: skip
        _write(path, arrays, told)

    def _resume(self) -> None:
        path = self.options.checkpoint
        if path is None or not path.exists():
            return
        import torch

        arrays, told = _read(path)
        if told.get("key") != self.key:
            raise InputError(
                f"{path}: a checkpoint of another model, other data or other options; delete it, or name another file"
            )
        self.losses = arrays["losses"].tolist()
        self.spent, self.since = float(told["elapsed"]), int(told["since"])
        self.before, self.best_loss = float(told["before"]), float(told["best"])
        self.best = [torch.from_numpy(arrays[f"best.{i}"]) for i in range(len(self.values))]
        self._put([torch.from_numpy(arrays[f"now.{i}"]) for i in range(len(self.values))])
        for i, value in enumerate(self.values):
            kinds = [kind for kind in ("step", "exp_avg", "exp_avg_sq") if f"{kind}.{i}" in arrays]
            if kinds:
                self.optimizer.state[value] = {kind: torch.from_numpy(arrays[f"{kind}.{i}"]) for kind in kinds}
        self.note = "" if self.elapsed() < self.options.seconds else "the checkpoint's run was over"


def _split(counts: Mapping[str, int]) -> tuple[list[Item], list[Item]]:
    """Held-out items, evenly from all of a recording, and those to train on; a lone sample is both."""
    held_out: list[Item] = []
    trained: list[Item] = []
    for graph, count in counts.items():
        stride = max(HELD_OUT, math.ceil(count * len(counts) / MAX_HELD_OUT))
        apart = set(range(stride // 2, count, stride)) or {count - 1}
        held_out += [(graph, number) for number in sorted(apart)]
        trained += [(graph, number) for number in range(count) if number not in apart or count == 1]
    return held_out, trained


def _key(
    model: EdgeModel, onnx: Mapping[str, Path], samples: Mapping[str, list[Arrays]], options: RecoveryOptions
) -> str:
    """What a checkpoint belongs to: all but the time, which may be prolonged."""
    digest = hashlib.sha256()
    chosen = (options.plan, options.activations, options.learning_rate, options.seed, options.samples_per_step)
    digest.update(repr((model.spec.name, model.source_sha256, chosen, sorted(onnx))).encode())
    for graph, module in model.modules.items():
        digest.update(graph.encode())
        for name, parameter in module.named_parameters():
            digest.update(name.encode() + parameter.detach().numpy().tobytes())
    for graph, given in samples.items():
        for sample in given:
            for name, array in sample.items():
                digest.update(f"{graph} {name} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _write(path: Path, arrays: Mapping[str, np.ndarray], told: Mapping[str, Any]) -> None:
    import io

    buffer = io.BytesIO()
    np.savez(buffer, **{**arrays, "told": np.array(json.dumps(told))})  # type: ignore[arg-type]
    with writing(path):
        write_atomically(path, buffer.getvalue())


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        told = json.loads(str(arrays.pop("told")))
    except Exception as error:
        raise InputError(f"{path}: no checkpoint, or a damaged one ({error}); delete it to start anew") from error
    return arrays, told
