"""A quantized constant that is no weight matrix becomes the numbers that it stands for.

Quantizers that know no attention (ONNX Runtime's among them) put Q/DQ on everything: on biases, on the 1 and the 0.5 of
a GELU, on the scale of a norm. TensorRT takes quantized constants as weights alone ("Quantized constant ... is only
allowed before DQ"), and no engine gains from one byte in place of four there. The values stay exactly what
DequantizeLinear gives.
"""

from __future__ import annotations

import numpy as np
import onnx

from edgeattn.converters.passes.onnx_graph import View


def plain_constants(model: onnx.ModelProto) -> int:
    """Work out each DequantizeLinear of a constant with fewer than two axes; returns how many there were."""
    view = View(model)
    changed = 0
    for node in list(model.graph.node):
        if node.op_type != "DequantizeLinear" or node.output[0] in view.outputs:
            continue
        values = [view.value(name) for name in node.input if name]
        if any(value is None for value in values):
            continue
        stored, scale, *rest = [value for value in values if value is not None]
        if stored.ndim > 1 or scale.dtype != np.float32 or scale.size not in (1, stored.size):
            continue
        zero = rest[0].astype(np.int64) if rest else np.int64(0)
        plain = ((stored.astype(np.int64) - zero).astype(np.float32) * scale.astype(np.float32)).astype(np.float32)
        name = view.constant(plain.reshape(stored.shape), f"{node.output[0]}_plain")
        for reader in view.readers.get(node.output[0], []):
            for position, source in enumerate(reader.input):
                if source == node.output[0]:
                    reader.input[position] = name
        changed += 1
    if changed:
        view.drop_unread()
    return changed
