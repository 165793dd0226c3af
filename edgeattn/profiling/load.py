"""Neighbours: processes that keep the processors busy while something is measured."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

from edgeattn.errors import DeviceError

MAX_NEIGHBOURS = 256
STOP_SECONDS = 5.0
# Copies 8 MiB again and again: beyond the second level caches of all the targets, so that memory is busy as well. It
# ends by itself when its parent is gone, also when that was killed.
PROGRAM = """
import os, sys
parent = int(sys.argv[1])
if sys.argv[2] and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {int(sys.argv[2])})
block = bytearray(8 << 20)
sys.stdout.write("busy\\n")
sys.stdout.flush()
while os.getppid() == parent:
    other = bytes(block)
"""


@contextlib.contextmanager
def busy_neighbours(count: int, processors: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Run ``count`` busy processes, pinned to ``processors`` one after the other, the last processor first.

    As many neighbours as processors leave no core to itself. They are stopped in every case.

    Args:
        processors: those that the measured process may use; empty where pinning is not possible.

    Yields:
        Their process ids, once all of them are busy.

    Raises:
        DeviceError: if one of them cannot be started.
    """
    with contextlib.ExitStack() as stack:
        pins = [processors[-1 - index % len(processors)] if processors else None for index in range(count)]
        neighbours = [stack.enter_context(_neighbour(pin)) for pin in pins]
        for process in neighbours:
            if process.stdout is None or process.stdout.readline() != "busy\n":
                raise DeviceError(f"a busy neighbour did not start, status {process.wait(STOP_SECONDS)}")
        yield tuple(process.pid for process in neighbours)


@contextlib.contextmanager
def _neighbour(processor: int | None) -> Iterator[subprocess.Popen[str]]:
    pinned = "" if processor is None else str(processor)
    command = [sys.executable, "-S", "-c", PROGRAM, str(os.getpid()), pinned]
    nothing = subprocess.DEVNULL
    try:
        process = subprocess.Popen(command, stdin=nothing, stdout=subprocess.PIPE, stderr=nothing, text=True)
    except OSError as error:
        raise DeviceError(f"a busy neighbour cannot be started: {error.strerror or error}") from error
    try:
        yield process
    finally:
        process.kill()
        process.wait(STOP_SECONDS)
        if process.stdout is not None:
            process.stdout.close()
