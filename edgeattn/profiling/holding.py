"""A power mode and locked clocks of a Jetson, for as long as something is measured and not a moment longer.

``python -m edgeattn.profiling.holding REQUEST_JSON`` sets them with nvpmodel and jetson_clocks, says so in a line of
JSON, waits until its stdin ends, puts back what was there, and says how that went. It runs in a session of its own, so
that whatever ends the process that measures -- an error, a signal, SIGKILL after a lost link -- closes the pipe and
leaves the board as it was. Only a power cut is out of its reach: clocks start again then, and nvpmodel keeps its mode.

Both programs need root: they are run by sudo, without a password, where we are not root. What they print is that of
Jetson Linux 35 to 39 (Jetson Linux Developer Guide, Platform Power and Performance).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from edgeattn.errors import (
    DeviceError,
    EdgeattnError,
    InputError,
    UnsupportedError,
    error_facts,
    error_from,
    unknown_name,
)
from edgeattn.runtimes.jetson import PowerMode, find_program, power_mode

LOG = logging.getLogger(__name__)

TURN_SECONDS = 120.0
SWITCH_SECONDS = 60.0  # cores go on and off line one after the other
MODES = re.compile(r"POWER_MODEL: ID=(\d+) NAME=(\S+)")  # of nvpmodel -p --verbose
REBOOT = re.compile("reboot required", re.IGNORECASE)
PLACE = "/tmp"  # noqa: S108 - a private folder in it; TMPDIR may go away with the process that measures
REMEDY = (
    "let this account run it without a password (sudo visudo: USER ALL=(root) NOPASSWD: /usr/sbin/nvpmodel, "
    "/usr/bin/jetson_clocks), or leave out --power-mode and --lock-clocks"
)
HELD, PUT_BACK = "held", "put back"  # what the keeper says, one after the other
ENDED = (
    "the process that holds power mode and clocks ended early: nvpmodel -q and jetson_clocks --show tell what is set"
)
NO_REBOOT = "NO\n"  # nvpmodel asks before it restarts the board, and takes YES or yes


@contextlib.contextmanager
def held(mode: str | None, lock_clocks: bool) -> Iterator[None]:
    """Hold a power mode, locked clocks, or both, and put back what was there; nothing is done if neither is asked for.

    Args:
        mode: name or number, as nvpmodel has it; None leaves it as it is.
        lock_clocks: all clocks at the highest that the mode allows.

    Raises:
        InputError: for a mode that the board does not have.
        UnsupportedError: for one that wants a reboot.
        DeviceError: where there is no nvpmodel or jetson_clocks, or no right to run them; at the end, if the board
            could not be put back.
    """
    if mode is None and not lock_clocks:
        yield
        return
    request = json.dumps({"power_mode": mode, "lock_clocks": lock_clocks})
    keeper = subprocess.Popen(
        [sys.executable, "-m", "edgeattn.profiling.holding", request],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        problem = _told(keeper, HELD)
        if problem is not None:
            raise problem
        yield
    except BaseException:
        left = _end(keeper)
        if left is not None:
            LOG.error("%s", left)
        raise
    left = _end(keeper)
    if left is not None:
        raise left


def _told(keeper: subprocess.Popen[str], expected: str) -> EdgeattnError | None:
    """None if the keeper's next line tells what is expected, else what went wrong."""
    assert keeper.stdout is not None, "it was asked for"
    try:
        answer: dict[str, str] = error_facts(DeviceError(ENDED)) | json.loads(keeper.stdout.readline())
    except ValueError:
        return DeviceError(ENDED)
    if expected in answer:
        return None
    return error_from(answer)


def _end(keeper: subprocess.Popen[str]) -> EdgeattnError | None:
    """Have the board put back; what went wrong with that, if anything."""
    assert keeper.stdin is not None, "it was asked for"
    assert keeper.stdout is not None, "it was asked for"
    keeper.stdin.close()
    problem = _told(keeper, PUT_BACK)
    keeper.wait()
    keeper.stdout.close()
    return problem


def main(arguments: list[str]) -> int:
    """Entry of the process that holds."""
    asked: dict[str, Any] = json.loads(arguments[0])
    os.chdir("/")  # the measuring process's directory may be removed before the board is put back
    ends = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    for number in ends:
        signal.signal(number, lambda *_: sys.exit(1))
    undo: list[Callable[[], object]] = []
    try:
        try:
            _hold(asked["power_mode"], asked["lock_clocks"], undo)
        except EdgeattnError as error:
            _say(HELD, error)
        except OSError as error:
            _say(HELD, DeviceError(f"power mode and clocks cannot be held: {error}"))
        else:
            _say(HELD, None)
            sys.stdin.read()
    finally:
        for number in ends:
            signal.signal(number, signal.SIG_IGN)
        left = _put_back(undo)
        with contextlib.suppress(OSError):  # nobody may be listening any more
            _say(PUT_BACK, left)
    return 0


def _say(done: str, error: EdgeattnError | None) -> None:
    line = {done: ""} if error is None else error_facts(error)
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _hold(mode: str | None, lock_clocks: bool, undo: list[Callable[[], object]]) -> None:
    """Set what is asked for. What puts it back stands in ``undo`` before anything is changed."""
    undo.append(functools.partial(os.close, _take_turn()))
    if mode is not None:
        before, wanted = _current_mode(), find_mode(mode)
        undo.append(functools.partial(switch_mode, before))
        switch_mode(wanted)
    if lock_clocks:
        folder = tempfile.mkdtemp(prefix="edgeattn-clocks-", dir=PLACE)
        undo.append(functools.partial(shutil.rmtree, folder))
        stored = os.path.join(folder, "stored")  # noqa: PTH118 - a new name: jetson_clocks asks before it overwrites
        run_as_root("jetson_clocks", "--store", stored)
        undo.append(functools.partial(run_as_root, "jetson_clocks", "--restore", stored))
        run_as_root("jetson_clocks")


def _take_turn() -> int:
    """The right to set this board, of any account; waits while another's settings are being put back.

    Raises:
        DeviceError: if another keeps it.
    """
    path = os.path.join(PLACE, "edgeattn-board.lock")  # noqa: PTH118 - opened by descriptor below
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    # Without O_CREAT: the kernel refuses that for another account's file in a sticky directory.
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    give_up = time.monotonic() + TURN_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # noqa: PERF203 - it is what is waited for
            if time.monotonic() >= give_up:
                os.close(handle)
                raise DeviceError(
                    f"another edgeattn holds power mode or clocks of this board ({path}): try again when it is done"
                ) from None
            time.sleep(0.1)
        else:
            return handle


def _put_back(undo: list[Callable[[], object]]) -> DeviceError | None:
    """Undo, the last first, whatever fails; what failed is told."""
    failed = []
    for action in reversed(undo):
        try:
            action()
        except (EdgeattnError, OSError) as error:  # noqa: PERF203 - the others are to be undone all the same
            failed.append(str(error))
    return DeviceError(f"the board was not put back as it was: {'; '.join(failed)}") if failed else None


def find_mode(text: str) -> PowerMode:
    """A mode of this board, by its name or number.

    Raises:
        InputError: if there is none such; the message lists all.
        DeviceError: as :func:`run_as_root`.
    """
    modes = [PowerMode(int(number), name) for number, name in MODES.findall(run_as_root("nvpmodel", "-p", "--verbose"))]
    for mode in modes:
        if text.lower() in (mode.name.lower(), str(mode.id)):
            return mode
    raise InputError(unknown_name("power mode", text, [f"{mode.name} ({mode.id})" for mode in modes]))


def switch_mode(mode: PowerMode) -> None:
    """Go to a power mode, unless it is the one that is.

    Raises:
        UnsupportedError: if it wants a reboot; the board is as it was then.
        DeviceError: if it did not come about, and as :func:`run_as_root`.
    """
    if _current_mode().id == mode.id:
        return
    said = _run("nvpmodel", ("-m", str(mode.id)), NO_REBOOT)[1]
    now = _current_mode()
    if now.id == mode.id:
        return
    if REBOOT.search(said):
        raise UnsupportedError(
            f"power mode {mode.name} wants a reboot of the board, which stays in {now.name}: set it there by hand "
            f"(sudo nvpmodel -m {mode.id}), then measure without --power-mode"
        )
    raise DeviceError(f"power mode {mode.name} was not taken, the board is in {now.name}: {_last_line(said)}")


def _current_mode() -> PowerMode:
    now = power_mode()
    if now is None:
        raise DeviceError("--power-mode is for boards with nvpmodel, and none tells its mode here")
    return now


def run_as_root(name: str, *arguments: str) -> str:
    """Run a program of the board, by sudo where we are not root; what it said.

    Raises:
        DeviceError: if it is not here, may not be run, failed, or printed an error.
    """
    status, said = _run(name, arguments)
    if status != 0 or re.search("^Error", said, re.MULTILINE):
        raise DeviceError(f"{name} {' '.join(arguments)} failed with status {status}: {_last_line(said)}")
    return said


def _run(name: str, arguments: tuple[str, ...], answer: str = "") -> tuple[int, str]:
    program = find_program(name)
    if program is None:
        raise DeviceError(f"no {name} on this device: --power-mode and --lock-clocks are for Jetson boards")
    command = [program, *arguments]
    if os.geteuid() != 0:
        sudo = shutil.which("sudo")
        if sudo is None:
            raise DeviceError(f"{name} needs root, and there is no sudo on this device: {REMEDY}")
        command = [sudo, "-n", *command]
    try:
        done = subprocess.run(
            command, input=answer, capture_output=True, text=True, timeout=SWITCH_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(f"{name} {' '.join(arguments)} did not work: {error}") from error
    said = done.stdout + done.stderr
    if command[0] != program and done.returncode != 0 and done.stderr.startswith("sudo:"):
        raise DeviceError(f"{name} needs root, and sudo refuses ({_last_line(done.stderr)}): {REMEDY}")
    return done.returncode, said


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
