"""Energy from trees of files as RAPL, the INA3221 of Jetson boards and batteries have them; time is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgeattn.profiling.energy import (
    Meter,
    battery_watts,
    find_meter,
    ina3221_rails,
    measure_energy,
    rapl_zones,
)
from edgeattn.profiling.figures import Energy
from edgeattn.profiling.pacing import Clock
from tests.profiling.trees import write_tree

RAPL = "sys/class/powercap/intel-rapl:0"
ORIN = "sys/class/hwmon/hwmon1"
PHONE = "sys/class/power_supply/battery"


def rapl_tree(root: Path, microjoules: int = 0, span: int = 262_143_328_850) -> Path:
    return write_tree(
        root,
        {
            f"{RAPL}/name": "package-0",
            f"{RAPL}/energy_uj": microjoules,
            f"{RAPL}/max_energy_range_uj": span,
            f"{RAPL}:0/name": "core",  # counts again what the package counts
            f"{RAPL}:0/energy_uj": 5,
            f"{RAPL}:0/max_energy_range_uj": span,
            "sys/class/powercap/intel-rapl:1/name": "psys",
            "sys/class/powercap/intel-rapl:1/energy_uj": 5,
            "sys/class/powercap/intel-rapl:1/max_energy_range_uj": span,
        },
    )


def orin_tree(root: Path, milliamperes: int = 1200, total: bool = True) -> Path:
    return write_tree(
        root,
        {
            "sys/class/hwmon/hwmon0/name": "pwmfan",
            f"{ORIN}/name": "ina3221",
            f"{ORIN}/in1_label": "VDD_IN" if total else "VDD_GPU_SOC",
            f"{ORIN}/in1_input": 5_000,
            f"{ORIN}/curr1_input": milliamperes,
            f"{ORIN}/in2_label": "VDD_CPU_GPU_CV",
            f"{ORIN}/in2_input": 5_000,
            f"{ORIN}/curr2_input": 400,
            f"{ORIN}/in3_label": "VDD_SOC",  # its current cannot be read
            f"{ORIN}/in3_input": 5_000,
            f"{ORIN}/in7_label": "sum of shunt voltages",
            f"{ORIN}/in7_input": 3,
        },
    )


def phone_tree(root: Path, status: str = "Discharging", microamperes: int = -500_000) -> Path:
    return write_tree(
        root,
        {
            "sys/class/power_supply/usb/type": "USB",
            f"{PHONE}/type": "Battery",
            f"{PHONE}/status": status,
            f"{PHONE}/voltage_now": 4_000_000,
            f"{PHONE}/current_now": microamperes,
        },
    )


class Device:
    """Time that passes and energy that is taken as a test says: ``watts`` at any moment."""

    def __init__(self, watts: float, set_joules: Callable[[float], object] = lambda _: None) -> None:
        self.seconds, self.joules, self.watts, self._set = 0.0, 0.0, watts, set_joules

    def now(self) -> float:
        return self.seconds

    def spend(self, seconds: float) -> None:
        self.seconds += seconds
        self.joules += seconds * self.watts
        self._set(self.joules)

    def measure(self, meter: Meter | None, call_seconds: float, call_watts: float, seconds: float) -> Energy | None:
        assert meter is not None
        idle = self.watts

        def call() -> None:
            self.watts = call_watts
            self.spend(call_seconds)
            self.watts = idle

        return measure_energy(call, meter, seconds, Clock(self.now, self.spend), idle_seconds=1.0)


def test_rapl_counts_the_joules_of_the_calls(tmp_path: Path) -> None:
    rapl_tree(tmp_path)
    device = Device(3.0, lambda joules: rapl_tree(tmp_path, round(1e6 * joules)))
    figures = device.measure(find_meter(tmp_path), call_seconds=0.01, call_watts=15.0, seconds=2.0)
    assert figures is not None
    assert (figures.source, figures.rails) == ("rapl", ("package-0",))
    assert figures.joules_per_call == pytest.approx(0.15, rel=1e-5)
    assert figures.mean_watts == pytest.approx(15.0, rel=1e-5)
    assert figures.idle_watts == pytest.approx(3.0, rel=1e-5)
    assert figures.calls in (200, 201)  # a hundredth has no exact sum
    assert figures.seconds == pytest.approx(0.01 * figures.calls)


def test_a_counter_that_wraps_around_goes_on_counting(tmp_path: Path) -> None:
    span = 7_000_000  # 7 J: wraps several times, once in two seconds at most
    rapl_tree(tmp_path, span=span)
    device = Device(3.0, lambda joules: rapl_tree(tmp_path, round(1e6 * joules) % span, span))
    figures = device.measure(find_meter(tmp_path), call_seconds=0.1, call_watts=5.0, seconds=10.0)
    assert figures is not None
    assert figures.joules_per_call == pytest.approx(0.5, rel=1e-4)


def test_a_counter_that_stands_still_or_goes_away_gives_no_figure(tmp_path: Path) -> None:
    rapl_tree(tmp_path, 1000)
    meter = find_meter(tmp_path)
    assert Device(3.0).measure(meter, 0.1, 5.0, 1.0) is None  # never updated
    (tmp_path / RAPL / "energy_uj").unlink()
    assert Device(3.0).measure(meter, 0.1, 5.0, 1.0) is None


def test_a_board_tells_the_power_of_its_whole_input(tmp_path: Path) -> None:
    orin_tree(tmp_path)
    device = Device(6.0)
    meter = find_meter(tmp_path, device.now)
    figures = device.measure(meter, call_seconds=0.02, call_watts=6.0, seconds=1.0)
    assert figures is not None
    assert (figures.source, figures.rails) == ("ina3221", ("VDD_IN",))
    assert figures.mean_watts == pytest.approx(6.0)  # 5 V at 1.2 A
    assert figures.idle_watts == pytest.approx(6.0)
    assert figures.joules_per_call == pytest.approx(0.12)


def test_power_is_summed_up_over_time_by_the_trapezoidal_rule(tmp_path: Path) -> None:
    orin_tree(tmp_path, 1000)  # 5 W
    time = [0.0]
    meter = find_meter(tmp_path, lambda: time[0])
    assert meter is not None
    meter.start()
    for at, milliamperes in ((0.01, 9000), (0.1, 2000), (0.2, 1000)):  # the first comes too early to be read
        time[0] = at
        orin_tree(tmp_path, milliamperes)
        meter.sample()
    assert meter.joules() == pytest.approx(0.1 * (5 + 10) / 2 + 0.1 * (10 + 5) / 2)


def test_without_a_rail_for_the_whole_board_the_rails_are_summed(tmp_path: Path) -> None:
    assert list(ina3221_rails(orin_tree(tmp_path, total=False))) == ["VDD_GPU_SOC", "VDD_CPU_GPU_CV"]
    device = Device(0.0)
    meter = find_meter(tmp_path, device.now)
    figures = device.measure(meter, 0.1, 0.0, 1.0)
    assert figures is not None
    assert figures.mean_watts == pytest.approx(5.0 * 1.2 + 5.0 * 0.4)
    assert figures.rails == ("VDD_GPU_SOC", "VDD_CPU_GPU_CV")


def test_a_rail_that_another_one_feeds_is_not_counted_twice(tmp_path: Path) -> None:
    rails = {  # two monitors of an AGX Orin, under JetPack 5 and 6
        "hwmon3": ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
        "hwmon4": ("NC", "VDDQ_VDD2_1V8AO", "NC"),
    }
    files: dict[str, object] = {}
    for monitor, names in rails.items():
        files[f"sys/class/hwmon/{monitor}/name"] = "ina3221"
        for channel, name in enumerate(names, 1):
            files[f"sys/class/hwmon/{monitor}/in{channel}_label"] = name
            files[f"sys/class/hwmon/{monitor}/in{channel}_input"] = 5_000
            files[f"sys/class/hwmon/{monitor}/curr{channel}_input"] = 100
    assert list(ina3221_rails(write_tree(tmp_path, files))) == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"]


@pytest.mark.parametrize("microamperes", [-500_000, 500_000])
def test_a_battery_that_discharges_tells_its_power_whatever_the_sign(tmp_path: Path, microamperes: int) -> None:
    phone_tree(tmp_path, microamperes=microamperes)
    device = Device(0.0)
    figures = device.measure(find_meter(tmp_path, device.now), 0.1, 0.0, 1.0)
    assert figures is not None
    assert (figures.source, figures.rails) == ("battery", ("battery",))
    assert figures.mean_watts == pytest.approx(2.0)
    assert battery_watts(tmp_path / PHONE) == pytest.approx(2.0)


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging", "Unknown"])
def test_a_battery_that_does_not_discharge_says_nothing(tmp_path: Path, status: str) -> None:
    phone_tree(tmp_path, status)
    assert find_meter(tmp_path) is None
    assert battery_watts(tmp_path / PHONE) is None


def test_a_battery_that_counts_in_other_units_than_it_should_leaves_no_figure(tmp_path: Path) -> None:
    phone_tree(tmp_path, microamperes=-500)  # milliamperes, as drivers of some phones give them
    device = Device(0.0)
    assert device.measure(find_meter(tmp_path, device.now), 0.1, 0.0, 1.0) is None


def test_plugging_in_during_a_run_leaves_no_figure(tmp_path: Path) -> None:
    phone_tree(tmp_path)
    device = Device(0.0, lambda _: phone_tree(tmp_path, "Charging"))
    assert device.measure(find_meter(tmp_path, device.now), 0.1, 0.0, 1.0) is None


def test_a_device_that_tells_nothing_has_no_meter(tmp_path: Path) -> None:
    assert find_meter(tmp_path) is None


def test_a_counter_that_only_root_may_read_is_no_meter(tmp_path: Path) -> None:
    rapl_tree(tmp_path)
    (tmp_path / RAPL / "energy_uj").unlink()
    (tmp_path / RAPL / "energy_uj").mkdir()  # cannot be read as a file, by root neither
    assert rapl_zones(tmp_path) == {}
    assert find_meter(tmp_path) is None


def test_the_board_is_asked_before_the_processor_and_that_before_the_battery(tmp_path: Path) -> None:
    phone_tree(tmp_path)
    found = [find_meter(tmp_path), find_meter(rapl_tree(tmp_path)), find_meter(orin_tree(tmp_path))]
    assert [meter.source for meter in found if meter is not None] == ["battery", "rapl", "ina3221"]
