"""What preflight looks at: one traced graph with the place of each node, its shapes, its cost and its value ranges.

Nothing here knows an engine; :mod:`edgeattn.converters.preflight.rules` judges.
"""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.converters.trace import first_line, reference_outputs, strip_wrapper, trace, wrapper_prefix
from edgeattn.errors import ConversionError
from edgeattn.guards.silence import silenced
from edgeattn.model import Arrays, EdgeModel
from edgeattn.spec import HIDDEN, GraphSpec

if TYPE_CHECKING:
    import onnx
    import torch

PASSES_KEY = "edgeattn.passes"  # graph_module.meta: name of a pass -> how often it applied
MAX_MACS = 25_000_000_000  # of the run that records ranges: about two seconds on two cores
FRAME = re.compile(r'File "(.+?)", line (\d+)')
VIEWS = frozenset((
    "view", "reshape", "_reshape_alias", "transpose", "permute", "t", "numpy_T", "unsqueeze", "squeeze", "expand",
    "slice", "select", "detach", "alias", "contiguous", "flatten", "unflatten", "split", "split_with_sizes", "chunk",
    "unbind", "narrow", "movedim", "dropout", "getitem", "_assert_tensor_metadata", "lift_fresh_copy", "expand_as",
    "view_as",
))  # fmt: skip
"""Operations that move no data in an engine, or none that it keeps beside its input."""

SOFTMAX = ("softmax", "_softmax")
PRODUCTS = frozenset(("linear", "matmul", "mm", "bmm", "baddbmm", "addmm", "einsum", "addbmm", "mv", "dot"))


@dataclass(frozen=True)
class Call:
    """One operation of a traced graph.

    Attributes:
        op: short name, ``linear`` for ``aten.linear.default``.
        module: path of the torch module that called it, empty for the model itself.
        line: ``file.py:12``, the line outside torch that called it; empty where unknown.
        outputs: (dtype, shape) of each tensor it makes; a size that depends on values is None.
        inputs: nodes that it reads, constants included, in order.
        overload: the full name, ``aten.linear.default``.
    """

    name: str
    op: str
    overload: str
    module: str
    line: str
    outputs: tuple[tuple[str, tuple[int | None, ...]], ...]
    inputs: tuple[str, ...]
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Of the first output; empty for none."""
        return self.outputs[0][1] if self.outputs else ()

    @property
    def dtype(self) -> str:
        """Of the first output, as torch prints it without its prefix; empty for none."""
        return self.outputs[0][0] if self.outputs else ""

    @property
    def nbytes(self) -> int:
        """Of all outputs; sizes that depend on values count as 1."""
        return sum(math.prod(size or 1 for size in shape) * _itemsize(dtype) for dtype, shape in self.outputs)


@dataclass(frozen=True)
class Ranges:
    """What one run showed.

    Attributes:
        largest: node -> max |x| over finite values.
        rms: node -> root mean square.
        scores: node of a softmax -> max |score| over positions that are not hidden.
    """

    largest: Mapping[str, float]
    rms: Mapping[str, float]
    scores: Mapping[str, float]


@dataclass(frozen=True)
class GraphView:
    """One graph.

    Attributes:
        calls: in order, those of nested graphs included.
        error: why it could not be traced, else empty; ``error_line`` is the user's line then.
        constants: node -> tensor, weights and lifted constants alike; ``weights`` holds the names of the former.
        onnx: where the source is an ONNX file.
        refusal: why no torch module could be made of it, else empty.
        mismatch: why no traced program can give what the model gives in inference, else empty.
        passes: what the converters' passes already mended, name -> count.
        parameters: number of weights; each once.
        macs: multiply-adds of one call. ``flops`` adds one per element of every other result.
        activation_bytes: largest sum of tensors that live at the same time, in the types of the source.
        attention: places of attention, module path or node.
        ranges: None where the run was left out; ``no_ranges`` says why.
    """

    spec: GraphSpec
    calls: tuple[Call, ...] = ()
    error: str = ""
    error_line: str = ""
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict)
    constant_names: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    onnx: onnx.ModelProto | None = None
    refusal: str = ""
    mismatch: str = ""
    passes: Mapping[str, int] = field(default_factory=dict)
    parameters: int = 0
    macs: int = 0
    flops: int = 0
    activation_bytes: int = 0
    attention: tuple[str, ...] = ()
    ranges: Ranges | None = None
    no_ranges: str = ""

    def maker(self, name: str) -> Call | None:
        """The call that makes a node; None for inputs and constants."""
        return self._by_name.get(name)

    def readers(self, name: str) -> tuple[Call, ...]:
        """The calls that read a node."""
        return self._readers.get(name, ())

    def shape_of(self, name: str) -> tuple[int | None, ...]:
        """Of a node, an input or a constant; empty if unknown."""
        made = self.maker(name)
        if made is not None:
            return made.shape
        if name in self.constants:
            return tuple(self.constants[name].shape)
        known = {tensor.name: tensor.shape for tensor in self.spec.all_inputs}
        return known.get(self.inputs.get(name, ""), ())

    def __post_init__(self) -> None:
        readers: dict[str, list[Call]] = {}
        for call in self.calls:
            for name in dict.fromkeys(call.inputs):
                readers.setdefault(name, []).append(call)
        object.__setattr__(self, "_by_name", {call.name: call for call in self.calls})
        object.__setattr__(self, "_readers", {name: tuple(found) for name, found in readers.items()})

    _by_name: Mapping[str, Call] = field(init=False, repr=False, compare=False)
    _readers: Mapping[str, tuple[Call, ...]] = field(init=False, repr=False, compare=False)


def look(model: EdgeModel, samples: Mapping[str, Arrays] | None = None) -> tuple[GraphView, ...]:
    """Trace every graph once and run it once; of buckets the largest stands for all.

    Args:
        samples: graph -> one set of inputs and states to record ranges on; the example where absent.
    """
    looked_at = []
    smaller = {name for bucket in model.spec.buckets for name in bucket.graphs[:-1]}
    for graph in model.spec.graphs:
        if graph.name in smaller:
            continue
        given = (samples or {}).get(graph.name, {})
        fitting = {
            t.name: given[t.name] for t in graph.all_inputs if t.name in given and given[t.name].shape == t.shape
        }
        looked_at.append(_look_at(model, graph, {**model.example[graph.name], **fitting}))
    return tuple(looked_at)


def _look_at(model: EdgeModel, graph: GraphSpec, sample: Arrays) -> GraphView:
    module, proto = model.modules[graph.name], model.onnx.get(graph.name)
    refusal = str(getattr(module, "unsupported", ""))  # ONNX that no torch module could be made of
    if refusal:
        return GraphView(graph, error=refusal, onnx=proto, refusal=refusal, no_ranges="the model is not torch")
    try:
        with silenced():
            program = trace(model, graph)
    except ConversionError as error:
        return GraphView(
            graph, error=str(error), error_line=_line_of_error(error), onnx=proto, no_ranges="it cannot be traced"
        )
    calls = tuple(_calls(program.graph_module, wrapper_prefix(module)))
    constants = _constants(program)
    names = {spec.arg.name: str(spec.target or spec.arg.name) for spec in program.graph_signature.input_specs}
    user_inputs = dict(zip(program.graph_signature.user_inputs, graph.input_names, strict=False))
    made = dict(zip(map(str, program.graph_signature.user_outputs), graph.output_names, strict=False))
    view = GraphView(
        graph,
        calls,
        constants=constants,
        constant_names={name: strip_wrapper(names[name], wrapper_prefix(module)) for name in constants},
        inputs={str(name): shown for name, shown in user_inputs.items()},
        outputs=made,
        onnx=proto,
        passes=dict(program.graph_module.meta.get(PASSES_KEY, {})),
        parameters=sum({t.data_ptr(): t.numel() for t in module.parameters()}.values()),
    )
    macs = {call.name: macs_of(view, call) for call in calls}
    others = (
        call
        for call in calls
        if not macs[call.name] and call.op not in VIEWS and call.dtype.startswith(("float", "bf"))
    )
    total = sum(macs.values())
    ranges, why = _ranges(program, graph, sample, total)
    return _with(
        view,
        macs=total,
        flops=2 * total + sum(math.prod(size or 1 for size in call.shape) for call in others),
        activation_bytes=activation_peak(view),
        mismatch=_mismatch(model, graph) if total <= MAX_MACS else "",
        attention=tuple(attention_blocks(view)),
        ranges=ranges,
        no_ranges=why,
    )


def _mismatch(model: EdgeModel, graph: GraphSpec) -> str:
    """What every converter would say of torch's fast path for padded positions."""
    import torch

    if not any(isinstance(module, torch.nn.TransformerEncoder) for module in model.modules[graph.name].modules()):
        return ""
    try:
        reference_outputs(model, graph)
    except ConversionError as error:
        return str(error)
    return ""


def _with(view: GraphView, **changes: Any) -> GraphView:
    import dataclasses

    return dataclasses.replace(view, **changes)


def _constants(program: torch.export.ExportedProgram) -> dict[str, torch.Tensor]:
    import torch

    found = {}
    for spec in program.graph_signature.input_specs:
        if spec.target is not None:
            value = program.state_dict.get(spec.target, program.constants.get(spec.target))
            if isinstance(value, torch.Tensor):
                found[spec.arg.name] = value.detach()
    return found


def _calls(module: torch.fx.GraphModule, prefix: str) -> Iterator[Call]:
    import torch

    for node in module.graph.nodes:
        if node.op == "get_attr":
            inner = getattr(module, str(node.target), None)
            if isinstance(inner, torch.fx.GraphModule):  # the body of a no_grad block, or of torch.cond
                yield from _calls(inner, prefix)
        if node.op != "call_function":
            continue
        stack: Mapping[str, Any] = node.meta.get("nn_module_stack") or {}
        yield Call(
            node.name,
            _short(node.target),
            str(node.target),
            strip_wrapper(str(list(stack.values())[-1][0]), prefix) if stack else "",
            _line(FRAME.findall(str(node.meta.get("stack_trace") or ""))),
            tuple(_tensors(node.meta.get("val"))),
            tuple(inner.name for inner in node.all_input_nodes),
            tuple(torch.fx.node.map_arg(node.args, str)),
            dict(torch.fx.node.map_arg(dict(node.kwargs), str)),
        )


def _is_overload(target: Any) -> bool:
    import torch

    return isinstance(target, torch._ops.OpOverload)  # noqa: SLF001  # no public name for the type


def _short(target: Any) -> str:
    return str(target.overloadpacket.__name__) if _is_overload(target) else str(getattr(target, "__name__", target))


def _tensors(value: Any) -> Iterator[tuple[str, tuple[int | None, ...]]]:
    import torch

    if isinstance(value, torch.Tensor):
        sizes: tuple[Any, ...] = tuple(value.shape)  # SymInt where a size depends on values
        shape = tuple(size if isinstance(size, int) else None for size in sizes)
        yield str(value.dtype).removeprefix("torch."), shape
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _itemsize(dtype: str) -> int:
    import torch

    return int(getattr(torch, dtype).itemsize)


def _line(frames: list[tuple[str, str]]) -> str:
    """The deepest frame that is neither torch's nor edgeattn's."""
    import torch

    foreign = (
        str(Path(torch.__file__).parent),
        str(Path(__file__).parents[1]) + "/edgeattn/",
        str(Path(__file__).parent),
    )
    own = [(path, line) for path, line in frames if not path.startswith(foreign) and path.startswith("/")]
    return f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else ""


def _line_of_error(error: BaseException) -> str:
    link: BaseException | None = error
    frames: list[tuple[str, str]] = []
    while link is not None:
        frames = [(f.filename, str(f.lineno)) for f in traceback.extract_tb(link.__traceback__)] or frames
        found = _line(frames)
        if found:
            return found
        link = link.__cause__
    return ""


def macs_of(view: GraphView, call: Call) -> int:
    """Multiply-adds of one operation; 0 for all that is no product. Sizes that depend on values count as 1."""
    shapes = [tuple(size or 1 for size in view.shape_of(name)) for name in call.inputs]
    result = math.prod(size or 1 for size in call.shape)
    match call.op:
        case "linear" | "matmul" | "mm" | "bmm" | "mv" | "dot":
            return result * shapes[0][-1] if shapes and shapes[0] else 0
        case "addmm" | "baddbmm" | "addbmm":
            return result * shapes[1][-1] if len(shapes) > 1 else 0
        case "scaled_dot_product_attention" if len(shapes) >= 3:
            return math.prod(shapes[0][:-1]) * shapes[1][-2] * (shapes[0][-1] + shapes[2][-1])
        case "einsum" if call.arguments and isinstance(call.arguments[0], str):
            terms = call.arguments[0].replace(" ", "").partition("->")[0].split(",")
            sizes: dict[str, int] = {}
            for term, shape in zip(terms, shapes, strict=False):
                sizes.update(zip(term, shape, strict=False))
            return math.prod(sizes.values())
        case "lstm" | "gru" | "rnn_tanh" | "rnn_relu":
            weights = sum(math.prod(shape) for shape in shapes if len(shape) == 2)
            return weights * math.prod(shapes[0][:-1]) if shapes else 0
    if call.op.startswith("conv_transpose") and len(shapes) > 1:
        return math.prod(shapes[0]) * math.prod(shapes[1][1:])
    if call.op.startswith(("conv1d", "conv2d", "conv3d", "convolution")) and len(shapes) > 1:
        return result * math.prod(shapes[1][1:])
    return 0


def activation_peak(view: GraphView) -> int:
    """Bytes of the tensors that live at once at the worst moment, inputs, states and outputs always among them.

    A view lives in the tensor that it shows. Engines fuse and so need less, or keep packed copies and need more.
    """
    owner: dict[str, str] = {}
    last: dict[str, int] = {}
    for index, call in enumerate(view.calls):
        if call.op in VIEWS and call.inputs:
            owner[call.name] = owner.get(call.inputs[0], call.inputs[0])
        for name in call.inputs:
            last[owner.get(name, name)] = index
    always = {owner.get(name, name) for name in view.outputs}
    size = {call.name: call.nbytes for call in view.calls if call.name not in owner}
    border = sum(tensor.nbytes for tensor in view.spec.all_inputs)
    live = peak = 0
    freed_at: dict[int, list[str]] = {}
    for name, index in last.items():
        if name in size and name not in always:
            freed_at.setdefault(index, []).append(name)
    for index, call in enumerate(view.calls):
        live += size.get(call.name, 0)
        peak = max(peak, live)
        live -= sum(size[name] for name in freed_at.get(index, ()))
        if call.name in size and call.name not in last and call.name not in always:
            live -= size[call.name]
    return peak + border


def attention_blocks(view: GraphView) -> Iterator[str]:
    """Where attention is computed: one torch op, or a softmax between two products."""
    for call in view.calls:
        written_out = call.op in SOFTMAX and scores_of(view, call) is not None and feeds_product(view, call.name)
        if written_out or call.op == "scaled_dot_product_attention":
            yield call.module or call.name


THROUGH = VIEWS | frozenset((
    "add", "sub", "mul", "div", "masked_fill", "where", "to", "_to_copy", "clamp", "clamp_min", "maximum",
))  # fmt: skip
"""What may stand between the product of queries and keys and its softmax."""


def scores_of(view: GraphView, call: Call, depth: int = 8) -> Call | None:
    """The product that a softmax's input comes from, through masks, scale and views."""
    for name in call.inputs if depth else ():
        made = view.maker(name)
        if made is not None and made.op in PRODUCTS - {"linear"}:
            return made
        if made is not None and made.op in THROUGH:
            found = scores_of(view, made, depth - 1)
            if found is not None:
                return found
    return None


def feeds_product(view: GraphView, name: str, depth: int = 4) -> bool:
    """Whether a node reaches a product of two tensors through views alone."""
    return any(
        reader.op in PRODUCTS - {"linear"}
        or (depth > 0 and reader.op in THROUGH and feeds_product(view, reader.name, depth - 1))
        for reader in view.readers(name)
    )


def _ranges(
    program: torch.export.ExportedProgram, graph: GraphSpec, sample: Arrays, macs: int
) -> tuple[Ranges | None, str]:
    if macs > MAX_MACS:
        return None, f"{macs / 1e9:.0f} G multiply-adds are more than the {MAX_MACS / 1e9:.0f} G that preflight runs"
    try:
        with silenced():
            return record_ranges(program, graph, sample), ""
    except Exception as error:  # noqa: BLE001  # a rule less is better than no preflight
        return None, f"the traced graph did not run: {first_line(error)}"


def record_ranges(program: torch.export.ExportedProgram, graph: GraphSpec, sample: Arrays) -> Ranges:
    """Run a traced graph once and look at every float tensor on the way.

    Args:
        sample: every input and state of the graph, by name.
    """
    import torch

    largest: dict[str, float] = {}
    rms: dict[str, float] = {}
    scores: dict[str, float] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            if n.op == "call_function":
                args, _ = self.fetch_args_kwargs_from_env(n)
                if _short(n.target) in SOFTMAX and isinstance(args[0], torch.Tensor):
                    scores[n.name] = _largest_shown(args[0])
            result = super().run_node(n)
            watched = n.op == "call_function" and _short(n.target) not in VIEWS
            if watched and isinstance(result, torch.Tensor) and result.is_floating_point() and result.numel():
                flat = result.detach().reshape(-1).float()
                seen = flat if bool(torch.isfinite(flat).all()) else flat[torch.isfinite(flat)]
                low, high = torch.aminmax(seen) if seen.numel() else (torch.zeros(()), torch.zeros(()))
                largest[n.name] = max(abs(float(low)), abs(float(high)))
                rms[n.name] = float(torch.linalg.vector_norm(seen)) / math.sqrt(max(seen.numel(), 1))
            return result

    weights = _constants(program)
    given = {
        t.name: torch.from_numpy(np.ascontiguousarray(t.check(sample[t.name])).reshape(t.shape))
        for t in graph.all_inputs
    }
    by_node = dict(zip(map(str, program.graph_signature.user_inputs), graph.input_names, strict=False))
    values = [
        weights[node.name] if node.name in weights else given[by_node[node.name]].clone()
        for node in program.graph.nodes
        if node.op == "placeholder"
    ]
    with torch.no_grad():
        Recorder(program.graph_module).run(*values)
    return Ranges(largest, rms, scores)


def _largest_shown(scores: torch.Tensor) -> float:
    import torch

    shown = scores[torch.isfinite(scores) & (scores > HIDDEN / 10)]
    return float(shown.abs().max()) if shown.numel() else 0.0
