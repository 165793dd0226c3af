"""How fast the tool itself is, as ratios within one run and bounds on one conversion.

    python benchmarks/tool_speed.py [--data DIR] [--skip-convert]

Start-up is compared pair by pair, A B A B, so that a slow moment of the machine meets both sides.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time

PAIRS = 15
BARE = """
import typer
from rich.console import Console
app = typer.Typer()
@app.command()
def one(x: int = 1) -> None: "First."
@app.command()
def two(x: int = 1) -> None: "Second."
app()
"""
HELP = "import sys; sys.argv = ['edgeattn', '--help']; from edgeattn.cli import main; main()"


def seconds(code: str, *arguments: str) -> float:
    """Wall time of a fresh interpreter that runs ``code``."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def ratio(ours: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[float, float, float]:
    """Median seconds of both and the median of the ratios, pair by pair, after one warm-up each."""
    seconds(*ours), seconds(*theirs)
    pairs = [(seconds(*ours), seconds(*theirs)) for _ in range(PAIRS)]
    a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
    return a, b, statistics.median(x / y for x, y in pairs)


def convert(data: str | None) -> tuple[float, float]:
    """Seconds and peak resident gigabytes of the default convert for one target."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-c", "from edgeattn.cli import main; main()", "convert", "--out", out]
        began = time.perf_counter()
        subprocess.run([*command, *(["--data", data] if data else [])], check=True, capture_output=True)
        taken = time.perf_counter() - began
    return taken, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="as for edgeattn convert")
    parser.add_argument("--skip-convert", action="store_true")
    arguments = parser.parse_args()
    rows = []
    ours, bare, times = ratio((HELP,), (BARE, "--help"))
    rows.append(
        ("edgeattn --help / bare Typer + rich", f"{ours:.3f} s / {bare:.3f} s = {times:.2f}", "<= 2.00", times <= 2)
    )
    ours, bare, times = ratio(("import edgeattn.runtimes",), ("import numpy",))
    rows.append(
        ("import edgeattn.runtimes / numpy", f"{ours:.3f} s / {bare:.3f} s = {times:.2f}", "<= 1.30", times <= 1.3)
    )
    if not arguments.skip_convert:
        taken, peak = convert(arguments.data)
        rows.append(("default convert, one target", f"{taken:.1f} s", "<= 90 s", taken <= 90))
        rows.append(("default convert, peak memory", f"{peak:.2f} GB", "<= 2.50 GB", peak <= 2.5))
    for name, value, bound, met in rows:
        sys.stdout.write(f"{name:40s} {value:28s} {bound:12s} {'met' if met else 'MISSED'}\n")


if __name__ == "__main__":
    main()
