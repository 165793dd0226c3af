"""``edgeattn quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeattn.cli import options as o
from edgeattn.cli.console import exit_codes, finish
from edgeattn.cli.loading import Inputs, chosen_targets, own_options, refuse_early, report_of, typed


def quantize(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="MODEL as for convert.", show_default=False)],
    target: o.Targets = ["cpu"],  # noqa: B006
    precision: o.PrecisionName = "auto",
    backend: o.TargetBackend = None,
    data: o.ModelData = None,
    task: o.TaskName = None,
    metric: o.MetricName = None,
    bucket: o.Buckets = [],  # noqa: B006
    fill: o.Fills = [],  # noqa: B006
    bound: o.Bound = [],  # noqa: B006
    split: o.Split = None,
    samples: o.Samples = o.DEFAULT_SAMPLES,
    calibration_samples: o.CalibrationSamples = 0,
    plan: o.PlanFile = None,
    time_budget: o.TimeBudget = "2min",  # type: ignore[assignment]  # parsed by typer
    recover: o.Recover = "0s",  # type: ignore[assignment]
    max_drop: o.MaxDrop = 0.5,
    accept_unproved: o.AcceptUnproved = False,
    threads: o.Threads = 1,
    out: o.Out = Path("out"),
    force: o.Force = False,
    as_json: o.Json = False,
) -> None:
    """Find the fastest precision that keeps the metric; save the engine's files and the plan for convert."""
    with exit_codes(as_json):
        from edgeattn.pipeline.steps.options import ConvertOptions, Effort
        from edgeattn.profiling.measure import MeasureOptions
        from edgeattn.results.gates import Gates

        targets, flags = chosen_targets(target), typed(context)
        own = own_options(targets, flags)
        settings = ConvertOptions(
            targets=targets,
            precision=precision,
            backend=backend,
            out=out,
            gates=Gates(max_drop),
            measure=MeasureOptions(threads=threads),
            force=force,
            plan=o.plan_of(plan, precision, recover, data),
            effort=Effort(time_budget, recover),
            own=own,
            accept_unproved=accept_unproved,
        )
        inputs = Inputs(model, bucket, fill, data, split, samples, calibration_samples, bound, task, metric)
        refuse_early(inputs, settings, ".quantized")
        from edgeattn.pipeline.quantize import quantize as run

        finish(report_of(inputs, settings, flags, run), as_json)
