"""``edgeattn profile`` and ``check`` on a Jetson, as far as its programs go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.profiling.jetson import FREE, Jetson, make_jetson

pytestmark = pytest.mark.slow


@pytest.fixture
def jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jetson:
    made = make_jetson(tmp_path / "jetson")
    monkeypatch.setenv("PATH", f"{made.programs}{os.pathsep}{os.environ['PATH']}")
    return made


@pytest.mark.parametrize("command", ["profile", "check"])
def test_the_result_tells_the_mode_that_was_measured_in(
    command: str, edgeattn: Command, small_bundle: Path, jetson: Jetson
) -> None:
    outcome = edgeattn(command, small_bundle, "--power-mode", "25w", "--lock-clocks", "--duration", "0s", "--json")
    assert outcome.code == 0, outcome.err
    board = outcome.json["results"][0]["board"]
    assert (board["power_mode"], board["power_mode_id"], board["locked"]) == ("25W", 1, True)
    assert board["clocks"]["emc"] == {"min_mhz": None, "max_mhz": None, "now_mhz": 2133.0}
    assert (jetson.mode, jetson.clocks) == (0, FREE)


def test_the_mode_is_told_in_words(edgeattn: Command, small_bundle: Path, jetson: Jetson) -> None:
    outcome = edgeattn("profile", small_bundle, "--duration", "0s")
    assert outcome.code == 0
    assert "power mode 15W" in outcome.err
    assert "emc 2133 MHz" in outcome.err
    assert jetson.log == []  # nothing was set


@pytest.mark.parametrize("command", ["profile", "check"])
def test_a_mode_that_wants_a_reboot_exits_4(
    command: str, edgeattn: Command, small_bundle: Path, jetson: Jetson
) -> None:
    outcome = edgeattn(command, small_bundle, "--power-mode", "7W", "--duration", "0s")
    assert outcome.code == 4
    assert "power mode 7W wants a reboot" in outcome.error
    assert jetson.mode == 0


def test_a_machine_without_nvpmodel_exits_3(
    edgeattn: Command, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = edgeattn("profile", small_bundle, "--power-mode", "15W", "--duration", "0s")
    assert outcome.code == 3
    assert "--power-mode is for boards with nvpmodel" in outcome.error
