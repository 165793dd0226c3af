"""A torch module with example inputs as an EdgeModel: named inputs, named outputs, static shapes."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.errors import ModelError, UnsupportedError, unknown_name
from edgeattn.model import Arrays, EdgeModel, Graph, graph_from_example
from edgeattn.sources.arguments import with_named_tensors
from edgeattn.sources.carried import buffers_kept, with_carried_states
from edgeattn.sources.forward import compared, freeze_observers, looked_at, make_followable
from edgeattn.sources.outputs import name_outputs
from edgeattn.sources.usercode import users_code
from edgeattn.spec import GraphSpec, ModelSpec

if TYPE_CHECKING:
    import torch

GRAPH = "main"
GATHERED = "batched_mm"  # the name in transformers


def from_module(module: torch.nn.Module, inputs: Any, name: str, source: bytes = b"") -> EdgeModel:
    """A plain torch module and one set of inputs as a model of one stateless graph, see :func:`from_graphs`."""
    return from_graphs({GRAPH: Graph(module, inputs)}, name, source)


def from_graphs(graphs: Mapping[str, Graph], name: str, source: bytes = b"") -> EdgeModel:
    """Torch modules with example inputs as a model.

    Inputs are named after forward's parameters; outputs after the keys of a dict or ModelOutput, ``output`` for a
    single tensor, ``output_0``, ``output_1`` ... for a tuple.

    Args:
        graphs: by name, the main one first.
        name: of the model.
        source: what its hash covers beside the weights, usually the code.

    Buffers that forward writes and reads again become states: :mod:`edgeattn.sources.carried`.

    Raises:
        ModelError: if forward rejects the inputs, or its outputs are no tensors or change between two calls, or a
            declared state or dimension is not there.
        UnsupportedError: for what forward carries from call to call and cannot be a state.
    """
    digest = hashlib.sha256(source)
    size = 0
    specs, modules, examples = [], {}, {}
    seen: set[int] = set()
    named = {graph_name: with_named_tensors(graph) for graph_name, graph in graphs.items()}
    declared = {graph_name: graph for graph_name, (graph, _) in named.items()}
    constants = [note for _, notes in named.values() for note in notes]
    followed = _followable(declared)
    graphs = {graph_name: _carrying(graph_name, graph) for graph_name, graph in declared.items()}
    written = [[key for key in graph.states if key not in declared[there].states] for there, graph in graphs.items()]
    for graph_name, graph in graphs.items():
        example = example_arrays(graph)
        modules[graph_name] = _named_outputs(graph.module.eval())
        specs.append(_graph_spec(graph_name, graph, modules[graph_name], example))
        examples[graph_name] = example
        for key, tensor in graph.module.state_dict().items():
            if tensor.data_ptr() not in seen:  # graphs of one model share weights
                digest.update(key.encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(_bytes()).numpy().tobytes())
                size += tensor.numel() * tensor.element_size()
                seen.add(tensor.data_ptr())
    try:
        spec = ModelSpec(name.replace("_", "-"), "generic", tuple(specs))
    except ValueError as error:
        raise ModelError(f"{name}: {error}") from error
    dims = {graph_name: graph.dims for graph_name, graph in graphs.items() if graph.dims}
    buckets = _merged("buckets", [graph.buckets for graph in graphs.values()])
    fills = _merged("fills", [graph.fills for graph in graphs.values()])
    network = next(iter(graphs.values())).module if len(graphs) == 1 else _several(graphs)

    def rebuild(changed: torch.nn.Module) -> EdgeModel:
        parts = {graph_name: changed if len(graphs) == 1 else getattr(changed, graph_name) for graph_name in graphs}
        fitting = {n: replace(graph, module=parts[n], inputs=examples[n]) for n, graph in graphs.items()}
        if any(graph.states for graph in graphs.values()):
            fitting = {n: _with_states_that_fit(n, graphs[n], graph) for n, graph in fitting.items()}
        return from_graphs(fitting, name, source)

    notes = tuple(
        f"forward writes {', '.join(carried)}: carried from call to call as states" for carried in written if carried
    )
    return EdgeModel(
        spec, modules, examples, digest.hexdigest(), size, dims, buckets=buckets, fills=fills, network=network,
        rebuild=rebuild, notes=(*constants, *followed, *notes),
    )  # fmt: skip


def _followable(graphs: Mapping[str, Graph]) -> tuple[str, ...]:
    """Change the modules that do what no engine can, see :mod:`edgeattn.sources.forward`; what to know about it."""
    import torch

    from edgeattn.sources.single import float_tensors

    inputs, before = {}, {}
    notes: list[str] = []
    for name, graph in graphs.items():
        graph.module.eval()
        gather_experts(graph.module)
        if freeze_observers(graph.module):
            notes.append("fake quantization keeps the scales that it has; observers are off")
        inputs[name] = example_tensors(graph)
        with buffers_kept(graph.module):
            before[name] = looked_at(graph.module, inputs[name])
    changed = [name for name, found in before.items() if found.floats or found.packs]
    for name in changed:  # all are looked at first: graphs may share weights
        make_followable(graphs[name].module)
    for name in changed:
        module = graphs[name].module
        with users_code(f"{type(module).__name__}.forward"), torch.no_grad(), buffers_kept(module):
            notes += compared(name, before[name], module, float_tensors(inputs[name]))
    return tuple(dict.fromkeys(notes))


def gather_experts(module: torch.nn.Module) -> None:
    """Have mixtures of experts of transformers gather the weights of each token's experts, in place.

    The same sums in another order. What transformers prefers sorts tokens by expert and multiplies groups whose sizes
    are values, which no engine has operations for.
    """
    part: Any
    for part in module.modules():
        if hasattr(part, "set_experts_implementation"):
            chosen = set(part.get_experts_implementation().values())
            if chosen - {None, GATHERED}:
                part.set_experts_implementation(GATHERED)


def _carrying(name: str, graph: Graph) -> Graph:
    import torch

    example = {key: torch.from_numpy(np.array(value)) for key, value in example_arrays(graph).items()}
    graph.module.eval()
    with users_code(f"{type(graph.module).__name__}.forward"):
        return with_carried_states(name, graph, example)


def _with_states_that_fit(name: str, before: Graph, after: Graph) -> Graph:
    """A graph whose module has fewer heads or layers than before, with the states that it still has, in their sizes.

    Args:
        before: the graph that the module was changed from.
        after: the same with the changed module.

    Raises:
        UnsupportedError: if states do not fit any more and whose heads they hold cannot be told.
    """
    import torch

    from edgeattn.pruning import find_anatomy, groups_left, state_owners

    if not after.states:
        return after
    example = example_arrays(before)
    tensors = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in example.items()}
    anatomy = find_anatomy(before.module)
    left = {unit.key: groups_left(after.module, unit) for unit in anatomy.units if unit.kind == "attention"}
    owned = {}
    if any(groups != anatomy.unit(key).groups for key, groups in left.items()):
        run = _named_outputs(before.module.eval())
        owned = state_owners(before.module, anatomy, lambda: run(**tensors), after.states)
    for state, owner in owned.items():
        groups, there = left[owner.key], list(example[state].shape)
        if groups is not None and groups != anatomy.unit(owner.key).groups:
            there[owner.axis] = there[owner.axis] // anatomy.unit(owner.key).groups * groups
            tensors[state] = torch.zeros(there, dtype=tensors[state].dtype)
    try:
        with torch.inference_mode():
            outputs = _named_outputs(after.module.eval())(**tensors)
    except Exception as error:
        unclear = [state for state in after.states if state not in owned]
        raise UnsupportedError(
            f"graph {name!r}: with its heads or layers removed it does not take its states any more "
            f"({type(error).__name__}: {' '.join(str(error).split())[:160]}). A state of heads must hold those of one "
            "attention along one axis, and its name end in its layer's number; not clear is what "
            f"{', '.join(unclear) or 'an input that is no state'} holds"
        ) from error
    gone = {state for state, output in after.states.items() if output not in outputs}  # of layers that were left out
    return replace(
        after,
        inputs={key: value for key, value in tensors.items() if key not in gone},
        states={state: output for state, output in after.states.items() if state not in gone},
        dims={key: axes for key, axes in after.dims.items() if key not in gone},
    )


def _several(graphs: Mapping[str, Graph]) -> torch.nn.Module:
    """The modules of several graphs as one."""
    import torch

    network = torch.nn.Module()
    for name, graph in graphs.items():
        network.add_module(name, graph.module)
    return network.eval()


def _merged(kind: str, declared: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What the graphs declare, as one: a name means the same in all of them."""
    merged: dict[str, Any] = {}
    for one in declared:
        for name, value in one.items():
            if merged.setdefault(name, value) != value:
                raise ModelError(f"{kind} of {name!r} are {merged[name]} in one graph and {value} in another")
    return merged


def _bytes() -> torch.dtype:
    import torch

    return torch.uint8


def example_arrays(graph: Graph) -> Arrays:
    """The example inputs of a graph by the names of forward's parameters, float32 where they are of another float.

    Raises:
        ModelError: for inputs that forward does not take, or that are no tensors.
    """
    from edgeattn.sources.single import float_tensors

    return {key: tensor.numpy() for key, tensor in float_tensors(example_tensors(graph)).items()}


def example_tensors(graph: Graph) -> dict[str, torch.Tensor]:
    """The example inputs of a graph as they were given, by the names of forward's parameters.

    Raises:
        ModelError: for inputs that forward does not take, or that are no tensors.
    """
    import torch

    kind, given = type(graph.module).__name__, graph.inputs
    if isinstance(given, (torch.Tensor, np.ndarray)):
        given = (given,)
    parameters = inspect.signature(graph.module.forward).parameters
    names = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if isinstance(given, Mapping):
        unknown = sorted(set(given) - set(names))
        if unknown and not open_ended:
            raise ModelError(f"{kind}.forward has no parameter {unknown[0]!r}; it has {', '.join(names)}")
        named = dict(given)
    elif isinstance(given, (tuple, list)) and len(given) <= len(names):
        named = dict(zip(names, given, strict=False))
    else:
        raise ModelError(
            f"{kind}: example inputs are a tuple or a dict of tensors; forward takes {', '.join(names)}, "
            f"got {describe(given)}"
        )
    for key, value in named.items():
        if not isinstance(value, (torch.Tensor, np.ndarray)):
            raise ModelError(f"{kind}: example input {key!r} must be a tensor, got {type(value).__name__}")
    try:
        return {key: torch.as_tensor(value).detach().cpu() for key, value in named.items()}
    except TypeError as error:  # numpy has types that torch lacks
        raise ModelError(f"{kind}: an example input has no dtype of torch's: {error}") from error


def describe(value: object) -> str:
    """The type of a value, with its parts for a tuple."""
    if isinstance(value, tuple):
        return f"a tuple of ({', '.join(type(item).__name__ for item in value)})"
    return type(value).__name__


def _graph_spec(name: str, graph: Graph, module: torch.nn.Module, example: Arrays) -> GraphSpec:
    import torch

    kind = type(graph.module).__name__
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in example.items()}  # scalars stay scalars
    with users_code(f"{kind}.forward"), torch.no_grad():
        first = {key: value.numpy().copy() for key, value in module(**tensors).items()}
        second = {key: value.numpy() for key, value in module(**tensors).items()}
    for key, value in first.items():
        if not np.array_equal(value, second[key], equal_nan=True):
            raise ModelError(
                f"output {key!r} of {kind} changes between two calls on the same inputs: "
                "dropout or another random op is active in eval mode"
            )
    empty = next((key for key, value in first.items() if not value.size), None)
    if empty is not None and all(value.size for value in example.values()):  # else the input is what is wrong
        raise UnsupportedError(
            f"graph {name!r}: output {empty!r} has no elements ({list(first[empty].shape)}), and engines have no such "
            "tensors; leave it out"
        )
    for taken, given in graph.states.items():
        for name_of, there in ((taken, example), (given, first)):
            if name_of not in there:
                raise ModelError(f"graph {name!r}: state {taken!r}: {unknown_name('tensor', name_of, there)}")
        if example[taken].shape != first[given].shape or example[taken].dtype != first[given].dtype:
            raise UnsupportedError(
                f"graph {name!r}: state {taken!r} is {example[taken].dtype}{list(example[taken].shape)}, but the next "
                f"one, {given!r}, is {first[given].dtype}{list(first[given].shape)}; engines have fixed sizes: keep a "
                "cache of the longest length with a position or a mask beside it, or drop as many entries as are added"
            )
    for taken, axes in graph.dims.items():
        if taken not in example or any(not 0 <= axis < example[taken].ndim for axis in axes):
            raise ModelError(f"graph {name!r}: dims name {taken!r} {dict(axes)}, inputs are {', '.join(example)}")
    try:
        return graph_from_example(name, example, first, graph.states, graph.initial)
    except ValueError as error:
        raise ModelError(f"{kind}: {error}") from error


def _named_outputs(module: torch.nn.Module) -> torch.nn.Module:
    """A module that takes keyword tensors and returns a dict of tensors, whatever ``module`` returns."""
    import torch

    class NamedOutputs(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            return name_outputs(self.inner(**inputs))

    return NamedOutputs(module).eval()
