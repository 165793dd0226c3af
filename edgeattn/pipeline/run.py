"""run(): raw inputs through a bundle, here or on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from edgeattn.bundle import open_bundle, read_manifest
from edgeattn.errors import DataError
from edgeattn.evaluation.task_data import TaskData, TaskSample
from edgeattn.jobs.answers import Answers
from edgeattn.jobs.parcel import pack
from edgeattn.jobs.remote import Task as Remote
from edgeattn.jobs.remote import task_on
from edgeattn.runtimes import load
from edgeattn.targets.devices import parse_device
from edgeattn.tasks import task_of_manifest

JOB = "edgeattn.jobs.answers"

T = TypeVar("T")


def run(
    path: Path, inputs: Sequence[str], device: str = "local", backend: str | None = None, threads: int = 1
) -> Answers:
    """The answers of a bundle's task to raw inputs.

    Args:
        inputs: texts, or files, as the task takes them.
        device: where it runs; what is sent there was encoded here.
        backend: engine to run on, if not the bundle's own.

    Raises:
        InputError: for a bundle without a task.
        DataError: naming the input that the task cannot take.
        EdgeattnError: if the bundle or the device cannot be used.
    """
    if device == "local":
        with load(path, backend, threads) as session:
            pipeline = session.pipeline()
            found = [_named(text, lambda text: pipeline.answer(pipeline.read(text))) for text in inputs]
            return Answers(
                backend=session.backend,
                engine_version=session.engine_version,
                answers=tuple(pipeline.task.described(one) for one in found),
                lines=tuple(pipeline.task.line(one) for one in found),
            )
    there = parse_device(device)
    manifest = read_manifest(path)
    with open_bundle(path) as opened:
        assets = {name: opened.asset(name) for name in opened.assets}
        task = task_of_manifest(manifest.task)
        encode = task.encoder(manifest.spec, assets)
        samples = tuple(TaskSample(encoded=_named(text, lambda text: encode(task.parsed(text)))) for text in inputs)
    data = TaskData("inputs", (), samples, task=task)
    answers, _ = task_on(there, path, Remote(JOB, pack({}, "", data), "answers", Answers), backend, threads)
    return answers


def _named(text: str, work: Callable[[str], T]) -> T:
    try:
        return work(text)
    except DataError as error:
        raise DataError(f"{text[:80]!r}: {error}") from error
