"""``edgeattn doctor``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform

from edgeattn.cli import options as o
from edgeattn.cli.console import console, exit_codes, print_json

# What convert needs beside the engines: module -> the extra that brings it.
TOOLS = {
    "torch": "convert",
    "onnx": "convert",
    "onnxscript": "convert",
    "nncf": "openvino",
    "litert_torch": "tflite",
    "ai_edge_quantizer": "tflite",
    "tensorrt_rtx": "tensorrt-check",
    "soundfile": "speech",
    "soxr": "speech",
}


def doctor(as_json: o.Json = False) -> None:
    """What this machine can run, and what to install for the rest."""
    with exit_codes(as_json):
        from edgeattn import __version__
        from edgeattn.runtimes import backends
        from edgeattn.spec import to_json
        from edgeattn.targets import cpu_features

        engines, cpu = backends(), cpu_features()
        tools = {name: importlib.util.find_spec(name) is not None for name in TOOLS}
        if as_json:
            print_json(
                {
                    "schema": 1,
                    "edgeattn": __version__,
                    "python": platform.python_version(),
                    "cpu": {**to_json(cpu), "int8_dot": cpu.int8_dot},
                    "engines": to_json(engines),
                    "tools": {n: {"present": p, "version": _version(n), "extra": TOOLS[n]} for n, p in tools.items()},
                }
            )
            return
        from rich.table import Table

        terminal = console()
        terminal.print(f"edgeattn {__version__}, Python {platform.python_version()}")
        int8 = "int8 products in one instruction" if cpu.int8_dot else "no int8 dot product: int8 is slow, may saturate"
        isa = ", ".join(cpu.isa) or "unknown"
        terminal.print(f"{cpu.model or cpu.arch}, {cpu.cores} cores: {isa} ({int8})")
        table = Table("part", "for", "here", "install")
        for engine in engines:
            here = "-" if engine.module is None else (engine.version or "yes")
            table.add_row(engine.name, "running bundles", here, "" if engine.module else engine.install)
        for name, present in tools.items():
            install = "" if present else f"pip install 'edgeattn[{TOOLS[name]}]'"
            table.add_row(name, TOOLS[name], (_version(name) or "yes") if present else "-", install)
        terminal.print(table)


def _version(module: str) -> str | None:
    try:
        return importlib.metadata.version(module.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return None
