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


def complete_target(incomplete: str) -> list[str]:
    """Names and aliases of targets, for a shell; files are completed by the shell itself."""
    from edgeattn.targets import list_targets

    names = (name for target in list_targets() for name in (target.name, *target.aliases))
    return [name for name in names if name.startswith(incomplete)]


def complete_backend(incomplete: str) -> list[str]:
    """Names of engines, for a shell."""
    from edgeattn.engines import ENGINES

    return [name for name in ENGINES if name.startswith(incomplete)]


def complete_precision(incomplete: str) -> list[str]:
    """Precisions and recipes, for a shell."""
    from edgeattn.engines import PRECISIONS, recipe_names

    names = dict.fromkeys(("auto", *PRECISIONS, *recipe_names()))
    return [name for name in names if name.startswith(incomplete)]


def complete_task(incomplete: str) -> list[str]:
    """Names of tasks, for a shell."""
    from edgeattn.tasks import TASKS

    return [name for name in TASKS if name.startswith(incomplete)]


def complete_device(incomplete: str) -> list[str]:
    """How the name of a device begins, for a shell."""
    return [name for name in ("local", "ssh://", "adb:", "qemu:aarch64") if name.startswith(incomplete)]


# The panels of a long --help, in its order; what a command is mostly called with stays in the first, "Options".
DATA = "Data and sizes"
QUANTIZATION = "Quantization"
PRUNING = "Pruning"
GATES = "Gates"
MEASUREMENT = "Measurement"

Json = Annotated[bool, typer.Option("--json", help="One machine-readable object on stdout; logs on stderr.")]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Directory for the results.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a result that is there.")]
Plot = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw a picture, .png or .svg.", show_default=False)
]
Targets = Annotated[
    list[str],
    typer.Option(
        "--target",
        "-t",
        metavar="NAME",
        help="Target name or .toml file; may be repeated.",
        autocompletion=complete_target,
    ),
]
Threads = Annotated[int, typer.Option(min=1, help="Compute threads of the engine.")]
DEVICE_HELP = (
    "local, ssh://[user@]host[:port], or with the Python there, ssh://host/venv/bin/python; adb:[serial]; "
    "qemu:aarch64 (see edgeattn targets prepare)."
)
Device = Annotated[str, typer.Option(metavar="DEVICE", help=DEVICE_HELP, autocompletion=complete_device)]
Devices = Annotated[
    list[str],
    typer.Option(
        "--device",
        metavar="DEVICE",
        autocompletion=complete_device,
        help=f"{DEVICE_HELP} May be repeated. Default: those of edgeattn.toml, or local.",
    ),
]
Backend = Annotated[
    str | None,
    typer.Option(metavar="ENGINE", help="Engine to run on, if not the bundle's own.", autocompletion=complete_backend),
]
TargetBackend = Annotated[
    str | None,
    typer.Option(
        "--backend",
        metavar="ENGINE",
        help="Engine, if not the target's first: see edgeattn targets.",
        autocompletion=complete_backend,
    ),
]
Bundle = Annotated[Path, typer.Argument(help="A NAME.TARGET.edge directory or zip.", show_default=False)]
PrecisionName = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="NAME",
        autocompletion=complete_precision,
        help="auto, fp32, fp16, int8, or a recipe: int8-static, int8-dynamic, int8-nncf, int8-weights, int4-weights.",
    ),
]
ModelData = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="To calibrate and measure on: the form of the model's task (edgeattn tasks), npz or file.py:function.",
    ),
]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="NAME",
        rich_help_panel=DATA,
        show_default=False,
        autocompletion=complete_task,
        help="What the model is for, where it does not say so itself: see edgeattn tasks.",
    ),
]
MetricName = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="NAME",
        rich_help_panel=DATA,
        show_default=False,
        help="What gates: another metric of the task's, or file.py:function of an answer and its target.",
    ),
]
Split = Annotated[
    str | None, typer.Option(help="Split of the data that the metric is measured on.", rich_help_panel=DATA)
]
Samples = Annotated[
    int,
    typer.Option(
        min=1,
        rich_help_panel=DATA,
        help="At most that many samples to measure on, and as many to calibrate on, drawn from all of the data.",
    ),
]
DEFAULT_SAMPLES = 2_000  # edgeattn.evaluation.confidence.SAMPLES, which is not imported for --help
CalibrationSamples = Annotated[
    int,
    typer.Option(
        "--calibration-samples", min=0, help="Refuse data with fewer samples to calibrate on.", rich_help_panel=DATA
    ),
]
Buckets = Annotated[
    list[str],
    typer.Option(
        "--bucket",
        metavar="NAME=SIZE,SIZE",
        rich_help_panel=DATA,
        help="Sizes of an axis that varies, e.g. seq=64,128,256, or of named axes, ids.1+mask.1=64; may be repeated.",
    ),
]
Fills = Annotated[
    list[str],
    typer.Option(
        "--fill", metavar="INPUT=VALUE", help="What padded positions of an input hold, if not 0.", rich_help_panel=DATA
    ),
]
Bound = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="INPUT=VALUE",
        rich_help_panel=DATA,
        help="An input of an .onnx or .tflite file that is a constant, e.g. use_cache=false; may be repeated.",
    ),
]
MaxDrop = Annotated[
    float,
    typer.Option(min=0.0, help="Points of the metric that may be lost against the source.", rich_help_panel=GATES),
]
MaxDropAsked = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        min=0.0,
        rich_help_panel=GATES,
        show_default=False,
        help="Points of the metric that may be lost against the source, which --model measures or the manifest tells. "
        "Default: 0.5.",
    ),
]
AcceptUnproved = Annotated[
    bool,
    typer.Option(
        "--accept-unproved",
        rich_help_panel=GATES,
        help="Ship what kept the metric on samples that are too few to show it with 95 % confidence, labelled so.",
    ),
]
Deadline = Annotated[
    float | None,
    typer.Option(
        parser=milliseconds,
        metavar="TIME",
        help="Per chunk or call, e.g. 40ms. Default: a stream's hop.",
        rich_help_panel=GATES,
    ),
]
MaxSize = Annotated[
    int | None,
    typer.Option(parser=size_bytes, metavar="SIZE", help="Of the bundle, e.g. 4MB.", rich_help_panel=GATES),
]
Duration = Annotated[
    float,
    typer.Option(
        parser=seconds,
        metavar="TIME",
        rich_help_panel=MEASUREMENT,
        help="Stream, or call, by the clock for that long, e.g. 10s or 5min; 0s for not.",
    ),
]
PowerMode = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|ID",
        help="Of a Jetson, as nvpmodel -q tells it: measured in, and put back after.",
        rich_help_panel=MEASUREMENT,
    ),
]
LockClocks = Annotated[
    bool,
    typer.Option(
        "--lock-clocks",
        help="Hold a Jetson's clocks at their highest (jetson_clocks), and put back.",
        rich_help_panel=MEASUREMENT,
    ),
]
PlanFile = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        metavar="FILE",
        rich_help_panel=QUANTIZATION,
        show_default=False,
        help="TOML: precision by module path, for every target; edgeattn quantize writes one.",
    ),
]
TimeBudget = Annotated[
    float,
    typer.Option(
        "--time-budget",
        parser=seconds,
        metavar="TIME",
        rich_help_panel=QUANTIZATION,
        help="For the search over layers where int8 loses the metric, per target; 0s for none.",
    ),
]
Recover = Annotated[
    float,
    typer.Option(
        "--recover",
        parser=seconds,
        metavar="TIME",
        help="Train for that long, e.g. 3min, what pruning lost, after the unpruned model; or else with fake "
        "quantization, where the search over layers finds nothing; 0s for not.",
    ),
]
Prune = Annotated[
    str | None,
    typer.Option(
        "--prune",
        metavar="WHAT",
        show_default=False,
        rich_help_panel=PRUNING,
        help="Remove heads, neurons, layers first: speedup=1.5, deadline=20ms, max-drop=0.5, or amounts such as "
        "heads=0.25,neurons=0.25 or layers=1,left=16 or kv-heads=2,rank=0.5,sparsity=2:4; or what edgeattn prune "
        "wrote.",
    ),
]
Loss = Annotated[
    str | None,
    typer.Option(
        "--loss", metavar="FILE.py:FUNCTION", show_default=False, rich_help_panel=PRUNING,
        help="loss(outputs, inputs) of your own, for what may be pruned and for recovery; inputs hold target_NAME.",
    ),
]  # fmt: skip


def prune_of(text: str | None, recover_seconds: float, loss: str | None, prunes: bool) -> Request | None:
    """The request of ``--prune``, held to the other flags.

    Args:
        prunes: whether anything is pruned; targets may ask for it in edgeattn.toml.

    Raises:
        InputError: for flags that contradict each other, or as :func:`~edgeattn.pruning.request.parse_request`.
    """
    from edgeattn.errors import InputError
    from edgeattn.pruning import parse_request

    if text is None:
        if loss is not None and not prunes:
            raise InputError("--loss belongs to pruning: give --prune, such as --prune speedup=1.5")
        return None
    return parse_request(text, recover_seconds)


def plan_of(path: Path | None, precision: str, recover_seconds: float, data: str | None, prunes: bool = False) -> Plan:
    """The plan of ``--plan``, held to the other flags.

    Args:
        recover_seconds: of ``--recover``, which is for int8 alone unless anything is pruned.
        prunes: whether anything is.

    Raises:
        InputError: for flags that contradict each other, or as :func:`~edgeattn.quantize.plan.read_plan`.
    """
    from edgeattn.errors import InputError
    from edgeattn.quantize.plan import Plan, read_plan

    for_int8 = recover_seconds > 0 and not prunes
    if precision in ("fp32", "fp16"):
        for flag, given in (("--plan", path is not None), ("--recover", for_int8)):
            if given:
                raise InputError(f"{flag} is for int8 and --precision is {precision}: leave one of them out")
    if for_int8 and data is None:
        raise InputError("--recover trains on --data, which is not given: give inputs like those of use, with labels")
    return Plan() if path is None else read_plan(path)
