"""inspect(): what a model is, what would fail or be slow on each target, and what of it can be pruned; in seconds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeattn.converters.preflight.judge import Finding, GraphFacts, facts, look
from edgeattn.converters.preflight.view import GraphView
from edgeattn.errors import EdgeattnError, UnsupportedError
from edgeattn.evaluation.data import Data
from edgeattn.model import EdgeModel
from edgeattn.pipeline.steps.options import ConvertOptions
from edgeattn.pipeline.steps.preflight import calibration_sample, describe, engine, foresee
from edgeattn.pipeline.steps.repeatable import confirmed
from edgeattn.pipeline.steps.sensitivity import ModelSensitivity, model_sensitivity, sensitivity_json
from edgeattn.progress import Progress
from edgeattn.pruning import Stack, Unit, Unknown, prunable
from edgeattn.spec import to_json
from edgeattn.targets import Target

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """What to look at.

    Attributes:
        precision, backend: as for :class:`~edgeattn.pipeline.steps.options.ConvertOptions`.
        sensitivity: whether to measure what quantizing each layer costs; that takes minutes, and data.
        samples: at most this many to measure the metric on, for every layer.
    """

    targets: tuple[Target, ...]
    precision: str = "auto"
    backend: str | None = None
    sensitivity: bool = False
    samples: int = 60


@dataclass(frozen=True, kw_only=True)
class TargetFindings:
    """What preflight says of one target, with the engine that it would be converted for."""

    target: str
    engine: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class PrunableParts:
    """What pruning finds in a model: units and stacks, what it does not know, or why it finds nothing at all."""

    units: tuple[Unit, ...] = ()
    stacks: tuple[Stack, ...] = ()
    unknown: tuple[Unknown, ...] = ()
    why_not: str = ""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What :func:`inspect` found.

    Attributes:
        model: the report's ``model`` object.
        notes: of the source, for people.
        seconds: that preflight took.
        sensitivity: None where it was not asked for.
    """

    model: Mapping[str, Any]
    graphs: tuple[GraphFacts, ...]
    notes: tuple[str, ...]
    targets: tuple[TargetFindings, ...]
    prunable: PrunableParts
    seconds: float
    sensitivity: ModelSensitivity | None = None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Of all targets."""
        return tuple(row for each in self.targets for row in each.findings)

    @property
    def exit_code(self) -> int:
        """4 if a target would stop the conversion, as convert would exit; else 0."""
        stopped = any(row.severity == "stops" for row in self.findings)
        return UnsupportedError.exit_code if stopped else 0

    def to_json(self) -> dict[str, Any]:
        """The object of ``--json``."""
        return {
            "schema": SCHEMA,
            "model": dict(self.model),
            "graphs": to_json(self.graphs),
            "notes": list(self.notes),
            "targets": to_json(self.targets),
            "prunable": _prunable_json(self.prunable),
            "seconds": self.seconds,
            **({} if self.sensitivity is None else {"sensitivity": sensitivity_json(self.sensitivity)}),
        }


def check_targets(options: InspectOptions) -> None:
    """Refuse an engine that the only target has not, before anything is loaded.

    Raises:
        UnsupportedError: naming the engines that it has.
    """
    for target in options.targets:
        _engine_or_first(target, _as_for_convert(options))


def inspect(model: EdgeModel, data: Data | None, options: InspectOptions, progress: Progress) -> Inspection:
    """Look at a model: its graphs, what each target would say, and what can be removed.

    Of several targets, one that cannot be asked (it lacks the engine or the precision) has a row that says so.

    Args:
        data: of which one sample shows the value ranges of use; all of it is measured on for ``sensitivity``.

    Raises:
        EdgeattnError: if the model does not repeat itself, the only target lacks what is asked for, or sensitivity
            cannot be measured.
    """
    asked = _as_for_convert(options)
    engines = [_engine_or_first(target, asked) for target in options.targets]
    source = confirmed(model)
    progress.begin("preflight")
    began = time.monotonic()
    views = look(source, calibration_sample(source, data))
    targets = tuple(
        TargetFindings(target=target.name, engine=name, findings=_findings(source, views, target, name, data, asked))
        for target, name in zip(options.targets, engines, strict=True)
    )
    seconds = round(time.monotonic() - began, 3)
    progress.begin("looking for heads and neurons")
    parts = prunable_parts(source)
    return Inspection(
        model=describe(source),
        graphs=tuple(map(facts, views)),
        notes=tuple(source.notes),
        targets=targets,
        prunable=parts,
        seconds=seconds,
        sensitivity=model_sensitivity(source, data, options.samples, progress) if options.sensitivity else None,
    )


def prunable_parts(source: EdgeModel) -> PrunableParts:
    """Look for what can be removed; a model in which there is nothing is no error here."""
    try:
        anatomy = prunable(source).anatomy
    except EdgeattnError as error:
        return PrunableParts(why_not=str(error))
    return PrunableParts(units=tuple(anatomy.units), stacks=tuple(anatomy.stacks), unknown=tuple(anatomy.unknown))


def _as_for_convert(options: InspectOptions) -> ConvertOptions:
    return ConvertOptions(targets=options.targets, precision=options.precision, backend=options.backend)


def _engine_or_first(target: Target, options: ConvertOptions) -> str:
    """The engine of a target; of several targets, one that has not the one asked for is told in its findings."""
    try:
        return engine(target, options)
    except UnsupportedError:
        if len(options.targets) == 1:
            raise
        return target.backends[0]


def _findings(
    source: EdgeModel,
    views: tuple[GraphView, ...],
    target: Target,
    name: str,
    data: Data | None,
    options: ConvertOptions,
) -> tuple[Finding, ...]:
    try:
        return foresee(source, views, target, data, options)
    except UnsupportedError as error:
        if len(options.targets) == 1:
            raise
        return (_cannot_be_asked(target, name, error),)


def _cannot_be_asked(target: Target, name: str, error: UnsupportedError) -> Finding:
    return Finding(
        target=target.name,
        engine=name,
        graph="",
        severity="stops",
        rule="target",
        node="",
        module="",
        line="",
        count=1,
        reason=str(error),
        change="leave this target out, or choose an engine and a precision that it has",
        predicted=False,
    )


def _prunable_json(parts: PrunableParts) -> dict[str, Any]:
    return {
        "units": [_unit_json(unit) for unit in parts.units],
        "stacks": [{"path": s.path, "layers": s.layers, "pinned": list(s.pinned)} for s in parts.stacks],
        "unknown": [{"path": u.path, "kind": u.kind, "why": u.why} for u in parts.unknown],
        "why_not": parts.why_not or None,
    }


def _unit_json(unit: Unit) -> Mapping[str, object]:
    return {
        "path": unit.path,
        "kind": unit.kind,
        "family": unit.family,
        "groups": unit.groups,
        "heads": unit.heads or None,
        "head_dim": unit.head_dim or None,
        "cross": unit.cross,
    }
