"""Busy neighbours: busy while something is measured, gone after it, whatever happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeattn.errors import DeviceError
from edgeattn.profiling.load import busy_neighbours
from edgeattn.profiling.measure import affinity

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def processor_seconds(process: int) -> float:
    ticks = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")


@needs_proc
def test_they_are_busy_on_the_processors_they_were_given_and_gone_afterwards() -> None:
    processors = affinity()
    with busy_neighbours(3, processors) as processes:
        assert len(set(processes)) == 3
        pinned = [os.sched_getaffinity(process) for process in processes]
        assert pinned == [{processors[-1 - index % len(processors)]} for index in range(3)]
        until = time.monotonic() + 20
        while min(map(processor_seconds, processes)) < 0.05 and time.monotonic() < until:
            time.sleep(0.02)
        assert min(map(processor_seconds, processes)) >= 0.05
    assert not any(map(alive, processes))


def test_an_error_while_measuring_stops_them_too() -> None:
    seen: list[int] = []

    def fail() -> None:
        with busy_neighbours(2, ()) as processes:
            seen.extend(processes)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(seen) == 2
    assert not any(map(alive, seen))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills a process")
def test_they_end_when_the_measuring_process_is_killed() -> None:
    program = (
        "import time\n"
        "from edgeattn.profiling.load import busy_neighbours\n"
        "with busy_neighbours(2, ()) as processes:\n"
        "    print(*processes, flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as measuring:
        assert measuring.stdout is not None
        processes = [int(word) for word in measuring.stdout.readline().split()]
        measuring.kill()
    assert len(processes) == 2
    until = time.monotonic() + 20
    while any(map(alive, processes)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(alive, processes))


def test_none_at_all_is_allowed() -> None:
    with busy_neighbours(0, (0,)) as processes:
        assert processes == ()


def test_one_that_does_not_start_is_an_error_and_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeattn.profiling.load.PROGRAM", "raise SystemExit(3)")
    with pytest.raises(DeviceError, match="did not start, status 3"), busy_neighbours(1, ()):
        pass
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(DeviceError, match="cannot be started: No such file"), busy_neighbours(1, ()):
        pass
