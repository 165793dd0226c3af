"""The picture of docs/architecture.md, drawn from the import graph: ``python -m tests.import_graph``.

One band per layer of pyproject.toml, one box per room, one line per pair of rooms of which one imports the other. What
runs on a device is filled.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import grimp

from tests.imports import PACKAGE, project
from tests.wheels import ROOT

PICTURE = ROOT / "docs" / "architecture.svg"
WIDTH, BAND, BOX, GAP, MARGIN = 960, 96, 46, 10, 16
CAPTION = "Imports point down. Blue: what runs on a device, with numpy and one engine."


@dataclass(frozen=True, kw_only=True)
class Box:
    """A room, with the left upper corner and the width of its box in pixels."""

    name: str
    left: float
    top: float
    width: float

    @property
    def middle(self) -> float:
        """Of its width."""
        return self.left + self.width / 2


def contracts() -> Mapping[str, Mapping[str, Any]]:
    """The contracts of import-linter, by id."""
    return {one["id"]: one for one in project()["tool"]["importlinter"]["contracts"]}


def layers() -> list[list[str]]:
    """Names of the rooms of every layer, the highest first."""
    return [re.split(r"\s*[|:]\s*", layer) for layer in contracts()["layers"]["layers"]]


def imports() -> Counter[tuple[str, str]]:
    """(importing room, imported room) -> in how many pairs of modules."""
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)
    edges: Counter[tuple[str, str]] = Counter()
    for module in graph.modules - {PACKAGE}:
        for imported in graph.find_modules_directly_imported_by(module) - {PACKAGE}:
            pair = module.split(".")[1], imported.split(".")[1]
            edges[pair] += pair[0] != pair[1] and "__main__" not in pair
    return +edges


def boxes(rows: Sequence[Sequence[str]]) -> dict[str, Box]:
    """Where each room is drawn: the rooms of a layer share its width."""
    placed = {}
    for number, row in enumerate(rows):
        width = (WIDTH - 2 * MARGIN - GAP * (len(row) - 1)) / len(row)
        for index, name in enumerate(row):
            left = MARGIN + index * (width + GAP)
            placed[name] = Box(name=name, left=left, top=MARGIN + number * BAND, width=width)
    return placed


def size_of(room: str) -> str:
    """``12 files``, or nothing for a room that is one file."""
    folder = ROOT / PACKAGE / room
    files = sum(1 for _ in folder.resolve().rglob("*.py")) if folder.is_dir() else 0
    return f"{files} files" if files else ""


def line(start: Box, end: Box, count: int, layer: Mapping[str, int]) -> str:
    """From the lower edge of a box to the upper edge of another; beside each other, an arc below both."""
    x1, x2 = round(start.middle, 1), round(end.middle, 1)
    y1 = start.top + BOX
    y2 = end.top if layer[end.name] > layer[start.name] else end.top + BOX
    bend = (y2 - y1) / 2 if y2 > y1 else 24
    strength = 0.2 if count < 3 else 0.4 if count < 10 else 0.7
    way = f"M{x1} {y1} C{x1} {y1 + bend} {x2} {y2 - bend if y2 > y1 else y2 + bend} {x2} {y2}"
    return f'<path d="{way}" stroke-opacity="{strength:.2f}"/>'


def picture() -> str:
    """The whole SVG; the same bytes for the same imports."""
    rows = layers()
    placed = boxes(rows)
    layer = {name: number for number, row in enumerate(rows) for name in row}
    device = {module.split(".")[1] for module in contracts()["device"]["source_modules"]}
    height = 2 * MARGIN + BAND * (len(rows) - 1) + BOX + 30
    lines = [line(placed[a], placed[b], count, layer) for (a, b), count in sorted(imports().items())]
    drawn = []
    for box in placed.values():
        fill = "#dbeafe" if box.name in device else "#ffffff"
        size, small = size_of(box.name), box.width < 110
        text = box.top + (20 if size else 28)
        drawn += [
            f'<rect x="{box.left:.1f}" y="{box.top}" width="{box.width:.1f}" height="{BOX}" rx="6" fill="{fill}"/>',
            f'<text x="{box.middle:.1f}" y="{text}" font-size="{13 if small else 15}">{escape(box.name)}</text>',
            *[f'<text x="{box.middle:.1f}" y="{box.top + 37}" font-size="11">{size}</text>'] * bool(size),
        ]
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
            f'<rect width="{WIDTH}" height="{height}" fill="#f8fafc"/>',
            '<g fill="none" stroke="#475569" stroke-width="1.2">', *lines, "</g>",
            '<g stroke="#1e3a8a" stroke-width="1">', *(d for d in drawn if d.startswith("<rect")), "</g>",
            '<g text-anchor="middle" fill="#0f172a">', *(d for d in drawn if d.startswith("<text")), "</g>",
            f'<text x="{MARGIN}" y="{height - 10}" font-size="11" fill="#0f172a">{CAPTION}</text>',
            "</svg>",
        )
    ) + "\n"  # fmt: skip


def circles() -> list[str]:
    """Pairs of modules that import each other, at once or over others, as chains."""
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)
    found = []
    for module in sorted(graph.modules):
        for imported in sorted(graph.find_modules_directly_imported_by(module)):
            chain = graph.find_shortest_chain(importer=imported, imported=module)
            if chain is not None:
                found.append(" -> ".join((module, *chain)))
    return found


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
