"""A board behind ssh whose programs are those of a Jetson: its settings are put back however the run ends."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgeattn.errors import DeviceError, EdgeattnError, InputError, UnsupportedError
from edgeattn.jobs.remote import measure_on
from edgeattn.pipeline.profile import profile
from edgeattn.profiling.figures import Profile
from edgeattn.profiling.measure import MeasureOptions
from edgeattn.targets.devices import Device, Timeouts, link, parse_device
from tests.profiling.conftest import write_tiny_bundle
from tests.profiling.jetson import FREE, LOCKED, Jetson, make_jetson
from tests.runtimes import simulated_tensorrt
from tests.runtimes.cudart import build_simulator
from tests.targets.devices.board import SITE, Board, Relay, write_client

HELD = MeasureOptions(runs=5, paced_seconds=0, energy_seconds=0, power_mode="25W", lock_clocks=True)
SOON = Timeouts(connect=10.0, silence=4.0, lock=5.0)
HANGING = "import time\n__version__ = '99.0'\ntime.sleep(600)\n"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "PAUSES", (0.05, 0.05))


@pytest.fixture
def jetson(board: Board) -> Iterator[Jetson]:
    made = make_jetson(board.root / "jetson")
    for path in (made.folder, *made.folder.rglob("*")):
        board.give(path)
    set_modules(board, made, SITE)
    yield made
    shutil.rmtree(made.folder)


def set_modules(board: Board, jetson: Jetson, *folders: Path) -> None:
    """The board's Python, with the Jetson's programs on its PATH."""
    path = ":".join(map(str, folders))
    board.python(f'PATH={jetson.programs}:$PATH PYTHONPATH={path} exec PYTHON3 "$@"')


def until(happens: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def is_free(jetson: Jetson) -> bool:
    return (jetson.mode, jetson.clocks) == (0, FREE)


class Measuring:
    """A measurement in a thread, to do something to it meanwhile."""

    def __init__(self, device: Device, bundle: Path, seconds: float = 60.0) -> None:
        self.error: BaseException | None = None
        self.profile: Profile | None = None
        self._thread = threading.Thread(target=self._run, args=(device, bundle, seconds), daemon=True)
        self._thread.start()

    def _run(self, device: Device, bundle: Path, seconds: float) -> None:
        try:
            self.profile = measure_on(device, bundle, HELD, None, seconds, SOON)[1]
        except EdgeattnError as error:
            self.error = error

    def end(self) -> None:
        self._thread.join(90.0)
        assert not self._thread.is_alive()


def test_golden_inputs_and_times_are_of_the_mode_asked_for(board: Board, jetson: Jetson, tiny_bundle: Path) -> None:
    golden, profile, _ = measure_on(parse_device(board.url), tiny_bundle, HELD)
    assert golden is not None
    assert golden.passed
    assert profile is not None
    assert profile.board is not None
    assert (profile.board.power_mode, profile.board.locked) == ("25W", True)
    assert is_free(jetson)
    assert [line for line in jetson.log if line.startswith("nvpmodel")] == ["nvpmodel -m 1", "nvpmodel -m 0"] * 2
    assert board.is_clean()


def test_a_lost_link_puts_the_board_back_before_the_next_try(board: Board, jetson: Jetson, tiny_bundle: Path) -> None:
    relay = Relay(board.port)
    board.hops.append(relay)
    write_client(board)
    measuring = Measuring(parse_device(f"ssh://{board.user}@127.0.0.1:{relay.port}"), tiny_bundle)
    until(lambda: (jetson.mode, jetson.clocks) == (1, LOCKED))
    relay.cut()
    measuring.end()
    assert measuring.error is None
    assert measuring.profile is not None
    until(lambda: is_free(jetson))
    modes = [line.rpartition(" ")[2] for line in jetson.log if line.startswith("nvpmodel")]
    assert modes == ["1", "0"] * (len(modes) // 2)  # none of them began from the mode of the one before
    assert len(modes) >= 6
    assert board.is_clean()


def test_an_engine_that_hangs_is_killed_and_the_board_put_back(board: Board, jetson: Jetson, tiny_bundle: Path) -> None:
    set_modules(board, jetson, board.module("onnxruntime", HANGING), SITE)
    measuring = Measuring(parse_device(board.url), tiny_bundle, seconds=5.0)
    until(lambda: (jetson.mode, jetson.clocks) == (1, LOCKED))
    measuring.end()
    assert isinstance(measuring.error, DeviceError)
    assert "did not end within 5 s and was killed there" in str(measuring.error)
    until(lambda: is_free(jetson))
    assert board.is_clean()


@pytest.mark.parametrize(
    ("mode", "kind", "message"),
    [
        ("7W", UnsupportedError, "power mode 7W wants a reboot of the board, which stays in 15W"),
        ("40W", InputError, "unknown power mode '40W'"),
    ],
)
def test_a_mode_that_cannot_be_had_is_refused_before_anything_is_replayed(
    board: Board, jetson: Jetson, tiny_bundle: Path, mode: str, kind: type[EdgeattnError], message: str
) -> None:
    options = MeasureOptions(runs=5, paced_seconds=0, power_mode=mode)
    with pytest.raises(kind, match=message) as caught:
        measure_on(parse_device(board.url), tiny_bundle, options)
    assert str(caught.value).startswith(board.url)
    assert is_free(jetson)
    assert "rebooted" not in jetson.log
    assert board.is_clean()


def test_a_board_that_is_no_jetson_says_so(board: Board, tiny_bundle: Path) -> None:
    with pytest.raises(DeviceError, match="boards with nvpmodel"):
        measure_on(parse_device(board.url), tiny_bundle, HELD)


SIMULATED = """
import ctypes, sys
from simulated_tensorrt import onnxruntime_network, simulated_tensorrt
library = ctypes.CDLL("libcudart.so.12")
sys.modules[__name__] = simulated_tensorrt("10.3.0", library, onnxruntime_network(library))
"""


def test_an_engine_is_built_there_once_checked_and_timed_by_its_own_clock(
    board: Board, jetson: Jetson, tmp_path: Path
) -> None:
    pytest.importorskip("onnx", reason="writes the tiny model")
    bundle = write_tiny_bundle(tmp_path / "tiny.jetson.edge", "tensorrt")
    there = board.module("tensorrt", SIMULATED, "10.3.0")
    shutil.copyfile(simulated_tensorrt.__file__, there / "simulated_tensorrt.py")
    build_simulator(there).rename(there / "libcudart.so.12")
    board.python(f'LD_LIBRARY_PATH={there} PATH={jetson.programs}:$PATH PYTHONPATH={there}:{SITE} exec PYTHON3 "$@"')
    options = replace(HELD, layers=True)
    stamps = []
    for _ in range(2):
        golden, profile, found = measure_on(parse_device(board.url), bundle, options)
        assert golden is not None
        assert golden.passed
        assert (golden.backend, golden.engine_version) == ("tensorrt", "10.3.0")
        assert profile is not None
        assert (profile.backend, profile.latency.kind) == ("tensorrt", "measured")
        assert profile.latency.device_clock is not None
        assert profile.latency.layers is not None
        assert profile.memory.engine_bytes is not None
        assert profile.board is not None
        assert profile.board.power_mode == "25W"
        assert found.modules["tensorrt"] == "10.3.0"
        (engine,) = (board.cache / "engines").glob("*.engine")
        stamps.append(engine.stat().st_mtime_ns)
    assert stamps[0] == stamps[1]  # of the first golden check, and of all that came after
    assert len(list((board.cache / "engines").iterdir())) == 2  # and the tactics' times
    assert is_free(jetson)
    assert board.is_clean()


@pytest.mark.parametrize(
    ("options", "flag"),
    [(replace(HELD, power_mode=None), "--lock-clocks"), (replace(HELD, lock_clocks=False), "--power-mode")],
)
def test_settings_of_a_board_are_refused_where_they_mean_nothing(
    options: MeasureOptions, flag: str, tiny_bundle: Path
) -> None:
    with pytest.raises(UnsupportedError, match=f"leave out {flag}"):
        measure_on(parse_device("qemu:aarch64"), tiny_bundle, options)
    with pytest.raises(InputError, match=f"leave out {flag}"):
        profile(tiny_bundle, options, None, ("adb:",), Path("benchmark_model"))
