"""A task from its data to its metrics: here, after the way to a device, and on an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from edgeattn.converters.onnx import export_onnx
from edgeattn.evaluation.accuracy import Score
from edgeattn.evaluation.task_data import TaskData
from edgeattn.jobs.parcel import pack, unpacked
from edgeattn.model import EdgeModel, Reference
from edgeattn.runtimes import open_session
from edgeattn.sources.tasks import load_samples, with_task
from edgeattn.tasks import Task, restored, stored
from tests.converters.samples import as_model


class Gives(nn.Module):
    """A function of one tensor as a model."""

    def __init__(self, output: str, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._output, self._function = output, function

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {self._output: self._function(x)}


def model_for(name: str, module: nn.Module, assets: Mapping[str, Path] | None = None, **inputs: Tensor) -> EdgeModel:
    """A module as a model whose task is the one of that name."""
    return with_task(replace(as_model("net", module, **inputs), assets=assets or {}), name)


def task_of(model: EdgeModel) -> Task:
    """Its task, as it comes back from a manifest."""
    assert model.task is not None
    assert restored(stored(model.task)) == model.task
    return model.task


def loaded(model: EdgeModel, path: Path, limit: int = 0, split: str | None = None) -> TaskData:
    return load_samples(path, task_of(model), model.spec, model.assets, split, limit)


def scored_everywhere(model: EdgeModel, data: TaskData, directory: Path) -> Score:
    """The score of the source; that of the samples as they arrive on a device is the same."""
    score = data.score(Reference(model), data.evaluation, lambda: None)
    parcel = directory / "parcel.npz"
    parcel.write_bytes(pack({}, "", data))
    with unpacked(parcel) as opened:
        assert opened.data is not None
        assert opened.data.score(Reference(model), opened.samples, lambda: None) == score
    assert score is not None
    return score


def scored_by_onnxruntime(model: EdgeModel, data: TaskData, directory: Path) -> Score:
    files = export_onnx(model, directory)
    with open_session("onnxruntime", files, model.spec, threads=1) as session:
        score = data.score(session, data.evaluation, lambda: None)
    assert score is not None
    return score
