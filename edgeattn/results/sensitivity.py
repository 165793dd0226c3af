"""Sensitivity as a picture: what each layer costs, block by block, and how far each head's map drifts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.errors import load_extra
from edgeattn.quantize.attention_maps import AttentionReport
from edgeattn.quantize.sensitivity import Sensitivity, SensitivityReport, rank
from edgeattn.results.pictures import check_picture, drawable, save_picture

WIDTH, ROW, MARGIN = 9.0, 0.2, 1.1  # inches: of the picture, of a bar or a row of the heat map, of titles and axes
MAX_BARS = 80  # of more layers the most harmful are shown
MAX_NUMBERED = 16  # heads in a row of the heat map whose numbers can still be read
COLOURS = ("#0072b2", "#d55e00")  # of Okabe and Ito's palette, which the colour-blind tell apart; blocks take turns


def sensitivity_figure(report: SensitivityReport, attention: AttentionReport, path: Path) -> None:
    """Draw bars of the layers and a heat map of the heads, and replace ``path`` by the picture.

    Bars are points of the metric where it was measured, else the output's noise in per cent of its RMS, with dB beside
    them. Layers stand in the graph's order.

    Args:
        path: ``.png`` or ``.svg``.

    Raises:
        InputError: for another suffix.
        MissingExtraError: without matplotlib.
        OutputError: if it cannot be written.
    """
    check_picture(path)
    figures = load_extra("matplotlib.figure", "report")
    layers = shown_layers(report)
    rows, drift = drift_table(attention)
    heights = [MARGIN + ROW * max(len(layers), 3), *([MARGIN + ROW * len(rows)] if rows else [])]
    figure = figures.Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    places = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _draw_layers(places[0], layers, report)
    if rows:
        _draw_heads(figure, places[1], rows, drift)
    save_picture(figure, path)


def shown_layers(report: SensitivityReport) -> tuple[Sensitivity, ...]:
    """Quantized layers in the graph's order, the :data:`MAX_BARS` most harmful of more."""
    kept = set(rank(report)[:MAX_BARS])
    return tuple(row for row in report.layers if row.path in kept)


def noise_percent(sqnr_db: float) -> float:
    """RMS of the noise in per cent of the signal's; 20 dB are 10 %.

    >>> noise_percent(20.0)
    10.0
    """
    return float(100.0 * 10.0 ** (-sqnr_db / 20.0))


def drift_table(attention: AttentionReport) -> tuple[list[str], np.ndarray]:
    """Names of the attention blocks, and divergences in bits, (blocks, heads); NaN where a block has fewer heads."""
    several = len({head.graph for head in attention.heads}) > 1
    found: dict[str, list[float]] = {}
    for head in attention.heads:
        name = f"{head.graph}: {head.path}" if several else head.path
        found.setdefault(name, []).append(head.js_divergence)
    table = np.full((len(found), max(map(len, found.values()), default=0)), np.nan)
    for index, values in enumerate(found.values()):
        table[index, : len(values)] = values
    return list(found), table


def _draw_layers(axes: Any, layers: Sequence[Sensitivity], report: SensitivityReport) -> None:
    measured = any(row.drop for row in layers)  # where no layer loses a point, noise tells more than empty bars
    values = [row.drop or 0.0 if measured else noise_percent(row.sqnr_db) for row in layers]
    turns = {block: turn % len(COLOURS) for turn, block in enumerate(dict.fromkeys(row.block for row in layers))}
    places = np.arange(len(layers))
    axes.barh(places, values, 0.72, color=[COLOURS[turns[row.block]] for row in layers])
    unit = max(map(abs, values)) or 1.0
    for place, value, row in zip(places, values, layers, strict=True):
        label = f"{row.sqnr_db:.1f} dB" if row.drop is None else f"{row.drop:+.2f}, {row.sqnr_db:.1f} dB"
        axes.text(max(value, 0.0) + 0.01 * unit, place, label, va="center", fontsize=7)
    axes.set_yticks(places, [drawable(row.path) for row in layers], fontsize=7, family="monospace")
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlim(1.05 * min([0.0, *values]), max([0.0, *values]) + 0.2 * unit)
    for index in range(1, len(layers)):
        if layers[index].block != layers[index - 1].block:
            axes.axhline(index - 0.5, color="0.8", linewidth=0.6, zorder=0)
    axes.set_xlabel("points of the metric lost" if measured else "noise of the worst output, % of its RMS", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    left_out = sum(row.treatment != "float" for row in report.layers) - len(layers)
    more = f", the {len(layers)} most harmful" if left_out else ""
    title = f"Only this layer quantized ({layers[0].treatment}){more}; all together {report.whole.sqnr_db:.1f} dB"
    axes.set_title(title, fontsize=9, loc="left")


def _draw_heads(figure: Any, axes: Any, rows: Sequence[str], drift: np.ndarray) -> None:
    largest = max(float(np.nanmax(drift)), float(np.finfo(np.float32).tiny))  # a map of zeros alone has a scale too
    image = axes.imshow(drift, aspect="auto", cmap="Blues", vmin=0.0, vmax=largest, interpolation="nearest")
    axes.set_yticks(np.arange(len(rows)), [drawable(row) for row in rows], fontsize=7, family="monospace")
    axes.set_xticks(np.arange(drift.shape[1])[:: 1 + drift.shape[1] // 32])
    axes.tick_params(axis="x", labelsize=7)
    axes.set_xlabel("head", fontsize=8)
    axes.set_title(
        "Drift of the attention maps with all layers quantized: Jensen-Shannon divergence, bits", fontsize=9, loc="left"
    )
    if drift.shape[1] <= MAX_NUMBERED:
        for (row, head), value in np.ndenumerate(drift):
            if np.isfinite(value):
                ink = "white" if value > 0.6 * largest else "black"
                axes.text(head, row, f"{value:.2g}", ha="center", va="center", fontsize=6, color=ink)
    bar = figure.colorbar(image, ax=axes, pad=0.01)
    bar.ax.tick_params(labelsize=7)
    bar.ax.yaxis.get_offset_text().set_fontsize(7)
