"""Steps of a language model that writes on from prompts: what its caches and tokens look like in use."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgeattn.errors import InputError
from edgeattn.evaluation.replay import Record
from edgeattn.runtimes import GenerateOptions
from edgeattn.runtimes.generation import generate
from edgeattn.runtimes.generation.writers import Model, SettableStep, kind_of
from edgeattn.spec import ModelSpec

Arrays = dict[str, np.ndarray]
PROMPTS, TOKENS = 16, 8  # prompts of all sizes, tokens behind each
SECONDS = 30.0  # after which no further prompt is begun


def calibrated_steps(model: Model, calibration: Mapping[str, tuple[Arrays, ...]]) -> dict[str, tuple[Arrays, ...]]:
    """Calibration of a language model's steps too, where the data holds its prompts alone: what it writes on them.

    Args:
        model: the float32 source.
        calibration: graph -> full input sets; what stands there stays.

    Returns:
        the same with sets of its step graphs, states included; as it was for a model that writes no text.
    """
    kind = kind_of(model.spec)
    if kind is None:
        return dict(calibration)
    sizes = [calibration.get(graph.name, ()) for graph in model.spec.units()[kind[0]]]
    prompts = [prompt for every in sizes for prompt in every[: max(2, PROMPTS // len(sizes))]]
    steps = record_writing(model, prompts)
    made = {name: tuple({**one.inputs, **one.states} for one in records) for name, records in steps.items()}
    return {**made, **calibration}


def record_writing(model: Model, prompts: Sequence[Arrays]) -> dict[str, tuple[Record, ...]]:
    """Greedy steps behind prompts, by the name of their graph.

    Args:
        prompts: inputs of its prefill or encoder, each at a size of the graph.
    """
    recording, began = _RecordingModel(model), time.monotonic()
    options = GenerateOptions(beams=1, sample=False, stop=())
    for prompt in prompts:
        if time.monotonic() - began > SECONDS:
            break
        with contextlib.suppress(InputError):  # a prompt that fills the cache, a model that does not say how to begin
            for _ in itertools.islice(generate(recording, prompt, options), TOKENS):
                pass
    return {name: tuple(records) for name, records in recording.records.items() if records}


class _RecordingModel:
    """A model whose steps are remembered."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.records: dict[str, list[Record]] = {}

    @property
    def spec(self) -> ModelSpec:
        return self._model.spec

    @property
    def assets(self) -> Mapping[str, Path]:
        return self._model.assets

    def run(self, inputs: Mapping[str, np.ndarray], graph: str | None = None) -> Arrays:
        return self._model.run(inputs, graph)

    def step(self, graph: str | None = None) -> SettableStep:
        name = self.spec.graph(graph).name
        return _RecordingStep(self._model.step(graph), self.records.setdefault(name, []))


class _RecordingStep:
    """A step that remembers what it reads."""

    def __init__(self, step: SettableStep, records: list[Record]) -> None:
        self._step, self._records = step, records

    @property
    def inputs(self) -> Mapping[str, np.ndarray]:
        return self._step.inputs

    @property
    def outputs(self) -> Mapping[str, np.ndarray]:
        return self._step.outputs

    def run(self) -> None:
        inputs, states = {name: value.copy() for name, value in self.inputs.items()}, self._step.states()
        self._step.run()
        self._records.append(Record(inputs, states, {name: value.copy() for name, value in self.outputs.items()}))

    def reset(self) -> None:
        self._step.reset()

    def states(self) -> Arrays:
        return self._step.states()

    def set_states(self, values: Mapping[str, np.ndarray]) -> None:
        self._step.set_states(values)
