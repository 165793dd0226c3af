"""A bundle measured on the device that a user names."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from edgeattn.bundle import Manifest, read_manifest
from edgeattn.engines import ENGINES
from edgeattn.errors import InputError, UnsupportedError, unknown_name
from edgeattn.jobs.measure import THREAD_VARIABLES, TIMEOUT_SECONDS
from edgeattn.profiling.figures import Profile
from edgeattn.profiling.measure import MeasureOptions
from edgeattn.runtimes import Event
from edgeattn.runtimes.selftest import SelftestResult
from edgeattn.spec import to_json
from edgeattn.targets import Arch, known_target
from edgeattn.targets.devices import Device, DeviceSession, Inventory, Job, Timeouts, Wants, on_device

T = TypeVar("T")

GOLDEN = "edgeattn.jobs.golden"
WORKER = "edgeattn.jobs.measure"
TRANSCRIPT = "edgeattn.jobs.transcript"


@dataclass(frozen=True)
class Transcript:
    """What a bundle heard on a device, and the engine that ran it."""

    backend: str
    engine_version: str
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Task(Generic[T]):
    """Work on a bundle beside measuring it: ``python -m MODULE BUNDLE PARCEL REQUEST_JSON``, one line of JSON.

    The request: ``backend`` (null for the bundle's own) and ``threads``.

    Attributes:
        parcel: bytes of the file that it reads; removed there when it is done.
        key: of its answer.
        answer: dataclass of it.
    """

    module: str
    parcel: bytes
    key: str
    answer: type[T]


def measure_on(
    device: Device,
    path: Path,
    options: MeasureOptions,
    backend: str | None = None,
    seconds: float = TIMEOUT_SECONDS,
    timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
) -> tuple[SelftestResult | None, Profile | None, Inventory]:
    """Replay the golden inputs of a bundle on a device, then measure it there, each in a process of its own.

    A device whose processor is emulated, by ``qemu:`` or behind ssh, is never measured: its outputs are those of the
    engine's real program, its times are those of the emulator.

    Args:
        backend: engine to run on, if not the bundle's own.
        seconds: that each of the two may take there, pacing apart.

    Returns:
        the replay (None if the bundle has no golden inputs), the figures (None where its processor is emulated), and
        what the device has.

    Raises:
        EdgeattnError: the same error that the runtime raised there, and as
            :func:`edgeattn.targets.devices.on_device`.
        UnsupportedError: also for figures of time that are asked of an emulated processor, and for a bundle without
            golden inputs, of which nothing can be told there.
    """
    if device.kind == "qemu":
        _refuse_times(device, options)  # before minutes of work
    manifest = read_manifest(path)
    environment = dict.fromkeys(THREAD_VARIABLES, str(options.threads))
    replay = {
        "backend": backend,
        "threads": options.threads,
        "power_mode": options.power_mode,
        "lock_clocks": options.lock_clocks,
    }
    measure = {"backend": backend, "options": to_json(options)}
    limit = seconds + options.longest_seconds

    def work(session: DeviceSession) -> tuple[SelftestResult | None, Profile | None, Inventory]:
        golden, found = None, session.inventory
        if device.kind == "qemu" and not found.emulator:
            found = replace(found, emulator="qemu")
        if found.emulator:
            _refuse_times(device, options)
            if manifest.golden is None:
                raise UnsupportedError(
                    f"{device.text}: its processor is emulated ({found.emulator}), so only golden outputs can be "
                    "compared there, and the bundle has none: convert it again"
                )
        if manifest.golden is not None:
            job = Job(GOLDEN, ("{bundle}", json.dumps(replay)), seconds, environment)
            golden = session.run(job, SelftestResult, "golden")
        if found.emulator:
            return golden, None, found
        job = Job(WORKER, ("{bundle}", json.dumps(measure)), limit, environment)
        return golden, session.run(job, Profile, "profile"), found

    return on_device(device, path, wants(manifest, backend), work, timeouts)


def stream_on(
    device: Device,
    path: Path,
    samples: np.ndarray,
    backend: str | None = None,
    threads: int = 1,
    seconds: float = TIMEOUT_SECONDS,
    timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
) -> tuple[Transcript, Inventory]:
    """Stream a recording through a bundle on a device, as fast as it goes there.

    Args:
        samples: float32 in [-1, 1], shape (n,), at the sample rate of the bundle; removed there when it is heard.
        backend: engine to run on, if not the bundle's own.
        seconds: that it may take there.

    Raises:
        EdgeattnError: as :func:`measure_on`.
    """
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(samples, np.float32), allow_pickle=False)
    task = Task(TRANSCRIPT, buffer.getvalue(), "transcript", Transcript)
    return task_on(device, path, task, backend, threads, seconds, timeouts)


def task_on(
    device: Device,
    path: Path,
    task: Task[T],
    backend: str | None = None,
    threads: int = 1,
    seconds: float = TIMEOUT_SECONDS,
    timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
) -> tuple[T, Inventory]:
    """Run a task beside a bundle on a device, in a process of its own.

    Args:
        backend: engine to run on, if not the bundle's own.
        seconds: that it may take there.

    Returns:
        its answer, and what the device has.

    Raises:
        EdgeattnError: as :func:`measure_on`.
    """
    environment = dict.fromkeys(THREAD_VARIABLES, str(threads))
    request = json.dumps({"backend": backend, "threads": threads})

    def work(session: DeviceSession) -> tuple[T, Inventory]:
        parcel = session.keep("parcel", task.parcel)
        job = Job(task.module, ("{bundle}", parcel, request), seconds, environment)
        return session.run(job, task.answer, task.key), session.inventory

    asked = wants(read_manifest(path), backend)
    return on_device(device, path, replace(asked, runtime=(*asked.runtime, task.module)), work, timeouts)


def _refuse_times(device: Device, options: MeasureOptions) -> None:
    """No figure of time is to be had of an emulated processor."""
    asked = {
        "--deadline": options.deadline_ms is not None,
        "--hop": options.hop_ms is not None,
        "--jitter": options.jitter_ms > 0,
        "--load": options.load > 0,
        "--plot": options.trace,
        "--layers": options.layers,
        "--power-mode": options.power_mode is not None,
        "--lock-clocks": options.lock_clocks,
    }
    if names := [name for name, wanted in asked.items() if wanted]:
        raise UnsupportedError(
            f"{device.text}: its processor is emulated: it tells whether outputs are right and never how long they "
            f"take; leave out {', '.join(names)}, measure on a board (ssh://, adb:), or estimate with profile --target"
        )


def wants(manifest: Manifest, backend: str | None) -> Wants:
    """What a device must have for a bundle.

    Raises:
        InputError: for an unknown backend.
    """
    engine = backend or manifest.backend
    if engine not in ENGINES:
        raise InputError(unknown_name("backend", engine, ENGINES))
    tools: Mapping[str, Any] = manifest.provenance.get("tools") or {}
    row = ENGINES[engine]
    # TensorRT builds its engine there, from ONNX: what made the bundle here says nothing of what must run there.
    packages = () if row.substitute else row.packages
    versions = {module: str(tools[distribution]) for module, distribution in packages if distribution in tools}
    return Wants(engine, row.packages, row.install, (GOLDEN, WORKER), versions, _arch(manifest.target))


def _arch(target: str) -> Arch | None:
    """Architecture of the target that a bundle is made for; None where it is any machine, or a user's own file."""
    if target == "cpu":
        return None
    known = known_target(target)
    return None if known is None else known.cpu.arch
