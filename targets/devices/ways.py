"""The way to a device, by the kind of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgeattn.errors import UnsupportedError
from edgeattn.targets.devices import adb, qemu, ssh
from edgeattn.targets.devices.device import Device, Kind
from edgeattn.targets.devices.link import Link, Timeouts

WAYS: Mapping[Kind, Callable[[Device, Timeouts], Link]] = {
    "adb": adb.connect,
    "qemu": qemu.connect,
    "ssh": ssh.connect,
}


def connect(device: Device, timeouts: Timeouts) -> Link:
    """Start the runner on a device.

    Raises:
        TransportError: if it did not answer, or the link was cut; asking again can succeed.
        DeviceError: if it cannot be used as it is.
        UnsupportedError: if it lacks what the runner needs, or there is no way to its kind.
        InputError: if this machine lacks what the way needs.
    """
    if device.kind not in WAYS:
        raise UnsupportedError(f"--device {device.text}: is no device at the end of a link ({', '.join(WAYS)})")
    return WAYS[device.kind](device, timeouts)
