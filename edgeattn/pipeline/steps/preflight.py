"""What is refused before anything is converted."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeattn.converters.preflight.judge import Finding, judge, refuse
from edgeattn.converters.preflight.rule import Question
from edgeattn.converters.preflight.view import GraphView, look
from edgeattn.engines import TENSORRT, TREATMENT, precision_of
from edgeattn.errors import OutputError, UnsupportedError, unknown_name
from edgeattn.evaluation.data import Data
from edgeattn.evaluation.task_data import TaskData
from edgeattn.model import Arrays, EdgeModel
from edgeattn.pipeline.steps.options import ConvertOptions
from edgeattn.pipeline.steps.recipes import recipes
from edgeattn.pipeline.steps.refusals import Refusals
from edgeattn.progress import Progress
from edgeattn.spec import to_json
from edgeattn.targets import Target, list_targets

SCRATCH_COPIES, SCRATCH_BYTES = 8, 16 * 2**20  # of the weights: one per export and precision; graphs, compilers


def preflight(
    model: EdgeModel, data: Data | None, options: ConvertOptions, refused: Refusals, progress: Progress
) -> dict[str, tuple[Mapping[str, Any], ...]]:
    """What is foreseen for each target that is left, as plain JSON objects.

    Raises:
        UnsupportedError: of the only target: naming what would fail, why, and what to change.
    """
    if not refused.left():
        return {}
    progress.begin("preflight")
    views = look(model, calibration_sample(model, data))
    told = {}
    for target in refused.left():
        with refused.within(target, "preflight"):
            findings = foresee(model, views, target, data, options.of(target))
            told[target.name] = tuple(to_json(finding) for finding in findings)
            refuse(findings)
    return told


def foresee(
    model: EdgeModel, views: tuple[GraphView, ...], target: Target, data: Data | None, options: ConvertOptions
) -> tuple[Finding, ...]:
    """What preflight says of one target, for graphs that were looked at once."""
    backend = engine(target, options)
    names = recipes(target, backend, options.precision)
    asked = tuple(dict.fromkeys(map(precision_of, names)))
    ranges = all(TREATMENT[name] == "int8" for name in names if precision_of(name) == "int8")
    cut = data.cut if isinstance(data, TaskData) else ""
    return judge(views, Question(model, target, backend, asked, data is not None, ranges, cut))


def calibration_sample(model: EdgeModel, data: Data | None) -> dict[str, Arrays]:
    """One set of inputs of the first graph from the data, where the data holds arrays."""
    example = None if data is None else data.example()
    return {} if example is None else {model.spec.graphs[0].name: dict(example)}


def check_disk(model: EdgeModel, scratch: Path) -> None:
    """Refuse a temporary directory that will not hold the exports: the engines' own writers die without a word there.

    Raises:
        OutputError: saying how much is missing.
    """
    graphs = max(len(graphs) for graphs in model.spec.units().values())  # each size is exported before sizes share
    needed = SCRATCH_COPIES * graphs * model.source_size_bytes + SCRATCH_BYTES
    free = shutil.disk_usage(scratch).free
    if free < needed:
        raise OutputError(
            f"{tempfile.gettempdir()}: the disk is full: {free / 1e6:.1f} MB are free and conversion takes about "
            f"{needed / 1e6:.1f} MB; make room or set TMPDIR to another directory"
        )


def describe(model: EdgeModel) -> dict[str, Any]:
    """The report's ``model`` object."""
    return {
        "name": model.spec.name,
        "task": model.spec.task,
        "source_sha256": model.source_sha256,
        "source_size_bytes": model.source_size_bytes,
        "graphs": [graph.name for graph in model.spec.graphs],
        "buckets": {bucket.name: list(bucket.graphs) for bucket in model.spec.buckets},
    }


def engine(target: Target, options: ConvertOptions) -> str:
    """The engine to convert for.

    Raises:
        UnsupportedError: if the target does not have the one that was asked for.
    """
    backend = options.backend or target.backends[0]
    if backend not in target.backends:
        raise UnsupportedError(f"target {target.name}: {unknown_name('engine', backend, target.backends)}")
    return backend


def check_dla(target: Target, backend: str) -> None:
    """Refuse a DLA where there is none.

    Raises:
        UnsupportedError: naming the targets that have one.
    """
    if backend == TENSORRT.name and target.accelerator is not None and target.accelerator.dla_cores:
        return
    others = [t.name for t in list_targets() if t.accelerator is not None and t.accelerator.dla_cores]
    raise UnsupportedError(
        f"{target.name} with {backend} has no DLA; TensorRT has one on {', '.join(others)}. Leave out --dla"
    )


@contextlib.contextmanager
def removed_if_empty(directory: Path) -> Iterator[None]:
    """Take a directory that was not there before away again if nothing came into it."""
    there = directory.exists()
    try:
        yield
    finally:
        if not there:
            with contextlib.suppress(OSError):  # not empty, which is how it should be
                directory.rmdir()
