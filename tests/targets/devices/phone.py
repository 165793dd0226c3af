"""A phone for tests: the device side of adb over TCP, whose shell runs commands of this machine in a directory.

It speaks the protocol of AOSP's packages/modules/adb, so that the real adb client and server are exercised:

    protocol.txt, docs/dev     messages CNXN, AUTH, OPEN, OKAY, WRTE, CLSE, of 24 bytes and their data
    shell_protocol.h           shell,v2: packets of an id, a length of 4 bytes and data
    SYNC.TXT                   sync: STAT, SEND, DATA, DONE, QUIT

Paths under /data are those under the phone's own directory. Where Android's shell and tools are installed on this
machine (Debian: mksh, toybox), the phone has those.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest

from tests.targets.devices.board import interpreter_for

PYTHON = "/data/local/tmp/python/bin/python3"
TERMUX = "/data/data/com.termux/files/usr/bin/python3"
VERSION, MAX_DATA = 0x0100_0001, 2**18
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)
BANNER = b"device::ro.product.name=test;ro.product.model=Test;ro.product.device=test;features=%s"
TOKEN, PUBLIC_KEY = 1, 3  # of AUTH
ANDROID = {
    "mksh": ("sh",),
    "toybox": (
        "cat", "chmod", "df", "env", "find", "flock", "grep", "head", "mkdir", "mv", "rm", "setsid", "sha256sum",
        "sleep", "tail", "touch", "uname",
    ),
}  # fmt: skip
FAILED_WRITE = "couldn't write"

SCRIPTS = {
    "getprop": 'case "$1" in ro.product.model) echo "Test phone";; ro.soc.model) echo T1000;; '
    "ro.product.cpu.abi) uname -m;; esac",
    # As run_as.cpp: the package must be there and debuggable; the program is executed, not given to a shell.
    "run-as": 'case "$1" in com.termux) shift; exec "$@";; com.closed) echo "run-as: package not debuggable: $1" >&2; '
    'exit 1;; *) echo "run-as: unknown package: $1" >&2; exit 1;; esac',
}


@dataclass
class Phone:
    """A device in ``root`` that listens on ``port``; the attributes in the second half are what is wrong with it."""

    root: Path
    port: int = 0
    features: bytes = b"shell_v2,cmd"
    unauthorized: bool = False
    silent: bool = False  # it takes the connection and says nothing
    still: bool = False  # nothing is closed, nothing comes through
    room: int | None = None  # bytes that may still be pushed
    damage: bool = False  # what is pushed lies there changed
    wrap: tuple[str, ...] = ()  # words before sh
    pushed: list[str] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)

    @property
    def serial(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def temporary(self) -> Path:
        return self.root / "data/local/tmp"

    @property
    def cache(self) -> Path:
        return self.temporary / "edgeattn"

    @property
    def termux(self) -> Path:
        return self.root / "data/data/com.termux"

    def here(self, text: str) -> str:
        """Text with the phone's paths as they are on this machine."""
        return re.sub(r"(?<![\w/])/data/", f"{self.root}/data/", text)

    def script(self, path: Path, lines: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # it may be a link to a program of this machine
        path.write_text(f"#!/bin/sh\n{lines}\n")
        path.chmod(0o755)
        return path

    def unplug(self) -> None:
        """The cable is pulled: what is connected ends, as a phone ends it then."""
        for connection in tuple(self.connections):
            connection.end()

    def furnish(self) -> None:
        """What every phone has."""
        self.temporary.mkdir(parents=True)
        (self.termux / "cache").mkdir(parents=True)
        for name, lines in SCRIPTS.items():
            self.script(self.root / "bin" / name, lines)
        for program, names in ANDROID.items():
            if (found := shutil.which(program)) is not None:
                for name in names:
                    (self.root / "bin" / name).symlink_to(found)

    def processes(self) -> list[int]:
        """Those whose command or directory is under the phone."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                words = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
                if str(self.root) in words or str((entry / "cwd").readlink()).startswith(str(self.root)):
                    found.append(int(entry.name))
        return found

    def left(self) -> list[str]:
        """Files of runs that are still there, half of a file, and processes."""
        files = []
        for cache in (self.cache, self.termux / "cache" / "edgeattn"):
            files += [str(path) for path in (cache / "runs").glob("*")] + list(map(str, cache.rglob("*.part")))
        return files + [f"process {number}" for number in self.processes()]

    def is_clean(self, seconds: float = 15.0) -> bool:
        end = time.monotonic() + seconds
        while self.left():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True


class Connection:
    """One adb server that is connected: messages in, streams of services out."""

    def __init__(self, phone: Phone, sock: socket.socket) -> None:
        self.phone, self._sock = phone, sock
        self._sending = threading.Lock()
        self._streams: dict[int, Stream] = {}
        self._next = 1
        threading.Thread(target=self._serve, daemon=True).start()

    def send(self, command: bytes, first: int, second: int, data: bytes = b"") -> None:
        (number,) = struct.unpack("<I", command)
        header = struct.pack("<4s5I", command, first, second, len(data), sum(data) & 0xFFFFFFFF, number ^ 0xFFFFFFFF)
        while self.phone.still:
            time.sleep(0.02)
        with self._sending, contextlib.suppress(OSError):
            self._sock.sendall(header + data)

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        with contextlib.suppress(OSError, EOFError), self._sock:
            source = self._sock.makefile("rb")
            while header := source.read(24):
                command, first, second, length, _, _ = struct.unpack("<4s5I", header)
                self._answer(command, first, second, source.read(length))
        for stream in tuple(self._streams.values()):
            stream.gone()
        with contextlib.suppress(ValueError):
            self.phone.connections.remove(self)

    def _answer(self, command: bytes, first: int, second: int, data: bytes) -> None:
        if self.phone.silent:
            return
        if command in (b"CNXN", b"AUTH"):
            if self.phone.unauthorized:
                if (command, first) != (b"AUTH", PUBLIC_KEY):  # else the dialog stands open, and nobody taps on it
                    self.send(b"AUTH", TOKEN, 0, os.urandom(20))
            else:
                self.send(b"CNXN", VERSION, MAX_DATA, BANNER % self.phone.features)
        elif command == b"OPEN":
            service = data.rstrip(b"\0").decode()
            kind = ShellStream if service.startswith("shell") else SyncStream if service == "sync:" else None
            if kind is None:
                self.send(b"CLSE", 0, first)
                return
            stream = kind(self, self._next, first)
            self._streams[self._next] = stream
            self._next += 1
            self.send(b"OKAY", stream.local, first)
            stream.start(service)
        elif (known := self._streams.get(second)) is not None:
            if command == b"WRTE":
                self.send(b"OKAY", second, first)
                known.take(data)
            elif command == b"OKAY":
                known.ready.release()
            elif command == b"CLSE":
                self._streams.pop(second, None)
                known.gone()


class Stream:
    """A service in use; subclasses take what comes and say what they have."""

    def __init__(self, connection: Connection, local: int, remote: int) -> None:
        self.connection, self.local, self.remote = connection, local, remote
        self.ready = threading.Semaphore(1)  # one WRTE may be on its way: the next waits for its OKAY
        self.over = threading.Event()

    def start(self, service: str) -> None:
        """Begin."""

    def take(self, data: bytes) -> None:
        """Data of a WRTE."""
        raise NotImplementedError

    def say(self, data: bytes) -> None:
        while not self.ready.acquire(timeout=0.1):
            if self.over.is_set():
                return
        self.connection.send(b"WRTE", self.local, self.remote, data)

    def close(self) -> None:
        self.connection.send(b"CLSE", self.local, self.remote)

    def gone(self) -> None:
        """The other end is gone."""
        self.over.set()


class ShellStream(Stream):
    """``shell,v2,raw:COMMAND``: a process with three pipes, as adbd's Subprocess."""

    def start(self, service: str) -> None:
        kind, _, command = service.partition(":")
        assert "raw" in kind.split(","), f"no terminal is needed here, got {kind}"
        self._v2, self._heard = "v2" in kind.split(","), b""
        phone = self.connection.phone
        self._process = subprocess.Popen(
            [*phone.wrap, "sh", "-c", phone.here(command)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={"PATH": f"{phone.root / 'bin'}:/usr/bin:/bin"}, cwd="/", start_new_session=True,
        )  # fmt: skip
        self._readers = [
            threading.Thread(target=self._copy, args=(number,), daemon=True) for number in (STDOUT, STDERR)
        ]
        for reader in self._readers:
            reader.start()
        threading.Thread(target=self._end, daemon=True).start()

    def take(self, data: bytes) -> None:
        self._heard += data
        stdin = self._process.stdin
        assert stdin is not None
        while len(self._heard) >= 5:
            number, length = struct.unpack("<BI", self._heard[:5])
            if len(self._heard) < 5 + length:
                return
            body, self._heard = self._heard[5 : 5 + length], self._heard[5 + length :]
            with contextlib.suppress(OSError, ValueError):
                if number == STDIN:
                    stdin.write(body)
                    stdin.flush()
                elif number == CLOSE_STDIN:
                    stdin.close()

    def gone(self) -> None:
        super().gone()
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.close()

    def _copy(self, number: int) -> None:
        pipe = self._process.stdout if number == STDOUT else self._process.stderr
        assert pipe is not None
        with contextlib.suppress(OSError, ValueError):
            while data := os.read(pipe.fileno(), 2**15):
                self.say(struct.pack("<BI", number, len(data)) + data)

    def _end(self) -> None:
        for reader in self._readers:
            reader.join()
        status = self._process.wait()
        status = 128 - status if status < 0 else status  # subprocess: minus the signal; a shell: 128 and it
        self.say(struct.pack("<BIB", EXIT, 1, status))
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        self.close()


class SyncStream(Stream):
    """``sync:``, of which a push needs STAT and SEND."""

    def start(self, service: str) -> None:
        self._heard, self._path, self._problem = b"", Path(), ""
        self._file: IO[bytes] | None = None

    def take(self, data: bytes) -> None:
        self._heard += data
        while len(self._heard) >= 8:
            name, length = struct.unpack("<4sI", self._heard[:8])
            size = 0 if name in (b"DONE", b"QUIT") else length
            if len(self._heard) < 8 + size:
                return
            body, self._heard = self._heard[8 : 8 + size], self._heard[8 + size :]
            self._do(name, body)

    def gone(self) -> None:
        super().gone()
        if self._file is not None:
            self._file.close()

    def _do(self, name: bytes, body: bytes) -> None:
        phone = self.connection.phone
        if name == b"STAT":
            path = Path(phone.here(body.decode()))
            facts = path.stat() if path.exists() else None
            figures = (facts.st_mode, facts.st_size, int(facts.st_mtime)) if facts is not None else (0, 0, 0)
            self.say(struct.pack("<4s3I", b"STAT", *figures))
        elif name == b"SEND":
            self._path = Path(phone.here(body.decode().rpartition(",")[0]))
            phone.pushed.append(self._path.name)
            self._problem = "" if self._path.parent.is_dir() else "No such file or directory"
            self._file = self._path.open("wb") if not self._problem else None
        elif name == b"DATA":
            if phone.room is not None:
                phone.room -= len(body)
                self._problem = "No space left on device" if phone.room < 0 else self._problem
            if self._file is not None and not self._problem:
                self._file.write(bytes([body[0] ^ 1]) + body[1:] if phone.damage else body)
        elif name == b"DONE":
            if self._file is not None:
                self._file.close()
            if self._problem:
                self._path.unlink(missing_ok=True)
                words = f"{FAILED_WRITE}: {self._problem}".encode()
                self.say(struct.pack("<4sI", b"FAIL", len(words)) + words)
            else:
                self.say(struct.pack("<4sI", b"OKAY", 0))
        elif name == b"QUIT":
            self.close()


@contextlib.contextmanager
def running_phone(root: Path) -> Iterator[Phone]:
    """A phone that listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        phone = Phone(root, int(listener.getsockname()[1]))
        phone.furnish()

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    phone.connections.append(Connection(phone, sock))

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield phone
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            phone.unplug()
            for number in phone.processes():
                with contextlib.suppress(OSError):
                    os.kill(number, signal.SIGKILL)
            thread.join(5.0)


@dataclass(frozen=True)
class Server:
    """An adb server of the tests' own, with its own keys."""

    environment: dict[str, str]
    program: str

    def adb(self, *words: str) -> str:
        done = subprocess.run(
            [self.program, *words], env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=30.0
        )
        return done.stdout + done.stderr

    def plug(self, phone: Phone, state: str = "device") -> None:
        """Attach a phone and wait until it is in that state."""
        self.adb("connect", phone.serial)
        until(lambda: f"{phone.serial}\t{state}" in self.adb("devices"))

    def unplug(self, phone: Phone) -> None:
        self.adb("disconnect", phone.serial)


@contextlib.contextmanager
def running_server(home: Path) -> Iterator[Server]:
    """The real adb server, on a port of its own."""
    program = shutil.which("adb")
    if program is None:
        pytest.skip("needs Android's adb: apt install adb")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    server = Server({"ANDROID_ADB_SERVER_PORT": str(port), "HOME": str(home), "ANDROID_SDK_HOME": str(home)}, program)
    said = server.adb("start-server")
    try:
        if "daemon started successfully" not in said:
            pytest.skip(f"adb's server does not start here: {said[-300:]}")
        yield server
    finally:
        server.adb("kill-server")


def until(happens: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def give_python(phone: Phone, environment: str) -> None:
    """A Python for adb's account and one in Termux, which is this one with variables of its environment."""
    interpreter = interpreter_for(os.getuid(), os.getgid())
    for path in (PYTHON, TERMUX):
        phone.script(Path(phone.here(path)), f'{environment} exec {interpreter} "$@"')
