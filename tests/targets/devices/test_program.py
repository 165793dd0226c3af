"""LiteRT's benchmark_model on phones without a Python, over the real adb client and server, and what goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.bundle import BundleDraft, Manifest
from edgeattn.cli import app
from edgeattn.errors import DeviceError, EdgeattnError, InputError, UnsupportedError
from edgeattn.jobs.remote import measure_on
from edgeattn.pipeline.profile import profile
from edgeattn.profiling.benchmark_model import benchmark_on
from edgeattn.profiling.measure import MeasureOptions
from edgeattn.targets.devices import Timeouts, TransportError, link, parse_device
from tests.runtimes.tiny import tiny_spec, write_tflite
from tests.targets.devices.board import SITE, interpreter_for
from tests.targets.devices.phone import PYTHON, Phone, Server, until

SOON = Timeouts(connect=10.0, silence=4.0, lock=0.6)
SOURCE = Path(__file__).with_name("benchmark_model.py")
SLEEPING = "sleep 600"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "PAUSES", (0.05, 0.05))


@pytest.fixture(scope="session")
def tflite_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("ai_edge_litert", reason="the program that stands for benchmark_model runs LiteRT")
    with BundleDraft(tmp_path_factory.mktemp("bundles") / "tiny.mobile.edge") as draft:
        write_tflite(draft.path / "main.tflite")
        draft.write_manifest(
            Manifest(
                name="tiny",
                target="pixel-8",
                backend="litert",
                spec=tiny_spec(),
                models={"main": "main.tflite"},
                precision={"asked": "fp32", "shipped": "fp32", "executed": None, "candidates": []},
                provenance={"source_sha256": "0" * 64, "recipe": "none"},
                measured={},
            )
        )
        return draft.publish()


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    """A program that a phone can execute."""
    path = tmp_path / "benchmark_model"
    python = interpreter_for(os.getuid(), os.getgid())
    path.write_text(f'#!/bin/sh\nPYTHONPATH={SITE} exec {python} {SOURCE} "$@"\n')
    return path


@pytest.fixture
def attached(bare_phone: Phone, server: Server) -> Phone:
    server.plug(bare_phone)
    return bare_phone


def shell_program(path: Path, lines: str) -> Path:
    path.write_text(f"#!/bin/sh\n{lines}\n")
    return path


def run(phone: Phone, bundle: Path, binary: Path, seconds: float = 60.0, timeouts: Timeouts = SOON) -> Any:
    return benchmark_on(parse_device(f"adb:{phone.serial}"), bundle, binary, 7, 1, seconds, timeouts)


class Running:
    """A measurement in a thread, to do something to it meanwhile."""

    def __init__(self, phone: Phone, bundle: Path, binary: Path) -> None:
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(phone, bundle, binary), daemon=True)
        self._thread.start()

    def _run(self, *arguments: Any) -> None:
        try:
            run(*arguments)
        except EdgeattnError as error:
            self.error = error

    def end(self) -> BaseException | None:
        self._thread.join(60.0)
        assert not self._thread.is_alive()
        return self.error


def sleepers(phone: Phone) -> list[int]:
    """Processes of the program, which sleep in the directory of the run."""
    found = []
    for number in phone.processes():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
            found += [number] if words[-3:-1] == [b"sleep", b"600"] else []
    return found


def test_the_program_times_the_graph_and_its_figures_come_back(
    attached: Phone, tflite_bundle: Path, binary: Path
) -> None:
    figures, facts = run(attached, tflite_bundle, binary)
    assert (figures.runs, figures.threads) == (7, 1)
    assert 0 < figures.min_ms <= figures.mean_ms <= figures.max_ms
    assert figures.init_ms > 0
    assert figures.first_ms > 0
    assert figures.p50_ms is None
    assert figures.memory_bytes is not None
    assert facts.model == "Test phone, T1000"
    assert facts.free_disk_bytes is not None
    assert facts.free_memory_bytes is not None


def test_a_second_run_pushes_nothing_and_a_damaged_store_is_pushed_again(
    attached: Phone, tflite_bundle: Path, binary: Path
) -> None:
    run(attached, tflite_bundle, binary)
    assert len(attached.pushed) == 2
    run(attached, tflite_bundle, binary)
    assert len(attached.pushed) == 2
    for path in (attached.cache / "store").iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    run(attached, tflite_bundle, binary)
    assert len(attached.pushed) == 4


def test_what_no_run_asked_for_in_a_month_is_removed_and_what_this_one_asks_for_is_not(
    attached: Phone, tflite_bundle: Path, binary: Path
) -> None:
    run(attached, tflite_bundle, binary)
    store = attached.cache / "store"
    used = set(store.iterdir())
    left = attached.cache / "runs" / "left-by-a-power-cut"
    left.mkdir()
    for path in (*used, store / "unused", store / "half.part", left):
        path.touch()
        os.utime(path, (time.time() - 40 * 86_400,) * 2)
    run(attached, tflite_bundle, binary)
    assert set(store.iterdir()) == used
    assert not left.exists()
    assert len(attached.pushed) == 2


def test_profile_reports_what_it_gives_and_null_for_the_rest(
    attached: Phone, tflite_bundle: Path, binary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["profile", str(tflite_bundle), "--device", f"adb:{attached.serial}", "--benchmark-binary", str(binary)]
    with pytest.raises(SystemExit) as left:
        app([*words, "--runs", "5", "--json"])
    assert left.value.code == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["latency"] is None
    assert result["benchmark"]["runs"] == 5
    assert result["benchmark"]["p95_ms"] is None
    assert result["device"] == "Test phone, T1000"
    assert result["notes"][-1] == f"on adb:{attached.serial}"
    assert "golden outputs were not compared" in result["notes"][0]
    with pytest.raises(SystemExit):
        app([*words, "--runs", "5"])
    printed = capsys.readouterr()
    assert "benchmark_model" in printed.out
    assert "mean_ms" in printed.err


def test_a_program_that_hangs_is_killed(attached: Phone, tflite_bundle: Path, tmp_path: Path) -> None:
    hanging = shell_program(tmp_path / "hanging", SLEEPING)
    with pytest.raises(DeviceError, match="did not end within 1 s and was killed") as caught:
        run(attached, tflite_bundle, hanging, 1.0)
    assert not isinstance(caught.value, TransportError)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("echo 'Failed to initialize the interpreter'; exit 1", "failed there with status 1: Failed to initialize"),
        ("kill -SEGV $$", "failed there with status 139"),
        ("echo Hello", "no benchmark_model of LiteRT: it told no timings, at last 'Hello'"),
    ],
)
def test_a_program_that_fails(attached: Phone, tflite_bundle: Path, tmp_path: Path, lines: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        run(attached, tflite_bundle, shell_program(tmp_path / "failing", lines))


def test_a_program_for_another_machine(attached: Phone, tflite_bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    header = np.frombuffer(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\xf3\x00\x01" + bytes(43), np.uint8)  # RISC-V
    other.write_bytes(header.tobytes())
    with pytest.raises(UnsupportedError, match=r"cannot be executed there .*is it built for it") as caught:
        run(attached, tflite_bundle, other)
    assert caught.value.exit_code == 4


def test_a_program_that_is_not_here(attached: Phone, tflite_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none: cannot be read: No such file"):
        run(attached, tflite_bundle, tmp_path / "none")


def test_no_room(attached: Phone, tflite_bundle: Path, binary: Path) -> None:
    attached.room = 100
    with pytest.raises(DeviceError, match=r"no space: benchmark_model has 0\.0 MB; make room in /data/local/tmp"):
        run(attached, tflite_bundle, binary)
    assert not list((attached.cache / "store").iterdir())


def test_a_full_disk_is_told_before_anything_is_pushed(attached: Phone, tflite_bundle: Path, binary: Path) -> None:
    attached.script(attached.root / "bin" / "df", "echo 'Filesystem 1K-blocks Used Available'; echo 'data 900 880 20'")
    with pytest.raises(DeviceError, match=r"no space: 0\.0 MB free, 1\.\d MB are needed"):
        run(attached, tflite_bundle, binary)
    assert not attached.pushed


def test_storage_that_changes_bytes(attached: Phone, tflite_bundle: Path, binary: Path) -> None:
    attached.damage = True
    with pytest.raises(TransportError, match=r"benchmark_model arrived changed: sha256 \w{12}\.\.\. was sent, \w{12}"):
        run(attached, tflite_bundle, binary)
    assert not list((attached.cache / "store").iterdir())
    assert len(attached.pushed) == 3  # tried again twice


def test_a_cable_that_is_pulled_ends_the_program(
    attached: Phone, tflite_bundle: Path, tmp_path: Path, server: Server
) -> None:
    running = Running(attached, tflite_bundle, shell_program(tmp_path / "long", SLEEPING))
    until(lambda: sleepers(attached))
    server.unplug(attached)
    error = running.end()
    assert "no device is attached" in str(error)
    assert attached.is_clean()


def test_a_link_that_stands_still(
    attached: Phone, tflite_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "PAUSES", ())
    running = Running(attached, tflite_bundle, shell_program(tmp_path / "long", SLEEPING))
    until(lambda: sleepers(attached))
    attached.still = True
    try:
        assert "no sign of life for 4 s" in str(running.end())
    finally:
        attached.still = False


def test_a_program_that_is_silent_for_long_is_no_phone_that_is(
    attached: Phone, tflite_bundle: Path, binary: Path, tmp_path: Path
) -> None:
    slow = shell_program(tmp_path / "slow", binary.read_text().replace("#!/bin/sh\n", "sleep 6\n"))
    figures, _ = run(attached, tflite_bundle, slow)
    assert figures.runs == 7


def test_a_cable_that_is_put_in_again_goes_on(
    attached: Phone, tflite_bundle: Path, binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "PAUSES", (2.0, 5.0))  # adb's server looks about once a second
    mark = attached.temporary / "once"
    once = binary.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\nmkdir {mark} && {SLEEPING}\n")
    running = Running(attached, tflite_bundle, shell_program(tmp_path / "once", once))
    until(lambda: sleepers(attached))
    attached.unplug()  # over TCP the server connects again by itself
    assert running.end() is None


def test_the_lock_is_that_of_the_runner(attached: Phone, tflite_bundle: Path, binary: Path, tmp_path: Path) -> None:
    first = Running(attached, tflite_bundle, shell_program(tmp_path / "long", f"exec {SLEEPING}"))
    until(lambda: sleepers(attached))
    with pytest.raises(DeviceError, match="in use by another edgeattn for 1 s"):
        run(attached, tflite_bundle, binary)
    os.kill(sleepers(attached)[0], signal.SIGKILL)
    assert "was killed there, as the system does" in str(first.end())
    run(attached, tflite_bundle, binary)  # given up with its end


def test_a_python_and_a_program_on_one_phone_exclude_each_other(
    phone: Phone, tflite_bundle: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    first = Running(phone, tflite_bundle, shell_program(tmp_path / "long", f"exec {SLEEPING}"))
    until(lambda: sleepers(phone))
    with pytest.raises(DeviceError, match="in use by another edgeattn for 1 s"):
        measure_on(parse_device(f"adb:{phone.serial}{PYTHON}"), tiny_bundle, MeasureOptions(runs=5), timeouts=SOON)
    os.kill(sleepers(phone)[0], signal.SIGKILL)
    assert "was killed there" in str(first.end())


def test_what_benchmark_model_cannot_do_is_refused(tflite_bundle: Path, tiny_bundle: Path, binary: Path) -> None:
    options = MeasureOptions(runs=5)
    with pytest.raises(InputError, match="runs on phones, as adb:SERIAL, and not on local"):
        profile(tflite_bundle, options, None, ("local",), binary)
    asked = replace(options, deadline_ms=3.0, layers=True)
    with pytest.raises(InputError, match="leave out --backend, --deadline, --layers"):
        profile(tflite_bundle, asked, "litert", ("adb:x",), binary)
    with pytest.raises(UnsupportedError, match="runs TFLite files and this bundle is for onnxruntime"):
        profile(tiny_bundle, options, None, ("adb:x",), binary)
