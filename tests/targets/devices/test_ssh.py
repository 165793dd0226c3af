"""Boards over a real sshd: a bundle profiled and checked end to end, and what goes wrong on the way.

After each fault no file of a run and no process may be left on the board.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.bundle import read_manifest
from edgeattn.cli import app
from edgeattn.errors import DeviceError, EdgeattnError, UnsupportedError
from edgeattn.jobs.remote import GOLDEN, measure_on, stream_on, wants
from edgeattn.pipeline.check import CheckOptions, check
from edgeattn.pipeline.profile import profile
from edgeattn.profiling.measure import MeasureOptions
from edgeattn.runtimes.selftest import SelftestResult
from edgeattn.targets.devices import (
    Device,
    DeviceSession,
    Job,
    Timeouts,
    TransportError,
    link,
    on_device,
    parse_device,
)
from tests.targets.devices.board import SITE, Board, Relay, write_client

QUICK = MeasureOptions(runs=5, paced_seconds=0)
HANGING = "import time\n__version__ = '99.0'\ntime.sleep(600)\n"
SOON = Timeouts(connect=10.0, silence=4.0, lock=0.6)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "PAUSES", (0.05, 0.05))


def replay(device: Device, bundle: Path, seconds: float = 60.0, timeouts: Timeouts = SOON) -> Any:
    """The golden inputs alone: what goes wrong with a link goes wrong with any job."""
    request = json.dumps({"backend": None, "threads": 1})

    def work(there: DeviceSession) -> Any:
        return there.run(Job(GOLDEN, ("{bundle}", request), seconds), SelftestResult, "golden")

    return on_device(device, bundle, wants(read_manifest(bundle), None), work, timeouts)


def through(board: Board) -> tuple[Relay, Device]:
    """A network to the board that can fail."""
    relay = Relay(board.port)
    board.hops.append(relay)
    write_client(board)
    return relay, parse_device(f"ssh://{board.user}@127.0.0.1:{relay.port}")


def hanging(board: Board) -> None:
    """The board's engine never gets through its import."""
    fake = board.module("onnxruntime", HANGING)
    board.python(f'PYTHONPATH={fake}:{SITE} exec PYTHON3 "$@"')


def until(happens: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def workers(board: Board) -> list[int]:
    """Processes that run a job on the board."""
    found = []
    for number in board.processes():
        try:
            words = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        found += [number] if b"edgeattn.jobs.golden" in words else []
    return found


def parent_of(number: int) -> int:
    fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    return int(fields[1])


class Running:
    """A measurement in a thread, to do something to it meanwhile."""

    def __init__(self, device: Device, bundle: Path, timeouts: Timeouts = SOON, seconds: float = 600.0) -> None:
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(device, bundle, timeouts, seconds), daemon=True)
        self._thread.start()

    def _run(self, device: Device, bundle: Path, timeouts: Timeouts, seconds: float) -> None:
        try:
            replay(device, bundle, seconds, timeouts)
        except EdgeattnError as error:
            self.error = error

    def end(self) -> BaseException | None:
        self._thread.join(60.0)
        assert not self._thread.is_alive()
        return self.error


def test_a_bundle_is_checked_and_measured_on_the_board(board: Board, tiny_bundle: Path) -> None:
    golden, measured, found = measure_on(parse_device(board.url), tiny_bundle, QUICK)
    assert golden is not None
    assert golden.passed
    assert measured is not None
    assert golden.bundle.startswith(str(board.cache))
    assert (measured.backend, measured.latency.kind, measured.latency.runs) == ("onnxruntime", "measured", 5)
    assert found.modules["onnxruntime"] == measured.engine_version
    assert (found.arch, found.system, found.emulator) == (os.uname().machine, "Linux", "")
    assert board.is_clean()
    stored = {path.name for path in (board.cache / "store").iterdir()}
    assert stored == {hashlib.sha256((board.cache / "store" / name).read_bytes()).hexdigest() for name in stored}
    assert len(stored) == 2  # our runtime and the bundle


@pytest.mark.slow
def test_profile_and_check_report_the_board(board: Board, tiny_bundle: Path) -> None:
    result = profile(tiny_bundle, QUICK, None, (board.url,)).results[0]
    assert result.notes[-1] == f"on {board.url}"
    assert result.latency is not None
    options = CheckOptions(measure=QUICK, device=board.url)
    assert check(tiny_bundle, options, Silent()).passed
    slow = replace(options, gates=replace(options.gates, deadline_ms=1e-6, max_size_bytes=10))
    report = check(tiny_bundle, slow, Silent())
    assert not report.passed
    assert {failure.gate for failure in report.results[0].failures} >= {"deadline", "size"}
    assert board.is_clean()


class Silent:
    def begin(self, what: str, total: int | None = None) -> None:
        pass

    def advance(self) -> None:
        pass


def test_a_recording_is_streamed_on_the_board_and_does_not_stay_there(
    board: Board, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(-8000, 8000, 3000, np.int16)
    with wave.open(str(tmp_path / "noise.wav"), "wb") as file:
        file.setparams((1, 2, 1000, 0, "NONE", ""))
        file.writeframes(noise.tobytes())

    def stream(*words: str) -> Any:
        with pytest.raises(SystemExit) as left:
            app(["stream", str(tiny_bundle), str(tmp_path / "noise.wav"), "--fast", "--json", *words])
        assert not left.value.code
        return json.loads(capsys.readouterr().out)

    there, here = stream("--device", board.url), stream()
    assert there["events"] == here["events"]
    assert there["words"]
    assert (there["device"], here["device"], there["realtime"]) == (board.url, "local", None)
    stored = {path.name for path in (board.cache / "store").iterdir()}
    transcript, found = stream_on(parse_device(board.url), tiny_bundle, noise.astype(np.float32) / 2**15)
    assert [event.text for event in transcript.events] == [event["text"] for event in here["events"]]
    assert found.emulator == ""
    assert {path.name for path in (board.cache / "store").iterdir()} == stored
    assert len(stored) == 2  # our runtime and the bundle
    assert board.is_clean()


@pytest.mark.slow
def test_a_second_run_sends_nothing_and_a_damaged_store_is_sent_again(board: Board, tiny_bundle: Path) -> None:
    device = parse_device(board.url)
    replay(device, tiny_bundle)
    store = board.cache / "store"
    inodes = {path.name: path.stat().st_ino for path in store.iterdir()}
    replay(device, tiny_bundle)
    assert {path.name: path.stat().st_ino for path in store.iterdir()} == inodes
    for path in store.iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    replay(device, tiny_bundle)
    assert {hashlib.sha256(path.read_bytes()).hexdigest() for path in store.iterdir()} == set(inodes)
    assert board.is_clean()


def test_a_greeting_of_the_login_is_not_taken_for_an_answer(board: Board, tiny_bundle: Path) -> None:
    board.python(f'echo "Welcome!"; echo "{{\\"event\\": \\"end\\"}}"; PYTHONPATH={SITE} exec PYTHON3 "$@"')
    assert replay(parse_device(board.url), tiny_bundle).passed
    assert board.is_clean()


@pytest.fixture
def quiet_port() -> Iterator[int]:
    """A host that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def test_a_host_that_does_not_answer(board: Board, tiny_bundle: Path, quiet_port: int) -> None:
    device = parse_device(f"ssh://{board.user}@127.0.0.1:{quiet_port}")
    with pytest.raises(TransportError, match=r"cannot be reached|no sign of life") as caught:
        replay(device, tiny_bundle, timeouts=Timeouts(connect=1.0))
    assert caught.value.exit_code == 3


def test_a_refused_connection(board: Board, tiny_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(TransportError, match=r"cannot be reached.*Connection refused"):
        measure_on(parse_device(f"ssh://{board.user}@127.0.0.1:{port}"), tiny_bundle, QUICK)


def test_another_host_key_than_the_known_one(board: Board, tiny_bundle: Path) -> None:
    write_client(board, host_key="keys/other-host.pub")
    with pytest.raises(DeviceError, match="host key is not the one in known_hosts") as caught:
        replay(parse_device(board.url), tiny_bundle)
    assert not isinstance(caught.value, TransportError)
    assert not board.cache.exists()


def test_a_host_key_that_is_not_known(board: Board, tiny_bundle: Path) -> None:
    (board.root / "client" / "known_hosts").write_text("")
    with pytest.raises(DeviceError, match=r"not in known_hosts yet.*ssh 127\.0\.0\.1"):
        replay(parse_device(board.url), tiny_bundle)
    assert not board.cache.exists()


def test_a_key_that_the_board_does_not_take(board: Board, tiny_bundle: Path) -> None:
    (board.root / "keys" / "authorized").write_text("")
    with pytest.raises(DeviceError, match=r"not let in .*Permission denied.*ssh-copy-id"):
        replay(parse_device(board.url), tiny_bundle)
    assert not board.cache.exists()


def test_no_python(board: Board, tiny_bundle: Path) -> None:
    device = parse_device(f"{board.url}/opt/nothing/python3")
    with pytest.raises(UnsupportedError, match=r"no /opt/nothing/python3 there; Python >= 3\.10") as caught:
        replay(device, tiny_bundle)
    assert caught.value.exit_code == 4
    assert board.is_clean()


def test_a_python_that_is_too_old(board: Board, tiny_bundle: Path) -> None:
    old = "import sys; sys.version_info = (3, 8, 10); sys.argv = sys.argv[1:]; exec(sys.argv[0])"
    board.python(f'shift 2; exec PYTHON3 -u -c "{old}" "$@"')
    with pytest.raises(UnsupportedError, match=r"is Python 3\.8\.10, at least 3\.10 is needed"):
        replay(parse_device(board.url), tiny_bundle)
    assert board.is_clean()


def test_no_numpy(board: Board, tiny_bundle: Path) -> None:
    board.python(f'PYTHONPATH={board.site()} exec PYTHON3 -S "$@"')
    with pytest.raises(UnsupportedError, match=r"has no numpy: .* -m pip install numpy"):
        replay(parse_device(board.url), tiny_bundle)
    assert board.is_clean()
    assert not list((board.cache / "store").iterdir())  # nothing is sent before the inventory fits


def test_no_engine(board: Board, tiny_bundle: Path) -> None:
    board.python(f'PYTHONPATH={board.site("numpy")} exec PYTHON3 -S "$@"')
    with pytest.raises(UnsupportedError, match=r"onnxruntime is not installed for .*pip install onnxruntime"):
        replay(parse_device(board.url), tiny_bundle)
    assert board.is_clean()
    assert not list((board.cache / "store").iterdir())


def test_no_place_for_a_directory(board: Board, tiny_bundle: Path) -> None:
    board.cache.write_text("a file stands here")
    with pytest.raises(DeviceError, match=r"no directory can be made there: .*edgeattn"):
        replay(parse_device(board.url), tiny_bundle)


def test_a_disk_that_fills_up(board: Board, tiny_bundle: Path) -> None:
    board.python(f'ulimit -f 2; PYTHONPATH={SITE} exec PYTHON3 "$@"')  # no file of more than 1 or 2 KiB
    with pytest.raises(DeviceError, match=r"cannot be written there: no space left") as caught:
        replay(parse_device(board.url), tiny_bundle)
    assert not isinstance(caught.value, TransportError)
    assert board.is_clean()
    assert not list((board.cache / "store").iterdir())


def test_a_disk_without_room(board: Board, tiny_bundle: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("mounting a small disk takes root")
    small = board.cache / "store"
    small.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=777", "none", small], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        for folder in (board.cache, board.cache.parent):
            board.give(folder)
        with pytest.raises(DeviceError, match=r"no space: 0\.1 MB free there, 1\.\d MB are needed"):
            replay(parse_device(board.url), tiny_bundle)
        assert board.is_clean()
    finally:
        subprocess.run(["umount", small], check=True)


def test_storage_that_changes_bytes(board: Board, tiny_bundle: Path) -> None:
    corrupting = board.root / "corrupting"
    corrupting.mkdir()
    (corrupting / "sitecustomize.py").write_text(
        "import pathlib\n"
        "real = pathlib.Path.open\n"
        "def damaged(self, mode='r', *rest, **named):\n"
        "    file = real(self, mode, *rest, **named)\n"
        "    if self.suffix == '.part' and mode == 'wb':\n"
        "        write = file.write\n"
        "        class File:\n"
        "            def write(self, data): return write(bytes([data[0] ^ 1]) + data[1:])\n"
        "            def close(self): file.close()\n"
        "        return File()\n"
        "    return file\n"
        "pathlib.Path.open = damaged\n"
    )
    board.python(f'PYTHONPATH={corrupting}:{SITE} exec PYTHON3 "$@"')
    with pytest.raises(TransportError, match=r"arrived changed: sha256 \w{12}\.\.\. was sent, \w{12}\.\.\. lies there"):
        replay(parse_device(board.url), tiny_bundle)
    assert board.is_clean()
    assert not list((board.cache / "store").iterdir())


def test_a_hanging_engine_is_killed(board: Board, tiny_bundle: Path) -> None:
    hanging(board)
    with pytest.raises(DeviceError, match=r"did not end within 1 s and was killed there") as caught:
        replay(parse_device(board.url), tiny_bundle, seconds=1.0)
    assert not isinstance(caught.value, TransportError)
    assert board.is_clean()


def test_an_engine_that_crashes(board: Board, tiny_bundle: Path) -> None:
    fake = board.module("onnxruntime", "import os, sys\nsys.stderr.write('illegal instruction\\n')\nos.abort()\n")
    board.python(f'PYTHONPATH={fake}:{SITE} exec PYTHON3 "$@"')
    with pytest.raises(DeviceError, match=r"golden died with status -6: illegal instruction"):
        replay(parse_device(board.url), tiny_bundle)
    assert board.is_clean()


def test_a_runner_that_is_killed(board: Board, tiny_bundle: Path) -> None:
    hanging(board)
    running = Running(parse_device(board.url), tiny_bundle)
    until(lambda: workers(board))
    os.kill(parent_of(workers(board)[0]), signal.SIGKILL)
    assert "ended before its work did" in str(running.end())
    assert board.is_clean()


def slowly(board: Board) -> None:
    """Replaying the golden inputs takes a second, to do something to it."""
    folder = board.module("slowly", "")
    (folder / "sitecustomize.py").write_text(
        "import sys, time\nif 'edgeattn.jobs.golden' in sys.orig_argv: time.sleep(1)\n"
    )
    board.python(f'PYTHONPATH={folder}:{SITE} exec PYTHON3 "$@"')


def test_a_runner_whose_shell_is_killed_cleans_up_and_the_run_is_tried_again(board: Board, tiny_bundle: Path) -> None:
    slowly(board)
    running = Running(parse_device(board.url), tiny_bundle)
    until(lambda: workers(board))
    first = workers(board)
    os.kill(parent_of(parent_of(first[0])), signal.SIGKILL)
    assert running.end() is None
    assert not set(first) & set(board.processes())
    assert board.is_clean()


def test_a_link_that_is_cut_is_tried_again(board: Board, tiny_bundle: Path) -> None:
    slowly(board)
    relay, device = through(board)
    running = Running(device, tiny_bundle)
    until(lambda: workers(board))
    relay.cut()
    assert running.end() is None
    assert relay.connections == 2
    assert board.is_clean()


def test_a_link_that_is_cut_each_time_ends_in_an_error(board: Board, tiny_bundle: Path) -> None:
    hanging(board)
    relay, device = through(board)
    running = Running(device, tiny_bundle)
    for connection in (1, 2, 3):
        until(lambda wanted=connection: relay.connections == wanted and workers(board))  # type: ignore[misc]
        relay.cut()
        until(lambda: not workers(board))
    assert isinstance(running.end(), TransportError)
    assert relay.connections == 3
    assert board.is_clean()


def test_a_client_that_is_killed_leaves_nothing_there(board: Board, tiny_bundle: Path, tmp_path: Path) -> None:
    hanging(board)
    program = (
        "import sys; from pathlib import Path; from edgeattn.jobs.remote import *; "
        "from edgeattn.targets.devices import parse_device; "
        "measure_on(parse_device(sys.argv[1]), Path(sys.argv[2]), MeasureOptions(runs=5, paced_seconds=0))"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # what a killed process leaves here, nobody can help
    client = subprocess.Popen([sys.executable, "-c", program, board.url, tiny_bundle], env=environment)
    try:
        until(lambda: workers(board))
    finally:
        client.kill()
        client.wait()
    assert board.is_clean()


@pytest.mark.slow
def test_a_network_that_stands_still_ends_both_ends(
    board: Board, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "PAUSES", ())
    hanging(board)
    relay, device = through(board)
    running = Running(device, tiny_bundle)
    until(lambda: workers(board))
    relay.mode = "still"  # nothing is closed, nothing comes through: only silence tells
    assert "no sign of life for 4 s" in str(running.end())
    assert board.is_clean()


def test_two_at_once_go_one_after_the_other(board: Board, tiny_bundle: Path) -> None:
    both = [Running(parse_device(board.url), tiny_bundle, Timeouts(lock=60.0)) for _ in range(2)]
    assert [running.end() for running in both] == [None, None]
    assert board.is_clean()


def test_a_board_that_stays_in_use(board: Board, tiny_bundle: Path) -> None:
    hanging(board)
    first = Running(parse_device(board.url), tiny_bundle)
    until(lambda: workers(board))
    with pytest.raises(DeviceError, match="in use by another edgeattn for 1 s"):
        replay(parse_device(board.url), tiny_bundle, timeouts=SOON)
    os.kill(workers(board)[0], signal.SIGKILL)
    assert "died with status -9" in str(first.end())
    assert board.is_clean()


def test_orphans_of_a_power_cut_are_removed_and_younger_runs_are_not(board: Board, tiny_bundle: Path) -> None:
    old, young = board.cache / "runs" / "old", board.cache / "runs" / "young"
    for folder, age in ((old, 90_000), (young, 60)):
        folder.mkdir(parents=True)
        (folder / "stdout").write_text("left")
        os.utime(folder, (time.time() - age, time.time() - age))
    for path in (*board.cache.rglob("*"), board.cache):
        board.give(path)
    replay(parse_device(board.url), tiny_bundle)
    assert not old.exists()
    assert young.exists()
    shutil.rmtree(young)


def test_ctrl_c_during_several_devices_leaves_nothing(board: Board, tiny_bundle: Path, tmp_path: Path) -> None:
    hanging(board)
    relay, device = through(board)
    program = (
        "import sys; from pathlib import Path; from edgeattn.pipeline.profile import profile; "
        "from edgeattn.profiling.measure import MeasureOptions; "
        "profile(Path(sys.argv[1]), MeasureOptions(runs=5, paced_seconds=0), None, sys.argv[2:])"
    )
    command = [sys.executable, "-c", program, str(tiny_bundle), board.url, device.text]
    client = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(tmp_path)})
    try:
        until(lambda: workers(board) and relay.connections)
        client.send_signal(signal.SIGINT)
        assert client.wait(20.0) != 0
    finally:
        client.kill()
        client.wait()
    assert not list(tmp_path.glob("edgeattn-*"))
    assert board.is_clean()


@pytest.mark.slow
def test_the_command_line_measures_on_a_board_and_exits_as_its_fault_says(
    board: Board, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def edgeattn(*words: str) -> tuple[int, Any]:
        with pytest.raises(SystemExit) as left:
            app([*words, "--json"])
        return int(left.value.code or 0), json.loads(capsys.readouterr().out)

    profiling = ("profile", str(tiny_bundle), "--runs", "5", "--duration", "0s", "--device")
    code, answer = edgeattn(*profiling, board.url)
    assert code == 0, answer
    assert answer["results"][0]["latency"]["kind"] == "measured"
    code, answer = edgeattn(*profiling, "ssh://")
    assert (code, answer["error"]["type"]) == (2, "InputError")
    code, answer = edgeattn(*profiling, "ssh://127.0.0.1:1")
    assert (code, answer["error"]["type"]) == (3, "TransportError")
    code, answer = edgeattn(*profiling, f"{board.url}/nowhere/python")
    assert (code, answer["error"]["type"]) == (4, "UnsupportedError")
    code, answer = edgeattn(*profiling, "ssh://127.0.0.1:1", "--device", "local")
    assert (code, [result["passed"] for result in answer["results"]]) == (3, [False, True])
    code, answer = edgeattn("check", str(tiny_bundle), "--data", "x", "--device", board.url)
    assert (code, answer["error"]["type"]) == (2, "DataError")
    assert board.is_clean()


def test_of_several_devices_one_that_fails_does_not_stop_the_others(board: Board, tiny_bundle: Path) -> None:
    gone = f"ssh://{board.user}@127.0.0.1:1"
    report = profile(tiny_bundle, QUICK, None, (gone, board.url, "local"))
    assert [result.passed for result in report.results] == [False, True, True]
    assert report.results[0].latency is None
    assert [failure.gate for failure in report.results[0].failures] == ["device"]
    assert "cannot be reached" in report.results[0].failures[0].got
    assert board.is_clean()
