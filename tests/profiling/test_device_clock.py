"""What an engine on a device of its own tells: times by its clock, its memory, its layers; TensorRT on simulators."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest

import edgeattn.runtimes.cuda
from edgeattn.profiling.figures import Profile
from edgeattn.profiling.measure import MeasureOptions, measure
from edgeattn.runtimes.engine_cache import HEAD_BYTES
from edgeattn.spec import from_json, to_json
from tests.profiling.conftest import write_tiny_bundle
from tests.runtimes.cudart import build_simulator
from tests.runtimes.simulated_tensorrt import SCRATCH, onnxruntime_network, simulated_tensorrt

QUICK = MeasureOptions(runs=30, paced_seconds=0, layers=True, spread_seconds=0, energy_seconds=0)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of engines on a board with TensorRT, as far as simulators go."""
    pytest.importorskip("onnxruntime", reason="evaluates the tiny model")
    pytest.importorskip("onnx", reason="writes the tiny model")
    simulator = build_simulator(tmp_path)
    library = ctypes.CDLL(str(simulator))
    monkeypatch.setattr(edgeattn.runtimes.cuda, "LIBRARIES", (str(simulator),))
    monkeypatch.setenv("EDGEATTN_CACHE", str(tmp_path / "cache"))
    module = simulated_tensorrt("10.3.0", library, onnxruntime_network(library))
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return tmp_path / "cache" / "engines"


@pytest.mark.parametrize("streams", [True, False])
def test_the_devices_clock_stands_beside_the_hosts(board: Path, tmp_path: Path, streams: bool) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.jetson.edge", "tensorrt", streams)
    profile = measure(bundle, QUICK)
    latency = profile.latency
    assert (profile.backend, latency.kind, latency.runs) == ("tensorrt", "measured", 30)
    on_device = latency.device_clock
    assert on_device is not None
    assert 0 < on_device.p50_ms <= on_device.p90_ms <= on_device.p99_ms <= on_device.max_ms
    assert on_device.max_ms <= latency.max_ms  # a part of the same calls
    (engine,) = board.glob("*.engine")
    assert profile.memory.engine_bytes == 2 * SCRATCH + engine.stat().st_size - HEAD_BYTES
    assert latency.layers is not None
    assert len(latency.layers) == 10
    assert latency.layers[0].name.rpartition("_")[0] in profile.executed
    assert from_json(Profile, to_json(profile)) == profile


def test_an_engine_on_the_host_has_no_clock_and_no_memory_of_its_own(tiny_bundle: Path) -> None:
    told = to_json(measure(tiny_bundle, QUICK))
    assert told["latency"]["device_clock"] is None
    assert told["memory"]["engine_bytes"] is None
    assert told["board"] is None
