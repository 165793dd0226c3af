"""The picture of sensitivity: what it shows, and that it is whole or absent."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edgeattn.errors import InputError, MissingExtraError, OutputError
from edgeattn.quantize.attention_maps import AttentionReport, HeadDrift
from edgeattn.quantize.sensitivity import Sensitivity, SensitivityReport
from edgeattn.results.pictures import check_picture
from edgeattn.results.sensitivity import MAX_BARS, drift_table, noise_percent, sensitivity_figure, shown_layers

pytest.importorskip("matplotlib", reason="pictures need edgeattn[report]")

NO_ATTENTION = AttentionReport((), (), 8)
HEADERS = {".png": b"\x89PNG\r\n\x1a\n", ".svg": b"<?xml"}


def layer(path: str, sqnr_db: float, drop: float | None = None, treatment: str = "int8") -> Sensitivity:
    block = path.rpartition(".")[0]
    return Sensitivity(path, block, "int8" if treatment == "int8" else "float", 1024, 2048, sqnr_db, drop)


def report(*layers: Sensitivity) -> SensitivityReport:
    drop = layers[0].drop
    return SensitivityReport(layers, layers[:1], layer("*", 20.0, drop), 16)


def drift(path: str, head: int, bits: float, graph: str = "main") -> HeadDrift:
    return HeadDrift(graph, path, head, bits, -5.0, 5.0, 2.0)


TWO = report(layer("blocks.0.query", 40.0), layer("blocks.0.tiny", 300.0, None, "float"), layer("blocks.1.query", 30.0))
ATTENTION = AttentionReport(
    (drift("blocks.0.attention", 0, 0.25), drift("blocks.0.attention", 1, 0.0), drift("blocks.1.attention", 0, 0.5)),
    (),
    8,
)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".SVG"])
def test_a_picture_replaces_what_was_there(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"costs{suffix}"
    path.write_text("old")
    sensitivity_figure(TWO, ATTENTION, path)
    assert path.read_bytes().startswith(HEADERS[suffix.lower()])
    assert list(tmp_path.iterdir()) == [path]


def test_it_names_quantized_layers_their_figures_and_the_blocks_of_attention(tmp_path: Path) -> None:
    path = tmp_path / "costs.svg"
    sensitivity_figure(TWO, ATTENTION, path)
    shown = path.read_text()
    for text in ("blocks.0.query", "40.0 dB", "blocks.1.query", "all together 20.0 dB", "blocks.1.attention", " 0.25 "):
        assert text in shown, text
    assert "blocks.0.tiny" not in shown  # float, nothing to show


def test_points_of_the_metric_are_drawn_where_they_were_measured(tmp_path: Path) -> None:
    path = tmp_path / "costs.svg"
    lost = report(layer("blocks.0.query", 40.0, -0.25), layer("blocks.1.query", 30.0, 1.5))
    sensitivity_figure(lost, NO_ATTENTION, path)
    shown = path.read_text()
    for text in ("points of the metric lost", "-0.25, 40.0 dB", "+1.50, 30.0 dB"):
        assert text in shown, text
    assert "Jensen" not in shown


@pytest.mark.parametrize("cost", [(300.0, None), (300.0, 0.0), (-300.0, 0.0)])
def test_figures_at_their_limits_are_drawn(tmp_path: Path, cost: tuple[float, float | None]) -> None:
    still = AttentionReport((drift("blocks.0.attention", 0, 0.0),), (), 8)
    sensitivity_figure(report(layer("blocks.0.query", *cost)), still, tmp_path / "costs.png")
    assert (tmp_path / "costs.png").stat().st_size > 1000


def test_of_many_layers_the_most_harmful_are_shown_in_the_order_of_the_graph() -> None:
    rng = np.random.default_rng(0)
    ratios = rng.permutation(np.linspace(20, 60, MAX_BARS + 20))
    every = report(*(layer(f"blocks.{index}.query", float(ratio)) for index, ratio in enumerate(ratios)))
    shown = shown_layers(every)
    worst = set(np.sort(ratios)[:MAX_BARS].tolist())
    assert shown == tuple(row for row in every.layers if row.sqnr_db in worst)


def test_noise_in_per_cent() -> None:
    assert [noise_percent(db) for db in (0.0, 20.0, 40.0)] == pytest.approx([100.0, 10.0, 1.0])


def test_blocks_with_fewer_heads_leave_cells_empty_and_graphs_are_told_apart() -> None:
    names, table = drift_table(ATTENTION)
    assert names == ["blocks.0.attention", "blocks.1.attention"]
    np.testing.assert_equal(table, [[0.25, 0.0], [0.5, np.nan]])
    sizes = AttentionReport((drift("attention", 0, 0.1, "main_64"), drift("attention", 0, 0.2, "main_128")), (), 8)
    names, table = drift_table(sizes)
    assert names == ["main_64: attention", "main_128: attention"]
    np.testing.assert_equal(table, [[0.1], [0.2]])


def test_what_cannot_be_drawn_is_refused_before_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for draw in (check_picture, lambda path: sensitivity_figure(TWO, ATTENTION, path)):
        with pytest.raises(InputError, match=r"unknown kind of picture '\.jpg'"):
            draw(tmp_path / "costs.jpg")
        with pytest.raises(OutputError, match="there is no directory"):
            draw(tmp_path / "missing" / "costs.png")
    (tmp_path / "costs.png").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        sensitivity_figure(TWO, ATTENTION, tmp_path / "costs.png")
    assert list(tmp_path.iterdir()) == [tmp_path / "costs.png"]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"edgeattn\[report\]"):
        check_picture(tmp_path / "costs.svg")
