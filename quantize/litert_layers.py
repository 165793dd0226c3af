"""The layers of a model, found again in its TFLite file by their weights.

Names there tell little: a list's indices are gone, and a product may be named for what follows it. Nor are the weights
quite those of the module, because the converter multiplies the scale of a LayerNorm, a factor of the attention or a
residual's half into them. What stays through all of it: two rows of a weight differ by one factor per row, whatever
was multiplied onto its columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.errors import load_extra
from edgeattn.graphs.layers import linear_layers

if TYPE_CHECKING:
    import onnx

PRODUCTS = ("FULLY_CONNECTED", "BATCH_MATMUL")
SEEN = 48  # rows and columns that are compared, evenly spread
TOLERANCE = 1e-4  # of a logarithm: float32 products are exact to 1e-7, other weights differ by ones
LEAST = 24  # comparable pairs below which nothing can be told


@dataclass(frozen=True)
class TfliteProduct:
    """A product with constant float32 weights in a TFLite file.

    Attributes:
        scope: what ai-edge-quantizer calls it, the names of its outputs.
        operation: one of :data:`PRODUCTS`.
        inner: K, summed over.
        paths: of the layers that have these weights, several where weights are tied; none if they are no layer's.
    """

    scope: str
    operation: str
    inner: int
    paths: tuple[str, ...]


def tflite_products(path: Path, models: Iterable[onnx.ModelProto]) -> tuple[TfliteProduct, ...]:
    """The products of a TFLite file, each with the layers that it came from.

    Args:
        path: float32 TFLite.
        models: ONNX of the graphs in it.
    """
    known = _Known(models)
    return tuple(
        TfliteProduct(scope, operation, weight.shape[1], known.paths(weight))
        for scope, operation, weight in _constant_products(path)
    )


def _constant_products(path: Path) -> list[tuple[str, str, np.ndarray]]:
    """Scope, operation and weight (N, K) of each product whose second input is constant."""
    files: Any = load_extra("ai_edge_quantizer.utils.tfl_flatbuffer_utils", "tflite")
    types: Any = load_extra("ai_edge_litert.schema_py_generated", "tflite")
    model = files.read_model(str(path))
    kinds = {getattr(types.BuiltinOperator, name): name for name in PRODUCTS}
    found = []
    for graph in model.subgraphs:
        for operation in graph.operators:
            kind = kinds.get(model.operatorCodes[operation.opcodeIndex].builtinCode)
            tensor = graph.tensors[operation.inputs[1]] if kind else None
            if tensor is None or tensor.type != types.TensorType.FLOAT32:
                continue
            weight = files.get_tensor_data(tensor, model.buffers)
            if weight is None or weight.ndim < 2 or weight.size != weight.shape[-1] * weight.shape[-2]:
                continue
            flat = weight.reshape(weight.shape[-2:])
            if kind == "BATCH_MATMUL" and not operation.builtinOptions.adjY:
                flat = flat.T
            found.append((files.get_op_scope(operation, graph.tensors), kind or "", flat))
    return found


class _Known:
    """The weights of a model's layers, as they are looked up by those of a file."""

    def __init__(self, models: Iterable[onnx.ModelProto]) -> None:
        import onnx

        self._marks: list[_Mark] = []
        self._paths: list[list[str]] = []
        self._taken: set[int] = set()
        for model in models:
            arrays = {tensor.name: tensor for tensor in model.graph.initializer}
            places: dict[str, int] = {}
            for layer in linear_layers(model.graph):
                if layer.weight not in places:
                    weight = onnx.numpy_helper.to_array(arrays[layer.weight])
                    mark = _mark(weight if layer.axis == 0 else weight.T)
                    # A graph that holds the weights of another one knows the same layers.
                    same = next((i for i, other in enumerate(self._marks) if mark.equals(other)), None)
                    if same is None:
                        self._marks.append(mark)
                        self._paths.append([])
                        same = len(self._marks) - 1
                    places[layer.weight] = same
                paths = self._paths[places[layer.weight]]
                if layer.path not in paths:
                    paths.append(layer.path)

    def paths(self, weight: np.ndarray) -> tuple[str, ...]:
        """Of the layers whose weights these are, (N, K), up to factors of rows and columns."""
        mark = _mark(weight)
        fits = [i for i, other in enumerate(self._marks) if mark.equals(other)]
        fits = fits or [i for i, other in enumerate(self._marks) if mark.scaled(other)]
        if not fits:
            return ()
        # Both files are in the order of the graph, so of layers that look alike the next one is meant.
        place = next((i for i in fits if i not in self._taken), fits[0])
        self._taken.add(place)
        return tuple(self._paths[place])


@dataclass(frozen=True)
class _Mark:
    """Part of a weight (N, K): shape, values, and of these the logarithm; NaN where a value is 0."""

    shape: tuple[int, ...]
    values: np.ndarray
    logarithms: np.ndarray

    def equals(self, other: _Mark) -> bool:
        return self.shape == other.shape and np.array_equal(self.values, other.values)

    def scaled(self, other: _Mark) -> bool:
        """Whether one is the other with rows and columns multiplied by factors, of any sign."""
        if self.shape != other.shape:
            return False
        # The logarithm of the ratio is a sum of one term per row and one per column, so that between two rows its
        # difference is the same in every column.
        steps = np.diff(self.logarithms - other.logarithms, axis=0)
        signs = np.diff(np.sign(self.values) * np.sign(other.values), axis=0) != 0
        told = np.isfinite(steps)
        if np.count_nonzero(told) < min(LEAST, steps.size):
            return False
        for row, flipped, seen in zip(steps, signs, told, strict=True):
            if seen.any() and (np.ptp(row[seen]) > TOLERANCE or len(set(flipped[seen])) > 1):
                return False
        return True


def _mark(weight: np.ndarray) -> _Mark:
    rows, columns = (np.unique(np.linspace(0, size - 1, SEEN).round().astype(int)) for size in weight.shape)
    values = np.asarray(weight[np.ix_(rows, columns)], dtype=np.float64)
    return _Mark(weight.shape, values, np.log(np.abs(np.where(values == 0.0, np.nan, values))))
