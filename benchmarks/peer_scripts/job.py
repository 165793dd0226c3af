"""What the scripts of this folder share.

Each of them runs one other project's quantizer, as ``python -m benchmarks.peer_scripts.NAME RECIPE SOURCE SAMPLES
TARGET``, in an environment that may hold that project and numpy alone: nothing of edgeattn is imported here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

VERSIONS = "versions: "
"""Begins the line on stdout that says which releases did the work."""


@dataclass(frozen=True)
class Job:
    """One call of a quantizer.

    Attributes:
        recipe: which of the script's ways.
        source: float32 ONNX or TFLite file, or a Hugging Face directory.
        samples: full input sets by name, for calibration.
        target: the file to write.
    """

    recipe: str
    source: Path
    samples: list[dict[str, np.ndarray]]
    target: Path


def read_job(*packages: str) -> Job:
    """The job that the command line states; prints the versions of ``packages`` first, in case the work fails."""
    recipe, source, samples, target = sys.argv[1:]
    print(VERSIONS + ", ".join(f"{name} {metadata.version(name)}" for name in packages), flush=True)
    return Job(recipe, Path(source), read_samples(Path(samples)), Path(target))


def write_samples(samples: list[dict[str, np.ndarray]], path: Path) -> None:
    """One npz with arrays named ``INDEX/INPUT``."""
    named = {f"{index}/{name}": array for index, one in enumerate(samples) for name, array in one.items()}
    np.savez(path, allow_pickle=False, **named)


def read_samples(path: Path) -> list[dict[str, np.ndarray]]:
    """What :func:`write_samples` wrote."""
    samples: dict[int, dict[str, np.ndarray]] = {}
    with np.load(path) as stored:
        for key in stored.files:
            index, _, name = key.partition("/")
            samples.setdefault(int(index), {})[name] = stored[key]
    return [samples[index] for index in sorted(samples)]
