"""Inputs that people meet and examples do not, made for every graph of a model, and how surely the source answers them.

What an input is for is told by its dtype, its name, the values that it was seen with, and the embedding table that it
looks up in the traced program. Each probe changes the inputs of one kind and leaves the others as in the example:

    features    zeros; all the largest, all the smallest seen; the example ten times as large, where values go beyond 1;
                the smallest numbers of float32
    masks       every entry hidden, every entry seen, the first one alone, all but the first; with several rows the
                first row alone hidden
    ids         one id everywhere: the example's first, the lowest, the highest of the table
    lengths     1, and the largest
    integers    the smallest and the largest seen

States start from their initial values, and two steps are run. What the source refuses is left out, and so is what a
slow source has no time for: the first change of every kind comes first.

An engine sums in another order, so outputs are compared within a bound: 1e-4 of the output's size in float32, 1e-2 in
float16, and :data:`AMPLIFIED` times what the source's own output moves if its weights and features are changed by some
roundings of that precision. Entries that such a change turns into NaN or infinity, and integers that it turns into
others, say nothing. The change is tried only where the bound without it is not kept. NaN that the source itself gives
says nothing either. Of int8 it is asked that numbers are numbers: its ranges end where the calibration samples did, and
beyond them its values are its metric's affair.
"""

from __future__ import annotations

import contextlib
import functools
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgeattn.errors import EdgeattnError
from edgeattn.evaluation.probing import Deviation, Probe, deviations, scaled_error
from edgeattn.evaluation.replay import Record, record_steps
from edgeattn.guards.silence import silenced
from edgeattn.model import Arrays, EdgeModel, ReferenceStep, attention_fast_path
from edgeattn.results.gates import Failure
from edgeattn.runtimes import Session
from edgeattn.spec import HIDDEN, HIDES, GraphSpec, TensorSpec

if TYPE_CHECKING:
    import torch

Kind = Literal["feature", "mask", "ids", "length", "integer"]
Change = Callable[[np.ndarray, "Use"], np.ndarray | None]
SOURCE_SECONDS = 10.0  # of the source per graph, beyond which no further input is tried
STEPS = 2  # of a graph with states: the first one, and one after it
BOUND = {"fp32": 1e-4, "fp16": 1e-2}  # of an output's size, which counts as 1 at least
ROUNDING = {"fp32": 2.0**-22, "fp16": 2.0**-10}  # relative change of a weight or feature, some roundings
AMPLIFIED = 8.0  # an engine rounds after each operation, the change stands for those before the first
CHANGES = 3
JUMP = 2.0**-11  # where the output moves far more at this than in proportion, something there is chosen: near ties
LARGER = 10.0  # times the largest feature seen
TINY = 1e-40  # subnormal in float32
MASK_NAME = re.compile(r"mask|bias|valid|visible|seen|hidden|legal|pad(ding)?$|present")
LENGTH_NAME = re.compile(r"(^|_)(len|lens|length|lengths|lengths?_in)($|_)|_len$")


class Adversary:
    """The probes of a model, made when first asked for.

    Args:
        model: the source.
        records: what was recorded on it, by graph: its inputs tell the magnitudes.
    """

    def __init__(self, model: EdgeModel, records: Mapping[str, Sequence[Record]]) -> None:
        self._model = model
        self._records = records
        self._bounds: dict[tuple[int, str], Probe] = {}
        self._refused = self._left = 0

    @functools.cached_property
    def _uses(self) -> Mapping[str, Mapping[str, Use]]:
        graphs = self._model.spec.graphs
        records = {graph.name: self._records.get(graph.name, ()) for graph in graphs}
        return {
            graph.name: uses_of(self._model, graph, [record.inputs for record in records[graph.name]])
            for graph in graphs
        }

    @functools.cached_property
    def _made(self) -> tuple[Probe, ...]:
        probes: list[Probe] = []
        for graph in self._model.spec.graphs:
            made = unusual(self._model.example[graph.name], self._uses[graph.name])
            answered, refused = _answered(self._model, graph, made)
            probes += answered
            self._refused += refused
            self._left += len(made) - len(answered) - refused
        return tuple(probes)

    def told(self) -> str:
        """How many inputs were tried, in words."""
        compared = len(self._made)  # which counts the others
        refused = f", {self._refused} more are refused by it" if self._refused else ""
        left = f", {self._left} more left out because it is slow" if self._left else ""
        return f"{compared} unusual inputs compared with the source{refused}{left}"

    def probes(self, precision: str, certain: bool = False) -> tuple[Probe, ...]:
        """All probes with the bounds of a precision.

        Args:
            certain: with what the source's own sensitivity adds, for a device that cannot ask for it later.
        """
        if certain and precision in BOUND:
            return tuple(self._certain(index, precision) for index in range(len(self._made)))
        return tuple(_bounded(probe, precision) for probe in self._made)

    def deviations(self, session: Session, precision: str) -> list[Deviation]:
        """What an artifact gives on the probes that the source does not give."""
        probes = self.probes(precision)
        suspects = [i for i, probe in enumerate(probes) if deviations(session, [probe])]
        if precision in BOUND:
            sure = [self._certain(index, precision) for index in suspects]
        else:
            sure = [probes[index] for index in suspects]
        return deviations(session, sure)

    def failures(self, session: Session, precision: str) -> list[Failure]:
        """The same as failed gates."""
        return deviation_failures(self.deviations(session, precision))

    def _certain(self, index: int, precision: str) -> Probe:
        key = index, precision
        if key not in self._bounds:
            probe = self._made[index]
            self._bounds[key] = _widened(self._model, probe, precision, self._uses[probe.graph])
        return self._bounds[key]


def deviation_failures(found: Sequence[Deviation]) -> list[Failure]:
    """One failed gate for each output of a graph, by its first probe; the others are counted."""
    grouped: dict[tuple[str, str], list[Deviation]] = {}
    for deviation in found:
        grouped.setdefault((deviation.graph, deviation.output), []).append(deviation)
    failures = []
    for (graph, output), several in grouped.items():
        first = next((deviation for deviation in several if deviation.form), several[0])
        more = f"; on {len(several) - 1} more inputs too" if len(several) > 1 else ""
        wanted = f"{output} of graph {graph!r} as the source gives it with {first.inputs}"
        failures.append(Failure("adversarial", wanted, first.got + more))
    return failures


@dataclass(frozen=True)
class Use:
    """What an input is for.

    Attributes:
        low, high: the smallest and the largest value seen, infinities left out; of ids those of the table.
        hidden: of a mask, the entry that an additive one hides with; 0 else.
    """

    kind: Kind
    low: float
    high: float
    hidden: float = 0.0


def uses_of(model: EdgeModel, graph: GraphSpec, seen: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Use]:
    """What each input of a graph is for, states left out.

    Args:
        seen: inputs that it was called with, beside the example.
    """
    tables = _tables(model, graph)
    sizes = {size for tensor in graph.inputs for size in tensor.shape}
    uses = {}
    for tensor in graph.inputs:
        values = [model.example[graph.name][tensor.name], *(inputs[tensor.name] for inputs in seen)]
        uses[tensor.name] = use_of(tensor, values, tables, sizes)
    return uses


def unusual(example: Arrays, uses: Mapping[str, Use]) -> list[tuple[str, Arrays]]:
    """Inputs in words and arrays: the first change of every kind, then the second of every kind, and so on."""
    made: list[tuple[int, str, Arrays]] = []
    for kind, changes in UNUSUAL.items():
        names = [name for name, use in uses.items() if use.kind == kind]
        for place, (words, change) in enumerate(changes.items()):
            values = {name: change(example[name], uses[name]) for name in names}
            arrays = {n: v.astype(example[n].dtype) for n, v in values.items() if v is not None}
            if arrays:
                made.append((place, f"{', '.join(arrays)}: {words}", {**{n: example[n] for n in uses}, **arrays}))
    return [(words, inputs) for _, words, inputs in sorted(made, key=lambda row: row[0])]


def use_of(tensor: TensorSpec, seen: Sequence[np.ndarray], tables: Mapping[str, int], sizes: Collection[int]) -> Use:
    """What an input is for; see the module.

    Args:
        seen: its values, the example's among them.
        tables: input -> rows of the table that it looks up.
        sizes: of the axes of all inputs: a length is at most one of them.
    """
    dtype = np.dtype(tensor.dtype)
    if dtype.kind == "b":
        return Use("mask", 0, 1)
    if tensor.name in tables and dtype.kind in "iu":
        return Use("ids", 0, tables[tensor.name] - 1)
    values = np.concatenate([np.unique(array) for array in seen]) if seen else np.zeros(1)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    name = tensor.name.lower()
    if bool(np.isin(values, (0, 1)).all()) and (MASK_NAME.search(name) or (high == 1 and tensor.shape)):
        additive = dtype.kind == "f" and high == 0 and "mask" not in name
        return Use("mask", 0, 1, HIDDEN if additive else 0.0)
    if dtype.kind == "f":
        hiding = values[values <= HIDES]
        if hiding.size and bool((values[values > HIDES] == 0).all()):
            return Use("mask", 0, 1, float(hiding.min()))
        return Use("feature", low or -1.0, high or 1.0)
    if LENGTH_NAME.search(name) and low >= 0:
        return Use("length", 1, min((size for size in sizes if size >= max(high, 2)), default=high))
    return Use("integer", low, high)


def _entries(use: Use, visible: np.ndarray) -> np.ndarray:
    """A mask from what it says of each entry; an additive one has 0 and what hides."""
    return np.where(visible, 0.0, use.hidden) if use.hidden else visible


def _all(value: float) -> Change:
    """Every entry that number."""
    return lambda array, _: np.full(array.shape, value)


def _lowest(array: np.ndarray, use: Use) -> np.ndarray:
    return np.full(array.shape, use.low)


def _highest(array: np.ndarray, use: Use) -> np.ndarray:
    return np.full(array.shape, use.high)


def _larger(array: np.ndarray, use: Use) -> np.ndarray | None:
    return array * LARGER if max(abs(use.low), use.high) > 1 else None  # images, shares: 1 is their end


def _subnormal(array: np.ndarray, _: Use) -> np.ndarray:
    return np.where(array < 0, -TINY, TINY)


def _repeated(array: np.ndarray, _: Use) -> np.ndarray:
    return np.broadcast_to(array.reshape(-1)[:1], array.shape)


def _mask(first: bool, others: bool) -> Change:
    """The first entry along the last axis, and all others."""

    def change(array: np.ndarray, use: Use) -> np.ndarray:
        visible = np.full(array.shape, others)
        visible[..., :1] = first
        return _entries(use, visible)

    return change


def _first_row(value: bool) -> Change:
    """The first row of several all one value, the others as in the example."""

    def change(array: np.ndarray, use: Use) -> np.ndarray | None:
        axis = next((axis for axis, size in enumerate(array.shape[:-1]) if size > 1), None)
        if axis is None:
            return None
        rows = np.array(array, np.float64)
        rows[(slice(None),) * axis + (0,)] = _entries(use, np.array(value))
        return rows

    return change


UNUSUAL: Mapping[Kind, Mapping[str, Change]] = {
    "feature": {
        "all zero": _all(0.0),
        "all the largest seen": _highest,
        "all the smallest seen": _lowest,
        f"{LARGER:g} times the example": _larger,
        "subnormal numbers": _subnormal,
    },
    "mask": {
        "every entry 0": _mask(False, False),
        "every entry 1": _mask(True, True),
        "the first entry alone 1": _mask(True, False),
        "the first entry alone 0": _mask(False, True),
        "the first row all 0": _first_row(False),
        "the first row all 1": _first_row(True),
    },
    "ids": {"one id everywhere": _repeated, "the lowest id everywhere": _lowest, "the highest id everywhere": _highest},
    "length": {"all 1": _all(1.0), "all the largest": _highest},
    "integer": {"all the smallest seen": _lowest, "all the largest seen": _highest},
}
"""Kind of input -> what is made of it, in words -> the array from the example; None where that makes no sense."""


def _tables(model: EdgeModel, graph: GraphSpec) -> dict[str, int]:
    """Inputs that look up rows of a table -> how many rows; empty where the model cannot be traced."""
    from edgeattn.converters.trace import trace

    try:
        with silenced():
            program = trace(model, graph)
    except EdgeattnError:
        return {}
    places = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    given = zip(program.graph_signature.user_inputs, graph.input_names, strict=False)
    found = {}
    for place, name in given:
        rows = _rows(places[place]) if isinstance(place, str) and place in places else None
        if rows:
            found[name] = min(rows)
    return found


MOVED = frozenset((
    "_to_copy", "to", "view", "reshape", "unsqueeze", "squeeze", "expand", "slice", "select", "clone", "permute",
    "transpose", "flatten", "alias", "contiguous", "detach", "_unsafe_view", "lift_fresh_copy",
))  # fmt: skip


def _rows(node: torch.fx.Node) -> list[int]:
    """Rows of the tables that are looked up by a node, or by what only moves it."""
    rows = []
    for reader in node.users:
        name = getattr(reader.target, "__name__", str(reader.target)).partition(".")[0]
        table = reader.args[0] if reader.args else None
        shape = getattr(getattr(table, "meta", {}).get("val"), "shape", None) if table is not node else None
        if name in ("embedding", "index_select", "index", "_embedding_bag", "embedding_bag") and shape:
            axis = reader.args[1] if name == "index_select" else 0
            rows.append(int(shape[axis]))
        elif name in MOVED:
            rows += _rows(reader)
    return rows


def _answered(model: EdgeModel, graph: GraphSpec, made: Sequence[tuple[str, Arrays]]) -> tuple[list[Probe], int]:
    """The probes that the source answers within :data:`SOURCE_SECONDS`, and how many it refused."""
    probes, refused, began = [], 0, time.monotonic()
    for words, inputs in made:
        if time.monotonic() - began > SOURCE_SECONDS:
            break
        try:
            with plain_source():
                records = record_steps(ReferenceStep(model, graph.name), [inputs] * (STEPS if graph.states else 1))
        except Exception:  # noqa: BLE001  # forward may check its inputs in any way
            refused += 1
        else:
            probes.append(Probe(graph.name, words, records, {}))
    return probes, refused


@contextlib.contextmanager
def plain_source() -> Iterator[None]:
    """The source as it is traced: without the fast path of nn.TransformerEncoder, which zeroes padded positions.

    What torch.compile made runs as it was written: for other weights it would be compiled again, for minutes.
    """
    import torch

    with (
        attention_fast_path(False), silenced(), np.errstate(all="ignore"), torch.compiler.set_stance("force_eager"),
    ):  # fmt: skip
        yield


def _bounded(probe: Probe, precision: str) -> Probe:
    """With the bounds of a precision beside well-conditioned outputs."""
    if precision not in BOUND:
        return probe
    allowed = {}
    for name in probe.records[0].outputs:
        scale = max(_scale(record.outputs[name]) for record in probe.records)
        allowed[name] = BOUND[precision] * scale
    return replace(probe, allowed=allowed)


def _scale(expected: np.ndarray) -> float:
    finite = expected[np.isfinite(expected)]
    return scaled_error(finite, finite)[1]


def _widened(model: EdgeModel, probe: Probe, precision: str, uses: Mapping[str, Use]) -> Probe:
    """With bounds that take the source's own sensitivity in, and NaN where it says nothing."""
    bounded = _bounded(probe, precision)
    allowed = dict(bounded.allowed)
    outputs = [{name: array.copy() for name, array in record.outputs.items()} for record in probe.records]
    moved = [_moved_outputs(model, probe, ROUNDING[precision], seed, uses) for seed in range(CHANGES)]
    jumped = _moved_outputs(model, probe, JUMP, CHANGES, uses)
    for place, expected in enumerate(outputs):
        for name, array in expected.items():
            others = [steps[place][name] for steps in (*moved, jumped)]
            if array.dtype.kind != "f":
                if any(not np.array_equal(array, other) for other in others):
                    allowed.pop(name, None)  # near ties: an integer says nothing of them
                continue
            known = [np.isfinite(array) & np.isfinite(other) for other in others]
            errors = [scaled_error(array[k], o[k])[0] for k, o in zip(known, others, strict=True)]
            wide, far = AMPLIFIED * max(errors[:CHANGES]), errors[CHANGES]
            if far > AMPLIFIED * max(1.0, JUMP / ROUNDING[precision]) * max(errors[:CHANGES]):
                wide = max(wide, AMPLIFIED * far)
            if name in allowed:
                allowed[name] = max(allowed[name], bounded.allowed[name] + wide)
            for both, other in zip(known[:CHANGES], others, strict=False):
                array[~both & (array != other)] = np.nan
    records = tuple(replace(record, outputs=made) for record, made in zip(probe.records, outputs, strict=True))
    return replace(bounded, records=records, allowed=allowed)


def _moved_outputs(model: EdgeModel, probe: Probe, size: float, seed: int, uses: Mapping[str, Use]) -> list[Arrays]:
    """The source's outputs with weights changed by about ``size``, relative, and features relative to themselves and 1.

    What is equal in all features, or zero, is so no more: of equal scores any may be the highest.
    """
    rng = np.random.default_rng(seed)

    def moved(name: str, value: np.ndarray) -> np.ndarray:
        if uses[name].kind != "feature":
            return value
        first, second = rng.standard_normal((2, *value.shape))
        return np.asarray(value + size * (value * first + second), value.dtype)

    inputs = [{name: moved(name, value) for name, value in record.inputs.items()} for record in probe.records]
    with plain_source():
        try:
            records = record_steps(ReferenceStep(_reweighted(model, probe.graph, size, seed), probe.graph), inputs)
        except Exception:  # noqa: BLE001  # a module that takes no other weights, or not these features
            return [dict(record.outputs) for record in probe.records]
    return [dict(record.outputs) for record in records]


def _reweighted(model: EdgeModel, graph: str, size: float, seed: int) -> EdgeModel:
    """The model with other weights in one graph; its own are not written."""
    import torch

    module = model.modules[graph]
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: tensor.detach() * (1 + size * torch.randn(tensor.shape, generator=generator))
        for name, tensor in module.named_parameters()
        if tensor.is_floating_point()
    }

    class Changed(torch.nn.Module):
        def forward(self, **inputs: torch.Tensor) -> Any:
            return torch.func.functional_call(module, weights, (), inputs)

    return replace(model, modules={**model.modules, graph: Changed()})
