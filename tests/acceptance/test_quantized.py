"""What int8 must keep and save, in small: benchmarks/quantize.py measures the same on everything there is."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from edgeattn.engines import ENGINES as ROWS
from edgeattn.evaluation.data import Data
from edgeattn.model import Artifact, EdgeModel
from edgeattn.pipeline.steps.baseline import Baseline, baseline
from edgeattn.pipeline.steps.candidates import VerifiedCandidate, artifact_files, verify
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.recipes import build
from edgeattn.results.gates import Gates
from edgeattn.runtimes import open_session
from edgeattn.sources import load_data, load_model
from edgeattn.targets import get_target
from tests.conversions import Watch
from tests.kwt1 import kwt1_data, kwt1_edge_model

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
ENGINES = {"openvino": "cpu", "onnxruntime": "cpu", "litert": "mobile", "tensorrt": "jetson"}
CANDIDATES = [(engine, recipe) for engine in ENGINES for recipe in ROWS[engine].tried]
UTTERANCES = 120  # of which a third has digits; 600 words: a point is six words
EVERY = 4  # of the 3,398 word clips: 0.5 points are four clips

pytest.importorskip("torch", reason="conversions need edgeattn[convert,openvino,tflite]")
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


@pytest.fixture(scope="module", params=["streaming-conformer", "kwt1"])
def exports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """The exports of a model, its exports made once."""
    model, base = prepared(request.param)
    return Exports(model, base, tmp_path_factory.mktemp(request.param))


def measured(exports: Exports, artifact: Artifact) -> VerifiedCandidate:
    backend = ROWS[artifact.backend].here
    with open_session(backend, artifact.models, exports.model.spec, 1, artifact.build) as session:
        return verify(exports, artifact, session, Gates(max_drop=0.5), "test", Watch())


@pytest.mark.parametrize(("engine", "recipe"), CANDIDATES)
def test_int8_keeps_the_metric_and_executes_in_integers(exports: Exports, engine: str, recipe: str) -> None:
    found = measured(exports, build(engine, exports, recipe, get_target(ENGINES[engine])))
    assert found.failures == ()  # the metric within 0.5 points, and nine of ten layers in integers
    assert found.drop is not None
    assert abs(found.drop.points) <= 0.5


@pytest.mark.parametrize("engine", ["openvino", "litert", "onnxruntime"])
def test_the_streaming_models_int8_is_at_most_035_of_fp32(exports: Exports, engine: str) -> None:
    if exports.model.spec.stream is None:
        pytest.skip("the bar is the streaming model's")
    target = get_target(ENGINES[engine])
    sizes = [
        sum(file.stat().st_size for file in artifact_files(build(engine, exports, recipe, target)).values())
        for recipe in (ROWS[engine].tried[0], "fp32")
    ]
    assert sizes[0] <= 0.35 * sizes[1]
