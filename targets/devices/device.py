"""What ``--device`` names: this machine, or a board and the way to it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from edgeattn.errors import InputError

Kind = Literal["local", "ssh", "adb", "qemu"]

FORMS = "local, ssh://[user@]host[:port][/path/of/python], adb:[serial][/path/of/python], qemu:aarch64[/path/of/root]"
USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@\\-]*")
HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # a name of ~/.ssh/config, of DNS, or an IPv4 address
IPV6 = re.compile(r"\[([0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?)\]")
SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*")
PHONE_PATH = re.compile(r"(?:/[A-Za-z0-9_.+-]+)+")
PHONE_PYTHON = "/data/data/com.termux/files/usr/bin/python3"  # Termux's: Android itself has none
SSH = re.compile(r"ssh://(?:(?P<user>[^/]*)@)?(?P<host>\[[^\]/]*\]|[^/:@\[\]]*)(?::(?P<port>[^/:@]*))?(?P<python>/.*)?")


@dataclass(frozen=True)
class Device:
    """Where a bundle is run.

    Attributes:
        text: as the user wrote it.
        host: of ssh: a name (as in the user's ssh config, too) or an address.
        user: of ssh; None leaves it to ssh.
        port: of ssh; None leaves it to ssh.
        python: the interpreter there; a virtual environment's, where the system's has no engine.
        serial: of adb; empty for the only one attached. Without a path the Python is that of the app Termux.
        root: of qemu; empty for the one in the user's cache.
    """

    kind: Kind
    text: str
    host: str = ""
    user: str | None = None
    port: int | None = None
    python: str = "python3"
    serial: str = ""
    root: str = ""


def parse_device(text: str) -> Device:
    """Read the value of ``--device``.

    Raises:
        InputError: if it has none of the forms that there are.

    >>> device = parse_device("ssh://pi@board.local:2222/opt/venv/bin/python")
    >>> device.user, device.host, device.port, device.python
    ('pi', 'board.local', 2222, '/opt/venv/bin/python')
    """
    if text == "local":
        return Device("local", text)
    if text == "qemu:aarch64" or text.startswith("qemu:aarch64/"):
        return _qemu(text)
    if text.startswith("adb:"):
        return _adb(text)
    match = SSH.fullmatch(text)
    if match is None:
        raise InputError(f"--device: expected one of {FORMS}; got {text!r}")
    return _ssh(text, match)


def _adb(text: str) -> Device:
    serial, slash, path = text.removeprefix("adb:").partition("/")
    if serial and not SERIAL.fullmatch(serial):
        raise InputError(f"--device {text!r}: {serial!r} is no serial; adb devices lists them, as adb:R58M123ABC")
    python = slash + path
    if python and not PHONE_PATH.fullmatch(python):
        raise InputError(f"--device {text!r}: {python!r} is no path of a Python; expected adb:SERIAL/path/of/python3")
    return Device("adb", text, serial=serial, python=python or PHONE_PYTHON)


def _qemu(text: str) -> Device:
    root = text.removeprefix("qemu:aarch64")
    if root and (not root.isprintable() or root.endswith("/")):
        raise InputError(f"--device {text!r}: {root!r} is no path of a root; expected qemu:aarch64/path/of/root")
    return Device("qemu", text, root=root)


def _ssh(text: str, match: re.Match[str]) -> Device:
    host, user, port, python = match["host"], match["user"], match["port"], match["python"]
    bracketed = IPV6.fullmatch(host)
    if bracketed is None and not HOST.fullmatch(host):
        raise InputError(f"--device {text!r}: {host!r} is no host; expected ssh://[user@]host[:port]")
    if user is not None and not USER.fullmatch(user):  # a leading hyphen would be an option of ssh
        raise InputError(f"--device {text!r}: {user!r} is no user name; expected ssh://user@host")
    if port is not None and not (re.fullmatch(r"[0-9]{1,5}", port) and 1 <= int(port) <= 65535):
        raise InputError(f"--device {text!r}: the port must be 1 to 65535, got {port!r}")
    if python is not None and (not python.isprintable() or python.endswith("/")):
        raise InputError(f"--device {text!r}: {python!r} is no path of a Python; expected ssh://host/venv/bin/python")
    return Device(
        "ssh",
        text,
        host=host if bracketed is None else bracketed[1],
        user=user,
        port=None if port is None else int(port),
        python="python3" if python is None else python,
    )
