"""ONNX operators in torch: :data:`TABLE` has one builder per operator, entered by the files of this package."""

from edgeattn.sources.onnx.ops import (
    attention,
    blocks,
    elementwise,
    fused,
    fused_attention,
    grouped_attention,
    indexing,
    norms,
    products,
    quantized,
    recurrent,
    shapes,
)
from edgeattn.sources.onnx.ops.node import (
    CONTRIB,
    TABLE,
    Function,
    Node,
    NotImportableError,
    TooManyStepsError,
    to_tensor,
)

__all__ = [
    "CONTRIB",
    "TABLE",
    "Function",
    "Node",
    "NotImportableError",
    "TooManyStepsError",
    "attention",
    "blocks",
    "elementwise",
    "fused",
    "fused_attention",
    "grouped_attention",
    "indexing",
    "node",
    "norms",
    "products",
    "quantized",
    "recurrent",
    "shapes",
    "to_tensor",
]
