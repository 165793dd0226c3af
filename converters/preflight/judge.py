"""Preflight: what will fail, be slow or be at risk on a target, told in seconds and before any conversion.

One torch.export trace per graph, one run of it on one batch, and static rules over both
(:mod:`edgeattn.converters.preflight.rules`, and :mod:`~edgeattn.converters.preflight.rules_onnx` for ONNX sources). No
engine is loaded: what an engine would say is predicted from operations that were tried on it, and the row says so.
docs/preflight.md lists the rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeattn.converters.preflight.rule import NO_CHANGE, Issue, Question, Rule, Severity
from edgeattn.converters.preflight.rules import RULES as TRACED_RULES
from edgeattn.converters.preflight.rules_onnx import ONNX_RULES
from edgeattn.converters.preflight.rules_size import memory_need
from edgeattn.converters.preflight.view import GraphView, look
from edgeattn.errors import UnsupportedError
from edgeattn.model import Arrays, EdgeModel
from edgeattn.spec import StateSpec, TensorSpec
from edgeattn.targets import Target

__all__ = [
    "RULES",
    "Finding",
    "GraphFacts",
    "GraphView",
    "Question",
    "facts",
    "judge",
    "look",
    "memory_need",
    "preflight",
    "refuse",
]

RULES: Mapping[str, Rule] = {**TRACED_RULES, **ONNX_RULES}
PASS_RULE = "rewritten"  # noqa: S105  # the rule name of rows that tell what a pass mended
ORDER: tuple[Severity, ...] = ("stops", "slow", "risk", "handled")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One row: a rule, on a target, for all places of a graph with the same reason.

    Attributes:
        severity: "stops" (conversion fails), "slow", "risk", or "handled" (a pass of the converters mends it).
        rule: its name in docs/preflight.md.
        node: the first place: node of the traced graph or the ONNX file, empty for the graph as a whole.
        module: path of the torch module there.
        line: ``file.py:12`` of the user's code there, where known.
        count: number of places.
        change: what helps.
        predicted: whether only the engine can confirm it.
    """

    target: str
    engine: str
    graph: str
    severity: Severity
    rule: str
    node: str
    module: str
    line: str
    count: int
    reason: str
    change: str
    predicted: bool

    @property
    def place(self) -> str:
        """Where, for people: ``node 'softmax_3' of module encoder.0 (model.py:12), 11 more``."""
        parts = [f"node {self.node!r}"] * bool(self.node) + [f"of module {self.module}"] * bool(self.module)
        if self.line:
            parts.append(f"({self.line})")
        return " ".join(parts) + (f", {self.count - 1} more" if self.count > 1 else "")

    def __str__(self) -> str:
        where = f" at {self.place}" if self.place else ""
        return f"graph {self.graph!r}{where}: {self.reason.rstrip('.')}; {self.change}"


def preflight(
    model: EdgeModel,
    target: Target,
    backend: str,
    precisions: Sequence[str],
    samples: Mapping[str, Arrays] | None = None,
    calibrated: bool = False,
) -> tuple[Finding, ...]:
    """What will fail or be bad on one target.

    Args:
        backend: engine.
        precisions: that are to be tried.
        samples: graph -> one set of inputs and states to record value ranges on; the example where absent.
        calibrated: whether int8 will have calibration data.

    Returns:
        what stops first, then what is slow, then risks, then what the converters' passes take care of.
    """
    return judge(look(model, samples), Question(model, target, backend, tuple(precisions), calibrated))


def judge(views: Iterable[GraphView], question: Question) -> tuple[Finding, ...]:
    """The findings for one target, from graphs that were looked at once for all targets."""
    rows = []
    for view in views:
        for name, rule in RULES.items():
            if question.engine in rule.engines:
                rows += _rows(view, question, name, rule.find(view, question))
        rows += _rows(view, question, PASS_RULE, _mended(view))
    return tuple(sorted(rows, key=lambda row: ORDER.index(row.severity)))


@dataclass(frozen=True, kw_only=True)
class GraphFacts:
    """What ``edgeattn inspect`` tells of a graph.

    Attributes:
        parameters: number of weights, each once; None like all figures below where the graph cannot be traced.
        macs: multiply-adds of one call.
        flops: two per multiply-add, and one per element of every other result.
        activation_bytes: largest sum of tensors that live at the same time, in the types of the source.
        attention: module paths where attention is computed.
        ranges: "recorded", or why value ranges were not.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...]
    parameters: int | None
    macs: int | None
    flops: int | None
    activation_bytes: int | None
    attention: tuple[str, ...]
    ranges: str


def facts(view: GraphView) -> GraphFacts:
    """The figures of a graph that was looked at."""
    spec, figures = view.spec, view.figures
    return GraphFacts(
        name=spec.name,
        inputs=spec.inputs,
        outputs=spec.outputs,
        states=spec.states,
        parameters=None if figures is None else figures.parameters,
        macs=None if figures is None else figures.macs,
        flops=None if figures is None else figures.flops,
        activation_bytes=None if figures is None else figures.activation_bytes,
        attention=() if figures is None else figures.attention,
        ranges=view.no_ranges or "recorded",
    )


def refuse(findings: Sequence[Finding]) -> None:
    """Stop before any conversion if a row says that it would fail.

    Raises:
        UnsupportedError: with what stops, why, and what to change, one sentence per row.
    """
    stops = [row for row in findings if row.severity == "stops"]
    if stops:
        where = f"{stops[0].engine} on {stops[0].target}"
        raise UnsupportedError(f"preflight for {where}: " + ". ".join(map(str, stops)))


def _mended(view: GraphView) -> Iterator[Issue]:
    done = ", ".join(f"{name} {count}" for name, count in view.passes.items() if count)
    if done:
        yield Issue("handled", f"passes of the converters rewrote the graph, places each: {done}", NO_CHANGE)


def _rows(view: GraphView, question: Question, rule: str, issues: Iterable[Issue]) -> list[Finding]:
    """One row for hits whose reasons differ in their numbers alone; the first place stands for all."""
    grouped: dict[Any, list[Issue]] = {}
    for issue in issues:
        grouped.setdefault((issue.severity, re.sub(r"\d[\d.e+]*", "#", issue.reason)), []).append(issue)
    return [
        Finding(
            target=question.target.name,
            engine=question.engine,
            graph=view.spec.name,
            severity=first.severity,
            rule=rule,
            node=first.node,
            module=first.module,
            line=first.line,
            count=len(found),
            reason=first.reason,
            change=first.change,
            predicted=first.predicted,
        )
        for found in grouped.values()
        for first in found[:1]
    ]
