"""The CUDA runtime that tests run on: the real one where there is a GPU, and a simulator of it elsewhere."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from edgeattn.errors import DeviceError
from edgeattn.runtimes.cuda import Cuda

SOURCE = Path(__file__).with_name("simulated_cudart.c")


def has_gpu() -> bool:
    """Whether there is a GPU that CUDA can use."""
    try:
        Cuda().close()
    except DeviceError:
        return False
    return True


def build_simulator(folder: Path) -> Path:
    """Compile the simulator of the CUDA runtime; skip the test where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("the simulator of the CUDA runtime is compiled with cc")
    library = folder / "libsimulated_cudart.so"
    command = [compiler, "-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-D_POSIX_C_SOURCE=200809L"]
    subprocess.run([*command, "-shared", "-fPIC", "-o", str(library), str(SOURCE)], check=True)
    return library
