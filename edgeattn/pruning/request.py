"""What a user asks of pruning: how much of each form, or which budget to meet; and its one-line form."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeattn.errors import InputError, MissingExtraError, load_extra, unknown_name

if TYPE_CHECKING:
    from edgeattn.pruning.forms.form import Form

FORM = "speedup=1.5, deadline=20ms, max-drop=0.5, or shares such as heads=0.25,neurons=0.5,layers=1"
SAMPLES = 256


@dataclass(frozen=True, kw_only=True)
class Request:
    """A budget to meet, or amounts of forms.

    Attributes:
        speedup: least speed of the float model over the unpruned one, on the target.
        deadline_ms: most milliseconds of one call of the float model, on the target.
        max_drop: most points of the metric that may be lost; as much as that allows is removed.
        amounts: key of a form and what is asked of it, in the order of the forms; see :func:`amounts`.
        saved: directory of a pruned model whose cut and weights are applied as they are.
        samples: that importance is measured on, at most.
        recover_seconds: of distillation from the unpruned model, all that is tried for a target together; 0 for none.
    """

    speedup: float | None = None
    deadline_ms: float | None = None
    max_drop: float | None = None
    amounts: tuple[tuple[str, Any], ...] = ()
    saved: Path | None = None
    samples: int = SAMPLES
    recover_seconds: float = 0.0

    def __post_init__(self) -> None:
        budgets = [key for key, name in BUDGETS.items() if getattr(self, name) is not None]
        if len(budgets) > 1:
            raise InputError(f"{budgets[0]} and {budgets[1]}: pruning meets one budget, leave one out")
        forms = _forms() if budgets and self.amounts else {}
        removing = [key for key, _ in self.amounts if budgets and forms[key].removes]
        if removing:
            raise InputError(f"{budgets[0]} finds out what to remove itself: leave out {removing[0]}")
        if self.speedup is not None and not (math.isfinite(self.speedup) and self.speedup > 1):
            raise InputError(f"speedup must be more than 1, got {self.speedup:g}")
        if self.max_drop is not None and not (math.isfinite(self.max_drop) and self.max_drop >= 0):
            raise InputError(f"max-drop must be 0 or more points, got {self.max_drop:g}")
        if self.samples < 1:
            raise InputError(f"samples must be at least 1, got {self.samples}")
        if self.saved is not None and (budgets or self.amounts):
            raise InputError(f"{self.saved} says what is removed: leave the other prune options out")
        if self.saved is None and not budgets and not self.amounts:
            raise InputError(f"nothing to prune: give {FORM}")

    def limit_ms(self, full_ms: float) -> float:
        """What the deadline or the speed allows a model that takes ``full_ms`` whole; all of it without either."""
        return self.deadline_ms if self.deadline_ms is not None else full_ms / (self.speedup or 1.0)

    @property
    def budget(self) -> str | None:
        """Field of the budget, None where amounts alone are asked for."""
        return next((name for name in BUDGETS.values() if getattr(self, name) is not None), None)


def _forms() -> Mapping[str, Form]:
    """The table of forms, which loads torch.

    Raises:
        MissingExtraError: without torch.
    """
    load_extra("torch", "convert")
    from edgeattn.pruning.forms import FORMS

    return FORMS


def amounts(asked: Mapping[str, str]) -> tuple[tuple[str, Any], ...]:
    """What is asked of each form, read and in the order of the forms.

    Args:
        asked: key of a form -> text of its value.

    Raises:
        InputError: for a key that is no form's, or a value that is none.
    """
    forms = _forms() if asked else {}
    for key in asked:
        if key not in forms:
            raise InputError(unknown_name("option", key, (*READERS, *forms)))
    return tuple((key, _amount(form, asked[key])) for key, form in forms.items() if key in asked)


def _amount(form: Form, text: str) -> Any:
    try:
        return form.parse(text)
    except ValueError as error:
        raise InputError(f"{form.key}={text}: {error}") from error


def _milliseconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(us|ms|s)", text)
    if match is None:
        raise ValueError("a time such as 20ms")
    return float(match[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[match[2]]


def _speedup(text: str) -> float:
    return float(text.removesuffix("x"))


BUDGETS: Mapping[str, str] = {"speedup": "speedup", "deadline": "deadline_ms", "max-drop": "max_drop"}
"""Key of ``--prune`` -> field."""

READERS: Mapping[str, Callable[[str], Any]] = {
    "speedup": _speedup, "deadline": _milliseconds, "max-drop": float, "samples": int,
}  # fmt: skip
"""Key of ``--prune`` that is no form -> how its value is read."""


def parse_request(text: str, recover_seconds: float = 0.0) -> Request:
    """``speedup=1.5``, ``heads=0.25,neurons=0.25`` or the directory of a pruned model.

    Raises:
        InputError: saying which part is wrong and what it may be.
    """
    if "=" not in text:
        path = Path(text)
        if not path.is_dir():
            raise InputError(f"--prune {text}: no directory of a pruned model, and no {FORM}")
        return Request(saved=path, recover_seconds=recover_seconds)
    values: dict[str, Any] = {}
    asked: dict[str, str] = {}
    for part in text.split(","):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key in values or key in asked:
            raise InputError(f"--prune {text}: {key} is given twice")
        if key not in READERS:
            asked[key] = value
            continue
        try:
            values[key] = READERS[key](value)
        except ValueError as error:
            raise InputError(f"--prune {text}: {key}={value}: {error}") from error
    try:
        forms = amounts(asked)
    except MissingExtraError:
        raise
    except InputError as error:
        raise InputError(f"--prune {text}: {error}") from error
    named = {BUDGETS.get(key, key): value for key, value in values.items()}
    return Request(**named, amounts=forms, recover_seconds=recover_seconds)


def request_text(request: Request) -> str:
    """The one-line form, for reports."""
    if request.saved is not None:
        return str(request.saved)
    parts = []
    if request.speedup is not None:
        parts.append(f"speedup={request.speedup}")
    if request.deadline_ms is not None:
        parts.append(f"deadline={request.deadline_ms:g}ms")
    if request.max_drop is not None:
        parts.append(f"max-drop={request.max_drop}")
    parts += [f"{key}={value}" for key, value in request.amounts]
    if request.samples != SAMPLES:
        parts.append(f"samples={request.samples}")
    return ",".join(parts)
