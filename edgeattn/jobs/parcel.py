"""Samples and recorded steps as one npz, to be evaluated where a bundle runs; without pickle, and bounded."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.errors import DataError
from edgeattn.evaluation.data import ArraySample, Data, SpeechData, Utterance
from edgeattn.evaluation.probing import Probe
from edgeattn.evaluation.replay import Record

INDEX = "index"
MAX_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Steps:
    """Recorded steps of one graph; see :class:`edgeattn.pipeline.steps.baseline.Baseline`.

    Attributes:
        carried: whether they are one run with carried states, or calls of their own.
    """

    carried: bool
    records: Sequence[Record]


@dataclass(frozen=True)
class Parcel:
    """What is to be evaluated. Samples are read one at a time, so that a small device holds one in memory.

    Attributes:
        reference: what the steps were recorded on, in words.
        steps: by graph.
        probes: see :mod:`edgeattn.evaluation.probing`.
        speech, arrays: the samples of a metric; None where there is none to measure.
    """

    reference: str
    steps: Mapping[str, Steps]
    probes: Sequence[Probe] = ()
    speech: Iterator[Utterance] | None = None
    arrays: Iterator[ArraySample] | None = None


def pack(steps: Mapping[str, Steps], reference: str, data: Data | None, probes: Sequence[Probe] = ()) -> bytes:
    """One npz: arrays ``0``, ``1``, ... and ``index``, a JSON text as bytes that says what they are.

    Raises:
        DataError: for more than 256 MB.
    """
    arrays: list[np.ndarray] = []

    def add(values: Mapping[str, np.ndarray]) -> dict[str, int]:
        arrays.extend(values.values())
        return {name: number for number, name in enumerate(values, len(arrays) - len(values))}

    index: dict[str, Any] = {"reference": reference, "steps": {}}
    for graph, kept in steps.items():
        index["steps"][graph] = {
            "carried": kept.carried,
            "inputs": add(_stacked([record.inputs for record in kept.records])),
            "outputs": add(_stacked([record.outputs for record in kept.records])),
        }
    index["probes"] = [
        {
            "graph": probe.graph,
            "inputs": probe.inputs,
            "allowed": dict(probe.allowed),
            "given": add(_stacked([record.inputs for record in probe.records])),
            "outputs": add(_stacked([record.outputs for record in probe.records])),
        }
        for probe in probes
    ]
    if isinstance(data, SpeechData):
        index["speech"] = [{**add({"samples": u.samples}), "words": list(u.words)} for u in data.evaluation]
    elif data is not None:
        index["arrays"] = [{"inputs": add(s.inputs), "targets": add(s.targets)} for s in data.evaluation]
    size = sum(array.nbytes for array in arrays)
    if size > MAX_BYTES:
        raise DataError(
            f"{size / 1e6:.0f} MB of samples and recorded steps would have to be sent to the device, at most "
            f"{MAX_BYTES / 1e6:.0f} MB are: ask for fewer --samples"
        )
    buffer = io.BytesIO()
    named = {str(number): array for number, array in enumerate(arrays)}
    text = np.frombuffer(json.dumps(index).encode(), np.uint8)
    np.savez(buffer, allow_pickle=False, **named, **{INDEX: text})
    return buffer.getvalue()


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Parcel]:
    """What :func:`pack` made, while the file is open."""
    with np.load(path, allow_pickle=False) as file:
        index = json.loads(file[INDEX].tobytes())

        def named(numbers: Mapping[str, int]) -> dict[str, np.ndarray]:
            return {name: file[str(number)] for name, number in numbers.items()}

        steps = {}
        for graph, kept in index["steps"].items():
            steps[graph] = Steps(kept["carried"], _records(named(kept["inputs"]), named(kept["outputs"])))
        probes = [
            Probe(p["graph"], p["inputs"], _records(named(p["given"]), named(p["outputs"])), p["allowed"])
            for p in index["probes"]
        ]
        speech, arrays = index.get("speech"), index.get("arrays")
        yield Parcel(
            index["reference"],
            steps,
            probes,
            None if speech is None else (Utterance(file[str(u["samples"])], tuple(u["words"])) for u in speech),
            None if arrays is None else (ArraySample(named(s["inputs"]), named(s["targets"])) for s in arrays),
        )


def _records(inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> list[Record]:
    count = len(next(iter(inputs.values())))
    return [
        Record({n: a[i] for n, a in inputs.items()}, {}, {n: a[i] for n, a in outputs.items()}) for i in range(count)
    ]


def _stacked(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
