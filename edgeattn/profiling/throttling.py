"""Clocks and heat during a run: one whose clock fell is invalid, not slow. numpy and the standard library only.

Read where the system tells: Linux cpufreq and thermal_throttle (Documentation/admin-guide/pm/cpufreq.rst,
Documentation/ABI/testing/sysfs-devices-system-cpu), devfreq (GPUs of Jetson boards and of phones), thermal zones, and
the Raspberry Pi's firmware (``get_throttled``). Every reader takes the root of the tree that it reads.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeattn.profiling.figures import Clocks

ROOT = Path("/")
PERIOD_SECONDS = 0.2  # between two looks
BLOCK = 5  # looks whose median is one clock: a single look may fall between two states of a governor
RAMP_SECONDS = 0.25  # of calls back to back before the looks of a pulse: governors take some 10 to 100 ms to rise
PULSE_PERIOD_SECONDS = 0.05
GPU = re.compile("gpu|ga10b|gv11b|gp10b|kgsl|mali")  # names of GPUs in devfreq: Jetson's, Qualcomm's, ARM's
FALL_LIMIT = 0.05
VCGENCMD_SECONDS = 2.0
PI_NOW = 0xF  # bits 0..3 of get_throttled: under-voltage, clock capped, throttled, soft temperature limit
PI_EVER = 0xF0000  # the same since boot


@dataclass(frozen=True)
class Look:
    """One look at the device.

    Attributes:
        mhz: the fastest of the processors asked about; None where not readable.
        devices_mhz: by name, of GPUs.
        celsius: the hottest thermal zone.
    """

    mhz: float | None
    devices_mhz: dict[str, float]
    celsius: float | None


class Watch:
    """Looks at the clocks between calls, at about 5 Hz.

    Not a thread: it would take turns with the measured code for the interpreter's lock. A look right after a call also
    sees the clock that the call had, not that of an idle core.

    A governor lowers the clock of a device that is paced and mostly idle, which is no throttling. So a paced run is
    judged by its pulses: short bursts of calls before and after it, whose clock is that under load.
    """

    def __init__(
        self,
        processors: Sequence[int],
        gpu: bool = False,
        root: Path = ROOT,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin.

        Args:
            processors: that the calls run on.
            gpu: whether they run on a GPU; the clock of one that has nothing to do may fall.
            root: of the tree that holds ``sys``.
            now: seconds, never going back.
        """
        self._processors, self._gpu, self._root, self._now = tuple(processors), gpu, root, now
        self._events = throttle_events(self._processors, root)
        self._pi = pi_flags(root)
        self._looks: list[Look] = []
        self._pulses: list[Look] = []
        self._next = now()

    def look(self) -> None:
        """Look, if it is time to."""
        if self._now() < self._next:
            return
        self._looks.append(look(self._processors, self._gpu, self._root))
        self._next = self._now() + PERIOD_SECONDS

    @property
    def readable(self) -> bool:
        """Whether there is a clock to look at."""
        seen = look(self._processors, self._gpu, self._root)
        return seen.mhz is not None or bool(seen.devices_mhz)

    def pulse(self, call: Callable[[], None]) -> None:
        """Look at the clock under load: of calls back to back, once they brought the clock up."""
        due = self._now() + RAMP_SECONDS
        for _ in range(BLOCK):
            call()
            while self._now() < due:
                call()
            self._pulses.append(look(self._processors, self._gpu, self._root))
            due = self._now() + PULSE_PERIOD_SECONDS

    def clocks(self) -> Clocks | None:
        """What was seen; None where the system tells nothing."""
        before, after = self._events, throttle_events(self._processors, self._root)
        events = after - before if before is not None and after is not None else None
        flags = pi_flags(self._root)
        seen = [*self._looks, *self._pulses]
        series = [look.mhz for look in seen if look.mhz is not None]
        devices = sorted({name for look in seen for name in look.devices_mhz})
        judged = self._pulses or self._looks
        falls = [clock_fall([look.mhz for look in judged if look.mhz is not None])]
        falls += [clock_fall([look.devices_mhz[n] for look in judged if n in look.devices_mhz]) for n in devices]
        heat = [look.celsius for look in seen if look.celsius is not None]
        if not series and not devices and events is None and flags is None and not heat:
            return None
        fall = max((value for value in falls if value is not None), default=None)
        capped = None if flags is None else bool(flags & PI_NOW or flags & PI_EVER & ~(self._pi or 0))
        return Clocks(
            min_mhz=min(series, default=None),
            max_mhz=max(series, default=None),
            fall=fall,
            throttle_events=events,
            capped=capped,
            max_celsius=max(heat, default=None),
            held=not ((fall or 0.0) > FALL_LIMIT or (events or 0) > 0 or capped),
        )


def clock_fall(series: Sequence[float]) -> float | None:
    """Largest fall of a clock from any time to any later one, as a share: 0.1 for 1500 after 1667 MHz.

    Of medians of five looks each, so that one odd look is no fall. None for fewer than two such blocks.
    """
    blocks = len(series) // BLOCK
    if blocks < 2:
        return None
    medians = np.median(np.asarray(series[: blocks * BLOCK], np.float64).reshape(blocks, BLOCK), axis=1)
    highest = np.maximum.accumulate(medians)
    return float(np.max(1.0 - medians / highest))


def look(processors: Sequence[int], gpu: bool = False, root: Path = ROOT) -> Look:
    """Read the clocks (kHz of cpufreq, Hz of devfreq) and the heat (millidegrees) once."""
    cpu = root / "sys/devices/system/cpu"
    found = [read_integer(cpu / f"cpu{index}/cpufreq/scaling_cur_freq") for index in processors]
    clocks = [value / 1e3 for value in found if value]
    devices = {}
    for entry in entries(root / "sys/class/devfreq") if gpu else ():
        if not GPU.search(entry.name):
            continue
        value = read_integer(entry / "cur_freq")
        if value:
            devices[entry.name] = value / 1e6
    zones = [read_integer(zone / "temp") for zone in entries(root / "sys/class/thermal", "thermal_zone*")]
    heat = [value / 1e3 for value in zones if value is not None]
    return Look(max(clocks, default=None), devices, max(heat, default=None))


def throttle_events(processors: Sequence[int], root: Path = ROOT) -> int | None:
    """How often x86 cores and their package throttled since boot; None where not told."""
    cpu = root / "sys/devices/system/cpu"
    names = ("core_throttle_count", "package_throttle_count")
    counts = [read_integer(cpu / f"cpu{index}/thermal_throttle/{name}") for index in processors for name in names]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def pi_flags(root: Path = ROOT) -> int | None:
    """``get_throttled`` of a Raspberry Pi's firmware, from sysfs or by vcgencmd; None elsewhere."""
    with contextlib.suppress(OSError, ValueError):
        return int((root / "sys/devices/platform/soc/soc:firmware/get_throttled").read_text(encoding="ascii"), 16)
    program = shutil.which("vcgencmd") if root == ROOT else None
    if program is None:
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        told = subprocess.run(
            [program, "get_throttled"], capture_output=True, text=True, timeout=VCGENCMD_SECONDS, check=True
        )
        return parse_get_throttled(told.stdout)
    return None


def parse_get_throttled(text: str) -> int:
    """``throttled=0x50005`` -> the flags.

    Raises:
        ValueError: for anything else.
    """
    name, _, value = text.strip().partition("=")
    if name != "throttled":
        raise ValueError(f"expected throttled=0x..., got {text!r:.80}")
    return int(value, 16)


def entries(directory: Path, pattern: str = "*") -> list[Path]:
    """What matches in a directory, by name; nothing if there is none or it may not be read."""
    try:
        return sorted(directory.glob(pattern))
    except OSError:
        return []


def read_integer(path: Path) -> int | None:
    """A number as sysfs writes it; None where there is none or it may not be read."""
    try:
        with path.open("rb") as file:
            return int(file.read(64))
    except (OSError, ValueError):
        return None
