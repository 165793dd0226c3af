"""Samples and recorded steps as one npz, to be evaluated where a bundle runs; without pickle, and bounded."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.errors import DataError
from edgeattn.evaluation.data import Data, Packed
from edgeattn.evaluation.kinds import KINDS
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
        data: what scores the samples of a metric, without samples of its own; None where there is none to measure.
        samples: of that kind.
    """

    reference: str
    steps: Mapping[str, Steps]
    probes: Sequence[Probe] = ()
    data: Data | None = None
    samples: Iterable[Any] = ()


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
    if data is not None:
        index["data"] = {"kind": data.kind, "about": dict(data.about())}
        index["samples"] = [
            {"arrays": {group: add(own) for group, own in packed.arrays.items()}, "facts": packed.facts}
            for packed in map(data.pack, data.evaluation)
        ]
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

        def samples(kind: Data) -> Iterator[Any]:
            for row in index["samples"]:
                arrays = {group: named(numbers) for group, numbers in row["arrays"].items()}
                yield kind.unpack(Packed(arrays, row["facts"]))

        data = None
        if "data" in index:
            data = KINDS[index["data"]["kind"]].scorer(index["data"]["about"])
        yield Parcel(index["reference"], steps, probes, data, () if data is None else samples(data))


def _records(inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> list[Record]:
    count = len(next(iter(inputs.values())))
    return [
        Record({n: a[i] for n, a in inputs.items()}, {}, {n: a[i] for n, a in outputs.items()}) for i in range(count)
    ]


def _stacked(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
