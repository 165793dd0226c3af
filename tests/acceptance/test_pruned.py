"""What pruning must keep, in small: benchmarks/prune.py measures the same on everything there is, and the time."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="conversions need edgeattn[convert,openvino,tflite]")

from benchmarks.prune import cost_gone
from edgeattn.evaluation.data import Data
from edgeattn.model import EdgeModel
from edgeattn.pipeline.steps.baseline import Baseline, baseline, recorded
from edgeattn.pipeline.steps.candidates import open_artifact, verify
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.recipes import build
from edgeattn.pruning import (
    ImportanceOptions,
    ReconstructOptions,
    SelectOptions,
    estimate_table,
    measure_importance,
    prunable,
    prune,
    reconstruct,
    select,
)
from edgeattn.results.gates import Gates
from edgeattn.sources import load_data, load_model
from edgeattn.targets import get_target
from tests.conversions import Watch
from tests.kwt1 import kwt1_data, kwt1_edge_model
from tests.processors import needs_int8_dot

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
ARTIFACTS = (("openvino", "cpu", "fp32"), ("openvino", "cpu", "int8-static"), ("litert", "mobile", "fp32"))
UTTERANCES = 40  # 200 words: a point is two words
EVERY = 16  # of the 3,398 word clips: 0.5 points are one clip
ESTIMATED_ON = "raspberry-pi-5"  # a roofline gives the same cut on every host
SPEEDUPS = {"streaming-conformer": 1.1, "kwt1": 1.35}
POINTS = {"streaming-conformer": 1.0, "kwt1": 0.5}  # without recovery; 200 words cannot tell half a point
SAMPLES = 32  # of importance and least squares

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="real speech is not at shared/data here"),
]


@functools.cache
def prepared(name: str) -> tuple[EdgeModel, Baseline]:
    """A model and its source measured, once."""
    data: Data | None
    if name == "kwt1":
        model, data = kwt1_edge_model(SHARED_DATA / "kwt1"), kwt1_data(SHARED_DATA, EVERY)
    else:
        model = load_model(name)
        data = load_data(name, model.spec, str(SHARED_DATA), None, UTTERANCES)
    return model, baseline(model, data, Watch())


@pytest.fixture(scope="module", params=list(SPEEDUPS))
def pruned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[EdgeModel, Exports]:
    """A model, and the exports of what is left of it after pruning without training."""
    model, base = prepared(request.param)
    given = prunable(model)
    options = ImportanceOptions(samples=SAMPLES, layer_samples=8)
    found = measure_importance(given, base.calibration, options, lambda _: None)
    target = get_target(ESTIMATED_ON)
    costs = estimate_table(given, target)
    chosen = select(
        given.anatomy, found, costs, costs.full_ms / SPEEDUPS[request.param], SelectOptions(target.kernels.channels)
    )
    assert chosen.reached
    made = prune(given, chosen.cut)
    reconstruct(given, chosen.cut, made, base.calibration, ReconstructOptions(samples=SAMPLES), lambda _: None)
    after = replace(recorded(made, base.data, Watch()), score=base.score)
    return model, Exports(made, after, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize(("engine", "target", "recipe"), ARTIFACTS)
@needs_int8_dot
def test_an_artifact_of_the_pruned_model_keeps_its_gates(
    pruned: tuple[EdgeModel, Exports], engine: str, target: str, recipe: str
) -> None:
    model, exports = pruned
    if engine == "litert" and model.spec.stream is None:
        pytest.skip("one conversion by LiteRT is enough here")
    artifact = build(engine, exports, recipe, get_target(target))
    with open_artifact(artifact, exports, 1) as session:
        found = verify(exports, artifact, session, Gates(max_drop=POINTS[model.spec.name]), "test", Watch())
    assert found.failures == ()  # parity with the pruned source, the metric of the unpruned one, integers where asked
    assert found.drop is not None


def test_kwt1_loses_three_tenths_of_what_its_heads_and_neurons_compute(pruned: tuple[EdgeModel, Exports]) -> None:
    model, exports = pruned
    if model.spec.name != "kwt1":
        pytest.skip("the bar is KWT-1's")
    assert cost_gone(model, exports.model) >= 0.3
