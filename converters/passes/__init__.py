"""Named rewrites that make attention come out right and fast on edge engines, one file each.

Two kinds:

- :data:`FX_PASSES` work on the program that ``torch.export`` traced, before any exporter sees it, so that ONNX and
  TFLite get the same graph;
- :data:`ONNX_PASSES` work on ONNX files, exported ones and those that users bring; :data:`TENSORRT_PASSES` on what goes
  to TensorRT alone.

A pass changes its argument in place and returns how many places it changed. It matches structure, never names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgeattn.converters.passes.dense_scatters import dense_scatters
from edgeattn.converters.passes.drop_asserts import drop_asserts
from edgeattn.converters.passes.endless_positions import endless_positions
from edgeattn.converters.passes.even_bounds import even_bounds
from edgeattn.converters.passes.explicit_padding import explicit_padding
from edgeattn.converters.passes.fake_quantization import fake_quantization
from edgeattn.converters.passes.finite_masks import finite_masks
from edgeattn.converters.passes.finite_onnx_masks import finite_onnx_masks
from edgeattn.converters.passes.fold_constants import fold_constants
from edgeattn.converters.passes.fold_weights import fold_weights
from edgeattn.converters.passes.fuse_layer_norm import fuse_layer_norm
from edgeattn.converters.passes.graph import Program
from edgeattn.converters.passes.masked_writes import masked_writes
from edgeattn.converters.passes.one_orientation import one_orientation
from edgeattn.converters.passes.plain_antialias import plain_antialias
from edgeattn.converters.passes.plain_attention import plain_attention
from edgeattn.converters.passes.plain_bags import plain_bags
from edgeattn.converters.passes.plain_bilinear import plain_bilinear
from edgeattn.converters.passes.plain_constants import plain_constants
from edgeattn.converters.passes.plain_control import plain_control
from edgeattn.converters.passes.plain_copies import plain_copies
from edgeattn.converters.passes.plain_cumulations import plain_cumulations
from edgeattn.converters.passes.plain_diagonal import plain_diagonal
from edgeattn.converters.passes.plain_einsum import plain_einsum
from edgeattn.converters.passes.plain_flex_attention import plain_flex_attention
from edgeattn.converters.passes.plain_fmod import plain_fmod
from edgeattn.converters.passes.plain_functions import plain_functions
from edgeattn.converters.passes.plain_interleaves import plain_interleaves
from edgeattn.converters.passes.plain_likelihoods import plain_likelihoods
from edgeattn.converters.passes.plain_one_hot import plain_one_hot
from edgeattn.converters.passes.plain_padding import plain_padding
from edgeattn.converters.passes.plain_pools import plain_pools
from edgeattn.converters.passes.plain_scatters import plain_scatters
from edgeattn.converters.passes.plain_sort import plain_sort
from edgeattn.converters.passes.plain_windows import plain_windows
from edgeattn.converters.passes.plain_writes import plain_writes
from edgeattn.converters.passes.real_pairs import real_pairs
from edgeattn.converters.passes.repeated_heads import repeated_heads
from edgeattn.converters.passes.reshape_views import reshape_views
from edgeattn.converters.passes.scale_on_query import scale_on_query
from edgeattn.converters.passes.stable_log_sigmoid import stable_log_sigmoid
from edgeattn.converters.passes.tensor_operands import tensor_operands
from edgeattn.converters.passes.whole_arithmetic import whole_arithmetic
from edgeattn.converters.passes.whole_index import whole_index
from edgeattn.converters.passes.whole_matrices import whole_matrices
from edgeattn.converters.passes.whole_numbers import whole_numbers
from edgeattn.converters.passes.whole_products import whole_products

__all__ = [
    "ONNX_PASSES",
    "TENSORRT_PASSES",
    "graph",
    "onnx_graph",
]

if TYPE_CHECKING:
    import onnx

FX_PASSES: tuple[Callable[[Program], int], ...] = (
    drop_asserts,
    plain_control,  # what it writes out is for the others
    plain_flex_attention,
    plain_writes,  # the passes below know the forms without writes alone
    masked_writes,
    plain_scatters,
    plain_pools,
    plain_bags,
    plain_cumulations,
    plain_interleaves,
    plain_bilinear,
    plain_functions,
    tensor_operands,
    even_bounds,
    stable_log_sigmoid,
    plain_sort,
    plain_fmod,
    explicit_padding,
    plain_one_hot,
    real_pairs,
    plain_windows,
    plain_padding,
    plain_antialias,
    endless_positions,
    fold_constants,
    fake_quantization,
    fold_weights,
    plain_likelihoods,
    whole_index,
    plain_einsum,  # before those that look for products
    plain_diagonal,
    whole_arithmetic,
    whole_products,  # before whole_numbers: it asks which types values had
    whole_numbers,
    plain_attention,  # before repeated_heads: grouped heads need no copy there
    finite_masks,
    repeated_heads,
    plain_copies,
    reshape_views,
)
ONNX_PASSES: tuple[Callable[[onnx.ModelProto], int], ...] = (
    plain_constants,
    fuse_layer_norm,
    scale_on_query,
    finite_onnx_masks,
    one_orientation,
    whole_matrices,
)
TENSORRT_PASSES: tuple[Callable[[onnx.ModelProto], int], ...] = (dense_scatters,)
