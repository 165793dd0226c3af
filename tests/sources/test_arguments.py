"""Inputs and outputs of every form: tensors by name for an engine, and forward gets what it always got."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeattn.converters.trace import trace
from edgeattn.errors import ModelError, UnsupportedError
from edgeattn.model import EdgeModel, Graph
from edgeattn.sources import from_graphs, from_module
from edgeattn.sources.arguments import as_module
from edgeattn.sources.code import load_python_file


@dataclass(frozen=True)
class Pair:
    x: Tensor
    y: Tensor | None = None


class Named(NamedTuple):
    mean: Tensor
    rest: Any


class Calls(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)
        self.function = function


class Starred(Calls):
    def forward(self, *xs: Tensor, **more: Any) -> Any:
        return self.function(self, *xs, **more)


class Flagged(Calls):
    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0, *, way: str = "mean") -> Any:
        y = self.mix(x) * scale
        y = y if mask is None else y + mask
        return y.mean(1) if way == "mean" else y.amax(1)


class Nested(Calls):
    def forward(self, batch: Any, layers: Any) -> Any:
        return self.function(self, batch, layers)


X, Y = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
CASES: dict[str, tuple[nn.Module, Any, dict[str, Tensor], tuple[str, ...]]] = {
    "args": (Starred(lambda m, a, b: m.mix(a) - b), (X, Y), {"xs_0": X, "xs_1": Y}, ("output",)),
    "kwargs": (Starred(lambda m, b, a: m.mix(a) - b), {"b": X, "a": Y, "c": None}, {}, ()),
    "flags": (Flagged(len), (X, None, 2.0), {"x": X}, ("output",)),
    "keyword-only": (Flagged(len), {"x": X, "mask": Y, "way": "max"}, {"x": X, "mask": Y}, ("output",)),
    "nested": (
        Nested(lambda m, b, ls: {"y": m.mix(b["a"]) * b["k"], "n": {"z": ls[1], "o": None}, "l": [ls[0][0]]}),
        ({"a": X, "k": 3}, [(Y,), X]),
        {"batch.a": X, "layers_0_0": Y, "layers_1": X},
        ("y", "n.z", "l_0"),
    ),
    "dataclass": (
        Nested(lambda m, b, ls: Named(m.mix(b.x).mean(), Pair(b.x, ls))),
        (Pair(X), Y),
        {"batch.x": X, "layers": Y},
        ("mean", "rest.x", "rest.y"),
    ),
    "ordered": (
        Nested(lambda m, b, ls: OrderedDict(a=m.mix(b), same=b, one=torch.ones(2), none=ls)),
        (X, None),
        {"batch": X},
        ("a", "same", "one"),
    ),
}  # fmt: skip
CASES["kwargs"] = (
    Starred(lambda m, b, a, c: m.mix(a) - b if c is None else a),
    {"b": X, "a": Y, "c": None},
    {"b": X, "a": Y},
    ("output",),
)


@pytest.mark.parametrize("name", CASES)
def test_every_form_of_inputs_and_outputs_has_names(name: str) -> None:
    module, given, inputs, outputs = CASES[name]
    model = from_module(module.eval(), given, "forms")
    graph = model.spec.graphs[0]
    assert (graph.input_names, graph.output_names) == (tuple(inputs), outputs)
    other = {key: (value + 1).numpy() for key, value in inputs.items()}
    moved = _moved(given)
    with torch.no_grad():
        result = module(**moved) if isinstance(moved, dict) else module(*moved)
    first = next(leaf for leaf in _leaves(result))
    np.testing.assert_allclose(model.run(other)[outputs[0]], first.numpy(), atol=1e-6)
    trace(model, graph)
    assert model.rebuild is not None
    again = model.rebuild(copy.deepcopy(model.network))  # type: ignore[arg-type]
    np.testing.assert_allclose(again.run(other)[outputs[0]], first.numpy(), atol=1e-6)


def _moved(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value + 1
    if isinstance(value, Pair):
        return Pair(*_moved((value.x, value.y)))
    if isinstance(value, dict):
        return {key: _moved(item) for key, item in value.items()}
    return type(value)(_moved(item) for item in value) if isinstance(value, (tuple, list)) else value


def _leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [leaf for item in items for leaf in ([item] if isinstance(item, Tensor) else [])]


def test_constants_are_told() -> None:
    model = from_module(Flagged(len), (X, None, 2.0), "forms")
    assert model.notes == ("constants of forward: mask=None, scale=2.0",)


def test_inputs_that_forward_does_not_take_are_refused() -> None:
    with pytest.raises(ModelError, match=r"forward\(x: .* does not take the example inputs: too many positional"):
        from_module(Flagged(len), (X, None, 2.0, 5), "forms")
    with pytest.raises(ModelError, match="example input 'x' must be a tensor, got float"):
        from_module(Flagged(len), (1.0, 2.0), "forms")


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def encode(self, x: Tensor, scale: float = 1.0) -> Tensor:
        y: Tensor = self.mix(x) * scale
        return y

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize("how", ["method", "partial", "function"])
def test_a_function_around_a_module_is_a_model(how: str) -> None:
    encoder = Encoder()
    made: Any = encoder.encode
    if how == "partial":
        made = functools.partial(encoder.encode, scale=0.5)
    elif how == "function":
        made = lambda x: encoder.encode(x) + 1  # noqa: E731
    model = from_module(as_module(made), (X,), "forms")
    with torch.no_grad():
        np.testing.assert_allclose(model.run({"x": Y.numpy()})["output"], made(Y).numpy(), atol=1e-6)
    assert model.source_size_bytes == 20 * 4
    changed = copy.deepcopy(model.network)
    assert changed is not None
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.zero_()
    assert model.rebuild is not None
    assert float(np.abs(model.rebuild(changed).run({"x": Y.numpy()})["output"]).max()) == (
        1.0 if how[0] == "f" else 0.0
    )


def test_a_factory_may_return_a_function(tmp_path: Any) -> None:
    path = tmp_path / "made.py"
    path.write_text(
        "import torch\ndef model():\n    m = torch.nn.Linear(4, 2)\n    return lambda x: m(x), torch.ones(1, 4)\n"
    )
    made: EdgeModel = load_python_file(str(path))
    assert made.spec.graphs[0].input_names == ("x",)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("inside", [False, True])
def test_a_scripted_module_is_refused_with_what_to_give(inside: bool) -> None:
    scripted = torch.jit.script(nn.Linear(4, 4))
    module = nn.Sequential(scripted) if inside else scripted
    with pytest.raises(UnsupportedError, match=r"Linear\)? is compiled by torch.jit.*give the nn.Module"):
        from_graphs({"main": Graph(module, (X,))}, "scripted")
