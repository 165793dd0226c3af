"""Devices that answer what they should not: an error with the device's name and exit 3, soon, whatever it is."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeattn.errors import DeviceError, InputError, UnsupportedError
from edgeattn.jobs.remote import measure_on
from edgeattn.profiling.measure import MeasureOptions
from edgeattn.targets.devices import Timeouts, link, parse_device, ways
from edgeattn.targets.devices.events import Done, End, Hello, read_answer, read_event
from edgeattn.targets.devices.program import PhoneFacts, facts_of

NONCE = "0123456789abcdef" * 2
SOON = Timeouts(connect=5.0, silence=0.6, lock=0.2, answer=0.8, close=0.2)
DEVICE = parse_device("ssh://pi@board")


def line(event: Any) -> bytes:
    return json.dumps({"nonce": NONCE, **event}).encode() + b"\n"


def test_an_event_is_read_into_its_form() -> None:
    assert read_event(line({"event": "hello"}), NONCE) == Hello()
    done = read_event(line({"event": "done", "timeout": False, "status": 0, "stdout": "a", "stderr": ""}), NONCE)
    assert done == Done(timeout=False, status=0, stdout="a", stderr="")


@pytest.mark.parametrize(
    "text", [b"", b"Welcome to this board\n", b"\xff\x00\n", b"+ say 0123456789abcdef0123456789abcdef\n", b"[1, 2]\n",
             b'{"nonce": "another", "event": "hello"}\n', b"{" * 100 + b"\n"],
)  # fmt: skip
def test_what_a_login_says_is_no_event(text: bytes) -> None:
    assert read_event(text, NONCE) is None


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({}, "unknown event None"),
        ({"event": "\x1b[2J"}, "unknown event"),
        ({"event": ["hello"]}, "unknown event a list of 1"),
        ({"event": "hello", "more": 1}, "hello: unknown field 'more'"),
        ({"event": "python"}, "python: field 'version' is missing"),
        ({"event": "python", "version": [3]}, "expected a list of 3, got 1"),
        ({"event": "python", "version": [3, "x", 0]}, "expected int, got 'x'"),
        ({"event": "python", "version": [3, 2**70, 0]}, "none of 64 bits"),
        ({"event": "done", "timeout": 0, "status": 0, "stdout": "", "stderr": ""}, "expected bool, got 0"),
        ({"event": "ready", "missing": "all", "reaped": []}, "expected a list, got str"),
        ({"event": "unpacked", "path": None, "runtime": ""}, "expected str, got None"),
        ({"event": "end", "clean": [[[[]]] * 30]}, "expected bool, got"),
    ],
)
def test_an_event_of_another_form_is_refused_at_its_place(event: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason.replace("[", r"\[")):
        read_event(line(event), NONCE)


@pytest.mark.parametrize(
    "text",
    [
        f'{{"nonce": "{NONCE}", "event": "hello", "event": "end"}}',
        f'{{"nonce": "{NONCE}", "event": NaN}}',
        f'{{"nonce": "{NONCE}", "event": 1e999}}',
        f'{{"nonce": "{NONCE}", "event": {"[" * 100_000}',
        f'{{"nonce": "{NONCE}", "event": [{"[]," * 1_000_001}[]]}}',
        f'{{"nonce": "{NONCE}", "event"',
    ],
    ids=("twice", "nan", "infinite", "deep", "wide", "cut"),
)
def test_a_line_of_ours_that_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="its answer"):
        read_event(text.encode() + b"\n", NONCE)


def test_what_a_job_told_is_read_into_its_form_or_is_its_error() -> None:
    assert read_answer('{"facts": {"model": "a", "arch": "b", "free_disk_bytes": 1, "free_memory_bytes": null}}',
                       PhoneFacts, "facts", "board") == PhoneFacts("a", "b", 1, None)  # fmt: skip
    with pytest.raises(UnsupportedError, match="board: no int4"):
        read_answer('{"error": "UnsupportedError", "message": "no int4"}', PhoneFacts, "facts", "board")
    with pytest.raises(DeviceError, match="board: it went"):
        read_answer('{"error": "ZeroDivisionError", "message": "it went"}', PhoneFacts, "facts", "board")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "{}", '{"other": {}}', '{"facts": {}, "more": 1}', '{"facts": []}', '{"error": 1, "message": "x"}',
     '{"error": "InputError"}', '{"facts": {"model": "a", "arch": "b", "free_disk_bytes": -1}}',
     '{"facts": {"model": "a", "arch": "b", "free_disk_bytes": 1e300, "free_memory_bytes": null}}'],
)  # fmt: skip
def test_an_answer_of_another_form_is_the_devices_error(text: str) -> None:
    with pytest.raises(DeviceError, match=r"^board: it answered what no edgeattn there does"):
        read_answer(text, PhoneFacts, "facts", "board")


# --- over a link ------------------------------------------------------------------------------------------------------


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Every link ends at a shell script, whose ``@NONCE@`` is the link's; requests are read where it does so."""

    def answer(script: str) -> None:
        path = tmp_path / "device.sh"
        find = """n=$(printf %s "$1" | grep -oE "edgeattn '?[0-9a-f]{32}" | grep -oE "[0-9a-f]{32}")\n"""
        say = 'say() { printf \'{"nonce": "%s", %s}\\n\' "$n" "$1"; }\n'
        path.write_text(f"{find}{say}{script}\n", encoding="utf-8")
        monkeypatch.setattr(link, "PAUSES", (0.0, 0.0))
        monkeypatch.setattr(
            ways, "WAYS", {"ssh": lambda device, _: link.Link(["sh", str(path)], device.text, timeouts=SOON)}
        )

    return answer


BOOTED = 'say \'"event": "python", "version": [3, 11, 0]\'; say \'"event": "hello"\'; '


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("yes", "no sign of life"),
        (f'{BOOTED} while say \'"event": "alive"\'; do :; done', "no answer within"),
        (f'{BOOTED} while say \'"event": "hello"\'; do :; done', "answered Hello where|says more than it was asked"),
        (f"{BOOTED} cat /dev/zero", "no sign of life"),
        (f'{BOOTED} say \'"event": "x"\'; sleep 9', "unknown event 'x'"),
        (f'{BOOTED} say \'"event": "failed", "problem": "\\u001b[2J", "path": ""\'; sleep 9', r"\\x1b\[2J"),
        (f'{BOOTED} printf \'{{"nonce": "%s", \' $n; sleep 9', "no sign of life"),
        (f"{BOOTED} exit 7", "ended before its work did"),
    ],
    ids=("endless", "alive for ever", "flood", "zeros", "unknown", "escapes", "half a line", "gone"),
)
def test_a_device_that_says_what_it_should_not_is_an_error_with_its_name(
    answering: Callable[[str], None], tiny_bundle: Path, script: str, reason: str
) -> None:
    answering(script)
    with pytest.raises(DeviceError, match=reason) as caught:
        measure_on(DEVICE, tiny_bundle, MeasureOptions(runs=1, paced_seconds=0.0))
    assert str(caught.value).startswith("ssh://pi@board: ")
    assert str(caught.value).isprintable()


def test_a_device_that_reads_nothing_does_not_hold_us(answering: Callable[[str], None]) -> None:
    answering(f'{BOOTED} while say \'"event": "alive"\'; do sleep 0.1; done')
    opened = ways.connect(DEVICE, SOON)
    with contextlib.closing(opened), pytest.raises(DeviceError, match="took nothing of what was sent"):
        opened.request("fill", text="x" * 2**20)


def test_more_events_than_were_asked_for_end_the_link(answering: Callable[[str], None]) -> None:
    answering(f'{BOOTED} for i in $(seq 1000); do say \'"event": "end", "clean": true\'; done; sleep 9')
    with contextlib.closing(ways.connect(DEVICE, SOON)) as opened:
        time.sleep(0.5)  # they come meanwhile
        for _ in range(link.MAX_EVENTS):  # each of which answers
            opened.wait(End, seconds=2.0)
        with pytest.raises(DeviceError, match="says more than it was asked"):
            opened.wait(End, seconds=2.0)


@pytest.mark.parametrize("disk", ["9" * 6_000, "-1", "٣", "²", "x", ""])
def test_a_phone_that_tells_no_number_tells_none(disk: str) -> None:
    facts = facts_of(f"model \x1b[2J\narch aarch64\ndisk a b c {disk}\nmemory MemAvailable: {disk} kB\n")
    assert (facts.free_disk_bytes, facts.free_memory_bytes) == (None, None)
