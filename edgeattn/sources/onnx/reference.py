"""ONNX Runtime as the reference: a graph that torch cannot express, and whether an import agrees with the file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeattn.engines import ONNXRUNTIME
from edgeattn.errors import ConversionError, UnsupportedError
from edgeattn.evaluation.parity import MAX_ABS_FP32
from edgeattn.evaluation.probing import scaled_error
from edgeattn.graphs.layers import is_quantized
from edgeattn.sources.onnx.ops import NotImportableError, to_tensor
from edgeattn.sources.onnx.values import (
    Value,
    build,
    declared,
    describe,
    initializers,
    make_node,
    opsets,
    outputs_of,
)

if TYPE_CHECKING:
    import onnx


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
