"""What runs on the device: the far end of a link (:mod:`edgeattn.targets.devices.link`), in the standard library alone.

The text of this file is sent over the link and executed; it is never imported there, and it imports nothing of ours: it
must be able to tell that numpy or an engine is missing. ``sys.argv`` is nonce, directory of this run (empty, private,
the working directory), directory of the account's edgeattn cache, length of this text, seconds of silence after which
the other end counts as gone.

Each line on stdout is a JSON object with the nonce and an ``event``; lines without the nonce (a login's greeting) are
not ours. Each line on stdin is a JSON object; ``put`` is followed by that many bytes; an empty line says that the other
end is alive. When stdin ends, or the other end is silent for so long, or this process's parent goes away, the
job is killed and the directory removed. The event ``end`` is the last, and comes after that: without it a run was cut.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import errno
import fcntl
import hashlib
import importlib.util
import json
import math
import os
import platform
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

HEARTBEAT = 2.0  # seconds
ORPHAN = 86_400.0  # a run's directory that is older belongs to nobody
UNUSED = 30 * 86_400.0  # archives that no run asked for so long are removed
BLOCK = 2**20
MAX_OUTPUT = 8 * 2**20  # bytes of a job's stdout that are sent back
MAX_REQUEST = 2**20
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LINUX = ("linux", "android")  # Python 3.13 names the latter
LIBC = ctypes.CDLL(None)  # loaded before a fork: not to be done after it


class Lost(Exception):  # noqa: N818 - it is a state of the link
    """The other end is gone."""


class Link:
    """Both directions; the threads feed ``queue`` with requests, the end of the job, and the loss of the other end."""

    def __init__(self, nonce: str, store: Path, silence: float) -> None:
        self.nonce = nonce
        self.store = store
        self._silence = silence
        self.queue: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._heard = time.monotonic()
        self._saying = threading.Lock()
        self._parent = os.getppid()
        for work in (self._read, self._beat):
            threading.Thread(target=work, daemon=True).start()

    def say(self, event: str, **facts: Any) -> None:
        """Send an event."""
        line = json.dumps({"nonce": self.nonce, "event": event, **facts}) + "\n"
        try:
            with self._saying:
                sys.stdout.write(line)
                sys.stdout.flush()
        except OSError:
            self.queue.put(("lost", None))

    def next(self, timeout: float | None = None) -> tuple[str, Any]:
        """What comes next: ("request", values), ("exit", status), or ("timeout", None).

        Raises:
            Lost: if the other end is gone.
        """
        try:
            kind, value = self.queue.get(timeout=timeout)
        except queue.Empty:
            return "timeout", None
        if kind == "lost":
            raise Lost
        return kind, value

    def _read(self) -> None:
        source = sys.stdin.buffer
        try:
            while line := source.readline(MAX_REQUEST):
                self._heard = time.monotonic()
                if line.strip():
                    request = json.loads(line)
                    if request.get("do") == "put":
                        self._receive(source, request["sha256"], request["size"])
                    else:
                        self.queue.put(("request", request))
        except (OSError, ValueError, EOFError):
            pass
        self.queue.put(("lost", None))

    def _receive(self, source: Any, sha256: str, size: int) -> None:
        """A file for the store: written beside it, hashed, moved in if it is what it should be."""
        digest, problem, left = hashlib.sha256(), "", size
        partial = Path(f"{sha256}.part")
        try:
            file: Any = partial.open("wb")
        except OSError as error:
            file, problem = None, reason(error)
        while left:
            block = source.read1(min(left, BLOCK))
            if not block:
                raise EOFError
            self._heard = time.monotonic()
            left -= len(block)
            digest.update(block)
            if not problem:
                try:
                    file.write(block)
                except OSError as error:
                    problem = reason(error)
        if file is not None:
            try:
                file.close()
            except OSError as error:
                problem = problem or reason(error)
        self._heard = math.inf  # nothing is read while this hashes, which is no silence of the other end
        found = sha256_of(partial) if not problem else ""
        self._heard = time.monotonic()
        if not problem and found == sha256:
            partial.replace(self.store / sha256)
            self.say("stored", sha256=sha256)
            return
        partial.unlink(missing_ok=True)
        self.say("refused", sha256=sha256, found=found, received=digest.hexdigest(), problem=problem)

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT)
            if os.getppid() != self._parent or time.monotonic() - self._heard > self._silence:
                self.queue.put(("lost", None))
                return
            self.say("alive")


def reason(error: OSError) -> str:
    """The system's words, with one for every way of being full."""
    return "no space left" if error.errno in FULL else (error.strerror or str(error))


def sha256_of(path: Path) -> str:
    """Hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def first_text(*paths: str) -> str:
    """First line of the first of these files that there is."""
    for path in paths:
        with contextlib.suppress(OSError):
            return Path(path).read_bytes().decode("utf-8", "replace").strip("\0\n ").splitlines()[0]
    return ""


def phone_model() -> str:
    """Name and chip of an Android device, the one by which its variants differ; empty elsewhere."""
    if shutil.which("getprop") is None:
        return ""
    names = ("ro.product.model", "ro.soc.model")
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        words = [subprocess.check_output(["getprop", name], encoding="utf-8", timeout=5.0).strip() for name in names]
        return ", ".join(filter(None, words))
    return ""


def available_memory() -> int | None:
    """Bytes that a new process can have without swapping; None where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def version_of(module: str, distribution: str) -> str | None:
    """None if the module is not there, an empty text if its package does not tell."""
    if importlib.util.find_spec(module) is None:
        return None
    for name in (distribution, *metadata.packages_distributions().get(module, ())):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return ""


def emulator() -> str:
    """The program that stands in for this Python's processor, as qemu-aarch64-static; empty on a real one.

    qemu's user mode answers for itself when a program asks which one it is, and leaves this way of asking to the
    kernel: where the two machines (e_machine of ELF) differ, the kernel's is the emulator.
    """
    asked, kernel = "/proc/self/exe", "/proc/thread-self/exe"
    with contextlib.suppress(OSError):
        if machine(asked) != machine(kernel):
            return Path(kernel).readlink().name
    return ""


def machine(program: str) -> bytes:
    """The machine that a program is for: ``e_machine`` of an ELF file's header."""
    with open(program, "rb") as file:  # noqa: PTH123 - the path must reach the system as it is
        return file.read(20)[18:]


def inventory(modules: list[list[str]], store: Path) -> dict[str, Any]:
    """Facts about this device; ``modules`` are pairs of a module and the distribution that it usually comes in."""
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": platform.system(),
        "arch": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip(),
        "model": phone_model() or first_text("/proc/device-tree/model", "/sys/class/dmi/id/product_name"),
        "tegra": (tegra := first_text("/etc/nv_tegra_release")),
        "nvinfer": (ctypes.util.find_library("nvinfer") or "") if tegra else "",
        "modules": {module: version_of(module, distribution) for module, distribution in modules},
        "free_disk_bytes": shutil.disk_usage(store).free,
        "free_memory_bytes": available_memory(),
        "emulator": emulator(),
    }


def take_lock(link: Link, seconds: float) -> int:
    """The device's one lock, that of whoever measures on it, of any account; given up when this process ends.

    Raises:
        Lost: as :meth:`Link.next`.
        TimeoutError: if another holds it for longer than ``seconds``; the message says who.
    """
    path = os.path.join(tempfile.gettempdir(), "edgeattn-device.lock")  # noqa: PTH118 - opened by descriptor below
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        Path(path).chmod(0o644)  # whatever the umask
    # Without O_CREAT: the kernel refuses that for another account's file in a sticky directory.
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    give_up = time.monotonic() + seconds
    while not locked(handle):
        if time.monotonic() >= give_up:
            os.close(handle)
            raise TimeoutError(path)
        link.say("waiting")
        if link.next(0.5)[0] == "request":
            raise Lost  # nothing may be asked while the lock is awaited
    return handle


def locked(handle: int) -> bool:
    """Take the lock unless another has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def reap(runs: Path, store: Path, own: Path) -> list[str]:
    """Remove what runs left behind whose end nobody saw (a power cut), and archives long unused."""
    removed = []
    for folder, age in ((runs, ORPHAN), (store, UNUSED)):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                if path != own and time.time() - path.lstat().st_mtime > age:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                    removed.append(path.name)
    return removed


def missing(store: Path, wanted: list[str]) -> list[str]:
    """Those that the store does not hold whole; a damaged one is removed."""
    absent = []
    for sha256 in wanted:
        path = store / sha256
        with contextlib.suppress(OSError):
            if path.is_file() and sha256_of(path) == sha256:
                os.utime(path)
                continue
            path.unlink(missing_ok=True)
        absent.append(sha256)
    return absent


def die_with_parent() -> None:
    """In the job, before it starts: no engine outlives a runner that was killed."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def run_job(link: Link, directory: Path, request: dict[str, Any]) -> None:
    """``python -m MODULE`` with our runtime; its output, its end, and what it left are told in one event.

    Raises:
        Lost: as :meth:`Link.next`; the job is dead then.
    """
    environment = {
        **os.environ,
        **request["environment"],
        "TMPDIR": str(directory),
        "PYTHONPATH": os.pathsep.join(filter(None, (request["path"], os.environ.get("PYTHONPATH")))),
    }
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    command = [sys.executable, "-m", request["module"], *request["arguments"]]
    output, errors = directory / "stdout", directory / "stderr"
    with output.open("wb") as out, errors.open("wb") as err:
        job = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment,
            start_new_session=True,
            preexec_fn=die_with_parent if sys.platform in LINUX else None,  # noqa: PLW1509 - one system call
        )
    note = directory / "job"  # for the shell that started this: it ends the job where we cannot any more
    threading.Thread(target=lambda: link.queue.put(("exit", job.wait())), daemon=True).start()
    try:
        note.write_text(str(job.pid), encoding="ascii")
        kind, status = link.next(request["timeout"])
        if kind == "request":
            raise Lost
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        note.unlink(missing_ok=True)
    if kind == "timeout":
        link.next()  # the event of the end that we made
    with output.open("rb") as out, errors.open("rb") as err:
        text = out.read(MAX_OUTPUT).decode("utf-8", "replace")
        err.seek(max(0, errors.stat().st_size - 4096))
        tail = err.read().decode("utf-8", "replace")
    link.say("done", timeout=kind == "timeout", status=status, stdout=text, stderr=tail)


def serve(link: Link, directory: Path, runs: Path, store: Path) -> None:
    """Answer requests until ``end``; every failure of the system is an answer, too."""
    locks: list[int] = []
    while True:
        _, request = link.next()
        try:
            match request["do"]:
                case "inventory":
                    link.say("inventory", **inventory(request["modules"], store))
                case "lock":
                    locks.append(take_lock(link, request["seconds"]))
                    link.say("ready", missing=missing(store, request["wanted"]), reaped=reap(runs, store, directory))
                case "unpack":
                    with zipfile.ZipFile(store / request["sha256"]) as packed:  # hashed here, and made by the other end
                        packed.extractall(directory / "bundle")
                    link.say("unpacked", path=str(directory / "bundle"), runtime=str(store / request["runtime"]))
                case "keep":  # until this run ends, unlike what lies in the store
                    (store / request["sha256"]).replace(directory / request["name"])
                    link.say("kept", path=str(directory / request["name"]))
                case "run":
                    run_job(link, directory, request)
                case "end":
                    return
        except TimeoutError as error:
            link.say("busy", lock=str(error))
        except OSError as error:
            link.say("failed", problem=reason(error), path=str(error.filename or ""))


def main(arguments: list[str]) -> int:
    """Serve one link."""
    nonce, directory, cache = arguments[0], Path(arguments[1]), Path(arguments[2])
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(1))
    link = Link(nonce, cache / "store", float(arguments[4]))
    try:
        link.say("hello")
        serve(link, directory, cache / "runs", cache / "store")
    except Lost:
        return 1
    finally:
        os.chdir("/")
        shutil.rmtree(directory, ignore_errors=True)
    link.say("end", clean=not directory.exists())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
