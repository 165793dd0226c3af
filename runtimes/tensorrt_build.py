"""ONNX -> TensorRT engine: one function for the device (``tensorrt``) and for checking on a host (``tensorrt_rtx``).

The package is an argument, because JetPack brings its own ``tensorrt`` and hosts without a GPU have ``tensorrt_rtx``.
Only calls that TensorRT 8.6, 10.3, 10.13 and 11 share are used without asking; what differs is asked for by name:

    =============================  ==============  ================  ============
                                   8.6             10.3 ... 10.16    11, RTX
    =============================  ==============  ================  ============
    network creation flag          EXPLICIT_BATCH  STRONGLY_TYPED    STRONGLY_TYPED or none: always strong
    FP16, INT8 builder flags       set here        not with strong   gone
    parser error's node and op     index           name, op          name, op
    DLA                            yes             to 10.7           from 11.4.1
    =============================  ==============  ================  ============

With strong typing the ONNX file carries the precision (Casts, Q/DQ); with flags TensorRT may choose per layer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeattn.errors import BundleError, InputError, UnsupportedError
from edgeattn.spec import from_json, to_json

Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True)
class BuildRecipe:
    """How an engine is built from its ONNX file; stands in ``Manifest.build["recipe"]``.

    Attributes:
        precision: what the ONNX file carries; becomes builder flags where TensorRT has no strong typing.
        workspace_bytes: cap of the tactics' scratch memory. On a Jetson it comes out of the RAM that everything
            shares; without a cap building runs an 8 GB board out of memory (TensorRT#3355).
        optimization_level: 0 (fast build) to 5 (fast engine); 3 is TensorRT's own default.
        sparsity: let TensorRT use 2:4 sparse kernels where the weights allow it.
        tf32: let float32 matrix products round to 10 bits of mantissa. Off: fp32 would miss its parity of 1e-4.
        dla: run on the first DLA what it can run, and the rest on the GPU. It is made for convolutions.
    """

    precision: Precision = "fp32"
    workspace_bytes: int = 512 * 2**20
    optimization_level: int = 3
    sparsity: bool = False
    tf32: bool = False
    dla: bool = False

    def __post_init__(self) -> None:
        if self.workspace_bytes < 2**20:
            raise ValueError(f"workspace_bytes must be at least 1 MiB, got {self.workspace_bytes}")
        if not 0 <= self.optimization_level <= 5:
            raise ValueError(f"optimization_level must be 0 to 5, got {self.optimization_level}")
        if self.dla and self.precision == "fp32":
            raise ValueError("a DLA computes in fp16 and int8 alone, not in fp32")


@dataclass(frozen=True)
class ParserError:
    """Why TensorRT's ONNX parser refused a node."""

    node: str  # its name; its index in the file where TensorRT tells no more; empty for the file as a whole
    op: str
    message: str


@dataclass(frozen=True)
class BuildOutcome:
    """What parsing and building gave.

    Attributes:
        engine: the serialized engine, None if parsing or building failed.
        parser_errors: what the parser refused; empty if it took the file.
        messages: the builder's errors and warnings, in order, each once.
        network: layer type -> {dtype of its first output: count}, of the parsed network, before fusion.
        strongly_typed: the ONNX file decided every dtype.
        seconds: parsing and building together.
        version: of the package that built.
        capability: compute capability that the engine is for; None for the GPU at hand.
        timings: the times of tactics, those given and those measured now; empty if nothing was built.
    """

    engine: bytes | None
    parser_errors: tuple[ParserError, ...]
    messages: tuple[str, ...]
    network: Mapping[str, Mapping[str, int]]
    strongly_typed: bool
    seconds: float
    version: str
    capability: str | None
    timings: bytes = b""

    @property
    def ok(self) -> bool:
        """Whether there is an engine."""
        return self.engine is not None

    @property
    def failure(self) -> str:
        """One line that says what was refused and where; empty if there is an engine."""
        if self.ok:
            return ""
        if self.parser_errors:
            first = self.parser_errors[0]
            place = f"node {first.node!r} ({first.op}): " if first.node else ""
            more = f" (and {len(self.parser_errors) - 1} more)" if len(self.parser_errors) > 1 else ""
            return f"TensorRT {self.version} cannot parse the ONNX file: {place}{first.message}{more}"
        reason = next((m for m in self.messages if m.startswith("error: ")), "error: the builder gave no reason")
        return f"TensorRT {self.version} cannot build the engine: {reason.removeprefix('error: ')}"


def recipe_to_build(recipe: BuildRecipe, checked: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The JSON that stands in ``Manifest.build``: the recipe, and under "checked" what building on the host gave."""
    return {"recipe": to_json(recipe), "checked": dict(checked or {})}


def recipe_from_build(build: Mapping[str, Any] | None) -> BuildRecipe:
    """Read the recipe back from ``Manifest.build``.

    Raises:
        BundleError: if there is none, or a field of it is missing, unknown or wrong.
    """
    if build is None or "recipe" not in build:
        raise BundleError("the bundle holds no build recipe for TensorRT (build.recipe); convert it again")
    try:
        return from_json(BuildRecipe, build["recipe"], "build.recipe")
    except InputError as error:
        raise BundleError(str(error)) from error


def capabilities(trt: Any) -> tuple[str, ...]:
    """Compute capabilities that this package can build for without the GPU, e.g. ``("7.5", "8.0", "8.6")``.

    Empty for ``tensorrt``, which builds only for the GPU that it runs on.
    """
    kinds = getattr(trt, "ComputeCapability", None)
    numbers = [int(name[2:]) for name in dir(kinds) if name.startswith("SM") and name[2:].isdigit()] if kinds else []
    return tuple(f"{number // 10}.{number % 10}" for number in sorted(numbers))


def build_engine(
    trt: Any, onnx: Path, recipe: BuildRecipe, capability: str | None = None, timings: bytes = b""
) -> BuildOutcome:
    """Parse an ONNX file and build its engine.

    Args:
        trt: the module ``tensorrt`` or ``tensorrt_rtx``.
        onnx: the file; its external data, if any, lies beside it.
        recipe: see :class:`BuildRecipe`.
        capability: one of :func:`capabilities`, to build without that GPU; None builds for the GPU at hand.
        timings: of an earlier build with the same package on the same GPU; what does not fit is left out.

    Returns:
        The outcome; a refusal by TensorRT is in it, not raised.

    Raises:
        UnsupportedError: if the recipe asks for a DLA and there is none for this package.
        ValueError: if ``capability`` is not one that this package can build for.
    """
    started = time.perf_counter()
    messages: list[str] = []
    # TensorRT keeps raw pointers between these objects: each local name below holds one alive until the end.
    logger = _collecting_logger(trt, messages)
    builder = trt.Builder(logger)
    if recipe.dla and builder.num_DLA_cores < 1:
        raise UnsupportedError(
            f"the bundle asks for a DLA and {trt.__name__} {trt.__version__} finds none here (TensorRT serves it up to "
            "10.7 and again from 11.4.1, on boards that have one); convert it without"
        )
    strongly_typed, flags = _creation_flags(trt, recipe.dla)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    config = builder.create_builder_config()
    _configure(trt, config, recipe, strongly_typed)
    if capability is not None:
        _cross_build(trt, config, capability)
    # TensorRT-RTX times nothing when it builds, and would ask for a GPU (Timing Cache Migration).
    cache = None if capability is not None else _timing_cache(config, timings)
    engine = None
    if parser.parse_from_file(str(onnx)):
        serialized = builder.build_serialized_network(network, config)
        engine = None if serialized is None else bytes(serialized)
        errors: tuple[ParserError, ...] = ()
    else:
        errors = tuple(_parser_error(parser.get_error(i)) for i in range(parser.num_errors))
        errors = errors or (ParserError("", "", next(iter(messages), "it is not an ONNX file")),)
    return BuildOutcome(
        engine=engine,
        parser_errors=errors,
        messages=tuple(dict.fromkeys(messages)),
        network=_census(network),
        strongly_typed=strongly_typed,
        seconds=time.perf_counter() - started,
        version=str(trt.__version__),
        capability=capability,
        timings=b"" if engine is None or cache is None else bytes(cache.serialize()),
    )


def _collecting_logger(trt: Any, messages: list[str]) -> Any:
    names = {trt.ILogger.INTERNAL_ERROR: "error", trt.ILogger.ERROR: "error", trt.ILogger.WARNING: "warning"}

    class Logger(trt.ILogger):  # type: ignore[misc]  # the base class is only known at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 refuses super() here

        def log(self, severity: Any, message: str) -> None:
            if severity in names:
                messages.append(f"{names[severity]}: {message.strip()}")

    return Logger()


def _creation_flags(trt: Any, dla: bool) -> tuple[bool, int]:
    kinds = trt.NetworkDefinitionCreationFlag
    # A DLA takes its precision from builder flags as long as there are any (Strongly Typed Networks for DLA).
    by_flags = dla and hasattr(trt.BuilderFlag, "FP16")
    if hasattr(kinds, "STRONGLY_TYPED") and not by_flags:
        return True, 1 << int(kinds.STRONGLY_TYPED)
    if hasattr(kinds, "EXPLICIT_BATCH"):
        return False, 1 << int(kinds.EXPLICIT_BATCH)
    return not by_flags, 0


def _configure(trt: Any, config: Any, recipe: BuildRecipe, strongly_typed: bool) -> None:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, recipe.workspace_bytes)
    config.builder_optimization_level = recipe.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector then tells the dtypes really chosen
    if recipe.sparsity:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if not recipe.tf32 and hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)
    if recipe.dla:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = 0
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    if not strongly_typed:
        wanted = {"fp32": (), "fp16": ("FP16",), "int8": ("FP16", "INT8")}[recipe.precision]
        for name in wanted:
            config.set_flag(getattr(trt.BuilderFlag, name))


def _timing_cache(config: Any, timings: bytes) -> Any:
    """The times of earlier builds, attached; none, where they are of another version or GPU, or damaged.

    TensorRT verifies the header itself and refuses what does not match. The cache must live until the engine is built.
    """
    for data in (timings, b"") if timings else (b"",):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None


def _cross_build(trt: Any, config: Any, capability: str) -> None:
    if capability not in capabilities(trt):
        valid = ", ".join(capabilities(trt)) or "none: it builds for its own GPU only"
        raise ValueError(f"{trt.__name__} cannot build for compute capability {capability!r}; valid: {valid}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), 0)


def _parser_error(error: Any) -> ParserError:
    if hasattr(error, "node_name"):  # TensorRT 10 and later
        return ParserError(error.node_name(), error.node_operator(), error.desc().strip())
    return ParserError(str(error.node()), "node index", error.desc().strip())


def _census(network: Any) -> dict[str, dict[str, int]]:
    census: dict[str, dict[str, int]] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        dtype = layer.get_output(0).dtype.name.lower() if layer.num_outputs else "none"
        kinds = census.setdefault(layer.type.name.lower(), {})
        kinds[dtype] = kinds.get(dtype, 0) + 1
    return census
