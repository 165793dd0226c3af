"""Recovery of a budget that search alone cannot meet: the rounded model learns from the float model.

Distillation on the calibration data (Hinton et al. 2015, arXiv 1503.02531) with fake quantization (Jacob et al. 2018,
arXiv 1712.05877), for a few minutes. Weights keep the scales that every engine's quantizer computes from them;
scales of static activations are learned (LSQ, Esser et al. 2020, arXiv 1902.08153) and go into the export.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Literal

from edgeattn.engines import ONNXRUNTIME
from edgeattn.errors import load_extra
from edgeattn.model import EdgeModel, one_thread
from edgeattn.quantize.calibration import Calibration, checked_samples
from edgeattn.quantize.plan import EVERYTHING, Plan

if TYPE_CHECKING:
    import torch

    from edgeattn.distillation import Item, Loss, Tensors
    from edgeattn.quantize.student import Student


SCALE_RATE = 10.0  # of the logarithm of a scale, over that of weights


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


@dataclass(frozen=True, kw_only=True)
class RecoveredModel:
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
        calibrated: paths of int8 layers with calibrated scales, which the export computes again.
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
) -> RecoveredModel:
    """Train a copy of a model so that its rounded outputs come back to those of the float model.

    What is trained are the weights of linear layers, their biases and the weights and biases of normalisations; of a
    graph that is an ONNX file itself, the weights alone, which are found in that file again.

    The loss, over all float outputs and states, is that of :func:`~edgeattn.distillation.measured_loss`.

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
    for extra in ("torch", "onnx", ONNXRUNTIME.module):
        load_extra(extra, "convert")
    from edgeattn.distillation import Batches, Schedule, Trainer, digest, split, training
    from edgeattn.quantize.student import Student

    samples = {graph: checked_samples(calibration, graph, path) for graph, path in onnx.items()}
    with one_thread() if model.spec.stream is not None else contextlib.nullcontext(), training():
        student = Student(model, onnx, samples, options.plan, options.activations == "dynamic")
        held_out, trained = split({graph: len(given) for graph, given in student.inputs.items()})
        chosen = (
            model.spec.name, model.source_sha256, options.plan, options.activations, options.learning_rate,
            options.seed, options.samples_per_step, sorted(onnx),
        )  # fmt: skip
        every = ((graph, sample) for graph, given in samples.items() for sample in given)
        run = Trainer(
            _Learner(student, held_out),
            Batches([trained], options.samples_per_step, options.seed),
            held_out,
            Schedule(
                options.seconds,
                options.learning_rate,
                options.samples_per_step,
                checkpoint=options.checkpoint,
                student="rounded model",
            ),
            digest(chosen, [model.modules], every),
            monotonic,
            started,
            on_step,
        )
        run.run()
        student.finish()
    return RecoveredModel(
        model=student.model(), scales=student.learned(), losses=tuple(run.losses), seconds=run.elapsed(),
        before=run.before, after=run.best_loss, calibrated=student.calibrated, untrained=student.untrained,
        note=run.note,
    )  # fmt: skip


class _Learner:
    """The rounded model with its teacher, the float model: see :class:`~edgeattn.distillation.Learner`."""

    def __init__(self, student: Student, held_out: Sequence[Item]) -> None:
        from edgeattn.distillation import TeacherCache, measured_loss

        self.student = student
        self.kept: TeacherCache[Tensors] = TeacherCache()
        stream = student.source.spec.stream
        self.distance: Loss = measured_loss(
            ((item[0], self._targets(item)) for item in held_out), None if stream is None else stream.scores
        )

    @property
    def groups(self) -> Sequence[tuple[Sequence[torch.nn.Parameter], float]]:
        """Weights, and scales, which change faster."""
        return [(self.student.trained, 1.0), (self.student.learned_scales, SCALE_RATE)]

    def backward(self, items: Sequence[Item]) -> Iterator[float]:
        """One update for all items."""
        total = 0.0
        for item in items:
            loss = self._loss(item) / len(items)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        yield total

    def loss(self, items: Sequence[Item], over: Callable[[], bool]) -> float | None:
        """Mean of the items; None if the time is over before it is known."""
        import torch

        total = 0.0
        with torch.no_grad():
            for item in items:
                if over():
                    return None
                total += float(self._loss(item))
        return total / len(items)

    def changed(self) -> None:
        """Weights are rounded again."""
        self.student.changed()

    def _loss(self, item: Item) -> torch.Tensor:
        graph, number = item
        outputs = self.student.run(graph, self.student.inputs[graph][number])
        return self.distance(graph, outputs, self._targets(item))

    def _targets(self, item: Item) -> Tensors:
        """Float outputs and states of one sample."""
        import torch

        kept = self.kept.get(item)
        if kept is not None:
            return kept
        graph, number = item
        with torch.no_grad():
            everything = self.student.source.modules[graph](**self.student.inputs[graph][number])
        outputs = {name: value.clone() for name, value in everything.items() if value.is_floating_point()}
        self.kept.keep(item, outputs, outputs.values())
        return outputs
