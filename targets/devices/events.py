"""What a runner may say, each event in its form: a device is another's machine, and nothing of it is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from edgeattn.errors import DeviceError, EdgeattnError, InputError, error_from
from edgeattn.guards.plain import read_json
from edgeattn.printable import excerpt
from edgeattn.spec import from_json

T = TypeVar("T")

MAX_NESTED = 1_000_000  # lists and objects of one line: of 56 bytes each, where their text has two


class Event:
    """What a runner says."""


@dataclass(frozen=True)
class Hello(Event):
    """The runner runs."""


@dataclass(frozen=True)
class Alive(Event):
    """It still does."""


@dataclass(frozen=True)
class Waiting(Event):
    """It waits for another one's lock."""


@dataclass(frozen=True)
class NoDirectory(Event):
    """Nothing can be written there."""


@dataclass(frozen=True)
class NoPython(Event):
    """There is no Python of that name."""


@dataclass(frozen=True)
class Python(Event):
    """The Python that will run the runner."""

    version: tuple[int, int, int]


@dataclass(frozen=True)
class Inventory(Event):
    """What a device has.

    Attributes:
        modules: module -> version; None where it is not there, empty where its package does not tell.
        libc: name and version.
        model: of the board, as its firmware names it; empty where it does not.
        tegra: first line of /etc/nv_tegra_release; empty elsewhere.
        free_disk_bytes: where files are put.
        free_memory_bytes: None where the system does not tell.
        emulator: the program that stands in for the processor; empty on a real one.
        nvinfer: TensorRT's library, where ``tegra`` is not empty and the linker finds it.
    """

    python: str
    executable: str
    system: str
    arch: str
    libc: str
    model: str
    tegra: str
    modules: Mapping[str, str | None]
    free_disk_bytes: int
    free_memory_bytes: int | None
    emulator: str = ""
    nvinfer: str = ""


@dataclass(frozen=True)
class Ready(Event):
    """The lock is ours.

    Attributes:
        missing: hashes that the store does not hold.
        reaped: what was removed that nobody used.
    """

    missing: tuple[str, ...]
    reaped: tuple[str, ...]


@dataclass(frozen=True)
class Busy(Event):
    """Another has the lock."""

    lock: str


@dataclass(frozen=True)
class Stored(Event):
    """A file arrived whole."""

    sha256: str


@dataclass(frozen=True)
class Refused(Event):
    """A file did not.

    Attributes:
        found: hash of what lies there.
        received: hash of what came over the link.
        problem: the system's words, empty where it arrived changed.
    """

    sha256: str
    found: str
    received: str
    problem: str


@dataclass(frozen=True)
class Unpacked(Event):
    """Paths there of the bundle and of our runtime."""

    path: str
    runtime: str


@dataclass(frozen=True)
class Kept(Event):
    """Path there of a file of this run."""

    path: str


@dataclass(frozen=True)
class Done(Event):
    """A job ended.

    Attributes:
        timeout: it was killed, for it took too long; it has no status then.
    """

    timeout: bool
    status: int | None
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Failed(Event):
    """What was asked failed; ``path`` is empty where the system names none."""

    problem: str
    path: str


@dataclass(frozen=True)
class End(Event):
    """The last one.

    Attributes:
        clean: whether the directory of the run is gone.
    """

    clean: bool


EVENTS: Mapping[str, type[Event]] = {
    "hello": Hello,
    "alive": Alive,
    "waiting": Waiting,
    "no-directory": NoDirectory,
    "no-python": NoPython,
    "python": Python,
    "inventory": Inventory,
    "ready": Ready,
    "busy": Busy,
    "stored": Stored,
    "refused": Refused,
    "unpacked": Unpacked,
    "kept": Kept,
    "done": Done,
    "failed": Failed,
    "end": End,
}


def read_event(line: bytes, nonce: str) -> Event | None:
    """The event in a line; None for a line that is not of our runner, such as a login's greeting.

    Raises:
        InputError: for a line with our nonce that is no event of a runner.
    """
    text = line.strip()
    if not text.startswith(b"{") or nonce.encode("ascii") not in text:
        return None
    values = _read(text, "its answer")
    if not isinstance(values, dict) or values.pop("nonce", None) != nonce:
        return None
    name = values.pop("event", None)
    if not isinstance(name, str) or name not in EVENTS:
        raise InputError(f"its answer: unknown event {excerpt(name)}")
    return from_json(EVENTS[name], values, name)


def read_answer(text: str, kind: type[T], key: str, name: str) -> T:
    """What a job told with its last line: an object with what it found under ``key``, or an error.

    Args:
        kind: dataclass of what it found.
        name: the device, for messages.

    Raises:
        EdgeattnError: the error that the job told.
        DeviceError: for what is no answer of such a job.
    """
    try:
        answer = _read(text.encode("utf-8", "replace"), "its answer")
        if not isinstance(answer, dict):
            raise InputError(f"its answer: expected an object, got {excerpt(answer)}")
        if "error" in answer:
            told = from_json(_Error, answer, "its error")
        elif set(answer) != {key}:
            raise InputError(
                f"its answer: expected {key!r}, got {', '.join(map(excerpt, list(answer)[:8])) or 'nothing'}"
            )
        else:
            _check_counts(answer[key], key)
            return from_json(kind, answer[key], key)
    except InputError as error:
        raise DeviceError(f"{name}: it answered what no edgeattn there does: {error}") from error
    found = error_from({field.name: getattr(told, field.name) for field in fields(told)}, name)
    raise found if type(found) is not EdgeattnError else DeviceError(str(found))


@dataclass(frozen=True)
class _Error:
    """As :func:`edgeattn.errors.error_facts` tells one."""

    error: str
    message: str


def _read(text: bytes, where: str) -> Any:
    if text.count(b"[") + text.count(b"{") > MAX_NESTED:
        raise InputError(f"{where}: more than {MAX_NESTED} lists and objects")
    return read_json(text, where)


NEVER_NEGATIVE = ("_ms", "_bytes", "_seconds", "_watts", "_mhz", "joules_per_call", "runs", "calls", "steps", "threads")
LARGEST = 1e15  # of any figure: bytes, nanoseconds, operations


def _check_counts(values: Any, where: str) -> None:
    """Figures that no device has: below zero where they are times or counts, or too large to be any.

    Raises:
        InputError: naming it.
    """
    waiting = [(where, values)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(str(key), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(name, inner) for inner in value]
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            lowest = 0.0 if name.endswith(NEVER_NEGATIVE) else -LARGEST
            if not lowest <= value <= LARGEST:
                raise InputError(f"{where}: {excerpt(name)} is {excerpt(value)}, which is no figure of a device")
