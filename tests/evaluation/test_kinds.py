"""A new kind of data is one class, one row of KINDS and one row of FORMS: nothing else asks which kind it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="models are torch modules: edgeattn[convert]")
pytest.importorskip("openvino", reason="the bundle is for OpenVINO: edgeattn[openvino]")

from edgeattn.errors import DataError  # noqa: E402
from edgeattn.evaluation import kinds  # noqa: E402
from edgeattn.evaluation.accuracy import Score  # noqa: E402
from edgeattn.evaluation.data import Data, Packed, Records, Run, Runner  # noqa: E402
from edgeattn.evaluation.identity import digests  # noqa: E402
from edgeattn.evaluation.replay import record_calls  # noqa: E402
from edgeattn.jobs.evaluate import evaluate  # noqa: E402
from edgeattn.jobs.parcel import pack, unpacked  # noqa: E402
from edgeattn.model import EdgeModel, Reference  # noqa: E402
from edgeattn.pipeline.convert import convert  # noqa: E402
from edgeattn.pipeline.steps.baseline import baseline  # noqa: E402
from edgeattn.pipeline.steps.options import ConvertOptions  # noqa: E402
from edgeattn.pipeline.steps.preflight import calibration_sample  # noqa: E402
from edgeattn.runtimes import load  # noqa: E402
from edgeattn.sources import data as forms  # noqa: E402
from edgeattn.sources import from_module, load_data  # noqa: E402
from edgeattn.spec import ModelSpec  # noqa: E402
from edgeattn.targets import get_target  # noqa: E402
from tests.conversions import QUICK, Watch  # noqa: E402


@dataclass(frozen=True)
class Point:
    """A number and the side of zero that it is on."""

    at: float
    right: bool


def call(point: Point) -> dict[str, np.ndarray]:
    return {"x": np.full((1, 4), point.at, np.float32)}


@dataclass(frozen=True)
class PointData(Data):
    """Points, for a model with an input x of shape (1, 4) and one score."""

    kind: ClassVar[str] = "points"
    measures: ClassVar[str] = "sides"

    def check(self, spec: ModelSpec) -> None:
        if spec.graphs[0].input_names != ("x",):
            raise DataError(f"{spec.name} takes no points")

    def record(self, source: Runner) -> Records:
        graph = source.spec.graphs[0].name
        steps = record_calls(source.step(graph), map(call, self.evaluation))
        return Records(steps={graph: steps}, calibration={graph: tuple(map(call, self.calibration))})

    def training_runs(self, spec: ModelSpec, limit: int = 0) -> dict[str, tuple[Run, ...]]:
        return {spec.graphs[0].name: tuple((call(point),) for point in self.calibration[: limit or None])}

    @classmethod
    def score(cls, runner: Runner, samples: Iterable[Point], on_sample: Callable[[], None]) -> Score:
        wrong = []
        for point in samples:
            wrong.append(float((float(runner.run(call(point))["y"].item()) > 0) != point.right))
            on_sample()
        value = 1.0 - sum(wrong) / len(wrong)
        return Score("accuracy", value, (value, value), tuple(wrong), (1.0,) * len(wrong))

    @classmethod
    def inputs_of(cls, sample: Point) -> Mapping[str, np.ndarray]:
        return call(sample)

    @classmethod
    def expected_of(cls, sample: Point) -> bytes:
        return bytes([sample.right])

    @classmethod
    def pack(cls, sample: Point) -> Packed:
        return Packed({"inputs": {"at": np.array(sample.at)}}, {"right": sample.right})

    @classmethod
    def unpack(cls, packed: Packed) -> Point:
        return Point(packed.arrays["inputs"]["at"].item(), packed.facts["right"])


def read_points(given: forms.Given) -> PointData:
    rows = [line.split() for line in given.path.read_text().splitlines()]
    points = tuple(Point(float(at), side == "right") for at, side in rows)
    return PointData(given.path.name, points[::2], points[1::2])


class Sided(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(4, 1, bias=False)
        torch.nn.init.ones_(self.inner.weight)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return {"y": self.inner(x)}


@pytest.fixture
def model() -> EdgeModel:
    return from_module(Sided().eval(), {"x": torch.ones(1, 4)}, "sided")


@pytest.fixture
def points(model: EdgeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PointData:
    """Twenty points, three of those that measure under a wrong label; read as ``--data`` is."""
    row = forms.Form(expected="points", recognises=lambda given: given.path.suffix == ".points", load=read_points)
    monkeypatch.setattr(forms, "FORMS", (*forms.FORMS, row))
    monkeypatch.setitem(kinds.KINDS, PointData.kind, PointData)
    numbers = np.random.default_rng(0).standard_normal(40).round(3)
    lines = [f"{at} {'right' if (at > 0) != (i in (1, 3, 5)) else 'left'}" for i, at in enumerate(numbers)]
    (tmp_path / "some.points").write_text("\n".join(lines))
    data = load_data("sided", model.spec, str(tmp_path / "some.points"), None, 0)
    assert isinstance(data, PointData)
    return data


def test_a_bundle_is_made_and_measured_on_a_new_kind_of_data(
    model: EdgeModel, points: PointData, tmp_path: Path
) -> None:
    watch = Watch()
    options = ConvertOptions((get_target("cpu"),), "fp32", out=tmp_path / "out", measure=QUICK)
    (result,) = convert(model, points, options, watch).results
    assert result.accuracy is not None
    assert result.accuracy.source == result.accuracy.deployed == pytest.approx(85.0)
    assert (result.accuracy.data, result.accuracy.samples) == ("some.points", 20)
    assert result.accuracy.inputs_sha256 == digests(points)[0]
    assert "baseline: sides of the source" in watch.phases
    with load(str(result.bundle)) as session:
        base = baseline(model, points, Watch())
        (tmp_path / "parcel.npz").write_bytes(pack({}, base.reference, points))
        with unpacked(tmp_path / "parcel.npz") as parcel:
            there = evaluate(session, parcel)
    assert there.score == base.score  # a device finds the class of what it is sent, and measures the same


def test_a_model_that_does_not_take_it_is_refused(points: PointData) -> None:
    other = from_module(torch.nn.Linear(4, 1), {"input": torch.ones(1, 4)}, "other")
    with pytest.raises(DataError, match="other takes no points"):
        baseline(other, points, Watch())


def test_what_a_kind_need_not_say_has_a_default(model: EdgeModel, points: PointData) -> None:
    calibration = points.record(Reference(model)).calibration
    assert points.with_targets(model.spec, calibration) == calibration
    assert calibration_sample(model, points) == {}  # preflight then goes by the example
    assert points.limited(3).evaluation == points.evaluation[:3]
    assert points.limited(0) == points


def test_another_label_is_another_measurement_and_the_same_input(points: PointData) -> None:
    turned = tuple(Point(point.at, not point.right) for point in points.evaluation)
    first, second = digests(points), digests(PointData("x", (), turned))
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_every_form_that_is_refused_is_told(model: EdgeModel, tmp_path: Path) -> None:
    expected = r"expected a directory with transcripts.tsv, a .tsv of texts and labels, an npz, or file.py:function"
    with pytest.raises(DataError, match=expected):
        load_data("sided", model.spec, str(tmp_path), None, 0)


@pytest.mark.parametrize("kind", kinds.KINDS.values())
def test_a_kind_is_found_by_its_name_and_says_all_that_is_asked(kind: type[Data]) -> None:
    assert kinds.KINDS[kind.kind] is kind
    assert not inspect.isabstract(kind)
