"""Parity against the source and the metric of a bundle are computed on the board, and are those found here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="converts a model here")

from edgeattn.cli import app
from edgeattn.errors import DataError
from edgeattn.jobs import parcel
from edgeattn.pipeline.check import CheckOptions, check
from edgeattn.pipeline.convert import convert
from edgeattn.pipeline.profile import ProfileOptions, profile_model
from edgeattn.pipeline.steps.options import ConvertOptions
from edgeattn.profiling.measure import MeasureOptions
from edgeattn.sources import load_data, load_model
from edgeattn.targets import get_target
from tests.conversions import QUICK, Watch, write_model_and_data
from tests.targets.devices.board import Board

BRIEF = MeasureOptions(runs=5, paced_seconds=0)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    """A model, its data, and its bundle for this processor in fp32."""
    for module in ("torch", "openvino"):
        pytest.importorskip(module, reason="makes a bundle")
    home = tmp_path_factory.mktemp("there")
    reference, data = write_model_and_data(home)
    model = load_model(reference)
    options = ConvertOptions((get_target("cpu"),), "fp32", out=home / "out", measure=QUICK)
    report = convert(model, load_data(reference, model.spec, data, None, 40), options, Watch())
    return reference, data, Path(str(report.results[0].bundle))


def test_parity_and_accuracy_are_computed_on_the_board(board: Board, converted: tuple[str, str, Path]) -> None:
    model, data, bundle = converted
    options = CheckOptions(measure=BRIEF, model=model, data=data, samples=40)
    here = check(bundle, options, Watch()).results[0]
    there = check(bundle, replace(options, device=board.url), Watch()).results[0]
    assert there.passed
    assert there.accuracy == here.accuracy  # the same samples on the same engine
    assert there.parity is not None
    assert here.parity is not None
    assert there.parity.reference == here.parity.reference
    assert there.parity.steps == here.parity.steps
    for name, found in here.parity.outputs.items():
        assert there.parity.outputs[name].max_abs == pytest.approx(found.max_abs, abs=1e-6)
    assert board.is_clean()
    assert len(list((board.cache / "store").iterdir())) == 3  # the bundle and two runtimes; no sample stays there


def test_data_alone_gives_the_metric(board: Board, converted: tuple[str, str, Path]) -> None:
    _, data, bundle = converted
    result = check(bundle, CheckOptions(measure=BRIEF, data=data, samples=40, device=board.url), Watch()).results[0]
    assert result.parity is None
    assert result.accuracy is not None
    assert result.accuracy.source is not None  # of the bundle's own record, on the same samples
    assert board.is_clean()


def test_what_another_model_computes_fails_there(
    board: Board, converted: tuple[str, str, Path], tmp_path: Path
) -> None:
    model, _, bundle = converted
    file = Path(model.partition(":")[0])
    other = tmp_path / file.name
    seeded = file.read_text().replace("manual_seed(0)", "manual_seed(1)")
    assert seeded != file.read_text()
    other.write_text(seeded)
    reference = model.replace(str(file), str(other))
    options = CheckOptions(measure=BRIEF, model=reference, device=board.url)
    result = check(bundle, options, Watch()).results[0]
    assert {failure.gate for failure in result.failures} == {"parity", "adversarial"}
    assert board.is_clean()


def test_more_samples_than_are_sent_are_refused_and_the_command_exits_2(
    board: Board, converted: tuple[str, str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, data, bundle = converted
    monkeypatch.setattr(parcel, "MAX_BYTES", 100)
    with pytest.raises(DataError, match="ask for fewer --samples"):
        check(bundle, CheckOptions(measure=BRIEF, data=data, device=board.url), Watch())
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        app(["check", str(bundle), "--data", data, "--device", board.url, "--duration", "0s", "--json"])
    assert left.value.code == 2
    answer: Any = json.loads(capsys.readouterr().out)
    assert answer["error"]["type"] == "DataError"
    assert board.is_clean()


def test_a_model_is_converted_and_measured_on_the_board_of_its_target(
    board: Board, converted: tuple[str, str, Path]
) -> None:
    options = ProfileOptions(BRIEF, {"cpu": (board.url,)})
    report = profile_model(load_model(converted[0]), (get_target("cpu"),), options, Watch())
    (result,) = report.results
    assert result.notes[-1].startswith(f"on {board.url}")
    assert result.latency is not None
    assert (result.latency.kind, result.latency.runs) == ("measured", 5)
    assert result.bundle is None
    assert board.is_clean()


@pytest.mark.slow
def test_the_words_of_a_stream_are_counted_on_the_board(board: Board, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="makes a bundle")
    model = load_model("streaming-conformer")
    measure = replace(QUICK, paced_seconds=0)
    options = ConvertOptions((get_target("cpu"),), "fp32", out=tmp_path / "out", measure=measure)
    bundle = Path(str(convert(model, None, options, Watch()).results[0].bundle))
    asked = CheckOptions(measure=BRIEF, model="streaming-conformer", samples=3)
    here = check(bundle, asked, Watch()).results[0]
    there = check(bundle, replace(asked, device=board.url), Watch()).results[0]
    assert there.passed
    assert there.parity is not None
    assert there.parity.steps == 500  # with carried states
    assert there.accuracy is not None
    assert there.accuracy == here.accuracy
