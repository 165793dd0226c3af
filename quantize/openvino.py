"""Static int8 for OpenVINO by NNCF: quantize nodes in the IR, ranges from calibration, SmoothQuant where it helps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.engines import OPENVINO, Treatment
from edgeattn.errors import ConversionError, UnsupportedError, load_extra
from edgeattn.evaluation.data import spread
from edgeattn.graphs.layers import LinearLayer, linear_layers
from edgeattn.guards.silence import silenced
from edgeattn.model import Artifact
from edgeattn.quantize.calibration import Calibration, checked_samples
from edgeattn.quantize.onnx import quantize as quantize_pairs
from edgeattn.quantize.plan import EVERYTHING, Plan, counted
from edgeattn.quantize.quantization import Quantization
from edgeattn.quantize.saturation import narrow_for
from edgeattn.runtimes.agreement import SQNR_LIMIT, Agreement
from edgeattn.runtimes.openvino import safe_properties

Samples = list[dict[str, np.ndarray]]

MAX_SAMPLES = 128  # that NNCF sees: on the streaming Conformer as good as 500, in a third of the time
TRIAL_SAMPLES = 64  # of a classifier 24 chose 0.5, which loses 0.66 points of SST-2; 64 chose 0.8, which loses none
ALPHAS = (-1.0, 0.5, 0.8, 0.95)
NO_SMOOTHING = -1.0  # what NNCF takes for "leave it out"
REACH = 3  # operations between a Gemm's output and its product: its bias, its factors


@dataclass(frozen=True)
class _Job:
    """What stays the same for every build of one graph."""

    path: Path
    graph: str
    kept_float: tuple[str, ...]  # ONNX outputs of the layers
    narrow: bool


def quantize(work: Quantization) -> Artifact:
    """IR by NNCF, or ONNX with Q/DQ."""
    if work.recipe != "int8-nncf":
        return quantize_pairs(work)
    source, target = work.source, work.target
    room = source.new_directory(f"{OPENVINO.name}-{work.recipe}")
    narrow = bool(narrow_for(target.isa, target.cpu.arch, source.onnx, source.calibration))
    return int8_nncf(source.onnx, source.calibration, room, work.plan, narrow=narrow)


def int8_nncf(
    onnx: Mapping[str, Path],
    calibration: Calibration,
    directory: Path,
    plan: Plan | None = None,
    alphas: Sequence[float] = ALPHAS,
    narrow: bool = False,
) -> Artifact:
    """Quantize exported ONNX files to int8 OpenVINO IR.

    NNCF with ``model_type=TRANSFORMER``: symmetric per-channel weights, activations per tensor, residual Adds and
    LayerNorms left float32. Where it departs from NNCF's defaults, the streaming Conformer was measured (SQNR of the
    worst state over carried-state chunks of speech):

    - ranges are the extremes of all samples, not the mean of each sample's: 27 -> 34 dB;
    - convolutions stay float32: the first ones read raw features, whose range is wide: 15 -> 34 dB;
    - SmoothQuant (Xiao et al., 2023) with the alpha that costs this model least. No alpha is right for all: NNCF's 0.95
      loses 20 dB on the Conformer trained for speech, and 6 dB on one with random weights, where 0.5 gains one;
    - no bias correction: it changed nothing and took three quarters of the time.

    Each alpha is tried on a few samples and judged by others, which it has not seen; the best is built on all.

    Args:
        onnx: graph name -> float32 ONNX from ``export_onnx``.
        calibration: graph name -> full input sets; at most 128 of them, evenly spread, are used.
        directory: existing directory; ``GRAPH.xml`` and ``GRAPH.bin`` are written into it.
        plan: which layers stay float; None for all int8.
        alphas: of SmoothQuant, strength in 0..1; -1 is without it.
        narrow: keep weights to 7 bits, for CPUs without VNNI, whose 16-bit sums saturate.

    Returns:
        int8 artifact; its recipe names the alpha and the SQNR of each, mean over the float outputs.

    Raises:
        DataError: if the calibration does not fit the model or holds NaN.
        InputError: if a pattern of the plan matches no layer.
        UnsupportedError: if the plan wants weights alone quantized, or nothing.
        ConversionError: if NNCF fails, or OpenVINO cannot compile what it wrote.
        ValueError: without alphas.
        MissingExtraError: without openvino or nncf.
    """
    if not alphas:
        raise ValueError("alphas must name at least one strength of SmoothQuant; -1 is without it")
    samples = {graph: spread(checked_samples(calibration, graph, path), MAX_SAMPLES) for graph, path in onnx.items()}
    layers = {graph: _layers(path) for graph, path in onnx.items()}
    asked = _asked(plan or EVERYTHING, layers)
    with silenced():
        OPENVINO.load()
        load_extra("nncf", OPENVINO.extra)
    models, notes = {}, []
    treatments: dict[str, Treatment] = {}
    for graph, path in onnx.items():
        # The projection of raw inputs as in edgeattn.quantize.qdq.worthwhile.
        kept = tuple(output for output, layer in layers[graph].items() if asked[layer.path] == "float" or layer.raw)
        job = _Job(path, graph, kept, narrow)
        alpha, tried = _best_alpha(job, samples[graph], alphas)
        with silenced():
            built = _build(job, samples[graph], alpha)
            treatments |= _became(built, layers[graph])
        models[graph] = _saved(built, job, directory / f"{graph}.xml")
        notes.append(
            f"{graph}: {_alpha_in_words(alpha)}{tried}" if len(onnx) > 1 else f"{_alpha_in_words(alpha)}{tried}"
        )
    counts = ", ".join(str(len(taken)) for taken in samples.values())
    recipe = (
        f"NNCF {_nncf_version()} TRANSFORMER, {counted(treatments)}, {'; '.join(notes)}, ranges from extremes, "
        f"convolutions float32, {'7-bit weights, ' if narrow else ''}{counts} samples"
    )
    return Artifact(OPENVINO.name, "int8", models, recipe, treatments=treatments)


def _asked(plan: Plan, layers: Mapping[str, Mapping[str, LinearLayer]]) -> dict[str, Treatment]:
    asked = plan.resolve(layer.path for found in layers.values() for layer in found.values())
    odd = [f"{path} ({treatment})" for path, treatment in asked.items() if treatment not in ("float", "int8")]
    if odd:
        raise UnsupportedError(
            f"NNCF quantizes weights and activations together; the plan asks for {', '.join(odd[:5])}"
            f"{' and others' if len(odd) > 5 else ''}: say int8 or float, or quantize to Q/DQ"
        )
    if asked and all(treatment == "float" for treatment in asked.values()):
        raise UnsupportedError("the plan leaves every linear layer float; ship fp16")
    return asked


def _layers(path: Path) -> dict[str, LinearLayer]:
    """The layers of a file by the ONNX tensor that each writes."""
    import onnx

    graph = onnx.load(path).graph
    return {graph.node[layer.node].output[0]: layer for layer in linear_layers(graph)}


def _split(samples: Samples) -> tuple[Samples, Samples]:
    """Samples to build a trial with and others to judge it by; the same where there is but one."""
    built = spread(samples, min(TRIAL_SAMPLES, (len(samples) + 1) // 2))
    chosen = {id(sample) for sample in built}
    rest = [sample for sample in samples if id(sample) not in chosen]
    return built, spread(rest, TRIAL_SAMPLES) if rest else built


def _best_alpha(job: _Job, samples: Samples, alphas: Sequence[float]) -> tuple[float, str]:
    """The alpha with the least noise, and how each did, in words."""
    if len(alphas) == 1:
        return alphas[0], ""
    import openvino

    built, judges = _split(samples)
    with silenced():
        expected = _outputs(openvino.Core().read_model(job.path), judges)
        if not expected[0]:
            return alphas[0], ""  # nothing but integers comes out: there is no noise to measure
        scores = {alpha: _mean_sqnr_db(expected, _outputs(_build(job, built, alpha), judges)) for alpha in alphas}
    best = max(scores, key=lambda alpha: scores[alpha])
    shown = ", ".join(f"{alpha:g}: {score:.1f}" for alpha, score in scores.items())
    return best, f" (dB of each alpha: {shown})"


def _alpha_in_words(alpha: float) -> str:
    return "no SmoothQuant" if alpha == NO_SMOOTHING else f"SmoothQuant alpha {alpha:g}"


def _outputs(model: Any, samples: Samples) -> list[list[np.ndarray]]:
    """Float outputs for each sample, computed on one thread in float32 where the model does not quantize."""
    import openvino

    properties = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1", "NUM_STREAMS": "1"}
    try:
        compiled = openvino.Core().compile_model(model, "CPU", properties | safe_properties(model))
        request = compiled.create_infer_request()
        results = []
        for sample in samples:
            arrays = [np.array(array) for array in request.infer(sample).values()]
            results.append([array.astype(np.float64) for array in arrays if array.dtype.kind == "f"])
    except RuntimeError as error:
        raise ConversionError(f"OpenVINO cannot run the model to judge it: {_said(error)}; ship fp16") from error
    return results


def _mean_sqnr_db(expected: list[list[np.ndarray]], got: list[list[np.ndarray]]) -> float:
    """Signal to quantization noise in dB over all samples, mean over the outputs; NaN in one of them is no signal."""
    outputs = [Agreement() for _ in expected[0]]
    for wanted, had in zip(expected, got, strict=True):
        for agreement, reference, other in zip(outputs, wanted, had, strict=True):
            agreement.add(reference, other)
    ratios = [agreement.sqnr_db() for agreement in outputs]
    return -SQNR_LIMIT if -SQNR_LIMIT in ratios else float(np.mean(ratios))


def _build(job: _Job, samples: Samples, alpha: float) -> Any:
    import nncf
    import openvino
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    model = openvino.Core().read_model(job.path)
    names = [product.get_friendly_name() for product in _products(model, job.kept_float).values()]
    try:
        return nncf.quantize(
            model,
            nncf.Dataset(samples),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(samples),
            ignored_scope=nncf.IgnoredScope(names=names, types=["Convolution", "GroupConvolution"], validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                # NNCF averages the samples' extremes by default. Half of a stream's chunks are silence, so the
                # averages clip speech: measured, 9 % word error became 64 %, and stays 9 % with the true extremes.
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=alpha, convolution=NO_SMOOTHING),
                disable_bias_correction=True,
                **({"overflow_fix": nncf.OverflowFix.ENABLE} if job.narrow else {}),
            ),
        )
    except Exception as error:
        raise ConversionError(
            f"graph {job.graph!r}: NNCF cannot quantize this: {_said(error)}; ship fp16 instead"
        ) from error


def _products(model: Any, outputs: Sequence[str]) -> dict[str, Any]:
    """The MatMul behind each of the ONNX tensors.

    Tensors keep their names where operations do not: a Gemm becomes a product, its bias and its factors, and a node
    without a name gets one.
    """
    wanted = set(outputs)
    found = {}
    for operation in model.get_ops():
        for name in {name for port in operation.outputs() for name in port.get_names()} & wanted:
            product = _product_behind(operation, REACH)
            if product is not None:
                found[name] = product
    return found


def _product_behind(operation: Any, reach: int) -> Any:
    if operation.get_type_name() == "MatMul":
        return operation
    for place in range(operation.get_input_size() if reach else 0):
        product = _product_behind(operation.input_value(place).get_node(), reach - 1)
        if product is not None:
            return product
    return None


def _became(model: Any, layers: Mapping[str, LinearLayer]) -> dict[str, Treatment]:
    """What each layer is in a quantized model: NNCF leaves some alone by rules of its own."""
    products = _products(model, list(layers))
    became: dict[str, Treatment] = {}
    for output, layer in layers.items():
        narrow = output in products and _reads_int8(products[output].input_value(1).get_node())
        became[layer.path] = "int8" if narrow else became.get(layer.path, "float")
    return became


def _reads_int8(weights: Any) -> bool:
    """Whether weights are integers, scaled and shifted on their way to the product."""
    while weights.get_type_name() in ("Multiply", "Subtract", "Convert", "Reshape", "Transpose"):
        weights = weights.input_value(0).get_node()
    return bool(weights.get_type_name() == "Constant" and weights.get_element_type().get_type_name() in ("i8", "u8"))


def _saved(model: Any, job: _Job, target: Path) -> Path:
    import openvino

    with silenced():
        _forget_inner_names(model, job.path)
        openvino.save_model(model, target, compress_to_fp16=False)
    _compiles(target, job.graph)
    return target


def _compiles(path: Path, graph: str) -> None:
    """Refuse an IR that NNCF wrote and OpenVINO cannot compile: here it is a precision less, on a device an error."""
    import openvino

    core = openvino.Core()
    try:
        model = core.read_model(path)
        core.compile_model(model, "CPU", safe_properties(model))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-300:]
        raise ConversionError(
            f"graph {graph!r}: OpenVINO cannot compile its int8 model: {reason}; ship fp16"
        ) from error


def _forget_inner_names(model: Any, path: Path) -> None:
    # As in edgeattn.converters.openvino: compiling may move an inner tensor's name to an input.
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    kept = {value.name for value in (*graph.input, *graph.output)}
    for operation in model.get_ops():
        for port in operation.outputs():
            port.get_tensor().set_names(port.get_names() & kept)


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _nncf_version() -> str:
    import nncf

    return str(nncf.__version__)
