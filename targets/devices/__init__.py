"""Devices that bundles are run on: this machine, and boards that are reached over a link."""

from edgeattn.targets.devices.device import Device, parse_device
from edgeattn.targets.devices.events import Inventory
from edgeattn.targets.devices.link import Job, Timeouts, TransportError
from edgeattn.targets.devices.session import DeviceSession, Wants, on_device

__all__ = [
    "Device",
    "DeviceSession",
    "Inventory",
    "Job",
    "Timeouts",
    "TransportError",
    "Wants",
    "on_device",
    "parse_device",
    "program",
    "qemu_root",
]
