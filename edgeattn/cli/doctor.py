"""``edgeattn doctor``."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass

from edgeattn.cli import options as o
from edgeattn.cli.console import exit_codes, print_json, say, show


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program that the way to a device needs.

    Attributes:
        way: the device as ``--device`` names it.
        install: the command that brings it, on Debian and its kin.
    """

    way: str
    install: str


PROGRAMS: Mapping[str, Program] = {
    "ssh": Program(way="ssh://", install="apt install openssh-client"),
    "adb": Program(way="adb:", install="apt install adb"),
    "qemu-aarch64-static": Program(way="qemu:aarch64", install="apt install qemu-user-static"),
}


def doctor(as_json: o.Json = False) -> None:
    """What this machine can run, and what to install for the rest."""
    with exit_codes(as_json):
        import importlib.util
        import shutil

        from edgeattn import __version__
        from edgeattn.results.grid import ABSENT, Column, Grid, Row
        from edgeattn.runtimes import backends
        from edgeattn.spec import to_json
        from edgeattn.targets import cpu_features

        engines, cpu, extras = backends(), cpu_features(), tool_extras()
        tools = {name: importlib.util.find_spec(name) is not None for name in extras}
        programs = {name: shutil.which(name) for name in PROGRAMS}
        if as_json:
            print_json(
                {
                    "schema": 1,
                    "edgeattn": __version__,
                    "python": platform.python_version(),
                    "cpu": {**to_json(cpu), "int8_dot": cpu.int8_dot},
                    "engines": to_json(engines),
                    "tools": {n: {"present": p, "version": _version(n), "extra": extras[n]} for n, p in tools.items()},
                    "programs": {
                        name: {"path": path, "device": PROGRAMS[name].way, "install": PROGRAMS[name].install}
                        for name, path in programs.items()
                    },
                }
            )
            return
        say(f"edgeattn {__version__}, Python {platform.python_version()}")
        int8 = "int8 products in one instruction" if cpu.int8_dot else "no int8 dot product: int8 is slow, may saturate"
        isa = ", ".join(cpu.isa) or "unknown"
        say(f"{cpu.model or cpu.arch}, {cpu.cores} cores: {isa} ({int8})")
        here = {
            **{e.name: ("running bundles", e.module and (e.version or "yes"), e.install) for e in engines},
            **{
                name: (extras[name], present and (_version(name) or "yes"), f"pip install 'edgeattn[{extras[name]}]'")
                for name, present in tools.items()
            },
            **{
                name: (f"--device {PROGRAMS[name].way}", path and "yes", PROGRAMS[name].install)
                for name, path in programs.items()
            },
        }
        columns = tuple(Column(name=name) for name in ("part", "for", "here"))
        rows = (Row(cells=(name, use, there or ABSENT)) for name, (use, there, _) in here.items())
        show(Grid(columns=columns, rows=tuple(rows)))
        missing = {name: install for name, (_, there, install) in here.items() if not there}
        if missing:
            say("to install what is missing:")
        for name, install in missing.items():
            say(f"  {name}: {install}")


def tool_extras() -> Mapping[str, str]:
    """What is needed beside the engines: module -> the extra that brings it."""
    from edgeattn.engines import ENGINES

    return {
        **dict.fromkeys(("torch", "onnx", "onnxscript"), "convert"),
        **{tool: row.extra for row in ENGINES.values() for tool in row.tools},
        "transformers": "hf",
        **dict.fromkeys(("soundfile", "soxr"), "speech"),
        "matplotlib": "report",
    }


def _version(module: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(module.replace("_", "-"))
    except metadata.PackageNotFoundError:
        return None
