"""A program on a phone that has no Python: pushed by its hash, run alone under the phone's lock, its text read back."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import secrets
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgeattn.errors import DeviceError, EdgeattnError, InputError, UnsupportedError
from edgeattn.guards.blocks import sha256_of
from edgeattn.targets.devices.adb import MAX_TEXT, TEMPORARY, attached, explain, last_line, run_adb, shell
from edgeattn.targets.devices.device import Device
from edgeattn.targets.devices.link import Timeouts, TransportError, retried

PUSH_RATE = 2e5  # bytes per second of a link too slow to be of use
NUMBER = re.compile(r"[0-9]{1,15}")  # of kilobytes
CACHE = f"{TEMPORARY}/edgeattn"
STORE = f"{CACHE}/store"
MAX_LINES = 1_000  # that wait to be looked at
KILLED = "137"
NOT_RUN = ("126", "127")  # of a shell: no permission, not a program for this machine, not found

INVENTORY = (
    f"umask 077; mkdir -p {CACHE}/runs {STORE} || exit 1; "
    'echo "model $(getprop ro.product.model)"; echo "chip $(getprop ro.soc.model)"; echo "arch $(uname -m)"; '
    f'echo "disk $(df -k {STORE} | tail -n 1)"; echo "memory $(grep MemAvailable: /proc/meminfo)"'
)
# Arguments: nonce, half seconds to wait for the lock, seconds to run, program, its arguments. The lock is the one that
# our runner takes, too. When adb's end of stdin closes, the program is killed, and the directory goes; meanwhile a line
# every 2 s says that the phone lives. For Android's mksh, which passes on no descriptor that is not named, and for
# dash, whose kill takes a group after -s alone.
RUN = (
    'umask 077; n="$1"; w="$2"; l="$3"; shift 3; '
    f'd="{CACHE}/runs/$n"; mkdir "$d" || {{ echo "$n no-directory"; exit 1; }}; '
    'trap "cd /; kill -s KILL -- \\$h \\$p \\$t \\$c -\\$p -\\$t 2> /dev/null; rm -rf \\"\\$d\\"" EXIT; '
    'trap "exit 1" HUP INT TERM; trap "" PIPE; cd "$d"; '
    '( while sleep 2 > /dev/null 2>&1; do echo "$n alive"; done ) & h=$!; '
    f"exec 9>>{TEMPORARY}/edgeattn-device.lock; "
    'until flock -n 9 9>&9; do w=$((w - 1)); test $w -gt 0 || { echo "$n busy"; exit 1; }; sleep 0.5; done; '
    f"find {CACHE}/runs -mindepth 1 -maxdepth 1 -mtime +0 -exec rm -rf {{}} +; "
    f"find {STORE} -name '*.part' -mtime +0 -exec rm -f {{}} +; find {STORE} -type f -mtime +30 -exec rm -f {{}} +; "
    'exec 3<&0; setsid "$@" > out 2>&1 < /dev/null 3<&- 9>&- & p=$!; '
    "( cat <&3; kill -s KILL -- -$p ) > /dev/null 2>&1 9>&- & c=$!; "
    'setsid sh -c "sleep $l; : > late; kill -s KILL -- -$p" > /dev/null 2>&1 < /dev/null 3<&- 9>&- & t=$!; '
    f'wait $p; s=$?; test ! -f late || s=late; kill -s KILL $h; head -c {MAX_TEXT} out; echo; echo "$n done $s"'
)


@dataclass(frozen=True)
class Program:
    """What to run.

    Attributes:
        path: of the program, on this machine; built for the phone.
        arguments: ``{NAME}`` stands for a file's path there.
        files: NAME -> file of this machine.
        timeout_seconds: that it may take.
    """

    path: Path
    arguments: tuple[str, ...]
    timeout_seconds: float
    files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class PhoneFacts:
    """What a phone tells of itself without a Python; what it does not tell is empty, or None.

    Attributes:
        model: name and chip.
        arch: as the kernel names it.
    """

    model: str
    arch: str
    free_disk_bytes: int | None
    free_memory_bytes: int | None


def run_program(device: Device, program: Program, timeouts: Timeouts = Timeouts()) -> tuple[str, PhoneFacts]:  # noqa: B008
    """Push a program and its files unless they are there, run it, and read what it wrote; again if the link failed.

    Raises:
        DeviceError: as :func:`edgeattn.targets.devices.adb.attached`, or if the phone is in use or full, the program
            failed, or did not end in time; it is dead then.
        UnsupportedError: if the phone cannot execute it.
        InputError: if a file cannot be read here.
    """
    nonce = secrets.token_hex(16)
    return retried(lambda: _try(device, program, nonce, timeouts))


def _try(device: Device, program: Program, nonce: str, timeouts: Timeouts) -> tuple[str, PhoneFacts]:
    serial = attached(device, timeouts)
    phone = _Phone(device, serial, timeouts)
    facts = facts_of(phone.ask(INVENTORY))
    wanted = {path: _sha256(path) for path in (program.path, *program.files.values())}
    phone.push(wanted, nonce, facts)
    places = {name: f"{STORE}/{wanted[path]}" for name, path in program.files.items()}
    words = [f"{STORE}/{wanted[program.path]}", *(argument.format(**places) for argument in program.arguments)]
    return phone.run(words, program.timeout_seconds), facts


def facts_of(text: str) -> PhoneFacts:
    """The answer to the inventory's commands."""
    rows = {key: value.strip() for key, _, value in (line.partition(" ") for line in text.splitlines())}
    disk, memory = rows.get("disk", "").split(), rows.get("memory", "").split()
    return PhoneFacts(
        ", ".join(filter(None, (rows.get("model", ""), rows.get("chip", "")))),
        rows.get("arch", ""),
        1024 * int(disk[3]) if len(disk) > 3 and NUMBER.fullmatch(disk[3]) else None,
        1024 * int(memory[1]) if len(memory) > 1 and NUMBER.fullmatch(memory[1]) else None,
    )


def _sha256(path: Path) -> str:
    """Hexadecimal digits.

    Raises:
        InputError: if it is no file that can be read.
    """
    try:
        with path.open("rb") as file:
            return sha256_of(file)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


class _Phone:
    """A phone during one try."""

    def __init__(self, device: Device, serial: str, timeouts: Timeouts) -> None:
        self._device, self._serial, self._timeouts = device, serial, timeouts

    def ask(self, command: str, seconds: float = 0.0) -> str:
        """What a shell command wrote.

        Raises:
            TransportError, DeviceError, UnsupportedError: if the link was cut, or the command failed.
        """
        mark = secrets.token_hex(8)  # tells an answer from a link that was cut, of which adb's status tells nothing
        words = [*shell(self._serial)[1:], f"( {command} ) && echo {mark}"]
        done = run_adb(words, self._timeouts.connect + seconds)
        if mark not in done.stdout:
            raise self._failure(done.stderr, done.returncode)
        return done.stdout.replace(mark, "")

    def push(self, wanted: Mapping[Path, str], nonce: str, facts: PhoneFacts) -> None:
        """Send the files that the store does not hold whole."""
        name = self._device.text
        total = sum(path.stat().st_size for path in wanted)
        seconds = total / PUSH_RATE
        names = " ".join(wanted.values())
        listing = self.ask(
            f"cd {STORE} && for f in {names}; do test ! -f $f || {{ sha256sum $f; touch $f; }}; done", seconds
        )
        there = {tuple(line.split()[:2]) for line in listing.splitlines()}
        missing = {path: sha256 for path, sha256 in wanted.items() if (sha256, sha256) not in there}
        need = sum(path.stat().st_size for path in missing) + 2**20
        if missing and facts.free_disk_bytes is not None and facts.free_disk_bytes < need:
            raise self._no_space(f"{facts.free_disk_bytes / 1e6:.1f} MB free, {need / 1e6:.1f} MB are needed")
        for path, sha256 in missing.items():
            part = f"{STORE}/{sha256}.{nonce}.part"
            done = run_adb(["-s", self._serial, "push", str(path), part], self._timeouts.connect + seconds)
            if done.returncode != 0:
                words = done.stderr + done.stdout
                if "No space left" not in words:
                    raise TransportError(f"{name}: {path.name} could not be pushed: {last_line(done.stderr)}")
                self.ask(f"rm -f {part}")
                raise self._no_space(f"{path.name} has {path.stat().st_size / 1e6:.1f} MB")
            found = (self.ask(f"sha256sum {part}", seconds).split() or ["nothing"])[0]
            if found != sha256:
                self.ask(f"rm -f {part}")
                raise TransportError(
                    f"{name}: {path.name} arrived changed: sha256 {sha256[:12]}... was sent, {found[:12]}... lies "
                    "there; its storage or the link is not to be trusted"
                )
            self.ask(f"chmod 700 {part} && mv -f {part} {STORE}/{sha256}")

    def run(self, words: list[str], seconds: float) -> str:
        """The text of the program."""
        name, wait, nonce = self._device.text, self._timeouts.lock, secrets.token_hex(16)
        arguments = (nonce, str(max(1, round(2 * wait))), str(round(seconds + 0.5)), *words)
        command = f"sh -c {shlex.quote(RUN)} edgeattn {shlex.join(arguments)}"
        text, problem, status = self._listen(command, f"{nonce} alive", seconds + wait + self._timeouts.answer)
        before, mark, after = text.rpartition(f"{nonce} ")
        if not mark:
            raise self._failure(problem, status)
        said, _, value = after.strip().partition(" ")
        if said == "no-directory":
            raise DeviceError(f"{name}: no directory can be made in {CACHE}: {last_line(problem)}")
        if said == "busy":
            raise DeviceError(
                f"{name}: in use by another edgeattn for {wait:.0f} s; two at once would spoil both measurements: try "
                "again when it is done"
            )
        program = last_line(before)
        if value == "late":
            raise DeviceError(
                f"{name}: the program did not end within {seconds:.0f} s and was killed there ({program})"
            )
        if value == KILLED:
            raise DeviceError(
                f"{name}: the program was killed there, as the system does when memory runs out ({program})"
            )
        if value in NOT_RUN:
            raise UnsupportedError(f"{name}: the program cannot be executed there ({program}); is it built for it?")
        if value != "0":
            raise DeviceError(f"{name}: the program failed there with status {value}: {program}")
        return before

    def _listen(self, command: str, alive: str, seconds: float) -> tuple[str, str, int]:
        """What adb wrote without signs of life, its stderr, and its status.

        Closing its stdin ends what it started, also when this process dies.

        Args:
            seconds: that all of it may take, of a phone that says that it lives.

        Raises:
            TransportError: if the phone falls silent, or does not come to an end.
            DeviceError: if it says more than a program's output.
        """
        reading, writing = os.pipe()
        try:
            process = subprocess.Popen(
                [*shell(self._serial), command],
                stdin=reading,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # Ctrl-C is ours: the program there ends with our end of the pipe
            )
        except BaseException:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        said: queue.Queue[str | None] = queue.Queue(MAX_LINES)
        end = time.monotonic() + seconds
        problem: list[str] = []
        threads = [
            threading.Thread(target=hear, daemon=True) for hear in (_lines(process, said), _rest(process, problem))
        ]
        for thread in threads:
            thread.start()
        text = ""
        try:
            while (line := said.get(timeout=self._timeouts.silence)) is not None:
                text += "" if line.strip() == alive else line
                if len(text) > 2 * MAX_TEXT:
                    raise DeviceError(
                        f"{self._device.text}: says more than {MAX_TEXT} bytes, which no program of ours does"
                    )
                if time.monotonic() > end:
                    raise TransportError(f"{self._device.text}: no end within {seconds:.0f} s, though it lives")
        except queue.Empty:
            raise TransportError(
                f"{self._device.text}: no sign of life for {self._timeouts.silence:.0f} s; the phone or the link hangs"
            ) from None
        finally:
            os.close(writing)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5.0)  # the program there is killed and its directory removed
            process.kill()
            process.wait()
            with contextlib.suppress(queue.Empty):  # a reader that waits for room goes on to the end
                while threads[0].is_alive():
                    said.get(timeout=0.2)
            for thread in threads:
                thread.join(5.0)
            for pipe in (process.stdout, process.stderr):
                assert pipe is not None
                pipe.close()
        return text, "".join(problem), process.returncode

    def _failure(self, words: str, status: int) -> EdgeattnError:
        explained = explain(self._device, self._serial, words, status, self._timeouts)
        return explained or DeviceError(f"{self._device.text}: a shell command failed there: {last_line(words)}")

    def _no_space(self, words: str) -> DeviceError:
        return DeviceError(f"{self._device.text}: no space: {words}; make room in {CACHE}")


def _lines(process: subprocess.Popen[str], said: queue.Queue[str | None]) -> Callable[[], None]:
    def hear() -> None:
        assert process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            while line := process.stdout.readline(MAX_TEXT):
                said.put(line)
        said.put(None)

    return hear


def _rest(process: subprocess.Popen[str], problem: list[str]) -> Callable[[], None]:
    def hear() -> None:
        assert process.stderr is not None
        with contextlib.suppress(OSError, ValueError):
            problem.append(process.stderr.read(MAX_TEXT))

    return hear
