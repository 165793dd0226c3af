"""Metrics of policies."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeattn.tasks.metrics.reading import class_index, floats, number, target_class
from edgeattn.tasks.metrics.sums import ratio_metric


def _agrees(answer: Any, target: Any) -> tuple[float, float]:
    return float(class_index(answer) == target_class(target)), 1.0


ACTION_AGREEMENT = ratio_metric("action-agreement", _agrees)
"""How often the action is the expected one. Answer and target: the number of an action, from 0."""


def _return(answer: Any, _: Any) -> tuple[float, float]:
    many = isinstance(answer, (list, tuple)) or (isinstance(answer, np.ndarray) and answer.ndim > 0)
    return float(floats(answer).sum()) if many else number(answer), 1.0


MEAN_RETURN = ratio_metric("mean-return", _return, unit="")
"""The mean return of an episode. Answer: its return, or its rewards, which are summed; no target.

A NaN makes it minus infinity.
"""
