"""Options that several commands take, and the units that they are written in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "": 1.0}
UNITS_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def milliseconds(text: str) -> float:
    """``40ms``, ``0.04s`` or ``40`` (milliseconds) -> 40.0."""
    return _quantity(text, UNITS_MS, "a time such as 40ms or 0.3s")


def size_bytes(text: str) -> int:
    """``4MB``, ``4MiB`` or ``4000000`` -> bytes."""
    return int(_quantity(text, UNITS_BYTES, "a size such as 4MB or 900KiB"))


def _quantity(text: str, units: dict[str, float] | dict[str, int], expected: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text))
    if match is None or match[2].lower() not in units or float(match[1]) <= 0:
        raise typer.BadParameter(f"expected {expected}, got {text!r}")
    return float(match[1]) * units[match[2].lower()]


Json = Annotated[bool, typer.Option("--json", help="One machine-readable object on stdout; logs on stderr.")]
Threads = Annotated[int, typer.Option(min=1, help="Compute threads of the engine.")]
Backend = Annotated[str | None, typer.Option(help="Engine to run on, if not the bundle's own.")]
Bundle = Annotated[Path, typer.Argument(help="A NAME.TARGET.edge directory or zip.", show_default=False)]
Data = Annotated[
    Path | None,
    typer.Option(help="Recordings with transcripts.tsv, or an npz, to calibrate and measure on.", show_default=False),
]
Split = Annotated[str | None, typer.Option(help="Split of the data that the metric is measured on.")]
Samples = Annotated[int, typer.Option(min=1, help="At most so many samples to measure on.")]
Buckets = Annotated[
    list[str],
    typer.Option(
        "--bucket",
        metavar="NAME=SIZE,SIZE",
        help="Sizes of an axis that varies, e.g. seq=64,128,256, or of named axes, ids.1+mask.1=64; may be repeated.",
    ),
]
Fills = Annotated[
    list[str],
    typer.Option("--fill", metavar="INPUT=VALUE", help="What padded positions of an input hold, if not 0."),
]
Deadline = Annotated[
    float | None,
    typer.Option(parser=milliseconds, metavar="TIME", help="Per chunk or call, e.g. 40ms. Default: a stream's hop."),
]
MaxDrop = Annotated[float, typer.Option(min=0.0, help="Points of the metric that may be lost against the source.")]
MaxSize = Annotated[int | None, typer.Option(parser=size_bytes, metavar="SIZE", help="Of the bundle, e.g. 4MB.")]
PacedSeconds = Annotated[float, typer.Option(min=0.0, help="Audio seconds to stream in real time; 0 for none.")]
