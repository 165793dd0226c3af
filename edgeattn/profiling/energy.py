"""Energy of a call, where the device tells: RAPL, an INA3221 on the board, a battery that discharges.

RAPL counts microjoules of processor packages (Documentation/power/powercap/powercap.rst); since Linux 5.10 its counter
is for root alone, and then there is no figure. INA3221 are the power monitors of Jetson boards
(Documentation/hwmon/ina3221.rst: mV and mA per rail); where their files cannot be read, as in a container, tegrastats
tells the same rails. A battery gives uV and uA
(Documentation/ABI/testing/sysfs-class-power), of the whole device, screen included, and says nothing while it charges.
"""

from __future__ import annotations

import abc
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from edgeattn.profiling.figures import Energy, EnergySource
from edgeattn.profiling.pacing import Clock
from edgeattn.profiling.tegrastats import UNCONNECTED, Tegrastats, rails_watts, start_tegrastats
from edgeattn.profiling.throttling import ROOT, entries, read_integer

T = TypeVar("T")

IDLE_SECONDS = 1.0
LEAST_WATTS = 0.02  # of a device that computes; a thousandth of what the hungriest phone takes is below it
SAMPLE_SECONDS = 0.05  # between two readings of a power; the INA3221 of a Jetson averages over some 10 ms by itself
TOTALS = ("VDD_IN", "VIN")  # of Jetson Orin Nano and NX; of Thor: what the board takes, all other rails included
PARTS = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}  # of AGX Orin: a rail that another one feeds


class Meter(abc.ABC):
    """Something that tells joules since :meth:`start`."""

    source: EnergySource
    rails: tuple[str, ...]

    @abc.abstractmethod
    def start(self) -> None:
        """Begin to count at zero."""

    @abc.abstractmethod
    def sample(self) -> None:
        """To be called from time to time between :meth:`start` and :meth:`joules`."""

    @abc.abstractmethod
    def joules(self) -> float | None:
        """Since the start; None if the device stopped telling."""

    @abc.abstractmethod
    def close(self) -> None:
        """End what runs for it."""


class CounterMeter(Meter):
    """RAPL: counters that wrap around."""

    source: EnergySource = "rapl"

    def __init__(self, zones: dict[str, Path]) -> None:
        self.rails, self._zones = tuple(zones), tuple(zones.values())
        self._ranges = [read_integer(zone / "max_energy_range_uj") for zone in self._zones]
        self._last: list[int | None] = []
        self._microjoules: int | None = 0

    def start(self) -> None:
        """See :class:`Meter`."""
        self._last, self._microjoules = [read_integer(zone / "energy_uj") for zone in self._zones], 0

    def sample(self) -> None:
        """See :class:`Meter`. A counter wraps after minutes at the earliest."""
        fresh = [read_integer(zone / "energy_uj") for zone in self._zones]
        for before, after, span in zip(self._last, fresh, self._ranges, strict=True):
            if self._microjoules is None or before is None or after is None or (after < before and span is None):
                self._microjoules = None
                return
            self._microjoules += after - before + ((span or 0) if after < before else 0)
        self._last = fresh

    def joules(self) -> float | None:
        """See :class:`Meter`."""
        self.sample()
        return None if self._microjoules is None else self._microjoules / 1e6

    def close(self) -> None:
        """See :class:`Meter`: nothing runs."""


class PowerMeter(Meter):
    """A power in watts, summed up over time by the trapezoidal rule."""

    def __init__(
        self,
        source: EnergySource,
        rails: tuple[str, ...],
        watts: Callable[[], float | None],
        now: Callable[[], float],
        end: Callable[[], None] | None = None,
    ) -> None:
        self.source, self.rails, self._watts, self._now, self._end = source, rails, watts, now, end
        self._last: tuple[float, float] | None = None
        self._joules: float | None = 0.0

    def start(self) -> None:
        """See :class:`Meter`."""
        self._last, self._joules = None, 0.0
        self._read()

    def sample(self) -> None:
        """See :class:`Meter`."""
        if self._last is not None and self._now() - self._last[0] >= SAMPLE_SECONDS:
            self._read()

    def joules(self) -> float | None:
        """See :class:`Meter`."""
        self._read()
        return self._joules

    def close(self) -> None:
        """See :class:`Meter`."""
        if self._end is not None:
            self._end()

    def _read(self) -> None:
        at, watts = self._now(), self._watts()
        if watts is None:
            self._joules = None
        elif self._last is not None and self._joules is not None:
            self._joules += (at - self._last[0]) * (watts + self._last[1]) / 2
        self._last = (at, watts or 0.0)


def find_meter(root: Path = ROOT, now: Callable[[], float] = time.monotonic) -> Meter | None:
    """The best meter of this device: the board's own, then RAPL, then a discharging battery; None if none can be read.

    Close it when it is done with.

    Args:
        root: of the tree that holds ``sys``.
    """
    rails = ina3221_rails(root)
    if rails:
        return PowerMeter("ina3221", tuple(rails), lambda: _sum_watts(rails), now)
    running = start_tegrastats()
    if running is not None:
        names = tuple(counted_rails(rails_watts(running.line() or "")))
        if names:
            return PowerMeter("tegrastats", names, lambda: _told_watts(running, names), now, running.close)
        running.close()
    zones = rapl_zones(root)
    if zones:
        return CounterMeter(zones)
    battery = next((entry for entry in entries(root / "sys/class/power_supply") if _discharges(entry)), None)
    if battery is not None:
        return PowerMeter("battery", (battery.name,), lambda: battery_watts(battery), now)
    return None


def measure_energy(
    call: Callable[[], None],
    meter: Meter,
    seconds: float,
    clock: Clock | None = None,
    idle_seconds: float = IDLE_SECONDS,
) -> Energy | None:
    """Joules of a call, as fast as possible, after a rest that tells what the device takes anyway.

    Args:
        seconds: to call for, at least one call.

    Returns:
        None if the meter did not count: nothing readable any more, or too coarse for the time.
    """
    clock = clock or Clock()
    idle = _idle_watts(meter, clock, idle_seconds)
    meter.start()
    began = clock.now()
    calls, took = 0, 0.0
    while not calls or took < seconds:
        call()
        calls += 1
        meter.sample()
        took = clock.now() - began
    joules = meter.joules()
    took = clock.now() - began
    if not joules or took <= 0:
        return None
    return Energy(meter.source, meter.rails, joules / calls, joules / took, idle, calls, took)


def _idle_watts(meter: Meter, clock: Clock, seconds: float) -> float | None:
    meter.start()
    began = clock.now()
    while (took := clock.now() - began) < seconds:
        clock.sleep(min(SAMPLE_SECONDS, seconds - took))
        meter.sample()
    joules, took = meter.joules(), clock.now() - began
    return joules / took if joules is not None and took > 0 else None


def rapl_zones(root: Path = ROOT) -> dict[str, Path]:
    """Packages whose counter may be read, by name.

    Their parts (core, uncore, dram) would count twice, and psys counts more than the processor.
    """
    found = {}
    for zone in entries(root / "sys/class/powercap", "intel-rapl:*"):
        if re.fullmatch(r"intel-rapl:\d+", zone.name) and read_integer(zone / "energy_uj") is not None:
            name = _word(zone / "name")
            if name.startswith("package"):
                found[name] = zone
    return found


def ina3221_rails(root: Path = ROOT) -> dict[str, tuple[Path, Path]]:
    """Rail -> files with its mV and its mA, of those that add up to what the board takes."""
    found = {}
    for monitor in entries(root / "sys/class/hwmon", "hwmon*"):
        if _word(monitor / "name") != "ina3221":
            continue
        for label in entries(monitor, "in*_label"):
            channel = label.name.removeprefix("in").removesuffix("_label")
            volts, amperes = monitor / f"in{channel}_input", monitor / f"curr{channel}_input"
            name = _word(label)
            if name != UNCONNECTED and read_integer(volts) is not None and read_integer(amperes) is not None:
                found[name] = (volts, amperes)
    return counted_rails(found)


def counted_rails(found: Mapping[str, T]) -> dict[str, T]:
    """Those that add up: the board's input alone where it is told, else all that no other one feeds.

    >>> list(counted_rails({"VDD_IN": 0, "VDD_SOC": 0})), list(counted_rails({"VDD_GPU_SOC": 0, "VDD_CPU_CV": 0}))
    (['VDD_IN'], ['VDD_GPU_SOC', 'VDD_CPU_CV'])
    >>> list(counted_rails({"VIN_SYS_5V0": 0, "VDDQ_VDD2_1V8AO": 0}))
    ['VIN_SYS_5V0']
    """
    for total in TOTALS:
        if total in found:
            return {total: found[total]}
    return {name: value for name, value in found.items() if PARTS.get(name) not in found}


def battery_watts(battery: Path) -> float | None:
    """Of a battery that discharges; its current is negative on some devices and positive on others.

    None where no device could run on so little: drivers of some phones give mA where the ABI says uA.
    """
    volts, amperes = read_integer(battery / "voltage_now"), read_integer(battery / "current_now")
    if volts is None or amperes is None or not _discharges(battery):
        return None
    watts = volts * abs(amperes) / 1e12
    return watts if watts >= LEAST_WATTS else None


def _discharges(supply: Path) -> bool:
    readable = read_integer(supply / "voltage_now") is not None and read_integer(supply / "current_now") is not None
    return readable and _word(supply / "type") == "Battery" and _word(supply / "status") == "Discharging"


def _sum_watts(rails: dict[str, tuple[Path, Path]]) -> float | None:
    total = 0.0
    for volts, amperes in rails.values():
        millivolts, milliamperes = read_integer(volts), read_integer(amperes)
        if millivolts is None or milliamperes is None:
            return None
        total += millivolts * milliamperes / 1e6
    return total


def _told_watts(running: Tegrastats, names: tuple[str, ...]) -> float | None:
    told = rails_watts(running.line() or "")
    return sum(told[name] for name in names) if told.keys() >= set(names) else None


def _word(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(64).decode("utf-8", "replace").strip()
    except OSError:
        return ""
