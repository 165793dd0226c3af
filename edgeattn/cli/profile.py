"""``edgeattn profile``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeattn.cli import options as o
from edgeattn.cli.console import console, exit_codes, leave, note, print_json, print_table, progress_bar
from edgeattn.cli.loading import Inputs, typed
from edgeattn.errors import DeviceError, InputError, UnsupportedError
from edgeattn.models import DEFAULT, MODELS

if TYPE_CHECKING:
    from edgeattn.profiling.figures import Board, Writing
    from edgeattn.profiling.measure import MeasureOptions
    from edgeattn.results.report import Report, Result

RUNS = 300


def profile(
    context: typer.Context,
    bundle: Annotated[
        str | None,
        typer.Argument(
            metavar="[BUNDLE|MODEL]",
            help="A NAME.TARGET.edge directory or zip, or a MODEL as for convert, which is converted for this alone; "
            f"without one, {DEFAULT}.",
            show_default=False,
        ),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Timed calls; without it {RUNS}, or as many as 10 s have room for.",
            rich_help_panel=o.MEASUREMENT,
        ),
    ] = None,
    deadline: o.Deadline = None,
    threads: o.Threads = 1,
    backend: o.Backend = None,
    duration: o.Duration = "5s",  # type: ignore[assignment]  # parsed by typer
    layers: Annotated[
        bool,
        typer.Option("--layers", help="Time per layer, where the engine tells.", rich_help_panel=o.MEASUREMENT),
    ] = False,
    power_mode: o.PowerMode = None,
    lock_clocks: o.LockClocks = False,
    device: o.Devices = [],  # noqa: B006
    benchmark_binary: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="LiteRT's benchmark_model, built for the phone: measures TFLite bundles on adb: without Python.",
        ),
    ] = None,
    target: Annotated[
        list[str],
        typer.Option(
            "--target",
            "-t",
            metavar="NAME",
            autocompletion=o.complete_target,
            help="A target's name or file; may be repeated. A bundle is estimated for it; a MODEL is converted for it "
            "and measured on its device, where --device or edgeattn.toml names one, else estimated.",
        ),
    ] = [],  # noqa: B006
    bucket: o.Buckets = [],  # noqa: B006
    fill: o.Fills = [],  # noqa: B006
    bound: o.Bound = [],  # noqa: B006
    as_json: o.Json = False,
) -> None:
    """Measure a bundle or a model, here or on devices, or estimate it: latency, real time, memory.

    A MODEL is converted to float32 for this alone.
    """
    with exit_codes(as_json):
        from edgeattn.bundle import names_bundle
        from edgeattn.profiling.measure import MeasureOptions

        settings = MeasureOptions(
            runs=runs or RUNS,
            most_seconds=0.0 if runs else MeasureOptions.most_seconds,
            deadline_ms=deadline,
            paced_seconds=duration,
            threads=threads,
            layers=layers,
            power_mode=power_mode,
            lock_clocks=lock_clocks,
        )
        if bundle is None or not names_bundle(bundle):
            inputs = Inputs(bundle or DEFAULT, bucket, fill, None, None, 1, 0, bound)
            if bundle is None:
                note(f"no BUNDLE or MODEL given: {DEFAULT}, {MODELS[DEFAULT].description}")
            report = of_model(inputs, target, device, settings, backend, benchmark_binary, typed(context))
        elif bucket or fill or bound:
            raise InputError(f"--bucket, --fill and --set are for a MODEL; the sizes of {bundle} are fixed")
        elif target:
            report = of_estimate(Path(bundle), target, device, settings, typed(context))
        else:
            report = of_bundle(Path(bundle), device, settings, backend, benchmark_binary, typed(context))
        if as_json:
            print_json(report.to_json())
        else:
            print_table(report)
            for result in report.results:
                _tell(result, layers)
        gates = {failure.gate for result in report.results for failure in result.failures}
        if gates & {"device", "target"}:  # one of several; of one alone it is an error
            raise typer.Exit((DeviceError if "device" in gates else UnsupportedError).exit_code)
        leave(report)


def of_bundle(
    bundle: Path,
    devices: Sequence[str],
    settings: MeasureOptions,
    backend: str | None,
    benchmark: Path | None,
    flags: frozenset[str],
) -> Report:
    """A bundle measured: on the devices given, else on those of its target in edgeattn.toml, else here."""
    from edgeattn.bundle import read_manifest
    from edgeattn.cli.loading import deadline_for, devices_of
    from edgeattn.pipeline.profile import profile as run

    target = read_manifest(bundle).target
    chosen = devices or devices_of(target)
    if benchmark is None and not any(device.startswith("qemu:") for device in chosen):  # where deadlines are refused
        settings = replace(settings, deadline_ms=deadline_for(target, settings.deadline_ms, flags))
    return run(bundle, settings, backend, chosen, benchmark)


def of_estimate(
    bundle: Path, targets: Sequence[str], devices: Sequence[str], settings: MeasureOptions, flags: frozenset[str]
) -> Report:
    """What a bundle would take on targets.

    Raises:
        InputError: if a device is given as well, which would be measured.
    """
    from edgeattn.cli.loading import chosen_targets, deadline_for
    from edgeattn.pipeline.profile import estimated

    if devices:
        raise InputError(
            "--target estimates a bundle for a device that is not here and --device measures one: leave one out"
        )
    chosen = chosen_targets(targets)
    deadlines = {each.name: deadline_for(each.name, settings.deadline_ms, flags) for each in chosen}
    return estimated(bundle, chosen, settings.threads, deadlines)


def of_model(
    inputs: Inputs,
    targets: Sequence[str],
    devices: Sequence[str],
    settings: MeasureOptions,
    backend: str | None,
    benchmark: Path | None,
    flags: frozenset[str],
) -> Report:
    """A model that is no bundle yet, for each target: measured on its devices, else estimated.

    Raises:
        InputError: for devices given beside several targets, which would not say which is of which.
    """
    from edgeattn.cli.loading import chosen_targets, deadline_for, devices_of, in_sizes
    from edgeattn.pipeline.profile import ProfileOptions, profile_model

    chosen = chosen_targets(targets or ["cpu"])
    if devices and len(chosen) > 1:
        raise InputError(
            "--device beside several --target does not say whose it is: give one target, or name the devices in "
            'edgeattn.toml, as [targets.jetson] device = "ssh://board"'
        )
    there = {target.name: tuple(devices) or devices_of(target.name) for target in chosen}
    deadlines = {
        target.name: found
        for target in chosen
        if benchmark is None and (found := deadline_for(target.name, settings.deadline_ms, flags)) is not None
    }
    named = {name: found for name, found in there.items() if found}
    options = ProfileOptions(settings, named, backend, benchmark, deadlines)
    with progress_bar() as bar:
        return in_sizes(
            inputs, chosen, flags, bar, lambda model, _, members: profile_model(model, members, options, bar)
        )


def _tell(result: Result, layers: bool) -> None:
    if result.estimate is not None:
        slowest = result.estimate["ops"][0]["figures"]
        shares = ", ".join(f"{what} {100 * part:.0f} %" for what, part in result.estimate["bound_by"].items() if part)
        note(f"{result.target}: bound by {shares}; slowest operation {slowest['type']} {slowest['name']}")
        needs, fits = result.estimate["needs_bytes"], result.estimate["fits"]
        if needs is not None:
            room = {True: "which fits its memory", False: "MORE THAN ITS MEMORY"}.get(fits, "of a memory nobody tells")
            note(f"{result.target}: needs {needs / 1e6:.3g} MB, {room}; the engine's own is not in it")
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
        if latency.writing is not None:
            note(_writing_words(latency.writing))
        if latency.device_clock is not None:
            clock = latency.device_clock
            engine = "" if memory.engine_bytes is None else f"; the engine takes {memory.engine_bytes / 1e6:.1f} MB"
            note(f"by the GPU's own clock p50 {clock.p50_ms:.3f} ms, p99 {clock.p99_ms:.3f} ms{engine}")
        if result.board is not None:
            note(_board_words(result.board))
        if layers and latency.layers is None:
            note(f"{result.backend} tells no time per layer")
        for layer in latency.layers or ():
            console().print(f"{layer.microseconds:10.1f} us  {layer.type}  {layer.name}")


def _writing_words(writing: Writing) -> str:
    prompt = "" if writing.prompt_tokens is None else f" of a prompt of {writing.prompt_tokens}"
    return (
        f"writes: first token{prompt} after {writing.first_token_ms:.3g} ms, then {writing.tokens_per_second:.3g} "
        f"tokens/s ({writing.new_tokens} tokens, greedy)"
    )


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
