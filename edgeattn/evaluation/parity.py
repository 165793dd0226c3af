"""How far an artifact's outputs are from the float32 source's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeattn.runtimes.selftest import decibels

MAX_ABS_FP32 = 1e-4
MIN_SQNR_FP32 = 90.0  # dB
MIN_SQNR_FP16 = 50.0  # dB


@dataclass(frozen=True)
class OutputParity:
    """One output over all steps."""

    max_abs: float
    sqnr_db: float  # within +-SQNR_LIMIT; SQNR_LIMIT itself means identical


@dataclass(frozen=True)
class Parity:
    """All outputs, against ``reference``, over ``steps`` calls (with carried states where the model has them)."""

    reference: str
    steps: int
    outputs: Mapping[str, OutputParity]


class ParityMeter:
    """Accumulates the comparison step by step, in constant memory."""

    def __init__(self) -> None:
        self._signal: dict[str, float] = {}
        self._noise: dict[str, float] = {}
        self._max_abs: dict[str, float] = {}
        self._steps = 0

    def add(self, expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray]) -> None:
        """Compare one call.

        Raises:
            ValueError: if an output is missing or has another shape.
        """
        for name, reference in expected.items():
            if name not in got or got[name].shape != reference.shape:
                shape = got[name].shape if name in got else "nothing"
                raise ValueError(f"output {name!r}: expected shape {reference.shape}, got {shape}")
            want = np.asarray(reference, np.float64)
            error = np.asarray(got[name], np.float64) - want
            largest = float(np.abs(error).max(initial=0.0))
            if not math.isfinite(largest):  # NaN would lose every comparison that follows
                largest = math.inf
            self._max_abs[name] = max(self._max_abs.get(name, 0.0), largest)
            self._signal[name] = self._signal.get(name, 0.0) + float(np.square(want).sum())
            self._noise[name] = self._noise.get(name, 0.0) + float(np.square(error).sum())
        self._steps += 1

    def result(self, reference: str) -> Parity:
        """The figures so far. ``reference`` says what the expected outputs came from."""
        return Parity(
            reference,
            self._steps,
            {n: OutputParity(self._max_abs[n], decibels(self._signal[n], self._noise[n])) for n in self._max_abs},
        )


def merged_parity(parts: Mapping[str, Sequence[Parity]]) -> Parity:
    """Several graphs as one figure per output, the worst that any call of it gave.

    Args:
        parts: name of a graph, or of the graph that several sizes stand for -> its parities. Where there is more than
            one name, outputs are called ``NAME.OUTPUT``.
    """
    worst: dict[str, OutputParity] = {}
    for name, parities in parts.items():
        for parity in parities:
            for output, figures in parity.outputs.items():
                key = f"{name}.{output}" if len(parts) > 1 else output
                before = worst.get(key, figures)
                worst[key] = OutputParity(max(before.max_abs, figures.max_abs), min(before.sqnr_db, figures.sqnr_db))
    every = [parity for parities in parts.values() for parity in parities]
    return Parity(every[0].reference, sum(parity.steps for parity in every), worst)
