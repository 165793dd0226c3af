"""An ONNX graph in the making, for the tensors of a TFLite file: names, constants, nodes, fused activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.errors import UnsupportedError
from edgeattn.sources.tflite.read import NUMPY, Graph, Operator

if TYPE_CHECKING:
    import onnx

ACTIVATIONS = {0: "", 1: "RELU", 2: "RELU_N1_TO_1", 3: "RELU6"}
"""Codes of ActivationFunctionType. LiteRT's kernels leave a fused TANH (4) and SIGN_BIT (5) out without a word."""
CLIPS = {"RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0), "RELU_0_TO_1": (0.0, 1.0)}
TO_IMAGE, FROM_IMAGE = (0, 3, 1, 2), (0, 2, 3, 1)  # rows of pixels to ONNX's planes, and back


class Builder:
    """Writes nodes.

    Attributes:
        operator: whose nodes are written now.
        label: of its nodes.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.names = {index: name for name, index in graph.inputs.items()}
        self.folded: dict[int, np.ndarray] = {}  # what is only another form of a constant
        self.planes: dict[str, str] = {}  # an image -> the same in ONNX's order of axes
        self.operator: Operator = graph.operators[0]
        self.label = ""
        self.fresh = 0

    # --- what the operator has -----------------------------------------------------------------------------------

    def option(self, name: str, default: Any = 0) -> Any:
        """An option of the operator; a default where the file has none."""
        found = getattr(self.operator.options, name, None)
        return default if found is None else found()

    def has(self, position: int) -> bool:
        """Whether an input is there."""
        return position < len(self.operator.inputs) and self.operator.inputs[position] >= 0

    def shape(self, position: int = 0) -> tuple[int, ...]:
        """Shape of an input."""
        return self.graph.tensors[self.index(position)].shape

    def out_shape(self, position: int = 0) -> tuple[int, ...]:
        """Shape of an output."""
        return self.graph.tensors[self.operator.outputs[position]].shape

    def dtype(self, position: int = 0) -> np.dtype[Any]:
        """Type of what an input stands for."""
        return self.kind_of(self.index(position))

    def out_dtype(self, position: int = 0) -> np.dtype[Any]:
        """Type of what an output stands for."""
        return self.kind_of(self.operator.outputs[position])

    def kind_of(self, index: int) -> np.dtype[Any]:
        """Type of what a tensor stands for: quantized integers and narrow floats are float32."""
        tensor = self.graph.tensors[index]
        if tensor.kind not in NUMPY:
            raise self.refuse(f"tensor {tensor.name!r} is {tensor.kind.lower()}")
        return np.dtype(np.float32 if tensor.quantized or tensor.kind.startswith("FLOAT") else NUMPY[tensor.kind])

    def index(self, position: int) -> int:
        """The tensor of an input.

        Raises:
            UnsupportedError: if the operator lacks it.
        """
        if not self.has(position):
            raise self.refuse(f"input {position} is missing")
        return self.operator.inputs[position]

    def known(self, position: int) -> np.ndarray | None:
        """What an input stands for, where it is a constant."""
        index = self.index(position)
        tensor = self.graph.tensors[index]
        return self.folded.get(index) if tensor.data is None else tensor.real(tensor.data)

    def static(self, position: int) -> list[int]:
        """Integers that shape the graph.

        Raises:
            UnsupportedError: if they are computed while the model runs.
        """
        value = self.known(position)
        if value is None:
            raise self.refuse(f"input {position} (axes, sizes or places) is computed at run time")
        return [int(v) for v in value.reshape(-1)]

    def axes(self, position: int) -> list[int]:
        """Axes of the first input, counted from the front."""
        rank = len(self.shape())
        return [self.axis(axis, rank) for axis in self.static(position)]

    def axis(self, axis: int, rank: int) -> int:
        """An axis counted from the front."""
        if not -rank <= axis < max(rank, 1):
            raise self.refuse(f"axis {axis} is none of {rank}")
        return axis % max(rank, 1)

    def refuse(self, why: str) -> UnsupportedError:
        """The error for this operator."""
        made = self.graph.tensors[self.operator.outputs[0]].name
        return UnsupportedError(f"operator {self.operator.kind}, which makes {made[-80:]!r}: {why}")

    # --- what is written -----------------------------------------------------------------------------------------

    def value(self, position: int = 0) -> str:
        """The name of an input."""
        return self.tensor(self.index(position))

    def tensor(self, index: int) -> str:
        """The name of a tensor; a constant is stored when it is first read."""
        if index in self.names:
            return self.names[index]
        tensor = self.graph.tensors[index]
        if tensor.data is None:
            raise self.refuse(f"it reads {tensor.name[-80:]!r}, which nothing has made yet")
        self.names[index] = self.constant(tensor.real(tensor.data), f"weight_{index}")
        return self.names[index]

    def constant(self, array: np.ndarray | Sequence[int], hint: str = "constant") -> str:
        """A stored tensor; integers are int64 where they are given as numbers."""
        made = array if isinstance(array, np.ndarray) else np.array(array, np.int64)
        self.fresh += 1
        name = f"{self.label}.{hint}"
        name = f"{name}_{self.fresh}" if name in self.constants else name
        self.constants[name] = np.ascontiguousarray(made).reshape(made.shape)
        return name

    def number(self, value: float, position: int = 0) -> str:
        """A constant without axes, of the type of an input."""
        return self.constant(np.array(value, self.dtype(position)), "number")

    def add(self, kind: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> str:
        """Write a node; the name of its first output."""
        return self.several(kind, inputs, outputs, **attributes)[0]

    def several(self, kind: str, inputs: Sequence[str], outputs: int, **attributes: Any) -> list[str]:
        """Write a node; the names of its outputs."""
        import onnx

        self.fresh += 1
        made = [f"{self.label}.{kind.lower()}_{self.fresh}.{i}" for i in range(outputs)]
        node = onnx.helper.make_node(kind, list(inputs), made, name=f"{self.label}/{kind}_{self.fresh}", **attributes)
        self.nodes.append(node)
        return made

    def give(self, *names: str) -> None:
        """Say what the operator's outputs are, their fused activation apart."""
        for index, name in zip(self.operator.outputs, names, strict=False):
            self.names[index] = name

    def finish(self, name: str) -> None:
        """Apply the fused activation, and say what the output is."""
        self.give(self.activated(name))

    def activated(self, name: str) -> str:
        """After the fused activation of the operator's options."""
        code = self.option("FusedActivationFunction")
        if code not in ACTIVATIONS:
            raise self.refuse(f"fused activation {code} is not read")
        return self.activation(ACTIVATIONS[code], name)

    def activation(self, kind: str, name: str) -> str:
        """After an activation by its name; empty for none."""
        if kind in CLIPS:
            bounds = [self.constant(np.array(bound, np.float32), "bound") for bound in CLIPS[kind]]
            return self.add("Clip", [name, *bounds])
        return self.add("Relu", [name]) if kind else name

    def reshaped(self, name: str, shape: Sequence[int]) -> str:
        """In another shape."""
        return self.add("Reshape", [name, self.constant(np.array(shape, np.int64), "shape")])

    def cast(self, name: str, dtype: np.dtype[Any]) -> str:
        """In another type."""
        import onnx

        return self.add("Cast", [name], to=int(onnx.helper.np_dtype_to_tensor_dtype(dtype)))

    def to_planes(self, name: str) -> str:
        """An image in ONNX's order of axes; what was just made in that order is taken as it is."""
        return self.planes.get(name) or self.add("Transpose", [name], perm=TO_IMAGE)

    def from_planes(self, name: str) -> str:
        """An image in TFLite's order of axes."""
        made = self.add("Transpose", [name], perm=FROM_IMAGE)
        self.planes[made] = name
        return made


Write = Callable[[Builder], None]
TABLE: dict[str, Write] = {}
"""Operator -> what writes its nodes. The one place where operators are listed."""


def op(*kinds: str) -> Callable[[Write], Write]:
    """Enter a writer in the table."""

    def enter(write: Write) -> Write:
        for kind in kinds:
            assert kind not in TABLE, kind
            TABLE[kind] = write
        return write

    return enter
