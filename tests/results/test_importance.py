"""The picture of importance: what it shows, and that it is whole or absent."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edgeattn.errors import InputError, MissingExtraError, OutputError
from edgeattn.pruning import Cut

pytest.importorskip("torch", reason="pruning needs edgeattn[convert]")
pytest.importorskip("matplotlib", reason="pictures need edgeattn[report]")

from edgeattn.pruning import Importance
from edgeattn.results.importance import MOST_NAMED, importance_figure, layer_rows, stays
from edgeattn.results.pictures import check_picture

HEADERS = {".png": b"\x89PNG\r\n\x1a\n", ".svg": b"<?xml"}


def found(layers: int = 2, rises: tuple[float, ...] = (0.5, np.nan)) -> Importance:
    rng = np.random.default_rng(0)
    scores = {}
    for n in range(layers):
        scores[f"attention:encoder.{n}.mix"] = rng.uniform(size=3).astype(np.float32)
        scores[f"feedforward:encoder.{n}"] = rng.uniform(size=12).astype(np.float32)
    return Importance(scores, {}, {"encoder": np.array(rises, np.float32)}, {}, 8, "fisher")


CUT = Cut({"attention:encoder.0.mix": (0, 2), "feedforward:encoder.0": (1, 5)}, {"encoder": (0,)})


@pytest.mark.parametrize("suffix", [".png", ".svg", ".SVG"])
def test_a_picture_replaces_what_was_there(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"importance{suffix}"
    path.write_text("old")
    importance_figure(found(), CUT, path)
    assert path.read_bytes().startswith(HEADERS[suffix.lower()])
    assert list(tmp_path.iterdir()) == [path]


def drawn(importance: Importance, cut: Cut, path: Path) -> str:
    """The picture's text, as comments of the SVG."""
    importance_figure(importance, cut, path)
    return path.read_text(encoding="utf-8")


def test_it_says_what_stays_of_heads_neurons_and_layers(tmp_path: Path) -> None:
    text = drawn(found(), CUT, tmp_path / "a.svg")
    for wanted in ("Heads: 2 of 6 stay", "Neurons: 2 of 24 stay", "Layers: 1 of 2 stay", "must stay", "encoder.1.mix"):
        assert wanted in text
    assert "encoder.0.mix  2 of 3" in text


def test_of_many_curves_a_bar_of_colours_tells_the_depth(tmp_path: Path) -> None:
    count = MOST_NAMED + 1
    text = drawn(found(count, (0.1,) * count), Cut(), tmp_path / "a.svg")
    assert "encoder.3.mix" not in text
    assert "first" in text


def test_a_model_without_layers_or_with_worthless_groups_has_a_picture_too(tmp_path: Path) -> None:
    flat = Importance({"feedforward:": np.zeros(4, np.float32)}, {}, {}, {}, 1, "fisher")
    text = drawn(flat, Cut(), tmp_path / "a.svg")
    assert "Neurons: 4 of 4 stay" in text
    assert "Layers" not in text
    nothing = Importance({}, {}, {}, {}, 1, "fisher")
    importance_figure(nothing, Cut(), tmp_path / "b.png")
    assert (tmp_path / "b.png").stat().st_size > 0


def test_what_stays_follows_from_groups_and_layers() -> None:
    assert stays("attention:encoder.0.mix", 3, CUT).tolist() == [True, False, True]
    assert not stays("attention:encoder.1.mix", 3, CUT).any()
    assert stays("attention:encoder.10.mix", 3, Cut({}, {"encoder": (10,)})).all()
    assert stays("attention:encoders.1.mix", 3, CUT).all()
    rows = layer_rows(found(), CUT)
    assert [(path, kept) for path, _, kept in rows] == [("encoder.0", True), ("encoder.1", False)]
    assert rows[0][1] == pytest.approx(0.5)


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.png"):
        importance_figure(found(), CUT, tmp_path / "a.pdf")
    assert not list(tmp_path.iterdir())


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no directory"):
        check_picture(tmp_path / "absent" / "a.png")


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"edgeattn\[report\]"):
        check_picture(tmp_path / "a.png")
