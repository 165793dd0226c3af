"""A file of unknown origin is read in another process first, and here only if that ended well.

A server without threads imports what reading needs, while this process imports the same, and forks a child per file.
The child puts walls around itself (:mod:`edgeattn.sources.walls`), reads, and says how it went. What would take this
process down, keep it busy, or run code of the file's author, does so there.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeattn.errors import EdgeattnError, InputError, ModelError, error_facts, error_from
from edgeattn.sources.examples import NONE, Examples
from edgeattn.sources.walls import build_walls
from edgeattn.traces import leave_none

SECONDS = 300  # and one for each MiB
GIB = 4  # and sixteen times the file
SECONDS_VARIABLE = "EDGEATTN_READ_SECONDS"
GIB_VARIABLE = "EDGEATTN_READ_GIB"
IDLE_SECONDS = 60.0  # of the server, before it ends
MAX_ANSWER_BYTES = 2**16
MAX_FILES = 10_000  # of a directory that is looked at for changes
READ = (".json", ".safetensors", ".txt", ".model", ".spm", ".jinja", ".onnx", ".npz", ".data")  # of a directory

Print = tuple[tuple[str, int, int, int, int], ...]


@dataclass(frozen=True)
class Limits:
    """Of one reading."""

    seconds: int
    memory_bytes: int


def limits_for(size: int) -> Limits:
    """Limits for that many bytes of files; the environment's, if it has them.

    Raises:
        InputError: for a variable that is no positive number.
    """
    seconds = _number(SECONDS_VARIABLE, SECONDS + size // 2**20)
    gib = _number(GIB_VARIABLE, GIB + 16 * size / 2**30)
    return Limits(max(1, int(seconds)), int(gib * 2**30))


def _number(variable: str, fallback: float) -> float:
    text = os.environ.get(variable)
    if text is None:
        return fallback
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise InputError(f"{variable} must be a positive number, got {text[:40]!r}")
    return value


# --- here -------------------------------------------------------------------------------------------------------------


def prepare() -> None:
    """Start the server, so that it imports while this process does."""
    with _lock, contextlib.suppress(OSError):
        _running()


def read_apart(reference: str, modules: tuple[str, ...], examples: Examples = NONE) -> None:
    """Have a child read a MODEL reference, once as long as its files do not change.

    Args:
        modules: that reading imports.
        examples: what the user says of its inputs.

    Raises:
        EdgeattnError: what reading it raises, or that it took too long, too much memory, or the child's life.
    """
    data = examples.file()
    known = fingerprint(Path(reference)), () if data is None else fingerprint(data), examples.bound
    if known in _passed:
        return
    limits = limits_for(sum(size for _, _, size, *_ in (*known[0], *known[1])))
    request = {
        "reference": reference, "modules": modules, "seconds": limits.seconds, "memory_bytes": limits.memory_bytes,
        "directory": str(Path.cwd()), "bound": examples.bound, "data": examples.data,
    }  # fmt: skip
    with _lock:
        answer = _asked(request)
    if answer is None:  # no process can be started here: the checks of this one are the only ones
        return
    _judge(reference, limits, answer)
    if fingerprint(Path(reference)) != known[0]:
        raise ModelError(f"{reference}: changed while it was read; read it again")
    _passed.add(known)


def _judge(reference: str, limits: Limits, answer: Mapping[str, Any]) -> None:
    """Raise what a child met."""
    if "error" in answer:  # a child that was taken over says what it likes
        name, message = (str(answer.get(key, "")) for key in ("error", "message"))
        raise error_from({"error": name, "message": message if message.isprintable() else ascii(message)[1:-1]})
    gib = limits.memory_bytes / 2**30
    more = f"if you trust the file, set {GIB_VARIABLE}={2 * gib:.0f}"
    if answer.get("time"):
        raise ModelError(
            f"{reference}: reading it takes longer than {limits.seconds} s; if you trust the file, set "
            f"{SECONDS_VARIABLE}={2 * limits.seconds}"
        )
    if answer.get("memory"):
        raise ModelError(f"{reference}: reading it takes more than {gib:.1f} GiB of memory; {more}")
    if not answer.get("read"):
        ended = str(answer.get("ended", "its process ended"))[:300]
        raise ModelError(f"{reference}: cannot be read: {ended} (it may take at most {gib:.1f} GiB of memory; {more})")


def fingerprint(path: Path) -> Print:
    """What changes with any file of a reference: names, places, sizes, times.

    Files that only lie in the same folder are left out: others may be at work there.
    """
    files: list[Path] = []
    if path.is_dir():
        with contextlib.suppress(OSError):
            files = sorted(file for file in path.iterdir() if file.suffix in READ)[:MAX_FILES]
    else:
        files = [
            path,
            path.with_suffix(".npz"),
            path.with_name(f"{path.name}.data"),
            path.with_name(f"{path.name}_data"),
        ]
    found = []
    for file in files:
        with contextlib.suppress(OSError):
            known = file.stat()
            found.append((str(file.absolute()), known.st_ino, known.st_size, known.st_mtime_ns, known.st_ctime_ns))
    return tuple(found)


_lock = threading.Lock()
_passed: set[tuple[Print, Print, tuple[str, ...]]] = set()
_others: list[subprocess.Popen[bytes]] = []
_server: tuple[int, subprocess.Popen[bytes]] | None = None  # with the process that it belongs to
_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from edgeattn.sources import apart, read_model  # by name: this module stands below those that read
apart.serve(read_model)
"""


def _running() -> subprocess.Popen[bytes]:
    """The server of this process; a fork of it has none yet."""
    global _server
    if _server is not None and _server[0] == os.getpid():
        if _server[1].poll() is None:
            return _server[1]
        _close(_server[1])  # it was idle
    elif _server is not None:
        _others.append(_server[1])  # kept, not ended: it is the parent's
    leave_none("torch")  # what it imports leaves here, too; before _stop is registered, so that it comes after it
    # A child may write nothing, and torch makes TMPDIR/torchinductor_USER at its first export, which whoever ends
    # meanwhile removes (edgeattn.traces); what is there already need not be made.
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": tempfile.gettempdir()}
    started = subprocess.Popen(
        [sys.executable, "-I", "-W", "ignore", "-c", _START, json.dumps(sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # Ctrl-C is for this process, which ends the other
    )
    if _server is None:
        atexit.register(_stop)
    _server = (os.getpid(), started)
    return started


def _stop() -> None:
    if _server is not None and _server[0] == os.getpid():
        _close(_server[1])


def _close(server: subprocess.Popen[bytes]) -> None:
    for pipe in (server.stdin, server.stdout):
        with contextlib.suppress(OSError):
            assert pipe is not None
            pipe.close()
    server.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(5)


def _asked(request: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The answer to a request; None where no process can be started."""
    for _ in range(2):  # a server that was idle may end just now
        try:
            server = _running()
        except OSError:
            return None
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            server.stdin.write(json.dumps(request).encode() + b"\n")
            server.stdin.flush()
            answer = server.stdout.readline(MAX_ANSWER_BYTES)
        except BrokenPipeError:
            answer = b""
        except BaseException:  # Ctrl-C: the child must not go on
            _close(server)
            raise
        if answer.endswith(b"\n"):
            found: Mapping[str, Any] = json.loads(answer)
            return found
        _close(server)
    return {"ended": "the process that reads it could not be kept"}


# --- there ------------------------------------------------------------------------------------------------------------


def serve(read: Callable[[str, Examples], object]) -> None:
    """The server: a line of JSON in, a line of JSON out, until its input ends or it idles.

    Args:
        read: what a child calls with a reference and what is said of its inputs.
    """
    with contextlib.suppress(ImportError):
        importlib.import_module("torch")
    with contextlib.suppress(OSError):
        tempfile.gettempdir()  # kept: finding it writes a file, which a child may not
    waiting = b""
    while True:
        if not select.select([0], [], [], IDLE_SECONDS)[0]:
            return
        data = os.read(0, MAX_ANSWER_BYTES)
        if not data:
            return
        waiting += data
        while b"\n" in waiting:
            line, _, waiting = waiting.partition(b"\n")
            answer = json.dumps(_forked(json.loads(line), read)).encode() + b"\n"
            os.write(1, answer)


def _forked(request: Mapping[str, Any], read: Callable[[str, Examples], object]) -> dict[str, Any]:
    for module in request["modules"]:  # before the fork: the next child has them, too
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    ends, starts = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ends)
        os.setsid()
        _child(starts, request, read)
    os.close(starts)
    try:
        said, ended = _listen(ends, request["seconds"])
        with contextlib.suppress(OSError):
            os.killpg(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    finally:
        os.close(ends)
    if ended is not None:
        return {ended: True}
    with contextlib.suppress(ValueError):
        answer = json.loads(said)
        if isinstance(answer, dict):
            return answer
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU:
            return {"time": True}
        return {"ended": f"reading it ended with {signal.Signals(number).name}"}
    return {"ended": f"reading it ended with exit code {os.waitstatus_to_exitcode(status)}"}


def _listen(ends: int, seconds: float) -> tuple[bytes, str | None]:
    """What a child says until it ends, or that its time is over; if this server's input ends, so does everything."""
    said, over = b"", time.monotonic() + seconds
    while True:
        ready = select.select([ends, 0], [], [], max(0.0, over - time.monotonic()))[0]
        if 0 in ready:  # nobody asks while an answer is due: the input has ended
            os._exit(0)
        if not ready:
            return said, "time"
        data = os.read(ends, MAX_ANSWER_BYTES)
        said += data
        if not data or len(said) > MAX_ANSWER_BYTES or said.endswith(b"\n"):
            return said, None


def _child(starts: int, request: Mapping[str, Any], read: Callable[[str, Examples], object]) -> None:
    """Read behind walls; never returns."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        with contextlib.suppress(OSError):
            os.chdir(request["directory"])
        build_walls(request["memory_bytes"], request["seconds"] * (os.cpu_count() or 1))
        answer = _read(request, read)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is told
        answer = {"memory": True} if _out_of_memory(error) else {"ended": f"{type(error).__name__}: {_line(error)}"}
    with contextlib.suppress(BaseException):
        text = json.dumps(answer)
        os.write(starts, text.encode()[: MAX_ANSWER_BYTES // 2] + b"\n")
    os._exit(0)


def _read(request: Mapping[str, Any], read: Callable[[str, Examples], object]) -> dict[str, Any]:
    try:
        read(request["reference"], Examples(bound=tuple(request.get("bound", ())), data=request.get("data")))
    except EdgeattnError as error:
        return {"memory": True} if _out_of_memory(error) else {**error_facts(error)}
    return {"read": True}


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is that memory ended; torch and ONNX Runtime say so in words."""
    while error is not None:
        words = str(error)
        if isinstance(error, MemoryError) or "bad_alloc" in words or "DefaultCPUAllocator" in words:
            return True
        error = error.__cause__ or error.__context__
    return False


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
