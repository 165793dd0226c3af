"""``edgeattn prune``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from edgeattn.cli import options as o
from edgeattn.cli.console import exit_codes, finish
from edgeattn.cli.loading import Inputs, chosen_targets, load_loss, refuse_early, report_of, typed

BUDGETS, AMOUNTS = "What to reach", "What to remove"  # panels of --help
Share = Annotated[
    float | None,
    typer.Option(help="Share to remove of each, between 0 and 1.", show_default=False, rich_help_panel=AMOUNTS),
]


def prune(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="MODEL as for convert, or what prune wrote.", show_default=False)],
    target: o.Targets = ["cpu"],  # noqa: B006
    speedup: Annotated[
        float | None,
        typer.Option(
            help="Least speed over the unpruned float model, e.g. 1.5.", show_default=False, rich_help_panel=BUDGETS
        ),
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(
            parser=o.milliseconds,
            metavar="TIME",
            help="Per call of the float model.",
            show_default=False,
            rich_help_panel=BUDGETS,
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Points of the metric that may be lost; as much as that allows goes.",
            show_default=False,
            rich_help_panel=BUDGETS,
        ),
    ] = None,
    accept_unproved: o.AcceptUnproved = False,
    heads: Share = None,
    neurons: Share = None,
    layers: Annotated[
        int | None, typer.Option(help="Layers to leave out.", show_default=False, rich_help_panel=AMOUNTS)
    ] = None,
    left: Annotated[
        int | None,
        typer.Option(help="Left context of a stream, in encoder frames.", show_default=False, rich_help_panel=AMOUNTS),
    ] = None,
    kv_heads: Annotated[
        int | None,
        typer.Option(
            help="Key/value heads to merge those of each attention into.", show_default=False, rich_help_panel=AMOUNTS
        ),
    ] = None,
    rank: Annotated[
        float | None,
        typer.Option(
            help="Share of its multiplications that a projection keeps, as two layers.",
            show_default=False,
            rich_help_panel=AMOUNTS,
        ),
    ] = None,
    sparsity: Annotated[
        str | None,
        typer.Option(help="2:4, for NVIDIA GPUs from Ampere on.", show_default=False, rich_help_panel=AMOUNTS),
    ] = None,
    backend: o.TargetBackend = None,
    data: o.ModelData = None,
    task: o.TaskName = None,
    metric: o.MetricName = None,
    bucket: o.Buckets = [],  # noqa: B006
    fill: o.Fills = [],  # noqa: B006
    bound: o.Bound = [],  # noqa: B006
    split: o.Split = None,
    samples: o.Samples = o.DEFAULT_SAMPLES,
    importance_samples: Annotated[
        int, typer.Option(help="Samples that importance is measured on, at most.", rich_help_panel=o.DATA)
    ] = 256,
    recover: o.Recover = "0s",  # type: ignore[assignment]  # parsed by typer
    loss: o.Loss = None,
    threads: o.Threads = 1,
    plot: o.Plot = None,
    out: o.Out = Path("out"),
    force: o.Force = False,
    as_json: o.Json = False,
) -> None:
    """Remove heads, neurons and layers for measured milliseconds; the smaller model is a MODEL for convert."""
    with exit_codes(as_json):
        from edgeattn.pipeline.steps.options import ConvertOptions
        from edgeattn.profiling.measure import MeasureOptions
        from edgeattn.pruning import Request, amounts
        from edgeattn.results.gates import Gates
        from edgeattn.results.pictures import check_picture

        asked = {
            "heads": heads, "neurons": neurons, "layers": layers, "kv-heads": kv_heads, "rank": rank, "left": left,
            "sparsity": sparsity,
        }  # fmt: skip
        request = Request(
            speedup=speedup,
            deadline_ms=deadline,
            max_drop=max_drop,
            amounts=amounts({key: str(value) for key, value in asked.items() if value is not None}),
            samples=importance_samples,
            recover_seconds=recover,
        )
        targets = chosen_targets(target)
        settings = ConvertOptions(
            targets=targets,
            precision="fp32",
            backend=backend,
            out=out,
            gates=Gates(math.inf if max_drop is None else max_drop),  # what amounts cost is told, not judged
            measure=MeasureOptions(threads=threads),
            force=force,
            prune=request,
            loss=load_loss(loss),
            accept_unproved=accept_unproved,
        )
        if plot is not None:
            check_picture(plot)
        inputs = Inputs(model, bucket, fill, data, split, samples, 0, bound, task, metric)
        refuse_early(inputs, settings, ".pruned")
        from edgeattn.pipeline.prune import PruneOptions
        from edgeattn.pipeline.prune import prune as run

        more = PruneOptions(model, plot)
        report = report_of(
            inputs, settings, typed(context),
            lambda source, given, options, bar: run(source, given, options, more, bar),
        )  # fmt: skip
        finish(report, as_json)
