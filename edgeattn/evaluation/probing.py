"""Inputs that people meet and examples do not, replayed on an engine and held to what the source gives.

Host and device run the same comparison. What the source leaves open is no difference: NaN that it gives itself, and
entries that were found to hang on a rounding when the source was probed; both are NaN in the expected outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeattn.evaluation.replay import Record, run_record
from edgeattn.runtimes import Session
from edgeattn.runtimes.agreement import marks


@dataclass(frozen=True)
class Probe:
    """Steps of one run, from the initial states on.

    Attributes:
        graph: that it is for.
        inputs: what is unusual about its inputs, in words: "mask: every entry false".
        records: with the outputs of the source; NaN where they say nothing.
        allowed: output -> largest difference; an output without one is asked only where it is finite.
    """

    graph: str
    inputs: str
    records: Sequence[Record]
    allowed: Mapping[str, float]


@dataclass(frozen=True)
class Deviation:
    """What an artifact gave on a probe that its source does not give."""

    graph: str
    inputs: str
    output: str
    got: str  # in words
    form: bool  # whether NaN, infinities and numbers stand at other places; else numbers differ


def deviations(session: Session, probes: Sequence[Probe]) -> list[Deviation]:
    """Run every probe; each output that differs once, by its first step that does."""
    found = []
    for probe in probes:
        step = session.step(probe.graph)
        step.reset()
        seen: set[str] = set()
        for record in probe.records:
            run_record(step, record)
            for name, expected in record.outputs.items():
                if name in seen:
                    continue
                words, form = difference(expected, step.outputs[name], probe.allowed.get(name))
                if words:
                    seen.add(name)
                    found.append(Deviation(probe.graph, probe.inputs, name, words, form))
        step.reset()
    return found


def difference(expected: np.ndarray, got: np.ndarray, allowed: float | None) -> tuple[str, bool]:
    """What is wrong with an output, in words, and whether it is its form; empty where nothing is.

    Args:
        expected: of the source; NaN says nothing.
        allowed: absolute, beside values up to the largest one that is no mark; a mark is held to it in proportion.
    """
    if expected.dtype.kind != "f":
        wrong = int((expected != got).sum())
        return (
            f"{wrong} of {got.size} entries other than the source's" if wrong and allowed is not None else ""
        ), False
    known = ~np.isnan(expected)
    broken = known & ~((expected == got) | (np.isfinite(expected) & np.isfinite(got)))
    if broken.any():
        where = tuple(np.argwhere(broken)[0])
        return (
            f"{got[where]:g} at {int(broken.sum())} of {got.size} places, the first where the source gives "
            f"{expected[where]:g}"
        ), True
    both = known & np.isfinite(expected)
    if allowed is None or not both.any():
        return "", False
    error, _ = scaled_error(expected[both], got[both])
    return (f"off by {error:.2g}, allowed is {allowed:.2g}" if error > allowed else ""), False


def scaled_error(expected: np.ndarray, got: np.ndarray) -> tuple[float, float]:
    """The largest difference of two finite arrays, and the largest entry of the first that is no mark, at least 1.

    The difference at a mark of size m counts as one beside that entry: scale / m of it.
    """
    wide = expected.astype(np.float64)
    plain = ~marks(expected)
    scale = max(1.0, float(np.abs(wide[plain]).max(initial=0.0)))
    own = np.where(plain, scale, np.maximum(scale, np.abs(wide)))
    return float((np.abs(wide - got) * scale / own).max(initial=0.0)), scale
