"""What a Jetson says of itself: the release of its software and its power mode. Nothing elsewhere."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

RELEASE = Path("/etc/nv_tegra_release")
NVPMODEL_SECONDS = 10.0


@dataclass(frozen=True)
class PowerMode:
    """A set of cores and highest clocks, by the number that ``nvpmodel -m`` takes and its name."""

    id: int
    name: str


def l4t_release(path: Path = RELEASE) -> str:
    """First line of the file that names the release, ``# R36 (release), REVISION: 4.3, ...``; empty elsewhere."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.readline(1024).decode("utf-8", "replace").strip()
    return ""


def find_program(name: str) -> str | None:
    """Where a program of the board is; also in the folders that only an administrator's shell looks in."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin")))


def power_mode() -> PowerMode | None:
    """The mode that ``nvpmodel -q`` tells, which needs no rights; None where there is none, or it does not tell."""
    program = find_program("nvpmodel")
    if program is None:
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        told = subprocess.run(
            [program, "-q"],
            capture_output=True,
            text=True,
            timeout=NVPMODEL_SECONDS,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        return parse_power_mode(told.stdout)
    return None


def parse_power_mode(text: str) -> PowerMode:
    r"""What ``nvpmodel -q`` prints: the name of the mode, and its number on a line of its own.

    Older releases print the mode of the fan before it, and warnings (Jetson Linux Developer Guide, nvpmodel GUI and
    command line).

    Raises:
        ValueError: for anything else.

    >>> parse_power_mode("NV Fan Mode:quiet\nNV Power Mode: 15W\n0\n")
    PowerMode(id=0, name='15W')
    """
    found = re.search(r"NV Power Mode: *(\S+)\s*^(\d+)\s*$", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"expected the lines 'NV Power Mode: NAME' and NUMBER of nvpmodel -q, got {text!r:.200}")
    return PowerMode(int(found[2]), found[1])
