"""What preflight looks at: one traced graph, its cost, and the values that a run of it shows.

Nothing here knows an engine; :mod:`edgeattn.converters.preflight.rules` judges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from edgeattn.converters.preflight.figures import Figures, figures_of
from edgeattn.converters.preflight.graph import TracedGraph, line_of_error, traced_graph
from edgeattn.converters.preflight.ranges import Ranges, record_ranges
from edgeattn.converters.trace import ZEROED, first_line, reference_outputs, trace
from edgeattn.errors import ConversionError
from edgeattn.guards.silence import silenced
from edgeattn.model import Arrays, EdgeModel
from edgeattn.spec import GraphSpec

if TYPE_CHECKING:
    import onnx
    import torch

PASSES_KEY = "edgeattn.passes"  # graph_module.meta: name of a pass -> how often it applied
REFUSED_KEY = "edgeattn.refused"  # graph_module.meta: node -> why a pass could not rewrite it
MAX_MACS = 25_000_000_000  # of the run that records ranges: about two seconds on two cores


@dataclass(frozen=True, kw_only=True)
class GraphView:
    """One graph.

    Attributes:
        graph: its operations; none where it could not be traced.
        error: why it could not be traced, else empty; ``error_line`` is the user's line then.
        refusal: why no torch module could be made of it, else empty.
        mismatch: why no traced program can give what the model gives in inference, else empty.
        onnx: where the source is an ONNX file.
        zeroed: how many ``nn.TransformerEncoder`` put zeros at padded positions.
        passes: what the converters' passes already mended, name -> count.
        refused: node -> why no pass could rewrite what no engine has.
        figures: None where it could not be traced.
        ranges: None where the run was left out; ``no_ranges`` says why.
    """

    spec: GraphSpec
    graph: TracedGraph
    error: str = ""
    error_line: str = ""
    refusal: str = ""
    mismatch: str = ""
    onnx: onnx.ModelProto | None = None
    zeroed: int = 0
    passes: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    figures: Figures | None = None
    ranges: Ranges | None = None
    no_ranges: str = ""


def look(model: EdgeModel, samples: Mapping[str, Arrays] | None = None) -> tuple[GraphView, ...]:
    """Trace every graph once and run it once; of buckets the largest stands for all.

    Args:
        samples: graph -> one set of inputs and states to record ranges on; the example where absent.
    """
    looked_at = []
    smaller = {name for bucket in model.spec.buckets for name in bucket.graphs[:-1]}
    for graph in model.spec.graphs:
        if graph.name in smaller:
            continue
        given = (samples or {}).get(graph.name, {})
        fitting = {
            t.name: given[t.name] for t in graph.all_inputs if t.name in given and given[t.name].shape == t.shape
        }
        looked_at.append(_look_at(model, graph, {**model.example[graph.name], **fitting}))
    return tuple(looked_at)


def _look_at(model: EdgeModel, graph: GraphSpec, sample: Arrays) -> GraphView:
    module, proto = model.modules[graph.name], model.onnx.get(graph.name)
    nothing = GraphView(spec=graph, graph=TracedGraph(spec=graph), onnx=proto)
    refusal = str(getattr(module, "unsupported", ""))  # ONNX that no torch module could be made of
    if refusal:
        return replace(nothing, error=refusal, refusal=refusal, no_ranges="the model is not torch")
    try:
        with silenced():
            program = trace(model, graph)
    except ConversionError as error:
        return replace(nothing, error=str(error), error_line=line_of_error(error), no_ranges="it cannot be traced")
    traced = traced_graph(program, graph, module)
    figures = figures_of(traced, sum({t.data_ptr(): t.numel() for t in module.parameters()}.values()))
    ranges, why = _ranges(program, graph, sample, figures.macs)
    return replace(
        nothing,
        graph=traced,
        mismatch=_mismatch(model, graph) if figures.macs <= MAX_MACS else "",
        zeroed=int(program.graph_module.meta.get(ZEROED, 0)),
        passes=dict(program.graph_module.meta.get(PASSES_KEY, {})),
        refused=dict(program.graph_module.meta.get(REFUSED_KEY, {})),
        figures=figures,
        ranges=ranges,
        no_ranges=why,
    )


def _mismatch(model: EdgeModel, graph: GraphSpec) -> str:
    """What every converter would say of torch's fast path for padded positions."""
    import torch

    if not any(isinstance(module, torch.nn.TransformerEncoder) for module in model.modules[graph.name].modules()):
        return ""
    try:
        reference_outputs(model, graph)
    except ConversionError as error:
        return str(error)
    return ""


def _ranges(
    program: torch.export.ExportedProgram, graph: GraphSpec, sample: Arrays, macs: int
) -> tuple[Ranges | None, str]:
    if macs > MAX_MACS:
        return None, f"{macs / 1e9:.0f} G multiply-adds are more than the {MAX_MACS / 1e9:.0f} G that preflight runs"
    try:
        with silenced():
            return record_ranges(program, graph, sample), ""
    except Exception as error:  # noqa: BLE001  # a rule less is better than no preflight
        return None, f"the traced graph did not run: {first_line(error)}"
