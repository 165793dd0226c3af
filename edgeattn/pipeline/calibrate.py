"""calibrate(): what the engines reach of this machine, measured on a few attention models of different sizes."""

from __future__ import annotations

import contextlib
import importlib.util
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.engines import ENGINES
from edgeattn.errors import MissingExtraError, UnsupportedError
from edgeattn.graphs.counting import computes_int8, file_figures
from edgeattn.guards.scratch import scratch_directory
from edgeattn.model import one_thread
from edgeattn.pipeline.steps.baseline import recorded
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.recipes import build
from edgeattn.profiling.measure import time_step
from edgeattn.progress import Progress, Quiet
from edgeattn.runtimes import backends, open_session
from edgeattn.targets import Target, host_target
from edgeattn.targets.calibration import Calibration, Sample, fit, with_measured

if TYPE_CHECKING:
    from edgeattn.pipeline.calibrate_models import Load

COPIED = 2**26  # bytes
ROUNDS, RUNS = 3, 15
SAMPLES = 8  # inputs that int8 is calibrated with


def calibrate(
    progress: Progress,
    engines: Sequence[str] | None = None,
    threads: int = 1,
    loads: Sequence[Load] | None = None,
) -> Calibration:
    """Build the models for each engine in float32 and int8, time them in turns, and fit the roofline to the times.

    Nothing is kept: see :func:`edgeattn.targets.calibration.keep_calibration`.

    Args:
        engines: those to calibrate; None for all of this machine's that are installed.
        loads: what to measure; None for :data:`edgeattn.pipeline.calibrate_models.LOADS`.

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
    with scratch_directory() as scratch, one_thread():
        for load in loads if loads is not None else _all_loads():
            progress.begin(f"calibrating: {load.name}", len(usable))
            exports = _exports(load, scratch / load.name.replace(" ", "-"))
            for engine in usable:
                samples[engine] += _measured(exports, load.name, engine, host, threads)
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
        extras = ",".join(sorted({ENGINES[engine].extra for engine in host.backends}))
        raise MissingExtraError(
            f"none of {', '.join(asked or host.backends)} can be calibrated here: an engine and the converters to it "
            f"are needed: pip install 'edgeattn[{extras}]'"
        )
    return usable


def _buildable(engine: str) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in ENGINES[engine].tools)


def _all_loads() -> Sequence[Load]:
    from edgeattn.pipeline.calibrate_models import LOADS

    return LOADS


def _exports(load: Load, scratch: Path) -> Exports:
    """With inputs that int8 is calibrated with: the example, and others as large."""
    import torch

    torch.manual_seed(0)
    model = load.make()
    rng = np.random.default_rng(0)
    (name,) = model.example
    inputs = tuple(
        {
            key: rng.standard_normal(value.shape).astype(np.float32) if value.dtype == np.float32 else value
            for key, value in model.example[name].items()
        }
        for _ in range(SAMPLES)
    )
    scratch.mkdir()
    return Exports(model, replace(recorded(model, None, Quiet()), calibration={name: inputs}), scratch)


def _measured(exports: Exports, name: str, engine: str, host: Target, threads: int) -> list[Sample]:
    """The model on an engine in float32 and int8, in turns, so that a slow moment of the host meets both."""
    artifacts = {"fp32": build(engine, exports, "fp32", host)}
    assert host.peaks is not None
    if host.peaks.int8 is not None:
        with contextlib.suppress(UnsupportedError):  # engines that want ranges leave products of one row in float
            artifacts["int8"] = build(engine, exports, ENGINES[engine].tried[0], host)
    sessions = {key: open_session(engine, made.models, exports.model.spec, threads) for key, made in artifacts.items()}
    try:
        steps = {key: session.step("main") for key, session in sessions.items()}
        for step in steps.values():
            for key, buffer in step.inputs.items():
                np.copyto(buffer, exports.model.example["main"][key])
        times: Mapping[str, list[float]] = {key: [] for key in steps}
        for _ in range(ROUNDS):
            for key, step in steps.items():
                times[key] += time_step(step, RUNS)[1]
        return [
            Sample(
                name,
                key,
                file_figures(engine, artifacts[key].models, computes_int8(session.executed()))["main"].ops,
                statistics.median(times[key]),  # as a profile's p50, which an estimate foretells
            )
            for key, session in sessions.items()
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
