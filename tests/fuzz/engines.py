"""Programs through preflight, the project's converters and its runtimes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from edgeattn.converters.preflight.judge import RULES, look
from edgeattn.converters.preflight.rule import Question
from edgeattn.converters.preflight.view import GraphView
from edgeattn.engines import ENGINES
from edgeattn.errors import EdgeattnError
from edgeattn.guards.silence import silenced
from edgeattn.model import EdgeModel
from edgeattn.pipeline.steps.baseline import Baseline
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.recipes import build
from edgeattn.runtimes import Session, open_session
from edgeattn.sources.modules import from_module
from edgeattn.targets import get_target
from tests.fuzz.inputs import inputs, together
from tests.fuzz.oracle import Expected, expected
from tests.fuzz.programs import Program, Several

CRASHED = "crashed with"  # how an error begins that is no EdgeattnError
TARGETS = {"openvino": "cpu", "tensorrt": "jetson-orin-nano", "litert": "android-arm64"}


@dataclass
class Outcome:
    """What came of one program.

    Attributes:
        refused: engine -> why preflight does not take it.
        late: engine -> why conversion refused what preflight had let through.
        wrong: engine -> what differs, on which set of inputs.
        compared: engines whose outputs were compared.
    """

    program: Program
    refused: dict[str, str] = field(default_factory=dict)
    late: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    compared: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Looked:
    """Some programs of a batch as one model."""

    exports: Exports
    views: tuple[GraphView, ...]


class Batch:
    """Programs that are converted together; what cannot be taken is taken out, and the others go on.

    Args:
        scratch: an existing directory.
    """

    def __init__(self, programs: Sequence[Program], scratch: Path) -> None:
        self.outcomes = [Outcome(program) for program in programs]
        self.sets = [inputs(program.mask, program.seed) for program in programs]
        self.wanted = [expected(program, own) for program, own in zip(programs, self.sets, strict=True)]
        self._scratch = scratch
        self._models: dict[tuple[int, ...], Looked] = {}

    def run(self, engine: str) -> None:
        """Convert for an engine and compare."""
        with silenced(), torch.no_grad():
            for group in self._allowed(engine, self._answering(engine)):
                self._convert(engine, group)

    def _answering(self, engine: str) -> tuple[int, ...]:
        """Programs with a number on the example: NaN is refused as soon as a source is loaded."""
        silent = [i for i, wanted in enumerate(self.wanted) if np.isnan(wanted[0].value).any()]
        for i in silent:
            self.outcomes[i].refused[engine] = "NaN on the example"
        return tuple(i for i in range(len(self.outcomes)) if i not in silent)

    def _looked(self, group: tuple[int, ...]) -> Looked:
        if group not in self._models:
            example = together([self.sets[i] for i in group])[0]
            tensors = {name: torch.from_numpy(array.copy()) for name, array in example.items()}
            model = from_module(Several([self.outcomes[i].program for i in group]), tensors, "programs")
            room = self._scratch / f"group-{len(self._models)}"
            room.mkdir()
            self._models[group] = Looked(Exports(model, Baseline({}, {}, None, None), room), look(model))
        return self._models[group]

    def _allowed(self, engine: str, group: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """What preflight lets through, together where it can be; what cannot be traced is found by halving."""
        if not group:
            return
        try:
            looked = self._looked(group)
            why = stops(looked.exports.model, looked.views, engine)
        except EdgeattnError as error:
            why = {-1: str(error)}
        if not why:
            yield group
        elif -1 in why and len(group) > 1:
            yield from self._allowed(engine, group[: len(group) // 2])
            yield from self._allowed(engine, group[len(group) // 2 :])
        else:
            for place, reason in why.items():
                self.outcomes[group[max(place, 0)]].refused[engine] = reason
            left = tuple(i for place, i in enumerate(group) if place not in why and -1 not in why)
            if left:
                yield from self._allowed(engine, left)

    def _convert(self, engine: str, group: tuple[int, ...]) -> None:
        looked = self._looked(group)
        model = looked.exports.model
        try:
            artifact = build(engine, looked.exports, "fp32", get_target(TARGETS[engine]))
            backend = ENGINES[artifact.backend].here
            with open_session(backend, artifact.models, model.spec, threads=1, build=artifact.build) as session:
                self._compare(engine, group, session)
        except Exception as error:  # noqa: BLE001  # anything but an EdgeattnError is a fault of its own
            crashed = "" if isinstance(error, EdgeattnError) else f"{CRASHED} {type(error).__name__}: "
            named = re.search(r"parts\.(\d+)|output y(\d+)", str(error))
            if named or len(group) == 1:
                place = int(named.group(1) or named.group(2)) if named else 0
                self.outcomes[group[place]].late[engine] = f"{crashed}{error}"
                left = tuple(i for i in group if i != group[place])
                if left:
                    self._convert(engine, left)
                return
            self._convert(engine, group[: len(group) // 2])
            self._convert(engine, group[len(group) // 2 :])

    def _compare(self, engine: str, group: tuple[int, ...], session: Session) -> None:
        for place, given in enumerate(together([self.sets[i] for i in group])):
            got = session.run(given)
            for position, i in enumerate(group):
                outcome = self.outcomes[i]
                words = self.wanted[i][place].wrong(np.asarray(got[f"y{position}"]))
                outcome.compared.add(engine)
                if words and engine not in outcome.wrong:
                    outcome.wrong[engine] = f"inputs {place}: {words}"


def stops(model: EdgeModel, views: Sequence[GraphView], engine: str) -> dict[int, str]:
    """What preflight stops, by the position of the program; -1 for the model as a whole."""
    question = Question(model, get_target(TARGETS[engine]), engine, ("fp32",), False)
    found: dict[int, str] = {}
    for view in views:
        for rule in RULES.values():
            if engine not in rule.engines:
                continue
            for issue in rule.find(view, question):
                if issue.severity == "stops":
                    program = re.match(r"parts\.(\d+)", issue.module)
                    found.setdefault(int(program.group(1)) if program else -1, issue.reason)
    return found


def tried(programs: Sequence[Program], scratch: Path, engines: Sequence[str] = tuple(TARGETS)) -> list[Outcome]:
    """What comes of programs on engines, converted together."""
    batch = Batch(programs, scratch)
    for engine in engines:
        batch.run(engine)
    return batch.outcomes


__all__ = ["TARGETS", "Batch", "Expected", "Outcome", "tried"]
