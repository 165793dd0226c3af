"""What a rule of preflight is: a small function with a name, engines and severities; it yields a hit per place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from edgeattn.converters.onnx_operators import takes
from edgeattn.converters.preflight.graph import Call
from edgeattn.converters.preflight.view import GraphView
from edgeattn.engines import ENGINES, Engine
from edgeattn.model import EdgeModel
from edgeattn.targets import Target

Severity = Literal["stops", "slow", "risk", "handled"]
NO_CHANGE = "nothing needs to be done"


@dataclass(frozen=True)
class Question:
    """What is asked: a model on an engine of a target in some precisions.

    Attributes:
        calibrated: whether calibration data is given.
        ranges: whether every int8 that is asked for takes ranges from calibration; False if one works without.
        cut: which samples are longer than the model's largest size, in words; empty for none.
    """

    model: EdgeModel
    target: Target
    engine: str
    precisions: tuple[str, ...]
    calibrated: bool
    ranges: bool = True
    cut: str = ""


@dataclass(frozen=True)
class Issue:
    """A rule's find at one place; hits of the same reason are shown as one row.

    Attributes:
        node: its name in the traced graph or the ONNX file; empty for a graph as a whole.
        predicted: whether an engine would have to confirm it.
    """

    severity: Severity
    reason: str
    change: str
    node: str = ""
    module: str = ""
    line: str = ""
    predicted: bool = False


@dataclass(frozen=True)
class Rule:
    """A rule; the first line of its function's docstring is what the documentation says of it.

    Attributes:
        find: from a graph and what is asked to its hits.
        applies: to which engines.
        severities: that it may give.
    """

    find: Callable[[GraphView, Question], Iterator[Issue]]
    applies: Callable[[Engine], bool]
    severities: tuple[Severity, ...]

    @property
    def engines(self) -> tuple[str, ...]:
        """Names of those where it applies."""
        return tuple(name for name, row in ENGINES.items() if self.applies(row))

    @property
    def sees(self) -> str:
        """What it looks for."""
        return (self.find.__doc__ or "").partition("\n")[0].rstrip(".")


def every(_: Engine) -> bool:
    """Any engine."""
    return True


def through_onnx(row: Engine) -> bool:
    """Those that are reached through an ONNX file."""
    return row.through_onnx


def given_as_file(view: GraphView, question: Question) -> bool:
    """Whether the engine gets the user's own ONNX file, and not what is exported of its torch module."""
    if view.onnx is None or not ENGINES[question.engine].through_onnx:
        return False
    return bool(view.refusal) or takes(question.engine, view.onnx)


def half(row: Engine) -> bool:
    """Those where fp16 computes in float16; elsewhere it only stores weights so."""
    return row.half


def ranged(row: Engine) -> bool:
    """Those whose int8 takes the ranges of activations from calibration."""
    return row.ranged


def only(*rows: Engine) -> Callable[[Engine], bool]:
    """These alone."""
    return lambda row: row in rows


def at(call: Call, severity: Severity, reason: str, change: str, predicted: bool = False) -> Issue:
    """A hit at a traced operation."""
    return Issue(severity, reason, change, call.name, call.module, call.line, predicted)


def is_first(view: GraphView, question: Question) -> bool:
    """Whether this is the model's first graph, under which what concerns the whole model is said once."""
    return view.spec.name == question.model.spec.graphs[0].name
