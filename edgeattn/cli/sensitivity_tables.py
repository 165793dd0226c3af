"""How ``edgeattn inspect --sensitivity`` shows what it found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeattn.cli.console import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from edgeattn.pipeline.steps.sensitivity import ModelSensitivity
    from edgeattn.quantize.attention_maps import HeadDrift, ResidualOutlier
    from edgeattn.quantize.sensitivity import Sensitivity, SensitivityReport


def print_sensitivity(found: ModelSensitivity) -> None:
    """Tables of layers, blocks, heads and residual tensors."""
    terminal = console()
    terminal.print(_costs("layer", found.report.layers, found.report))
    terminal.print(_costs("block", (*found.report.blocks, found.report.whole), found.report))
    metric = "" if found.metric is None else f"; {found.metric} {found.source:.2f} % in float on {found.scored} samples"
    compared = f"outputs compared on {found.report.samples} samples of {found.data}{metric}"
    terminal.print(compared, soft_wrap=True)
    if found.attention.heads:
        terminal.print(_heads(found.attention.heads))
    if found.attention.residuals:
        terminal.print(_residuals(found.attention.residuals))


def _costs(kind: str, rows: Sequence[Sensitivity], report: SensitivityReport) -> Table:
    from rich.table import Table
    from rich.text import Text

    from edgeattn.quantize.sensitivity import EVERYTHING, rank

    places = {path: str(place) for place, path in enumerate(rank(report), 1)} if kind == "layer" else {}
    measured = report.whole.drop is not None
    grid = Table(kind, "treatment")
    for title in ("SQNR dB", *["points lost"] * measured, "parameters", "FLOPs %", *["rank"] * bool(places)):
        grid.add_column(title, justify="right")
    for row in rows:
        changed = row.treatment != "float"
        cells = ["all layers" if row.path == EVERYTHING else row.path, row.treatment]
        cells += [f"{row.sqnr_db:.1f}" if changed else "-"]
        cells += [f"{row.drop:+.2f}" if changed and row.drop is not None else "-"] * measured
        cells += [str(row.parameters), f"{100 * row.flops / max(report.whole.flops, 1):.1f}"]
        cells += [places.get(row.path, "-")] * bool(places)
        grid.add_row(*map(Text, cells))
    return grid


def _heads(heads: Sequence[HeadDrift]) -> Table:
    from rich.table import Table
    from rich.text import Text

    several = len({head.graph for head in heads}) > 1
    grid = Table("attention")
    for title in ("head", "JS divergence bits", "softmax input", "entropy bits"):
        grid.add_column(title, justify="right")
    for head in heads:
        hidden = head.softmax_min is None or head.softmax_max is None
        scores = "all hidden" if hidden else f"{head.softmax_min:.1f} to {head.softmax_max:.1f}"
        path = f"{head.graph}: {head.path}" if several else head.path
        grid.add_row(*map(Text, (path, str(head.head), f"{head.js_divergence:.2g}", scores, f"{head.entropy:.2f}")))
    return grid


def _residuals(rows: Sequence[ResidualOutlier]) -> Table:
    from rich.table import Table
    from rich.text import Text

    several = len({row.graph for row in rows}) > 1
    grid = Table("norm", "input")
    for title in ("channel", "max |x|", "x median channel"):
        grid.add_column(title, justify="right")
    grid.add_column("float16")
    for row in rows:
        path = f"{row.graph}: {row.path}" if several else row.path
        overflow = Text("x^2 > 65504", style="red") if row.overflows else Text("-")
        figures = (path, row.tensor, str(row.channel), f"{row.largest:.3g}", f"{row.ratio:.1f}")
        grid.add_row(*map(Text, figures), overflow)
    return grid
