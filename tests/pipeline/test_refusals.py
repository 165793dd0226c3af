"""What one target cannot take is a row of its own; the others are served, and the exit code says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeattn.errors import ConversionError, DataError, DeviceError, EdgeattnError, UnsupportedError
from edgeattn.model import Artifact
from edgeattn.pipeline.convert import convert
from edgeattn.pipeline.profile import estimated
from edgeattn.pipeline.quantize import quantize
from edgeattn.pipeline.steps import candidates, preflight
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.options import ConvertOptions
from edgeattn.pipeline.steps.refusals import Refusals
from edgeattn.results.report import Report
from edgeattn.targets import get_target
from tests.conversions import BUNDLES, QUICK, TARGETS, Converted, Watch


@pytest.fixture
def kept(converted: Converted, monkeypatch: pytest.MonkeyPatch) -> Converted:
    monkeypatch.setattr(candidates, "build", converted.build)
    return converted


def options(out: Path, *names: str, **more: object) -> ConvertOptions:
    return ConvertOptions(tuple(map(get_target, names)), "fp32", out=out, measure=QUICK, **more)  # type: ignore[arg-type]


def failing(kept: Converted, monkeypatch: pytest.MonkeyPatch, error: EdgeattnError) -> None:
    """LiteRT's converter raises."""

    def build(backend: str, exports: Exports, recipe: str, *_: object) -> Artifact:
        if backend == "litert":
            raise error
        return kept.build(backend, exports, recipe)

    monkeypatch.setattr(candidates, "build", build)


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConversionError("node 'x' is unknown"), 4), (DataError("sample 3 is damaged"), 2), (DeviceError("lost"), 3)],
)
def test_a_target_whose_conversion_fails_is_a_row_and_the_others_ship(
    kept: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: EdgeattnError, code: int
) -> None:
    failing(kept, monkeypatch, error)
    report = convert(kept.model, None, options(tmp_path, "mobile", "cpu"), Watch())
    assert [(row.target, row.passed) for row in report.results] == [("android-arm64", False), ("cpu", True)]
    (failure,) = report.results[0].failures
    assert (failure.gate, failure.got) == ("conversion", str(error))
    assert report.results[0].error == {"error": type(error).__name__, "message": str(error)}
    assert [path.name for path in tmp_path.iterdir()] == [f"small-attention.{BUNDLES['cpu']}"]
    assert report.exit_code == code
    assert report.to_json()["results"][0]["error"]["error"] == type(error).__name__


def test_of_one_target_alone_it_is_the_error(kept: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(kept, monkeypatch, ConversionError("node 'x' is unknown"))
    with pytest.raises(ConversionError, match="node 'x' is unknown"):
        convert(kept.model, None, options(tmp_path, "mobile"), Watch())


@pytest.mark.slow
def test_an_engine_that_one_target_has_not_stops_that_target(kept: Converted, tmp_path: Path) -> None:
    made = {
        "convert": convert(kept.model, None, options(tmp_path / "a", *TARGETS, backend="litert"), Watch()),
        "quantize": quantize(kept.model, None, options(tmp_path / "b", *TARGETS, backend="litert"), Watch()),
    }
    for report in made.values():
        refused = [row for row in report.results if row.error is not None]
        assert [row.target for row in report.results] == [get_target(name).name for name in TARGETS]
        assert {row.failures[0].gate for row in refused} == {"target"}
        assert all("litert" in row.failures[0].got for row in refused)
        assert [row.target for row in report.results if row.passed]
        assert report.exit_code == 4


def test_what_preflight_stops_keeps_its_findings(
    kept: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeattn.converters.preflight.judge import refuse as real

    def stop(findings: object) -> None:
        real(findings)  # type: ignore[arg-type]
        told.append(findings)
        if len(told) == 1:
            raise UnsupportedError("preflight for litert: softmax is unknown there")

    told: list[object] = []
    monkeypatch.setattr(preflight, "refuse", stop)
    report = convert(kept.model, None, options(tmp_path, "mobile", "cpu"), Watch())
    assert [row.failures[0].gate for row in report.results if not row.passed] == ["preflight"]
    assert isinstance(report.results[0].preflight, tuple)
    assert report.results[1].bundle is not None


def test_where_every_target_is_refused_nothing_is_measured(kept: Converted, tmp_path: Path) -> None:
    watch = Watch()
    report = convert(kept.model, None, options(tmp_path / "out", "mobile", "jetson", backend="openvino"), watch)
    assert [row.error is not None for row in report.results] == [True, True]
    assert not [phase for phase in watch.phases if "baseline" in phase]
    assert not (tmp_path / "out").exists()


def test_the_worst_error_is_the_exit_code() -> None:
    targets = tuple(map(get_target, TARGETS))
    refused = Refusals(targets, None, "fp32")
    for target, error in zip(targets, (DataError("data"), UnsupportedError("no"), DeviceError("lost")), strict=True):
        with refused.within(target, "conversion"):
            raise error
    assert refused.left() == ()
    assert Report({}, refused.rows([])).exit_code == 4


def test_an_estimate_that_fails_for_one_target_leaves_the_others(
    converted: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeattn.graphs.estimate import estimate_bundle as real
    from edgeattn.pipeline import profile

    def one_fails(path: Path, target: object, threads: int) -> object:
        if target == get_target("pixel-8"):
            raise UnsupportedError("no figures")
        return real(path, target, threads)  # type: ignore[arg-type]

    monkeypatch.setattr(profile, "estimate_bundle", one_fails)
    bundle = converted.out / f"small-attention.{BUNDLES['mobile']}"
    report = estimated(bundle, (get_target("pixel-8"), get_target("pixel-9")), 1)
    assert [row.error is None for row in report.results] == [False, True]
