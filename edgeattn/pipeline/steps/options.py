"""What convert() is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeattn.bundle import SUFFIX
from edgeattn.profiling.contract import MeasureOptions
from edgeattn.pruning import Request
from edgeattn.quantize.plan import Plan
from edgeattn.results.gates import Gates
from edgeattn.targets import Target

if TYPE_CHECKING:
    from edgeattn.pruning import Hook


SECONDS = 120.0


@dataclass(frozen=True)
class Effort:
    """How long to look for what plain recipes do not give.

    Attributes:
        search_seconds: for trials of mixed plans.
        recover_seconds: of training with fake quantization; 0 for none.
        search log: where the search keeps its trials; None for nowhere.
    """

    search_seconds: float = SECONDS
    recover_seconds: float = 0.0
    search_log: Path | None = None


@dataclass(frozen=True)
class TargetOptions:
    """What one target has for itself; None for what all have. See :class:`ConvertOptions`."""

    precision: str | None = None
    deadline_ms: float | None = None
    prune: Request | None = None


@dataclass(frozen=True)
class ConvertOptions:
    """What to make and where.

    Attributes:
        precision: "auto", a precision, or a recipe of :mod:`edgeattn.pipeline.steps.recipes`.
        backend: engine, if not the target's first.
        out: directory that receives ``NAME.TARGET.edge``.
        archive: pack each bundle into one .zip instead of a directory.
        force: replace a bundle that is there.
        keep_failed: publish a bundle although a gate failed.
        measure: how the shipped bundle is profiled.
        plan: treatment of layers by module path, for every engine.
        effort: how long to search mixed plans and to train where plain recipes lose the metric.
        prune: what to remove before anything is quantized; None for nothing.
        loss: a loss of the user's, for the importance of what may be removed and for recovery.
        dla: have the device build its engine for its DLA, as far as that can run it.
        own: by the name of a target, what it has for itself.
        accept_unproved: ship what kept the metric on the samples, and say so, where they are too few to show it.
    """

    targets: tuple[Target, ...]
    precision: str = "auto"
    backend: str | None = None
    out: Path = Path("out")
    gates: Gates = field(default_factory=Gates)
    measure: MeasureOptions = field(default_factory=MeasureOptions)
    archive: bool = False
    force: bool = False
    keep_failed: bool = False
    plan: Plan = field(default_factory=Plan)
    effort: Effort = field(default_factory=Effort)
    prune: Request | None = None
    loss: Hook | None = None
    dla: bool = False
    own: Mapping[str, TargetOptions] = field(default_factory=dict)
    accept_unproved: bool = False

    @property
    def suffix(self) -> str:
        """Of the bundles that are made."""
        return f"{SUFFIX}.zip" if self.archive else SUFFIX

    def path(self, name: str, target: Target, suffix: str) -> Path:
        """Where a target's result goes, of a model of that name."""
        return self.out / f"{name}.{target.name}{suffix}"

    def of(self, target: Target) -> ConvertOptions:
        """The options of one target: its own, else those of all; its default deadline where none was asked for."""
        own = self.own.get(target.name, TargetOptions())
        asked = self.gates.deadline_ms if own.deadline_ms is None else own.deadline_ms
        return replace(
            self,
            precision=own.precision or self.precision,
            gates=replace(self.gates, deadline_ms=asked),
            measure=replace(self.measure, deadline_ms=target.default_deadline_ms if asked is None else asked),
            prune=own.prune or self.prune,
            own={},
        )
