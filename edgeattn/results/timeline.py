"""The picture of a paced run: latency and backlog over time, the deadline, and what was late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeattn.errors import load_extra
from edgeattn.printable import printable
from edgeattn.profiling.figures import Realtime, Trace
from edgeattn.results.pictures import check_picture, save_picture

INCHES = (9.0, 2.8)  # of one run
LATENCY, BACKLOG, DEADLINE, LATE = "#3b6ea5", "#b8a36a", "#555555", "#c0392b"


def draw_timeline(realtime: Realtime, path: Path, title: str) -> None:
    """Draw the paced runs into a picture, one below the other: alone, and beside busy neighbours if there is one.

    Raises:
        ValueError: if no course was kept.
        MissingExtraError: without matplotlib.
        OutputError: if the picture cannot be written.
    """
    check_picture(path)
    runs = [run for run in (realtime, realtime.loaded) if run is not None and run.trace is not None]
    if not runs:
        raise ValueError("the paced run kept no trace")
    figures = load_extra("matplotlib.figure", "report")
    figure = figures.Figure(figsize=(INCHES[0], INCHES[1] * len(runs)), layout="constrained")
    figure.suptitle(printable(title), fontsize=10, parse_math=False)
    axes = figure.subplots(len(runs), 1, sharex=True, sharey=True, squeeze=False)
    for axis, run in zip(axes[:, 0], runs, strict=True):
        if run.trace is not None:
            _draw(axis, run, run.trace)
    axes[-1, 0].set_xlabel("time in s")
    save_picture(figure, path)


def _draw(axis: Any, run: Realtime, trace: Trace) -> None:
    late = [(at, ms) for at, ms in zip(trace.seconds, trace.latency_ms, strict=True) if ms > run.deadline_ms]
    axis.plot(trace.seconds, trace.latency_ms, color=LATENCY, linewidth=0.8, label="latency")
    axis.plot(trace.seconds, trace.backlog_ms, color=BACKLOG, linewidth=0.8, label="backlog")
    axis.axhline(
        run.deadline_ms, color=DEADLINE, linewidth=1.0, linestyle="--", label=f"deadline {run.deadline_ms:g} ms"
    )
    axis.plot(
        *zip(*late, strict=True) if late else ((), ()), "x", color=LATE, label=f"late: {run.misses} of {run.chunks}"
    )
    axis.set_yscale("log", nonpositive="mask")  # a loop that is on time has a backlog of 0
    axis.set_ylabel("ms")
    axis.grid(True, which="major", linewidth=0.3)
    beside = f"beside {run.neighbours} busy" if run.neighbours else "alone"
    axis.set_title(
        f"{beside}, p99 {run.p99_ms or 0:.2f} ms, jitter up to {run.jitter_ms or 0:g} ms", fontsize=9, loc="left"
    )
    axis.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=8, ncols=4, frameon=False)
