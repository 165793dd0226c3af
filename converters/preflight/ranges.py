"""The values that one run of a traced graph shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.converters.preflight.graph import SOFTMAX, VIEWS, constants_of, short_name
from edgeattn.model import Arrays
from edgeattn.spec import HIDDEN, GraphSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Ranges:
    """What one run showed.

    Attributes:
        largest: node -> max |x| over finite values.
        rms: node -> root mean square.
        scores: node of a softmax -> max |score| over positions that are not hidden.
    """

    largest: Mapping[str, float]
    rms: Mapping[str, float]
    scores: Mapping[str, float]


def record_ranges(program: torch.export.ExportedProgram, graph: GraphSpec, sample: Arrays) -> Ranges:
    """Run a traced graph once and look at every float tensor on the way.

    Args:
        sample: every input and state of the graph, by name.
    """
    import torch

    largest: dict[str, float] = {}
    rms: dict[str, float] = {}
    scores: dict[str, float] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            if n.op == "call_function":
                args, _ = self.fetch_args_kwargs_from_env(n)
                if short_name(n.target) in SOFTMAX and isinstance(args[0], torch.Tensor):
                    scores[n.name] = _largest_shown(args[0])
            result = super().run_node(n)
            watched = n.op == "call_function" and short_name(n.target) not in VIEWS
            if watched and isinstance(result, torch.Tensor) and result.is_floating_point() and result.numel():
                flat = result.detach().reshape(-1).float()
                seen = flat if bool(torch.isfinite(flat).all()) else flat[torch.isfinite(flat)]
                low, high = torch.aminmax(seen) if seen.numel() else (torch.zeros(()), torch.zeros(()))
                largest[n.name] = max(abs(float(low)), abs(float(high)))
                rms[n.name] = float(torch.linalg.vector_norm(seen)) / math.sqrt(max(seen.numel(), 1))
            return result

    weights = constants_of(program)
    given = {
        t.name: torch.from_numpy(np.ascontiguousarray(t.check(sample[t.name])).reshape(t.shape))
        for t in graph.all_inputs
    }
    by_node = dict(zip(map(str, program.graph_signature.user_inputs), graph.input_names, strict=False))
    values = [
        weights[node.name] if node.name in weights else given[by_node[node.name]].clone()
        for node in program.graph.nodes
        if node.op == "placeholder"
    ]
    with torch.no_grad():
        Recorder(program.graph_module).run(*values)
    return Ranges(largest, rms, scores)


def _largest_shown(scores: torch.Tensor) -> float:
    import torch

    shown = scores[torch.isfinite(scores) & (scores > HIDDEN / 10)]
    return float(shown.abs().max()) if shown.numel() else 0.0
