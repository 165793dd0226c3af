"""Options that several commands take, and the units that they are written in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgeattn.pruning import Request
    from edgeattn.quantize.plan import Plan

UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "min": 6e4, "h": 3.6e6, "": 1.0}
UNITS_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def milliseconds(text: str) -> float:
    """``40ms``, ``0.04s`` or ``40`` (milliseconds) -> 40.0."""
    return _quantity(text, UNITS_MS, "a time such as 40ms or 0.3s")


def seconds(text: str) -> float:
    """``90s``, ``2min`` or ``0s`` (none at all) -> seconds; a number alone is refused, its unit would be a guess."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h)\s*", str(text))
    if match is None:
        raise typer.BadParameter(f"expected a time such as 90s or 2min, got {text!r}")
    return float(match[1]) * UNITS_MS[match[2]] / 1e3


def size_bytes(text: str) -> int:
    """``4MB``, ``4MiB`` or ``4000000`` -> bytes."""
    return int(_quantity(text, UNITS_BYTES, "a size such as 4MB or 900KiB"))


def _quantity(text: str, units: dict[str, float] | dict[str, int], expected: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text))
    if match is None or match[2].lower() not in units or float(match[1]) <= 0:
        raise typer.BadParameter(f"expected {expected}, got {text!r}")
    return float(match[1]) * units[match[2].lower()]


Json = Annotated[bool, typer.Option("--json", help="One machine-readable object on stdout; logs on stderr.")]
Threads = Annotated[int, typer.Option(min=1, help="Compute threads of the engine.")]
DEVICE_HELP = (
    "local, ssh://[user@]host[:port], or with the Python there, ssh://host/opt/venv/bin/python; adb:[serial]; "
    "qemu:aarch64 (see edgeattn targets prepare)."
)
Device = Annotated[str, typer.Option(help=DEVICE_HELP)]
Devices = Annotated[
    list[str],
    typer.Option("--device", help=f"{DEVICE_HELP} May be repeated. Default: those of edgeattn.toml, or local."),
]
Backend = Annotated[str | None, typer.Option(help="Engine to run on, if not the bundle's own.")]
Bundle = Annotated[Path, typer.Argument(help="A NAME.TARGET.edge directory or zip.", show_default=False)]
Data = Annotated[
    Path | None,
    typer.Option(help="Recordings with transcripts.tsv, or an npz, to calibrate and measure on.", show_default=False),
]
Split = Annotated[str | None, typer.Option(help="Split of the data that the metric is measured on.")]
Samples = Annotated[
    int,
    typer.Option(
        min=1, help="At most so many samples to measure on, and as many to calibrate on, drawn from all of the data."
    ),
]
DEFAULT_SAMPLES = 2_000  # edgeattn.evaluation.confidence.SAMPLES, which is not imported for --help
AcceptUnproved = Annotated[
    bool,
    typer.Option(
        "--accept-unproved",
        help="Ship what kept the metric on samples that are too few to show it with 95 % confidence, labelled so.",
    ),
]
Buckets = Annotated[
    list[str],
    typer.Option(
        "--bucket",
        metavar="NAME=SIZE,SIZE",
        help="Sizes of an axis that varies, e.g. seq=64,128,256, or of named axes, ids.1+mask.1=64; may be repeated.",
    ),
]
Fills = Annotated[
    list[str],
    typer.Option("--fill", metavar="INPUT=VALUE", help="What padded positions of an input hold, if not 0."),
]
Deadline = Annotated[
    float | None,
    typer.Option(parser=milliseconds, metavar="TIME", help="Per chunk or call, e.g. 40ms. Default: a stream's hop."),
]
MaxDrop = Annotated[float, typer.Option(min=0.0, help="Points of the metric that may be lost against the source.")]
MaxDropAsked = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        min=0.0,
        help="Points of the metric that may be lost against the source, which --model measures or the manifest tells. "
        "Default: 0.5.",
        show_default=False,
    ),
]
MaxSize = Annotated[int | None, typer.Option(parser=size_bytes, metavar="SIZE", help="Of the bundle, e.g. 4MB.")]
PowerMode = Annotated[
    str | None,
    typer.Option(metavar="NAME|ID", help="Of a Jetson, as nvpmodel -q tells it: measured in, and put back after."),
]
LockClocks = Annotated[
    bool, typer.Option("--lock-clocks", help="Hold a Jetson's clocks at their highest (jetson_clocks), and put back.")
]
PacedSeconds = Annotated[float, typer.Option(min=0.0, help="Audio seconds to stream in real time; 0 for none.")]

Targets = Annotated[list[str], typer.Option("--target", help="Target name or .toml file; may be repeated.")]
TargetBackend = Annotated[
    str | None, typer.Option("--backend", help="Engine, if not the target's first: see edgeattn targets.")
]
PrecisionName = Annotated[
    str,
    typer.Option(
        "--precision",
        help="auto, fp32, fp16, int8, or a scheme: int8-static, int8-dynamic, int8-nncf, int8-weights, int4-weights.",
    ),
]
ModelData = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="transcripts.tsv directory, labelled texts (.tsv), npz or file.py:function: to calibrate and measure on.",
    ),
]
PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", help="TOML: precision by module path, for every target; edgeattn quantize writes one."),
]
TimeBudget = Annotated[
    float,
    typer.Option(
        "--time-budget",
        parser=seconds,
        metavar="TIME",
        help="For the search over layers where int8 loses the metric, per target; 0s for none.",
    ),
]
Recover = Annotated[
    float,
    typer.Option(
        "--recover",
        parser=seconds,
        metavar="TIME",
        help="Train with fake quantization so long where the search finds nothing, e.g. 3min; 0s for none.",
    ),
]
CalibrationSamples = Annotated[
    int, typer.Option("--calibration-samples", min=0, help="Refuse data with fewer samples to calibrate on.")
]


Prune = Annotated[
    str | None,
    typer.Option(
        "--prune",
        metavar="WHAT",
        help="Remove heads, neurons, layers first: speedup=1.5, deadline=20ms, max-drop=0.5, or amounts such as "
        "heads=0.25,neurons=0.25,layers=1,left=16,kv-heads=2,rank=0.5,sparsity=2:4; or what edgeattn prune wrote.",
        show_default=False,
    ),
]
RecoverMinutes = Annotated[
    float,
    typer.Option(
        "--recover-minutes", min=0.0, help="Distil the unpruned model into the pruned one for so long; 0 for not."
    ),
]
Loss = Annotated[
    str | None,
    typer.Option(
        "--loss",
        metavar="FILE.py:FUNCTION",
        help="loss(outputs, inputs) of your own, for what may be pruned and for recovery; inputs hold target_NAME.",
        show_default=False,
    ),
]


def prune_of(text: str | None, recover_minutes: float, loss: str | None, prunes: bool) -> Request | None:
    """The request of ``--prune``, held to the other flags.

    Args:
        prunes: whether anything is pruned; targets may ask for it in edgeattn.toml.

    Raises:
        InputError: for flags that contradict each other, or as :func:`~edgeattn.pruning.request.parse_request`.
    """
    from edgeattn.errors import InputError
    from edgeattn.pruning import parse_request

    if text is None:
        for flag, given in (("--recover-minutes", recover_minutes > 0), ("--loss", loss is not None)):
            if given and not prunes:
                raise InputError(f"{flag} belongs to pruning: give --prune, such as --prune speedup=1.5")
        return None
    return parse_request(text, 60.0 * recover_minutes)


def plan_of(path: Path | None, precision: str, recover_seconds: float, data: str | None) -> Plan:
    """The plan of ``--plan``, held to the other flags.

    Raises:
        InputError: for flags that contradict each other, or as :func:`~edgeattn.quantize.plan.read_plan`.
    """
    from edgeattn.errors import InputError
    from edgeattn.quantize.plan import Plan, read_plan

    if precision in ("fp32", "fp16"):
        for flag, given in (("--plan", path is not None), ("--recover", recover_seconds > 0)):
            if given:
                raise InputError(f"{flag} is for int8 and --precision is {precision}: leave one of them out")
    if recover_seconds > 0 and data is None:
        raise InputError("--recover trains on --data, which is not given: give inputs like those of use, with labels")
    return Plan() if path is None else read_plan(path)
