"""What the operations of a converted graph do, counted from its file, and how long a device that is not here takes.

The counts are of the file that ships (ONNX, OpenVINO IR, TFLite), not of the source: a product is int8 where the file
says so. What an engine fuses or folds away is counted as that: nothing is started and nothing moved for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeattn.bundle import Bundle, open_bundle
from edgeattn.errors import BundleError, UnsupportedError, load_extra
from edgeattn.runtimes.openvino import SHARED_WEIGHTS
from edgeattn.targets import Target
from edgeattn.targets.calibration import calibrated_host
from edgeattn.targets.roofline import Computed, Efficiency, Estimate, OpFigures, estimate

HOST = "cpu"  # the target that is this machine
NARROW = {"int8", "uint8", "int4", "uint4"}
BITS = {
    "float64": 64, "int64": 64, "uint64": 64, "float32": 32, "int32": 32, "uint32": 32, "float16": 16, "bfloat16": 16,
    "int16": 16, "uint16": 16, "int8": 8, "uint8": 8, "bool": 8, "float8": 8, "int4": 4, "uint4": 4,
}  # fmt: skip

# Operations by what they are, in the words of ONNX, OpenVINO and TFLite (upper case). One that stands nowhere here
# reads its inputs, writes its outputs and starts one kernel, as a softmax does.
PRODUCTS = frozenset(("MatMul", "Gemm", "MatMulInteger", "FusedMatMul", "FULLY_CONNECTED", "BATCH_MATMUL"))
CONVOLUTIONS = frozenset((
    "Conv", "ConvTranspose", "Convolution", "GroupConvolution", "ConvolutionBackpropData",
    "GroupConvolutionBackpropData", "CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV",
))  # fmt: skip
RECURRENT = frozenset(("LSTM", "GRU", "RNN", "LSTMSequence", "GRUSequence", "RNNSequence", "LSTMCell", "GRUCell"))
ATTENTION = frozenset(("ScaledDotProductAttention",))
NOTHING = frozenset((
    "Constant", "Parameter", "Result", "ReadValue", "Assign", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten",
    "Cast", "CastLike", "Convert", "ConvertLike", "QuantizeLinear", "DequantizeLinear", "FakeQuantize", "Dropout",
    "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "DEQUANTIZE",
))  # fmt: skip
"""Views, and conversions that engines fuse into what reads or writes them."""
MOVES = frozenset((
    "Transpose", "Concat", "Slice", "StridedSlice", "Split", "VariadicSplit", "Gather", "GatherElements", "GatherND",
    "Pad", "Expand", "Broadcast", "Tile", "TRANSPOSE", "CONCATENATION", "SLICE", "STRIDED_SLICE", "SPLIT", "SPLIT_V",
    "GATHER", "GATHER_ND", "EMBEDDING_LOOKUP", "PAD", "PADV2", "BROADCAST_TO", "TILE", "PACK", "UNPACK",
))  # fmt: skip
"""What copies its result and no more: an embedding reads the rows that it gives, not the table."""
ELEMENTWISE = frozenset(name.lower() for name in (
    "Add", "Sub", "Subtract", "Mul", "Multiply", "Div", "Divide", "Pow", "Power", "Sqrt", "Rsqrt", "Exp", "Log", "Neg",
    "Negative", "Abs", "Erf", "Gelu", "Relu", "LeakyRelu", "PRelu", "Elu", "Sigmoid", "Logistic", "HardSigmoid",
    "HardSwish", "Hard_Swish", "HSwish", "Swish", "Silu", "Tanh", "Clip", "Clamp", "Min", "Max", "Minimum", "Maximum",
    "Where", "Select", "Select_V2", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Not", "And", "Or",
    "LogicalAnd", "LogicalOr", "LogicalNot", "Sin", "Cos", "Floor", "Round", "Sign", "Square", "SquaredDifference",
    "Squared_Difference", "Reciprocal", "Softplus", "Mish",
))  # fmt: skip
CONTROL = frozenset(("If", "Loop", "Scan", "TensorIterator", "IF", "WHILE", "CALL"))
FUSING = ("tensorrt", "openvino")
"""Engines that compute element by element inside the kernels before or after; the others start one for each."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of a graph.

    Attributes:
        dtype: that it is stored in; a dequantized tensor still lies there as integers.
        constant: whether it is known before a call.
        packed: whether it is stored narrower than it is computed with: dequantized weights or activations.
    """

    shape: tuple[int, ...]
    dtype: str
    constant: bool = False
    packed: bool = False

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return math.ceil(self.size * BITS.get(self.dtype, 32) / 8)


@dataclass(frozen=True)
class Node:
    """An operation of a file, whatever its format; ``equation`` is that of an einsum."""

    name: str
    type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    transposed: bool = False  # the first input of a product
    equation: str = ""


@dataclass(frozen=True)
class Graph:
    """A graph of a file.

    Attributes:
        nodes: in an order in which they can run.
        tensors: as the file declares them; what a node gives is constant if all that it reads is.
        inputs, outputs: names.
    """

    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class GraphFigures:
    """What a graph does in a call.

    Attributes:
        activation_bytes: of the tensors that live at once at the worst moment; inputs and outputs always do.
    """

    ops: tuple[OpFigures, ...]
    activation_bytes: int

    @property
    def flops(self) -> float:
        """Of all operations, a multiply-add counted as two."""
        return sum(op.flops for op in self.ops)


def op_figures(bundle: Bundle) -> dict[str, GraphFigures]:
    """The operations of every graph of a bundle, by the graph's name.

    Raises:
        UnsupportedError: for control flow, whose work depends on values, and for a size that the file does not tell.
        BundleError: if a file cannot be read.
        MissingExtraError: without the package that reads the format.
    """
    manifest = bundle.manifest
    executed = manifest.precision.get("executed") or {}
    models = {graph: bundle.file(name) for graph, name in manifest.models.items()}
    return file_figures(manifest.backend, models, computes_int8(executed))


def computes_int8(executed: Mapping[str, Mapping[str, int]]) -> bool:
    """Whether the census of what an engine executed has a linear layer in int8."""
    return any("int8" in (executed.get(kind) or {}) for kind in ("FullyConnected", "FULLY_CONNECTED"))


def file_figures(engine: str, models: Mapping[str, Path], dynamic: bool = False) -> dict[str, GraphFigures]:
    """The operations of model files that are no bundle yet, by the graph's name.

    Args:
        models: graph name -> file.
        dynamic: whether the engine computes float activations with int8 weights as int8; of a bundle that is told by
            what it executed.

    Raises:
        EdgeattnError: as :func:`op_figures`.
    """
    read = {"openvino": _read_ir, "litert": _read_tflite}.get(engine, _read_onnx)
    return {graph: graph_figures(read(path, graph), engine, dynamic) for graph, path in models.items()}


def estimate_bundle(
    path: Path | str, target: Target, threads: int = 1, efficiency: Efficiency | None = None
) -> Estimate:
    """How long one call of a bundle would take on a device, by the roofline.

    Of a model with several graphs it is one call of each, added up; a graph that stands in several sizes counts with
    its largest, as in a measured :class:`~edgeattn.profiling.figures.Latency`. What the host does (features, decoding)
    is not in it.

    Args:
        target: with the name ``cpu`` it is this machine, and its calibration is used.
        efficiency: None for what this machine's calibration tells, or what was seen elsewhere.

    Raises:
        EdgeattnError: as :func:`op_figures`, :func:`edgeattn.targets.roofline.estimate` and, for this machine,
            :func:`edgeattn.targets.calibration.calibrated_host`.
    """
    with open_bundle(path) as bundle:
        manifest = bundle.manifest
        figures = op_figures(bundle)
        spec = manifest.spec
        largest = [graphs[-1].name for graphs in spec.units().values()]
        golden = manifest.golden.file if manifest.golden is not None else None
        weights = sum(entry.size for name, entry in manifest.files.items() if name != golden)
        states = sum(state.nbytes for graph in spec.graphs for state in graph.states)
    if efficiency is None and target.name == HOST:
        target, efficiency = calibrated_host(manifest.backend, threads)
    ops = [op for name in largest for op in figures[name].ops]
    activations = max(graph.activation_bytes for graph in figures.values())
    return estimate(ops, target, manifest.backend, threads, efficiency, weights + states + activations)


# --- counting ---------------------------------------------------------------------------------------------------------


def graph_figures(graph: Graph, engine: str, dynamic: bool = False) -> GraphFigures:
    """Count what an engine does for a graph.

    Args:
        dynamic: whether products of float activations and int8 weights are computed as int8 there.
    """
    tensors = dict(graph.tensors)
    ops = []
    for node in graph.nodes:
        read = [tensors[name] for name in node.inputs if name in tensors]
        if node.type in ("Shape", "ShapeOf", "SHAPE") or (read and all(tensor.constant for tensor in read)):
            for name in node.outputs:
                if name in tensors:
                    tensors[name] = _folded(node, read, tensors[name])
            continue
        if node.type in CONTROL:
            raise UnsupportedError(
                f"operation {node.name!r} ({node.type}) runs other operations as values decide: its time cannot be "
                "estimated; measure on the device, or convert a model without it"
            )
        if _dequantizes(node, read):
            stored = next(tensor for tensor in read if tensor.packed or tensor.dtype in NARROW)
            for name in node.outputs:
                tensors[name] = Tensor(tensors[name].shape, stored.dtype, stored.constant, True)
            continue
        if node.type in NOTHING:
            continue
        given = [tensors[name] for name in node.outputs if name in tensors]
        if not given:
            raise UnsupportedError(f"the file does not tell what size operation {node.name!r} ({node.type}) gives")
        ops.append(_count(node, read, given, engine, dynamic))
    return GraphFigures(tuple(ops), activation_peak(graph, tensors))


def _folded(node: Node, read: Sequence[Tensor], declared: Tensor) -> Tensor:
    """What is computed before the first call; dequantized weights stay narrow."""
    narrow = [tensor for tensor in read if (tensor.packed or tensor.dtype in NARROW) and tensor.size > 1]
    if narrow and declared.size == narrow[0].size:
        return Tensor(declared.shape, narrow[0].dtype, True, True)
    if declared.dtype == "float32" and node.type in ("Cast", "Convert", "DEQUANTIZE"):
        return Tensor(declared.shape, "float32", True)
    return Tensor(declared.shape, declared.dtype, True)


def _dequantizes(node: Node, read: Sequence[Tensor]) -> bool:
    """Whether a node only scales integers back: DequantizeLinear, or OpenVINO's Convert, Subtract and Multiply."""
    first = read[0] if read else None
    if first is None or first.constant:
        return False
    if node.type in ("DequantizeLinear", "DEQUANTIZE"):
        return True
    if node.type in ("Convert", "Reshape", "Transpose") and (first.packed or first.dtype in NARROW):
        return node.type != "Transpose"
    return node.type in ("Multiply", "Subtract") and first.packed and all(other.constant for other in read[1:])


def _count(node: Node, read: Sequence[Tensor], given: Sequence[Tensor], engine: str, dynamic: bool) -> OpFigures:
    written = sum(_runtime_bytes(tensor, engine) for tensor in given)
    moved = float(sum(_runtime_bytes(tensor, engine) for tensor in read) + written)
    flops = float(sum(tensor.size for tensor in given))
    precision: Computed = "fp16" if engine == "tensorrt" and given[0].dtype == "float16" else "fp32"
    kernels = 1
    work = _product_flops(node, read, given[0])
    if work is not None:
        flops, precision = work, _computed(read, given[0], engine, dynamic)
    elif node.type in MOVES:
        flops, moved = 0.0, 2.0 * written
    elif node.type.lower().replace("_", "") in _FLAT and engine in FUSING:
        moved, kernels = 0.0, 0
    return OpFigures(node.name, node.type, flops, moved, precision, kernels)


_FLAT = frozenset(name.replace("_", "") for name in ELEMENTWISE)


def _runtime_bytes(tensor: Tensor, engine: str) -> int:
    """As the engine holds it: on a processor float16 is unpacked to float32 when the model is loaded."""
    return tensor.nbytes * 2 if tensor.dtype in ("float16", "bfloat16") and engine != "tensorrt" else tensor.nbytes


def _computed(read: Sequence[Tensor], given: Tensor, engine: str, dynamic: bool) -> Computed:
    narrow = [tensor.dtype in NARROW for tensor in read[:2]]
    if all(narrow) or (any(narrow) and (dynamic or engine in ("litert", "onnxruntime"))):
        return "int8"
    return "fp16" if engine == "tensorrt" and given.dtype == "float16" else "fp32"


def _product_flops(node: Node, read: Sequence[Tensor], given: Tensor) -> float | None:
    """Operations of a product; None for what is none."""
    if node.type in PRODUCTS and len(read) >= 2:
        first = read[0].shape
        inner = first[-2] if node.transposed and len(first) > 1 else first[-1]
        if node.type == "FULLY_CONNECTED":
            inner = read[1].shape[-1]
        return 2.0 * given.size * inner
    if node.type in CONVOLUTIONS and len(read) >= 2:
        return _convolution_flops(node.type, read, given)
    if node.type in RECURRENT:
        weights = sum(tensor.size for tensor in read if tensor.constant and len(tensor.shape) in (2, 3))
        steps = math.prod(read[0].shape[:-1]) if not node.type.endswith("Cell") else read[0].shape[0]
        return 2.0 * steps * weights
    if node.type in ATTENTION and len(read) >= 3:
        queries, keys, values = (tensor.shape for tensor in read[:3])
        return 2.0 * math.prod(queries[:-1]) * keys[-2] * (queries[-1] + values[-1])
    if node.type == "Einsum" and node.equation:
        sizes: dict[str, int] = {}
        for term, tensor in zip(node.equation.replace(" ", "").partition("->")[0].split(","), read, strict=False):
            sizes.update(zip(term, tensor.shape, strict=False))
        return 2.0 * math.prod(sizes.values())
    return None


def _convolution_flops(kind: str, read: Sequence[Tensor], given: Tensor) -> float:
    """By the weight's layout: OIHW in ONNX and OpenVINO, with groups in front there, OHWI in TFLite."""
    if kind == "TRANSPOSE_CONV":  # sizes of the result, weight, input
        weight, data = read[1], read[2]
        return 2.0 * data.size * math.prod(weight.shape[:-1])
    data, weight = read[0], read[1]
    match kind:
        case "DEPTHWISE_CONV_2D":
            return 2.0 * given.size * math.prod(weight.shape[1:-1])
        case "GroupConvolution":
            return 2.0 * given.size * math.prod(weight.shape[2:])
        case "ConvTranspose" | "ConvolutionBackpropData":
            return 2.0 * data.size * math.prod(weight.shape[1:])
        case "GroupConvolutionBackpropData":
            return 2.0 * data.size * math.prod(weight.shape[2:])
    return 2.0 * given.size * math.prod(weight.shape[1:])


def activation_peak(graph: Graph, tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the tensors that live at once at the worst moment; a view lives in the tensor that it shows."""
    owner: dict[str, str] = {}
    last: dict[str, int] = {}
    for index, node in enumerate(graph.nodes):
        if node.type in NOTHING and node.inputs and len(node.outputs) == 1:
            owner[node.outputs[0]] = owner.get(node.inputs[0], node.inputs[0])
        for name in node.inputs:
            last[owner.get(name, name)] = index
    always = {owner.get(name, name) for name in (*graph.inputs, *graph.outputs)}
    border = sum(tensors[name].nbytes for name in always if name in tensors)
    live = peak = 0
    alive: dict[str, int] = {}
    for index, node in enumerate(graph.nodes):
        for name in node.outputs:
            tensor = tensors.get(name)
            if name not in owner and name not in always and tensor is not None and not tensor.constant:
                alive[name] = tensor.nbytes
                live += tensor.nbytes
        peak = max(peak, live)
        for name in [name for name in alive if last.get(name, index) <= index]:
            live -= alive.pop(name)
    return peak + border


# --- reading ----------------------------------------------------------------------------------------------------------


def _read_onnx(path: Path, graph: str) -> Graph:
    onnx = load_extra("onnx", "convert")
    try:
        model = onnx.load(str(path), load_external_data=False)
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:
        raise BundleError(
            f"{path}: graph {graph!r} cannot be read as ONNX ({str(error).splitlines()[0]:.200})"
        ) from error
    types = onnx.TensorProto.DataType
    tensors = {
        value.name: Tensor(
            tuple(int(dim.dim_value) for dim in value.type.tensor_type.shape.dim),
            _onnx_dtype(types.Name(value.type.tensor_type.elem_type)),
        )
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)
    }
    weights = {
        tensor.name: Tensor(tuple(tensor.dims), _onnx_dtype(types.Name(tensor.data_type)), True)
        for tensor in model.graph.initializer
    }
    nodes = []
    for number, node in enumerate(model.graph.node):
        options = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "Constant" and "value" in options:
            value = options["value"].t
            weights[node.output[0]] = Tensor(tuple(value.dims), _onnx_dtype(types.Name(value.data_type)), True)
            continue
        if node.op_type == "Constant":
            weights[node.output[0]] = Tensor((1,), "float32", True)
            continue
        nodes.append(
            Node(
                node.name or f"{node.op_type}_{number}",
                node.op_type,
                tuple(name for name in node.input if name),
                tuple(name for name in node.output if name),
                "transA" in options and options["transA"].i == 1,
                options["equation"].s.decode() if "equation" in options else "",
            )
        )
    inputs = tuple(value.name for value in model.graph.input if value.name not in weights)
    return Graph(tuple(nodes), tensors | weights, inputs, tuple(value.name for value in model.graph.output))


def _onnx_dtype(name: str) -> str:
    known = {"FLOAT": "float32", "DOUBLE": "float64"}
    return known.get(name, name.lower())


def _read_ir(path: Path, graph: str) -> Graph:
    openvino = load_extra("openvino", "openvino")
    shared = path.with_name(SHARED_WEIGHTS)
    files = [str(path)] if path.with_suffix(".bin").is_file() or not shared.is_file() else [str(path), str(shared)]
    try:
        model = openvino.Core().read_model(*files)
        ordered = list(model.get_ordered_ops())
    except RuntimeError as error:
        raise BundleError(
            f"{path}: graph {graph!r} cannot be read as IR ({str(error).splitlines()[-1]:.200})"
        ) from error
    tensors: dict[str, Tensor] = {}
    nodes = []
    inputs: list[str] = []
    outputs: list[str] = []
    for op in ordered:
        kind, name = op.get_type_name(), op.get_friendly_name()
        given = tuple(f"{name}:{number}" for number in range(op.get_output_size()))
        read = tuple(
            f"{value.get_source_output().get_node().get_friendly_name()}:{value.get_source_output().get_index()}"
            for value in op.inputs()
        )
        if kind == "Result":
            outputs += read
            continue
        for key, port in zip(given, op.outputs(), strict=True):
            if port.get_partial_shape().is_dynamic:
                raise UnsupportedError(f"{path}: {name!r} ({kind}) has no fixed size, so its work cannot be counted")
            dtype = _ir_dtype(port.get_element_type().get_type_name())
            tensors[key] = Tensor(tuple(port.get_shape()), dtype, kind == "Constant")
        if kind == "Parameter":
            inputs += given
        elif kind != "Constant":
            transposed = kind == "MatMul" and bool(op.get_attributes().get("transpose_a"))
            nodes.append(Node(name, kind, read, given, transposed))
    return Graph(tuple(nodes), tensors, tuple(inputs), tuple(outputs))


def _ir_dtype(name: str) -> str:
    from edgeattn.runtimes.openvino import DTYPES

    return DTYPES.get(name, name)


def _read_tflite(path: Path, graph: str) -> Graph:
    schema: Any = load_extra("ai_edge_litert.schema_py_generated", "tflite")
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    types = {code: name.lower() for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
    try:
        model = schema.Model.GetRootAs(path.read_bytes(), 0)
        chosen = model.Subgraphs(_subgraph(model, graph))
        # A constant has data of its own; in a file beyond 2 GiB it stands behind the flatbuffer, at an offset.
        tensors = {}
        for index in range(chosen.TensorsLength()):
            tensor = chosen.Tensors(index)
            buffer = model.Buffers(tensor.Buffer())
            constant = buffer is not None and (buffer.DataLength() > 0 or buffer.Offset() > 1)
            shape = tuple(int(tensor.Shape(axis)) for axis in range(tensor.ShapeLength()))
            tensors[str(index)] = Tensor(shape, types.get(tensor.Type(), "float32"), constant)
        nodes = []
        for number in range(chosen.OperatorsLength()):
            op = chosen.Operators(number)
            code = model.OperatorCodes(op.OpcodeIndex())
            kind = names.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "CUSTOM")
            read = tuple(str(op.Inputs(i)) for i in range(op.InputsLength()) if op.Inputs(i) >= 0)
            given = tuple(str(op.Outputs(i)) for i in range(op.OutputsLength()))
            transposed = kind == "BATCH_MATMUL" and _adjoint(schema, op)
            nodes.append(Node(f"{kind} {number}", kind, read, given, transposed))
        inputs = tuple(str(chosen.Inputs(i)) for i in range(chosen.InputsLength()))
        outputs = tuple(str(chosen.Outputs(i)) for i in range(chosen.OutputsLength()))
    except Exception as error:  # struct.error, and what the flatbuffers package makes of damaged offsets
        raise BundleError(f"{path}: graph {graph!r} cannot be read as TFLite ({error})") from error
    return Graph(tuple(nodes), tensors, inputs, outputs)


def _subgraph(model: Any, graph: str) -> int:
    signatures = [model.SignatureDefs(i) for i in range(model.SignatureDefsLength())]
    by_name = {signature.SignatureKey().decode(): int(signature.SubgraphIndex()) for signature in signatures}
    return by_name.get(graph, 0)


def _adjoint(schema: Any, op: Any) -> bool:
    options = op.BuiltinOptions()
    if options is None:
        return False
    chosen = schema.BatchMatMulOptions()
    chosen.Init(options.Bytes, options.Pos)
    return bool(chosen.AdjX())
