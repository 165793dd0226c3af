"""calibrate(): what the engines reach of this machine, measured on a few attention models of different sizes."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeattn.baseline import Progress, Quiet, recorded
from edgeattn.errors import MissingExtraError, UnsupportedError
from edgeattn.estimating import computes_int8, file_figures
from edgeattn.model import EdgeModel, one_thread
from edgeattn.profiling.measure import time_step
from edgeattn.runtimes import backends, open_session
from edgeattn.schemes import TRIED, Workshop, build
from edgeattn.sources.modules import from_module
from edgeattn.targets import Target, host_target
from edgeattn.targets.calibration import Calibration, Sample, fit, with_measured

COPIED = 2**26  # bytes
ROUNDS, RUNS = 5, 15
QUIET = 0.1  # quantile of the times that counts: what the machine does when others leave it alone
SAMPLES = 8  # inputs that int8 is calibrated with
CONVERTERS = {"litert": ("litert_torch", "ai_edge_quantizer"), "openvino": ("nncf",), "onnxruntime": ()}
"""Engine -> packages that its files are made with, beside torch and onnx."""


@dataclass(frozen=True)
class Size:
    """Of an encoder: positions, model width, layers; heads are of 32 entries, a feed-forward is four times as wide."""

    tokens: int
    width: int
    layers: int

    @property
    def name(self) -> str:
        """For people."""
        return f"encoder {self.tokens}x{self.width}x{self.layers}"


SIZES = (Size(8, 128, 4), Size(32, 64, 3), Size(64, 256, 2), Size(128, 384, 2), Size(196, 192, 3))
"""From a streaming step of speech to the patches of an image."""


def calibrate(
    progress: Progress,
    engines: Sequence[str] | None = None,
    threads: int = 1,
    sizes: Sequence[Size] = SIZES,
) -> Calibration:
    """Build the models for each engine in float32 and int8, time them in turns, and fit the roofline to the times.

    Nothing is kept: see :func:`edgeattn.targets.calibration.keep_calibration`.

    Args:
        engines: those to calibrate; None for all of this machine's that are installed.

    Raises:
        MissingExtraError: if none of the engines is installed with what its files are made with.
        UnsupportedError: if the machine does not tell a clock or instruction sets, from which its peak rates follow.
    """
    host = host_target()
    if host.peaks is None or host.cpu.clock_hz is None:
        raise UnsupportedError(
            "this machine tells no clock or no instruction sets (/proc/cpuinfo), so its peak rates are not known: "
            "measure the model itself instead of an estimate"
        )
    usable = _usable(host, engines)
    progress.begin("calibrating: memory bandwidth")
    bandwidth = copy_bandwidth()
    host = with_measured(host, host.cpu.clock_hz, bandwidth)
    samples: dict[str, list[Sample]] = {engine: [] for engine in usable}
    with tempfile.TemporaryDirectory(prefix="edgeattn-") as scratch, one_thread():
        for size in sizes:
            progress.begin(f"calibrating: {size.name}", len(usable))
            shop = _workshop(size, Path(scratch) / size.name.replace(" ", "-"))
            for engine in usable:
                samples[engine] += _measured(shop, size, engine, host, threads)
                progress.advance()
    progress.begin("calibrating: fitting")
    fitted = {engine: fit(samples[engine], host, engine, threads, version) for engine, version in usable.items()}
    assert host.cpu.clock_hz is not None
    return Calibration(host.title, host.cores, threads, host.cpu.clock_hz, bandwidth, fitted)


def _usable(host: Target, asked: Sequence[str] | None) -> dict[str, str]:
    """Engine -> version of those that can be calibrated."""
    here = {status.name: status.version or "" for status in backends() if status.module is not None}
    wanted = [engine for engine in host.backends if asked is None or engine in asked]
    usable: dict[str, str] = {engine: here[engine] for engine in wanted if engine in here and _buildable(engine)}
    if not usable:
        raise MissingExtraError(
            f"none of {', '.join(asked or host.backends)} can be calibrated here: an engine and the converters to it "
            "are needed: pip install 'edgeattn[convert,openvino,tflite]'"
        )
    return usable


def _buildable(engine: str) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in CONVERTERS[engine])


def _workshop(size: Size, scratch: Path) -> Workshop:
    model = encoder(size)
    rng = np.random.default_rng(0)
    shape = (1, size.tokens, size.width)
    inputs = tuple({"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(SAMPLES))
    scratch.mkdir()
    return Workshop(model, replace(recorded(model, None, Quiet()), calibration={"main": inputs}), scratch)


def encoder(size: Size) -> EdgeModel:
    """A pre-norm Transformer encoder with random weights: its time depends on its shapes alone."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        size.width, max(1, size.width // 32), 4 * size.width, dropout=0.0, batch_first=True, norm_first=True
    )

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.TransformerEncoder(layer, size.layers, enable_nested_tensor=False)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": self.layers(x)}

    return from_module(Encoder().eval(), {"x": torch.randn(1, size.tokens, size.width)}, "encoder")


def _measured(shop: Workshop, size: Size, engine: str, host: Target, threads: int) -> list[Sample]:
    """The model on an engine in float32 and int8, in turns, so that a slow moment of the host meets both."""
    artifacts = {"fp32": build(engine, shop, "fp32", host), "int8": build(engine, shop, TRIED[engine][0], host)}
    assert host.peaks is not None
    if host.peaks.int8 is None:
        del artifacts["int8"]
    sessions = {name: open_session(engine, made.models, shop.model.spec, threads) for name, made in artifacts.items()}
    try:
        steps = {name: session.step("main") for name, session in sessions.items()}
        for step in steps.values():
            np.copyto(step.inputs["x"], shop.model.example["main"]["x"])
        times: Mapping[str, list[float]] = {name: [] for name in steps}
        for _ in range(ROUNDS):
            for name, step in steps.items():
                times[name] += time_step(step, RUNS)[1]
        return [
            Sample(
                size.name,
                name,
                file_figures(engine, artifacts[name].models, computes_int8(session.executed()))["main"].ops,
                float(np.quantile(times[name], QUIET)),
            )
            for name, session in sessions.items()
        ]
    finally:
        for session in sessions.values():
            session.close()


def copy_bandwidth() -> float:
    """Bytes per second that one thread reads and writes in copying a block that is larger than a core's own caches."""
    source = np.ones(COPIED, np.uint8)
    target = np.zeros_like(source)
    best = float("inf")
    for _ in range(7):
        began = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - began)
    return 2 * COPIED / best
