"""A program: plain data that says which parts are put together, and the torch module of it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from hypothesis import strategies
from torch import Tensor, nn
from torch.nn import functional

from tests.fuzz import attention as att
from tests.fuzz import masking
from tests.fuzz.features import FEATURES
from tests.fuzz.parts import DIM, LENGTH, Part, Table
from tests.fuzz.weights import Weights

Pick = Callable[[Sequence[Any]], Any]
MASK_KINDS = ("bool", "hides", "int64", "float", "additive", "length")
MOST = {"before": 3, "paired": 2, "biases": 2, "masks": 2, "weights": 2, "after": 3}
TABLES: Mapping[str, Table] = {
    "before": FEATURES, "heads": att.HEADED, "paired": att.PAIRED, "scores": att.SCORES, "biases": att.BIASES,
    "masks": masking.MASKS, "normalizer": masking.NORMALIZERS, "weights": masking.WEIGHTS, "mixing": att.MIXED,
    "linear": att.LINEAR, "merging": att.MERGED, "after": FEATURES, "output": masking.OUTPUTS,
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One part with its numbers."""

    part: str
    numbers: Mapping[str, Any]


@dataclass(frozen=True)
class Program:
    """A small attention model.

    Attributes:
        seed: of its weights.
        mask: what its second input is, one of :data:`MASK_KINDS`.
        steps: place -> the parts there, in order. Scores with a normalizer and a mixing, or "linear" in their place.
        residual: whether the features are added to what attention gives.
    """

    seed: int
    mask: str
    steps: Mapping[str, tuple[Step, ...]]
    residual: bool

    def without(self, place: str, index: int) -> Program:
        """The program less one step."""
        kept = tuple(step for i, step in enumerate(self.steps[place]) if i != index)
        return replace(self, steps={**self.steps, place: kept})

    def put(self, place: str, step: Step) -> Program:
        """The program with one step alone at a place."""
        return replace(self, steps={**self.steps, place: (step,)})

    def __str__(self) -> str:
        return json.dumps(asdict(self))


PLAINEST = {
    "heads": Step("viewed", {}), "scores": Step("dot", {"scale": 0.5, "form": "after"}),
    "normalizer": Step("softmax", {"axis": -1}), "mixing": Step("mixed", {"form": "matmul"}),
    "merging": Step("merged", {"form": "reshape"}), "output": Step("features", {}),
}  # fmt: skip
"""What every place that needs a part has at least; what minimizing tries in place of what was drawn."""


def parsed(text: str) -> Program:
    """A program from what it was printed as."""
    data = json.loads(text)
    steps = {
        place: tuple(Step(step["part"], {k: _number(v) for k, v in step["numbers"].items()}) for step in found)
        for place, found in data["steps"].items()
    }
    return Program(data["seed"], data["mask"], steps, data["residual"])


def _number(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def drawn(pick: Pick, most: int = 3) -> Program:
    """A program whose every choice is made by ``pick``, which takes one of several.

    Args:
        most: parts at a place that may have several.
    """

    def some(place: str) -> tuple[Step, ...]:
        return tuple(one(TABLES[place]) for _ in range(pick(range(min(most, MOST[place]) + 1))))

    def one(table: Table) -> Step:
        name = pick(tuple(table))
        return Step(name, {key: pick(values) for key, values in table[name].numbers.items()})

    linear = pick((False, False, False, True))
    needed = ("heads", "linear", "merging") if linear else ("heads", "scores", "normalizer", "mixing", "merging")
    steps = {place: (one(TABLES[place]),) for place in (*needed, "output")}
    places = ("before", "paired", "after") if linear else tuple(MOST)
    return Program(pick(range(1000)), pick(MASK_KINDS), {**steps, **{p: some(p) for p in places}}, pick((True, False)))


def seeded(seed: int, most: int = 3) -> Program:
    """The program of a seed; see :func:`drawn`."""
    return drawn(random.Random(seed).choice, most)


@strategies.composite
def programs(draw: Any) -> Program:
    """Hypothesis' strategy for programs."""
    return drawn(lambda several: draw(strategies.sampled_from(several)))


class Attention(Weights):
    """The module of a program: ``x`` (batch, length, dim) float32, and a mask, to one tensor."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.seed)
        self.program = program

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        context = _Call(self, mask, self.program.mask)
        x = self._through("before", x, context)
        heads = self._only("heads")
        q, k, v = (
            heads.run(functional.linear(x, weight), context, **self._numbers("heads"))
            for weight in (self.query, self.key, self.value)
        )
        q, k = self._through("paired", q, context), self._through("paired", k, context)
        if "linear" in self.program.steps:
            y = self._only("linear").run(q, k, v, context, **self._numbers("linear"))
        else:
            s = self._only("scores").run(q, k, context, **self._numbers("scores"))
            s = self._through("masks", self._through("biases", s, context), context)
            w = self._only("normalizer").run(s, context, **self._numbers("normalizer"))
            y = self._only("mixing").run(self._through("weights", w, context), v, context, **self._numbers("mixing"))
        y = functional.linear(self._only("merging").run(y, context, **self._numbers("merging")), self.out)
        y = self._through("after", x + y if self.program.residual else y, context)
        return cast(Tensor, self._only("output").run(y, context, **self._numbers("output")))

    def _through(self, place: str, x: Tensor, context: _Call) -> Tensor:
        for step in self.program.steps.get(place, ()):
            x = TABLES[place][step.part].run(x, context, **step.numbers)
        return x

    def _only(self, place: str) -> Part:
        return TABLES[place][self.program.steps[place][0].part]

    def _numbers(self, place: str) -> Mapping[str, Any]:
        return self.program.steps[place][0].numbers


class _Call:
    """The weights with what the mask of one call says: forward writes nothing onto its module."""

    def __init__(self, weights: Weights, given: Tensor, kind: str) -> None:
        self._weights, self.given = weights, given
        self.seen = visible(given, kind)

    def __getattr__(self, name: str) -> Tensor:
        return cast(Tensor, getattr(self._weights, name))


def visible(given: Tensor, kind: str) -> Tensor:
    """(batch, 1, 1, length), true where a key may be seen."""
    if kind == "additive":
        return given > -1
    if kind == "length":
        return (torch.arange(LENGTH) < given[:, None])[:, None, None]
    seen = ~given if kind == "hides" else given.bool()
    return seen[:, None, None]


class Several(nn.Module):
    """Programs side by side, each with its own inputs and output: what is converted at once."""

    def __init__(self, given: Sequence[Program]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Attention(program) for program in given)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        return {f"y{i}": part(inputs[f"x{i}"], inputs[f"mask{i}"]) for i, part in enumerate(self.parts)}


__all__ = ["DIM", "Attention", "Program", "Several", "Step", "drawn", "parsed", "programs", "seeded", "visible"]
