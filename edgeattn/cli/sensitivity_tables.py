"""How ``edgeattn inspect --sensitivity`` shows what it found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeattn.cli.console import console, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeattn.pipeline.steps.sensitivity import ModelSensitivity
    from edgeattn.quantize.attention_maps import HeadDrift, ResidualOutlier
    from edgeattn.quantize.sensitivity import Sensitivity, SensitivityReport
    from edgeattn.results.grid import Grid


def print_sensitivity(found: ModelSensitivity) -> None:
    """Tables of layers, blocks, heads and residual tensors."""
    show(_costs("layer", found.report.layers, found.report))
    show(_costs("block", (*found.report.blocks, found.report.whole), found.report))
    metric = "" if found.metric is None else f"; {found.metric} {found.source:.2f} % in float on {found.scored} samples"
    compared = f"outputs compared on {found.report.samples} samples of {found.data}{metric}"
    console().print(compared, soft_wrap=True)
    if found.attention.heads:
        show(_heads(found.attention.heads))
    if found.attention.residuals:
        show(_residuals(found.attention.residuals))


def _costs(kind: str, rows: Sequence[Sensitivity], report: SensitivityReport) -> Grid:
    from edgeattn.quantize.sensitivity import EVERYTHING, rank
    from edgeattn.results.grid import Column, Grid, Row

    places = {path: str(place) for place, path in enumerate(rank(report), 1)} if kind == "layer" else {}
    measured = report.whole.drop is not None
    figures = ("SQNR dB", *["points lost"] * measured, "parameters", "FLOPs %", *["rank"] * bool(places))
    columns = (Column(name=kind), Column(name="treatment"), *(Column(name=name, right=True) for name in figures))
    lines = []
    for row in rows:
        changed = row.treatment != "float"
        cells = ["all layers" if row.path == EVERYTHING else row.path, row.treatment]
        cells += [f"{row.sqnr_db:.1f}" if changed else "-"]
        cells += [f"{row.drop:+.2f}" if changed and row.drop is not None else "-"] * measured
        cells += [str(row.parameters), f"{100 * row.flops / max(report.whole.flops, 1):.1f}"]
        cells += [places.get(row.path, "-")] * bool(places)
        lines.append(Row(cells=tuple(cells)))
    return Grid(columns=columns, rows=tuple(lines))


def _heads(heads: Sequence[HeadDrift]) -> Grid:
    from edgeattn.results.grid import Column, Grid, Row

    several = len({head.graph for head in heads}) > 1
    figures = ("head", "JS divergence bits", "softmax input", "entropy bits")
    columns = (Column(name="attention"), *(Column(name=name, right=True) for name in figures))
    rows = []
    for head in heads:
        hidden = head.softmax_min is None or head.softmax_max is None
        scores = "all hidden" if hidden else f"{head.softmax_min:.1f} to {head.softmax_max:.1f}"
        path = f"{head.graph}: {head.path}" if several else head.path
        rows.append(Row(cells=(path, str(head.head), f"{head.js_divergence:.2g}", scores, f"{head.entropy:.2f}")))
    return Grid(columns=columns, rows=tuple(rows))


def _residuals(rows: Sequence[ResidualOutlier]) -> Grid:
    from edgeattn.results.grid import ABSENT, Column, Grid, Row
    from edgeattn.spec import HALF_MAX

    several = len({row.graph for row in rows}) > 1
    figures = ("channel", "max |x|", "x median channel")
    columns = (
        *(Column(name=name) for name in ("norm", "input")),
        *(Column(name=name, right=True) for name in figures),
        Column(name="float16"),
    )
    lines = []
    for row in rows:
        path = f"{row.graph}: {row.path}" if several else row.path
        overflow = f"x^2 > {HALF_MAX:g}" if row.overflows else ABSENT
        cells = (path, row.tensor, str(row.channel), f"{row.largest:.3g}", f"{row.ratio:.1f}", overflow)
        lines.append(Row(cells=cells, styles={"float16": "red"}))
    return Grid(columns=columns, rows=tuple(lines))
