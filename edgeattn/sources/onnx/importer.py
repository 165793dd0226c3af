"""ONNX -> torch: the graph as torch modules, so that it is pruned, quantized and converted like any other model.

Every node becomes a module at the path that its name or its weights tell (``encoder.layer.0.query``); products with
constant matrices, convolutions, tables and normalisations are torch's own ``nn.Linear``, ``nn.Conv2d``,
``nn.Embedding``, ``nn.LayerNorm``. Operators are listed in one table, :mod:`edgeattn.sources.onnx.ops`.

No library does this in our environment: onnx2torch imports torchvision, onnx2tf pins numpy 1.26 and TensorFlow.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeattn.converters.trace import first_line
from edgeattn.engines import ONNXRUNTIME
from edgeattn.errors import ConversionError, UnsupportedError
from edgeattn.evaluation.parity import MAX_ABS_FP32
from edgeattn.evaluation.probing import scaled_error
from edgeattn.graphs.layers import is_quantized, module_path
from edgeattn.sources.onnx.ops import NotImportableError, to_tensor
from edgeattn.sources.onnx.ops.node import Node
from edgeattn.sources.onnx.ops.products import Linear
from edgeattn.sources.onnx.ops.shapes import Expand
from edgeattn.sources.onnx.values import (
    Value,
    build,
    constant_inputs,
    constant_value,
    declared,
    describe,
    initializers,
    make_node,
    opsets,
    outputs_of,
)

if TYPE_CHECKING:
    import onnx

SHARED = 1024  # values from which on equal matrices are stored once
SIZES = ("target", "sizes", "starts", "ends")  # of modules in onnx_ops.shapes: what changes with heads and neurons
MOST_AXES = 64  # integers among a node's inputs that may be axes, sizes or indices of them
INTEGERS = (torch.uint8, torch.int8)


@dataclass(frozen=True)
class Step:
    """One call in a forward: a module, what it reads and what it makes.

    Attributes:
        path: of the module.
        inputs: names of values, empty where one is absent or is kept by the module.
        outputs: names of values, empty where one is not wanted.
        label: for messages.
        op: the operator, ``com.microsoft.Attention`` if it is not of the standard's domain.
        attributes: of the node, ``opset``, and of attention ``head_sizes`` (query, key, value) and ``share``, the query
            heads of a key/value head; integers that a newer opset gives as an input are under ``input_1``.
    """

    path: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    label: str
    op: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)


class ImportedModel(nn.Module):
    """The torch module of an ONNX graph. It takes the graph's inputs by name or in order, and returns a dict."""

    def __init__(
        self, inputs: Mapping[str, Value], outputs: Sequence[str], steps: Sequence[Step], root: nn.Module
    ) -> None:
        super().__init__()
        self._given = {name: (value.shape, value.dtype) for name, value in inputs.items()}
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.steps = tuple(steps)
        for name, child in root.named_children():
            self.add_module(name, child)
        last = {name: i for i, step in enumerate(steps) for name in step.inputs}
        self._done = [
            tuple(n for n in {*s.inputs, *s.outputs} if last.get(n, i) <= i and n not in outputs)
            for i, s in enumerate(steps)
        ]
        self.follow()

    def follow(self) -> None:
        """Call what is at the steps' paths now: after a module was replaced by another."""
        self._calls = [self.get_submodule(step.path) for step in self.steps]

    def forward(self, *args: Tensor, **named: Tensor) -> dict[str, Tensor]:
        """Run the graph."""
        return self._run({**dict(zip(self.inputs, args, strict=False)), **named})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name of every value -> its shape, by a run on zeros."""
        given = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in self._given.items()}
        seen = {name: tuple(tensor.shape) for name, tensor in given.items()}
        with torch.no_grad():
            self._run(given, seen)
        return seen

    def _run(self, given: Mapping[str, Tensor], seen: dict[str, tuple[int, ...]] | None = None) -> dict[str, Tensor]:
        values: dict[str, Any] = {**given, "": None}
        for step, call, done in zip(self.steps, self._calls, self._done, strict=True):
            try:
                result = call(*[values[name] for name in step.inputs])
            except Exception as error:
                raise RuntimeError(f"{step.label}: {first_line(error)}") from error
            made = dict(outputs_of(result, list(step.outputs)))
            if seen is not None:
                seen.update({name: tuple(tensor.shape) for name, tensor in made.items()})
            values.update(made)
            for name in done:
                if name:
                    values.pop(name, None)
        return {name: values[name] for name in self.outputs}


def change_alike(before: nn.Module, after: nn.Module, other: nn.Module) -> None:
    """Change an import of a graph for other sizes of its inputs as the first import was changed, in place.

    Args:
        before: the graph as it was imported.
        after: a changed copy, in which parameters and sizes have other values or modules are others.
        other: the same graph for other sizes. It shares the parameters and the linear layers of ``after``.

    Raises:
        UnsupportedError: for what depends on the sizes of the inputs and was changed.
    """
    assert isinstance(before, ImportedModel), type(before)
    assert isinstance(other, ImportedModel), type(other)
    if [step.path for step in before.steps] != [step.path for step in other.steps]:
        raise UnsupportedError("for these sizes its graph has other steps")
    for path in {step.path: None for step in before.steps}:
        old, new, theirs = (network.get_submodule(path) for network in (before, after, other))
        same = [dict(module.named_parameters(recurse=False)) for module in (old, theirs)]
        whole = isinstance(old, nn.Linear) and all(torch.equal(same[0][n], same[1][n]) for n in same[0])
        if whole or type(new) is not type(old):
            parent, _, name = path.rpartition(".")
            setattr(other.get_submodule(parent), name, new)
            continue
        for part, module in old.named_modules():
            _change_module(path, module, new.get_submodule(part), theirs.get_submodule(part))
    other.follow()


def _change_module(path: str, old: nn.Module, new: nn.Module, other: nn.Module) -> None:
    for named, register in (("named_parameters", "register_parameter"), ("named_buffers", "register_buffer")):
        tensors, theirs = (dict(getattr(module, named)(recurse=False)) for module in (new, other))
        for name, was in getattr(old, named)(recurse=False):
            if name in theirs and theirs[name].shape == was.shape and torch.equal(theirs[name], was):
                getattr(other, register)(name, tensors[name])
            elif tensors[name].shape != was.shape or not torch.equal(tensors[name], was):
                raise UnsupportedError(f"{path}.{name} depends on them")
    for name in SIZES:
        sizes: list[Any] = [getattr(module, name, None) for module in (old, new, other)]
        if all(isinstance(size, list) for size in sizes):
            setattr(other, name, [_scaled(path, *three) for three in zip(*sizes, strict=True)])


def _scaled(path: str, before: int, after: int, other: int) -> int:
    """A size changed by as much as another one was: it is a multiple of the heads or neurons that are left."""
    if before == after:
        return other
    if not before or other * after % before:
        raise UnsupportedError(f"a size of {path} depends on them")
    return other * after // before


class OnnxNode(nn.Module):
    """A node that is no torch module of its own: a function, and the constants among its inputs.

    Attributes:
        constants: input -> name of the parameter or buffer that is read there.
        hidden: input -> a scalar or a mask of infinities, which is no weight.
    """

    def __init__(self, function: Callable[..., Any], given: Mapping[int, tuple[str, Tensor]]) -> None:
        super().__init__()
        if isinstance(function, nn.Module):
            self.layer = function
        self._function = function
        self.constants: dict[int, str] = {}
        self.hidden: dict[int, Tensor] = {}
        for index, (name, tensor) in given.items():
            if _is_mask(tensor) or tensor.numel() == 1:
                self.hidden[index] = tensor
                continue
            unique = name if not hasattr(self, name) else f"{name}_{index}"
            self.constants[index] = unique
            if tensor.is_floating_point():
                self.register_parameter(unique, nn.Parameter(tensor, requires_grad=False))
            else:
                self.register_buffer(unique, tensor)

    def forward(self, *inputs: Tensor | None) -> Any:
        """Apply the function, constants in their places."""
        given = list(inputs)
        for index, name in self.constants.items():
            given[index] = getattr(self, name)
        for index, tensor in self.hidden.items():
            given[index] = tensor
        return self._function(*given)


def _is_mask(tensor: Tensor) -> bool:
    """Infinity by design, as in the bias of hidden positions: no broken weight."""
    if not tensor.is_floating_point() or not bool(torch.isinf(tensor).any()):
        return False
    finite = tensor[~torch.isinf(tensor)]
    return finite.numel() == 0 or bool((finite == finite.flatten()[0]).all())


class OnnxRuntimeModule(nn.Module):
    """A graph that torch cannot express, run by ONNX Runtime: a float32 reference, and nothing that can be traced.

    Attributes:
        unsupported: which node, for the message of an engine that needs the torch module.
    """

    def __init__(self, model: onnx.ModelProto, unsupported: str) -> None:
        super().__init__()
        self.unsupported = unsupported
        self.outputs = tuple(value.name for value in model.graph.output)
        self.inputs = tuple(value.name for value in model.graph.input)
        self._session = runtime_session(model)

    def forward(self, *args: Tensor, **named: Tensor) -> dict[str, Tensor]:
        """Run the graph in ONNX Runtime.

        Raises:
            UnsupportedError: while it is traced.
        """
        given = {**dict(zip(self.inputs, args, strict=False)), **named}
        if torch.compiler.is_compiling() or any(type(t) not in (Tensor, nn.Parameter) for t in given.values()):
            raise UnsupportedError(self.unsupported)
        results = self._session.run(list(self.outputs), {name: t.numpy() for name, t in given.items()})
        return {name: torch.from_numpy(np.array(a)) for name, a in zip(self.outputs, results, strict=True)}


def runtime_session(model: onnx.ModelProto) -> Any:
    """A session on one thread that computes what the file says, nothing fused."""
    runtime: Any = ONNXRUNTIME.load()
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def import_onnx(model: onnx.ModelProto) -> nn.Module:
    """The torch module of a graph.

    Args:
        model: as :func:`~edgeattn.sources.onnx.static.make_static` leaves it: a static shape for every tensor,
            nodes in order.

    Returns:
        an :class:`ImportedModel` in eval mode, or an :class:`OnnxRuntimeModule` if an operator is not imported.
    """
    try:
        return _Importer(model).module()
    except UnsupportedError as error:
        return OnnxRuntimeModule(model, str(error)).eval()


class _Importer:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.versions = opsets(model)
        self.values: dict[str, Value] = {
            value.name: declared(value) for value in (*model.graph.input, *model.graph.output, *model.graph.value_info)
        } | initializers(model.graph)
        self.origin = {name: name for name in self.values}  # constant -> the initializer that it was made from
        self.places = _Places(model.graph)
        self.nodes = self._with_real_tables(list(model.graph.node))
        self.weights: dict[Any, nn.Parameter] = {}

    def module(self) -> nn.Module:
        steps, root = [], nn.Module()
        biases = self._biases()
        done: set[str] = set()
        for proto in self.nodes:
            if proto.output[0] in done:
                continue
            try:
                step = self._step(proto, root, biases, done)
            except NotImportableError as error:
                raise UnsupportedError(f"{describe(proto)} cannot be expressed in torch: {error}") from error
            if step is not None:
                steps.append(step)
        inputs = {value.name: self.values[value.name] for value in self.graph.input}
        return ImportedModel(inputs, [value.name for value in self.graph.output], steps, root).eval()

    def _with_real_tables(self, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """Rows of an integer table, made real after they are looked up: the table is made real instead.

        Engines look up rows of floats only, and a table of floats is a parameter that can be trained and pruned.
        """
        lookups = {
            node.output[0]: node
            for node in nodes
            if node.op_type == "Gather"
            and self._is_weight(node.input[0])
            and self.values[node.input[0]].dtype in INTEGERS
        }
        readers = [name for node in nodes for name in node.input]
        made = []
        replaced: set[str] = set()
        for node in nodes:
            source = lookups.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
            others = [self.values.get(name) for name in node.input[1:] if name]
            known = all(v is not None and v.constant is not None and v.constant.size == 1 for v in others)
            if source is None or not known or readers.count(node.input[0]) > 1:
                made.append(node)
                continue
            table = f"{source.input[0]}.real.{node.output[0]}"
            stand_in = type(node)()
            stand_in.CopyFrom(node)
            stand_in.input[0] = source.input[0]
            real = make_node(stand_in, self.versions, self.values)
            result = build(real)(*(constant_inputs(real) or ()))
            assert isinstance(result, Tensor)
            self.values[table] = constant_value(result.numpy())
            self.origin[table] = source.input[0]
            fresh = type(node)()
            fresh.CopyFrom(source)
            fresh.input[0], fresh.output[0] = table, node.output[0]
            made.append(fresh)
            replaced.add(source.output[0])
        return [node for node in made if node.output[0] not in replaced]

    def _step(
        self, proto: onnx.NodeProto, root: nn.Module, biases: Mapping[str, tuple[str, str]], done: set[str]
    ) -> Step | None:
        node = make_node(proto, self.versions, self.values)
        function = _repetition(proto, node) or build(node)
        constants = constant_inputs(node)
        if constants is not None and proto.input:
            with torch.no_grad():
                for name, tensor in outputs_of(function(*constants), list(proto.output)):
                    self.values[name] = constant_value(tensor.detach().numpy())
                    self.origin[name] = self.origin.get(proto.input[0], proto.input[0])
            return self._given(proto, root) if any(n in self._outputs() for n in proto.output) else None
        left = {i: to_tensor(a) for i, a in node.constants.items() if i not in node.taken}
        if "uant" in node.op or node.op.startswith("Q") or "Integer" in node.op:
            left = {i: _signed(tensor) for i, tensor in left.items()}
        outputs = tuple(proto.output)
        if isinstance(function, Linear) and getattr(function, "bias", None) is None and outputs[0] in biases:
            bias, target = biases[outputs[0]]
            function.bias = nn.Parameter(
                _vector(self.values[bias].constant, function.out_features), requires_grad=False
            )
            done.add(target)
            outputs = (target,)
        module: nn.Module = function if isinstance(function, nn.Module) and not left else OnnxNode(
            function, {i: (_last(self.origin.get(proto.input[i], proto.input[i]), i), t) for i, t in left.items()}
        )  # fmt: skip
        self._store_once(module)
        origins = [self.origin.get(name, name) for name in proto.input if self._is_weight(name)]
        path = self.places.place(root, proto, origins, module)
        inputs = ["" if i in node.taken or i in node.constants else name for i, name in enumerate(proto.input)]
        if isinstance(module, Linear):
            inputs = inputs[:1]  # what may replace it, such as two layers of low rank, takes no more
        name = f"{node.domain}.{node.op}" if node.domain else node.op
        return Step(path, tuple(inputs), outputs, describe(proto), name, _attributes(node))

    def _given(self, proto: onnx.NodeProto, root: nn.Module) -> Step:
        """A constant that the graph hands out."""
        tensors = [to_tensor(np.asarray(self.values[name].constant)) for name in proto.output if name]
        module = _Constants(tensors)
        return Step(
            self.places.place(root, proto, [], module), (), tuple(n for n in proto.output if n), describe(proto)
        )

    def _outputs(self) -> set[str]:
        return {value.name for value in self.graph.output}

    def _is_weight(self, name: str) -> bool:
        value = self.values.get(name)
        return value is not None and value.constant is not None and value.constant.size > 1

    def _biases(self) -> dict[str, tuple[str, str]]:
        """Output of a product -> (bias, output of the Add), where the product is read there alone."""
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        found = {}
        outputs = self._outputs()
        for node in self.graph.node:
            if node.op_type != "MatMul" or node.output[0] in outputs:
                continue
            users = readers.get(node.output[0], [])
            if len(users) != 1 or users[0].op_type != "Add" or users[0].domain:
                continue
            other = [name for name in users[0].input if name != node.output[0]]
            columns = self.values[node.output[0]].shape[-1:]
            if len(other) == 1 and other[0] in self.values and self.values[other[0]].constant is not None:
                shape = self.values[other[0]].shape
                wide = self.values[users[0].output[0]].shape == self.values[node.output[0]].shape
                if wide and shape[-1:] == columns and all(n == 1 for n in shape[:-1]):
                    found[node.output[0]] = (other[0], users[0].output[0])
        return found

    def _store_once(self, module: nn.Module) -> None:
        """Equal weights are one parameter: a table that is also the output layer is stored once, as it was in torch."""
        for part in module.modules():
            for name, parameter in list(part.named_parameters(recurse=False)):
                # Vectors are equal by chance, as new biases are, and what is shared can only be pruned together.
                if parameter.numel() < SHARED or parameter.ndim < 2:
                    continue
                digest = hashlib.blake2b(parameter.detach().numpy().data, digest_size=16).digest()
                key = (tuple(parameter.shape), parameter.dtype, digest)
                part.register_parameter(name, self.weights.setdefault(key, parameter))


def _repetition(proto: onnx.NodeProto, node: Node) -> nn.Module | None:
    """One value put beside itself, as exporters write a mask that is expanded to all heads; None for another node."""
    if node.op != "Concat" or node.domain or len(proto.input) < 2 or len(set(proto.input)) > 1:
        return None
    axis, shape = node.axis("axis"), list(node.shape())
    if shape[axis] != 1:
        return None
    shape[axis] = len(proto.input)
    return Expand(shape)


def _attributes(node: Node) -> dict[str, Any]:
    """What tells which axes a node moves, mixes or keeps."""
    told = {key: value for key, value in node.attributes.items() if not isinstance(value, np.ndarray)}
    for index in node.taken & set(node.constants):
        constant = node.constants[index]
        if constant.dtype.kind in "iu" and constant.size <= MOST_AXES:
            told[f"input_{index}"] = tuple(int(v) for v in constant.reshape(-1))
    return {**told, **node.told, "opset": node.opset}


class _Constants(nn.Module):
    """Constants that are outputs of the graph."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        for index, tensor in enumerate(tensors):
            self.register_buffer(f"value_{index}", tensor)

    def forward(self) -> tuple[Tensor, ...]:
        """Copies of them."""
        return tuple(buffer.clone() for buffer in self.buffers())


def _signed(tensor: Tensor) -> Tensor:
    """Unsigned bytes as int32: LiteRT has no constants without a sign, and quantized operators widen them anyway."""
    return tensor.to(torch.int32) if tensor.dtype == torch.uint8 else tensor


def _vector(array: np.ndarray | None, size: int) -> Tensor:
    assert array is not None
    return to_tensor(np.ascontiguousarray(array.reshape(size)))


def _last(name: str, index: int) -> str:
    """Name of a constant inside its node: ``weight`` of ``encoder.layer.0.weight``."""
    word = re.sub(r"\W", "_", re.split(r"[./:]", name)[-1])
    made_up = not word.isidentifier() or re.search(r"_output_\d+$|^val_\d+$", word) or hasattr(nn.Module, word)
    return f"constant_{index}" if made_up else word


class _Places:
    """Where each node's module goes in the tree."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.taken: set[str] = set()
        self.inner: set[str] = set()  # every path that has something below it
        for node in graph.node:
            for name in (*node.input, node.name, module_path(node)):
                parts = _parts(name)
                self.inner.update(".".join(parts[:i]) for i in range(1, len(parts) - 1))

    def place(self, root: nn.Module, node: onnx.NodeProto, origins: Sequence[str], module: nn.Module) -> str:
        """Put a module into the tree; its path."""
        scope = self._scope(node, origins)
        whole = bool(scope) and bool(origins) and scope not in self.inner and scope not in self.taken
        path = scope if whole else ".".join(p for p in (scope, _kind(node)) if p)
        *parents, leaf = path.split(".")
        at, done = root, ""
        for part in parents:
            at, name = _container(at, part)
            done = f"{done}.{name}" if done else name
        there = dict(at.named_children())
        number, base = 0, leaf
        while leaf in there or f"{done}.{leaf}".lstrip(".") in self.inner:
            number += 1
            leaf = f"{base}_{number}"
        at.add_module(leaf, module)
        path = f"{done}.{leaf}".lstrip(".")
        self.taken.add(path)
        return path

    @staticmethod
    def _scope(node: onnx.NodeProto, origins: Sequence[str]) -> str:
        told = module_path(node)
        if told:
            return ".".join(_parts(told))
        for name in origins:  # initializers are named after parameters, unless an exporter made them up
            if "." in name and "::" not in name and "/" not in name:
                return ".".join(_parts(name)[:-1])
        return ".".join(_parts(node.name)[:-1])


def _parts(name: str) -> list[str]:
    words = [re.sub(r"\W", "_", part) for part in re.split(r"[./]", name)]
    return [f"_{w}" if hasattr(nn.Module, w) else w for w in words if w]


def _kind(node: onnx.NodeProto) -> str:
    return re.sub(r"\W", "_", node.op_type)


def _container(at: nn.Module, part: str) -> tuple[nn.Module, str]:
    """The child of that name that only holds others, made if need be; a node of that name keeps it to itself."""
    there = dict(at.named_children())
    while part in there and type(there[part]) is not nn.Module:
        part += "_"
    if part not in there:
        at.add_module(part, nn.Module())
    return at.get_submodule(part), part


def check_against_runtime(
    model: onnx.ModelProto, module: nn.Module, inputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> str:
    """Compare an imported module with what ONNX Runtime gave for the file.

    Args:
        expected: outputs by name.

    Returns:
        a note on how far they agree, empty if to
        :data:`~edgeattn.evaluation.parity.MAX_ABS_FP32`.

    Raises:
        ConversionError: naming the first node whose output differs.
    """
    with torch.inference_mode():
        got = module(**{name: torch.from_numpy(np.array(array)) for name, array in inputs.items()})
    worst = {name: difference(array, got[name].numpy()) for name, array in expected.items()}
    if all(value <= MAX_ABS_FP32 for value in worst.values()):
        return ""
    name = max(worst, key=lambda key: worst[key])
    node = first_difference(model, inputs)
    if node is None and is_quantized(model):
        return (
            f"output {name} differs by {worst[name]:.1e} from ONNX Runtime's: single steps of the file's quantization"
        )
    place = f"first at {node}" if node else "each node alone agrees: rounding grows on the way"
    raise ConversionError(
        f"output {name} of the imported model differs from ONNX Runtime's by {worst[name]:.1e}, allowed is "
        f"{MAX_ABS_FP32:.0e}; {place}; please report this model"
    )


def difference(expected: np.ndarray, got: np.ndarray) -> float:
    """Largest difference, absolute up to 1 and relative to the largest value beyond; infinity for another shape.

    Marks of hidden places are held to their own size (:mod:`edgeattn.runtimes.agreement`).
    """
    if expected.shape != got.shape:
        return np.inf
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(expected, got) else np.inf
    finite = np.isfinite(expected) & np.isfinite(got)
    if not np.array_equal(expected[~finite], got[~finite], equal_nan=True):
        return np.inf
    if not finite.any():
        return 0.0
    error, scale = scaled_error(expected[finite], got[finite])
    return error / scale


def first_difference(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> str | None:
    """The first node that, given what ONNX Runtime computed up to there, makes something else than ONNX Runtime.

    Integers may differ by one, a value at the edge of two steps.
    """
    import onnx

    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    there = {value.name for value in probed.graph.output}
    probed.graph.output.extend(value for value in model.graph.value_info if value.name not in there)
    names = [value.name for value in probed.graph.output]
    given = dict(zip(names, runtime_session(probed).run(names, dict(inputs)), strict=True)) | dict(inputs)
    values: dict[str, Value] = {
        value.name: declared(value) for value in (*model.graph.input, *model.graph.output, *model.graph.value_info)
    } | initializers(model.graph)
    versions = opsets(model)
    for proto in model.graph.node:
        node = make_node(proto, versions, values)
        try:
            function = build(node)
        except NotImportableError:
            continue
        tensors = [
            None if not name or i in node.taken
            else to_tensor(node.constants[i] if i in node.constants else np.asarray(given[name]))
            for i, name in enumerate(proto.input)
        ]  # fmt: skip
        with torch.inference_mode():
            made = dict(outputs_of(function(*tensors), list(proto.output)))
        for name, tensor in made.items():
            ours, theirs = tensor.numpy(), np.asarray(given[name])
            if theirs.dtype.kind in "iu" and ours.shape == theirs.shape:
                wrong = np.abs(ours.astype(np.int64) - theirs.astype(np.int64)).max(initial=0) > 1 + 1e-6 * np.abs(
                    theirs.astype(np.float64)
                ).max(initial=0)
            else:
                wrong = difference(theirs, ours) > MAX_ABS_FP32
            if wrong:
                return describe(proto)
    return None
