"""The near end of a link to a device: a process (ssh) whose stdin and stdout reach our runner there."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import select
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, TypeVar, overload

from edgeattn.errors import DeviceError, EdgeattnError, InputError, UnsupportedError
from edgeattn.printable import one_line
from edgeattn.targets.devices.events import (
    Alive,
    End,
    Event,
    Failed,
    Hello,
    NoDirectory,
    NoPython,
    Python,
    Refused,
    Stored,
    Waiting,
    read_event,
)

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
A = TypeVar("A", bound=Event)
B = TypeVar("B", bound=Event)
C = TypeVar("C", bound=Event)

PAUSES = (1.0, 3.0)  # seconds before the second and the third try
OLDEST_PYTHON = (3, 10)
KEEPALIVE = 2.0  # seconds between signs of life to the runner
BLOCK = 2**16
MAX_LINE = 16 * 2**20  # bytes of an event; a job's 8 MiB of text among them
MAX_EVENTS = 64  # that wait to be looked at; a runner answers one request at a time
MAX_LAST_WORDS = 4096
SLOWEST = 2e4  # bytes per second of a link that is of any use
RUNNER = Path(__file__).with_name("runner.py")

# Arguments: nonce, python, program for it, bytes of the runner, seconds of silence. Nothing that csh or fish expand.
# The directory and the job go also when the Python in it is killed; when this shell is killed, the runner removes it.
BOOT = (
    "umask 077; "
    'say() { printf "{\\"nonce\\": \\"%s\\", \\"event\\": \\"%s\\"}\\n" "$1" "$2"; }; '
    'b="${XDG_CACHE_HOME:-$HOME/.cache}/edgeattn"; d="$b/runs/$1"; '
    'mkdir -p "$b/runs" "$b/store" && mkdir "$d" || { say "$1" no-directory; exit 1; }; '
    'trap "test -f job && kill -s KILL -- -\\$(cat job); cd /; rm -rf \\"\\$d\\"" EXIT; '
    'trap "exit 1" HUP INT TERM; cd "$d"; '
    'command -v "$2" > /dev/null || { say "$1" no-python; exit 1; }; '
    '"$2" -u -c "$3" "$1" "$d" "$b" "$4" "$5"'
)
# Valid in every Python that a board may have, so that an old one is told by its version and not by a syntax error.
LOADER = (
    "import sys; v = sys.version_info; n = int(sys.argv[4]); "
    'sys.stdout.write(\'{"nonce": "%s", "event": "python", "version": [%d, %d, %d]}\\n\' % '
    "(sys.argv[1], v[0], v[1], v[2])); sys.stdout.flush(); "
    "tuple(v[:2]) >= (3, 10) or sys.exit(1); "
    'exec(compile(sys.stdin.buffer.read(n), "runner.py", "exec"), {"__name__": "__main__"})'
)


class TransportError(DeviceError):
    """The link itself failed: nothing was wrong with what was asked, and asking again can succeed."""


def retried(work: Callable[[], T]) -> T:
    """Do it, and again after a pause where only the link failed; nothing else is tried again."""
    for pause in PAUSES:
        with contextlib.suppress(TransportError):
            return work()
        time.sleep(pause)
    return work()


@dataclass(frozen=True)
class Timeouts:
    """Seconds.

    Attributes:
        connect: to the first word of the device.
        silence: without any word of the other end, on either side; both speak every 2 s.
        lock: to wait for a device that another uses.
        answer: to wait for what was asked, beyond what it may take, of a device that lives: one that says so for ever
            and never answers must not hold us.
        close: for the runner to end in order.
    """

    connect: float = 20.0
    silence: float = 30.0
    lock: float = 120.0
    answer: float = 120.0
    close: float = 5.0


@dataclass(frozen=True)
class Job:
    """``python -m module arguments`` on the device, our runtime on its path; one line of JSON on stdout.

    Attributes:
        arguments: ``{bundle}`` stands for the bundle's directory there.
    """

    module: str
    arguments: tuple[str, ...]
    timeout_seconds: float
    environment: Mapping[str, str] = field(default_factory=dict)


class Link:
    """A running runner. Use as a context manager; leaving it ends the runner and what it started.

    Args:
        command: what reaches a shell on the device; the shell command is appended as one argument.
        name: the device, for messages.
        python: the interpreter there.
        explain: turns the last words of a command that failed before the runner spoke into an error.
        shell: what runs a shell command that is given as one word, in the words of a shell there.
        example: how another Python is named, for messages.
    """

    def __init__(
        self,
        command: Sequence[str],
        name: str,
        python: str = "python3",
        timeouts: Timeouts = Timeouts(),
        explain: Callable[[str, int], EdgeattnError | None] | None = None,
        shell: str = "exec sh -c",
        example: str = "ssh://host/opt/venv/bin/python",
    ) -> None:
        self.name = name
        self._python = python
        self._example = example
        self.timeouts = timeouts
        self._explain = explain
        self._nonce = secrets.token_hex(16)
        self._events: queue.Queue[Event | InputError | None] = queue.Queue(MAX_EVENTS)
        self._flooded = False
        self._errors = ""
        self._writing = threading.Lock()
        self._closed = threading.Event()
        runner = RUNNER.read_bytes()
        words = (self._nonce, python, LOADER, str(len(runner)), str(timeouts.silence))
        remote = f"{shell} {shlex.quote(BOOT)} edgeattn {shlex.join(words)}"
        self._process = subprocess.Popen(
            [*command, remote],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is ours: we end the runner in order
        )
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)  # a device that reads nothing must not hold us
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._hear, self._hear_errors)]
        for thread in self._threads:
            thread.start()
        try:
            self._boot(runner)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None:
                self.request("end")
                if not self.wait(End).clean:
                    raise DeviceError(f"{self.name}: the directory of this run could not be removed there")
        finally:
            self.close()

    def request(self, do: str, **values: Any) -> None:
        """Ask the runner for something."""
        self._send(json.dumps({"do": do, **values}).encode() + b"\n")

    def put(self, sha256: str, source: IO[bytes], size: int) -> None:
        """Send a file to the device's store, where its hash is checked.

        Raises:
            DeviceError: if it did not arrive whole, or there is no room for it.
        """
        end = time.monotonic() + size / SLOWEST + self.timeouts.answer
        with self._writing:
            self._write(json.dumps({"do": "put", "sha256": sha256, "size": size}).encode() + b"\n")
            while block := source.read(BLOCK):
                self._write(block)
                if time.monotonic() > end:
                    raise TransportError(f"{self.name}: it takes less than {SLOWEST / 1e3:.0f} kB in a second")
        answer = self.wait(Stored, Refused, seconds=size / SLOWEST + self.timeouts.answer)
        if isinstance(answer, Refused):
            if answer.problem:
                raise DeviceError(
                    f"{self.name}: {size} bytes cannot be written there: {answer.problem}; make room where edgeattn "
                    "keeps its files there (~/.cache/edgeattn; on a phone /data/local/tmp/edgeattn)"
                )
            raise TransportError(
                f"{self.name}: a file of {size} bytes arrived changed: sha256 {sha256[:12]}... was sent, "
                f"{answer.found[:12]}... lies there; its storage or the link is not to be trusted"
            )

    @overload
    def wait(self, a: type[A], /, *, seconds: float | None = None) -> A: ...

    @overload
    def wait(self, a: type[A], b: type[B], /, *, seconds: float | None = None) -> A | B: ...

    @overload
    def wait(self, a: type[A], b: type[B], c: type[C], /, *, seconds: float | None = None) -> A | B | C: ...

    def wait(self, *events: type[Event], seconds: float | None = None) -> Event:
        """The next event, which must be one of these; signs of life go by, and their absence ends the wait.

        Args:
            seconds: to wait at most; None for those that an answer may take.

        Raises:
            TransportError: if the link was cut or fell silent.
            DeviceError: if the runner died, if what was asked failed there, or if it says what it should not.
        """
        longest = self.timeouts.answer if seconds is None else seconds
        limit = time.monotonic() + longest
        while True:
            silence = min(self.timeouts.silence, max(0.0, limit - time.monotonic()))
            try:
                event = self._events.get(timeout=silence)
            except queue.Empty:
                raise TransportError(
                    f"{self.name}: no sign of life for {silence:.0f} s; the device or the network hangs"
                ) from None
            if event is None:
                self._events.put(None)  # it stays so
                raise self._gone()
            if isinstance(event, events):
                return event
            if isinstance(event, InputError):
                raise DeviceError(f"{self.name}: it answered what no runner of ours does: {event}")
            if isinstance(event, Failed):
                where = f" ({event.path})" if event.path else ""
                raise DeviceError(f"{self.name}: failed there: {event.problem}{where}")
            if not isinstance(event, (Alive, Waiting)):
                wanted = " or ".join(kind.__name__ for kind in events)
                raise DeviceError(f"{self.name}: it answered {type(event).__name__} where {wanted} was to come")
            if time.monotonic() >= limit:
                raise TransportError(f"{self.name}: no answer within {longest:.0f} s, though it lives")

    def close(self) -> None:
        """End the process; the runner sees the end of its input and cleans up."""
        self._closed.set()
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(self.timeouts.close)
        for thread in self._threads[:2]:
            thread.join(0.5)
        if self._process.returncode is None or any(thread.is_alive() for thread in self._threads[:2]):
            with contextlib.suppress(ProcessLookupError):  # what it started holds its pipes, too
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for thread in self._threads:
            thread.join(5.0)
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    def _boot(self, runner: bytes) -> None:
        event = self.wait(Python, NoPython, NoDirectory, seconds=self.timeouts.connect)
        oldest = ".".join(map(str, OLDEST_PYTHON))
        if isinstance(event, NoDirectory):
            raise DeviceError(f"{self.name}: no directory can be made there: {self._last_words()}")
        if isinstance(event, NoPython):
            raise UnsupportedError(
                f"{self.name}: no {self._python} there; Python >= {oldest} with numpy and the engine is needed: "
                f"install it, or name its path, as {self._example}"
            )
        if event.version[:2] < OLDEST_PYTHON:
            version = ".".join(map(str, event.version))
            raise UnsupportedError(
                f"{self.name}: {self._python} there is Python {version}, at least {oldest} is needed: install one, or "
                f"name its path, as {self._example}"
            )
        self._send(runner)
        self.wait(Hello, seconds=self.timeouts.connect)
        thread = threading.Thread(target=self._beat, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _send(self, data: bytes) -> None:
        with self._writing:
            self._write(data)

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        left = memoryview(data)
        try:
            descriptor = self._process.stdin.fileno()
            waiting = select.poll()
            waiting.register(descriptor, select.POLLOUT)
            while left:
                if not waiting.poll(1e3 * self.timeouts.silence):
                    raise TransportError(
                        f"{self.name}: it took nothing of what was sent for {self.timeouts.silence:.0f} s; the device "
                        "or the network hangs"
                    )
                with contextlib.suppress(BlockingIOError):
                    left = left[os.write(descriptor, left) :]
        except (OSError, ValueError):
            raise self._gone() from None

    def _beat(self) -> None:
        while not self._closed.wait(KEEPALIVE):
            with contextlib.suppress(DeviceError):
                self._send(b"\n")

    def _hear(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            while line := self._process.stdout.readline(MAX_LINE):
                if not self._take(line):
                    break
        while not self._closed.is_set():  # the end is told behind what waits to be looked at
            with contextlib.suppress(queue.Full):
                self._events.put(None, timeout=0.1)
                return

    def _take(self, line: bytes) -> bool:
        """Look at a line; whether more are to be read."""
        whole = line.endswith(b"\n")
        event: Event | InputError | None = None
        try:
            event = read_event(line, self._nonce) if whole else None
        except InputError as error:
            event = error
        if event is None:  # a login's greeting, or why it lets nobody in
            self._errors = (self._errors + line[-MAX_LAST_WORDS:].decode("utf-8", "replace"))[-MAX_LAST_WORDS:]
            return True
        if isinstance(event, Alive) and not self._events.empty():
            return True  # what waits says as much
        try:
            self._events.put_nowait(event)
        except queue.Full:
            self._flooded = True
            self._process.kill()
        return not self._flooded

    def _hear_errors(self) -> None:
        assert self._process.stderr is not None
        with contextlib.suppress(OSError, ValueError):
            while line := self._process.stderr.readline(BLOCK):
                self._errors = (self._errors + line.decode("utf-8", "replace"))[-MAX_LAST_WORDS:]

    def _last_words(self) -> str:
        self._threads[1].join(1.0)
        lines = [line.strip() for line in self._errors.splitlines() if line.strip()]
        return one_line(lines[-1], 400) if lines else "it said nothing"

    def _gone(self) -> EdgeattnError:
        """The error of a process that ended before the runner did."""
        if self._flooded:
            return DeviceError(f"{self.name}: it says more than it was asked; what runs there is no runner of ours")
        try:
            status = self._process.wait(self.timeouts.close)
        except subprocess.TimeoutExpired:
            return TransportError(f"{self.name}: the link was cut")
        words = self._last_words()
        if self._explain is not None and (explained := self._explain(self._errors, status)) is not None:
            return explained
        return DeviceError(
            f"{self.name}: the runner there ended before its work did (status {status}: {words}); it was killed, or "
            "the device ran out of memory"
        )
