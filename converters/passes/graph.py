"""What the passes on a traced program share: writing nodes, adding constants, reading values that are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgeattn.spec import HALF_MAX

if TYPE_CHECKING:
    import torch

MAX_KNOWN = 2**24  # elements; larger values are not worked out just to look at them
RECORD = "edgeattn.passes"  # in the graph module's meta: name of the pass -> places changed
REFUSED = "edgeattn.refused"  # in the graph module's meta: node -> why a pass could not rewrite it
LOWEST = -HALF_MAX  # a constant at or below means "hidden": -inf, the lowest float32, -1e9; float16 ends here
DROWNS = -1e8  # added to a score, a finite number at or below leaves nothing of it: float32 has 24 bits


@dataclass
class Program:
    """A traced program while passes rewrite it.

    Attributes:
        exported: the program; its graph is changed in place, its constants grow.
        refusals: node -> why no pass could rewrite what no engine has.
    """

    exported: torch.export.ExportedProgram
    refusals: dict[str, str] = field(default_factory=dict)
    _known: dict[torch.fx.Node, Any] = field(default_factory=dict)
    _written: set[torch.fx.Node] = field(default_factory=set)
    _constants: dict[tuple[bytes, tuple[int, ...], str], torch.fx.Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.note_writes()

    def note_writes(self) -> None:
        """Look again for what is written in place, after a pass that wrote such calls."""
        self._written = written_in_place(self.graph)

    @property
    def graph(self) -> torch.fx.Graph:
        """Its nodes."""
        graph: torch.fx.Graph = self.exported.graph_module.graph
        return graph

    @property
    def written(self) -> frozenset[torch.fx.Node]:
        """Tensors that a later operator writes into, see :func:`written_in_place`."""
        return frozenset(self._written)

    def calls(self, *targets: Any) -> list[torch.fx.Node]:
        """The nodes that call one of the operators, in order; a list, so that the graph may change meanwhile."""
        return [node for node in self.graph.nodes if node.op == "call_function" and node.target in targets]

    def known(self, value: Any) -> torch.Tensor | None:
        """The value of a node that does not depend on the graph's inputs, else None."""
        import torch

        if isinstance(value, (int, float, bool)):
            return torch.tensor(value)
        if not isinstance(value, torch.fx.Node):
            return None
        if value not in self._known:
            self._known[value] = self._work_out(value)
        result = self._known[value]
        return result if isinstance(result, torch.Tensor) else None

    def forget(self) -> None:
        """Look again at which tensors are written and what is known, after a pass took writes away."""
        self.note_writes()
        self._known.clear()

    def _work_out(self, node: torch.fx.Node) -> Any:
        import torch

        fake = node.meta.get("val")
        if node in self._written or not isinstance(fake, torch.Tensor) or fake.numel() > MAX_KNOWN:
            return None
        if node.op == "placeholder":
            signature = self.exported.graph_signature
            for names in (signature.inputs_to_parameters, signature.inputs_to_buffers):
                if node.name in names:
                    return _detached(self.exported, names[node.name])
            name = signature.inputs_to_lifted_tensor_constants.get(node.name)
            return None if name is None else _detached(self.exported, name)
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            return None
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            return None
        failed = object()

        def value_of(inner: torch.fx.Node) -> Any:
            found = self.known(inner)
            return failed if found is None else found

        if any(self.known(inner) is None for inner in node.all_input_nodes):
            return None
        args, kwargs = torch.fx.node.map_arg((node.args, dict(node.kwargs)), value_of)
        with torch.no_grad():
            return node.target(*args, **kwargs)

    def constant(self, value: torch.Tensor, like: torch.fx.Node) -> torch.fx.Node:
        """A node that holds ``value``; equal values share one.

        Args:
            like: a node whose fake tensors the new one's joins.
        """
        import torch
        from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

        value = value.detach().contiguous()
        key = (value.reshape(-1).view(torch.uint8).numpy().tobytes(), tuple(value.shape), str(value.dtype))
        if key not in self._constants:
            taken = {node.name for node in self.graph.nodes}
            name = next(n for n in (f"c_edgeattn_{i}" for i in range(len(taken) + 1)) if n not in taken)
            specs = self.exported.graph_signature.input_specs
            first = next(i for i, spec in enumerate(specs) if spec.kind is InputKind.USER_INPUT)
            placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
            with self.graph.inserting_before(placeholders[first]):
                node = self.graph.placeholder(name)
            values = torch.utils._pytree.tree_leaves(like.meta["val"])  # an operator may give several
            node.meta["val"] = values[0].fake_mode.from_tensor(value, static_shapes=True)
            specs.insert(first, InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(node.name), node.name))
            self.exported.constants[node.name] = value
            self._constants[key] = node
        return self._constants[key]

    def drop_unused_constants(self) -> None:
        """Take constants that no node reads any more out again; dead code elimination leaves inputs alone.

        So go complex weights and tables, which engines do not have.
        """
        specs = self.exported.graph_signature.input_specs
        own = {node: key for key, node in self._constants.items()}
        for node in [node for node in self.graph.nodes if node.op == "placeholder" and not node.users]:
            spec = next(spec for spec in specs if spec.arg.name == node.name)
            if node in own:
                del self.exported.constants[node.name], self._constants[own[node]]
            elif spec.target is None or not node.meta["val"].is_complex():
                continue  # an input of the model stays
            specs.remove(spec)
            self.graph.erase_node(node)


def written_in_place(graph: torch.fx.Graph) -> set[torch.fx.Node]:
    """Tensors that a later operator writes into (``index[0, :] = 3``), with the writer and what they are views of.

    Their values depend on the order of the calls, so nobody may work them out from their own arguments.
    """
    import torch

    def schema(node: torch.fx.Node) -> Any:
        return node.target._schema if isinstance(node.target, torch._ops.OpOverload) else None

    found: set[torch.fx.Node] = set()
    for writer in graph.nodes:
        if schema(writer) is None or not schema(writer).is_mutable or writer.target is torch.ops.aten.detach_.default:
            continue  # detach_ is marked as a writer and changes no value
        found.add(writer)
        for argument, formal in zip(writer.args, schema(writer).arguments, strict=False):
            node: Any = argument if formal.alias_info is not None and formal.alias_info.is_write else None
            while isinstance(node, torch.fx.Node) and node not in found:
                found.add(node)
                views = schema(node) is not None and any(a.alias_info is not None for a in schema(node).arguments)
                node = node.args[0] if views and node.args else None
    return found


class Writer:
    """Writes nodes before an anchor; they get its module and source line, and the shapes that torch works out."""

    def __init__(self, program: Program, anchor: torch.fx.Node) -> None:
        self.program = program
        self.anchor = anchor

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> torch.fx.Node:
        """A new node, just before the anchor."""
        with self.program.graph.inserting_before(self.anchor):
            node = self.program.graph.call_function(target, args, kwargs)
        for key in ("nn_module_stack", "stack_trace", "source_fn_stack", "torch_fn"):
            if key in self.anchor.meta:
                node.meta[key] = self.anchor.meta[key]
        node.meta["val"] = _shape(node, self._mode)
        return node

    def constant(self, value: torch.Tensor) -> torch.fx.Node:
        """A constant, see :meth:`Program.constant`."""
        return self.program.constant(value, self.anchor)

    def finish(self, target: Any, *args: Any, **kwargs: Any) -> None:
        """Turn the anchor itself into the last node: its name and its readers stay."""
        self.anchor.target = target
        self.anchor.args, self.anchor.kwargs = args, kwargs
        self.anchor.meta["val"] = _shape(self.anchor, self._mode)

    @property
    def _mode(self) -> Any:
        placeholders = (node for node in self.program.graph.nodes if node.op == "placeholder")
        return next((n.meta["val"].fake_mode for n in placeholders if hasattr(n.meta.get("val"), "fake_mode")), None)


def size(node: Any) -> tuple[int, ...]:
    """The static shape of what a node gives."""
    return tuple(int(n) for n in node.meta["val"].shape)


def through(node: Any, targets: Iterable[Any]) -> Any:
    """The first node upwards that is not one of ``targets``, followed by their first argument."""
    skipped = frozenset(targets)
    while getattr(node, "op", None) == "call_function" and node.target in skipped:
        node = node.args[0]
    return node


def rewritten(exported: torch.export.ExportedProgram, passes: Iterable[Callable[[Program], int]]) -> dict[str, int]:
    """Run passes on a program in place.

    Returns:
        name of the pass -> how many places it changed.
    """
    program = Program(exported)
    _drop_dead_code(program.graph)  # what forward computes for nothing is nobody's finding
    counts = {}
    for rewrite in passes:
        counts[rewrite.__name__] = rewrite(program)
        if counts[rewrite.__name__]:
            _drop_dead_code(program.graph)
    _drop_dead_code(program.graph)  # what a pass wrote and then did not need
    program.drop_unused_constants()
    program.graph.lint()
    exported.graph_module.recompile()
    exported.graph_module.meta[RECORD] = counts
    exported.graph_module.meta[REFUSED] = program.refusals
    return counts


def _drop_dead_code(graph: torch.fx.Graph) -> None:
    import torch

    # torch keeps dropout for its random state, and in-place forms for what they write; in a traced eval-mode forward
    # the one draws nothing and the other writes what nobody reads.
    harmless = (torch.ops.aten.dropout.default, torch.ops.aten.detach_.default)
    graph.eliminate_dead_code(lambda node: node.is_impure() and node.target not in harmless)


def _detached(exported: torch.export.ExportedProgram, name: str) -> Any:
    value = exported.state_dict.get(name)
    if value is None:
        value = exported.constants.get(name)
    return None if value is None else value.detach()


def _shape(node: torch.fx.Node, mode: Any) -> Any:
    import torch

    args, kwargs = torch.fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: n.meta["val"])
    modes = [n.meta["val"].fake_mode for n in node.all_input_nodes if hasattr(n.meta.get("val"), "fake_mode")]
    if mode is None and not modes:
        return node.target(*args, **kwargs)  # type: ignore[operator]
    with modes[0] if modes else mode, torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]
