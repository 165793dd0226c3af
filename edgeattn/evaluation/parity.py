"""How far an artifact's outputs are from the float32 source's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeattn.runtimes.agreement import Agreement

MAX_ABS_FP32 = 1e-4  # between two ways to compute a float32 model; a source's are allowed it of their largest value
MIN_SQNR_FP32 = 90.0  # dB
MIN_SQNR_FP16 = 50.0  # dB
MIN_SQNR_NEAR = 40.0  # dB, of a float32 output within MAX_ABS_FP32
ROUNDING_FP32 = 1e-6  # some roundings of float32 values near 1, below which no ratio says anything
RECORDED_DB = 10.0  # between two measurements of one quantized bundle, on other samples or another processor


@dataclass(frozen=True)
class OutputParity:
    """One output over all steps, by the rules of :mod:`edgeattn.runtimes.agreement`."""

    max_abs: float
    sqnr_db: float  # within +-SQNR_LIMIT; SQNR_LIMIT itself means identical
    left_out: float = 0.0  # share of entries that are marks (hidden, padded) in both, and say nothing of the weights


@dataclass(frozen=True)
class Parity:
    """All outputs, against ``reference``, over ``steps`` calls (with carried states where the model has them)."""

    reference: str
    steps: int
    outputs: Mapping[str, OutputParity]


class ParityMeter:
    """Accumulates the comparison step by step, in constant memory."""

    def __init__(self) -> None:
        self._outputs: dict[str, Agreement] = {}
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
            self._outputs.setdefault(name, Agreement()).add(reference, got[name])
        self._steps += 1

    def result(self, reference: str) -> Parity:
        """The figures so far. ``reference`` says what the expected outputs came from."""
        figures = {
            name: OutputParity(found.max_abs(), found.sqnr_db(), found.left_out())
            for name, found in self._outputs.items()
        }
        return Parity(reference, self._steps, figures)


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
                worst[key] = OutputParity(
                    max(before.max_abs, figures.max_abs),
                    min(before.sqnr_db, figures.sqnr_db),
                    max(before.left_out, figures.left_out),
                )
    every = [parity for parities in parts.values() for parity in parities]
    return Parity(every[0].reference, sum(parity.steps for parity in every), worst)
