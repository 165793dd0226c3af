"""int8 and int4 for TFLite by ai-edge-quantizer: four recipes, and a plan of layers that depart from them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.engines import LITERT, TREATMENTS, Treatment
from edgeattn.errors import ConversionError, UnsupportedError, load_extra, unknown_name
from edgeattn.graphs.layers import linear_layers
from edgeattn.guards.silence import silenced
from edgeattn.model import Artifact
from edgeattn.quantize.calibration import Calibration, Declared, checked_against
from edgeattn.quantize.litert_layers import TfliteProduct, tflite_products
from edgeattn.quantize.plan import Plan, counted
from edgeattn.quantize.quantization import Quantization

OWN: Mapping[str, Treatment] = {
    "int8-dynamic": "int8",
    "int8-static": "int8",
    "int8-weights": "int8-weights",
    "int4-weights": "int4-weights",
}
"""What a recipe makes of a layer."""
RECIPES = tuple(OWN)
WORDS: Mapping[str, str] = {
    "int8-dynamic": "dynamic-range int8, weights per channel",
    "int8-static": "static int8 of linear layers, weights per channel, ranges from extremes",
    "int8-weights": "int8 weights per channel, float32 products",
    "int4-weights": "dynamic-range int4, weights in blocks of 32; int8 where a block does not fit",
}
BLOCK = 32  # values of a weight that share an int4 scale, along K


@dataclass(frozen=True)
class _Job:
    """One file on its way."""

    source: Path
    target: Path
    graphs: tuple[str, ...]
    recipe: str
    samples: Mapping[str, list[dict[str, np.ndarray]]]
    products: tuple[tuple[TfliteProduct, Treatment], ...]  # with what each becomes


def quantize(work: Quantization) -> Artifact:
    """TFLite of the float32 TFLite."""
    source = work.source
    onnx: Mapping[str, Path] = {}
    plan = work.plan if work.plan != Plan() else None
    with contextlib.ExitStack() as unless:
        if plan is None:  # without a plan, layers need no names, and a model that is no ONNX is no worse for it
            unless.enter_context(contextlib.suppress(ConversionError))
        onnx = source.onnx
    room = source.new_directory(f"{LITERT.name}-{work.recipe}")
    return quantize_tflite(source.tflite, onnx, source.calibration, room, work.recipe, plan)


def quantize_tflite(
    tflite: Artifact,
    onnx: Mapping[str, Path],
    calibration: Calibration,
    directory: Path,
    recipe: str = "int8-dynamic",
    plan: Plan | None = None,
) -> Artifact:
    """Quantize float32 TFLite files, with float32 input and output, states included.

    One thread of XNNPACK on the streaming Conformer (fp32 0.51 ms; SQNR of the worst state after 120 carried steps):

    - ``int8-dynamic``, 0.22 ms, 38 dB: activations are quantized per row while the model runs; no ranges to calibrate,
      hence none to be wrong.
    - ``int8-static``, 0.25 ms, 29 dB: per-tensor activations with calibrated ranges, of FULLY_CONNECTED alone. More
      than that falls apart into dozens of partitions. For engines that cannot quantize while they run.
    - ``int8-weights``, 0.50 ms, 42 dB: small files; products in float32.
    - ``int4-weights``, 0.30 ms, 19 dB: the smallest files. int4 per channel is as fast as int8 and noisier by 1.3 dB
      here, by more where K is larger; int4 weights alone split the graph into 36 partitions.

    Depthwise convolutions stay float32: XNNPACK has no such kernel, and each would split the graph (6 partitions,
    not 1). Ranges are the extremes of all samples: the quantizer's moving average costs 1.5 dB, and clips speech where
    a stream is half silence.

    Args:
        tflite: the float32 artifact of ``to_tflite``.
        onnx: graph name -> ONNX of the same model, which tells the layers' paths. A graph without one has no layers
            that a plan could name.
        calibration: graph name -> full input sets; needed by ``int8-static``.
        directory: existing directory, another one than the artifact's; its files are written into it
            under the same names.
        recipe: what becomes of all that a plan does not name.
        plan: by layer: ``float`` is float32, ``int8`` is the recipe's own, the others are what they are called. A
            layer whose weights are not found in the file is as the recipe makes it. None for the recipe alone.

    Raises:
        DataError: if a calibration that is needed does not fit the model.
        InputError: if a pattern of the plan matches no layer.
        UnsupportedError: if the artifact is not float32 TFLite, if a layer that is to stay float is not found in the
            file, if nothing is left to quantize, or for another recipe.
        ConversionError: if the quantizer fails, or LiteRT refuses what it wrote.
        MissingExtraError: without ai-edge-quantizer.
    """
    if recipe not in RECIPES:
        raise UnsupportedError(unknown_name("LiteRT recipe", recipe, RECIPES))
    if tflite.backend != LITERT.name or tflite.precision != "fp32":
        raise UnsupportedError(f"int8 for TFLite starts from float32 TFLite, got {tflite.backend} {tflite.precision}")
    samples = _samples(tflite, calibration) if recipe == "int8-static" else {}
    asked = _asked(onnx, plan or Plan(OWN[recipe]))
    written: dict[Path, Path] = {}
    became: dict[str, Treatment] = {}
    for path in dict.fromkeys(tflite.models.values()):  # graphs may stand in one file, each under its signature
        graphs = tuple(graph for graph, file in tflite.models.items() if file == path)
        job = _Job(
            path, directory / path.name, graphs, recipe, {g: samples[g] for g in graphs if g in samples},
            _planned(path, onnx, graphs, asked, recipe),
        )  # fmt: skip
        for product, treatment in _quantize(job):
            became |= {name: treatment for name in product.paths if became.get(name, "float") == "float"}
        written[path] = job.target
    _check_found(asked, became)
    treatments = {name: became.get(name, OWN[recipe]) for name in asked}
    words = f"{WORDS[recipe]}, {counted(treatments)}, float32 input and output"
    models = {graph: written[path] for graph, path in tflite.models.items()}
    precision = "int4" if recipe == "int4-weights" else "int8"
    return Artifact(LITERT.name, precision, models, words, treatments=treatments)


def _samples(tflite: Artifact, calibration: Calibration) -> dict[str, list[dict[str, np.ndarray]]]:
    """The samples of every graph, checked against what its file takes."""
    checked = {}
    for graph, path in tflite.models.items():
        with silenced():
            _, declared = _signature(path, graph)
        # Files hold int32 where the spec says int64.
        wide = {
            key: (np.dtype(np.int64) if dtype == np.int32 else dtype, shape) for key, (dtype, shape) in declared.items()
        }
        checked[graph] = checked_against(calibration, graph, wide)
    return checked


def _signature(path: Path, graph: str) -> tuple[str, Declared]:
    """Name of a graph's signature, and its inputs."""
    interpreters: Any = load_extra("ai_edge_litert.interpreter", "tflite")
    interpreter = interpreters.Interpreter(str(path), num_threads=1)
    signatures = list(interpreter.get_signature_list())
    name = graph if graph in signatures else signatures[0]
    details = interpreter.get_signature_runner(name).get_input_details()
    return name, {
        key: (np.dtype(detail["dtype"]), tuple(int(size) for size in detail["shape"]))
        for key, detail in details.items()
    }


def _asked(onnx: Mapping[str, Path], plan: Plan) -> dict[str, Treatment]:
    import onnx as onnx_module

    files = [onnx_module.load(path, load_external_data=False) for path in onnx.values()]
    asked = plan.resolve(layer.path for model in files for layer in linear_layers(model.graph))
    if asked and all(treatment == "float" for treatment in asked.values()):
        raise UnsupportedError("the plan leaves every linear layer float; ship fp16")
    return asked


def _planned(
    path: Path, onnx: Mapping[str, Path], graphs: Iterable[str], asked: Mapping[str, Treatment], recipe: str
) -> tuple[tuple[TfliteProduct, Treatment], ...]:
    """Every product of a file with what it becomes."""
    import onnx as onnx_module

    with silenced():
        products = tflite_products(path, [onnx_module.load(onnx[graph]) for graph in graphs if graph in onnx])
    by_scope: dict[str, Treatment] = {}
    for product in products:
        # The first of TREATMENTS is the most careful one: of layers with tied weights it decides for all, and so it
        # does for products of two graphs that are called alike.
        wishes = [asked[name] for name in product.paths] or [OWN[recipe]]
        wishes += [by_scope[product.scope]] if product.scope in by_scope else []
        by_scope[product.scope] = min(wishes, key=TREATMENTS.index)
    return tuple((product, _possible(product, by_scope[product.scope], recipe)) for product in products)


def _possible(product: TfliteProduct, asked: Treatment, recipe: str) -> Treatment:
    wish = OWN[recipe] if asked == "int8" else asked
    if wish == "int4-weights" and (product.inner % BLOCK or product.operation != "FULLY_CONNECTED"):
        wish = "int8"
    if wish == "int8" and recipe == "int8-static" and product.operation != "FULLY_CONNECTED":
        return "float"
    return wish


def _check_found(asked: Mapping[str, Treatment], became: Mapping[str, Treatment]) -> None:
    lost = [name for name, treatment in asked.items() if treatment == "float" and name not in became]
    if lost:
        raise UnsupportedError(
            f"{', '.join(lost[:5])}{' and others' if len(lost) > 5 else ''} must stay float, and the TFLite file has "
            "no product with these weights: the converter merged them into others; leave the layer to the recipe"
        )


def _quantize(job: _Job) -> tuple[tuple[TfliteProduct, Treatment], ...]:
    """Write the file; what its products became."""
    with silenced():
        types: Any = load_extra("ai_edge_quantizer.qtyping", "tflite")
        names = types.TFLOperationName
        # A constant on the left of a batched product is quantized too, and no kernel takes that: only then are those
        # products left out, because on the right they gain as linear layers do.
        for left_out in ((names.DEPTHWISE_CONV_2D,), (names.DEPTHWISE_CONV_2D, names.BATCH_MATMUL)):
            became = tuple((p, "float" if p.operation in left_out else t) for p, t in job.products)
            _quantize_all_but(left_out, job, became)
            refusal = _refusal(job.target)
            if refusal is None:
                return became
    raise ConversionError(
        f"graph {', '.join(job.graphs)!r}: LiteRT cannot run its int8 model: {refusal:.300}; ship fp16 instead"
    )


def _quantize_all_but(
    left_out: tuple[Any, ...], job: _Job, products: tuple[tuple[TfliteProduct, Treatment], ...]
) -> None:
    quantizer: Any = load_extra("ai_edge_quantizer.quantizer", "tflite")
    algorithms: Any = load_extra("ai_edge_quantizer.algorithm_manager", "tflite")
    nothing = algorithms.AlgorithmName.NO_QUANTIZE
    try:
        work = quantizer.Quantizer(str(job.source))
        _add_scheme(work, job.recipe)
        for operation in left_out:
            work.update_quantization_recipe(".*", operation, algorithm_key=nothing)
        _add_products(work, products, job.recipe, nothing)
        ranges = _calibrated(work, job) if work.need_calibration else None
        quantized = work.quantize(ranges)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ConversionError(
            f"graph {', '.join(job.graphs)!r}: ai-edge-quantizer cannot quantize this model: {reason}; "
            "ship fp16 instead"
        ) from error
    quantized.export_model(str(job.target), overwrite=True)


def _add_scheme(work: Any, recipe: str) -> None:
    types: Any = load_extra("ai_edge_quantizer.qtyping", "tflite")
    everything = types.TFLOperationName.ALL_SUPPORTED
    if recipe == "int8-static":
        work.add_static_config(".*", types.TFLOperationName.FULLY_CONNECTED, 8, 8)
    elif recipe == "int8-weights":
        work.add_weight_only_config(".*", everything, 8)
    else:  # int4 is asked for product by product: it does not fit all
        work.add_dynamic_config(".*", everything, 8)


def _add_products(work: Any, products: tuple[tuple[TfliteProduct, Treatment], ...], recipe: str, nothing: Any) -> None:
    """What departs from the recipe, by the exact scopes of the operations."""
    types: Any = load_extra("ai_edge_quantizer.qtyping", "tflite")
    groups: dict[tuple[str, Treatment], list[str]] = {}
    for product, treatment in products:
        # of the recipe int4-weights, int8 is what its rule for everything says already
        if treatment != OWN[recipe] or treatment == "int4-weights":
            groups.setdefault((product.operation, treatment), []).append(product.scope)
    for (operation, treatment), scopes in groups.items():
        regex = f"^(?:{'|'.join(re.escape(scope) for scope in dict.fromkeys(scopes))})$"
        name = types.TFLOperationName(operation)
        if treatment == "float":
            work.update_quantization_recipe(regex, name, algorithm_key=nothing)
        elif treatment == "int8-weights":
            work.add_weight_only_config(regex, name, 8)
        elif treatment == "int4-weights":
            work.add_dynamic_config(regex, name, 4, types.QuantGranularity.BLOCKWISE_32)
        else:
            work.add_dynamic_config(regex, name, 8)


def _calibrated(work: Any, job: _Job) -> Any:
    """Extremes of the tensors that the recipe needs, over all samples."""
    calibrators: Any = load_extra("ai_edge_quantizer.calibrator", "tflite")
    managers: Any = load_extra("ai_edge_quantizer.recipe_manager", "tflite")
    updates: Any = load_extra("ai_edge_quantizer.utils.qsv_utils", "tflite")
    manager = managers.RecipeManager()
    manager.load_quantization_recipe(work.get_quantization_recipe())
    calibrator = calibrators.Calibrator(
        str(job.source),
        num_threads=1,
        mode=calibrators.CalibrationMode.CALIBRATION_PROFILER_BASED,  # the same ranges in a fifth of the time
        qsv_update_func=updates.min_max_update,
    )
    calibrator.calibrate(_signature_samples(job), manager)
    return calibrator.get_model_qsvs()


def _signature_samples(job: _Job) -> dict[str, list[dict[str, np.ndarray]]]:
    """The samples by signature, with the dtypes of the file."""
    by_signature = {}
    for graph, samples in job.samples.items():
        name, declared = _signature(job.source, graph)
        by_signature[name] = [
            {key: sample[key].astype(dtype) for key, (dtype, _) in declared.items()} for sample in samples
        ]
    return by_signature


def _refusal(path: Path) -> str | None:
    """What the interpreter says against a file; None if it takes it."""
    interpreters: Any = load_extra("ai_edge_litert.interpreter", "tflite")
    try:
        interpreter = interpreters.Interpreter(str(path), num_threads=1)
        interpreter.allocate_tensors()
        for name in interpreter.get_signature_list():
            interpreter.get_signature_runner(name)
    except (RuntimeError, ValueError) as error:
        return " ".join(str(error).split())
    return None
