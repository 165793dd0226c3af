"""The picture of a paced run says what its figures say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeattn.errors import InputError
from edgeattn.profiling.figures import Realtime
from edgeattn.profiling.pacing import Arrivals, Timeline, realtime
from edgeattn.results.timeline import draw_timeline

pytest.importorskip("matplotlib", reason="pictures need edgeattn[report]")


def run(late: int) -> Realtime:
    due = np.arange(40) * 0.1
    done = due + np.where(np.arange(40) < late, 0.2, 0.01)
    return realtime(Timeline(Arrivals(due, due), due, done, np.ones(40, np.int64)), 100.0, 4.0, 100.0, trace=True)


@pytest.mark.parametrize(("suffix", "header"), [(".png", b"\x89PNG\r\n\x1a\n"), (".svg", b"<?xml")])
def test_a_picture_is_written_whole(tmp_path: Path, suffix: str, header: bytes) -> None:
    path = tmp_path / f"run{suffix}"
    draw_timeline(run(0), path, "a $bundle$ on a device")
    assert path.read_bytes().startswith(header)
    assert list(tmp_path.iterdir()) == [path]


def test_it_shows_the_deadline_and_the_misses_of_both_runs(tmp_path: Path) -> None:
    loaded = replace(run(7), neighbours=2)
    draw_timeline(replace(run(3), loaded=loaded), tmp_path / "run.svg", "tiny.cpu.edge")
    text = (tmp_path / "run.svg").read_text(encoding="utf-8")
    for wanted in ("tiny.cpu.edge", "deadline 100 ms", "late: 3 of 40", "late: 7 of 40", "alone", "beside 2 busy"):
        assert wanted in text


def test_a_run_without_a_trace_and_an_unknown_kind_of_picture_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no trace"):
        draw_timeline(replace(run(0), trace=None), tmp_path / "run.svg", "x")
    with pytest.raises(InputError, match="kind of picture"):
        draw_timeline(run(0), tmp_path / "run.pdf", "x")
