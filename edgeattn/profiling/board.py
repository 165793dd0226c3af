"""How a Jetson is set: its power mode, and what its clocks may do."""

from __future__ import annotations

import contextlib
from pathlib import Path

from edgeattn.profiling.figures import Board, ClockSetting
from edgeattn.profiling.tegrastats import emc_mhz, start_tegrastats
from edgeattn.profiling.throttling import GPU, ROOT, entries, read_integer
from edgeattn.runtimes.jetson import l4t_release, power_mode

KHZ, HZ = 1e3, 1e6  # per MHz, of cpufreq and of devfreq


def board_state(locked: bool = False, root: Path = ROOT) -> Board | None:
    """What the board tells now; None where this is no Jetson.

    Args:
        locked: whether we hold its clocks.
        root: of the tree that holds ``etc`` and ``sys``.
    """
    release, mode = l4t_release(root / "etc/nv_tegra_release"), power_mode()
    if not release and mode is None:
        return None
    clocks = {
        f"cpu{policy.name.removeprefix('policy')}": ClockSetting(
            *(_mhz(policy / f"scaling_{which}_freq", KHZ) for which in ("min", "max", "cur"))
        )
        for policy in entries(root / "sys/devices/system/cpu/cpufreq", "policy*")
    }
    clocks |= {
        gpu.name: ClockSetting(*(_mhz(gpu / f"{which}_freq", HZ) for which in ("min", "max", "cur")))
        for gpu in entries(root / "sys/class/devfreq")
        if GPU.search(gpu.name)
    }
    memory = _memory_mhz()
    if memory is not None:
        clocks["emc"] = ClockSetting(None, None, memory)
    return Board(release, mode.name if mode else None, mode.id if mode else None, clocks, locked)


def _mhz(path: Path, per_mhz: float) -> float | None:
    value = read_integer(path)
    return None if value is None else value / per_mhz


def _memory_mhz() -> float | None:
    running = start_tegrastats()
    if running is None:
        return None
    with contextlib.closing(running):
        return emc_mhz(running.line() or "")
