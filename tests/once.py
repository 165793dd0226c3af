"""What is costly to make is made once per run, by whichever worker comes to it first; the others wait and read it."""

from __future__ import annotations

import fcntl
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

Made = TypeVar("Made")


def shared_root(factory: pytest.TempPathFactory) -> Path:
    """A directory that all workers of this run see and no other run does."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own  # a worker's own lies in that of the run


def made_once(root: Path, name: str, make: Callable[[Path], Made]) -> Made:
    """What ``make`` gives for a directory of its own, which nobody may write to afterwards.

    Where it raises, or the process dies meanwhile, nothing is kept, and who comes next makes it again.

    Args:
        root: :func:`shared_root`.
        name: of the thing; one name always has the same ``make``.
        make: called with an existing, empty directory; what it returns can be pickled.
    """
    home, kept = root / name, root / f"{name}.pickle"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()
            made: Any = make(home)
            unfinished = kept.with_suffix(".unfinished")
            unfinished.write_bytes(pickle.dumps(made))
            unfinished.rename(kept)
        found: Made = pickle.loads(kept.read_bytes())
    return found
