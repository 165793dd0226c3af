"""Measures what docs/support.md says: every architecture of the catalogue, from every kind of source, on every engine.

    python -m benchmarks.support [--only NAME ...] [--resume]

Writes docs/support.json, one object per cell, and docs/support.md, the table made of it. ``--resume`` keeps the cells
that are there if the tools are the same, so that a run may be interrupted; ``--only`` replaces those of some
architectures. The cells are those that tests/acceptance holds to their bounds.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import platform
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
FIGURES, TABLE = DOCS / "support.json", DOCS / "support.md"
TOOLS = (
    *("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "litert-torch"),
    *("ai-edge-litert", "ai-edge-quantizer", "tensorrt-rtx"),
)
ENGINE_NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "litert": "LiteRT", "tensorrt": "TensorRT"}
HEAD = """\
# What is supported

Small models with random weights from `tests/architectures.py`, converted from each kind of source and run by the
runtime that ships; the oracle is the model's own torch module. Any other attention model takes the same way: nothing in
edgeattn depends on a name in these tables. The classes of transformers are tried in the same way: [sweep](sweep.md).

A cell reads **fp32 / fp16 / int8**. fp32: the largest difference to the source, relative to the largest value where
that is above 1 (bound: 1e-4). fp16 and int8: signal to quantization noise in dB (bound of fp16: 50 dB; int8 has none,
since random weights say nothing of it). Each figure is the worst over the outputs and over the sources of the row, of
five calls. TensorRT: its ONNX file was run by ONNX Runtime, and its builder (`tensorrt_rtx`) took the file. A dash:
refused, with the reason below.

Sources: *torch* is a Python factory, *pt2* a `torch.export` program, *onnx* a file that torch wrote, *directory* a
saved Hugging Face directory (encoder-decoders become an encoder and a decoder step there).

Printed by `python -m benchmarks.support` with {versions}.
"""


@dataclass(frozen=True)
class Cell:
    """One figure, or why there is none.

    Attributes:
        share: largest absolute difference, relative to the oracle's largest value where that is above 1.
        built: whether TensorRT's builder took the file; None on other engines and where it is not installed.
        refused: the error; empty if it ran.
    """

    architecture: str
    source: str
    engine: str
    precision: str
    share: float | None
    sqnr_db: float | None
    built: bool | None
    refused: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.architecture, self.source, self.engine, self.precision


def versions() -> dict[str, str]:
    """Of the tools that the figures depend on."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for tool in TOOLS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[tool] = importlib.metadata.version(tool).partition("+")[0]
    return found


def measure(name: str, source: Any) -> list[Cell]:
    """All cells of an architecture from one kind of source."""
    from edgeattn.errors import EdgeattnError
    from tests.acceptance.cells import ENGINES, PRECISIONS, Loaded
    from tests.architectures import named

    cells = []
    with tempfile.TemporaryDirectory() as directory:
        try:
            loaded = Loaded(named(name), source, Path(directory))
        except EdgeattnError as error:
            reason = shortened(str(error), directory)
            return [Cell(name, source, e, p, None, None, None, reason) for e in ENGINES for p in PRECISIONS]
        for engine in ENGINES:
            for precision in PRECISIONS:
                try:
                    figures = loaded.measure(engine, precision)
                except EdgeattnError as error:
                    reason = shortened(str(error), directory)
                    cells.append(Cell(name, source, engine, precision, None, None, None, reason))
                    continue
                share = float(f"{figures.max_abs / figures.scale:.1e}")
                cells.append(Cell(name, source, engine, precision, share, round(figures.sqnr_db, 1), figures.built))
    return cells


def shortened(message: str, directory: str) -> str:
    """A refusal without the paths of this run."""
    return " ".join(message.replace(f"{directory}/", "").split())[:300]


def render(cells: Sequence[Cell], tools: dict[str, str]) -> str:
    """The document."""
    from tests.architectures import FURTHER, NAMED

    parts = [HEAD.format(versions=", ".join(f"{tool} {version}" for tool, version in tools.items()))]
    for title, architectures in (("The usual ones", NAMED), ("Others", FURTHER)):
        heads = ["architecture", "reads", "sources", *ENGINE_NAMES.values()]
        parts += [f"\n## {title}\n", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        for architecture in architectures:
            own = [cell for cell in cells if cell.architecture == architecture.name]
            sources = ", ".join(dict.fromkeys(cell.source for cell in own)) or "not measured"
            columns = [_column([cell for cell in own if cell.engine == engine]) for engine in ENGINE_NAMES]
            parts.append(f"| {' | '.join([architecture.name, architecture.kind, sources, *columns])} |")
    refused = [cell for cell in cells if cell.refused]
    if refused:
        parts += ["\n## Refused\n", *_refusals(refused)]
    return "\n".join(parts) + "\n"


def _column(cells: Iterable[Cell]) -> str:
    """Worst figures of an engine as ``2e-07 / 71 / 38``."""
    ran = {p: [c for c in cells if c.precision == p and not c.refused] for p in ("fp32", "fp16", "int8")}
    share = max((c.share for c in ran["fp32"] if c.share is not None), default=None)
    ratios = [min((c.sqnr_db for c in ran[p] if c.sqnr_db is not None), default=None) for p in ("fp16", "int8")]
    return " / ".join(["-" if share is None else f"{share:.0e}", *("-" if r is None else f"{r:.0f}" for r in ratios)])


def _refusals(cells: Sequence[Cell]) -> list[str]:
    """One line per reason, with all that it stops."""
    grouped: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        grouped.setdefault((cell.architecture, cell.refused), []).append(cell)
    lines = []
    for (architecture, reason), stopped in grouped.items():
        engines = ", ".join(dict.fromkeys(ENGINE_NAMES[cell.engine] for cell in stopped))
        sources = ", ".join(dict.fromkeys(cell.source for cell in stopped))
        precisions = ", ".join(dict.fromkeys(cell.precision for cell in stopped))
        lines.append(f"- {architecture} from {sources}, {engines} {precisions}: {reason}")
    return lines


def read(path: Path) -> tuple[dict[str, str], list[Cell]]:
    """The tools' versions and the cells of a run."""
    stored = json.loads(path.read_text())
    return stored["versions"], [Cell(**cell) for cell in stored["cells"]]


def write(cells: Sequence[Cell], tools: dict[str, str]) -> None:
    """Both files. A cell stands on one line, so that a change of figures reads well as a diff."""
    lines = ",\n".join(json.dumps(asdict(cell), ensure_ascii=False) for cell in cells)
    FIGURES.write_text(f'{{"versions": {json.dumps(tools)}, "cells": [\n{lines}\n]}}\n')
    TABLE.write_text(render(cells, tools))


def main() -> None:
    import torch

    from tests.acceptance.cells import sources_of
    from tests.architectures import FURTHER, NAMED

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", default=[], help="an architecture; the others stay as they are")
    parser.add_argument("--resume", action="store_true", help="measure only what is missing")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    tools = versions()
    kept: dict[tuple[str, str, str, str], Cell] = {}
    if (chosen.resume or chosen.only) and FIGURES.exists():
        before, cells = read(FIGURES)
        if before == tools:
            kept = {cell.key: cell for cell in cells}
    first: list[tuple[str, str]] = [(a.name, source) for a in NAMED for source in sources_of(a)]
    wanted = [*first, *((a.name, "torch") for a in FURTHER)]
    order = {pair: index for index, pair in enumerate(wanted)}
    kept = {key: cell for key, cell in kept.items() if key[:2] in order}
    for name, source in wanted:
        there = any(key[:2] == (name, source) for key in kept)
        if (chosen.only and name not in chosen.only) or (chosen.resume and there):
            continue
        print(f"{name} from {source}", flush=True)
        kept |= {cell.key: cell for cell in measure(name, source)}
        write(sorted(kept.values(), key=lambda cell: order[cell.architecture, cell.source]), tools)


if __name__ == "__main__":
    main()
