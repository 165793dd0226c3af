"""An aarch64 that qemu's user mode emulates on this machine: the runner as on a board, on ARM programs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgeattn.errors import InputError
from edgeattn.targets.devices.device import Device
from edgeattn.targets.devices.link import Link, Timeouts
from edgeattn.targets.devices.qemu_root import default_path, python_of, read_root, require_emulator

SLOWNESS = 4.0  # a Python takes a second to start there, and several where this machine is busy


def connect(device: Device, timeouts: Timeouts) -> Link:
    """Start the runner in the emulated root.

    Raises:
        InputError: if qemu is not on this machine, or the root was not prepared.
        DeviceError: if it does not run.
    """
    require_emulator()
    root = Path(device.root) if device.root else default_path()
    if read_root(root) is None:
        where = f" --root {device.root}" if device.root else ""
        raise InputError(f"--device {device.text}: nothing is prepared at {root}: edgeattn targets prepare "
                         f"qemu:aarch64{where}")  # fmt: skip
    # PYTHONPATH is that of this machine's Python.
    command = ["env", "-u", "PYTHONPATH", "sh", "-c"]
    slower = replace(timeouts, connect=SLOWNESS * timeouts.connect)
    return Link(command, device.text, str(python_of(root)), slower)
