"""A bundle measured on the device that a user names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import edgeattn.errors
from edgeattn.bundle import Manifest, read_manifest
from edgeattn.errors import EdgeattnError, InputError
from edgeattn.profiling.figures import Profile
from edgeattn.profiling.measure import MeasureOptions
from edgeattn.profiling.worker import THREAD_VARIABLES, TIMEOUT_SECONDS
from edgeattn.runtimes.engines import INSTALL, PACKAGES
from edgeattn.runtimes.selftest import SelftestResult
from edgeattn.spec import from_json, to_json
from edgeattn.targets import get_target
from edgeattn.targets.devices import Device, DeviceSession, Inventory, Job, Timeouts, Wants, on_device
from edgeattn.targets.target import Arch

GOLDEN = "edgeattn.profiling.golden"
WORKER = "edgeattn.profiling.worker"


def measure_on(
    device: Device,
    path: Path,
    options: MeasureOptions,
    backend: str | None = None,
    seconds: float = TIMEOUT_SECONDS,
    timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
) -> tuple[SelftestResult | None, Profile, Inventory]:
    """Replay the golden inputs of a bundle on a device, then measure it there, each in a process of its own.

    Args:
        backend: engine to run on, if not the bundle's own.
        seconds: that each of the two may take there, pacing apart.

    Returns:
        the replay (None if the bundle has no golden inputs), the figures, and what the device has.

    Raises:
        EdgeattnError: the same error that the runtime raised there, and as
            :func:`edgeattn.targets.devices.on_device`.
    """
    manifest = read_manifest(path)
    environment = dict.fromkeys(THREAD_VARIABLES, str(options.threads))
    replay = {"backend": backend, "threads": options.threads}
    measure = {"backend": backend, "options": to_json(options)}
    limit = seconds + options.longest_seconds

    def work(session: DeviceSession) -> tuple[SelftestResult | None, Profile, Inventory]:
        golden = None
        if manifest.golden is not None:
            answer = session.run(Job(GOLDEN, ("{bundle}", json.dumps(replay)), seconds, environment))
            golden = from_json(SelftestResult, _answer(device, answer, "golden"))
        answer = session.run(Job(WORKER, ("{bundle}", json.dumps(measure)), limit, environment))
        return golden, from_json(Profile, _answer(device, answer, "profile")), session.inventory

    return on_device(device, path, wants(manifest, backend), work, timeouts)


def wants(manifest: Manifest, backend: str | None) -> Wants:
    """What a device must have for a bundle.

    Raises:
        InputError: for an unknown backend.
    """
    engine = backend or manifest.backend
    if engine not in PACKAGES:
        raise InputError(edgeattn.errors.unknown_name("backend", engine, PACKAGES))
    tools: Mapping[str, Any] = manifest.provenance.get("tools") or {}
    # TensorRT builds its engine there, from ONNX: what made the bundle here says nothing of what must run there.
    names = [distribution for _, distribution in PACKAGES[engine]] if engine != "tensorrt" else []
    version = next((str(tools[name]) for name in names if name in tools), None)
    return Wants(engine, PACKAGES[engine], INSTALL[engine], (GOLDEN, WORKER), version, _arch(manifest.target))


def _arch(target: str) -> Arch | None:
    """Architecture of the target that a bundle is made for; None where it is any machine, or a user's own file."""
    if target == "cpu":
        return None
    try:
        return get_target(target).cpu.arch
    except InputError:
        return None


def _answer(device: Device, answer: Mapping[str, Any], key: str) -> Any:
    if "error" in answer:
        kind = getattr(edgeattn.errors, str(answer["error"]), EdgeattnError)
        raise kind(f"{device.text}: {answer['message']}")
    return answer[key]
