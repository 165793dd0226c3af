"""Which int8 layers overflow on x86 CPUs that add their products in 16 bits, and whose weights are kept to 7 bits.

x86 before VNNI multiplies bytes with VPMADDUBSW: unsigned times signed, the products of neighbours along K added in
pairs that saturate at 16 bits (Intel SDM vol. 2C). 255 * 127 * 2 = 64770 does not fit, 255 * 63 * 2 = 32130 does.
Signed activations are shifted by 128 first and the surplus, 128 times the column sums, is taken off afterwards, so even
an activation of 0 multiplies as 128: oneDNN does so at run time ("Nuances of int8 Computations", section 2); ONNX
Runtime rewrites Q/DQ pairs to uint8 with zero-point 128 (``qdq_s8_to_u8.cc``) and calls MLAS's U8S8 kernels. oneDNN
halves the weights of convolutions by itself; its products saturate: OpenVINO 2026.4 with oneDNN held to AVX2 or AVX-512
gives the integers of :func:`saturating_product`, where 1 % of saturated pairs left 19 of 40 dB. nncf#1498 is the same.

ARM without dotprod (Cortex-A72) needs nothing. SMLAL adds int16 products to 32 bits; the kernels that add a pair in 16
bits (SMULL, SMLAL, SADALP) see no shift, and 2 * 128 * 127 = 32512 fits, as -128 is left out of our weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from edgeattn.errors import load_extra
from edgeattn.graphs.layers import LinearLayer, linear_layers
from edgeattn.quantize.calibration import Calibration, checked_samples
from edgeattn.quantize.probe import probe
from edgeattn.quantize.qdq import (
    INT8_MAX,
    NARROW_MAX,
    QdqOptions,
    activation_scales,
    rounded,
    weight_scales,
    worthwhile,
)
from edgeattn.targets.target import int8_dot

SHIFT = 128  # makes int8 activations unsigned
INT16 = np.iinfo(np.int16)
ROWS = 256  # of each layer's activations over all samples
BLOCK = 1 << 22  # pair sums held at a time


def narrow_for(
    isa: tuple[str, ...],
    arch: str,
    onnx: Mapping[str, Path],
    calibration: Calibration,
    options: QdqOptions | None = None,
) -> frozenset[str]:
    """Paths of the layers whose weights the CPU needs in 7 bits, for ``QdqOptions.narrow``.

    Every layer with one saturated pair is among them: calibration does not show the worst, and the eighth bit buys
    little. The built-in streaming Conformer, where 0.0004 % to 0.15 % of a layer's pairs saturate, has 42.6 dB with
    VNNI; held to AVX2 38.1 dB, with all its layers narrow 41.6 dB, with those of more than 0.01 % narrow 42.1 dB.
    Whether that is good enough, or a layer better float, is the accuracy gate's to say.

    Args:
        isa: instruction sets of the target's CPU; empty where they are unknown, which counts as none.
        arch: ``"x86_64"``, ``"aarch64"``, ...
        onnx: graph name -> float32 ONNX.
        calibration: graph name -> full input sets; not looked at where the CPU cannot saturate.
        options: as for ``quantize_onnx``.

    Raises:
        DataError: if the calibration does not fit the model or holds NaN.
        MissingExtraError: without onnx or onnxruntime.
    """
    if arch != "x86_64" or int8_dot(isa):
        return frozenset()
    return frozenset(path for path, share in saturating_layers(onnx, calibration, options).items() if share > 0)


def saturating_layers(
    onnx: Mapping[str, Path], calibration: Calibration, options: QdqOptions | None = None
) -> dict[str, float]:
    """Share of pair sums that VPMADDUBSW saturates, of each layer that ``quantize_onnx`` makes int8, by path.

    Exact integers on at most :data:`ROWS` rows of each layer's activations, spread over the samples; of layers that
    share a path, the largest.

    Args:
        onnx: graph name -> float32 ONNX.
        calibration: graph name -> full input sets.
        options: as for ``quantize_onnx``; layers in ``narrow`` are taken with 7 bits.

    Raises:
        DataError: if the calibration does not fit the model or holds NaN.
        InputError: if a pattern of the plan matches no layer.
        MissingExtraError: without onnx or onnxruntime.
    """
    onnx_module = load_extra("onnx", "convert")
    chosen = options or QdqOptions()
    models = {graph: onnx_module.load(path) for graph, path in onnx.items()}
    layers = {graph: linear_layers(model.graph) for graph, model in models.items()}
    asked = chosen.plan.resolve(layer.path for found in layers.values() for layer in found)
    shares: dict[str, float] = {}
    for graph, model in models.items():
        static = [layer for layer in layers[graph] if worthwhile(layer, asked[layer.path]) == "int8"]
        if not static:
            continue
        samples = checked_samples(calibration, graph, onnx[graph])
        names = sorted({layer.activation for layer in static})
        scales = activation_scales(model, names, samples)
        rows = _rows(probe(model, names, samples), names, max(1, ROWS // len(samples)))
        arrays = {tensor.name: tensor for tensor in model.graph.initializer}
        for layer in static:
            scale = chosen.scales.get(layer.path, scales[layer.activation])
            weight = onnx_module.numpy_helper.to_array(arrays[layer.weight])
            integers = _integers(layer, weight, layer.path in chosen.narrow)
            share = saturated_share(quantized(rows[layer.activation], scale), integers)
            shares[layer.path] = max(shares.get(layer.path, 0.0), share)
    return shares


def _rows(seen: Iterator[dict[str, np.ndarray]], names: list[str], per_sample: int) -> dict[str, np.ndarray]:
    """Rows (R, K) of each activation, evenly spread over those of every sample."""
    kept: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for tensors in seen:
        for name in names:
            rows = tensors[name].reshape(-1, tensors[name].shape[-1])
            kept[name].append(rows[:: -(-len(rows) // per_sample)].copy())
    return {name: np.concatenate(parts) for name, parts in kept.items()}


def _integers(layer: LinearLayer, weight: np.ndarray, narrow: bool) -> np.ndarray:
    """The layer's weights as stored, int8, (K, N)."""
    limit = NARROW_MAX if narrow else INT8_MAX
    integers = rounded(weight, layer.axis, weight_scales(weight, layer.axis, limit), limit)
    return integers if layer.axis == 1 else integers.T


def quantized(values: np.ndarray, scale: float) -> np.ndarray:
    """Activations as QuantizeLinear makes them with zero-point 0: int8, the shape of ``values``."""
    return np.clip(np.rint(values / scale), -128, 127).astype(np.int8)


def saturated_share(activation: np.ndarray, weight: np.ndarray) -> float:
    """Share of pair sums beyond 16 bits, 0 to 1.

    Args:
        activation: int8, (R, K).
        weight: int8, (K, N).
    """
    rows, inner = activation.shape
    step = max(1, BLOCK // (rows * weight.shape[1])) * 2
    saturated = 0
    for start in range(0, inner, step):
        sums = pair_sums(activation[:, start : start + step], weight[start : start + step])
        saturated += int(np.count_nonzero((sums > INT16.max) | (sums < INT16.min)))
    return float(saturated / (rows * -(-inner // 2) * weight.shape[1]))


def pair_sums(activation: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What VPMADDUBSW would add if it had the room: a[2k] w[2k] + a[2k + 1] w[2k + 1], a shifted by 128.

    Args:
        activation: int8, (R, K); an odd K is filled up with a zero weight.
        weight: int8, (K, N).

    Returns:
        int32, (R, ceil(K / 2), N), exact.
    """
    if activation.dtype != np.int8 or weight.dtype != np.int8 or activation.shape[1] != len(weight):
        raise ValueError(
            f"expected int8 (R, K) and int8 (K, N), got {activation.dtype} {activation.shape} and {weight.dtype} "
            f"{weight.shape}"
        )
    odd = len(weight) % 2
    shifted = np.pad(activation.astype(np.int32) + SHIFT, ((0, 0), (0, odd)))
    wide = np.pad(weight.astype(np.int32), ((0, odd), (0, 0)))
    return np.asarray(shifted[:, 0::2, None] * wide[0::2] + shifted[:, 1::2, None] * wide[1::2], dtype=np.int32)


def saturating_product(activation: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The int8 product as a CPU without VNNI computes it: VPMADDUBSW, VPMADDWD, VPADDD, and the shift taken off.

    Args:
        activation: int8, (R, K).
        weight: int8, (K, N).

    Returns:
        int32, (R, N); equal to the exact product where no pair saturates.
    """
    pairs = np.clip(pair_sums(activation, weight), INT16.min, INT16.max)
    return np.asarray(pairs.sum(axis=1) - SHIFT * weight.astype(np.int32).sum(axis=0), dtype=np.int32)
