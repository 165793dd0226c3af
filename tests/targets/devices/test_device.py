"""What ``--device`` may be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.errors import EdgeattnError, InputError
from edgeattn.targets.devices import Device, Timeouts, parse_device
from edgeattn.targets.devices.device import PHONE_PYTHON
from edgeattn.targets.devices.ssh import command


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("local", Device("local", "local")),
        ("ssh://board", Device("ssh", "ssh://board", host="board")),
        ("ssh://pi@10.0.0.7:2222", Device("ssh", "ssh://pi@10.0.0.7:2222", host="10.0.0.7", user="pi", port=2222)),
        ("ssh://[fe80::1%eth0]:22", Device("ssh", "ssh://[fe80::1%eth0]:22", host="fe80::1%eth0", port=22)),
        ("ssh://b/opt/v/bin/python", Device("ssh", "ssh://b/opt/v/bin/python", host="b", python="/opt/v/bin/python")),
        ("adb:", Device("adb", "adb:", python=PHONE_PYTHON)),
        ("adb:R58M1", Device("adb", "adb:R58M1", serial="R58M1", python=PHONE_PYTHON)),
        ("adb:10.0.0.3:5555", Device("adb", "adb:10.0.0.3:5555", serial="10.0.0.3:5555", python=PHONE_PYTHON)),
        ("adb:R5/data/p/python3", Device("adb", "adb:R5/data/p/python3", serial="R5", python="/data/p/python3")),
        ("adb:/data/p/python3", Device("adb", "adb:/data/p/python3", python="/data/p/python3")),
        ("qemu:aarch64", Device("qemu", "qemu:aarch64")),
        ("qemu:aarch64/a/root", Device("qemu", "qemu:aarch64/a/root", root="/a/root")),
    ],
)
def test_every_form_is_read(text: str, device: Device) -> None:
    assert parse_device(text) == device


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected one of local, ssh://"),
        ("board", "expected one of local, ssh://"),
        ("ssh:board", "expected one of local, ssh://"),
        ("ssh://", "is no host"),
        ("ssh://-oProxyCommand=x", "is no host"),
        ("ssh://-l@board", "is no user name"),
        ("ssh://@board", "is no user name"),
        ("ssh://board:", "port must be 1 to 65535"),
        ("ssh://board:0", "port must be 1 to 65535"),
        ("ssh://board:65536", "port must be 1 to 65535"),
        ("ssh://board:٢٢", "port must be 1 to 65535"),
        ("ssh://[nothing]", "is no host"),
        ("ssh://board/", "is no path of a Python"),
        ("ssh://board/a\nb", "expected one of|is no path of a Python"),
        ("adb:-s x", "is no serial"),
        ("adb:R5/", "is no path of a Python"),
        ("adb:R5/data/a b", "is no path of a Python"),
        ("adb:R5/data/$(x)", "is no path of a Python"),
        ("qemu:riscv", "expected one of local, ssh://"),
        ("qemu:aarch64:root", "expected one of local, ssh://"),
        ("qemu:aarch64/", "is no path of a root"),
        ("qemu:aarch64/a\nb", "is no path of a root"),
    ],
)
def test_anything_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_device(text)


@given(st.text(max_size=40).map(lambda tail: f"ssh://{tail}"))
def test_no_text_becomes_an_option_of_ssh(text: str) -> None:
    try:
        device = parse_device(text)
    except EdgeattnError:
        return
    words = command(device, Timeouts())
    assert words[-2:] == ["--", device.host]
    assert not device.host.startswith("-")
    assert not (device.user or "").startswith("-")


def test_nothing_prompts_and_no_host_key_is_skipped() -> None:
    words = command(parse_device("ssh://pi@board:2222"), Timeouts())
    assert "-oBatchMode=yes" in words
    assert not [word for word in words if "StrictHostKeyChecking" in word or "KnownHosts" in word]
    assert words[-6:] == ["-l", "pi", "-p", "2222", "--", "board"]
