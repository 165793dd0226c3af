"""What each engine and its converter make of torch's operations, as it was tried one by one.

Every name here was converted alone for each engine (fp32, and fp16 for TensorRT). tests/converters/test_preflight.py
converts those that are refused again, so that a newer converter that takes one is noticed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgeattn import engines

if TYPE_CHECKING:
    from edgeattn.converters.preflight.graph import Call
from edgeattn.converters.preflight.view import GraphView

TENSORRT, OPENVINO, LITERT, ONNXRUNTIME = (
    row.name for row in (engines.TENSORRT, engines.OPENVINO, engines.LITERT, engines.ONNXRUNTIME)
)
EXPORT = (TENSORRT, OPENVINO, ONNXRUNTIME)  # torch's ONNX exporter has no function for it
EVERY = (*EXPORT, LITERT)

REFUSED: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("fill_diagonal_", "erfinv", "linalg_solve_triangular", "median", "mode", "kthvalue",
         "inverse", "linalg_solve", "linalg_cholesky", "linalg_svdvals", "linalg_eigvalsh",
         "linalg_qr", "linalg_pinv", "linalg_inv", "matrix_exp", "vander", "gcd", "polygamma", "i0",
         "special_bessel_j0", "nextafter", "frexp"),
        EVERY,
    ),
    **dict.fromkeys(("det", "linalg_det"), (OPENVINO, TENSORRT, LITERT)),
    **dict.fromkeys(("flex_attention", "map_impl"), EVERY),
    "max_unpool2d": (TENSORRT, LITERT),
    "histc": (LITERT,),
    "cross_entropy_loss": (TENSORRT,),
    "nll_loss_nd": (OPENVINO, TENSORRT),
    **dict.fromkeys(
        ("logcumsumexp", "tril_indices", "eye",
         "one_hot", "cond", "while_loop", "scan", "item", "rand", "rand_like", "randn_like",
         "bernoulli", "multinomial", "ldexp", "special_erfcx"),
        (LITERT,),
    ),
}  # fmt: skip
"""Operation -> engines that it cannot reach."""

SUBSTITUTES: Mapping[str, str] = {
    "logcumsumexp": "torch.log(torch.cumsum(torch.exp(x - m), dim)) + m with m = x.amax(dim, keepdim=True)",
    "one_hot": "(x.unsqueeze(-1) == torch.arange(n)).float()",
    **dict.fromkeys(
        (
            "adaptive_max_pool1d",
            "adaptive_max_pool2d",
            "adaptive_max_pool3d",
            "max_pool1d_with_indices",
            "max_pool2d_with_indices",
            "max_pool3d_with_indices",
        ),
        "the same without return_indices; places by unfold and argmax",
    ),
    **dict.fromkeys(("fill_diagonal_", "copy_"), "torch.where with torch.eye, as a mask, in place of the write"),
    "scatter": "a scatter whose index is no longer than the axis",
    "eye": "a buffer made in __init__",
    "tril_indices": "a buffer made in __init__",
    "cond": "torch.where over both branches",
    "while_loop": "a loop of a fixed number of steps, with a mask for those that are too many",
    "scan": "a loop in Python over its first axis, which is written out",
    "map_impl": "a loop in Python over its first axis, which is written out",
    "flex_attention": "scaled_dot_product_attention with a mask",
    "item": "the tensor itself",
}

TRIED = frozenset((
    "__and__", "__lshift__", "__or__", "__rshift__", "__xor__", "_assert_scalar", "_assert_tensor_metadata",
    "_softmax", "_to_copy", "_unique2", "_unsafe_view", "_upsample_bicubic2d_aa", "_weight_norm", "abs", "acos",
    "acosh", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "adaptive_max_pool3d", "add", "add_", "addbmm", "addcdiv", "addcmul", "addmm",
    "affine_grid_generator", "alias", "all", "amax", "amin", "aminmax", "any", "arange", "argmax", "argmin",
    "argsort", "as_strided", "asin", "asinh", "atan", "atan2", "atanh", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "baddbmm", "batch_norm", "bilinear", "binary_cross_entropy_with_logits", "bincount", "bitwise_and", "bitwise_not",
    "bitwise_or", "block_diag", "bmm", "broadcast_tensors", "bucketize", "cartesian_prod", "cat", "cdist", "ceil",
    "celu", "chain_matmul", "channel_shuffle", "chunk", "clamp", "clamp_max", "clamp_min", "clone", "col2im",
    "column_stack", "constant_pad_nd", "contiguous", "conv1d", "conv2d", "conv3d", "conv_transpose1d",
    "conv_transpose2d", "conv_transpose3d", "copy_", "copysign", "cos", "cosh", "cosine_similarity", "count_nonzero",
    "cross", "cross_entropy_loss", "cummax", "cummin", "cumprod", "cumsum", "deg2rad", "det", "detach", "detach_",
    "diag", "diag_embed", "diagonal", "diagonal_scatter", "diff", "digamma", "div", "div_", "dot", "dropout",
    "einsum", "elu", "embedding", "embedding_bag", "empty", "eq", "erf", "erfc", "erfinv", "exp", "exp2", "expand",
    "expand_as", "expm1", "eye", "feature_dropout", "fft_fft", "fft_irfft", "fft_rfft", "fill", "fill_", "flatten",
    "flip", "floor", "floor_divide", "fmax", "fmin", "fmod", "frac", "frexp", "full", "full_like", "gather", "gcd",
    "ge", "gelu", "glu", "grid_sampler", "group_norm", "gru", "gru_cell", "gt", "hann_window", "hardshrink",
    "hardsigmoid", "hardswish", "hardtanh", "heaviside", "histc", "hstack", "hypot", "i0", "im2col", "index",
    "index_add", "index_copy", "index_fill", "index_put", "index_put_", "index_reduce", "index_select",
    "instance_norm", "inverse", "isclose", "isfinite", "isin", "isinf", "isnan", "istft", "item", "kl_div", "kron",
    "kthvalue", "layer_norm", "ldexp", "le", "leaky_relu", "lerp", "lgamma", "lift_fresh_copy", "linalg_cholesky",
    "linalg_cross", "linalg_det", "linalg_eigvalsh", "linalg_inv", "linalg_matrix_norm", "linalg_matrix_power",
    "linalg_multi_dot", "linalg_norm", "linalg_pinv", "linalg_qr", "linalg_solve", "linalg_solve_triangular",
    "linalg_svdvals", "linalg_vector_norm", "linear", "linspace", "log", "log10", "log1p", "log2", "log_sigmoid",
    "log_softmax", "logaddexp", "logcumsumexp", "logical_and", "logical_not", "logical_or", "logical_xor", "logit",
    "logspace", "logsumexp", "lstm", "lstm_cell", "lt", "mT", "masked_fill", "masked_fill_", "masked_scatter",
    "masked_select", "matmul", "matrix_exp", "max", "max_pool1d", "max_pool1d_with_indices", "max_pool2d",
    "max_pool2d_with_indices", "max_pool3d", "max_pool3d_with_indices", "max_unpool2d", "maximum", "mean", "median",
    "meshgrid", "min", "minimum", "mish", "mm", "mode", "movedim", "mse_loss", "msort", "mul", "mul_", "mv",
    "nan_to_num", "nanmean", "nansum", "narrow", "native_layer_norm", "ne", "neg", "new_ones", "new_zeros",
    "nextafter", "nll_loss_nd", "nonzero", "norm", "numpy_T", "one_hot", "ones", "ones_like", "outer", "pad",
    "pairwise_distance", "pdist", "permute", "pixel_shuffle", "pixel_unshuffle", "polar", "polygamma", "positive",
    "pow", "prelu", "prod", "quantile", "real", "reciprocal", "relu", "relu6", "relu_", "remainder", "renorm",
    "repeat", "repeat_interleave", "reshape", "rms_norm", "rnn_relu", "rnn_tanh", "roll", "rot90", "round", "rrelu",
    "rsqrt", "rsub", "scalar_tensor", "scaled_dot_product_attention", "scatter", "scatter_add", "scatter_reduce",
    "searchsorted", "select", "select_scatter", "selu", "sgn", "sigmoid", "sign", "signbit", "silu", "sin", "sinc",
    "sinh", "slice", "slice_scatter", "softmax", "softplus", "softshrink", "sort", "special_bessel_j0",
    "special_erfcx", "special_expit", "special_ndtr", "split", "split_copy", "split_with_sizes", "sqrt", "square",
    "squeeze", "squeeze_", "stack", "std", "std_mean", "stft", "sub", "sub_", "sum", "sym_size", "t", "take",
    "take_along_dim", "tan", "tanh", "tanh_", "tensordot", "threshold", "tile", "to", "topk", "trace", "transpose",
    "trapezoid", "tril", "tril_indices", "triu", "trunc", "type_as", "unbind", "unflatten", "unfold", "unsqueeze",
    "unsqueeze_", "upsample_bicubic2d", "upsample_bilinear2d", "upsample_linear1d", "upsample_nearest2d", "vander",
    "var", "var_mean", "view", "view_as", "view_as_complex", "view_as_real", "where", "xlogy", "zeros", "zeros_like",
))  # fmt: skip
"""Operations that were converted for every engine, whatever came of it."""

NOTHING = frozenset((
    "_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_size", "lift_fresh_copy", "detach", "detach_",
    "alias", "clone", "contiguous", "dropout", "feature_dropout", "getitem", "type_as",
))  # fmt: skip
"""Operations that leave nothing in a TFLite file."""

LEFT_OUT = frozenset((
    "acos", "all", "any", "argmax", "argmin", "asin", "asinh", "atan", "atan2", "bitwise_and", "bitwise_not",
    "bitwise_or", "conv3d", "cross", "cumsum", "diag", "diagonal", "embedding", "eq", "flip", "floor_divide", "fmod",
    "frac", "gather", "ge", "gt", "heaviside", "im2col", "index", "index_copy", "index_fill", "index_put",
    "index_put_", "index_select", "isin", "le", "linalg_cross", "logaddexp", "logical_and", "logical_not",
    "logical_or", "logical_xor", "logsumexp", "lt", "masked_fill", "masked_fill_", "max_pool3d", "mish", "nan_to_num",
    "ne", "prod", "remainder", "repeat", "repeat_interleave", "scatter", "select_scatter", "sgn", "sign",
    "softshrink", "take", "take_along_dim", "tile", "topk", "tril", "triu", "trunc", "unfold", "upsample_bicubic2d",
    "upsample_linear1d", "upsample_nearest2d", "where",
))  # fmt: skip
"""Operations that XNNPACK leaves to LiteRT's own kernels, seen in the census of the op alone."""


def refused(view: GraphView, call: Call, engine: str) -> str:
    """Why an engine cannot be reached with an operation; empty if it can."""
    unexported = engines.ENGINES[engine].through_onnx and all(other in REFUSED.get(call.op, ()) for other in EXPORT)
    if engine not in REFUSED.get(call.op, ()) and not unexported and not _refused_with(view, call, engine):
        return ""
    if engine == LITERT and call.dtype != "bfloat16":
        return "LiteRT's converter has no lowering or its interpreter no kernel for it"
    if call.dtype == "bfloat16":
        return "no engine here computes in bfloat16"
    if unexported:
        return "torch's ONNX exporter has no function for it"
    return f"{engine} has no such operation"


WHOLE = ("int64", "int32", "int16", "int8", "uint8")
BITWISE = ("__and__", "__or__", "__xor__", "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not")  # fine on bool
SUMS = ("scatter_add", "scatter_reduce")
ADAPTIVE = ("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")  # left where the places are read
POOLS_WITH_PLACES = (*ADAPTIVE, "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices")
SHIFTS = ("__rshift__", "__lshift__", "bitwise_right_shift", "bitwise_left_shift")


def _refused_with(view: GraphView, call: Call, engine: str) -> bool:
    """Operations that are taken or refused by their arguments."""
    if call.dtype == "bfloat16" and call.op not in NOTHING and not call.op.startswith(("to", "_to_copy")):
        return True
    if call.op in SHIFTS or (call.op in BITWISE and call.dtype in WHOLE):
        return engine in (TENSORRT, LITERT)
    if call.op == "pow" and call.dtype in WHOLE:
        return engine == LITERT
    if call.op == "copy_":  # a write into a diagonal, which exporters have no way to follow
        made = view.graph.maker(call.inputs[0])
        return made is not None and made.op == "diagonal"
    if call.op == "scatter":  # TensorRT takes no index that is longer than the axis
        shape, index = view.graph.shape_of(call.inputs[0]), view.graph.shape_of(str(call.arguments[2]))
        axis = call.arguments[1] % max(len(shape), 1)
        return engine == TENSORRT and bool(shape) and (index[axis] or 0) > (shape[axis] or 0)
    if call.op in POOLS_WITH_PLACES:
        return engine in (TENSORRT, LITERT) or (call.op in ADAPTIVE and not _divides(view, call))
    if call.op == "grid_sampler" and len(call.shape) > 4:
        return engine in (OPENVINO, LITERT)
    if call.op == "grid_sampler" and call.arguments[2:4] == (2, 2):  # bicubic, reflected at each of its sixteen places
        return engine == LITERT
    return False


def dense_scatter(view: GraphView, call: Call) -> int:
    """How many comparisons a scatter that adds or reduces becomes for LiteRT and TensorRT: each place, each index."""
    shape = view.graph.shape_of(call.inputs[0])
    axis = call.arguments[1] % max(len(shape), 1)
    index = view.graph.shape_of(str(call.arguments[2]))
    return math.prod(size or 1 for size in index) * ((shape[axis] if shape else 1) or 1)


def _divides(view: GraphView, call: Call) -> bool:
    sizes = call.arguments[1]
    axes = view.graph.shape_of(call.inputs[0])[-len(sizes) :]
    return all((length or 0) % size == 0 for length, size in zip(axes, sizes, strict=True))


def substitute(op: str) -> str:
    """What to write instead."""
    if op in SUBSTITUTES:
        return f"write it as {SUBSTITUTES[op]}"
    return "replace that operation in the module, or choose another target"


def known(overload: str) -> bool:
    """Whether an operation was tried."""
    return overload.split(".")[1] in TRIED


def folded(view: GraphView) -> frozenset[str]:
    """Nodes that depend on no input: converters compute them once."""
    varying = set(view.graph.inputs)
    for call in view.graph.calls:
        if any(name in varying for name in call.inputs):
            varying.add(call.name)
    return frozenset(call.name for call in view.graph.calls if call.name not in varying)


def undelegated(view: GraphView, call: Call) -> bool:
    """Whether XNNPACK is expected to leave an operation out."""
    if call.op in NOTHING:
        return False
    if call.op == "expand":  # a broadcast that is written out
        grown = view.graph.shape_of(call.inputs[0]) != call.shape if call.inputs else False
        return grown and any(
            reader.op in ("reshape", "clone", "view", "_unsafe_view") for reader in view.graph.readers(call.name)
        )
    if call.op == "slice" and len(call.arguments) > 4 and call.arguments[4] != 1:
        return True
    if call.op == "pow":
        return len(call.arguments) < 2 or call.arguments[1] not in (2, 3, 0.5)  # x^3 is part of GELU
    if call.op == "pad" and len(call.arguments) > 2 and call.arguments[2] != "constant":
        return True
    return call.op in LEFT_OUT or call.dtype in ("int64", "int32", "bool", "int8", "uint8", "int16")
