"""A layer that int8 destroys goes back to float: found, shipped, resumed after a kill, and saved as a plan."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.bundle import read_manifest
from edgeattn.errors import DataError, InputError, OutputError
from edgeattn.evaluation.array_reading import array_data
from edgeattn.evaluation.arrays import ArrayData
from edgeattn.evaluation.data import enough_to_calibrate
from edgeattn.model import EdgeModel
from edgeattn.pipeline.convert import convert
from edgeattn.pipeline.quantize import quantize
from edgeattn.pipeline.steps.options import ConvertOptions, Effort
from edgeattn.quantize.plan import Plan, Rule, read_plan
from edgeattn.results.report import Result
from edgeattn.runtimes import load
from edgeattn.sources import from_module
from edgeattn.targets import get_target
from tests.conversions import QUICK, Watch

torch = pytest.importorskip("torch", reason="conversions need edgeattn[convert]")
pytest.importorskip("openvino", reason="conversions need edgeattn[openvino]")

pytestmark = pytest.mark.slow

SEARCH = ".fragile.cpu.search.json"


class Fragile(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]
    """Sound layers, and one that reads a channel two thousand times beyond the others, which it does not need."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
        self.fragile = torch.nn.Linear(64, 64)
        self.head = torch.nn.Linear(64, 32)
        scale = torch.ones(64)
        scale[0] = 2000.0
        self.scale = torch.nn.Buffer(scale)
        with torch.no_grad():
            self.fragile.weight[:, 0] = 0.0

    def forward(self, tokens):  # type: ignore[no-untyped-def]
        x = tokens + torch.relu(self.second(torch.relu(self.first(tokens))))
        return {"scores": self.head(torch.relu(self.fragile(x * self.scale))).sum(1)}


@pytest.fixture(scope="module")
def fragile() -> tuple[EdgeModel, ArrayData]:
    """The model, and samples whose labels are its own, and clearly so: rounding elsewhere changes none of them."""
    torch.manual_seed(0)
    model = from_module(Fragile().eval(), {"tokens": torch.randn(1, 8, 64)}, "fragile")
    tokens = np.random.default_rng(0).standard_normal((400, 8, 64)).astype(np.float32)
    scores = np.stack([model.run({"tokens": sample[None]})["scores"][0] for sample in tokens])
    best = np.sort(scores, axis=-1)
    clear = np.argsort(best[:, -2] - best[:, -1])[240:360]  # and not so clearly that nothing would
    tokens, labels = tokens[clear], scores[clear].argmax(axis=-1)
    return model, array_data({"tokens": tokens, "target_scores": labels}, "made up", model.spec)


def options(out: Path, **changes: Any) -> ConvertOptions:
    chosen = ConvertOptions((get_target("cpu"),), "int8-static", out=out, measure=QUICK)
    return replace(chosen, **changes)


def shipped(result: Result) -> str:
    return next(row.scheme for row in result.precision.candidates if row.kept)


def test_the_layer_that_loses_the_metric_goes_back_to_float(
    fragile: tuple[EdgeModel, ArrayData], tmp_path: Path
) -> None:
    (result,) = convert(*fragile, options(tmp_path), Watch()).results
    assert result.passed, result.failures
    assert shipped(result) == "int8-static+mixed"
    plain = next(row for row in result.precision.candidates if row.scheme == "int8-static")
    assert plain.why.startswith("accuracy: wanted accuracy within 0.5 points")
    manifest = read_manifest(str(result.bundle))
    assert manifest.provenance["layers"] == {"first": "int8", "second": "int8", "fragile": "float", "head": "int8"}
    assert any("1 of 4 layers back in float" in note for note in result.notes)
    assert [path.name for path in tmp_path.iterdir()] == ["fragile.cpu.edge"]
    with load(str(result.bundle)) as session:
        assert session.executed()["FullyConnected"] == {"int8": 3, "float32": 1}


@pytest.mark.parametrize(("phase", "kept"), [("layers float: metric", []), ("cpu: profile", [SEARCH])])
def test_a_killed_search_goes_on_and_leaves_nothing(
    fragile: tuple[EdgeModel, ArrayData], tmp_path: Path, phase: str, kept: list[str]
) -> None:
    class Killed(Watch):
        def begin(self, what: str, total: int | None = None) -> None:
            super().begin(what, total)
            if what.endswith(phase):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(*fragile, options(tmp_path), Killed())
    assert [path.name for path in tmp_path.iterdir()] == kept  # a trial that was measured is not measured again
    watch = Watch()
    (result,) = convert(*fragile, options(tmp_path), watch).results
    assert shipped(result) == "int8-static+mixed"
    assert [path.name for path in tmp_path.iterdir()] == ["fragile.cpu.edge"]


def test_without_time_to_search_the_loss_is_a_failed_gate(fragile: tuple[EdgeModel, ArrayData], tmp_path: Path) -> None:
    (result,) = convert(*fragile, options(tmp_path / "out", effort=Effort(0.0)), Watch()).results
    assert [failure.gate for failure in result.failures] == ["accuracy"]
    assert result.bundle is None


def test_with_auto_something_always_ships(fragile: tuple[EdgeModel, ArrayData], tmp_path: Path) -> None:
    chosen = options(tmp_path, precision="auto", effort=Effort(0.0))
    (result,) = convert(*fragile, chosen, Watch()).results
    assert result.passed
    assert {row.scheme for row in result.precision.candidates} >= {"fp32", "fp16", "int8-static", "int8-dynamic"}


def test_training_adds_a_candidate_where_the_search_finds_none(
    fragile: tuple[EdgeModel, ArrayData], tmp_path: Path
) -> None:
    chosen = options(tmp_path, effort=Effort(0.0, recover_seconds=3.0), keep_failed=True)
    (result,) = convert(*fragile, chosen, Watch()).results
    trained = next(row for row in result.precision.candidates if row.scheme == "int8-static+recovered")
    assert trained.accuracy is not None
    assert any("distilled from the float source" in note for note in result.notes)
    assert [path.name for path in tmp_path.iterdir()] == ["fragile.cpu.edge"]


def test_a_plan_is_followed_on_every_engine(fragile: tuple[EdgeModel, ArrayData], tmp_path: Path) -> None:
    plan = Plan("int8", (Rule("fr*", "float"),))
    targets = tuple(map(get_target, ("cpu", "mobile", "jetson")))
    chosen = options(tmp_path, precision="int8", plan=plan, targets=targets)
    for result in convert(*fragile, chosen, Watch()).results:
        assert result.passed, (result.target, result.failures)
        layers = read_manifest(str(result.bundle)).provenance["layers"]
        assert layers["fragile"] == "float", result.target
        assert {layers[name] for name in ("first", "second", "head")} <= {"int8", "int8-weights"}


def test_a_pattern_that_matches_nothing_is_listed(fragile: tuple[EdgeModel, ArrayData], tmp_path: Path) -> None:
    plan = Plan("int8", (Rule("blocks.*", "float"), Rule("head", "float")))
    with pytest.raises(InputError, match=r"no layer matches 'blocks\.\*'; the layers are first, second, fragile, head"):
        convert(*fragile, options(tmp_path / "out", plan=plan), Watch())
    assert not (tmp_path / "out").exists()


def test_quantize_saves_files_and_a_plan_that_convert_takes(
    fragile: tuple[EdgeModel, ArrayData], tmp_path: Path
) -> None:
    (result,) = quantize(*fragile, options(tmp_path), Watch()).results
    folder = tmp_path / "fragile.cpu.quantized"
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]  # the search's trials are forgotten
    assert {path.name for path in folder.iterdir()} == {"main.xml", "main.bin", "plan.toml", "quantize.json"}
    assert json.loads((folder / "quantize.json").read_text())["results"][0]["precision"]["shipped"] == "int8"
    plan = read_plan(folder / "plan.toml")
    assert {path: plan.of(path) for path in ("first", "fragile")} == {"first": "int8", "fragile": "float"}
    (converted,) = convert(*fragile, options(tmp_path, plan=plan), Watch()).results
    assert shipped(converted) == "int8-static"  # nothing is left to search for
    assert converted.accuracy is not None
    assert result.accuracy is not None
    assert converted.accuracy.deployed == result.accuracy.deployed
    with pytest.raises(OutputError, match="exists; remove it, choose another --out, or pass --force"):
        quantize(*fragile, options(tmp_path), Watch())


def test_a_source_that_fails_on_the_data_is_not_compared_with(
    fragile: tuple[EdgeModel, ArrayData], tmp_path: Path
) -> None:
    model, _ = fragile
    tokens = 1e-6 * np.random.default_rng(0).standard_normal((60, 8, 64)).astype(
        np.float32
    )  # the same answer to everything
    data = array_data({"tokens": tokens, "target_scores": np.arange(60) % 5}, "wrong.npz", model.spec)
    with pytest.raises(DataError, match=r"wrong\.npz: the float32 source itself fails .*the metric is constant"):
        convert(model, data, options(tmp_path / "out"), Watch())
    assert not (tmp_path / "out").exists()


def test_fewer_samples_to_calibrate_than_asked_for_are_refused(fragile: tuple[EdgeModel, ArrayData]) -> None:
    data = fragile[1]
    enough_to_calibrate(data, 24)
    with pytest.raises(DataError, match="made up: 25 calibration samples were asked for and 24 are there"):
        enough_to_calibrate(data, 25)
    with pytest.raises(DataError, match="no data: 1 calibration samples were asked for and 0 are there"):
        enough_to_calibrate(None, 1)
