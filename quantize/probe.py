"""Inner tensors of an ONNX graph over calibration samples: what ranges, diagnostics and comparisons are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.engines import ONNXRUNTIME
from edgeattn.errors import load_extra
from edgeattn.runtimes.onnxruntime import BROKEN_FUSIONS

if TYPE_CHECKING:
    import onnx

Arrays = dict[str, np.ndarray]


def probe(
    model: onnx.ModelProto, names: Sequence[str], samples: Sequence[Mapping[str, np.ndarray]], optimize: bool = True
) -> Iterator[Arrays]:
    """The named tensors for each sample, from ONNX Runtime on one thread.

    Args:
        model: below 2 GiB; not changed.
        names: tensors of the graph, inputs and outputs included.
        samples: full input sets.
        optimize: False runs the nodes as they stand, so that Q/DQ pairs compute in float: a simulation of int8.

    Raises:
        MissingExtraError: without onnx or onnxruntime.
    """
    onnx_module = load_extra("onnx", "convert")
    runtime = ONNXRUNTIME.load()
    given = {value.name for value in model.graph.input}
    inner = [name for name in dict.fromkeys(names) if name not in given]
    probing = onnx_module.ModelProto()
    probing.CopyFrom(model)
    known = {value.name: value for value in (*probing.graph.value_info, *probing.graph.output)}
    outputs = {value.name for value in probing.graph.output}
    for name in inner:
        if name not in outputs:
            value = probing.graph.output.add()
            if name in known:
                value.CopyFrom(known[name])
            else:
                value.name = name
                value.type.tensor_type.elem_type = onnx_module.TensorProto.FLOAT
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(
        probing.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=list(BROKEN_FUSIONS),
    )
    taken = {value.name for value in session.get_inputs()}
    for sample in samples:
        feed = {name: array for name, array in sample.items() if name in taken}
        seen = dict(zip(inner, session.run(inner, feed), strict=True)) if inner else {}
        yield {name: seen[name] if name in seen else np.asarray(sample[name]) for name in names}
