"""Boards behind the user's own OpenSSH: its config, keys, agent and known hosts hold; nothing ever asks."""

from __future__ import annotations

from edgeattn.errors import DeviceError
from edgeattn.targets.devices.device import Device
from edgeattn.targets.devices.link import Link, Timeouts, TransportError

FAILED = 255  # ssh's own status: not that of the command there


def connect(device: Device, timeouts: Timeouts) -> Link:
    """Start the runner on a board.

    Raises:
        TransportError: if the host did not answer, or the link was cut.
        DeviceError: if it let us not in (host key, user key), a directory cannot be made there, or there is no ssh on
            this machine.
        UnsupportedError: if it has no Python, or too old a one.
    """
    try:
        return Link(
            command(device, timeouts),
            device.text,
            device.python,
            timeouts,
            lambda words, status: explain(device, words, status),
        )
    except FileNotFoundError as error:
        raise DeviceError("ssh:// needs OpenSSH's ssh on this machine: apt install openssh-client") from error


def command(device: Device, timeouts: Timeouts) -> list[str]:
    """The words of ssh, to which the shell command is added."""
    options = {
        "BatchMode": "yes",  # a prompt would wait for ever
        "ConnectTimeout": f"{timeouts.connect:.0f}" if timeouts.connect >= 1 else "1",
        "ServerAliveInterval": "5",
        "ServerAliveCountMax": f"{max(1, round(timeouts.silence / 5))}",
        "ClearAllForwardings": "yes",
        "ForwardAgent": "no",
        "RemoteCommand": "none",  # of the user's config
        "RequestTTY": "no",
    }
    words = ["ssh", "-T", *(f"-o{name}={value}" for name, value in options.items())]
    words += ["-l", device.user] if device.user is not None else []
    words += ["-p", str(device.port)] if device.port is not None else []
    return [*words, "--", device.host]


def explain(device: Device, words: str, status: int) -> DeviceError | None:
    """What an ssh that failed means; None where ssh is not to blame.

    Args:
        words: what it wrote to stderr.
    """
    if status not in (FAILED, -9, -15):
        return None
    lines = [line.strip() for line in words.splitlines() if line.strip() and not line.startswith("@")]
    last = lines[-1] if lines else "no word of ssh"
    name = device.text
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in words:
        return DeviceError(
            f"{name}: the host key is not the one in known_hosts: another machine, one installed again, or an attack. "
            f"If you know why, remove the old one with ssh-keygen -R {device.host} and connect once by hand"
        )
    if "Host key verification failed" in words or "host key is known for" in words:
        return DeviceError(
            f"{name}: the host key is not in known_hosts yet: connect once by hand with ssh {device.host} and "
            "compare it"
        )
    if "Permission denied" in words or "Too many authentication failures" in words:
        return DeviceError(
            f"{name}: not let in ({last}); passwords are never asked for: install a key with ssh-copy-id "
            f"{device.host}, load it into your agent, and check the user name"
        )
    if "Could not resolve hostname" in words or "Bad configuration option" in words or "bad permissions" in words:
        return DeviceError(f"{name}: {last}")
    return TransportError(
        f"{name}: the device cannot be reached, or the link was cut ({last}); is it on, and its sshd?"
    )
