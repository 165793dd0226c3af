"""What int8 does to attention: each head's map against the float one, the scores that go in, outliers of the residual.

The divergence is Jensen and Shannon's (Lin, Divergence measures based on the Shannon entropy, IEEE Trans. Inf. Theory
37(1), 1991) with logarithms to base 2: 0 bits for equal maps, 1 bit for maps that share no key. Large scores and single
channels far beyond the others are what makes attention hard to quantize (Bondarenko et al., Understanding and
overcoming the challenges of efficient transformer quantization, EMNLP 2021).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.errors import InputError
from edgeattn.evaluation.data import spread
from edgeattn.graphs.layers import LinearLayer, linear_layers, module_path
from edgeattn.quantize.calibration import Calibration, checked_samples
from edgeattn.quantize.probe import Arrays, probe
from edgeattn.spec import HALF_MAX, HIDES

if TYPE_CHECKING:
    import onnx

MAPS = (3, 4)  # ranks of attention maps: (heads, queries, keys) and (batch, heads, queries, keys)
RESHAPING = frozenset({"Cast", "Dropout", "Expand", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
BEFORE_PRODUCT = RESHAPING | {"Where"}  # torch zeroes the rows that a mask hides entirely
NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})


@dataclass(frozen=True)
class AttentionMap:
    """A softmax whose result is multiplied with values.

    Attributes:
        path: module path of the attention, or the softmax's name where the file tells none.
        scores: tensor that goes into the softmax; ``weights``: the one that comes out.
        rank: of both, 3 or 4.
    """

    path: str
    scores: str
    weights: str
    rank: int


@dataclass(frozen=True)
class HeadDrift:
    """One head over all samples.

    Attributes:
        js_divergence: of the quantized map to the float one, bits in [0, 1], mean over queries.
        softmax_min: smallest score that is not hidden, in float; None where all are.
        softmax_max: largest one.
        entropy: of the float map, bits, mean over queries: 0 for a head that looks at one key.
    """

    graph: str
    path: str
    head: int
    js_divergence: float
    softmax_min: float | None
    softmax_max: float | None
    entropy: float


@dataclass(frozen=True)
class ResidualOutlier:
    """The largest channel of a tensor that a LayerNorm reads.

    Attributes:
        path: module path of the norm, or its name; ``tensor``: what it reads.
        channel: index on the last axis.
        largest: max |x| of that channel.
        ratio: of ``largest`` to the median channel's max |x|.
        overflows: whether x^2 passes float16's largest number.
    """

    graph: str
    path: str
    tensor: str
    channel: int
    largest: float
    ratio: float
    overflows: bool


@dataclass(frozen=True)
class AttentionReport:
    """Heads and residual tensors in the order of the graphs; ``samples`` of each were looked at."""

    heads: tuple[HeadDrift, ...]
    residuals: tuple[ResidualOutlier, ...]
    samples: int


def diagnose(
    onnx: Mapping[str, Path], quantized: Mapping[str, Path], calibration: Calibration, samples: int = 8
) -> AttentionReport:
    """Compare attention maps of a quantized model with those of the float one, and look for outliers in the latter.

    Args:
        onnx: graph name -> float32 ONNX.
        quantized: graph name -> what ``quantize_onnx`` made of it; Q/DQ pairs are computed in float.
        calibration: graph name -> full input sets.
        samples: how many of them to look at, spread evenly.

    Raises:
        DataError: if the calibration does not fit the model.
        InputError: if ``quantized`` was made from another model.
        MissingExtraError: without onnx or onnxruntime.
    """
    import onnx as onnx_module

    heads: list[HeadDrift] = []
    residuals: list[ResidualOutlier] = []
    seen = 0
    for graph, path in onnx.items():
        taken = checked_samples({graph: spread(calibration.get(graph) or (), samples)}, graph, path)
        source, narrow = onnx_module.load(path), onnx_module.load(quantized[graph])
        maps, norms = attention_maps(source.graph), _norm_inputs(source.graph)
        made = {name for node in narrow.graph.node for name in node.output}
        missing = [found.weights for found in maps if found.weights not in made]
        if missing:
            raise InputError(f"{quantized[graph]} has no tensor {missing[0]!r}: it was not quantized from {path}")
        meters = [_HeadMeter(found) for found in maps]
        channels: dict[str, np.ndarray] = {}
        names = [*(name for found in maps for name in (found.scores, found.weights)), *norms]
        drifted = probe(narrow, [found.weights for found in maps], taken, optimize=False)
        for before, after in zip(probe(source, names, taken, optimize=False), drifted, strict=True):
            for meter in meters:
                meter.add(before, after)
            for name in norms:
                largest = np.abs(before[name]).reshape(-1, before[name].shape[-1]).max(axis=0)
                channels[name] = np.maximum(channels.get(name, 0.0), largest)
        heads += [head for meter in meters for head in meter.result(graph)]
        residuals += [_outlier(graph, norms[name], name, largest) for name, largest in channels.items()]
        seen = max(seen, len(taken))
    return AttentionReport(tuple(heads), tuple(residuals), seen)


def js_divergence(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of distributions on the last axis (Lin 1991), with 0 log 0 = 0.

    Args:
        first, second: float, the same shape (..., keys), sums over keys of 1.

    Returns:
        float64, shape (...,), bits in [0, 1].

    Raises:
        ValueError: if the shapes differ.

    >>> js_divergence(np.array([1.0, 0.0]), np.array([0.0, 1.0])).item()
    1.0
    """
    if first.shape != second.shape:
        raise ValueError(f"maps must have one shape, got {first.shape} and {second.shape}")
    p, q = np.asarray(first, np.float64), np.asarray(second, np.float64)
    middle = (p + q) / 2
    divergence = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    return np.asarray(np.clip(divergence, 0.0, 1.0))  # rounding passes both ends by 1e-16


def entropy(weights: np.ndarray) -> np.ndarray:
    """Shannon entropy of distributions on the last axis: (..., keys) -> (...,), bits."""
    p = np.asarray(weights, np.float64)
    return np.asarray(-_relative_entropy(p, np.ones_like(p)))


def _relative_entropy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Sum of p log2(p / q) where p is not 0."""
    ratio = np.divide(p, q, out=np.ones_like(p), where=(p > 0) & (q > 0))
    return np.asarray((p * np.log2(ratio)).sum(axis=-1))


class _HeadMeter:
    """Accumulates one attention over samples, head by head."""

    def __init__(self, found: AttentionMap) -> None:
        self.found = found
        self._drift: list[np.ndarray] = []  # per sample (heads, 2): sums over queries of divergence and entropy
        self._queries: list[np.ndarray] = []  # per sample (heads,): queries that see a key
        self._scores: list[np.ndarray] = []  # per sample (heads, 2): least and largest

    def add(self, before: Arrays, after: Arrays) -> None:
        """One sample of the float and of the quantized model."""
        weights, drifted = (_by_head(arrays[self.found.weights]) for arrays in (before, after))
        lit = np.isfinite(weights).all(axis=-1) & (weights.sum(axis=-1) > 0.5)  # the others are hidden entirely
        broken = ~np.isfinite(drifted).all(axis=-1)
        clean = np.where(lit[..., None], weights, 0.0)
        divergence = js_divergence(clean, np.where((lit & ~broken)[..., None], drifted, 0.0))
        divergence = np.where(lit & broken, 1.0, divergence)
        self._drift.append(np.stack([divergence.sum(axis=-1), entropy(clean).sum(axis=-1)], axis=-1))
        self._queries.append(lit.sum(axis=-1))
        scores = _by_head(before[self.found.scores])
        seen = scores > HIDES
        least = np.where(seen, scores, np.inf).min(axis=(1, 2))
        largest = np.where(seen, scores, -np.inf).max(axis=(1, 2))
        self._scores.append(np.stack([least, largest], axis=-1))

    def result(self, graph: str) -> list[HeadDrift]:
        """Every head."""
        queries = np.maximum(np.sum(self._queries, axis=0), 1)
        drift = np.sum(self._drift, axis=0) / queries[:, None]
        scores = np.stack(self._scores)
        least, largest = scores[..., 0].min(axis=0), scores[..., 1].max(axis=0)
        return [
            HeadDrift(
                graph, self.found.path, head, float(drift[head, 0]), _known(least[head]), _known(largest[head]),
                float(drift[head, 1]),
            )
            for head in range(len(queries))
        ]  # fmt: skip


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _by_head(array: np.ndarray) -> np.ndarray:
    """(batch, heads, queries, keys) or (heads, queries, keys) -> (heads, batch * queries, keys), float64."""
    wide = np.asarray(array if array.ndim == 4 else array[None], np.float64)
    return np.moveaxis(wide, 1, 0).reshape(wide.shape[1], -1, wide.shape[-1])


def attention_maps(graph: onnx.GraphProto) -> tuple[AttentionMap, ...]:
    """Every softmax over the last axis, of rank 3 or 4, that is reshaped at most and then multiplied with values.

    In a map of rank 3 every leading index counts as a head: exporters fold the batch, which is 1 on a device, into it.
    """
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }  # fmt: skip
    links = _Links(graph)
    found = []
    for node in graph.node:
        if node.op_type != "Softmax":
            continue
        rank = ranks.get(node.output[0], ranks.get(node.input[0], 0))
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), -1)
        product = links.product(node.output[0])
        if rank in MAPS and axis in (-1, rank - 1) and product is not None:
            path = module_path(node) or links.common_module(node, product) or node.name or node.output[0]
            found.append(AttentionMap(path, node.input[0], node.output[0], rank))
    paths = [each.path for each in found]
    return tuple(
        AttentionMap(f"{each.path} {each.weights}", each.scores, each.weights, each.rank)
        if paths.count(each.path) > 1
        else each
        for each in found
    )


class _Links:
    """Who makes and who reads the tensors of a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.makers = {name: index for index, node in enumerate(graph.node) for name in node.output}
        self.readers: dict[str, list[int]] = {}
        for index, node in enumerate(graph.node):
            for name in node.input:
                self.readers.setdefault(name, []).append(index)
        self.nodes: Sequence[onnx.NodeProto] = graph.node
        self.layers: dict[int, LinearLayer] = {layer.node: layer for layer in linear_layers(graph)}

    def product(self, weights: str) -> onnx.NodeProto | None:
        """The product of a softmax's result with values."""
        waiting, done = [weights], {weights}
        while waiting:
            for index in self.readers.get(waiting.pop(), ()):
                node = self.nodes[index]
                if node.op_type in ("MatMul", "Einsum") and index not in self.layers:
                    return node
                if node.op_type in BEFORE_PRODUCT and node.output[0] not in done:
                    done.add(node.output[0])
                    waiting.append(node.output[0])
        return None

    def common_module(self, softmax: onnx.NodeProto, product: onnx.NodeProto) -> str:
        """The module that holds the nearest layers before the softmax and on both sides of the product."""
        paths = [self.layers[index].path for index in self._before([*softmax.input, *product.input])]
        paths += [self.layers[index].path for index in self._after(product.output[0])]
        return _common_prefix(paths)

    def _before(self, names: Iterable[str]) -> list[int]:
        waiting, done, layers = list(names), set(names), []
        while waiting:
            index = self.makers.get(waiting.pop())
            if index is None or self.nodes[index].op_type in NORMS:
                continue  # what lies before a norm belongs to another module
            if index in self.layers:
                layers.append(index)
                continue
            new = [name for name in self.nodes[index].input if name not in done]
            done.update(new)
            waiting += new
        return layers

    def _after(self, name: str) -> list[int]:
        layers = []
        for index in self.readers.get(name, ()):
            if index in self.layers:
                layers.append(index)
            elif self.nodes[index].op_type in RESHAPING:
                layers += self._after(self.nodes[index].output[0])
        return layers


def _common_prefix(paths: Sequence[str]) -> str:
    if not paths:
        return ""
    split = [path.split(".") for path in dict.fromkeys(paths)]
    alike = 0
    while all(len(parts) > alike and parts[alike] == split[0][alike] for parts in split):
        alike += 1
    return ".".join(split[0][:alike])


def _norm_inputs(graph: onnx.GraphProto) -> dict[str, str]:
    """Tensor that a norm reads -> path of the first norm that does."""
    norms: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in NORMS:
            norms.setdefault(node.input[0], module_path(node) or node.name or node.output[0])
    return norms


def _outlier(graph: str, path: str, tensor: str, largest: np.ndarray) -> ResidualOutlier:
    """Args: largest: max |x| per channel, (channels,)."""
    channel = int(largest.argmax())
    peak = float(largest[channel])
    usual = max(float(np.median(largest)), float(np.finfo(np.float32).tiny))
    return ResidualOutlier(graph, path, tensor, channel, peak, peak / usual, peak**2 > HALF_MAX)
