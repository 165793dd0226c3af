"""Golden inputs: made once from the shipped artifact, replayed on every device that it reaches.

Maker and replayer run the same loop, so what they compare is the engine and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from edgeattn.errors import BundleError, InputError
from edgeattn.printable import json_text
from edgeattn.runtimes.agreement import Agreement
from edgeattn.runtimes.engines import load
from edgeattn.runtimes.inputs import Arrays, read_input
from edgeattn.runtimes.session import Census, Session
from edgeattn.spec import GraphSpec, ModelSpec, to_json

COMPARED = 2**20  # entries at a time


@dataclass(frozen=True)
class OutputCheck:
    """How near a replayed output came to the golden one, over all steps; see :mod:`edgeattn.runtimes.agreement`."""

    sqnr_db: float  # within +-SQNR_LIMIT, which itself means equal arrays
    max_abs: float  # infinite where one holds NaN or infinity and the other does not
    passed: bool


@dataclass(frozen=True)
class SelftestResult:
    """What replaying the golden inputs gave.

    Attributes:
        bundle: what was replayed.
        backend: the engine that ran, and ``engine_version`` its version.
        steps: golden steps replayed per graph.
        min_sqnr_db: what every output had to reach.
        outputs: ``GRAPH.NAME`` -> figures.
        executed: op type -> {dtype: count}: the precision that really ran here.
        passed: whether every output did.
        load_ms: see :class:`~edgeattn.runtimes.session.Session`.
    """

    bundle: str
    backend: str
    engine_version: str
    threads: int
    steps: int
    min_sqnr_db: float
    outputs: Mapping[str, OutputCheck]
    executed: Census
    passed: bool
    load_ms: float

    @property
    def lowest_db(self) -> float:
        """The SQNR of the output that came least near."""
        return min(output.sqnr_db for output in self.outputs.values())


def run_steps(session: Session, graph: GraphSpec, inputs: Sequence[Mapping[str, np.ndarray]]) -> Arrays:
    """Run a graph step after step with carried states, from their initial values.

    Args:
        inputs: per step every input of the graph by name, states left out.

    Returns:
        every output by name (states left out), stacked: first axis = step.

    Raises:
        InputError: for missing inputs, wrong shapes or dtypes, or no step at all.
    """
    if not inputs:
        raise InputError(f"graph {graph.name!r}: no steps to run")
    step = session.step(graph.name)
    collected: dict[str, list[np.ndarray]] = {tensor.name: [] for tensor in graph.outputs}
    for values in inputs:
        for tensor in graph.inputs:
            if tensor.name not in values:
                raise InputError(f"graph {graph.name!r} needs input {tensor.name!r}; given: {', '.join(values)}")
            np.copyto(step.inputs[tensor.name], tensor.check(read_input(tensor, values[tensor.name])))
        step.run()
        for name, arrays in collected.items():
            arrays.append(step.outputs[name].copy())
    return {name: np.stack(arrays) for name, arrays in collected.items()}


def make_golden(session: Session, inputs: Mapping[str, Sequence[Mapping[str, np.ndarray]]]) -> Arrays:
    """The arrays of ``golden.npz``: ``GRAPH.in.NAME`` and ``GRAPH.out.NAME``, first axis = step.

    Args:
        session: the artifact as it ships.
        inputs: graph -> steps, as :func:`run_steps` takes them.
    """
    golden: Arrays = {}
    for name, steps in inputs.items():
        graph = session.spec.graph(name)
        outputs = run_steps(session, graph, steps)
        for tensor in graph.inputs:
            golden[f"{name}.in.{tensor.name}"] = np.stack([values[tensor.name] for values in steps])
        golden |= {f"{name}.out.{output}": array for output, array in outputs.items()}
    return golden


class Steps(Protocol):
    """An array whose first axis is the step, in memory or read as it is asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """First the number of steps."""

    @property
    def dtype(self) -> np.dtype:
        """Of all of it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> np.ndarray: ...


def replay_golden(session: Session, golden: Mapping[str, Steps], min_sqnr_db: float) -> dict[str, OutputCheck]:
    """Run the golden inputs and compare: ``GRAPH.NAME`` -> figures. One step of one graph is in memory at a time.

    Raises:
        BundleError: if the arrays do not fit the session's graphs.
    """
    checks = {}
    for graph in session.spec.graphs:
        if not any(key.startswith(f"{graph.name}.in.") for key in golden):
            continue
        for name, found in _replay(session, graph, golden).items():
            ratio = found.sqnr_db()
            checks[f"{graph.name}.{name}"] = OutputCheck(ratio, found.max_abs(), ratio >= min_sqnr_db)
    if not checks:
        raise BundleError(f"golden inputs fit no graph of model {session.spec.name!r}; convert it again")
    return checks


def _replay(session: Session, graph: GraphSpec, golden: Mapping[str, Steps]) -> dict[str, Agreement]:
    count = _count_steps(session.spec, graph, golden)
    step = session.step(graph.name)
    compared = {tensor.name: Agreement() for tensor in graph.outputs}
    for index in range(count):
        for tensor in graph.inputs:
            np.copyto(step.inputs[tensor.name], golden[f"{graph.name}.in.{tensor.name}"][index])
        step.run()
        for name, agreement in compared.items():
            expected, got = golden[f"{graph.name}.out.{name}"][index].reshape(-1), step.outputs[name].reshape(-1)
            for start in range(0, len(expected), COMPARED):  # in float64, which takes more room than the arrays
                agreement.add(expected[start : start + COMPARED], got[start : start + COMPARED])
    return compared


def selftest(path: Path | str, backend: str | None = None, threads: int = 1) -> SelftestResult:
    """Verify a bundle, load it, replay its golden inputs, and tell what precision was executed.

    Needs numpy and the engine alone; beside what the engine takes, memory for the tensors of one graph twice (at most
    1 GiB each time, see docs/bundle.md), however many steps there are. Arguments and errors: see
    :func:`edgeattn.runtimes.load`; a bundle without golden inputs is a BundleError. A replay that differs is a result
    (``passed`` is false), not an error.
    """
    from edgeattn.bundle import open_bundle, read_golden

    with open_bundle(path) as bundle, read_golden(bundle) as golden, load(path, backend, threads) as session:
        facts = bundle.manifest.golden
        assert facts is not None, "read_golden raises without one"
        outputs = replay_golden(session, golden, facts.min_sqnr_db)
        return SelftestResult(
            bundle=str(path),
            backend=session.backend,
            engine_version=session.engine_version,
            threads=threads,
            steps=facts.steps,
            min_sqnr_db=facts.min_sqnr_db,
            outputs=outputs,
            executed=session.executed(),
            passed=all(check.passed for check in outputs.values()),
            load_ms=session.load_ms,
        )


def as_lines(result: SelftestResult) -> str:
    """What people read of a replay: a line per output, and one of the engine."""
    lines = [
        f"{'ok' if output.passed else 'FAILED':6s} {name}: {output.sqnr_db:.1f} dB"
        for name, output in result.outputs.items()
    ]
    return "\n".join([*lines, f"{result.backend} {result.engine_version}: {'passed' if result.passed else 'FAILED'}"])


def as_json_text(result: SelftestResult) -> str:
    """What programs read of it: one JSON object."""
    return json_text({"schema": 1, **to_json(result)})


def _count_steps(spec: ModelSpec, graph: GraphSpec, golden: Mapping[str, Steps]) -> int:
    wanted = {f"{graph.name}.in.{tensor.name}": tensor for tensor in graph.inputs}
    wanted |= {f"{graph.name}.out.{tensor.name}": tensor for tensor in graph.outputs}
    counts = set()
    for key, tensor in wanted.items():
        array = golden.get(key)
        if array is None or tuple(array.shape[1:]) != tensor.shape or array.dtype != tensor.dtype:
            found = "missing" if array is None else f"{array.dtype}{list(array.shape)}"
            raise BundleError(f"golden array {key!r} of model {spec.name!r} is {found}; convert the model again")
        counts.add(len(array))
    if len(counts) != 1:
        raise BundleError(f"golden arrays of graph {graph.name!r} differ in their number of steps; convert it again")
    return counts.pop()
