"""What a user asks of pruning: how much of each kind to remove, or which budget to meet; and its one-line form."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from edgeattn.errors import InputError, unknown_name

SPARSITY = "2:4"
BUDGETS = ("speedup", "deadline_ms", "max_drop")
FORM = "speedup=1.5, deadline=20ms, max-drop=0.5, or shares such as heads=0.25,neurons=0.5,layers=1"


@dataclass(frozen=True)
class Request:
    """A budget to meet, or shares to remove.

    Attributes:
        speedup: least speed of the float model over the unpruned one, on the target.
        deadline_ms: most milliseconds of one call of the float model, on the target.
        max_drop: most points of the metric that may be lost; as much as that allows is removed.
        heads: share of key/value heads to remove from each attention, with their query heads.
        neurons: share of neurons to remove from each feed-forward.
        layers: layers to leave out, over all stacks.
        kv_heads: key/value heads that those of each attention are merged into.
        rank: share of the full rank that projections keep, as two layers each.
        left: left context of a stream, in encoder frames.
        sparsity: "2:4" for two zeros in every four weights of a row.
        saved: directory of a pruned model whose cut and weights are applied as they are.
        samples: that importance is measured on, at most.
        recover_seconds: of distillation from the unpruned model; 0 for none.
    """

    speedup: float | None = None
    deadline_ms: float | None = None
    max_drop: float | None = None
    heads: float | None = None
    neurons: float | None = None
    layers: int | None = None
    kv_heads: int | None = None
    rank: float | None = None
    left: int | None = None
    sparsity: str | None = None
    saved: Path | None = None
    samples: int = 256
    recover_seconds: float = 0.0

    def __post_init__(self) -> None:
        budgets = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(budgets) > 1:
            raise InputError(f"{_flag(budgets[0])} and {_flag(budgets[1])}: pruning meets one budget, leave one out")
        shares = [name for name in ("heads", "neurons") if getattr(self, name) is not None]
        if budgets and (shares or self.layers is not None):
            given = [*shares, *(["layers"] if self.layers is not None else [])]
            raise InputError(f"{_flag(budgets[0])} finds out what to remove itself: leave out {_flag(given[0])}")
        for name in ("heads", "neurons", "rank"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and 0 < value < 1):
                raise InputError(f"{_flag(name)} is a share between 0 and 1, both excluded, got {value:g}")
        for name in ("layers", "kv_heads", "left", "samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{_flag(name)} must be at least 1, got {value}")
        if self.speedup is not None and not (math.isfinite(self.speedup) and self.speedup > 1):
            raise InputError(f"speedup must be more than 1, got {self.speedup:g}")
        if self.max_drop is not None and not (math.isfinite(self.max_drop) and self.max_drop >= 0):
            raise InputError(f"max-drop must be 0 or more points, got {self.max_drop:g}")
        if self.sparsity not in (None, SPARSITY):
            raise InputError(f"sparsity must be {SPARSITY}, got {self.sparsity!r}")
        if self.saved is not None and (budgets or self.asked_shares):
            raise InputError(f"{self.saved} says what is removed: leave the other prune options out")
        if self.saved is None and not budgets and not self.asked_shares:
            raise InputError(f"nothing to prune: give {FORM}")

    @property
    def asked_shares(self) -> tuple[str, ...]:
        """Names of what is asked for by amount."""
        names = ("heads", "neurons", "layers", "kv_heads", "rank", "left", "sparsity")
        return tuple(name for name in names if getattr(self, name) is not None)

    def limit_ms(self, full_ms: float) -> float:
        """What the deadline or the speed allows a model that takes ``full_ms`` whole; all of it without either."""
        return self.deadline_ms if self.deadline_ms is not None else full_ms / (self.speedup or 1.0)

    @property
    def budget(self) -> str | None:
        """Name of the budget, None where amounts are asked for."""
        return next((name for name in BUDGETS if getattr(self, name) is not None), None)


def _flag(name: str) -> str:
    return name.removesuffix("_ms").replace("_", "-")


def _milliseconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(us|ms|s)", text)
    if match is None:
        raise ValueError("a time such as 20ms")
    return float(match[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[match[2]]


def _speedup(text: str) -> float:
    return float(text.removesuffix("x"))


READERS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "speedup": ("speedup", _speedup),
    "deadline": ("deadline_ms", _milliseconds),
    "max-drop": ("max_drop", float),
    "heads": ("heads", float),
    "neurons": ("neurons", float),
    "layers": ("layers", int),
    "kv-heads": ("kv_heads", int),
    "rank": ("rank", float),
    "left": ("left", int),
    "sparsity": ("sparsity", str),
    "samples": ("samples", int),
}
"""Key of ``--prune`` -> field, and how its value is read."""


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
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key not in READERS:
            raise InputError(f"--prune {text}: {unknown_name('option', key, READERS)}")
        name, read = READERS[key]
        if name in values:
            raise InputError(f"--prune {text}: {key} is given twice")
        try:
            values[name] = read(value)
        except ValueError as error:
            raise InputError(f"--prune {text}: {key}={value}: {error}") from error
    return Request(**values, recover_seconds=recover_seconds)


def request_text(request: Request) -> str:
    """The one-line form, for reports."""
    if request.saved is not None:
        return str(request.saved)
    parts = []
    for key, (name, _) in READERS.items():
        value = getattr(request, name)
        default = next(field.default for field in fields(Request) if field.name == name)
        if value is not None and value != default:
            parts.append(f"{key}={value:g}ms" if key == "deadline" else f"{key}={value}")
    return ",".join(parts)
