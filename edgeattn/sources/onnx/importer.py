"""ONNX -> torch: the graph as torch modules, so that it is pruned, quantized and converted like any other model.

Every node becomes a module at the path that its name or its weights tell (``encoder.layer.0.query``); products with
constant matrices, convolutions, tables and normalisations are torch's own ``nn.Linear``, ``nn.Conv2d``,
``nn.Embedding``, ``nn.LayerNorm``. Operators are listed in one table, :mod:`edgeattn.sources.onnx.ops`.

No library does this in our environment: onnx2torch imports torchvision, onnx2tf pins numpy 1.26 and TensorFlow.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeattn.converters.trace import first_line
from edgeattn.errors import UnsupportedError
from edgeattn.sources.onnx.control import KINDS
from edgeattn.sources.onnx.imported import ImportedModel, OnnxConstants, OnnxNode, Step
from edgeattn.sources.onnx.ops import Node, NotImportableError, to_tensor
from edgeattn.sources.onnx.ops.products import Linear
from edgeattn.sources.onnx.ops.shapes import Expand
from edgeattn.sources.onnx.places import Places
from edgeattn.sources.onnx.reference import OnnxRuntimeModule
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
MOST_AXES = 64  # integers among a node's inputs that may be axes, sizes or indices of them
INTEGERS = (torch.uint8, torch.int8)


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
        try:
            return OnnxRuntimeModule(model, str(error)).eval()
        except Exception as refusal:  # noqa: BLE001  # as for operators of opset 6, or of GPUs alone
            raise UnsupportedError(f"{error}; ONNX Runtime refuses it too: {first_line(refusal)}") from error


class _Importer:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.versions = opsets(model)
        self.values: dict[str, Value] = {
            value.name: declared(value) for value in (*model.graph.input, *model.graph.output, *model.graph.value_info)
        } | initializers(model.graph)
        self.origin = {name: name for name in self.values}  # constant -> the initializer that it was made from
        self.places = Places(model.graph)
        self.nodes = self._with_real_tables(list(model.graph.node))
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
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
                why = proto.doc_string if proto.op_type in KINDS and not proto.domain else error
                raise UnsupportedError(f"{describe(proto)} cannot be expressed in torch: {why}") from error
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
        node = make_node(proto, self.versions, self.values, wide=self._read_as_numbers(proto))
        function = _repetition(proto, node) or build(node)
        constants = constant_inputs(node)
        if constants is not None and proto.input:
            with torch.no_grad():
                for name, tensor in outputs_of(function(*constants), list(proto.output)):
                    self.values[name] = constant_value(tensor.detach().numpy())
                    self.origin[name] = self.origin.get(proto.input[0], proto.input[0])
            return self._given(proto, root) if any(n in self._outputs() for n in proto.output) else None
        left = {i: to_tensor(a) for i, a in node.constants.items() if i not in node.taken}
        if _is_quantized(proto):
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

    def _read_as_numbers(self, proto: onnx.NodeProto) -> bool:
        """Whether all that reads what a node makes widens it: operators of quantized files."""
        if any(name in self._outputs() for name in proto.output) or all(self._is_constant(n) for n in proto.input if n):
            return False
        return all(_is_quantized(reader) for name in proto.output for reader in self.readers.get(name, ()))

    def _is_constant(self, name: str) -> bool:
        value = self.values.get(name)
        return value is not None and value.constant is not None

    def _given(self, proto: onnx.NodeProto, root: nn.Module) -> Step:
        """A constant that the graph hands out."""
        tensors = [to_tensor(np.asarray(self.values[name].constant)) for name in proto.output if name]
        module = OnnxConstants(tensors)
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


def _is_quantized(node: onnx.NodeProto) -> bool:
    """Whether an operator reads integers as numbers with a zero-point."""
    return "uant" in node.op_type or node.op_type.startswith("Q") or "Integer" in node.op_type


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
