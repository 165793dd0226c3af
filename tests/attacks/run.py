"""Attacks of a kind, in processes that are ended where they hang or die, and begun again behind that attack."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.attacks.worker import Outcome

ROOT = Path(__file__).parents[2]
START = 180.0  # seconds to import frameworks and make what attacks start from
LIMIT = 40.0  # seconds after which an attack hangs
BATCH = 500  # attacks of one process


def run(kind: str, seed: int, first: int, count: int) -> Iterator[Outcome]:
    """The attacks ``first`` to ``first + count`` of a kind."""
    at = first
    while at < first + count:
        for outcome in batch((kind,), seed, at, min(BATCH, first + count - at)):
            yield outcome
            at = outcome.index + 1


def batch(kinds: Sequence[str], seed: int, first: int, count: int) -> Iterator[Outcome]:
    """As many attacks of each kind, in one process: the first that hangs, or ends it, is the last."""
    folder = Path(tempfile.mkdtemp(prefix="edgeattn-attack-"))
    reading, writing = os.pipe()
    words = [",".join(kinds), *map(str, (seed, first, count, folder, writing))]
    environment = {
        **os.environ,
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "XDG_CACHE_HOME": str(folder / "home" / ".cache"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
        "COLUMNS": "200",
    }
    for name in ("home", "tmp"):
        (folder / name).mkdir()
    errors = (folder / "worker.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.attacks.worker", *words],
        cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, pass_fds=[writing],
        start_new_session=True,
    )  # fmt: skip
    os.close(writing)
    running: tuple[str, int] | None = None
    try:
        for line in _lines(reading, START, LIMIT):
            told = json.loads(line)
            if "begin" in told:
                running = told["begin"]
                continue
            running = None
            outcome = Outcome(**told["end"])
            yield outcome
        status = process.poll() if running is None else None
        if running is not None:
            died = process.poll()
            log = "\n".join(_tail(folder / name) for name in ("where", "stderr", "worker.log"))
            problem = "hangs" if died is None else f"the process died with status {died}"
            yield Outcome(running[0], seed, running[1], -1, LIMIT, problem, log)
        elif status not in (0, None):
            raise RuntimeError(
                f"{', '.join(kinds)}: the worker ended with status {status}: {_tail(folder / 'worker.log')}"
            )
    finally:
        os.close(reading)
        process.kill()
        process.wait()
        errors.close()
        shutil.rmtree(folder, ignore_errors=True)


def _tail(path: Path) -> str:
    """The end of what a process wrote; empty if it wrote nothing."""
    return path.read_text(encoding="utf-8", errors="replace")[-1_500:] if path.is_file() else ""


def _lines(reading: int, start: float, limit: float) -> Iterator[str]:
    """Lines of the pipe until it ends, or until none comes for so long; the first may take longer."""
    left, patience = b"", start
    while select.select([reading], [], [], patience)[0]:
        block = os.read(reading, 65_536)
        if not block:
            time.sleep(0.3)  # for the status of the process
            return
        *whole, left = (left + block).split(b"\n")
        for line in whole:
            yield line.decode("utf-8")
        patience = limit
