"""What a forward remembers from call to call: buffers that it writes become states of the graph, or are refused.

``torch.export`` bakes whatever a module holds into the program, and no engine writes it back: a cache that forward
fills by ``index_copy_`` or ``self.cache = ...`` would be right in the first call and wrong from the second on. So the
module is run and looked at: which buffers, tensors in attributes and numbers does a call change? Tables that are worked
out once and kept change in the first call alone; a tensor that is only left for others to look at is never read. Both
are nobody's state.

A registered buffer that is written and read becomes a state, as if its author had declared it: same shape and dtype,
its value before the first call as the initial one, which has to be one number for all of its elements. Everything else
is refused by name.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgeattn.converters.trace import first_line, line_of, masks_stay_explicit, unchecked_arguments
from edgeattn.errors import ModelError, UnsupportedError
from edgeattn.guards.silence import silenced
from edgeattn.model import EdgeModel, Graph
from edgeattn.sources.outputs import name_outputs
from edgeattn.spec import DTYPES

if TYPE_CHECKING:
    import torch

DEPTH = 4  # objects inside objects, such as a list of caches
OVERWRITING = ("copy_", "fill_", "zero_")  # what was there before does not matter
DECLARE = (
    "take it as an input of forward and return the next one, and declare both: "
    "Graph(module, inputs, states={'cache': 'next_cache'})"
)


@dataclass(frozen=True)
class _Written:
    """Names of what a call changes."""

    buffers: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.buffers or self.tensors or self.numbers)


def with_carried_states(name: str, graph: Graph, example: Mapping[str, torch.Tensor]) -> Graph:
    """A graph whose written buffers are states; the graph itself where forward remembers nothing.

    Args:
        name: of the graph.
        example: its example inputs by the names of forward's parameters.

    Raises:
        UnsupportedError: naming what forward carries and cannot be a state.
    """
    module = graph.module
    kept = {key: (tensor, tensor.detach().clone()) for key, tensor in module.named_buffers()}

    def call() -> None:
        module(**{key: tensor.clone() for key, tensor in example.items()})

    written = _written(module, call)
    if not written:
        return graph
    states, loose, untraceable = _read_again(module, written, example)
    _put_back(module, kept)
    if untraceable and _changes_outputs(module, example):
        raise _unclear(name, written, untraceable)
    _put_back(module, kept)
    if loose or (states and written.numbers):
        raise _refusal(name, loose or written.numbers, "is no registered buffer")
    if not states:
        return graph
    initial = {}
    for buffer in states:
        before = kept[buffer][1]
        dtype = str(before.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise _refusal(name, (buffer,), f"is {dtype}, states are {', '.join(DTYPES)}")
        first = float(before.reshape(-1)[0]) if before.numel() else 0.0
        if not before.numel() or not bool((before == before.reshape(-1)[0]).all()) or first in (_INF, -_INF):
            raise _refusal(name, (buffer,), "starts with other values than one finite number for all of its elements")
        initial[buffer] = first
    short = [buffer.rpartition(".")[2] for buffer in states]
    plain = len(set(short)) == len(short) and not set(short) & set(example)
    inputs = dict(zip(states, short if plain else [buffer.replace(".", "_") for buffer in states], strict=True))
    taken = [key for key in inputs.values() if key in example]
    if taken:
        raise _refusal(name, states, f"has the name of an input, {taken[0]!r}")
    carrying = carrying_module(module, inputs)
    return replace(
        graph,
        module=carrying,
        inputs={**example, **{inputs[buffer]: kept[buffer][1] for buffer in states}},
        states={**graph.states, **{key: f"next_{key}" for key in inputs.values()}},
        initial={**graph.initial, **{inputs[buffer]: value for buffer, value in initial.items()}},
    )


_INF = float("inf")


def refuse_carried(model: EdgeModel) -> None:
    """Refuse a model that remembers something which its spec does not declare.

    Raises:
        UnsupportedError: naming it.
    """
    import torch

    for graph in model.spec.graphs:
        module = model.modules[graph.name]
        example = {key: torch.from_numpy(value.copy()) for key, value in model.example[graph.name].items()}
        kept = {key: (tensor, tensor.detach().clone()) for key, tensor in module.named_buffers()}

        def call(module: torch.nn.Module = module, example: dict[str, torch.Tensor] = example) -> None:
            module(**{key: tensor.clone() for key, tensor in example.items()})

        written = _written(module, call)
        if not written:
            continue
        states, loose, _ = _read_again(module, written, example)
        _put_back(module, kept)
        if states or loose:
            raise _refusal(graph.name, (*states, *loose), "is not declared as a state")


def carrying_module(module: torch.nn.Module, states: Mapping[str, str]) -> torch.nn.Module:
    """A module that takes its buffers as inputs and returns them as they are after the call, as ``next_NAME``.

    Args:
        states: buffer -> name of its input.
    """
    import torch

    tensors = dict(module.named_buffers())
    places = {
        name: [
            (part, key)
            for part in module.modules()
            for key, tensor in part._buffers.items()  # noqa: SLF001  # torch has no other way to swap one
            if tensor is tensors[buffer]
        ]
        for buffer, name in states.items()
    }

    class Carrying(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, **given: torch.Tensor) -> dict[str, torch.Tensor]:
            inputs = {key: value for key, value in given.items() if key not in places}
            before = {
                (part, key): part._buffers[key]  # noqa: SLF001
                for owners in places.values()
                for part, key in owners
            }
            try:
                for name, owners in places.items():
                    state = given[name].clone()
                    for part, key in owners:
                        part._buffers[key] = state  # noqa: SLF001
                result = name_outputs(self.inner(**inputs))
                after = {name: owners[0][0]._buffers[owners[0][1]] for name, owners in places.items()}  # noqa: SLF001
            finally:
                for (part, key), tensor in before.items():
                    part._buffers[key] = tensor  # noqa: SLF001
            nexts = {f"next_{name}": value for name, value in after.items() if value is not None}
            both = sorted(set(nexts) & set(result))
            if both:
                raise ModelError(f"output {both[0]!r} has the name of a state that forward carries in a buffer")
            return {**result, **{name: value.clone() for name, value in nexts.items()}}

    return Carrying().eval()


def _written(module: torch.nn.Module, call: Callable[[], None]) -> _Written:
    """What a call changes that another one has changed already; nothing where forward cannot be called."""
    import torch

    with silenced(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):  # what is worked out once and kept changes in the first call alone
            before = _marks(module)
            try:
                call()
            except Exception:  # noqa: BLE001  # whoever runs it next tells what is wrong
                return _Written()
            after = _marks(module)
            changed = [key for key, mark in after.items() if before.get(key) != mark]
            if not changed:
                return _Written()
    kinds: dict[str, list[str]] = {"buffer": [], "tensor": [], "number": []}
    for kind, key in changed:
        kinds[kind].append(key)
    return _Written(tuple(kinds["buffer"]), tuple(kinds["tensor"]), tuple(kinds["number"]))


def _marks(module: torch.nn.Module) -> dict[tuple[str, str], Any]:
    """What a module holds: (kind, path) -> a mark that differs once it was written."""
    import torch

    marks: dict[tuple[str, str], Any] = {}
    for name, tensor in module.named_buffers():
        marks["buffer", name] = _Mark(tensor)
    for path, part in module.named_modules():
        for key, value in _loose(part):
            name = f"{path}.{key}" if path else key
            if isinstance(value, torch.Tensor):
                marks["tensor", name] = _Mark(value)
            else:
                marks["number", name] = value
    return marks


class _Mark:
    """A tensor, kept so that no other takes its place in memory, how often it was written, and what it held.

    Writes through ``.data`` or numpy are counted nowhere.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.version = -1 if tensor.is_inference() else tensor._version  # noqa: SLF001  # the only count of writes
        self.value = tensor.detach().clone()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Mark) or self.tensor is not other.tensor or self.version != other.version:
            return False
        one, two = self.value, other.value
        return one.shape == two.shape and bool(((one == two) | ((one != one) & (two != two))).all())

    __hash__ = None  # type: ignore[assignment]


def _loose(part: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Tensors and numbers in plain attributes of a module, and of what it holds there."""
    import torch

    torchs_own = vars(torch.nn.Module())
    yield from _inside({key: value for key, value in vars(part).items() if key not in torchs_own}, DEPTH)


def _inside(held: Mapping[str, Any], depth: int) -> Iterator[tuple[str, Any]]:
    import torch

    for key, value in held.items():
        if isinstance(value, torch.Tensor) or type(value) in (int, float, bool):
            yield key, value
        elif depth and not isinstance(value, (torch.nn.Module, type, str, bytes)) and not callable(value):
            if isinstance(value, Mapping):
                inner = {f"{key}[{name!r}]": item for name, item in list(value.items())[:1000]}
            elif isinstance(value, (list, tuple)):
                inner = {f"{key}[{index}]": item for index, item in enumerate(value[:1000])}
            else:
                inner = {f"{key}.{name}": item for name, item in getattr(value, "__dict__", {}).items()}
            yield from _inside(inner, depth - 1)


def _read_again(
    module: torch.nn.Module, written: _Written, example: Mapping[str, torch.Tensor]
) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Of what is written, what the traced program reads as it was before the call: buffers, and other tensors.

    Third, why the module cannot be traced, if it cannot.
    """
    import torch

    loose = {key: mark for (kind, key), mark in _marks(module).items() if kind == "tensor" and key in written.tensors}
    try:
        with silenced(), torch.no_grad(), masks_stay_explicit(), unchecked_arguments(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            named = _taking(module)
            program = torch.export.export(named, (), {"given": dict(example)}, strict=False)
    except Exception as error:  # noqa: BLE001  # exporters raise anything
        return (), (), f"{first_line(error)}{line_of(error)}"
    signature = program.graph_signature
    read = {node.name for node in program.graph.nodes if node.op == "placeholder" and _reads(node)}
    buffers = {signature.inputs_to_buffers[name] for name in read if name in signature.inputs_to_buffers}
    lifted = signature.inputs_to_lifted_tensor_constants
    constants = [program.constants[lifted[name]] for name in read if name in lifted]
    states = tuple(name for name in written.buffers if f"module.{name}" in buffers)
    others = tuple(key for key, mark in loose.items() if any(mark.tensor is constant for constant in constants))
    return states, others, ""


def _changes_outputs(module: torch.nn.Module, example: Mapping[str, torch.Tensor]) -> bool:
    """Whether a second call on the same inputs gives something else."""
    import torch

    with silenced(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, second = (
            {key: value.clone() for key, value in name_outputs(module(**example)).items()} for _ in range(2)
        )
    return any(not torch.equal(value, second[key]) for key, value in first.items() if key in second)


def _unclear(graph: str, written: _Written, why: str) -> UnsupportedError:
    names = (*written.buffers, *written.tensors, *written.numbers)
    return UnsupportedError(
        f"graph {graph!r}: forward writes {', '.join(names)} and gives other outputs in the next call; which is a "
        f"state cannot be told, because torch.export cannot follow forward ({why}): {DECLARE}"
    )


def _taking(module: torch.nn.Module) -> torch.nn.Module:
    import torch

    class Taking(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, given: dict[str, torch.Tensor]) -> Any:
            return name_outputs(self.module(**given))

    return Taking().eval()


def _reads(node: torch.fx.Node) -> bool:
    """Whether a value from before the call matters."""
    return any(
        not (str(user.target).split(".")[1:2] in [[name] for name in OVERWRITING] and user.args[0] is node)
        or any(argument is node for argument in user.args[1:])
        for user in node.users
    )


@contextlib.contextmanager
def buffers_kept(module: torch.nn.Module) -> Iterator[None]:
    """Put every buffer back as it was, afterwards."""
    kept = {key: (tensor, tensor.detach().clone()) for key, tensor in module.named_buffers()}
    try:
        yield
    finally:
        _put_back(module, kept)


def _put_back(module: torch.nn.Module, kept: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """The buffers as they were before the first call."""
    import torch

    with torch.no_grad():
        for name, (tensor, value) in kept.items():
            path, _, key = name.rpartition(".")
            with contextlib.suppress(AttributeError):
                module.get_submodule(path)._buffers[key] = tensor  # noqa: SLF001
            if tensor.shape != value.shape:
                tensor.data = value
            elif not torch.equal(tensor, value):
                tensor.copy_(value)


def _refusal(graph: str, names: tuple[str, ...], why: str) -> UnsupportedError:
    return UnsupportedError(
        f"graph {graph!r}: forward writes {', '.join(names)} and reads it in the next call, and no engine keeps what a "
        f"module holds. {names[0]} {why}: {DECLARE}"
    )
