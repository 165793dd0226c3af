"""Clocks and heat from trees of files as Linux, Jetson and Raspberry Pi have them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.profiling.figures import Clocks
from edgeattn.profiling.throttling import (
    PERIOD_SECONDS,
    Watch,
    clock_fall,
    look,
    parse_get_throttled,
    pi_flags,
    read_integer,
    throttle_events,
)
from tests.profiling.trees import write_tree

CPU = "sys/devices/system/cpu"
PI = "sys/devices/platform/soc/soc:firmware/get_throttled"


@dataclass
class Ticking:
    """A clock whose every look at it is one period later."""

    seconds: float = 0.0

    def __call__(self) -> float:
        self.seconds += PERIOD_SECONDS
        return self.seconds


def test_a_look_reads_the_fastest_processor_the_devices_and_the_hottest_zone(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            f"{CPU}/cpu0/cpufreq/scaling_cur_freq": 1_510_400,
            f"{CPU}/cpu1/cpufreq/scaling_cur_freq": 729_600,
            f"{CPU}/cpu7/cpufreq/scaling_cur_freq": 2_000_000,  # not ours
            "sys/class/devfreq/17000000.gpu/cur_freq": 918_000_000,
            "sys/class/devfreq/15340000.vic/cur_freq": 115_200_000,  # video, which no model runs on
            "sys/class/thermal/thermal_zone0/temp": 45_500,
            "sys/class/thermal/thermal_zone1/temp": 61_250,
            "sys/class/thermal/thermal_zone2/temp": "",  # a zone that is asleep
        },
    )
    seen = look((0, 1), gpu=True, root=tmp_path)
    assert (seen.mhz, seen.devices_mhz, seen.celsius) == (1510.4, {"17000000.gpu": 918.0}, 61.25)
    assert look((0, 1), root=tmp_path).devices_mhz == {}  # calls that run on no GPU say nothing of its clock


def test_a_system_that_tells_nothing_has_no_clocks(tmp_path: Path) -> None:
    watch = Watch((0, 1), root=tmp_path)
    watch.look()
    assert watch.clocks() is None


def watched(root: Path, kilohertz: list[int], name: str = f"{CPU}/cpu0/cpufreq/scaling_cur_freq") -> Watch:
    write_tree(root, {name: kilohertz[0]})
    watch = Watch((0,), True, root, Ticking())
    for value in kilohertz:
        write_tree(root, {name: value})
        watch.look()
    return watch


def test_a_clock_that_falls_by_more_than_five_percent_makes_the_run_invalid(tmp_path: Path) -> None:
    clocks = watched(tmp_path, [2_400_000] * 10 + [2_160_000] * 10).clocks()
    assert clocks is not None
    assert (clocks.min_mhz, clocks.max_mhz, clocks.held) == (2160.0, 2400.0, False)
    assert clocks.fall == pytest.approx(0.1)
    assert (clocks.throttle_events, clocks.capped, clocks.max_celsius) == (None, None, None)


@pytest.mark.parametrize(
    "kilohertz",
    [
        [2_400_000] * 10 + [2_304_000] * 10,  # 4 %
        [1_200_000] * 10 + [2_400_000] * 10,  # a governor that woke up
        [2_400_000] * 7 + [800_000] + [2_400_000] * 12,  # one odd look
        [2_400_000] * 9,  # too short to tell
    ],
)
def test_a_clock_that_holds_or_rises_is_valid(tmp_path: Path, kilohertz: list[int]) -> None:
    clocks = watched(tmp_path, kilohertz).clocks()
    assert clocks is not None
    assert clocks.held


def test_a_gpu_whose_clock_falls_counts_as_well(tmp_path: Path) -> None:
    clocks = watched(tmp_path, [918_000_000] * 5 + [612_000_000] * 5, "sys/class/devfreq/gpu/cur_freq").clocks()
    assert clocks is not None
    assert clocks.fall == pytest.approx(1 / 3)
    assert (clocks.max_mhz, clocks.held) == (None, False)


def pulsed(root: Path, under_load: tuple[int, int]) -> Clocks:
    """A paced run at 600 MHz between two bursts of calls, whose second half of looks sees the clock under load."""
    now = [0.0]
    file = f"{CPU}/cpu0/cpufreq/scaling_cur_freq"
    write_tree(root, {file: 600_000})
    watch = Watch((0,), False, root, lambda: now[0])
    for burst in under_load:
        began = now[0]

        def call(began: float = began, burst: int = burst) -> None:
            now[0] += 0.01
            write_tree(root, {file: burst if now[0] - began > 0.2 else 600_000})  # the governor takes its time

        watch.pulse(call)
        write_tree(root, {file: 600_000})
        for _ in range(20):
            now[0] += 1.0
            watch.look()
    clocks = watch.clocks()
    assert clocks is not None
    return clocks


def test_a_governor_that_idles_between_calls_is_no_throttling(tmp_path: Path) -> None:
    clocks = pulsed(tmp_path, (1_500_000, 1_500_000))
    assert (clocks.fall, clocks.held, clocks.min_mhz, clocks.max_mhz) == (0.0, True, 600.0, 1500.0)


def test_a_clock_that_is_lower_under_load_after_a_paced_run_makes_it_invalid(tmp_path: Path) -> None:
    clocks = pulsed(tmp_path, (1_500_000, 1_200_000))
    assert clocks.fall == pytest.approx(0.2)
    assert not clocks.held


def test_a_watch_knows_whether_there_is_a_clock(tmp_path: Path) -> None:
    assert not Watch((0,), root=tmp_path).readable
    write_tree(tmp_path, {"sys/class/devfreq/17000000.ga10b/cur_freq": 918_000_000})
    assert Watch((0,), gpu=True, root=tmp_path).readable
    assert not Watch((0,), root=tmp_path).readable


@given(series=st.lists(st.floats(1.0, 5e3), max_size=60))
def test_the_fall_is_the_largest_from_any_block_to_any_later_one(series: list[float]) -> None:
    medians = [sorted(series[k : k + 5])[2] for k in range(0, len(series) - 4, 5)]
    pairs = [1 - later / before for i, before in enumerate(medians) for later in medians[i:]]
    expected = max(pairs) if len(medians) > 1 else None
    assert clock_fall(series) == (None if expected is None else pytest.approx(expected, abs=1e-12))


def test_looks_are_a_period_apart(tmp_path: Path) -> None:
    times = iter([0.0, 0.0, 0.05, 0.1, 0.15, 0.3, 0.31])
    write_tree(tmp_path, {f"{CPU}/cpu0/cpufreq/scaling_cur_freq": 1000})
    watch = Watch((0,), False, tmp_path, lambda: next(times))
    watch.look()  # at 0.0, and the clock then says 0.05: the next one is due at 0.25
    write_tree(tmp_path, {f"{CPU}/cpu0/cpufreq/scaling_cur_freq": 2000})
    watch.look()  # 0.1
    watch.look()  # 0.15
    early = watch.clocks()
    watch.look()  # 0.3
    late = watch.clocks()
    assert early is not None
    assert late is not None
    assert (early.max_mhz, late.max_mhz) == (1.0, 2.0)


def test_throttling_events_during_the_run_make_it_invalid_and_older_ones_do_not(tmp_path: Path) -> None:
    counts = {
        f"{CPU}/cpu0/thermal_throttle/core_throttle_count": 7,
        f"{CPU}/cpu0/thermal_throttle/package_throttle_count": 2,
    }
    write_tree(tmp_path, counts)
    assert throttle_events((0, 1), tmp_path) == 9
    watch = Watch((0,), root=tmp_path)
    quiet = watch.clocks()
    assert quiet is not None
    assert (quiet.throttle_events, quiet.held) == (0, True)
    write_tree(tmp_path, {f"{CPU}/cpu0/thermal_throttle/core_throttle_count": 9})
    hot = watch.clocks()
    assert hot is not None
    assert (hot.throttle_events, hot.held) == (2, False)


@pytest.mark.parametrize(
    ("before", "after", "capped"),
    [
        ("0", "0", False),
        ("50000", "50000", False),  # some day before this run
        ("50000", "50004", True),  # throttled now
        ("0", "40000", True),  # was throttled meanwhile
    ],
)
def test_a_raspberry_pi_whose_firmware_throttled_meanwhile_is_capped(
    tmp_path: Path, before: str, after: str, capped: bool
) -> None:
    write_tree(tmp_path, {PI: before})
    watch = Watch((), root=tmp_path)
    write_tree(tmp_path, {PI: after})
    clocks = watch.clocks()
    assert clocks is not None
    assert (clocks.capped, clocks.held) == (capped, not capped)
    assert pi_flags(tmp_path) == int(after, 16)


def test_what_vcgencmd_says_is_read_and_anything_else_refused() -> None:
    assert parse_get_throttled("throttled=0x50005\n") == 0x50005
    with pytest.raises(ValueError, match="expected throttled"):
        parse_get_throttled("VCHI initialization failed")


def test_vcgencmd_is_asked_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "vcgencmd"
    program.write_text('#!/bin/sh\necho "throttled=0x4"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert pi_flags() == 4
    program.write_text("#!/bin/sh\nexit 1\n")
    assert pi_flags() is None


@pytest.mark.parametrize("text", ["", "no number", "\x00"])
def test_a_file_that_holds_no_number_is_not_readable(tmp_path: Path, text: str) -> None:
    (tmp_path / "value").write_text(text)
    assert read_integer(tmp_path / "value") is None
    assert read_integer(tmp_path) is None
    assert read_integer(tmp_path / "absent") is None
