"""The engines: what each is called, comes in and can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

Backend = Literal["tensorrt", "openvino", "litert", "onnxruntime"]
Precision = Literal["fp32", "fp16", "int8", "int4"]

Treatment = Literal["float", "int8", "int8-weights", "int4-weights"]
"""``float`` is the float of the rest of the model; ``int8`` has int8 weights and activations; the last two store narrow
weights and compute as the engine does with these."""
TREATMENTS: tuple[Treatment, ...] = get_args(Treatment)

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
SCHEMES: Mapping[str, tuple[str, ...]] = {
    "openvino": ("fp32", "fp16", "int8-static", "int8-dynamic", "int8-nncf", "int4-weights"),
    "litert": ("fp32", "fp16", "int8-dynamic", "int8-weights", "int8-static", "int4-weights"),
    "tensorrt": ("fp32", "fp16", "int8-static", "int8-weights", "int4-weights"),
    "onnxruntime": ("fp32", "fp16", "int8-static", "int8-weights", "int4-weights"),
}
"""Engine -> its schemes, the safest first, of int8 the one that is tried first."""
TRIED: Mapping[str, tuple[str, ...]] = {
    "openvino": ("int8-static", "int8-dynamic"),
    "litert": ("int8-dynamic",),  # static int8 gains nothing over it under XNNPACK: only by its own name
    "tensorrt": ("int8-static",),
    "onnxruntime": ("int8-static", "int8-weights"),
}
"""Engine -> what "auto" and "int8" try."""
FALLBACK: Mapping[str, tuple[str, ...]] = {"openvino": ("int8-nncf",)}
"""Engine -> what is tried where none of :data:`TRIED` keeps the metric: it takes longer to make."""
TREATMENT: Mapping[str, Treatment] = {
    "int8-static": "int8",
    "int8-nncf": "int8",
    "int8-dynamic": "int8-weights",
    "int8-weights": "int8-weights",
    "int4-weights": "int4-weights",
}
"""Scheme -> what a layer becomes that a plan calls int8."""
SCHEME_NAMES = tuple(dict.fromkeys(name for names in SCHEMES.values() for name in names))


def precision_of(scheme: str) -> Precision:
    """The precision that a scheme counts as."""
    if scheme in ("fp32", "fp16"):
        return scheme  # type: ignore[return-value]  # narrowed by the line above
    return "int4" if scheme.startswith("int4") else "int8"


PACKAGES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "openvino": (("openvino", "openvino"),),
    "litert": (("ai_edge_litert", "ai-edge-litert"), ("tflite_runtime", "tflite-runtime")),
    "onnxruntime": (("onnxruntime", "onnxruntime"),),
    "tensorrt": (("tensorrt", "tensorrt"),),
}
"""Backend -> modules that provide it, best first, each with the distribution that it usually comes in."""
INSTALL: Mapping[str, str] = {
    "openvino": "pip install openvino",
    "litert": "pip install ai-edge-litert",
    "onnxruntime": "pip install onnxruntime",
    "tensorrt": "comes with JetPack (sudo apt install nvidia-jetpack)",
}
SUBSTITUTES: Mapping[str, tuple[str, ...]] = {"tensorrt": ("onnxruntime",)}
"""Backend of a bundle -> others that can replay its files: a TensorRT bundle holds ONNX."""

SUBSTITUTE = {backend: others[0] for backend, others in SUBSTITUTES.items()}
"""Engine that needs a device -> the one that runs the same files on this host."""

ALWAYS_INTEGER = frozenset({"MatMulNBits"})  # ONNX Runtime's profile leaves out its packed weights
PRODUCTS = ALWAYS_INTEGER | {
    *("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Attention", "MultiHeadAttention"),  # ONNX Runtime
    *("MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul", "DynamicQuantizeMatMul", "QGemm", "QAttention"),
    *("FullyConnected",),  # OpenVINO, beside MatMul
    *("FULLY_CONNECTED", "BATCH_MATMUL"),  # LiteRT
}
CONVOLUTIONS = frozenset(
    {
        *("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "QLinearConv", "ConvInteger"),
        *("Convolution", "Deconvolution"),
        *("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D"),
    }
)
"""Operations that compute, as the engines' censuses call them; all others move, scale, round or widen."""
