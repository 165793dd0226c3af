"""What each layer costs: the error of the outputs, and the loss of the task's metric, when only it is quantized.

The steps:

    quantize      all layers at once, so that activation scales are calibrated once
    mix           per layer and per block: the float graph, with the quantized inputs of these layers alone
    simulate      the mix on calibration samples, Q/DQ pairs computed in float, against the float graph

A graph before the first layer that changes gives what it gave in float, so only the rest of it is run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeattn.engines import Treatment
from edgeattn.evaluation.data import spread
from edgeattn.evaluation.parity import ParityMeter
from edgeattn.graphs.layers import LinearLayer, linear_layers
from edgeattn.guards.scratch import scratch_directory
from edgeattn.quantize.calibration import Calibration, checked_samples
from edgeattn.quantize.plan import Plan, Rule
from edgeattn.quantize.probe import Arrays, probe
from edgeattn.quantize.qdq import QdqOptions, QuantizedOnnx, quantize_onnx
from edgeattn.runtimes.agreement import SQNR_LIMIT

if TYPE_CHECKING:
    import onnx

EVERYTHING = "*"

Evaluate = Callable[[Mapping[str, Path]], float]
"""Graph name -> quantized ONNX file; returns points of the metric lost against the source (negative: gained)."""


@dataclass(frozen=True)
class SensitivityOptions:
    """What to measure.

    Attributes:
        treatment: what each layer gets while the others stay float.
        samples: calibration samples to compare on, spread evenly; scales are calibrated on all.
        layers: pattern of module paths to measure, as plans have them.
    """

    treatment: Treatment = "int8"
    samples: int = 16
    layers: str = EVERYTHING


@dataclass(frozen=True)
class Sensitivity:
    """What it costs to quantize one layer, or all layers of one block, and nothing else.

    Attributes:
        path: module path of the layer, or of the block.
        block: the path up to its first number; a layer without one is its own block.
        treatment: what the layer became; ``float`` for one that is too small to quantize or was not asked for.
        parameters: values of the weights.
        flops: operations of one call of every graph that has the layer.
        sqnr_db: of the worst output, states included, within +-SQNR_LIMIT; the limit itself where nothing changed.
        drop: points of the task's metric lost, None where it was not measured.
    """

    path: str
    block: str
    treatment: Treatment
    parameters: int
    flops: int
    sqnr_db: float
    drop: float | None


@dataclass(frozen=True)
class SensitivityReport:
    """Layers and blocks in the order of the graph.

    Attributes:
        whole: everything quantized at once, its path being ``*``.
        samples: calibration samples per graph that outputs were compared on.
    """

    layers: tuple[Sensitivity, ...]
    blocks: tuple[Sensitivity, ...]
    whole: Sensitivity
    samples: int


def block_of(path: str) -> str:
    """The block that a layer is in.

    >>> block_of("encoder.layer.3.attention.self.query"), block_of("blocks.0.ffn1.expand"), block_of("classify")
    ('encoder.layer.3', 'blocks.0', 'classify')
    """
    parts = path.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: number + 1])


def sensitivity(
    onnx: Mapping[str, Path],
    calibration: Calibration,
    options: SensitivityOptions,
    evaluate: Evaluate | None,
    on_step: Callable[[], None],
) -> SensitivityReport:
    """Measure every layer and every block of exported ONNX files.

    Args:
        onnx: graph name -> float32 ONNX, below 2 GiB.
        calibration: graph name -> full input sets.
        evaluate: measures the metric; None measures outputs alone.
        on_step: called when a layer or a block is done, :func:`steps` times.

    Raises:
        DataError: if the calibration does not fit the model.
        InputError: if no layer matches the pattern.
        UnsupportedError: if none of the layers can be quantized.
        MissingExtraError: without onnx or onnxruntime.
    """
    with scratch_directory() as scratch:
        quantized = quantize_all(onnx, calibration, scratch, options)
        return measure(onnx, quantized, calibration, options, evaluate, on_step)


def rank(report: SensitivityReport) -> tuple[str, ...]:
    """Paths of the quantized layers, the most harmful first: by the metric where it was measured, then by SQNR."""
    rows = [row for row in report.layers if row.treatment != "float"]
    return tuple(row.path for row in sorted(rows, key=lambda row: (-(row.drop or 0.0), row.sqnr_db)))


def quantize_all(
    onnx: Mapping[str, Path], calibration: Calibration, directory: Path, options: SensitivityOptions
) -> QuantizedOnnx:
    """Every layer of the pattern quantized at once: what :func:`measure` takes single layers from.

    Args and errors: see :func:`~edgeattn.quantize.qdq.quantize_onnx`.
    """
    everything = Plan(options.treatment)
    plan = everything if options.layers == EVERYTHING else Plan("float", (Rule(options.layers, options.treatment),))
    return quantize_onnx(onnx, calibration, directory, QdqOptions(plan))


def steps(quantized: QuantizedOnnx) -> int:
    """How many sets of layers :func:`measure` runs."""
    return len(_sets(quantized))


def measure(
    onnx: Mapping[str, Path],
    quantized: QuantizedOnnx,
    calibration: Calibration,
    options: SensitivityOptions,
    evaluate: Evaluate | None,
    on_step: Callable[[], None],
) -> SensitivityReport:
    """:func:`sensitivity` with files of :func:`quantize_all`; everything else as there."""
    pairs = [_pair(graph, path, quantized, calibration, options.samples) for graph, path in onnx.items()]
    costs: dict[frozenset[str], tuple[float, float | None]] = {
        frozenset(): (SQNR_LIMIT, None if evaluate is None else 0.0)
    }
    for paths in _sets(quantized):
        costs[paths] = _sqnr_db(pairs, paths), None if evaluate is None else _drop(pairs, paths, evaluate)
        on_step()

    def row(path: str, members: Sequence[str]) -> Sensitivity:
        changed = _changed(quantized, members)
        treatment = quantized.treatments[min(changed)] if changed else "float"
        return Sensitivity(path, block_of(path), treatment, *_size(pairs, members), *costs[changed])

    names = list(quantized.treatments)
    return SensitivityReport(
        layers=tuple(row(name, [name]) for name in names),
        blocks=tuple(row(block, members) for block, members in _blocks(names).items()),
        whole=row(EVERYTHING, names),
        samples=max(len(pair.samples) for pair in pairs),
    )


def _blocks(names: Iterable[str]) -> dict[str, list[str]]:
    blocks: dict[str, list[str]] = {}
    for name in names:
        blocks.setdefault(block_of(name), []).append(name)
    return blocks


def _changed(quantized: QuantizedOnnx, members: Iterable[str]) -> frozenset[str]:
    return frozenset(name for name in members if quantized.treatments[name] != "float")


def _sets(quantized: QuantizedOnnx) -> list[frozenset[str]]:
    """The distinct sets of layers to quantize together: each alone, each block, all."""
    names = list(quantized.treatments)
    groups = [*([name] for name in names), *_blocks(names).values(), names]
    found = dict.fromkeys(_changed(quantized, group) for group in groups)
    return [paths for paths in found if paths]


def _size(pairs: Sequence[_Pair], members: Iterable[str]) -> tuple[int, int]:
    """Parameters and operations of some layers. Sizes of one graph share their weights: they count once."""
    inside = set(members)
    parameters, flops = 0, 0
    for pair in pairs:
        found = [layer for layer in pair.layers if layer.path in inside]
        parameters = max(parameters, sum({layer.weight: layer.inner * layer.outer for layer in found}.values()))
        flops += sum(layer.flops for layer in found)
    return parameters, flops


@dataclass(frozen=True)
class _Pair:
    """A graph in float and with everything quantized, and what the first gives.

    Attributes:
        starts: path of a layer -> node of the float graph from which on it is run again.
        seen: per sample, outputs and the tensors that are alive at each start.
    """

    graph: str
    source: onnx.ModelProto
    quantized: onnx.ModelProto
    layers: tuple[LinearLayer, ...]
    samples: list[Arrays]
    starts: Mapping[str, int]
    seen: list[Arrays]


def _pair(graph: str, path: Path, quantized: QuantizedOnnx, calibration: Calibration, count: int) -> _Pair:
    import onnx

    source = onnx.load(path)
    layers = linear_layers(source.graph)
    samples = checked_samples({graph: spread(calibration.get(graph) or (), count)}, graph, path)
    known = _declared(source.graph)
    starts: dict[str, int] = {}
    for members in _blocks(layer.path for layer in layers).values():
        first = min(layer.node for layer in layers if layer.path in members)
        # Cut where a block begins, not where a layer does: little is alive there, and the runs are kept in memory.
        typed = set(_alive(source.graph, first)) <= known.keys()
        starts |= dict.fromkeys(members, first if typed else 0)
    kept = {name for start in set(starts.values()) for name in _alive(source.graph, start)}
    kept |= {value.name for value in source.graph.output}
    seen = list(probe(source, sorted(kept), samples, optimize=False))
    return _Pair(graph, source, onnx.load(quantized.models[graph]), layers, samples, starts, seen)


def _declared(graph: onnx.GraphProto) -> dict[str, onnx.ValueInfoProto]:
    return {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, the graphs inside of it (If, Loop) included."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            for inner in graph.node:
                yield from _reads(inner)


def _alive(graph: onnx.GraphProto, start: int) -> list[str]:
    """Tensors that the nodes from ``start`` on read and do not make."""
    nodes = graph.node[start:]
    made = {name for node in nodes for name in node.output} | {tensor.name for tensor in graph.initializer} | {""}
    every = {name for node in graph.node[:start] for name in node.output} | {value.name for value in graph.input}
    return [name for name in dict.fromkeys(name for node in nodes for name in _reads(node)) if name in every - made]


def _mixed(pair: _Pair, paths: frozenset[str], start: int) -> onnx.ModelProto:
    """The float graph from a node on, with the layers of ``paths`` quantized."""
    import onnx

    graph = pair.source.graph
    replaced = {layer.node for layer in pair.layers if layer.path in paths}
    makers = {name: node for node in pair.quantized.graph.node for name in node.output}
    made = {name for node in graph.node for name in node.output}
    nodes: list[onnx.NodeProto] = []

    def add(name: str) -> None:
        """A tensor that only the quantized graph has, and what it is made of."""
        if name in makers and name not in made:
            made.add(name)
            for needed in makers[name].input:
                add(needed)
            nodes.append(makers[name])

    for index in range(start, len(graph.node)):
        node = makers[graph.node[index].output[0]] if index in replaced else graph.node[index]
        if index in replaced:
            for name in node.input:
                add(name)
        nodes.append(node)
    model = onnx.ModelProto(ir_version=pair.quantized.ir_version, opset_import=pair.quantized.opset_import)
    model.functions.extend(pair.source.functions)
    model.graph.name = graph.name
    model.graph.node.extend(nodes)
    outputs = {name for node in nodes for name in node.output}
    whole = start == 0  # keeps inputs that nothing reads, and outputs that no node makes
    model.graph.output.extend(value for value in graph.output if whole or value.name in outputs)
    read = {name for node in nodes for name in _reads(node)} | {value.name for value in model.graph.output}
    weights = {tensor.name: tensor for part in (pair.quantized, pair.source) for tensor in part.graph.initializer}
    model.graph.initializer.extend(tensor for name, tensor in weights.items() if name in read)
    known = _declared(graph)
    model.graph.input.extend(graph.input if whole else [known[name] for name in _alive(graph, start)])
    return model


def _sqnr_db(pairs: Sequence[_Pair], paths: frozenset[str]) -> float:
    """Of the worst output of any graph."""
    worst = SQNR_LIMIT
    for pair in pairs:
        inside = [pair.starts[path] for path in paths if path in pair.starts]
        if not inside:
            continue
        model = _mixed(pair, paths, min(inside))
        outputs = [value.name for value in model.graph.output]
        meter = ParityMeter()
        for expected, got in zip(pair.seen, probe(model, outputs, pair.seen, optimize=False), strict=True):
            meter.add({name: expected[name] for name in outputs}, got)
        figures = meter.result("float ONNX").outputs.values()
        worst = min([worst, *(figure.sqnr_db for figure in figures)])
    return worst


def _drop(pairs: Sequence[_Pair], paths: frozenset[str], evaluate: Evaluate) -> float:
    import onnx

    with scratch_directory() as scratch:
        files = {pair.graph: scratch / f"{pair.graph}.onnx" for pair in pairs}
        for pair in pairs:
            onnx.save(_mixed(pair, paths, 0), files[pair.graph])
        return evaluate(files)
