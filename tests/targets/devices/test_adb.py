"""Phones over the real adb client and server: a bundle measured by a Python there, and what goes wrong on the way.

After each fault no file of a run and no process may be left on the phone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeattn.bundle import read_manifest
from edgeattn.errors import DeviceError, EdgeattnError, InputError, UnsupportedError
from edgeattn.jobs.remote import GOLDEN, measure_on, wants
from edgeattn.pipeline.check import CheckOptions, check
from edgeattn.pipeline.profile import profile
from edgeattn.profiling.measure import MeasureOptions
from edgeattn.progress import Quiet
from edgeattn.results.gates import Gates
from edgeattn.runtimes.selftest import SelftestResult
from edgeattn.targets.devices import (
    Device,
    DeviceSession,
    Job,
    Timeouts,
    TransportError,
    adb,
    link,
    on_device,
    parse_device,
)
from tests.targets.devices.board import SITE
from tests.targets.devices.phone import PYTHON, Phone, Server, give_python, running_phone, until

QUICK = MeasureOptions(runs=5, paced_seconds=0)
SOON = Timeouts(connect=10.0, silence=4.0, lock=0.6)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "PAUSES", (0.05, 0.05))


def device(phone: Phone, python: str = PYTHON) -> Device:
    return parse_device(f"adb:{phone.serial}{python}")


def replay(device: Device, bundle: Path, seconds: float = 60.0, timeouts: Timeouts = SOON) -> Any:
    """The golden inputs alone: what goes wrong with a link goes wrong with any job."""

    def work(there: DeviceSession) -> Any:
        return there.run(
            Job(GOLDEN, ("{bundle}", '{"backend": null, "threads": 1}'), seconds), SelftestResult, "golden"
        )

    return on_device(device, bundle, wants(read_manifest(bundle), None), work, timeouts)


def hanging(phone: Phone) -> None:
    """The phone's engine never gets through its import."""
    fake = phone.root / "fake"
    (fake / "onnxruntime-99.0.dist-info").mkdir(parents=True)
    (fake / "onnxruntime-99.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: onnxruntime\nVersion: 99.0\n"
    )
    (fake / "onnxruntime.py").write_text("import time\ntime.sleep(600)\n")
    give_python(phone, f"PYTHONPATH={fake}:{SITE}")


def workers(phone: Phone) -> list[int]:
    """Processes that run a job on the phone."""
    found = []
    for number in phone.processes():
        try:
            words = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        found += [number] if b"edgeattn.jobs.golden" in words else []
    return found


class Running:
    """A measurement in a thread, to do something to it meanwhile."""

    def __init__(self, device: Device, bundle: Path, timeouts: Timeouts = SOON) -> None:
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(device, bundle, timeouts), daemon=True)
        self._thread.start()

    def _run(self, device: Device, bundle: Path, timeouts: Timeouts) -> None:
        try:
            replay(device, bundle, 600.0, timeouts)
        except EdgeattnError as error:
            self.error = error

    def end(self) -> BaseException | None:
        self._thread.join(60.0)
        assert not self._thread.is_alive()
        return self.error


def test_a_bundle_is_checked_and_measured_by_a_python_on_the_phone(phone: Phone, tiny_bundle: Path) -> None:
    golden, measured, found = measure_on(device(phone), tiny_bundle, QUICK)
    assert golden is not None
    assert golden.passed
    assert measured is not None
    assert golden.bundle.startswith(str(phone.cache))
    assert (measured.backend, measured.latency.kind, measured.latency.runs) == ("onnxruntime", "measured", 5)
    assert found.model == "Test phone, T1000"
    assert phone.is_clean()
    stored = {path.name for path in (phone.cache / "store").iterdir()}
    assert stored == {hashlib.sha256((phone.cache / "store" / name).read_bytes()).hexdigest() for name in stored}
    assert len(stored) == 2  # our runtime and the bundle


def test_without_a_path_it_is_the_python_of_termux_and_its_files_are_the_apps(
    phone: Phone, tiny_bundle: Path, server: Server
) -> None:
    assert replay(device(phone, ""), tiny_bundle).bundle.startswith(str(phone.termux / "cache" / "edgeattn"))
    assert not phone.cache.exists()
    assert replay(parse_device("adb:"), tiny_bundle).passed  # the only one that is attached


def test_a_second_run_sends_nothing(phone: Phone, tiny_bundle: Path) -> None:
    replay(device(phone), tiny_bundle)
    inodes = {path.name: path.stat().st_ino for path in (phone.cache / "store").iterdir()}
    replay(device(phone), tiny_bundle)
    assert {path.name: path.stat().st_ino for path in (phone.cache / "store").iterdir()} == inodes


def test_profile_names_the_phone(phone: Phone, tiny_bundle: Path) -> None:
    result = profile(tiny_bundle, QUICK, None, (device(phone).text,)).results[0]
    assert result.notes[-1] == f"on {device(phone).text} (Test phone, T1000)"
    assert result.latency is not None


def test_check_holds_a_phone_to_a_deadline(phone: Phone, tiny_bundle: Path) -> None:
    options = CheckOptions(measure=QUICK, device=device(phone).text)
    assert check(tiny_bundle, options, Quiet()).passed
    failed = check(tiny_bundle, replace(options, gates=Gates(deadline_ms=1e-6)), Quiet()).results[0]
    assert [failure.gate for failure in failed.failures] == ["deadline"]


def test_the_battery_tells_the_energy_of_a_call_over_adb(phone: Phone, tiny_bundle: Path) -> None:
    battery = phone.root / "power" / "battery"
    battery.mkdir(parents=True)
    for name, text in {
        "type": "Battery", "status": "Discharging", "voltage_now": "4000000", "current_now": "-500000",
    }.items():  # fmt: skip
        (battery / name).write_text(f"{text}\n")
    # In a mount namespace of its own the shell sees this battery in /sys.
    mount = 'mount --bind "$0" /sys/class/power_supply && exec "$@"'
    wrap = ("unshare", "-m" if os.getuid() == 0 else "-rm", "sh", "-c", mount, str(phone.root / "power"))
    probe = subprocess.run([*wrap, "cat", "/sys/class/power_supply/battery/status"], capture_output=True, text=True)
    if probe.stdout.strip() != "Discharging":
        pytest.skip(f"no battery can be mounted here: {probe.stderr.strip()}")
    phone.wrap = wrap
    _, measured, _ = measure_on(device(phone), tiny_bundle, MeasureOptions(runs=5, paced_seconds=0, energy_seconds=0.3))
    assert measured is not None
    assert measured.energy is not None
    if measured.energy.source != "battery":
        pytest.skip(f"this machine's {measured.energy.source} tells more than a battery")
    assert measured.energy.rails == ("battery",)
    energy = measured.energy
    assert energy.mean_watts == pytest.approx(4.0 * 0.5, rel=0.05)  # the clock is read a little after the battery
    assert energy.joules_per_call == pytest.approx(energy.mean_watts * energy.seconds / energy.calls)


@pytest.mark.parametrize(
    ("state", "message", "kind"),
    [
        (
            "no permissions (user in plugdev group; are your udev rules wrong?)",
            "may not be opened by this",
            DeviceError,
        ),
        ("recovery", "is in state 'recovery'", DeviceError),
        ("authorizing", "is in state 'authorizing'", TransportError),  # tried again
    ],
)
def test_a_phone_in_another_state_is_told(
    monkeypatch: pytest.MonkeyPatch, state: str, message: str, kind: type[DeviceError]
) -> None:
    monkeypatch.setattr(adb, "listed", lambda _: {"R58M1": state})
    with pytest.raises(kind, match=message) as caught:
        adb.attached(parse_device("adb:R58M1"), SOON)
    assert type(caught.value) is kind


def test_the_serial_of_the_environment_is_meant_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adb, "listed", lambda _: {"A": "device", "B": "device", "C": "offline"})
    monkeypatch.setenv("ANDROID_SERIAL", "B")
    assert adb.attached(parse_device("adb:"), SOON) == "B"
    assert adb.attached(parse_device("adb:A"), SOON) == "A"
    monkeypatch.setenv("ANDROID_SERIAL", "D")
    with pytest.raises(DeviceError, match="no device D is attached; there is adb:A"):
        adb.attached(parse_device("adb:"), SOON)


def test_an_adb_that_hangs(phone: Phone, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    phone.script(tmp_path / "adb", "exec sleep 600")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(TransportError, match="adb devices did not end within 1 s"):
        replay(device(phone), tiny_bundle, timeouts=Timeouts(connect=0.6))


def test_no_adb(phone: Phone, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="needs Android's adb on this machine: apt install adb"):
        replay(device(phone), tiny_bundle)


def test_no_device(bare_phone: Phone, tiny_bundle: Path) -> None:
    with pytest.raises(DeviceError, match="no device is attached: plug it in, switch on USB debugging") as caught:
        replay(parse_device("adb:"), tiny_bundle)
    assert caught.value.exit_code == 3
    assert not isinstance(caught.value, TransportError)


def test_several_devices_without_a_serial_are_listed(phone: Phone, tiny_bundle: Path, server: Server) -> None:
    root = Path(tempfile.mkdtemp(prefix="edgeattn-phone-"))
    try:
        with running_phone(root) as other:
            server.plug(other)
            with pytest.raises(InputError, match="several devices are attached, name one of them: adb:127") as caught:
                replay(parse_device("adb:"), tiny_bundle)
            assert f"adb:{phone.serial} (device)" in str(caught.value)
            assert f"adb:{other.serial} (device)" in str(caught.value)
            assert replay(device(phone), tiny_bundle).passed
            server.unplug(other)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def test_an_unknown_serial_lists_those_that_there_are(phone: Phone, tiny_bundle: Path) -> None:
    with pytest.raises(DeviceError, match=f"no device R58M123 is attached; there is adb:{phone.serial}"):
        replay(parse_device("adb:R58M123"), tiny_bundle)


def test_a_phone_that_does_not_trust_this_machine_says_what_to_tap(
    bare_phone: Phone, tiny_bundle: Path, server: Server
) -> None:
    bare_phone.unauthorized = True
    server.plug(bare_phone, "unauthorized")
    with pytest.raises(DeviceError, match="unlock it and tap Allow on the dialog 'Allow USB debugging") as caught:
        replay(device(bare_phone), tiny_bundle)
    assert not isinstance(caught.value, TransportError)


def test_a_phone_that_is_offline(bare_phone: Phone, tiny_bundle: Path, server: Server) -> None:
    bare_phone.silent = True
    server.adb("connect", bare_phone.serial)
    until(lambda: f"{bare_phone.serial}\toffline" in server.adb("devices"))
    with pytest.raises(TransportError, match=r"is offline: plug it in again"):
        replay(device(bare_phone), tiny_bundle)


def test_an_android_that_is_too_old(bare_phone: Phone, tiny_bundle: Path, server: Server) -> None:
    bare_phone.features = b"cmd"
    server.plug(bare_phone)
    with pytest.raises(UnsupportedError, match="Android 7 or later is needed"):
        replay(device(bare_phone), tiny_bundle)


def test_no_python(phone: Phone, tiny_bundle: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"no /data/local/tmp/none/python3 there.*as adb:127\.0\.0\.1:\d+/data"):
        replay(device(phone, "/data/local/tmp/none/python3"), tiny_bundle)


@pytest.mark.parametrize(("app", "words"), [("com.closed", "package not debuggable"), ("com.none", "unknown package")])
def test_an_app_that_cannot_be_entered(phone: Phone, tiny_bundle: Path, app: str, words: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"{words}: {app}\)\. Termux from GitHub is debuggable"):
        replay(device(phone, f"/data/data/{app}/files/usr/bin/python3"), tiny_bundle)


def test_a_cable_that_is_pulled_is_tried_again(
    phone: Phone, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "PAUSES", (2.0, 5.0))  # adb's server looks about once a second
    slow = phone.root / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(
        "import sys, time\nif 'edgeattn.jobs.golden' in sys.orig_argv: time.sleep(1)\n"
    )
    give_python(phone, f"PYTHONPATH={slow}:{SITE}")
    running = Running(device(phone), tiny_bundle, Timeouts(connect=20.0))
    until(lambda: workers(phone))
    first = workers(phone)
    phone.unplug()  # over TCP the server connects again by itself
    assert running.end() is None
    assert not set(first) & set(phone.processes())


def test_a_phone_that_does_not_come_back(phone: Phone, tiny_bundle: Path, server: Server) -> None:
    hanging(phone)
    running = Running(device(phone), tiny_bundle)
    until(lambda: workers(phone))
    server.unplug(phone)
    error = running.end()
    assert isinstance(error, DeviceError)
    assert "no device is attached" in str(error)


def test_a_hanging_engine_is_killed(phone: Phone, tiny_bundle: Path) -> None:
    hanging(phone)
    with pytest.raises(DeviceError, match=r"did not end within 1 s and was killed there"):
        replay(device(phone), tiny_bundle, seconds=1.0)


def test_a_runner_that_is_killed(phone: Phone, tiny_bundle: Path) -> None:
    hanging(phone)
    running = Running(device(phone), tiny_bundle)
    until(lambda: workers(phone))
    fields = Path(f"/proc/{workers(phone)[0]}/stat").read_text().rpartition(")")[2].split()
    os.kill(int(fields[1]), signal.SIGKILL)
    assert "ended before its work did" in str(running.end())


def test_two_at_once_go_one_after_the_other(phone: Phone, tiny_bundle: Path) -> None:
    both = [Running(device(phone), tiny_bundle, Timeouts(lock=60.0)) for _ in range(2)]
    assert [running.end() for running in both] == [None, None]


def test_a_client_that_is_killed_leaves_nothing_there(phone: Phone, tiny_bundle: Path, tmp_path: Path) -> None:
    hanging(phone)
    program = (
        "import sys; from pathlib import Path; from edgeattn.jobs.remote import *; "
        "from edgeattn.targets.devices import parse_device; "
        "measure_on(parse_device(sys.argv[1]), Path(sys.argv[2]), MeasureOptions(runs=5, paced_seconds=0))"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", program, device(phone).text, tiny_bundle], env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    try:
        until(lambda: workers(phone))
    finally:
        client.kill()
        client.wait()
