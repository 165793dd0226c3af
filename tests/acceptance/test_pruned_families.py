"""Every family with a quarter of its heads and neurons removed, on one engine in turn; ``--whole-matrix``: on all.

The oracle is the pruned torch module, run directly; that it equals the masked original is the business of
tests/pruning, and that each family's graphs run on each engine before they are pruned that of the matrix.
Encoder-decoders of transformers come as directories, so that their caches shrink with the heads.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from edgeattn.engines import ENGINES as ROWS
from edgeattn.evaluation.parity import MAX_ABS_FP32, ParityMeter
from edgeattn.model import Arrays, Artifact, EdgeModel
from edgeattn.pipeline.steps.baseline import Baseline
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.recipes import build
from edgeattn.pruning import Prunable, prunable, prune
from edgeattn.runtimes import open_session
from edgeattn.targets import get_target
from tests.acceptance.cells import ENGINES, TARGETS, like
from tests.architectures import TRANSFORMERS
from tests.pruning.families import FAMILIES, OWN, STEPPED, architecture, directory_of, model_of, parameters, quarter

pytestmark = [pytest.mark.slow, pytest.mark.group_by("pruned")]

CALLS = 3


class Pruned:
    """A family, pruned once; its artifacts are made when first asked for, the ONNX that engines share once."""

    def __init__(self, family: str, directory: Path) -> None:
        source = directory_of(family, directory / "source") if family in STEPPED else model_of(family)
        self.given: Prunable = prunable(source)
        self.model: EdgeModel = prune(self.given, quarter(self.given.anatomy))
        calls = {graph: (inputs, *like(inputs, CALLS - 1, seed=1)) for graph, inputs in self.model.example.items()}
        self.calls = {
            graph: [(inputs, self.model.run(inputs, graph)) for inputs in given] for graph, given in calls.items()
        }
        scratch = directory / "scratch"
        scratch.mkdir()
        self._shop = Exports(self.model, Baseline({}, {}, None, None), scratch)

    @functools.cached_property
    def scale(self) -> float:
        """The largest value of the oracle, at least 1."""
        return max(
            float(np.abs(a).max(initial=1.0)) for calls in self.calls.values() for _, o in calls for a in o.values()
        )

    def artifact(self, engine: str) -> Artifact:
        return build(engine, self._shop, "fp32", get_target(TARGETS[engine]))

    def largest_difference(self, artifact: Artifact) -> float:
        meter = ParityMeter()
        backend = ROWS[artifact.backend].here
        with open_session(backend, artifact.models, self.model.spec, threads=1, build=artifact.build) as session:
            for graph, calls in self.calls.items():
                for inputs, expected in calls:
                    got = session.run(inputs, graph)
                    meter.add(_named(graph, expected), _named(graph, got))
        return max(output.max_abs for output in meter.result("the pruned module").outputs.values())


def _named(graph: str, arrays: Arrays) -> Arrays:
    return {f"{graph}/{name}": array for name, array in arrays.items()}


@pytest.fixture(scope="module", params=FAMILIES)
def pruned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    family = request.param
    if family not in OWN and architecture(family).needs:
        pytest.importorskip(TRANSFORMERS, reason=f"{family} is a class of transformers")
    return Pruned(family, tmp_path_factory.mktemp("pruned"))


def test_a_quarter_of_heads_and_neurons_is_gone(pruned: Pruned) -> None:
    anatomy = pruned.given.anatomy
    assert not anatomy.unknown
    assert all(unit.groups >= 4 for unit in anatomy.units)
    assert parameters(pruned.model.network) < parameters(pruned.given.network)
    for state in (state for graph in pruned.model.spec.graphs for state in graph.states):
        if (
            "key" in state.input
            or "value" in state.input
            or "kv_cache" in state.input
            or state.input.startswith("cache")
        ):
            assert state.shape[1] == 3


@pytest.mark.parametrize("engine", ENGINES)
def test_the_engine_computes_what_the_pruned_module_computes(pruned: Pruned, engine: str) -> None:
    artifact = pruned.artifact(engine)
    assert pruned.largest_difference(artifact) <= MAX_ABS_FP32 * pruned.scale
    if engine == "tensorrt":
        assert artifact.build is not None
        assert artifact.build["checked"]["ok"]
