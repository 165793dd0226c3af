"""``edgeattn convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeattn.cli import options as o
from edgeattn.cli.console import exit_codes, finish
from edgeattn.cli.loading import Inputs, chosen_targets, load_loss, own_options, refuse_early, report_of, typed
from edgeattn.models import DEFAULT


def convert(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="Built-in name, file.py[:factory], module:factory, .pt2, .onnx, .tflite or a Hugging Face directory."
        ),
    ] = DEFAULT,
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
    prune: o.Prune = None,
    loss: o.Loss = None,
    out: o.Out = Path("out"),
    max_drop: o.MaxDrop = 0.5,
    accept_unproved: o.AcceptUnproved = False,
    deadline: o.Deadline = None,
    max_size: o.MaxSize = None,
    threads: o.Threads = 1,
    duration: o.Duration = "5s",  # type: ignore[assignment]
    dla: Annotated[
        bool,
        typer.Option("--dla", help="Build for the DLA of a Jetson what it can run, the rest for its GPU (fp16, int8)."),
    ] = False,
    archive: Annotated[bool, typer.Option("--zip", help="Pack each bundle into one .zip.")] = False,
    force: o.Force = False,
    keep_failed: Annotated[
        bool,
        typer.Option("--keep-failed", help="Write a bundle although a gate failed.", rich_help_panel=o.GATES),
    ] = False,
    as_json: o.Json = False,
) -> None:
    """Make a verified bundle of MODEL for each target: prune, quantize, convert, check, measure."""
    with exit_codes(as_json):
        from edgeattn.pipeline.steps.options import ConvertOptions, Effort
        from edgeattn.profiling.measure import MeasureOptions
        from edgeattn.results.gates import Gates

        targets, flags = chosen_targets(target), typed(context)
        own = own_options(targets, flags, recover)
        prunes = prune is not None or any(one.prune is not None for one in own.values())
        settings = ConvertOptions(
            targets=targets,
            precision=precision,
            backend=backend,
            out=out,
            gates=Gates(max_drop, deadline, max_size),
            measure=MeasureOptions(deadline_ms=deadline, paced_seconds=duration, threads=threads),
            archive=archive,
            force=force,
            keep_failed=keep_failed,
            plan=o.plan_of(plan, precision, recover, data, prunes),
            effort=Effort(time_budget, 0.0 if prune else recover),  # what pruning lost, or else int8
            prune=o.prune_of(prune, recover, loss, prunes),
            loss=load_loss(loss),
            accept_unproved=accept_unproved,
            dla=dla,
            own=own,
        )
        inputs = Inputs(model, bucket, fill, data, split, samples, calibration_samples, bound, task, metric)
        refuse_early(inputs, settings, settings.suffix)
        from edgeattn.pipeline.convert import convert as run

        finish(report_of(inputs, settings, flags, run), as_json)
