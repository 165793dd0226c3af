"""What attacks start from: whole bundles, models, recordings and answers, made once per process."""

from __future__ import annotations

import io
import json
import tempfile
import wave
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.jobs.measure import profile_bundle
from edgeattn.profiling.measure import MeasureOptions
from edgeattn.runtimes.selftest import selftest
from edgeattn.spec import to_json
from tests.profiling.conftest import write_tiny_bundle
from tests.runtimes.tiny import write_onnx


@lru_cache(maxsize=1)
def folder() -> Path:
    """Of the bases; it ends with the process."""
    keep = tempfile.TemporaryDirectory(prefix="edgeattn-attacks-")
    KEPT.append(keep)
    return Path(keep.name)


KEPT: list[Any] = []


@lru_cache(maxsize=1)
def bundle() -> Path:
    """A whole bundle that ONNX Runtime runs."""
    return write_tiny_bundle(folder() / "tiny.cpu.edge")


@lru_cache(maxsize=1)
def bundle_files() -> dict[str, bytes]:
    """Its files by name."""
    return {p.relative_to(bundle()).as_posix(): p.read_bytes() for p in bundle().rglob("*") if p.is_file()}


@lru_cache(maxsize=1)
def golden() -> dict[str, np.ndarray]:
    """Its golden arrays."""
    with np.load(io.BytesIO(bundle_files()["golden.npz"])) as arrays:
        return dict(arrays)


@lru_cache(maxsize=1)
def model_bytes() -> bytes:
    """An ONNX model with attention."""
    return write_onnx(folder() / "net.onnx").read_bytes()


@lru_cache(maxsize=1)
def ort_bytes() -> bytes:
    """The same in ONNX Runtime's own format."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder() / "net.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(model_bytes(), options, providers=["CPUExecutionProvider"])
    return Path(options.optimized_model_filepath).read_bytes()


@lru_cache(maxsize=1)
def tflite_bytes() -> bytes:
    """A linear layer."""
    from tests.sources.tflite.files import Written, normal, write

    layer = Written("FULLY_CONNECTED", [(1, 4), normal(3, 4), normal(3)], [(1, 3)])
    return write(folder() / "net.tflite", layer).read_bytes()


@lru_cache(maxsize=1)
def program_files() -> dict[str, bytes]:
    """The parts of a small .pt2."""
    import zipfile

    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(8, 8)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
            y = self.inner(x)
            shares = torch.softmax(y @ y.transpose(1, 2) + mask[:, None], -1)
            return {"hidden": shares @ y}

    torch.manual_seed(0)
    path = folder() / "net.pt2"
    seq = torch.export.Dim("seq", min=2, max=64)
    program = torch.export.export(
        Net().eval(), (torch.randn(1, 5, 8), torch.zeros(1, 5)), dynamic_shapes={"x": {1: seq}, "mask": {1: seq}}
    )
    torch.export.save(program, path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@lru_cache(maxsize=4)
def recording(kind: str = "wav") -> bytes:
    """A quarter of a second of noise at the bundle's rate."""
    samples = (np.random.default_rng(0).standard_normal(250) * 3_000).astype("<i2")
    buffer = io.BytesIO()
    if kind == "wav":
        with wave.open(buffer, "wb") as file:
            file.setparams((1, 2, 1_000, 0, "NONE", ""))
            file.writeframes(samples.tobytes())
    else:
        import soundfile

        soundfile.write(buffer, samples, 1_000, format=kind.upper())
    return buffer.getvalue()


TARGET = {
    "name": "my-board",
    "title": "a board of mine",
    "backends": ["onnxruntime"],
    "precisions": {"onnxruntime": ["fp32", "int8"]},
    "cpu": {"arch": "aarch64", "cores": 4, "isa": ["neon", "dotprod"], "source": "a data sheet", "clock_hz": 2.4e9},
    "memory": {"source": "a data sheet", "bytes": 2**30, "bytes_per_second": 1.7e10},
    "kernels": {"channels": 8, "head_dim": 8, "source": "measured"},
    "default_deadline_ms": 40.0,
    "notes": ["nothing"],
}
PLAN = {"default": "int8", "rules": [{"pattern": "blocks.0.*", "treatment": "float"}]}
SETTINGS = {
    "convert": {"target": ["cpu"], "max-drop": 0.5, "out": "out", "deadline": "40ms", "samples": 10, "zip": True},
    "models": {"json": True},
    "targets": {"raspberry-pi-5": {"device": ["ssh://pi@board"]}},
}


MEASURED = {
    "precision": {
        "asked": "auto",
        "shipped": "fp32",
        "executed": {"MatMul": {"float32": 3}},
        "candidates": [
            {"precision": "fp32", "latency_ms": 1.0, "accuracy": 99.0, "size_bytes": 9, "kept": True, "why": "it is",
             "scheme": "fp32", "drop": 0.0, "drop_upper": 0.1},
        ],
    },
    "measured": {
        "parity": {"reference": "torch", "steps": 1, "outputs": {"log_probs": {"max_abs": 1e-6, "sqnr_db": 120.0}}},
        "latency": {"p50_ms": 1.0, "p99_ms": 2.0, "kind": "measured"},
        "device": "a processor, 4 cores",
    },
}  # fmt: skip
"""Of a manifest: what was measured when it was made."""


@lru_cache(maxsize=1)
def answers() -> list[dict[str, Any]]:
    """What a device that is whole answers to ``profile``, in order."""
    replayed = {"golden": to_json(selftest(bundle()))}
    measured = {"profile": to_json(profile_bundle(bundle(), MeasureOptions(runs=3, paced_seconds=0.0)))}
    inventory = {
        "python": "3.11.2", "executable": "/usr/bin/python3", "system": "Linux", "arch": "x86_64", "libc": "glibc 2.36",
        "model": "a board", "tegra": "", "nvinfer": "", "modules": {"numpy": "2.0.0", "onnxruntime": "99.0"},
        "free_disk_bytes": 10**10, "free_memory_bytes": 10**9, "emulator": "",
    }  # fmt: skip
    return [
        {"event": "python", "version": [3, 11, 2]},
        {"event": "hello"},
        {"event": "alive"},
        {"event": "inventory", **inventory},
        {"event": "waiting"},
        {"event": "ready", "missing": [], "reaped": []},
        {"event": "unpacked", "path": "/home/pi/.cache/edgeattn/runs/1/bundle", "runtime": "/home/pi/store/2"},
        {"event": "done", "timeout": False, "status": 0, "stdout": json.dumps(replayed) + "\n", "stderr": ""},
        {"event": "done", "timeout": False, "status": 0, "stdout": json.dumps(measured) + "\n", "stderr": ""},
        {"event": "end", "clean": True},
    ]


PHONE = (
    "model Pixel 8\nchip Tensor G3\narch aarch64\ndisk /dev/block/dm-9 111 22 333333 9% /data\n"
    "memory MemAvailable: 4000000 kB\n"
)
BENCHMARK = (
    "STARTING!\ncount=13 first=54321 curr=40000 min=39000 max=60000 avg=41000.5 std=109 "
    "p5=39100 median=40100 p95=50100\n"
    "count=50 first=41000 curr=40100 min=39500 max=45000 avg=40200 std=300\n"
    "Inference timings in us: Init: 12345, First inference: 54321, Warmup (avg): 41000.5, Inference (avg): 40200\n"
    "Peak memory footprint (MB): init=1.5 overall=10.25\n"
)
