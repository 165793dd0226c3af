"""A bundle and our runtime on a device, and jobs on them there."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from edgeattn.bundle import open_bundle, zip_bundle
from edgeattn.engines import TENSORRT
from edgeattn.errors import DeviceError, UnsupportedError
from edgeattn.guards.blocks import sha256_of
from edgeattn.guards.scratch import scratch_directory
from edgeattn.printable import one_line
from edgeattn.targets.devices.archive import runtime_archive
from edgeattn.targets.devices.device import Device
from edgeattn.targets.devices.events import Busy, Done, Inventory, Kept, Ready, Unpacked, read_answer
from edgeattn.targets.devices.link import Job, Link, Timeouts, retried
from edgeattn.targets.devices.ways import connect
from edgeattn.targets.host import ARCH
from edgeattn.targets.target import Arch

T = TypeVar("T")

SMALLEST_MEMORY = 64 * 2**20  # bytes for Python, numpy and an engine
MAX_LAST_WORDS = 400  # characters of a job's that an error repeats
OLDEST_NUMPY = (1, 26)
OLDEST_TENSORRT = (8, 6)  # of JetPack 6; the calls that we make are not in older ones


@dataclass(frozen=True)
class Wants:
    """What a device must have before anything is sent to it.

    Attributes:
        engine: the engine's name, for messages.
        modules: (module, distribution) pairs of which one must be there.
        install: how to get it.
        versions: module -> version that made the bundle; an older one there is refused. Empty where not known.
        arch: None for any.
        runtime: modules of edgeattn that the jobs run.
    """

    engine: str
    modules: tuple[tuple[str, str], ...]
    install: str
    runtime: tuple[str, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    arch: Arch | None = None


class DeviceSession:
    """What :func:`on_device` hands to the work: the device with the bundle on it."""

    def __init__(self, link: Link, found: Inventory, places: Unpacked) -> None:
        self.inventory = found
        self._link = link
        self._bundle = places.path
        self._runtime = places.runtime

    def keep(self, name: str, data: bytes) -> str:
        """Send a file that is gone when this run ends.

        Args:
            name: of the file there, without directories.

        Returns:
            its path there.

        Raises:
            DeviceError: as :meth:`Link.put`.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        self._link.put(sha256, io.BytesIO(data), len(data))
        self._link.request("keep", sha256=sha256, name=name)
        return self._link.wait(Kept).path

    def run(self, job: Job, kind: type[T], key: str) -> T:
        """Run a job and read the line of JSON that it ended with.

        Args:
            kind: dataclass of its answer.
            key: under which the answer stands in that line.

        Raises:
            EdgeattnError: the same error that the job told.
            TransportError: if the link was cut.
            DeviceError: if the job died, or did not end in time; it is dead then. Also for what is no such answer.
        """
        self._link.request(
            "run",
            module=job.module,
            arguments=[argument.replace("{bundle}", self._bundle) for argument in job.arguments],
            timeout=job.timeout_seconds,
            environment=dict(job.environment),
            path=self._runtime,
        )
        done = self._link.wait(Done, seconds=job.timeout_seconds + self._link.timeouts.answer)
        if done.timeout:
            raise DeviceError(
                f"{self._link.name}: {job.module} did not end within {job.timeout_seconds:.0f} s and was killed there; "
                "the engine hangs, or the device is too slow for so many runs"
            )
        lines = done.stdout.strip().splitlines()
        if not lines or not lines[-1].startswith("{"):
            last = one_line((done.stderr.strip().splitlines() or ["no output"])[-1], MAX_LAST_WORDS)
            raise DeviceError(f"{self._link.name}: {job.module} died with status {done.status}: {last}")
        return read_answer(lines[-1], kind, key, self._link.name)


def on_device(
    device: Device,
    bundle: Path,
    wants: Wants,
    work: Callable[[DeviceSession], T],
    timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
) -> T:
    """Look what the device has, send what it lacks, and do the work there; again where only the link failed.

    Files are kept by their hash in the account's cache and reused; the directory of the run is removed.

    Raises:
        DeviceError: if the device cannot be reached, lets us not in, is in use, is full, or was lost.
        UnsupportedError: if it has not what the bundle needs.
        BundleError: if the bundle is not whole.
    """
    with _packed(bundle) as (sha256, archive):

        def once() -> T:
            with connect(device, timeouts) as link:
                return work(_prepare(link, sha256, archive, wants))

        return retried(once)


@contextlib.contextmanager
def _packed(bundle: Path) -> Iterator[tuple[str, Path]]:
    """The bundle, verified, as a zip, with its hash."""
    with scratch_directory() as folder, open_bundle(bundle) as opened:
        archive = zip_bundle(opened.root, folder / "bundle.zip")
        with archive.open("rb") as file:
            yield sha256_of(file), archive


def _prepare(link: Link, sha256: str, archive: Path, wants: Wants) -> DeviceSession:
    lock = link.timeouts.lock
    size = archive.stat().st_size
    link.request("inventory", modules=[["numpy", "numpy"], *wants.modules])
    found = link.wait(Inventory)
    check_inventory(link.name, found, wants, size)
    runtime_sha256, runtime = runtime_archive(wants.runtime)
    link.request("lock", seconds=lock, wanted=[sha256, runtime_sha256])
    answer = link.wait(Ready, Busy, seconds=lock + link.timeouts.answer)
    if isinstance(answer, Busy):
        raise DeviceError(
            f"{link.name}: in use by another edgeattn for {lock:.0f} s (it holds {answer.lock} there); "
            "two at once would spoil both measurements: try again when it is done"
        )
    if runtime_sha256 in answer.missing:
        link.put(runtime_sha256, io.BytesIO(runtime), len(runtime))
    if sha256 in answer.missing:
        with archive.open("rb") as file:
            link.put(sha256, file, size)
    link.request("unpack", sha256=sha256, runtime=runtime_sha256)
    return DeviceSession(link, found, link.wait(Unpacked))


def check_inventory(name: str, found: Inventory, wants: Wants, size: int) -> None:
    """Hold what a device has to what is wanted.

    Args:
        name: the device, for messages.
        size: bytes that will be sent.

    Raises:
        UnsupportedError: for what has to be installed, and for another architecture.
        DeviceError: for too little room or memory.
    """
    pip = f"{found.executable} -m pip install"
    numpy = found.modules.get("numpy")
    if numpy is None:
        raise UnsupportedError(f"{name}: {found.executable} there has no numpy: {pip} numpy")
    if numbers(numpy) and numbers(numpy) < OLDEST_NUMPY:
        oldest = ".".join(map(str, OLDEST_NUMPY))
        raise UnsupportedError(f"{name}: numpy {numpy} there, at least {oldest} is needed: {pip} -U numpy")
    there = {module: version for module, _ in wants.modules if (version := found.modules.get(module)) is not None}
    if wants.engine == TENSORRT.name:
        _check_tensorrt(name, found, there.get(TENSORRT.module))
    if not there:
        raise UnsupportedError(
            f"{name}: {wants.engine} is not installed for {found.executable} there (Python {found.python}, "
            f"{found.arch}): {wants.install}"
        )
    module, version = next(iter(there.items()))  # the one that the runtime will take
    made = wants.versions.get(module)
    if made is not None and version and numbers(version) < numbers(made):
        raise UnsupportedError(
            f"{name}: {wants.engine} {version} there, the bundle was made with {made}: {wants.install}, or convert "
            "with the older one"
        )
    arch = ARCH.get(found.arch.lower(), "other")
    if wants.arch not in (None, "other", arch):
        raise UnsupportedError(
            f"{name}: the bundle is made for {wants.arch} and the device is {found.arch}; convert it for this device"
        )
    need = 2 * size + 2**20  # in the store, and unpacked
    if found.free_disk_bytes < need:
        raise DeviceError(
            f"{name}: no space: {found.free_disk_bytes / 1e6:.1f} MB free there, {need / 1e6:.1f} MB are needed; make "
            "room where edgeattn keeps its files there (~/.cache/edgeattn; on a phone /data/local/tmp/edgeattn)"
        )
    memory = 2 * size + SMALLEST_MEMORY
    if found.free_memory_bytes is not None and found.free_memory_bytes < memory:
        raise DeviceError(
            f"{name}: {found.free_memory_bytes / 1e6:.0f} MB of memory free there, {memory / 1e6:.0f} MB are needed; "
            "stop what else runs on it"
        )


def _check_tensorrt(name: str, found: Inventory, version: str | None) -> None:
    """What a board lacks for a TensorRT bundle; JetPack brings all of it, and nothing else does."""
    python = found.executable
    if version is None and not found.tegra:
        raise UnsupportedError(
            f"{name}: no TensorRT for {python} there, and it is no Jetson ({found.model or found.arch}, without "
            "/etc/nv_tegra_release), so JetPack cannot bring it: measure on the Jetson, or convert for this board"
        )
    if found.tegra and not found.nvinfer:
        raise UnsupportedError(
            f"{name}: a Jetson ({found.tegra}) without TensorRT (the linker finds no libnvinfer): sudo apt install "
            "nvidia-jetpack"
        )
    if version is None:
        raise UnsupportedError(
            f"{name}: TensorRT is there ({found.nvinfer}), its Python module is not for {python}: sudo apt install "
            "python3-libnvinfer, and make a virtual environment with --system-site-packages"
        )
    if version and numbers(version) < OLDEST_TENSORRT:
        oldest = ".".join(map(str, OLDEST_TENSORRT))
        raise UnsupportedError(f"{name}: TensorRT {version} there, at least {oldest} is needed: JetPack 6 or later")


def numbers(version: str) -> tuple[int, ...]:
    """Major and minor, which decide what an engine can read.

    >>> numbers("1.20.1"), numbers("2025.4.0-dev"), numbers("")
    ((1, 20), (2025, 4), ())
    """
    match = re.match(r"([0-9]{1,9})(?:\.([0-9]{1,9}))?", version)
    return () if match is None else tuple(int(part) for part in match.groups(default="0"))
