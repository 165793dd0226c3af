"""Builds wheel and sdist by the project's own backend, without a network and without a trace in the work tree."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeattn.guards.plain import read_toml

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = read_toml(ROOT / "pyproject.toml", "project")
OLDEST_SETUPTOOLS = 77
ROOMS = ("converters", "quantize", "runtimes", "targets")
WEIGHTS = Path("edgeattn/models/streaming_conformer/assets")  # the project of the built-in model's weights


def copy_sources(to: Path) -> Path:
    """What a build reads, links included."""
    for name in ("edgeattn", *ROOMS):
        shutil.copytree(ROOT / name, to / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "Makefile", "constraints.txt"):
        shutil.copyfile(ROOT / name, to / name)
    return to


def build(tree: Path, kind: str, out: Path) -> Path:
    """Build a "wheel" or an "sdist" of a copy of the sources, or of the weights' project in it."""
    try:  # not imported: it changes the distutils of this process, and fails where others did that before
        found = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        found = "0"
    if int(found.partition(".")[0]) < OLDEST_SETUPTOOLS:
        pytest.skip("setuptools builds the wheel: edgeattn[dev] installs it")
    program = f"import setuptools.build_meta as b, sys; b.build_{kind}(sys.argv[1])"
    result = subprocess.run([sys.executable, "-c", program, out], cwd=tree, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (built,) = out.iterdir()
    return built


def pip_install(python: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run this environment's pip on another one. Neither PYTHONPATH nor the folder may show it the work tree."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *map(str, arguments)]
    return subprocess.run(command, cwd=python.parent, env=environment, capture_output=True, text=True, check=False)
