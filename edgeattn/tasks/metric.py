"""A metric: what one sample says, and what all of them say together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Statistics = Sequence[np.ndarray] | np.ndarray
"""Those of each sample; as one array, its first axis counts the samples."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric of answers against targets.

    What a sample says is kept apart from what all of them make of it, so that an interval can leave samples out.

    Attributes:
        name: as the field calls it, in lower case with hyphens: ``macro-f1``.
        higher_is_better: else lower is.
        unit: "%" for a fraction that is told in percent, "dB", or "" for a plain number.
        statistics: of an answer and its target: float64, of any shape that ``value`` takes; counts where they will do.
        value: of the statistics of all samples, at least one: as a fraction for "%". Where it is undefined, for lack of
            what it needs among the targets, it raises DataError; it is never NaN. Samples may come as one array whose
            first axis counts them, where their statistics have one shape: it is quicker, and the same.
        summed: ``value`` sees the sum of the statistics alone: ``value(all) == value([sum of all])``. They are then
            finite and of one shape, and a sample is left out by subtraction.
    """

    name: str
    higher_is_better: bool = True
    unit: str = "%"
    statistics: Callable[[Any, Any], np.ndarray]
    value: Callable[[Statistics], float]
    summed: bool = False
