"""A bundle measured in a process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeattn.errors import BundleError, DeviceError, InputError
from edgeattn.profiling.measure import MeasureOptions, measure
from edgeattn.profiling.worker import profile_bundle

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
    assert all(row["microseconds"] for row in latency.layers)
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
        "import sys; from edgeattn.profiling.worker import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'onnx', 'openvino', 'tensorrt_rtx', 'rich'} & set(sys.modules); "
        "sys.exit(code or bool(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", program, tiny_bundle, request], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["profile"]["latency"]["runs"] == 3
    assert len(done.stdout.splitlines()) == 1
