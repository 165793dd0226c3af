"""A bundle measured in a process of its own."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edgeattn.profiling.measure
from edgeattn.errors import BundleError, DeviceError, InputError
from edgeattn.jobs.measure import profile_bundle
from edgeattn.profiling.energy import find_meter
from edgeattn.profiling.figures import Clocks, Energy, Latency, Profile, Realtime
from edgeattn.profiling.measure import MeasureOptions, affinity, measure
from edgeattn.profiling.stability import NOISE_LIMIT
from edgeattn.profiling.throttling import Watch
from edgeattn.spec import from_json, to_json
from tests.profiling.trees import write_tree

QUICK = MeasureOptions(runs=20, paced_seconds=0.5, packet=30, layers=True)


def test_a_profile_has_every_figure(tiny_bundle: Path) -> None:
    profile = profile_bundle(tiny_bundle, QUICK)
    latency, realtime, memory = profile.latency, profile.realtime, profile.memory
    assert (profile.backend, latency.kind, latency.runs, latency.threads) == ("onnxruntime", "measured", 20, 1)
    assert 0 < latency.p50_ms <= latency.p90_ms <= latency.p99_ms <= latency.max_ms
    assert latency.warmup_ms > 0
    assert latency.load_ms > 0
    assert latency.affinity
    assert latency.layers
    assert all(row.microseconds for row in latency.layers)
    assert realtime is not None
    assert realtime.paced
    assert realtime.rtf > 0
    assert realtime.chunks
    assert realtime.chunks >= 5
    assert (realtime.hop_ms, realtime.deadline_ms) == (64.0, 64.0)
    assert memory.weights_bytes == (tiny_bundle / "main.onnx").stat().st_size
    assert memory.state_bytes == 2 * 4 * 4 * 6  # two caches of 4 x 6 float32
    assert memory.rss_bytes is None or 10e6 < memory.rss_bytes < 2e9
    assert {dtype for kinds in profile.executed.values() for dtype in kinds} == {"float32"}


def test_a_contract_is_measured_alone_and_beside_a_neighbour(tiny_bundle: Path) -> None:
    profile = profile_bundle(tiny_bundle, replace(QUICK, runs=60, jitter_ms=5.0, load=1, trace=True))
    alone = profile.realtime
    assert alone is not None
    assert alone.loaded is not None
    for run, neighbours in ((alone, 0), (alone.loaded, 1)):
        assert (run.neighbours, run.jitter_ms, run.packet, run.seconds) == (neighbours, 5.0, 30, 0.5)
        assert run.misses is not None
        assert run.chunks == 7  # of 500 samples, five frames of 16 for the first and four for each other
        assert run.miss_rate_ci95 is not None
        assert run.miss_rate_ci95[0] <= run.misses / run.chunks <= run.miss_rate_ci95[1]
        assert run.p50_ms is not None
        assert run.p99_ms is not None
        assert run.max_ms is not None
        assert 0 < run.p50_ms <= run.p99_ms <= run.max_ms
        assert run.trace is not None
        assert max(run.trace.latency_ms) == pytest.approx(run.max_ms)
        assert len(run.trace.seconds) == 7
        assert run.p99_trend is None
    assert alone.loaded.loaded is None
    latency = profile.latency
    assert latency.noise is not None
    assert latency.noisy == (latency.noise > NOISE_LIMIT)
    assert latency.warmup_calls is not None
    assert latency.warmup_calls >= 1 + 2 * 5
    assert latency.settled is not None


def test_a_model_that_does_not_stream_is_called_every_hop(tiny_calls_bundle: Path) -> None:
    options = MeasureOptions(runs=5, paced_seconds=1.0, hop_ms=10.0, deadline_ms=5_000.0, spread_seconds=0)
    run = measure(tiny_calls_bundle, options).realtime
    assert run is not None
    assert (run.hop_ms, run.deadline_ms, run.packet, run.chunks, run.misses) == (10.0, 5_000.0, None, 100, 0)
    assert run.p99_trend is not None
    assert run.p99_trend.ci95[0] <= run.p99_trend.ms_per_minute <= run.p99_trend.ci95[1]
    assert measure(tiny_calls_bundle, replace(options, hop_ms=None)).realtime is None


def test_what_cannot_be_held_is_refused_before_measuring(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="streams in hops of 64 ms"):
        profile_bundle(tiny_bundle, replace(QUICK, hop_ms=20.0))


def test_clocks_under_load_are_read_around_a_paced_run(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = f"sys/devices/system/cpu/cpu{affinity()[0]}"
    write_tree(
        tmp_path, {f"{cpu}/cpufreq/scaling_cur_freq": 1_800_000, f"{cpu}/thermal_throttle/core_throttle_count": 4}
    )
    monkeypatch.setattr(edgeattn.profiling.measure, "Watch", functools.partial(Watch, root=tmp_path))
    profile = measure(tiny_bundle, MeasureOptions(runs=5, paced_seconds=0.3, packet=30, spread_seconds=0))
    assert profile.realtime is not None
    for clocks, fall in ((profile.latency.clocks, None), (profile.realtime.clocks, 0.0)):
        assert clocks is not None
        assert (clocks.min_mhz, clocks.max_mhz, clocks.throttle_events, clocks.held) == (1800.0, 1800.0, 0, True)
        assert clocks.fall == fall


def test_energy_is_read_where_the_device_tells_it(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = "sys/class/hwmon/hwmon0"
    files = {"name": "ina3221", "in1_label": "VDD_IN", "in1_input": 5_000, "curr1_input": 2_000}
    write_tree(tmp_path, {f"{board}/{name}": value for name, value in files.items()})
    monkeypatch.setattr(edgeattn.profiling.measure, "find_meter", lambda: find_meter(tmp_path))
    options = MeasureOptions(runs=5, paced_seconds=0, spread_seconds=0, energy_seconds=0.2)
    energy = measure(tiny_bundle, options).energy
    assert energy is not None
    assert (energy.source, energy.rails) == ("ina3221", ("VDD_IN",))
    assert 5.0 < energy.mean_watts < 10.001  # 10 W, less what passes between the last reading and looking at the time
    assert energy.joules_per_call == pytest.approx(energy.mean_watts * energy.seconds / energy.calls)
    assert measure(tiny_bundle, replace(options, energy_seconds=0)).energy is None


def test_a_profile_goes_through_json_unchanged(tiny_bundle: Path) -> None:
    profile = measure(tiny_bundle, replace(QUICK, runs=5, load=1, trace=True, layers=False))
    energy = Energy("rapl", ("package-0",), 0.01, 10.0, 2.0, 100, 3.0)
    clocks = Clocks(1000.0, 2400.0, 0.1, 2, None, 81.5, False)
    full = replace(profile, energy=energy, latency=replace(profile.latency, clocks=clocks))
    assert from_json(Profile, json.loads(json.dumps(to_json(full)))) == full


def test_figures_that_were_written_before_there_was_a_contract_still_read() -> None:
    before = {"hop_ms": 320.0, "deadline_ms": 320.0, "rtf": 0.01, "misses": 0, "chunks": 15, "max_backlog_ms": 1.0}
    assert from_json(Realtime, before | {"paced": True}).loaded is None
    times = dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "max_ms", "warmup_ms", "load_ms"), 1.0)
    latency = {"kind": "measured", "runs": 9, "threads": 1, "affinity": [0], "layers": None, "graphs": None}
    assert from_json(Latency, times | latency).noise is None


def test_without_pacing_there_is_no_count_of_misses(tiny_bundle: Path) -> None:
    realtime = measure(tiny_bundle, MeasureOptions(runs=5, paced_seconds=0)).realtime
    assert realtime is not None
    assert not realtime.paced
    assert realtime.rtf > 0
    assert (realtime.misses, realtime.chunks, realtime.max_backlog_ms) == (None, None, None)


def test_a_substitute_is_named_emulated(tiny_tensorrt_bundle: Path) -> None:
    profile = profile_bundle(tiny_tensorrt_bundle, MeasureOptions(runs=5, paced_seconds=0), "onnxruntime")
    assert (profile.backend, profile.latency.kind) == ("onnxruntime", "emulated")


def test_an_error_there_is_the_same_error_here(tiny_bundle: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(tiny_bundle, tmp_path / "broken.cpu.edge")
    (broken / "main.onnx").write_bytes((broken / "main.onnx").read_bytes()[:-1] + b"!")
    with pytest.raises(BundleError, match=r"main\.onnx was changed"):
        profile_bundle(broken, QUICK)
    with pytest.raises(InputError, match="unknown backend"):
        profile_bundle(tiny_bundle, QUICK, "onnx-runtime")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            "import os, sys; sys.stderr.write('first\\nout of memory\\n'); os.abort()",
            "died with status -6: out of memory",
        ),
        ("raise SystemExit(0)", "died with status 0: no output"),
        ("print('no json')", "died with status 0"),
    ],
)
def test_a_worker_that_dies_is_a_lost_device(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, program: str, message: str
) -> None:
    real: Callable[..., Any] = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda _, **given: real([sys.executable, "-c", program], **given))
    with pytest.raises(DeviceError, match=message) as caught:
        profile_bundle(tiny_bundle, QUICK)
    assert caught.value.exit_code == 3


def test_a_worker_that_does_not_end_is_a_lost_device(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = subprocess.run
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    monkeypatch.setattr(subprocess, "run", lambda _, **given: real(sleep, **{**given, "timeout": 0.2}))
    with pytest.raises(DeviceError, match="did not end within"):
        profile_bundle(tiny_bundle, QUICK)


def test_the_worker_answers_with_one_line_and_loads_no_framework(tiny_bundle: Path) -> None:
    request = json.dumps({"backend": None, "options": {"runs": 3, "paced_seconds": 0}})
    program = (
        "import sys; from edgeattn.jobs.measure import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'onnx', 'openvino', 'tensorrt_rtx', 'rich'} & set(sys.modules); "
        "sys.exit(code or bool(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", program, tiny_bundle, request], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["profile"]["latency"]["runs"] == 3
    assert len(done.stdout.splitlines()) == 1
