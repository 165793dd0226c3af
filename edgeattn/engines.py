"""The engines: one row for each with all that is said of it, which every other table reads.

An engine is added by a row here, a file of its name in each of ``converters/``, ``quantize/`` and ``runtimes/``, and an
entry in each of :data:`edgeattn.converters.engines.CONVERTERS`, :data:`edgeattn.quantize.engines.QUANTIZERS` and
:data:`edgeattn.runtimes.engines.OPENERS`. One that loads ONNX as it is (``files="onnx"``) is quantized by
``quantize/onnx.py`` and needs no file in ``quantize/``. tests/test_engines.py names what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, get_args

from edgeattn.errors import load_extra

Precision = Literal["fp32", "fp16", "int8", "int4"]
Files = Literal["onnx", "ir", "tflite"]
"""What an engine loads; :data:`edgeattn.graphs.files.READERS` reads each as a graph."""

Treatment = Literal["float", "int8", "int8-weights", "int4-weights"]
"""``float`` is the float of the rest of the model; ``int8`` has int8 weights and activations; the last two store narrow
weights and compute as the engine does with these."""
TREATMENTS: tuple[Treatment, ...] = get_args(Treatment)

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
TREATMENT: Mapping[str, Treatment] = {
    "int8-static": "int8",
    "int8-nncf": "int8",
    "int8-dynamic": "int8-weights",
    "int8-weights": "int8-weights",
    "int4-weights": "int4-weights",
}
"""Recipe -> what a layer becomes that a plan calls int8."""


def precision_of(recipe: str) -> Precision:
    """The precision that a recipe counts as."""
    if recipe in ("fp32", "fp16"):
        return recipe  # type: ignore[return-value]  # narrowed by the line above
    return "int4" if recipe.startswith("int4") else "int8"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What is said of an engine.

    Attributes:
        name: as in ``--backend`` and in a bundle's manifest.
        title: for people.
        packages: modules that provide it, best first, each with the distribution that it usually comes in.
        interface: submodule of the first that is worked with; empty for the module itself.
        install: how it comes onto a device.
        extra: of edgeattn's, that brings it and what its files are made with.
        tools: modules that its files are made with, beside torch and onnx.
        emulated: the oldest version that is of use on an emulated ARM processor; None where it is not put there.
        rank: its place among the engines of this machine, the smallest first; None where it is none of them.
        arm_rank: the same on a 64-bit ARM.
        substitutes: of an engine that runs on a device alone, those that can replay its files elsewhere; the first is
            the one that runs them on this host.
        files: what it loads.
        through_onnx: whether its files are made of the exported ONNX.
        recipes: the safest first, of int8 the one that is tried first.
        tried: what "auto" and "int8" try of them.
        fallback: what is tried where none of these keeps the metric: it takes longer to make.
        shares_pairs: whether one Q/DQ pair serves all layers that read a tensor; without, a layer needs its own.
        half: whether fp16 computes in float16; elsewhere it only stores weights so.
        narrows: whether products of float activations and int8 weights are always computed as int8.
        fuses: whether what goes element by element is computed inside the kernels before or after; the others start one
            kernel for each.
        gpu: whether it computes on the accelerator; the others use the cores, and unpack float16 to float32 there.
        products, convolutions: operations that compute, as its census calls them; all others move, scale, round or
            widen.
        always_integer: those of the products that are integer whatever dtype the census has for them.
    """

    name: str
    title: str
    packages: tuple[tuple[str, str], ...]
    interface: str = ""
    install: str
    extra: str
    tools: tuple[str, ...] = ()
    emulated: str | None = None
    rank: int | None = None
    arm_rank: int | None = None
    substitutes: tuple[str, ...] = ()
    files: Files
    through_onnx: bool = True
    recipes: tuple[str, ...]
    tried: tuple[str, ...]
    fallback: tuple[str, ...] = ()
    shares_pairs: bool = True
    half: bool = False
    narrows: bool = False
    fuses: bool = False
    gpu: bool = False
    products: frozenset[str] = frozenset()
    convolutions: frozenset[str] = frozenset()
    always_integer: frozenset[str] = frozenset()

    @property
    def substitute(self) -> str | None:
        """The engine that runs its files on this host; None for one that runs here itself."""
        return self.substitutes[0] if self.substitutes else None

    @property
    def here(self) -> str:
        """The engine that runs its files on this host: itself, or its substitute."""
        return self.substitute or self.name

    @property
    def modules(self) -> tuple[str, ...]:
        """That provide it, best first."""
        return tuple(module for module, _ in self.packages)

    @property
    def distribution(self) -> str:
        """That it usually comes in."""
        return self.packages[0][1]

    @property
    def module(self) -> str:
        """That is imported to work with it."""
        return f"{self.modules[0]}.{self.interface}" if self.interface else self.modules[0]

    @property
    def ranged(self) -> bool:
        """Whether the int8 that is tried first takes the ranges of activations from calibration."""
        return TREATMENT[self.tried[0]] == "int8"

    def load(self) -> ModuleType:
        """Import it; raises as :func:`edgeattn.errors.load_extra`."""
        return load_extra(self.module, self.extra)


OPENVINO = Engine(
    name="openvino",
    title="OpenVINO",
    packages=(("openvino", "openvino"),),
    install="pip install openvino",
    extra="openvino",
    tools=("nncf",),
    rank=1,
    arm_rank=2,
    files="ir",
    recipes=("fp32", "fp16", "int8-static", "int8-dynamic", "int8-nncf", "int4-weights"),
    tried=("int8-static", "int8-dynamic"),
    fallback=("int8-nncf",),
    fuses=True,
    products=frozenset({"MatMul", "FullyConnected"}),
    convolutions=frozenset({"Convolution", "Deconvolution"}),
)
LITERT = Engine(
    name="litert",
    title="LiteRT",
    packages=(("ai_edge_litert", "ai-edge-litert"), ("tflite_runtime", "tflite-runtime")),
    interface="interpreter",
    install="pip install ai-edge-litert",
    extra="tflite",
    tools=("litert_torch", "ai_edge_quantizer"),
    emulated="2.1",
    rank=3,
    arm_rank=1,
    files="tflite",
    through_onnx=False,
    recipes=("fp32", "fp16", "int8-dynamic", "int8-weights", "int8-static", "int4-weights"),
    tried=("int8-dynamic",),  # static int8 gains nothing over it under XNNPACK: only by its own name
    narrows=True,
    products=frozenset({"FULLY_CONNECTED", "BATCH_MATMUL"}),
    convolutions=frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D"}),
)
ONNXRUNTIME = Engine(
    name="onnxruntime",
    title="ONNX Runtime",
    packages=(("onnxruntime", "onnxruntime"),),
    install="pip install onnxruntime",
    extra="convert",
    emulated="1.20",
    rank=2,
    arm_rank=3,
    files="onnx",
    recipes=("fp32", "fp16", "int8-static", "int8-weights", "int4-weights"),
    tried=("int8-static", "int8-weights"),
    shares_pairs=False,  # it computes layers in float that share one
    half=True,
    narrows=True,
    products=frozenset((
        "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Attention", "MultiHeadAttention", "MatMulInteger",
        "MatMulIntegerToFloat", "QLinearMatMul", "DynamicQuantizeMatMul", "QGemm", "QAttention", "MatMulNBits",
    )),
    convolutions=frozenset(
        ("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "QLinearConv", "ConvInteger")
    ),
    always_integer=frozenset({"MatMulNBits"}),  # its profile leaves out the packed weights
)  # fmt: skip
TENSORRT = Engine(
    name="tensorrt",
    title="TensorRT",
    packages=(("tensorrt", "tensorrt"),),
    install="comes with JetPack (sudo apt install nvidia-jetpack)",
    extra="tensorrt-check",
    tools=("tensorrt_rtx",),
    substitutes=(ONNXRUNTIME.name,),  # its bundle holds ONNX
    files="onnx",
    recipes=("fp32", "fp16", "int8-static", "int8-weights", "int4-weights"),
    tried=("int8-static",),
    half=True,
    fuses=True,
    gpu=True,
)

ENGINES: Mapping[str, Engine] = {row.name: row for row in (OPENVINO, LITERT, ONNXRUNTIME, TENSORRT)}
"""By name, the only list of them."""


def recipe_names() -> tuple[str, ...]:
    """Of all engines, each once."""
    return tuple(dict.fromkeys(name for row in ENGINES.values() for name in row.recipes))


def products() -> frozenset[str]:
    """Of all engines' censuses: operations that compute a product, convolutions apart."""
    return frozenset().union(*(row.products for row in ENGINES.values()))


def convolutions() -> frozenset[str]:
    """Of all engines' censuses."""
    return frozenset().union(*(row.convolutions for row in ENGINES.values()))


def always_integer() -> frozenset[str]:
    """Of all engines' censuses: what is integer whatever dtype they have for it."""
    return frozenset().union(*(row.always_integer for row in ENGINES.values()))
