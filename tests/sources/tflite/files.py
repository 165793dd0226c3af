"""TFLite files of one operator, written by hand with the schema's own objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Values = np.ndarray | tuple[int, ...]
TYPES = {"float32": "FLOAT32", "float16": "FLOAT16", "int32": "INT32", "int64": "INT64", "int8": "INT8", "bool": "BOOL"}
VERSIONS = {"BROADCAST_TO": 2, "ADD": 2}  # the first that LiteRT has a kernel for
RNG = np.random.default_rng(11)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


@dataclass(frozen=True)
class Written:
    """One operator.

    Attributes:
        inputs: a shape for an input of the file, an array for a constant.
        outputs: shapes, or arrays of the type and shape.
        options: of the operator, by the schema's names, of the ``table``.
        dtype: of what is given as a shape.
        quantized: "x0" or "y0" -> scale and zero-point of a tensor that is int8.
    """

    kind: str
    inputs: Sequence[Values]
    outputs: Sequence[Values]
    options: Mapping[str, Any] = field(default_factory=dict)
    table: str = ""
    dtype: str = "float32"
    tolerance: float = 1e-5
    quantized: Mapping[str, tuple[float, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.kind}-{'-'.join(f'{k}={v}' for k, v in self.options.items())}"

    def free(self) -> dict[str, np.ndarray]:
        """Inputs to run it on."""
        made = {}
        for place, value in enumerate(self.inputs):
            if isinstance(value, tuple):
                positive = self.kind in ("LOG", "SQRT", "RSQRT", "POW", "FLOOR_MOD", "FLOOR_DIV", "DIV")
                drawn = np.abs(normal(*value)) + 0.5 if positive else np.asarray(normal(*value))
                made[f"x{place}"] = np.asarray(drawn * (9 if self.dtype == "int32" else 1)).astype(self.dtype)
                if self.dtype == "bool":
                    made[f"x{place}"] = normal(*value) > 0
        return made


def write(path: Path, case: Written) -> Path:
    """Write a file with one operator and one signature."""
    import ai_edge_litert.schema_py_generated as schema
    import flatbuffers  # type: ignore[import-untyped]

    model, graph, operator = schema.ModelT(), schema.SubGraphT(), schema.OperatorT()
    model.version, model.buffers, graph.tensors = 3, [_buffer(schema, None)], []
    graph.inputs, graph.outputs, operator.inputs, operator.outputs = [], [], [], []
    entries: dict[str, list[Any]] = {"inputs": [], "outputs": []}
    for kind, values in (("inputs", case.inputs), ("outputs", case.outputs)):
        for place, value in enumerate(values):
            index = len(graph.tensors)
            free = kind == "outputs" or isinstance(value, tuple)
            dtype = case.dtype if isinstance(value, tuple) else str(value.dtype)
            tensor = schema.TensorT()
            port = f"{'x' if kind == 'inputs' else 'y'}{place}"
            if port in case.quantized:
                dtype, tensor.quantization = "int8", schema.QuantizationParametersT()
                tensor.quantization.scale, tensor.quantization.zeroPoint = ([v] for v in case.quantized[port])
            tensor.shape = list(value if isinstance(value, tuple) else value.shape)
            tensor.type = getattr(schema.TensorType, TYPES[dtype])
            tensor.name = f"{kind}_{place}".encode()
            tensor.buffer = 0 if free else len(model.buffers)
            if isinstance(value, np.ndarray) and not free:
                model.buffers.append(_buffer(schema, value))
            graph.tensors.append(tensor)
            getattr(operator, kind).append(index)
            if free:
                getattr(graph, kind).append(index)
                entry = schema.TensorMapT()
                entry.name, entry.tensorIndex = port, index
                entries[kind].append(entry)
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, case.kind)
    code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), VERSIONS.get(case.kind, 1)
    if case.table:
        options = getattr(schema, f"{case.table}T")()
        for name, value in case.options.items():
            assert hasattr(options, name), name
            setattr(options, name, value)
        operator.builtinOptions = options
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, case.table)
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = b"main", 0
    signature.inputs, signature.outputs = entries["inputs"], entries["outputs"]
    graph.operators, model.subgraphs, model.operatorCodes = [operator], [graph], [code]
    model.signatureDefs = [signature]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def _buffer(schema: Any, value: np.ndarray | None) -> Any:
    buffer = schema.BufferT()
    if value is not None:
        buffer.data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
    return buffer
