"""What a model is for, and ``--data`` as that task's samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edgeattn.errors import DataError, InputError
from edgeattn.evaluation.arrays import ArrayData, ArraySample
from edgeattn.evaluation.data import Listed, divide
from edgeattn.evaluation.task_data import TaskData, TaskSample
from edgeattn.model import EdgeModel
from edgeattn.spec import ModelSpec
from edgeattn.tasks import Described, Encoded, Sample, Task, recognised, task_named
from edgeattn.tasks.labels import names_of
from edgeattn.tasks.texts import read_config

PROCESSOR = "preprocessor_config.json"
MOST_CLASSES = 100_000


def described(spec: ModelSpec, assets: Mapping[str, Path]) -> Described:
    """A model as tasks look at it.

    Raises:
        ModelError: if its config.json or preprocessor_config.json is damaged.
    """
    config, processor = read_config(assets), read_config(assets, PROCESSOR)
    labels = names_of(config, MOST_CLASSES)
    return Described(spec=spec, assets=assets, config=config, processor=processor, labels=labels)


def task_of(spec: ModelSpec, assets: Mapping[str, Path], name: str | None = None) -> Task | None:
    """The task of a model: the one that was asked for, or the one that it says it is for; None if it says none.

    Raises:
        InputError: for an unknown name, or a task that does not fit the model, saying what would.
        ModelError: as :func:`described`.
    """
    model = described(spec, assets)
    if name is None:
        return recognised(model)
    try:
        return task_named(name).fitted(model)
    except DataError as error:
        raise InputError(f"--task {name}: {error}") from error


def with_task(model: EdgeModel, name: str | None) -> EdgeModel:
    """A model that knows what it is for; see :func:`task_of`."""
    return replace(model, task=task_of(model.spec, model.assets, name))


def load_samples(
    path: Path, task: Task, spec: ModelSpec, assets: Mapping[str, Path], split: str | None, limit: int
) -> TaskData:
    """A task's samples as inputs of a model, divided as :func:`edgeattn.evaluation.data.divide` says.

    Args:
        split: what to measure on.
        limit: at most this many samples to measure on and as many to calibrate on; 0 for all.

    Raises:
        DataError: naming the line or file that is not what the task needs, a split that is not there, or nothing to
            measure on.
    """
    samples = task.read(path, assets)
    keys = [index if sample.key is None else sample.key for index, sample in enumerate(samples)]
    listed = Listed(keys, [sample.split for sample in samples], [sample.stratum for sample in samples])
    divided = divide(listed, split, str(path), limit)
    if not divided.evaluation:
        raise DataError(f"{path}: no sample to measure on; at least 2 different ones are needed, or a split")
    name = path.resolve().name
    origin = f"{name}/{divided.split}" if divided.split else name
    if remark := task.remark(path):
        origin += f" ({remark})"
    return encoded_data(
        task, spec, assets, [samples[i] for i in divided.evaluation], [samples[i] for i in divided.calibration], origin
    )


def encoded_data(
    task: Task,
    spec: ModelSpec,
    assets: Mapping[str, Path],
    evaluation: Sequence[Sample],
    calibration: Sequence[Sample],
    origin: str,
) -> TaskData:
    """Samples that were divided already, as inputs of a model.

    Raises:
        DataError: naming the sample that cannot be encoded.
    """
    encode = task.encoder(spec, assets)

    def encoded(samples: Sequence[Sample]) -> tuple[tuple[TaskSample, ...], Counter[str]]:
        made, cut = [], Counter[str]()
        for sample in samples:
            try:
                one = encode(sample.given)
            except DataError as error:
                raise DataError(f"{sample.place}: {error}" if sample.place else str(error)) from error
            cut[one.cut] += 1
            made.append(TaskSample(encoded=one, target=sample.target, targets=task.array_targets(sample.target, one)))
        return tuple(made), cut

    measured, cut = encoded(evaluation)
    calibrating, _ = encoded(calibration)
    told = [f"{count} of {len(evaluation)} samples cut {where}" for where, count in cut.items() if where]
    # The metric of both sides is one of shortened inputs: its reader should know.
    origin += "".join(f" ({one})" for one in told)
    return TaskData(origin, calibrating, measured, task=task, cut=", ".join(told))


def as_task_data(data: ArrayData, task: Task) -> TaskData:
    """Sets of arrays as samples of a task whose answers need nothing but the outputs."""

    def samples(rows: Sequence[ArraySample]) -> tuple[TaskSample, ...]:
        return tuple(
            TaskSample(encoded=Encoded(calls=(row.inputs,)), target=dict(row.targets) or None, targets=(row.targets,))
            for row in rows
        )

    return TaskData(data.origin, samples(data.calibration), samples(data.evaluation), task=task)
