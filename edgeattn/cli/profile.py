"""``edgeattn profile``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeattn.cli import options as o
from edgeattn.cli.console import console, exit_codes, note, print_json, print_table
from edgeattn.errors import DeviceError

if TYPE_CHECKING:
    from edgeattn.profiling.figures import Board
    from edgeattn.report import Result


def profile(
    bundle: o.Bundle,
    runs: Annotated[int, typer.Option(min=1, help="Timed calls.")] = 300,
    deadline: o.Deadline = None,
    threads: o.Threads = 1,
    backend: o.Backend = None,
    paced_seconds: o.PacedSeconds = 5.0,
    layers: Annotated[bool, typer.Option("--layers", help="Time per layer, where the engine tells.")] = False,
    power_mode: o.PowerMode = None,
    lock_clocks: o.LockClocks = False,
    device: o.Devices = ["local"],  # noqa: B006
    benchmark_binary: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="LiteRT's benchmark_model, built for the phone: measures TFLite bundles on adb: without Python.",
        ),
    ] = None,
    target: Annotated[
        list[str],
        typer.Option(help="Estimate for a device that is not here: a target's name or file; may be repeated."),
    ] = [],  # noqa: B006
    as_json: o.Json = False,
) -> None:
    """Measure a bundle here or on devices: latency, real time, memory, layers; with --target estimate it."""
    with exit_codes(as_json):
        from edgeattn.checking import profile as run
        from edgeattn.profiling.measure import MeasureOptions

        if target:
            estimate(bundle, target, device, threads, as_json)
            return
        settings = MeasureOptions(
            runs=runs,
            deadline_ms=deadline,
            paced_seconds=paced_seconds,
            threads=threads,
            layers=layers,
            power_mode=power_mode,
            lock_clocks=lock_clocks,
        )
        report = run(bundle, settings, backend, device, benchmark_binary)
        if as_json:
            print_json(report.to_json())
        else:
            print_table(report)
            for result in report.results:
                _tell(result, layers)
        if not report.passed:  # a device of several; of one alone it is an error
            raise typer.Exit(DeviceError.exit_code)


def estimate(bundle: Path, targets: Sequence[str], device: Sequence[str], threads: int, as_json: bool) -> None:
    """Print what a bundle would take on targets.

    Raises:
        InputError: if a device is given as well, which would be measured.
    """
    from edgeattn.checking import estimated
    from edgeattn.cli.loading import chosen_targets
    from edgeattn.errors import InputError

    if list(device) != ["local"]:
        raise InputError("--target estimates for a device that is not here and --device measures one: leave one out")
    report = estimated(bundle, chosen_targets(targets), threads)
    if as_json:
        print_json(report.to_json())
        return
    print_table(report)
    for result in report.results:
        assert result.estimate is not None, "that is what was asked for"
        slowest = result.estimate["ops"][0]["figures"]
        shares = ", ".join(f"{what} {100 * part:.0f} %" for what, part in result.estimate["bound_by"].items() if part)
        note(f"{result.target}: bound by {shares}; slowest operation {slowest['type']} {slowest['name']}")


def _tell(result: Result, layers: bool) -> None:
    if result.benchmark is not None:
        figures = {key: value for key, value in result.benchmark.items() if value is not None}
        note(", ".join(f"{key} {value:.6g}" for key, value in figures.items() if not isinstance(value, str)))
    latency, memory = result.latency, result.memory
    if latency is not None and memory is not None:
        rss = "unknown" if memory.rss_bytes is None else f"{memory.rss_bytes / 1e6:.0f} MB"
        note(
            f"load {latency.load_ms:.0f} ms, first call {latency.warmup_ms:.1f} ms, {latency.runs} runs on "
            f"{latency.threads} thread(s), processors {', '.join(map(str, latency.affinity))}; "
            f"peak memory {rss}, weights {memory.weights_bytes / 1e6:.2f} MB, "
            f"state {memory.state_bytes / 1e3:.1f} kB per stream"
        )
        if latency.device_clock is not None:
            clock = latency.device_clock
            engine = "" if memory.engine_bytes is None else f"; the engine takes {memory.engine_bytes / 1e6:.1f} MB"
            note(f"by the GPU's own clock p50 {clock.p50_ms:.3f} ms, p99 {clock.p99_ms:.3f} ms{engine}")
        if result.board is not None:
            note(_board_words(result.board))
        if layers and latency.layers is None:
            note(f"{result.backend} tells no time per layer")
        for layer in latency.layers or ():
            console().print(f"{layer['microseconds']:10.1f} us  {layer['type']}  {layer['name']}", highlight=False)


def _board_words(board: Board) -> str:
    mode = "power mode unknown" if board.power_mode is None else f"power mode {board.power_mode}"
    clocks = [
        f"{name} {clock.now_mhz:.0f} MHz (to {clock.max_mhz:.0f})"
        if clock.max_mhz
        else f"{name} {clock.now_mhz:.0f} MHz"
        for name, clock in board.clocks.items()
        if clock.now_mhz is not None
    ]
    return ", ".join([mode, *clocks, *["clocks locked"] * board.locked])
