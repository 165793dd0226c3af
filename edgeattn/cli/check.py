"""``edgeattn check``."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeattn.cli import options as o
from edgeattn.cli.console import exit_codes, finish, progress_bar


def check(
    bundle: o.Bundle,
    model: Annotated[
        str | None, typer.Option(help="The MODEL that the bundle came from, to compare with it anew.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="As for convert; without it the metric is not measured.")] = None,
    split: o.Split = None,
    samples: o.Samples = 400,
    max_drop: o.MaxDrop = 0.5,
    deadline: o.Deadline = None,
    max_size: o.MaxSize = None,
    threads: o.Threads = 1,
    backend: o.Backend = None,
    paced_seconds: o.PacedSeconds = 10.0,
    as_json: o.Json = False,
) -> None:
    """Verify a bundle: hashes, golden outputs, parity, metric, deadline, size. Exit 1 if a gate fails."""
    with exit_codes(as_json):
        from edgeattn.checking import CheckOptions
        from edgeattn.checking import check as run
        from edgeattn.gates import Gates
        from edgeattn.profiling.measure import MeasureOptions

        settings = CheckOptions(
            gates=Gates(max_drop, deadline, max_size),
            measure=MeasureOptions(deadline_ms=deadline, paced_seconds=paced_seconds, threads=threads),
            backend=backend,
            model=model,
            data=data,
            split=split,
            samples=samples,
        )
        with progress_bar() as bar:
            report = run(bundle, settings, bar)
        finish(report, as_json)
