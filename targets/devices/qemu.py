"""An aarch64 that qemu's user mode emulates on this machine: the runner as on a board, on ARM programs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgeattn.errors import DeviceError, InputError
from edgeattn.targets.devices.device import Device
from edgeattn.targets.devices.link import Link, Timeouts
from edgeattn.targets.devices.qemu_root import default_path, python_of, read_root, require_emulator

SLOWNESS = 4.0  # a Python takes a second to start there, and several where this machine is busy


def connect(device: Device, timeouts: Timeouts) -> Link:
    """Start the runner in the emulated root.

    Raises:
        InputError: if the root was not prepared.
        DeviceError: if qemu is not on this machine, or it does not run.
    """
    require_emulator(DeviceError)
    root = Path(device.root) if device.root else default_path()
    prepare = f"edgeattn targets prepare qemu:aarch64{f' --root {device.root}' if device.root else ''}"
    if read_root(root) is None:
        raise InputError(f"--device {device.text}: nothing is prepared at {root}: {prepare}")
    slower = replace(timeouts, connect=SLOWNESS * timeouts.connect)

    def explain(words: str, status: int) -> DeviceError:
        last = (words.strip().splitlines() or ["it said nothing"])[-1].strip()
        return DeviceError(
            f"{device.text}: the emulated Python ended before its work did (status {status}: {last}); it was killed, "
            f"or its root is damaged: {prepare} --force"
        )

    # PYTHONPATH is that of this machine's Python.
    return Link(["env", "-u", "PYTHONPATH", "sh", "-c"], device.text, str(python_of(root)), slower, explain)
