"""``--metric``: another metric of the task's, or a function of the user's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import numpy as np

from edgeattn.errors import DataError, InputError, unknown_name
from edgeattn.evaluation.arrays import ArrayData
from edgeattn.evaluation.data import Data
from edgeattn.evaluation.task_data import TaskData
from edgeattn.printable import excerpt
from edgeattn.sources.code import load_function
from edgeattn.sources.tasks import as_task_data
from edgeattn.spec import ModelSpec
from edgeattn.tasks import Described, Metric
from edgeattn.tasks.anything import Anything
from edgeattn.tasks.metric import Statistics

DIRECTION = "higher_is_better"


def with_metric(data: Data, spec: ModelSpec, reference: str) -> TaskData:
    """Data that is measured by another metric than the first of its task.

    Args:
        spec: of the model that the data is for.
        reference: one of the task's metrics by name; or ``file.py:function``, which is given the answer to a sample and
            its target (for arrays: those of the outputs and those called ``target_NAME``, by name) and returns a
            number, or a dict of them, of which the first gates. Its attribute ``higher_is_better`` tells the direction.

    Raises:
        InputError: for an unknown name, a function that cannot be loaded or does not say which way is better.
        DataError: for recordings of a stream, which word error alone is measured on; and while it is measured, for a
            function that raises, or returns something else.
    """
    if isinstance(data, ArrayData):
        data = as_task_data(data, Anything.fitted(Described(spec=spec)))
    if not isinstance(data, TaskData):
        raise DataError(f"{data.origin}: --metric is for tasks (edgeattn tasks); a stream of speech has word error")
    if ".py" not in reference:
        known = {metric.name: metric for metric in data.task.metrics}
        if reference not in known:
            raise InputError(f"--metric: {unknown_name('metric', reference, known)}, or file.py:function")
        first = known.pop(reference)
        return replace(data, metrics=(first, *known.values()))
    function = load_function(reference)
    better = getattr(function, DIRECTION, None)
    if not isinstance(better, bool):
        name = reference.rpartition(":")[2]
        raise InputError(f"--metric {reference}: say which way is better: {name}.{DIRECTION} = True, or False")
    return replace(data, metrics=(_Users(reference, function).metric(better),))


@dataclass
class _Users:
    """A function of the user's as a metric: the mean of what it returns.

    Attributes:
        names: of what it returns, as the first call gave them.
    """

    reference: str
    function: Callable[..., Any]
    names: list[str] = field(default_factory=list)

    def metric(self, higher_is_better: bool) -> Metric:
        name = self.reference.rpartition(":")[2]
        return Metric(
            name=name, higher_is_better=higher_is_better, unit="", statistics=self._numbers, value=_mean_of_first
        )

    def _numbers(self, answer: Any, target: Any) -> np.ndarray:
        found = self.function(answer, target)
        named = found if isinstance(found, Mapping) else {"": found}
        self.names = self.names or [str(name) for name in named]
        numbers = []
        for name in self.names:
            value = named.get(name)
            if not isinstance(value, Real) or not math.isfinite(float(value)):
                what = f"a finite number for {name!r}" if name else "a finite number, or a dict of them"
                raise DataError(f"--metric {self.reference}: expected {what}, got {excerpt(value)}")
            numbers.append(float(value))
        if not numbers:
            raise DataError(f"--metric {self.reference}: expected a number, or a dict of them, got {excerpt(found)}")
        return np.array(numbers)


def _mean_of_first(statistics: Statistics) -> float:
    return float(np.mean([row[0] for row in statistics]))
