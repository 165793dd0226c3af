"""Importance as a picture: what every head, neuron and layer is worth, and what was removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.errors import load_extra
from edgeattn.pruning import Cut, Importance
from edgeattn.results.pictures import check_picture, drawable, save_picture

WIDTH, CURVES, MARGIN, BAR = 9.0, 3.1, 0.9, 0.22  # inches: of the picture, of a panel of curves, of titles, of a bar
MOST_NAMED = 16  # curves with a legend; of more a colour bar tells the depth
GONE = "0.72"  # grey of what was removed
LEAST_SHARE = 1e-6  # of the largest score, that the axis goes down to
TITLES = {"attention": "Heads", "feedforward": "Neurons"}


def importance_figure(importance: Importance, cut: Cut, path: Path) -> None:
    """Draw a curve of sorted scores for every unit and a bar for every layer, and replace ``path`` by the picture.

    What stays is coloured from the first unit to the last, what is removed is grey. Scores are on a logarithmic axis.

    Args:
        path: ``.png`` or ``.svg``.

    Raises:
        InputError: for another suffix.
        MissingExtraError: without matplotlib.
        OutputError: if it cannot be written.
    """
    check_picture(path)
    figures = load_extra("matplotlib.figure", "report")
    panels = {
        kind: {key: scores for key, scores in importance.scores.items() if key.startswith(f"{kind}:")}
        for kind in TITLES
    }
    shown = {kind: own for kind, own in panels.items() if own}
    layers = layer_rows(importance, cut)
    heights = [MARGIN + CURVES for _ in shown] + ([MARGIN + BAR * max(3, len(layers))] if layers else [])
    figure = figures.Figure(figsize=(WIDTH, max(sum(heights), MARGIN)), layout="constrained")
    if heights:
        places = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        for axes, (kind, own) in zip(places, shown.items(), strict=False):
            _draw_curves(figure, axes, kind, own, cut)
        if layers:
            _draw_layers(places[-1], layers)
    save_picture(figure, path)


def stays(key: str, groups: int, cut: Cut) -> np.ndarray:
    """Which groups of a unit a cut leaves, bool (groups,); none of a layer that is left out."""
    path = key.partition(":")[2]
    for stack, kept in cut.layers.items():
        number = path.removeprefix(f"{stack}.").partition(".")[0]
        if path.startswith(f"{stack}.") and number.isdigit() and int(number) not in kept:
            return np.zeros(groups, bool)
    mask = np.zeros(groups, bool)
    mask[list(cut.groups.get(key, range(groups)))] = True
    return mask


def layer_rows(importance: Importance, cut: Cut) -> list[tuple[str, float, bool]]:
    """Path, measured rise and whether it stays, of every layer."""
    return [
        (f"{path}.{number}", float(rise), number in cut.layers.get(path, range(len(rises))))
        for path, rises in importance.layers.items()
        for number, rise in enumerate(rises)
    ]


def _draw_curves(figure: Any, axes: Any, kind: str, scores: Mapping[str, np.ndarray], cut: Cut) -> None:
    colormaps = load_extra("matplotlib", "report").colormaps
    colours = colormaps["viridis"](np.linspace(0.0, 0.9, len(scores)))
    largest = max(float(own.max(initial=0.0)) for own in scores.values()) or 1.0
    few = kind == "attention"
    kept_all = total = 0
    for colour, (key, own) in zip(colours, scores.items(), strict=True):
        order = np.argsort(-own, kind="stable")
        kept = stays(key, len(own), cut)[order]
        kept_all, total = kept_all + int(kept.sum()), total + len(own)
        heights = np.maximum(own[order], LEAST_SHARE * largest)
        places = np.arange(1, len(own) + 1) if few else 100.0 * np.arange(1, len(own) + 1) / len(own)
        axes.plot(places, heights, color=GONE, linewidth=0.8, zorder=1)
        name = f"{drawable(key.partition(':')[2])}  {int(kept.sum())} of {len(own)}"
        axes.plot(places, np.where(kept, heights, np.nan), color=colour, linewidth=1.6, zorder=2, label=name)
        size = 22.0 if few else 5.0
        axes.scatter(places[kept], heights[kept], s=size, color=[colour], linewidths=0, zorder=4)
        axes.scatter(places[~kept], heights[~kept], s=size, color=GONE, linewidths=0, zorder=3)
    axes.set_yscale("log")
    smallest = min(float(own.min(initial=largest)) for own in scores.values())
    axes.set_ylim(0.5 * max(smallest, LEAST_SHARE * largest), 2.0 * largest)
    axes.set_xlabel("heads, the most important first" if few else "neurons, the most important first, %", fontsize=8)
    axes.set_ylabel("foreseen rise of the loss", fontsize=8)
    axes.tick_params(labelsize=7)
    if few:
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92", linewidth=0.6)
    axes.set_title(f"{TITLES[kind]}: {kept_all} of {total} stay; removed ones are grey", fontsize=9, loc="left")
    _name_curves(figure, axes, len(scores))


def _name_curves(figure: Any, axes: Any, count: int) -> None:
    if count <= MOST_NAMED:
        font = {"size": 6.5, "family": "monospace"}
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, prop=font)
        return
    matplotlib = load_extra("matplotlib", "report")
    cm, colors = load_extra("matplotlib.cm", "report"), load_extra("matplotlib.colors", "report")
    palette = colors.ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, count)))
    bar = figure.colorbar(cm.ScalarMappable(colors.Normalize(0, count), palette), ax=axes, pad=0.01)
    bar.set_ticks([0.5, count - 0.5], labels=["first", "last"], fontsize=7)


def _draw_layers(axes: Any, rows: Sequence[tuple[str, float, bool]]) -> None:
    places = np.arange(len(rows))
    rises = [rise if np.isfinite(rise) else 0.0 for _, rise, _ in rows]
    axes.barh(places, rises, 0.72, color=["#0072b2" if kept else GONE for _, _, kept in rows])
    unit = max(map(abs, rises)) or 1.0
    for place, (_, rise, kept) in enumerate(rows):
        text = "must stay" if not np.isfinite(rise) else f"{rise:.3g}{'' if kept else ', left out'}"
        axes.text(max(rises[place], 0.0) + 0.01 * unit, place, text, va="center", fontsize=7)
    axes.set_yticks(places, [drawable(path) for path, _, _ in rows], fontsize=7, family="monospace")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(1.05 * min([0.0, *rises]), unit * 1.15)
    axes.set_xlabel("measured rise of the loss without the layer", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    left = sum(kept for _, _, kept in rows)
    axes.set_title(f"Layers: {left} of {len(rows)} stay", fontsize=9, loc="left")
