"""Times of models on a target's engine: the latency table of the whole one, and variants in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from edgeattn.engines import ENGINES
from edgeattn.guards.scratch import scratch_directory
from edgeattn.model import EdgeModel
from edgeattn.pipeline.steps.baseline import Baseline
from edgeattn.pipeline.steps.candidates import open_artifact, time_candidates
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.pruning.task import PruneTask, Setting
from edgeattn.pipeline.steps.recipes import build
from edgeattn.profiling.measure import device_name
from edgeattn.pruning import (
    LatencyTable,
    MeasureOptions,
    Selection,
    Timing,
    cache_directory,
    estimate_table,
    measure_table,
    prune,
    timings,
)
from edgeattn.runtimes import Session, backend_status

ROUNDS, TURNS = 5, 3  # in which the variants of a table are timed, and turns in each
TABLE_MS = 40_000.0  # of timing, about, for a table


def latency_table(task: PruneTask, setting: Setting, fresh: bool = False) -> LatencyTable:
    """Of this host's engine, or estimated where the engine is on the device alone."""
    setting.progress.begin(f"{setting.target.name}: latency table with {setting.backend}")
    if ENGINES[setting.backend].substitute:
        return estimate_table(task.given, setting.target, threads=setting.threads)
    engine = f"{setting.backend} {backend_status(setting.backend).version}"
    options = MeasureOptions(engine, "fp32", device_name(), setting.threads, setting.target.kernels.channels)
    return measure_table(
        task.given,
        lambda models: time_models(setting, models),
        options,
        cache_directory(),
        setting.progress.begin,
        fresh,
    )


def time_models(setting: Setting, models: Mapping[str, EdgeModel]) -> Mapping[str, Timing]:
    """Build models for an engine and time them in turns in one run."""
    progress, target = setting.progress, setting.target
    progress.begin(f"{target.name}: building {len(models)} models to time", len(models))
    with ExitStack() as stack, scratch_directory() as scratch:
        sessions: dict[str, Session] = {}
        for number, name in enumerate(models):
            room = scratch / str(number)
            room.mkdir()
            exports = Exports(models[name], Baseline({}, {}, None, None), room)
            artifact = build(setting.backend, exports, "fp32", target)
            sessions[name] = stack.enter_context(open_artifact(artifact, exports, setting.threads))
            progress.advance()
        progress.begin(f"{target.name}: timing")
        once = sum(time_candidates(sessions, 1, 2).values())
        runs = max(1, min(25, int(TABLE_MS / (ROUNDS * TURNS * once))))
        return timings([time_candidates(sessions, TURNS, runs) for _ in range(ROUNDS)])


def selection_ms(
    task: PruneTask, setting: Setting, selections: Sequence[Selection], table: LatencyTable
) -> list[float]:
    """Milliseconds of selections, timed in one run with the whole model and given in those of the table."""
    models = {str(number): prune(task.given, one.cut) for number, one in enumerate(selections)}
    timed = time_models(setting, {"unpruned": task.given.model, **models})
    return [table.full_ms * timed[name].ms / timed["unpruned"].ms for name in models]
