"""Numbers out of numbers: the next rows of a series, or a value per row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgeattn.errors import DataError
from edgeattn.spec import ModelSpec
from edgeattn.tasks.columns import SUFFIXES, Columns, columns_of, numbers_of, read_numbers
from edgeattn.tasks.metric import Metric
from edgeattn.tasks.metrics.regression import MAE, MSE, R2
from edgeattn.tasks.tables import is_table
from edgeattn.tasks.task import Arrays, Assets, Described, Encoded, Sample, Task

if TYPE_CHECKING:
    from typing_extensions import Self

VALUES = "values"
TRAIN, VALID = 0.7, 0.8  # ends of the parts of a series without splits: the last fifth is measured
TOLD = 8  # values in one line


@dataclass(frozen=True, kw_only=True)
class Regression(Task):
    """A value, or several, per row of features.

    Attributes:
        input: that takes the features, float, shape [1, features] or [1, rows, columns].
        shape: of it.
        output: that holds the values.
        columns: of the table.
    """

    name: ClassVar[str] = "regression"
    summary: ClassVar[str] = "a value per row of numbers"
    forms: ClassVar[str] = "a table (.csv, .tsv) of numbers with a header, or a directory with one per split"
    measured: ClassVar[tuple[str, ...]] = ("r2", "mse", "mae")
    model_tasks: ClassVar[tuple[str, ...]] = ("regression", "tabular-regression")

    input: str
    shape: tuple[int, ...]
    output: str
    columns: Columns

    @classmethod
    def fitted(cls, model: Described) -> Self:
        """See :class:`~edgeattn.tasks.task.Task`."""
        taken, given = model.graph.inputs, model.graph.outputs
        fits = len(taken) == len(given) == 1 and taken[0].dtype[:5] == given[0].dtype[:5] == "float"
        if not fits or len(taken[0].shape) != 2 or taken[0].shape[0] != 1 or not 1 <= len(given[0].shape) <= 2:
            raise DataError(
                f"expected features, float [1, features], and values, float [1, n]; this model {model.told}"
            )
        columns = columns_of(model.processor, taken[0].shape[1], int(np.prod(given[0].shape)), apart=True)
        return cls(input=taken[0].name, shape=tuple(taken[0].shape), output=given[0].name, columns=columns)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A table, or a directory of tables."""
        return is_table(path, SUFFIXES)

    def read(self, path: Path, assets: Assets) -> Sequence[Sample]:
        """Rows; one without a value has no label, one without a feature is refused."""
        table = read_numbers(path, self.columns)
        targets = self.columns.standardised_targets(table.targets)
        lost = np.flatnonzero(np.isnan(table.inputs).any(axis=1))
        if lost.size:
            raise DataError(f"{table.places[lost[0]]}: expected a number for each feature, got an empty cell")
        return [
            Sample(
                given=row,
                target=None if np.isnan(target).all() else {VALUES: target},
                split=split,
                place=place,
                key=(row.tobytes(), target.tobytes()),
            )
            for row, target, split, place in zip(table.inputs, targets, table.splits, table.places, strict=True)
        ]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Coefficient of determination; mean squared and mean absolute error beside it."""
        return METRICS

    def parsed(self, text: str) -> np.ndarray:
        """Numbers separated by commas."""
        return numbers_of(text.split(","), self.columns.taken)

    def encoder(self, spec: ModelSpec, assets: Assets) -> Callable[[Any], Encoded]:
        """Numbers in the table's units, shape of the input without its first axis."""
        (taken,) = next(iter(spec.units().values()))[-1].inputs

        def encoded(given: Any) -> Encoded:
            values = np.asarray(given, np.float64)
            if values.shape != self.shape[1:] or not np.isfinite(values).all():
                raise DataError(f"expected finite numbers of shape {list(self.shape[1:])}, got {list(values.shape)}")
            made = self.columns.standardised(values).astype(taken.dtype)
            return Encoded(calls=({self.input: made[None]},))

        return encoded

    def array_targets(self, target: Any, encoded: Encoded) -> tuple[Arrays, ...]:
        """See :class:`~edgeattn.tasks.task.Task`."""
        return ({self.output: target[VALUES][None].astype(np.float32)},) if target is not None else ({},)

    def answer(self, outputs: Sequence[Arrays], facts: Mapping[str, Any]) -> Arrays:
        """Values as the model gives them: standardised where it was trained so."""
        return {VALUES: np.asarray(outputs[0][self.output], np.float64).reshape(-1, self.columns.given)[0]}

    def described(self, answer: Any) -> Any:
        """The values in the table's units; null for what is no number."""
        values = self.columns.in_units(np.asarray(answer[VALUES]))
        return [None if not np.isfinite(value) else float(value) for value in values.ravel()]

    def line(self, answer: Any) -> str:
        """The first values."""
        told = self.described(answer)
        more = f" ... ({len(told)} in all)" if len(told) > TOLD else ""
        return " ".join("nan" if value is None else f"{value:.6g}" for value in told[:TOLD]) + more

    def broken(self, value: float, answers: Sequence[Any], targets: Sequence[Any]) -> str:
        """Nothing is explained."""
        return f"r2 is {value:.3f}: no better than the mean of the targets" if value <= 0 else ""


@dataclass(frozen=True, kw_only=True)
class Forecasting(Regression):
    """The next rows of a series, from the last ones.

    Attributes:
        horizon: rows that are forecast.
    """

    name: ClassVar[str] = "forecasting"
    summary: ClassVar[str] = "the next rows of a series of numbers"
    forms: ClassVar[str] = "a table (.csv, .tsv) of numbers with a header, a row per time, or a directory of such"
    model_tasks: ClassVar[tuple[str, ...]] = ("forecasting", "time-series-prediction", "time-series-forecasting")

    horizon: int

    @classmethod
    def fitted(cls, model: Described) -> Self:
        """See :class:`~edgeattn.tasks.task.Task`."""
        taken, given = model.graph.inputs, model.graph.outputs
        fits = len(taken) == len(given) == 1 and taken[0].dtype[:5] == given[0].dtype[:5] == "float"
        shape, out = (taken[0].shape, given[0].shape) if fits else ((), ())
        if len(shape) != 3 or shape[0] != 1 or len(out) not in (2, 3) or out[0] != 1:
            raise DataError(
                "expected the last rows, float [1, rows, columns], and the next ones, float [1, horizon, columns] or "
                f"[1, horizon]; this model {model.told}"
            )
        columns = columns_of(model.processor, shape[2], out[2] if len(out) == 3 else 1, apart=False)
        return cls(input=taken[0].name, shape=tuple(shape), output=given[0].name, columns=columns, horizon=int(out[1]))

    def read(self, path: Path, assets: Assets) -> Sequence[Sample]:
        """All windows of the input's and the horizon's length whose inputs are whole.

        Without splits the first 70 % of the rows are ``train``, the next 10 % ``valid``, the last 20 % ``test``. What a
        window forecasts lies in one part; what it sees may begin in the part before.
        """
        table = read_numbers(path, self.columns)
        rows, past = len(table.inputs), self.shape[1]
        splits: Sequence[str] = table.splits
        if not any(splits):
            ends = (int(TRAIN * rows), int(VALID * rows))
            splits = ["train" if row < ends[0] else "valid" if row < ends[1] else "test" for row in range(rows)]
        if rows < past + self.horizon:
            raise DataError(f"{path}: expected at least {past + self.horizon} rows for one window, got {rows}")
        targets = self.columns.standardised_targets(table.targets)
        whole = np.isfinite(table.inputs).all(axis=1)
        samples = []
        for start in range(rows - past - self.horizon + 1):
            now, end = start + past, start + past + self.horizon
            if splits[now] == splits[end - 1] and whole[start:now].all() and not np.isnan(targets[now:end]).all():
                samples.append(
                    Sample(
                        given=table.inputs[start:now],
                        target={VALUES: targets[now:end]},
                        split=splits[now],
                        place=table.places[now],
                        key=start,
                    )
                )
        return samples

    def parsed(self, text: str) -> np.ndarray:
        """The last rows of a table."""
        table = read_numbers(Path(text), self.columns)
        if len(table.inputs) < self.shape[1]:
            raise DataError(f"{text}: expected at least {self.shape[1]} rows, got {len(table.inputs)}")
        return table.inputs[-self.shape[1] :]

    def answer(self, outputs: Sequence[Arrays], facts: Mapping[str, Any]) -> Arrays:
        """The rows as the model gives them: standardised where it was trained so."""
        values = np.asarray(outputs[0][self.output], np.float64)
        return {VALUES: values.reshape(self.horizon, self.columns.given)}

    def described(self, answer: Any) -> Any:
        """The rows in the table's units; null for what is no number."""
        rows = self.columns.in_units(np.asarray(answer[VALUES]))
        return [[None if not np.isfinite(value) else float(value) for value in row] for row in rows]

    def line(self, answer: Any) -> str:
        """The first of the next rows."""
        row = self.described(answer)[0]
        told = " ".join("nan" if value is None else f"{value:.6g}" for value in row[:TOLD])
        return f"{told} ... ({self.horizon} rows)" if self.horizon > 1 else told

    def array_targets(self, target: Any, encoded: Encoded) -> tuple[Arrays, ...]:
        """None: outputs may lack the axis of one column."""
        return ({},)


def _of_values(metric: Metric) -> Metric:
    return replace(metric, statistics=lambda answer, target: metric.statistics(answer[VALUES], target[VALUES]))


METRICS: tuple[Metric, ...] = tuple(map(_of_values, (R2, MSE, MAE)))
"""Of answers and targets ``{"values": ...}``: arrays travel to a device by name."""
