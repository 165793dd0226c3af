"""How a Jetson says that it is set, from trees of files and programs as it has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeattn.profiling.board import board_state
from edgeattn.profiling.figures import ClockSetting
from tests.profiling.jetson import LINE, Jetson, make_jetson
from tests.profiling.trees import write_tree

RELEASE = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025"
)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jetson:
    made = make_jetson(tmp_path / "jetson")
    monkeypatch.setenv("PATH", f"{made.programs}{os.pathsep}{os.environ['PATH']}")
    return made


def tree(root: Path, gpu: str = "17000000.gpu") -> Path:
    """Two clusters of cores and a GPU, with another device that is none."""
    files: dict[str, object] = {"etc/nv_tegra_release": RELEASE}
    for policy in (0, 4):
        for which, khz in (("min", 729_600), ("max", 1_510_400), ("cur", 1_190_400 + policy)):
            files[f"sys/devices/system/cpu/cpufreq/policy{policy}/scaling_{which}_freq"] = khz
    for which, hz in (("min", 306_000_000), ("max", 624_750_000), ("cur", 408_000_000)):
        files[f"sys/class/devfreq/{gpu}/{which}_freq"] = hz
        files[f"sys/class/devfreq/15340000.vic/{which}_freq"] = hz
    return write_tree(root, files)


@pytest.mark.parametrize("gpu", ["17000000.ga10b", "17000000.gpu", "17000000.gv11b", "gpu-gpc-0"])  # JetPack 5, 6, 7
def test_mode_and_clocks_are_told(board: Jetson, tmp_path: Path, gpu: str) -> None:
    told = board_state(root=tree(tmp_path, gpu))
    assert told is not None
    assert (told.l4t, told.power_mode, told.power_mode_id, told.locked) == (RELEASE, "15W", 0, False)
    assert told.clocks == {
        "cpu0": ClockSetting(729.6, 1510.4, 1190.4),
        "cpu4": ClockSetting(729.6, 1510.4, 1190.404),
        gpu: ClockSetting(306.0, 624.75, 408.0),
        "emc": ClockSetting(None, None, 2133.0),
    }


def test_the_clock_of_the_memory_is_absent_where_tegrastats_is_not_root(board: Jetson, tmp_path: Path) -> None:
    board.tells(LINE.replace("EMC_FREQ 0%@2133 ", ""))
    told = board_state(locked=True, root=tree(tmp_path))
    assert told is not None
    assert "emc" not in told.clocks
    assert told.locked


def test_a_board_without_its_tools_tells_what_its_files_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    told = board_state(root=tree(tmp_path))
    assert told is not None
    assert (told.power_mode, told.power_mode_id) == (None, None)
    assert "cpu0" in told.clocks


def test_another_machine_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert board_state(root=tmp_path) is None
