"""What a controller does: an action per observation, against recorded ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgeattn.errors import DataError, InputError
from edgeattn.guards.confined import confined_file
from edgeattn.guards.npz import read_npz
from edgeattn.guards.plain import strict_json
from edgeattn.spec import ModelSpec
from edgeattn.tasks.labels import best_class
from edgeattn.tasks.metric import Metric
from edgeattn.tasks.metrics.policy import ACTION_AGREEMENT
from edgeattn.tasks.metrics.regression import MAE, MSE, R2
from edgeattn.tasks.tables import MAX_ROWS, SPLITS
from edgeattn.tasks.task import Arrays, Assets, Described, Encoded, Sample, Task, the_output

if TYPE_CHECKING:
    from typing_extensions import Self

OBSERVATIONS, ACTIONS = "observations", "actions"
CONTINUOUS = ("action", "actions", "mean")  # outputs that are an action, not scores of some
ACTION = "action"


@dataclass(frozen=True, kw_only=True)
class Policy(Task):
    """See the module.

    Attributes:
        input: that takes an observation, float [1, ...].
        shape: of it.
        output: that holds a score per action, or the action, float [1, n].
        size: n.
        continuous: whether the output is the action itself.
        labels: names of the actions, empty without.
    """

    name: ClassVar[str] = "policy"
    summary: ClassVar[str] = "the action of a controller for an observation"
    forms: ClassVar[str] = "a directory of episodes, .npz with observations and actions each"
    measured: ClassVar[tuple[str, ...]] = ("action-agreement", "r2", "mse", "mae")
    model_tasks: ClassVar[tuple[str, ...]] = ("policy", "reinforcement-learning")

    input: str
    shape: tuple[int, ...]
    output: str
    size: int
    continuous: bool = False
    labels: tuple[str, ...] = ()

    @classmethod
    def fitted(cls, model: Described) -> Self:
        """See :class:`~edgeattn.tasks.task.Task`."""
        taken = model.graph.inputs
        if len(taken) != 1 or not taken[0].dtype.startswith("float") or taken[0].shape[:1] != (1,):
            raise DataError(f"expected one observation, float [1, ...]; this model {model.told}")
        output, shape = the_output(
            model, 2, (*CONTINUOUS, "logits", "q_values"), "scores of actions, or an action, float [1, n]"
        )
        continuous = output in CONTINUOUS or model.config.get("continuous") is True
        if shape[0] != 1 or (shape[1] < 2 and not continuous):
            raise DataError(f"expected scores of at least 2 actions, float [1, n]; this model {model.told}")
        return cls(
            input=taken[0].name,
            shape=tuple(taken[0].shape),
            output=output,
            size=shape[1],
            continuous=continuous,
            labels=() if continuous else model.labels[: shape[1]],
        )

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A directory of .npz files, or of such directories by split."""
        return path.is_dir() and any(True for _ in _episodes(path))

    def read(self, path: Path, assets: Assets) -> Sequence[Sample]:
        """Steps of all episodes."""
        if not self.recognises(path):
            raise DataError(f"{path}: expected {self.forms}")
        samples: list[Sample] = []
        for split, file in _episodes(path):
            confined_file(file, path, DataError)
            observations, actions = self._episode(file)
            samples += [
                # An episode stays on one side, whole: its steps have one key, and differ in their stratum.
                Sample(
                    given=observation,
                    target={ACTION: action} if self.continuous else int(action),
                    split=split,
                    place=f"{file}: step {step}",
                    key=str(file),
                    stratum=step,
                )
                for step, (observation, action) in enumerate(zip(observations, actions, strict=True))
            ]
            if len(samples) > MAX_ROWS:
                raise DataError(f"{path}: more than {MAX_ROWS} steps; split it")
        return samples

    def _episode(self, file: Path) -> tuple[np.ndarray, np.ndarray]:
        try:
            arrays = read_npz(file)
        except InputError as error:
            raise DataError(str(error)) from error
        if not {OBSERVATIONS, ACTIONS} <= set(arrays):
            raise DataError(f"{file}: expected arrays {OBSERVATIONS} and {ACTIONS}; got {', '.join(arrays) or 'none'}")
        observations, actions = arrays[OBSERVATIONS], arrays[ACTIONS]
        wanted = (len(observations), self.size) if self.continuous else (len(observations),)
        if observations.shape[1:] != self.shape[1:] or actions.shape != wanted:
            raise DataError(
                f"{file}: expected {OBSERVATIONS} [steps, {', '.join(map(str, self.shape[1:]))}] and {ACTIONS} "
                f"{'[steps, ' + str(self.size) + ']' if self.continuous else '[steps]'}; got "
                f"{list(observations.shape)} and {list(actions.shape)}"
            )
        whole = actions.dtype.kind in "iu" and (actions.size == 0 or (0 <= actions.min() <= actions.max() < self.size))
        if not np.isfinite(observations).all() or not (np.isfinite(actions).all() if self.continuous else whole):
            kind = "finite numbers" if self.continuous else f"whole numbers from 0 to {self.size - 1}"
            raise DataError(f"{file}: expected finite {OBSERVATIONS}, and {ACTIONS} that are {kind}")
        return observations, actions

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """How often the action is the recorded one; of continuous actions the coefficient of determination."""
        return CLOSENESS if self.continuous else (AGREEMENT,)

    def parsed(self, text: str) -> np.ndarray:
        """An observation as a JSON list."""
        try:
            return np.array(strict_json(text), np.float64)
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(f"expected an observation as a JSON list of numbers ({error})") from error

    def encoder(self, spec: ModelSpec, assets: Assets) -> Callable[[Any], Encoded]:
        """An observation, of the input's shape without its first axis."""
        (taken,) = next(iter(spec.units().values()))[-1].inputs

        def encoded(given: Any) -> Encoded:
            values = np.asarray(given)
            if values.shape != self.shape[1:] or values.dtype.kind not in "biuf" or not np.isfinite(values).all():
                raise DataError(f"expected finite numbers of shape {list(self.shape[1:])}, got {list(values.shape)}")
            return Encoded(calls=({self.input: values.astype(taken.dtype)[None]},))

        return encoded

    def array_targets(self, target: Any, encoded: Encoded) -> tuple[Arrays, ...]:
        """See :class:`~edgeattn.tasks.task.Task`."""
        made = target[ACTION][None].astype(np.float32) if self.continuous else np.array([target])
        return ({self.output: made},)

    def answer(self, outputs: Sequence[Arrays], facts: Mapping[str, Any]) -> Any:
        """Scores of the actions, or the action."""
        values = np.asarray(outputs[0][self.output], np.float64).ravel()
        return {ACTION: values} if self.continuous else [float(value) for value in values]

    def described(self, answer: Any) -> Any:
        """The action by name or number; null where a score is NaN."""
        if self.continuous:
            return [float(value) if np.isfinite(value) else None for value in answer[ACTION]]
        best = best_class(answer)
        return None if best < 0 else (self.labels[best] if self.labels else "") or best

    def line(self, answer: Any) -> str:
        """The action."""
        told = self.described(answer)
        return json.dumps(told) if self.continuous or told is None else str(told)

    def as_target(self, answer: Any) -> Any:
        """The action of the source."""
        return answer if self.continuous else best_class(answer)

    def broken(self, value: float, answers: Sequence[Any], targets: Sequence[Any]) -> str:
        """Always the same action where others were recorded, or no better than the mean."""
        if self.continuous:
            return f"r2 is {value:.3f}: no better than the mean of the actions" if value <= 0 else ""
        said = set(map(best_class, answers))
        if len(said) == 1 and len(set(targets)) > 1:
            return f"the metric is constant: every answer is action {said.pop()}, {len(set(targets))} were recorded"
        return ""


def _episodes(path: Path) -> Iterator[tuple[str, Path]]:
    """Split and file of each episode."""
    for split in ("", *SPLITS):
        home = path / split if split else path
        if home.is_dir():
            yield from ((split, file) for file in sorted(home.iterdir()) if file.suffix == ".npz")


AGREEMENT = replace(
    ACTION_AGREEMENT, statistics=lambda answer, target: ACTION_AGREEMENT.statistics(best_class(answer), target)
)


def _of_actions(metric: Metric) -> Metric:
    return replace(metric, statistics=lambda answer, target: metric.statistics(answer[ACTION], target[ACTION]))


CLOSENESS: tuple[Metric, ...] = tuple(map(_of_actions, (R2, MSE, MAE)))
