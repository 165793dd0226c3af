"""tegrastats, the monitor of Jetson boards: the power of rails, and the memory's clock where root asks.

A line holds ``NAME NOWmW/AVERAGEmW`` for each rail and, for root, ``EMC_FREQ LOAD%@MHZ`` (Jetson Linux Developer Guide,
tegrastats Utility). Its average is that since the program began; what counts here is the power now.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import time

from edgeattn.guards.children import bound
from edgeattn.runtimes.jetson import find_program

INTERVAL_MS = 100
FIRST_LINE_SECONDS = 3.0
STOP_SECONDS = 5.0
RAIL = re.compile(r"(?<!\S)([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/\d+(?:mW)?(?!\S)")
EMC = re.compile(r"\bEMC_FREQ (?:\d+%)?@(\d+)")
UNCONNECTED = "NC"  # the label of a channel that measures nothing


class Tegrastats:
    """The program, running; its lines are read without waiting for one. Close it when it is done with."""

    def __init__(self, program: str) -> None:
        """Start it, and wait for its first line.

        Raises:
            OSError: if it cannot be started.
        """
        nothing = subprocess.DEVNULL
        self._process = subprocess.Popen(
            bound([program, "--interval", str(INTERVAL_MS)]), stdin=nothing, stdout=subprocess.PIPE, stderr=nothing
        )
        assert self._process.stdout is not None, "it was asked for"
        self._output = self._process.stdout
        os.set_blocking(self._output.fileno(), False)
        self._unfinished, self._ended = b"", False
        self._line: str | None = None
        give_up = time.monotonic() + FIRST_LINE_SECONDS
        while self.line() is None and (left := give_up - time.monotonic()) > 0:
            if self._ended or not select.select([self._output], [], [], left)[0]:
                break

    def line(self) -> str | None:
        """The last whole line; None if there was none yet, or the program ended."""
        self._drain()
        return None if self._ended else self._line

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.wait(STOP_SECONDS)
        self._output.close()

    def _drain(self) -> None:
        """Read what there is."""
        while not self._ended:
            try:
                block = os.read(self._output.fileno(), 65536)
            except BlockingIOError:
                return
            self._ended = not block
            *lines, self._unfinished = (self._unfinished + block).split(b"\n")
            if lines:
                self._line = lines[-1].decode("utf-8", "replace")


def start_tegrastats() -> Tegrastats | None:
    """The program, if it is on this device and tells something."""
    program = find_program("tegrastats")
    if program is None:
        return None
    with contextlib.suppress(OSError):
        running = Tegrastats(program)
        if running.line() is not None:
            return running
        running.close()
    return None


def rails_watts(line: str) -> dict[str, float]:
    """Rail -> watts.

    >>> rails_watts("RAM 1954/7620MB SWAP 0/3810MB VDD_IN 4523mW/4400mW NC 0mW/0mW VDD_SOC 1373/1373")
    {'VDD_IN': 4.523, 'VDD_SOC': 1.373}
    """
    return {name: int(now) / 1e3 for name, now in RAIL.findall(line) if name != UNCONNECTED}


def emc_mhz(line: str) -> float | None:
    """Clock of the external memory controller; None where the line does not tell.

    >>> emc_mhz("CPU [0%@883] EMC_FREQ 0%@2133 GR3D_FREQ 0%@[305]"), emc_mhz("GR3D_FREQ 0%")
    (2133.0, None)
    """
    found = EMC.search(line)
    return None if found is None else float(found[1])
