"""What the operations of a converted graph do, counted from its file, and how long a device that is not here takes.

The counts are of the file that ships (ONNX, OpenVINO IR, TFLite), not of the source: a product is int8 where the file
says so. What an engine fuses or folds away is counted as that: nothing is started and nothing moved for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeattn.engines import ENGINES, Engine
from edgeattn.errors import UnsupportedError
from edgeattn.graphs.files import READERS, Graph, Node, Tensor
from edgeattn.graphs.work import (
    Lifetime,
    attention_macs,
    convolution_macs,
    einsum_macs,
    peak_bytes,
    recurrent_macs,
    transposed_convolution_macs,
)
from edgeattn.targets.roofline import Computed, OpFigures

NARROW = {"int8", "uint8", "int4", "uint4"}

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
    read = READERS[ENGINES[engine].files]
    return {graph: graph_figures(read(path, graph), engine, dynamic) for graph, path in models.items()}


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
        ops.append(_count(node, read, given, ENGINES[engine], dynamic))
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


def _count(node: Node, read: Sequence[Tensor], given: Sequence[Tensor], engine: Engine, dynamic: bool) -> OpFigures:
    written = sum(_runtime_bytes(tensor, engine) for tensor in given)
    moved = float(sum(_runtime_bytes(tensor, engine) for tensor in read) + written)
    flops = float(sum(tensor.size for tensor in given))
    precision: Computed = "fp16" if engine.gpu and given[0].dtype == "float16" else "fp32"
    kernels = 1
    work = _product_flops(node, read, given[0])
    if work is not None:
        flops, precision = work, _computed(read, given[0], engine, dynamic)
    elif node.type in MOVES:
        flops, moved = 0.0, 2.0 * written
    elif node.type.lower().replace("_", "") in _FLAT and engine.fuses:
        moved, kernels = 0.0, 0
    return OpFigures(node.name, node.type, flops, moved, precision, kernels)


_FLAT = frozenset(name.replace("_", "") for name in ELEMENTWISE)


def _runtime_bytes(tensor: Tensor, engine: Engine) -> int:
    """As the engine holds it: on a processor float16 is unpacked to float32 when the model is loaded."""
    return tensor.nbytes * 2 if tensor.dtype in ("float16", "bfloat16") and not engine.gpu else tensor.nbytes


def _computed(read: Sequence[Tensor], given: Tensor, engine: Engine, dynamic: bool) -> Computed:
    narrow = [tensor.dtype in NARROW for tensor in read[:2]]
    if all(narrow) or (any(narrow) and (dynamic or engine.narrows)):
        return "int8"
    return "fp16" if engine.gpu and given.dtype == "float16" else "fp32"


def _product_flops(node: Node, read: Sequence[Tensor], given: Tensor) -> float | None:
    """Operations of a product; None for what is none."""
    shapes = [tensor.shape for tensor in read]
    if node.type in PRODUCTS and len(read) >= 2:
        first = shapes[0]
        inner = first[-2] if node.transposed and len(first) > 1 else first[-1]
        if node.type == "FULLY_CONNECTED":
            inner = shapes[1][-1]
        return 2.0 * given.size * inner
    if node.type in CONVOLUTIONS and len(read) >= 2:
        return 2.0 * _convolution_macs(node.type, shapes, given.shape)
    if node.type in RECURRENT:
        weights = [tensor.shape for tensor in read if tensor.constant and len(tensor.shape) in (2, 3)]
        return 2.0 * recurrent_macs(shapes[0][:1] if node.type.endswith("Cell") else shapes[0][:-1], weights)
    if node.type in ATTENTION and len(read) >= 3:
        return 2.0 * attention_macs(*shapes[:3])
    if node.type == "Einsum" and node.equation:
        return 2.0 * einsum_macs(node.equation, shapes)
    return None


def _convolution_macs(kind: str, shapes: Sequence[tuple[int, ...]], given: tuple[int, ...]) -> int:
    """By the weight's layout: OIHW in ONNX and OpenVINO, with groups in front there, OHWI in TFLite."""
    if kind == "TRANSPOSE_CONV":  # sizes of the result, weight OHWI, input
        _, weight, data = shapes[:3]
        return transposed_convolution_macs(data, (weight[-1], *weight[:-1]))
    data, weight = shapes[:2]
    match kind:
        case "DEPTHWISE_CONV_2D":  # 1HWO
            return convolution_macs(given, (weight[-1], *weight[1:-1]))
        case "GroupConvolution":  # GOIHW
            return convolution_macs(given, weight[1:])
        case "ConvTranspose" | "ConvolutionBackpropData":
            return transposed_convolution_macs(data, weight)
        case "GroupConvolutionBackpropData":  # GIOHW
            return transposed_convolution_macs(data, weight[1:])
    return convolution_macs(given, weight)


def activation_peak(graph: Graph, tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the tensors that live at once at the worst moment; a view lives in the tensor that it shows."""
    steps = [
        Lifetime(
            inputs=node.inputs,
            outputs={
                name: tensors[name].nbytes for name in node.outputs if name in tensors and not tensors[name].constant
            },
            views=node.inputs[0] if node.type in NOTHING and node.inputs and len(node.outputs) == 1 else None,
        )
        for node in graph.nodes
    ]
    given = {name: tensors[name].nbytes for name in graph.inputs if name in tensors}
    return peak_bytes(steps, given, graph.outputs)
