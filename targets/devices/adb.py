"""Phones behind Android's own adb: which one is meant, and the way to a Python on it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
from collections.abc import Sequence
from typing import IO

from edgeattn.errors import DeviceError, EdgeattnError, InputError, UnsupportedError
from edgeattn.guards.children import bound
from edgeattn.printable import one_line
from edgeattn.targets.devices.device import Device
from edgeattn.targets.devices.link import Link, Timeouts, TransportError

TEMPORARY = "/data/local/tmp"  # the one directory that adb's account may write to and run programs from
APP = re.compile(r"(/data/(?:data|user/\d+)/([A-Za-z0-9_.]+))/.+")  # what belongs to an app: run-as reaches it
PUBLIC_BUILD = (
    "Termux from GitHub is debuggable, the one of the Play Store is not; or name a Python that adb's account may run, "
    f"as adb:SERIAL{TEMPORARY}/python/bin/python3; a TFLite bundle needs none with --benchmark-binary"
)
STATES = {
    "offline": "is offline: plug it in again, or adb reconnect; restart it if that does not help",
    "unauthorized": "does not trust this machine: unlock it and tap Allow on the dialog 'Allow USB debugging?'; if "
    "there is none, revoke the authorizations in its developer options and plug it in again",
    "no permissions": "may not be opened by this account: see https://developer.android.com/studio/run/device for the "
    "udev rule",
}
NO_RAW_SHELL = ("only supports allocating a pty", "support PTY args", "support shell protocol")  # by adb's version
MAX_TEXT = 2**20  # bytes of what a program there writes
BLOCK = 2**16
MAX_LAST_WORDS = 400  # characters of a program's that an error repeats
CUT = (0, 255)  # adb's own status when the other end went away: a shell there would have told its own
PASSING = ("offline", "authorizing", "connecting")  # a state that may be another one in a second


def connect(device: Device, timeouts: Timeouts) -> Link:
    """Start the runner on a phone.

    Raises:
        TransportError: if the phone went away, or does not answer.
        DeviceError: as :func:`attached`, or if a directory cannot be made there.
        UnsupportedError: if it has no Python that can be run, or too old a one.
        InputError: as :func:`attached`.
    """
    serial = attached(device, timeouts)
    return Link(
        [*shell(serial)],
        device.text,
        device.python,
        timeouts,
        lambda words, status: explain(device, serial, words, status, timeouts),
        shell=_shell(device.python),
        example=f"adb:{serial}{TEMPORARY}/python/bin/python3",
    )


def shell(serial: str) -> list[str]:
    """The words of adb, to which the shell command is added; its streams are raw, its status is the command's."""
    return ["adb", "-s", serial, "shell", "-T"]


def attached(device: Device, timeouts: Timeouts) -> str:
    """The serial of the phone that is meant.

    Raises:
        InputError: if several phones are attached and none is named.
        DeviceError: if there is no adb on this machine, or the phone is not attached or cannot be used as it is; the
            message says what to tap.
        TransportError: if it is on its way, or adb does not answer.
    """
    states = listed(timeouts)
    name = device.text
    there = ", ".join(f"adb:{serial} ({state})" for serial, state in states.items())
    if not states:
        raise DeviceError(
            f"{name}: no device is attached: plug it in, switch on USB debugging in its developer options and look "
            "whether adb devices lists it; over Wi-Fi, adb connect HOST:PORT"
        )
    wanted = device.serial or os.environ.get("ANDROID_SERIAL", "")  # which adb itself honours
    if not wanted and len(states) > 1:
        raise InputError(f"--device {name}: several devices are attached, name one of them: {there}")
    serial = wanted or next(iter(states))
    if serial not in states:
        raise DeviceError(f"{name}: no device {serial} is attached; there is {there}")
    state = states[serial]
    if state != "device":
        advice = next((words for known, words in STATES.items() if state.startswith(known)), f"is in state {state!r}")
        kind = TransportError if state in PASSING else DeviceError
        raise kind(f"{name}: {serial} {advice}")
    return serial


def listed(timeouts: Timeouts) -> dict[str, str]:
    """Serial -> state of what is attached, as ``adb devices`` tells; its server is started if none runs.

    Raises:
        DeviceError, TransportError: as :func:`attached`.
    """
    done = run_adb(["devices"], timeouts.connect)
    if done.returncode != 0:
        raise TransportError(f"adb devices failed: {last_line(done.stderr)}")
    rows = (line.partition("\t") for line in done.stdout.splitlines() if "\t" in line)
    return {serial: state.strip() for serial, _, state in rows}


def run_adb(words: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run adb to its end, without input.

    Raises:
        TransportError: if it does not end in time.
        DeviceError: if there is none on this machine, or it writes without end.
    """
    try:
        process = subprocess.Popen(
            bound(["adb", *words]), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except FileNotFoundError as error:
        raise DeviceError(
            "adb: needs Android's adb on this machine: apt install adb, or the platform tools of the Android SDK"
        ) from error
    texts: dict[str, bytes] = {}
    assert process.stdout is not None
    assert process.stderr is not None
    threads = [
        threading.Thread(target=_read_bounded, args=(process, pipe, texts, name), daemon=True)
        for name, pipe in (("stdout", process.stdout), ("stderr", process.stderr))
    ]
    for thread in threads:
        thread.start()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired as error:
        raise TransportError(f"adb {words[0]} did not end within {seconds:.0f} s; adb kill-server may help") from error
    finally:
        process.kill()
        process.wait()
        for thread in threads:
            thread.join(1.0)  # what adb started, such as its server, may hold the pipe open: what came until now counts
    out, err = (texts.get(name, b"") for name in ("stdout", "stderr"))
    if max(len(out), len(err)) > MAX_TEXT:
        raise DeviceError(f"adb {words[0]}: the phone answers with more than {MAX_TEXT} bytes; it is none of ours")
    said = (text.decode("utf-8", "replace") for text in (out, err))
    return subprocess.CompletedProcess(["adb", *words], process.returncode, *said)


def _read_bounded(process: subprocess.Popen[bytes], pipe: IO[bytes], texts: dict[str, bytes], name: str) -> None:
    """Keep what a pipe gives; a program that writes without end is ended."""
    kept = bytearray()
    with contextlib.suppress(OSError, ValueError), pipe:
        while block := os.read(pipe.fileno(), BLOCK):
            kept += block
            texts[name] = bytes(kept)
            if len(kept) > MAX_TEXT:
                process.kill()
                return


def explain(device: Device, serial: str, words: str, status: int, timeouts: Timeouts) -> EdgeattnError | None:
    """What an adb that ended before its work did means; None where adb is not to blame.

    Args:
        words: what it, or the shell there, wrote to stderr.
    """
    name, last = device.text, last_line(words)
    if "run-as:" in words:
        return UnsupportedError(f"{name}: {device.python} cannot be run there ({last}). {PUBLIC_BUILD}")
    if any(known in words for known in NO_RAW_SHELL):
        return UnsupportedError(f"{name}: {last}; Android 7 or later is needed")
    try:
        state = listed(timeouts).get(serial, "gone")
    except EdgeattnError:
        state = "gone"
    if state != "device" or status in CUT or status < 0:
        return TransportError(
            f"{name}: the link to the phone was cut ({last}; its state: {state}); is the cable in, is the phone awake?"
        )
    return None


def last_line(words: str) -> str:
    """The last words of a program."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return one_line(lines[-1], MAX_LAST_WORDS) if lines else "no word"


def _shell(python: str) -> str:
    """What starts a shell on the phone that can run that Python and knows where to write."""
    app = APP.fullmatch(python)
    if app is None:
        return f"export XDG_CACHE_HOME={TEMPORARY} TMPDIR={TEMPORARY} HOME={TEMPORARY}; exec sh -c"
    home = app[1]
    places = f"XDG_CACHE_HOME={home}/cache TMPDIR={home}/cache HOME={home}/files/home"
    return f"exec run-as {app[2]} env {places} sh -c"
