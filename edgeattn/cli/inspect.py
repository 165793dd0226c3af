"""``edgeattn inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeattn.cli import options as o
from edgeattn.cli.console import console, exit_codes, note, print_json, progress_bar, show
from edgeattn.cli.loading import Inputs, chosen_targets, load
from edgeattn.cli.sensitivity_tables import print_sensitivity
from edgeattn.printable import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgeattn.bundle import Manifest
    from edgeattn.converters.preflight.judge import Finding, GraphFacts
    from edgeattn.pipeline.inspect import Inspection, PrunableParts
    from edgeattn.spec import GraphSpec

LONGEST_FACT = 1_000  # characters of a line of a manifest, whoever wrote it
COLOURS = {"stops": "red", "slow": "yellow", "risk": "cyan", "handled": "dim"}


def inspect(
    model: Annotated[
        str, typer.Argument(help="MODEL as for convert, or a NAME.TARGET.edge bundle.", show_default=False)
    ],
    target: o.Targets = ["cpu"],  # noqa: B006
    precision: o.PrecisionName = "auto",
    backend: o.TargetBackend = None,
    data: Annotated[
        str | None, typer.Option(help="As for convert: one sample of it shows the value ranges of use.")
    ] = None,
    task: o.TaskName = None,
    bucket: o.Buckets = [],  # noqa: B006
    fill: o.Fills = [],  # noqa: B006
    bound: o.Bound = [],  # noqa: B006
    sensitivity: Annotated[
        bool,
        typer.Option("--sensitivity", help="What quantizing each layer costs, and what becomes of attention; on data."),
    ] = False,
    plot: o.Plot = None,
    split: o.Split = None,
    samples: o.Samples = 60,
    as_json: o.Json = False,
) -> None:
    """Tell in seconds what would fail or be slow on each target, and what can be pruned.

    Of a bundle, what it holds. Exit 4 if a target would stop the conversion.
    """
    with exit_codes(as_json):
        from edgeattn.bundle import names_bundle

        check_flags(model, sensitivity, plot)
        if names_bundle(model):
            show_bundle(Path(model), as_json)
            return
        from edgeattn.pipeline.inspect import InspectOptions, check_targets
        from edgeattn.pipeline.inspect import inspect as run

        settings = InspectOptions(
            targets=chosen_targets(target),
            precision=precision,
            backend=backend,
            sensitivity=sensitivity,
            samples=samples,
        )
        check_targets(settings)  # before anything is loaded
        with progress_bar() as bar:
            # Preflight needs one sample; a built-in model brings its own data.
            source, given = load(
                Inputs(model, bucket, fill, data, split, samples if sensitivity else 1, 0, bound, task), bar
            )
            found = run(source, given, settings, bar)
            if found.sensitivity is not None and plot is not None:
                from edgeattn.results.sensitivity import sensitivity_figure

                sensitivity_figure(found.sensitivity.report, found.sensitivity.attention, plot)
        if as_json:
            print_json(found.to_json())
        else:
            print_inspection(found)
        if found.exit_code:
            raise typer.Exit(found.exit_code)


def print_inspection(found: Inspection) -> None:
    """The tables of a model."""
    print_graphs(found.graphs)
    for words in found.notes:
        note(words)
    print_prunable(found.prunable)
    print_findings(found.findings, [each.target for each in found.targets])
    if found.sensitivity is not None:
        print_sensitivity(found.sensitivity)


def check_flags(model: str, sensitivity: bool, plot: Path | None) -> None:
    """Refuse what cannot be done before anything is loaded.

    Raises:
        InputError: saying which flag, and what it needs.
    """
    from edgeattn.bundle import names_bundle
    from edgeattn.errors import InputError

    if plot is not None and not sensitivity:
        raise InputError("--plot draws what --sensitivity measures: give both")
    if sensitivity and names_bundle(model):
        raise InputError(f"{model} is a bundle, made already: --sensitivity needs the MODEL that it was made from")
    if plot is not None:
        from edgeattn.results.pictures import check_picture

        check_picture(plot)


def print_prunable(parts: PrunableParts) -> None:
    """One row per attention block and feed-forward, then the stacks, then what is left whole."""
    from edgeattn.results.grid import Column, Grid, Row

    terminal = console()
    if parts.why_not:
        terminal.print(f"cannot be pruned: {parts.why_not}", soft_wrap=True)
        return
    rows = []
    for unit in parts.units:
        if unit.kind == "attention":
            kind = "cross attention" if unit.cross else "self-attention"
            sizes = (str(unit.heads), str(unit.groups), str(unit.head_dim), "")
        else:
            kind, sizes = "feed-forward", ("", "", "", str(unit.groups))
        rows.append(Row(cells=(unit.path or "(the model)", kind, unit.family, *sizes)))
    columns = (
        *(Column(name=name) for name in ("block", "kind", "family")),
        *(Column(name=name, right=True) for name in ("heads", "key/value heads", "head width", "neurons")),
    )
    show(Grid(columns=columns, rows=tuple(rows), title="what edgeattn prune can cut"))
    for stack in parts.stacks:
        stays = f", of which {len(stack.pinned)} must stay" if stack.pinned else ""
        terminal.print(f"{stack.path}: {stack.layers} layers that can be left out{stays}")
    for found in parts.unknown:
        line = f"left whole: {found.path or 'the model'} ({found.kind}): {found.why}"
        terminal.print(line, soft_wrap=True)


def print_graphs(graphs: Sequence[GraphFacts]) -> None:
    """One row per graph."""
    from edgeattn.results.grid import ABSENT, Column, Grid, Row

    rows = []
    for graph in graphs:
        cells = (
            graph.name,
            tensors(graph.inputs),
            tensors(graph.outputs),
            "\n".join(f"{s.input} -> {s.output} {list(s.shape)}" for s in graph.states) or ABSENT,
            ABSENT if graph.parameters is None else f"{graph.parameters / 1e6:.2f} M",
            ABSENT if graph.flops is None else f"{graph.flops / 1e9:.3g}",
            ABSENT if graph.activation_bytes is None else f"{graph.activation_bytes / 1e6:.2f} MB",
            f"{len(graph.attention)} blocks" if graph.attention else ABSENT,
        )
        rows.append(Row(cells=cells))
    names = ("graph", "inputs", "outputs", "states", "parameters", "GFLOP", "activations", "attention")
    show(Grid(columns=tuple(Column(name=name) for name in names), rows=tuple(rows)))
    for graph in graphs:
        if graph.ranges != "recorded":
            console().print(f"{graph.name}: no value ranges, {graph.ranges}")


def tensors(specs: Sequence[Any]) -> str:
    """``ids int64[1, 8]``, one per line."""
    return "\n".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in specs) or "-"


def print_findings(findings: Sequence[Finding], targets: Sequence[str]) -> None:
    """One row per finding, what stops first."""
    from edgeattn.results.grid import Column, Grid, Row

    if not findings:
        console().print(f"nothing to say against {', '.join(targets)}")
        return
    rows = []
    for row in findings:
        certainty = f"{row.severity}\npredicted" if row.predicted else row.severity
        where = f"{row.graph}: {row.place}" if row.place else row.graph
        cells = (f"{row.target}\n{row.engine}", certainty, row.rule, where, row.reason, row.change)
        rows.append(Row(cells=cells, styles={"severity": COLOURS[row.severity]}))
    columns = (
        *(Column(name=name) for name in ("target", "severity", "rule")),
        *(Column(name=name, prose=True) for name in ("where", "reason", "what helps")),
    )
    show(Grid(columns=columns, rows=tuple(rows), heading=("target", "severity", "rule"), beside=True))


def show_bundle(path: Path, as_json: bool) -> None:
    """What a bundle holds, every file of it verified."""
    from edgeattn.bundle import open_bundle
    from edgeattn.spec import to_json

    with open_bundle(path) as bundle:
        manifest = bundle.manifest
    if as_json:
        print_json({"schema": 1, "bundle": str(path), "manifest": to_json(manifest)})
        return
    print_manifest(manifest)


def print_manifest(manifest: Manifest) -> None:
    """The facts of a manifest."""
    from edgeattn.results.grid import Column, Grid, Row

    size = sum(entry.size for entry in manifest.files.values())
    lines = {
        "name": f"{manifest.name}, task {manifest.spec.task}",
        "target": f"{manifest.target}, {manifest.backend}",
        "precision": f"{manifest.precision.get('shipped')}, asked {manifest.precision.get('asked')}",
        "recipe": str(manifest.provenance.get("recipe", "-")),
        "source": str(manifest.provenance.get("source_sha256", "-")),
        "size": f"{size / 1e6:.2f} MB in {len(manifest.files)} files, all verified",
        "golden": "-" if manifest.golden is None else f"{manifest.golden.steps} steps by {manifest.golden.made_by}",
        **measured(manifest.measured),
    }
    terminal = console()
    for name, text in lines.items():
        terminal.print(f"{name:10} {one_line(text, LONGEST_FACT)}", soft_wrap=True)
    columns = tuple(Column(name=name) for name in ("graph", "file", "inputs", "outputs", "states"))
    rows = (Row(cells=graph_cells(graph, manifest.models[graph.name])) for graph in manifest.spec.graphs)
    show(Grid(columns=columns, rows=tuple(rows)))


def measured(figures: Mapping[str, Any]) -> dict[str, str]:
    """What was measured when the bundle was made, as lines."""
    lines = {}
    for name, field, form in (
        ("metric", "accuracy", "{metric} {deployed:.2f} {unit}"),
        ("latency", "latency", "p50 {p50_ms:.2f} ms, p99 {p99_ms:.2f} ms, {kind}"),
    ):
        if figures.get(field):
            try:
                lines[name] = form.format(**{"unit": "%", **figures[field]}).rstrip()
            except (
                TypeError,
                KeyError,
                ValueError,
                OverflowError,
            ):  # a later edgeattn, or a stranger, wrote them in its own form
                lines[name] = "in a form that this edgeattn does not know"
    if figures.get("device"):
        lines["device"] = str(figures["device"])
    return lines


def graph_cells(graph: GraphSpec, file: str) -> tuple[str, ...]:
    """The row of a graph."""
    states = "\n".join(f"{s.input} -> {s.output} {list(s.shape)}" for s in graph.states) or "-"
    return (graph.name, file, tensors(graph.inputs), tensors(graph.outputs), states)
