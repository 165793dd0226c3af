"""``edgeattn check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeattn.cli import options as o
from edgeattn.cli.console import exit_codes, finish, progress_bar


def check(
    context: typer.Context,
    bundle: o.Bundle,
    model: Annotated[
        str | None, typer.Option(help="The MODEL that the bundle came from, to compare with it again.")
    ] = None,
    bound: o.Bound = [],  # noqa: B006
    data: Annotated[str | None, typer.Option(help="As for convert; without it the metric is not measured.")] = None,
    metric: o.MetricName = None,
    split: o.Split = None,
    samples: o.Samples = o.DEFAULT_SAMPLES,
    max_drop: o.MaxDropAsked = None,
    min_metric: Annotated[
        float | None,
        typer.Option(help="Least metric of the bundle, as it is printed: 90 for 90 %.", rich_help_panel=o.GATES),
    ] = None,
    max_metric: Annotated[
        float | None,
        typer.Option(
            help="Largest metric of the bundle, where less is better: 8 for 8 % word error.", rich_help_panel=o.GATES
        ),
    ] = None,
    deadline: o.Deadline = None,
    max_size: o.MaxSize = None,
    threads: o.Threads = 1,
    backend: o.Backend = None,
    duration: o.Duration = "10s",  # type: ignore[assignment]  # parsed by typer
    hop: Annotated[
        float | None,
        typer.Option(
            parser=o.milliseconds,
            metavar="TIME",
            rich_help_panel=o.MEASUREMENT,
            help="From one call to the next, of a model that does not stream.",
        ),
    ] = None,
    jitter: Annotated[
        float | None,
        typer.Option(
            parser=o.milliseconds,
            metavar="TIME",
            rich_help_panel=o.MEASUREMENT,
            help="Packets or calls come up to that much late, e.g. 10ms.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the jitter.", rich_help_panel=o.MEASUREMENT)] = 0,
    load: Annotated[
        int, typer.Option(min=0, help="Busy processes beside a second paced run.", rich_help_panel=o.MEASUREMENT)
    ] = 0,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw latency, deadline, misses and backlog over time, .png or .svg.",
            rich_help_panel=o.MEASUREMENT,
        ),
    ] = None,
    power_mode: o.PowerMode = None,
    lock_clocks: o.LockClocks = False,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE",
            help=f"{o.DEVICE_HELP} Default: that of edgeattn.toml, or local.",
            autocompletion=o.complete_device,
        ),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Verify a bundle: hashes, golden outputs, parity, metric, size, real-time contract.

    Exit 1 if a gate fails, 5 if none does and one that was asked for (--data, --deadline) could not be judged here.

    The contract: paced by the clock for --duration, each chunk (or call, one every --hop) is done --deadline after it
    was due, with packets that come up to --jitter late, alone and beside --load busy processes.
    """
    with exit_codes(as_json):
        from edgeattn.bundle import read_manifest
        from edgeattn.cli.loading import deadline_for, one_device, typed
        from edgeattn.pipeline.check import CheckOptions
        from edgeattn.pipeline.check import check as run
        from edgeattn.profiling.contract import MeasureOptions
        from edgeattn.results.gates import DEFAULT_MAX_DROP, Gates
        from edgeattn.results.pictures import check_picture
        from edgeattn.results.timeline import draw_timeline

        if plot is not None:
            check_picture(plot)
        target = read_manifest(bundle).target
        device = device or one_device(target)
        limit = deadline_for(target, deadline, typed(context))
        emulated = device is not None and device.startswith("qemu:")  # where options of time are refused
        asked = max_drop is not None
        drop = DEFAULT_MAX_DROP if max_drop is None else max_drop
        settings = CheckOptions(
            gates=Gates(drop, limit, max_size, min_metric, max_metric, asked),
            measure=MeasureOptions(
                deadline_ms=deadline if emulated else limit,
                paced_seconds=duration,
                threads=threads,
                hop_ms=hop,
                jitter_ms=jitter or 0.0,
                seed=seed,
                load=load,
                trace=plot is not None,
                power_mode=power_mode,
                lock_clocks=lock_clocks,
            ),
            backend=backend,
            model=model,
            bound=tuple(bound),
            data=data,
            metric=metric,
            split=split,
            samples=samples,
            device=device,
        )
        with progress_bar() as bar:
            report = run(bundle, settings, bar)
        result = report.results[0]
        if plot is not None and result.realtime is not None:
            draw_timeline(result.realtime, plot, f"{bundle.name} on {result.device}")
        finish(report, as_json)
