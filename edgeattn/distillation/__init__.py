"""Distillation: a changed copy of a model learns to give the outputs of the model that it was made from.

What recovery after quantization and after pruning have in common (Hinton et al. 2015, arXiv 1503.02531): the loss,
which samples are held out, and a run that keeps to its time, goes on from a checkpoint and keeps the best weights.
"""

from __future__ import annotations

from edgeattn.distillation.checkpoint import digest, read_checkpoint, write_checkpoint
from edgeattn.distillation.items import Batches, Item, TeacherCache, split
from edgeattn.distillation.loss import Loss, Tensors, measured_loss
from edgeattn.distillation.trainer import Learner, Point, Schedule, Trainer, training

__all__ = [
    "Batches",
    "Item",
    "Learner",
    "Loss",
    "Point",
    "Schedule",
    "TeacherCache",
    "Tensors",
    "Trainer",
    "digest",
    "measured_loss",
    "read_checkpoint",
    "split",
    "training",
    "write_checkpoint",
]  # fmt: skip
