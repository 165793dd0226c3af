"""``edgeattn targets``: what there is, and what of it is measured here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeattn.cli import options as o
from edgeattn.cli.console import exit_codes, note, print_json, progress_bar, show

if TYPE_CHECKING:
    from edgeattn.targets import Target
    from edgeattn.targets.calibration import Calibration

app = typer.Typer(
    name="targets",
    invoke_without_command=True,
    add_completion=False,
)


@app.callback()
def targets(context: typer.Context, as_json: o.Json = False) -> None:
    """What bundles can be made for; calibrate this machine, prepare an emulated one."""
    if context.invoked_subcommand is not None:
        return
    with exit_codes(as_json):
        from edgeattn.spec import to_json
        from edgeattn.targets import list_targets

        known = list_targets()
        if as_json:
            print_json({"schema": 1, "targets": to_json(known)})
            return
        from edgeattn.results.grid import ABSENT, Column, Grid, Row

        names = ("cores", "memory", "GB/s", "fp32", "fp16", "int8")
        columns = (
            Column(name="target"),
            *(Column(name=name, prose=True) for name in ("also", "device", "engines")),
            *(Column(name=name, right=True) for name in names),
        )
        rows = []
        for target in known:
            memory = ABSENT if target.memory_bytes is None else f"{target.memory_bytes / 2**30:.0f} GiB"
            cells = (
                target.name, ", ".join(target.aliases), target.title, ", ".join(target.backends), str(target.cores),
                memory, *_rates(target),
            )  # fmt: skip
            rows.append(Row(cells=cells))
        show(Grid(columns=columns, rows=tuple(rows)))
        note(
            "GB/s and fp32, fp16, int8 (10^9 operations per second) are peaks that estimates are made from, mostly not "
            "checked on a device; --json tells the source of each"
        )


def _rates(target: Target) -> tuple[str, str, str, str]:
    """Bandwidth and peaks in 10^9 per second; a dash where nobody tells."""
    peaks = target.peaks
    values = (
        target.memory.bytes_per_second,
        *((peaks.fp32, peaks.fp16, peaks.int8) if peaks is not None else (None,) * 3),
    )
    bandwidth, fp32, fp16, int8 = ("-" if value is None else f"{value / 1e9:,.0f}" for value in values)
    return bandwidth, fp32, fp16, int8


@app.command()
def calibrate(
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend",
            metavar="ENGINE",
            autocompletion=o.complete_backend,
            help="Engine to calibrate; may be repeated. Default: all installed.",
        ),
    ] = None,
    threads: o.Threads = 1,
    as_json: o.Json = False,
) -> None:
    """Measure what the engines reach of this machine, for its estimates; kept in the user's cache."""
    with exit_codes(as_json):
        from edgeattn.engines import ENGINES
        from edgeattn.errors import InputError, unknown_name

        for name in backend or ():
            if name not in ENGINES:
                raise InputError(unknown_name("engine", name, ENGINES))
        from edgeattn.pipeline.calibrate import calibrate as run
        from edgeattn.spec import to_json
        from edgeattn.targets.calibration import keep_calibration

        with progress_bar() as bar:
            found = run(bar, backend, threads)
        path = keep_calibration(found)
        if as_json:
            print_json({"schema": 1, "path": str(path), "calibration": to_json(found)})
            return
        _print_calibration(found)
        note(f"kept: {path}")


def _print_calibration(found: Calibration) -> None:
    from edgeattn.results.grid import ABSENT, Column, Grid, Row

    rows = []
    for name, engine in found.engines.items():
        reached = engine.efficiency
        int8 = f"{reached.of('int8').mid:.3f}" if "int8" in reached.by_precision else ABSENT
        cells = (
            name, engine.version, f"{reached.of('fp32').mid:.3f}", int8,
            f"{1e6 * reached.launch_seconds.mid:.2f}", f"x/: {engine.spread:.2f}", str(len(engine.models)),
        )  # fmt: skip
        rows.append(Row(cells=cells))
    columns = (
        *(Column(name=name) for name in ("engine", "version")),
        *(Column(name=name, right=True) for name in ("eta fp32", "eta int8", "us per kernel", "range", "models")),
    )
    show(Grid(columns=columns, rows=tuple(rows)))


@app.command()
def prepare(
    device: Annotated[str, typer.Argument(metavar="qemu:aarch64", help="What to prepare.", show_default=False)],
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to; default: in the user's cache.", show_default=False)
    ] = None,
    apt_sources: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A sources.list with arm64 packages, in place of this machine's.", show_default=False
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Make it again where it is already there.")] = False,
    as_json: o.Json = False,
) -> None:
    """Assemble the ARM programs that --device qemu:aarch64 runs: Debian's Python, numpy, LiteRT and ONNX Runtime.

    Needs qemu-aarch64-static, apt-get, dpkg-deb and a network, once; no root, and nothing is installed.
    """
    with exit_codes(as_json):
        from edgeattn.errors import InputError
        from edgeattn.targets.devices import parse_device
        from edgeattn.targets.devices.qemu_root import prepare as run

        parsed = parse_device(device)
        if parsed.kind != "qemu":
            raise InputError(f"only qemu:aarch64 is prepared, got {device!r}")
        if root is not None and parsed.root:
            raise InputError(f"{device} names a folder and --root another one: leave one out")
        with progress_bar() as bar:
            made = run(Path(parsed.root) if parsed.root else root, bar.begin, apt_sources, force)
        if as_json:
            from edgeattn.spec import to_json

            root_facts = to_json(made.root)
            print_json({"schema": 1, "path": str(made.path), "reused": made.reused, "root": root_facts})
            return
        versions = ", ".join(f"{name} {made.root.distributions[name]}" for name in sorted(made.root.distributions))
        note(f"Python {made.root.python} for aarch64 on an emulated {made.root.cpu}, glibc {made.root.glibc}")
        note(versions)
        note(f"{'was there' if made.reused else 'kept'}: {made.path}")
