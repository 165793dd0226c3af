"""Power mode and locked clocks of a Jetson whose programs are scripts: held while something runs, and put back."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeattn.errors import DeviceError, InputError, UnsupportedError
from edgeattn.jobs.measure import profile_bundle
from edgeattn.profiling import holding
from edgeattn.profiling.contract import MeasureOptions
from edgeattn.profiling.holding import held
from tests.profiling.jetson import FREE, LOCKED, Jetson, make_jetson

WAIT_SECONDS = 30.0  # for what happens in another process; nothing is asserted of the time it takes
# A shell starts its background jobs with SIGINT ignored, and so may whoever runs these tests.
HOLDER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from edgeattn.profiling.holding import held
with held("25W", True):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jetson:
    made = make_jetson(tmp_path / "jetson")
    monkeypatch.setenv("PATH", f"{made.programs}{os.pathsep}{os.environ['PATH']}")
    return made


def leftovers() -> set[Path]:
    return set(Path(holding.PLACE).glob("edgeattn-clocks-*"))


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    before = leftovers()
    yield
    give_up = time.monotonic() + WAIT_SECONDS
    while not leftovers() <= before:  # those of tests beside this one go away, too
        assert time.monotonic() < give_up
        time.sleep(0.02)


def wait_until_put_back(board: Jetson) -> None:
    give_up = time.monotonic() + WAIT_SECONDS
    while (board.mode, board.clocks) != (0, FREE):
        assert time.monotonic() < give_up, (board.mode, board.clocks, board.log)
        time.sleep(0.02)


def test_mode_and_clocks_are_held_inside_and_put_back_in_turn(board: Jetson) -> None:
    with nothing_left():
        with held("25W", lock_clocks=True):
            assert (board.mode, board.clocks) == (1, LOCKED)
        assert (board.mode, board.clocks) == (0, FREE)
    assert board.log == [
        "nvpmodel -m 1",
        "jetson_clocks --store",
        "jetson_clocks ",
        "jetson_clocks --restore",
        "nvpmodel -m 0",
    ]


@pytest.mark.parametrize("text", ["2", "MAXN_SUPER", "maxn_super"])
def test_a_mode_is_given_by_name_or_number(board: Jetson, text: str) -> None:
    with held(text, lock_clocks=False):
        assert (board.mode, board.clocks) == (2, FREE)
    assert board.log == ["nvpmodel -m 2", "nvpmodel -m 0"]


def test_the_mode_that_is_set_already_is_left_alone(board: Jetson) -> None:
    with held("15W", lock_clocks=True):
        assert (board.mode, board.clocks) == (0, LOCKED)
    assert board.clocks == FREE
    assert not [line for line in board.log if line.startswith("nvpmodel")]


def test_clocks_that_the_user_had_locked_stay_locked(board: Jetson) -> None:
    (board.folder / "clocks").write_text(f"{LOCKED}\n")
    with held(None, lock_clocks=True):
        assert board.clocks == LOCKED
    assert board.clocks == LOCKED


def test_nothing_is_run_where_nothing_is_asked_for(board: Jetson) -> None:
    with held(None, lock_clocks=False):
        pass
    assert not (board.folder / "log").exists()


def test_an_error_inside_leaves_the_board_as_it_was(board: Jetson) -> None:
    with nothing_left(), pytest.raises(ZeroDivisionError), held("25W", lock_clocks=True):
        raise ZeroDivisionError
    assert (board.mode, board.clocks) == (0, FREE)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_measuring_process_that_is_ended_leaves_the_board_as_it_was(board: Jetson, number: signal.Signals) -> None:
    with nothing_left():
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert (board.mode, board.clocks) == (1, LOCKED)
        process.send_signal(number)
        process.wait(WAIT_SECONDS)
        process.stdout.close()
        wait_until_put_back(board)
        with held(None, lock_clocks=True):  # the keeper is gone by the time that another has its turn
            pass


def test_a_keeper_that_is_told_to_end_puts_the_board_back(board: Jetson) -> None:
    request = json.dumps({"power_mode": "25W", "lock_clocks": True})
    keeper = subprocess.Popen(
        [sys.executable, "-m", "edgeattn.profiling.holding", request],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    assert json.loads(keeper.stdout.readline()) == {"held": ""}
    keeper.terminate()
    assert json.loads(keeper.stdout.readline()) == {"put back": ""}
    keeper.wait(WAIT_SECONDS)
    keeper.stdin.close()
    keeper.stdout.close()
    assert (board.mode, board.clocks) == (0, FREE)


def test_a_keeper_that_ends_before_it_holds_is_an_error(board: Jetson) -> None:
    slow = (
        (board.programs / "nvpmodel")
        .read_text()
        .replace("-p)", '-p)\n    echo "$PPID" > keeper; exec sleep 600 ;;\n-x)')
    )
    board.put("nvpmodel", slow)

    def end() -> None:
        give_up = time.monotonic() + WAIT_SECONDS
        while not (board.folder / "keeper").exists() or not (board.folder / "keeper").read_text().strip():
            assert time.monotonic() < give_up
            time.sleep(0.02)
        asking = int((board.folder / "keeper").read_text())
        while b"holding" not in Path(f"/proc/{asking}/cmdline").read_bytes():  # sudo stands between, if not root
            asking = int(Path(f"/proc/{asking}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(asking, signal.SIGTERM)

    thread = threading.Thread(target=end)
    thread.start()
    with pytest.raises(DeviceError, match="ended early"), held("25W", lock_clocks=False):
        pytest.fail("must not be entered")
    thread.join(WAIT_SECONDS)
    assert board.mode == 0


def test_a_place_that_cannot_be_locked_is_an_error(board: Jetson, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import sys; from edgeattn.profiling import holding; holding.PLACE = '/nowhere'; holding.main(sys.argv[1:])"
    )
    request = json.dumps({"power_mode": "25W", "lock_clocks": True})
    done = subprocess.run(
        [sys.executable, "-c", program, request], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert told[0]["error"] == "DeviceError"
    assert "cannot be held" in told[0]["message"]
    assert told[1] == {"put back": ""}
    assert board.log == []


def test_a_mode_that_wants_a_reboot_is_refused_and_the_reboot_declined(board: Jetson) -> None:
    with (
        pytest.raises(UnsupportedError, match=r"power mode 7W wants a reboot .* stays in 15W: .*sudo nvpmodel -m 3"),
        held("7W", lock_clocks=True),
    ):
        pytest.fail("must not be entered")
    assert (board.mode, board.clocks) == (0, FREE)
    assert board.log == ["nvpmodel -m 3", "answer NO"]


def test_an_unknown_mode_is_refused_with_those_that_there_are(board: Jetson) -> None:
    with (
        pytest.raises(InputError, match=r"power mode '40W'.*15W \(0\), 25W \(1\), 7W \(3\), MAXN_SUPER \(2\)"),
        held("40W", lock_clocks=False),
    ):
        pytest.fail("must not be entered")
    assert board.log == []


def test_clocks_that_cannot_be_locked_are_an_error_and_the_mode_is_put_back(board: Jetson) -> None:
    board.breaks("hot")
    with (
        nothing_left(),
        pytest.raises(DeviceError, match=r"jetson_clocks .*Error: Failed to max GPU frequency!"),
        held("25W", lock_clocks=True),
    ):
        pytest.fail("must not be entered")
    assert (board.mode, board.clocks) == (0, FREE)


def test_a_board_that_cannot_be_put_back_is_an_error_at_the_end(board: Jetson) -> None:
    with (
        pytest.raises(DeviceError, match=r"not put back as it was: power mode 15W was not taken, .* in 25W"),
        held("25W", lock_clocks=True),
    ):
        board.breaks("stuck")
    assert board.clocks == FREE  # what can be put back is


def test_it_is_told_beside_an_error_that_came_before(board: Jetson, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        board.breaks("stuck")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), held("25W", lock_clocks=False):
        fail()
    assert "the board was not put back as it was" in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


@pytest.mark.parametrize(("mode", "lock"), [("25W", False), (None, True)])
def test_a_machine_that_is_no_jetson_is_a_device_error(
    mode: str | None, lock: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match=r"for (boards with nvpmodel|Jetson boards)"), held(mode, lock):
        pytest.fail("must not be entered")


def test_without_root_sudo_is_used_and_asks_for_nothing(board: Jetson, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    board.put("sudo", f'#!/bin/sh\necho "sudo $*" > \'{board.folder}/asked\'\nshift\nexec "$@"\n')
    holding.run_as_root("nvpmodel", "-p", "--verbose")
    assert (board.folder / "asked").read_text().split() == [
        "sudo",
        "-n",
        str(board.programs / "nvpmodel"),
        "-p",
        "--verbose",
    ]


def test_a_sudo_that_wants_a_password_is_an_error_with_the_remedy(
    board: Jetson, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    board.put("sudo", "#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
    with pytest.raises(
        DeviceError, match=r"nvpmodel needs root, and sudo refuses .*password.*NOPASSWD: /usr/sbin/nvpmodel"
    ):
        holding.run_as_root("nvpmodel", "-p", "--verbose")


def test_without_sudo_the_remedy_is_told(board: Jetson, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", str(board.programs))
    (board.programs / "sudo").unlink()
    with pytest.raises(DeviceError, match=r"jetson_clocks needs root, and there is no sudo .*--lock-clocks"):
        holding.run_as_root("jetson_clocks")


def test_two_that_hold_the_same_board_take_turns(board: Jetson) -> None:
    script = HOLDER.replace('"25W"', '"2"').replace("time.sleep(600)", "pass")
    with held("25W", lock_clocks=True):
        other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        time.sleep(0.5)
        assert (board.mode, board.clocks) == (1, LOCKED)
    told, _ = other.communicate(timeout=WAIT_SECONDS)
    assert (told, other.returncode) == ("held\n", 0)
    assert (board.mode, board.clocks) == (0, FREE)
    assert [line for line in board.log if line.startswith("nvpmodel")] == [f"nvpmodel -m {m}" for m in (1, 0, 2, 0)]


def test_a_profile_tells_how_the_board_was_set(board: Jetson, tiny_bundle: Path) -> None:
    quick = MeasureOptions(runs=5, paced_seconds=0, spread_seconds=0, energy_seconds=0.3)
    plain = profile_bundle(tiny_bundle, quick)
    assert plain.board is not None
    assert (plain.board.power_mode, plain.board.power_mode_id, plain.board.locked) == ("15W", 0, False)
    assert plain.board.clocks["emc"].now_mhz == 2133.0
    assert plain.energy is not None
    assert (plain.energy.source, plain.energy.rails) == ("tegrastats", ("VDD_IN",))
    assert plain.energy.mean_watts == pytest.approx(4.523, rel=0.5)  # of times that differ by a moment
    options = MeasureOptions(5, paced_seconds=0, spread_seconds=0, energy_seconds=0, power_mode="25W", lock_clocks=True)
    locked = profile_bundle(tiny_bundle, options).board
    assert locked is not None
    assert (locked.power_mode, locked.power_mode_id, locked.locked) == ("25W", 1, True)
    assert (board.mode, board.clocks) == (0, FREE)


def test_the_error_of_a_board_reaches_who_asked_for_a_profile(board: Jetson, tiny_bundle: Path) -> None:
    with pytest.raises(UnsupportedError, match="power mode 7W wants a reboot"):
        profile_bundle(tiny_bundle, MeasureOptions(runs=5, paced_seconds=0, power_mode="7W"))
