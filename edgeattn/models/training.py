"""What every training of a built-in model takes, tells and gives; how it learns is the model's own affair.

Importing this loads no framework.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from edgeattn.errors import EdgeattnError, InputError

MEANING, LEAST = "meaning", "least"  # of a field, in its metadata

T = TypeVar("T")


class TrainingError(EdgeattnError):
    """Training cannot go on, for example after a loss that is not finite."""


def option(default: T, meaning: str, least: int | None = None) -> T:
    """A field of a training's options, as ``edgeattn train`` shows it.

    Args:
        default: a truth value, number, text or tuple of texts; what is given on the command line is of its type.
        meaning: a sentence for ``--help``.
        least: of a number.
    """
    return field(default=default, metadata={MEANING: meaning, LEAST: least})


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What every training takes; a model adds fields of its own in a subclass, each made by :func:`option`.

    An option that several models have is one that they inherit from one class: a name means one thing.

    Raises:
        InputError: for a number of steps or threads below 0.
    """

    steps: int = option(0, "Steps of all stages together; 0 for the recipe's own.", 0)
    seed: int = option(0, "Of everything random.")
    resume: bool = option(False, "Go on from the checkpoints in --out.")
    held_out: tuple[str, ...] = option((), "Speakers, or split=NAME, that training never hears; separated by commas.")
    threads: int = option(0, "Threads of torch; 0 for its own choice.", 0)

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise InputError(f"--steps must be 0 (the recipe's own number) or more, got {self.steps}")
        if self.threads < 0:
            raise InputError(f"--threads must be 0 (torch's own choice) or more, got {self.threads}")


@dataclass(frozen=True, kw_only=True)
class TrainProgress:
    """Where a training is.

    Attributes:
        stage: its name; a training has one or several, each with steps of its own.
        loss: mean since the last report.
        seconds: since the stage began, or was resumed.
        measured: what the metric is on what training never sees, in words; empty between evaluations.
    """

    stage: str
    step: int
    steps: int
    loss: float
    seconds: float
    measured: str = ""


OnProgress = Callable[[TrainProgress], None]


@dataclass(frozen=True)
class Trained:
    """What a training gives; a model adds what it measured, as plain values or dataclasses of them."""

    weights: Path
