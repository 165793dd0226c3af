"""tegrastats: its lines as boards print them, and the program run for as long as it is read."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest

from edgeattn.profiling.energy import find_meter
from edgeattn.profiling.tegrastats import emc_mhz, rails_watts, start_tegrastats
from tests.profiling.jetson import LINE, Jetson, make_jetson

# Lines of boards in public logs: AGX Orin (L4T 35) and Xavier NX (L4T 32, without units).
AGX_ORIN = (
    "04-11-2025 10:36:27 RAM 4321/62801MB (lfb 1759x4MB) SWAP 19/31400MB (cached 0MB) CPU [0%@729,0%@729] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 0%@[0,0] VIC_FREQ 729 APE 174 CV0@-256C CPU@44.562C tj@44.343C "
    "VDD_GPU_SOC 2340mW/2340mW VDD_CPU_CV 390mW/390mW VIN_SYS_5V0 4025mW/4025mW NC 0mW/0mW "
    "VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW"
)
XAVIER_NX = (
    "RAM 5123/31906MB (lfb 7510x4MB) SWAP 0/15953MB (cached 0MB) CPU [13%@2265,off] EMC_FREQ 0%@1866 "
    "GR3D_FREQ 0%@1300 APE 25 tj@52.5C VDD_IN 8039/8000 VDD_CPU_GPU_CV 3231/3200 VDD_SOC 1623/1600"
)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jetson:
    made = make_jetson(tmp_path / "jetson")
    monkeypatch.setenv("PATH", f"{made.programs}{os.pathsep}{os.environ['PATH']}")
    return made


@pytest.mark.parametrize(
    ("line", "watts", "mhz"),
    [
        (LINE, {"VDD_IN": 4.523, "VDD_CPU_GPU_CV": 0.524, "VDD_SOC": 1.373}, 2133.0),
        (AGX_ORIN, {"VDD_GPU_SOC": 2.34, "VDD_CPU_CV": 0.39, "VIN_SYS_5V0": 4.025, "VDDQ_VDD2_1V8AO": 0.301}, 2133.0),
        (XAVIER_NX, {"VDD_IN": 8.039, "VDD_CPU_GPU_CV": 3.231, "VDD_SOC": 1.623}, 1866.0),
        ("RAM 5137/62841MB (lfb 2x4MB) SWAP 0/31420MB IRAM 0/252kB(lfb 252kB) GR3D_FREQ 0%", {}, None),
        ("", {}, None),
    ],
)
def test_a_line_tells_rails_and_the_memorys_clock(line: str, watts: dict[str, float], mhz: float | None) -> None:
    assert rails_watts(line) == watts
    assert emc_mhz(line) == mhz


def test_the_newest_line_is_told_without_waiting(board: Jetson) -> None:
    running = start_tegrastats()
    assert running is not None
    with contextlib.closing(running):
        assert running.line() == LINE
        board.tells(AGX_ORIN)
        give_up = time.monotonic() + 30
        while running.line() != AGX_ORIN:
            assert time.monotonic() < give_up
            time.sleep(0.01)


def test_a_program_that_ended_tells_nothing_any_more(board: Jetson) -> None:
    running = start_tegrastats()
    assert running is not None
    with contextlib.closing(running):
        board.tells(None)
        give_up = time.monotonic() + 30
        while running.line() is not None:
            assert time.monotonic() < give_up
            time.sleep(0.01)


def test_a_program_that_says_nothing_is_none(board: Jetson) -> None:
    board.put("tegrastats", "#!/bin/sh\nexit 1\n")
    assert start_tegrastats() is None
    assert find_meter(board.folder) is None


def test_a_device_without_it_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert start_tegrastats() is None


def test_it_is_the_meter_where_the_monitors_files_cannot_be_read(board: Jetson) -> None:
    board.tells(AGX_ORIN)
    meter = find_meter(board.folder)
    assert meter is not None
    assert (meter.source, meter.rails) == ("tegrastats", ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))
    times = [time.monotonic()]
    meter.start()
    times.append(time.monotonic())
    while time.monotonic() < times[1] + 0.3:
        meter.sample()
        time.sleep(0.01)
    times.append(time.monotonic())
    joules = meter.joules()
    times.append(time.monotonic())
    assert joules is not None
    assert 6.755 * (times[2] - times[1]) <= joules * (1 + 1e-9)
    assert joules <= 6.755 * (times[3] - times[0]) * (1 + 1e-9)
    board.tells(None)
    give_up = time.monotonic() + 30
    while meter.joules() is not None:
        assert time.monotonic() < give_up
        time.sleep(0.01)
    meter.close()


def test_a_line_without_rails_is_no_meter(board: Jetson) -> None:
    board.tells("RAM 5137/62841MB GR3D_FREQ 0%")
    assert find_meter(board.folder) is None
