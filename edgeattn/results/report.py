"""Results: the objects behind ``--json``, and the tables that people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edgeattn.errors import exit_code_of
from edgeattn.evaluation.accuracy import Accuracy
from edgeattn.evaluation.parity import OutputParity, Parity
from edgeattn.profiling.figures import Board, Energy, Kind, Latency, Memory, Realtime
from edgeattn.progress import Phase
from edgeattn.results.gates import Failure
from edgeattn.results.verdicts import Judgement, Verdict, failed, overall
from edgeattn.spec import ModelSpec, to_json

SCHEMA = 1
NOT_MEASURED = 5  # exit code: nothing failed, and a gate that a flag asked for could not be judged here


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A precision that was tried.

    Attributes:
        accuracy: the metric in percent.
        why: the reason it was kept or not.
        recipe: how it was made: a recipe of an engine, or one made of it by search or recovery.
        drop: points lost against the source; ``drop_upper`` with 95 % confidence at most.
    """

    precision: str
    latency_ms: float | None
    accuracy: float | None
    size_bytes: int | None
    kept: bool
    why: str
    scheme: str = ""
    drop: float | None = None
    drop_upper: float | None = None


@dataclass(frozen=True, kw_only=True)
class Precision:
    """What was asked, what ships, what the engine executes (op type -> dtype -> count).

    Attributes:
        tried_on: where the candidates were measured when the bundle was made; None where this very run measured them.
    """

    asked: str
    shipped: str
    executed: Mapping[str, Mapping[str, int]] | None = None
    candidates: tuple[Candidate, ...] = ()
    tried_on: str | None = None


@dataclass(frozen=True, kw_only=True)
class GraphResult:
    """One graph of a bundle that has several, or one size of a graph.

    Attributes:
        sizes: dimension -> size; empty for a graph that stands in one size.
        p50_ms: of one call, None where this host cannot tell.
    """

    name: str
    sizes: Mapping[str, int]
    parity: Mapping[str, OutputParity] | None
    p50_ms: float | None


@dataclass(frozen=True)
class Pruning:
    """What was pruned before anything else, and what came of it.

    Attributes:
        facts: plain JSON: what was asked and removed, the time foreseen and measured, the metric, the training.
        failures: of what was asked for.
        gates: of what was asked for and did not fail.
    """

    facts: Mapping[str, Any]
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()
    gates: tuple[Judgement, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Result:
    """One bundle on one device. An absent figure is None, never 0.

    Attributes:
        passed: whether all that matters was judged and nothing failed; see :attr:`verdict`.
        failures: the gates that failed.
        buckets: every size of every graph that stands in several.
        graphs: the other graphs, where there is more than one in all.
        preflight: what was foreseen before anything was converted, as plain JSON objects.
        pruning: see :class:`Pruning`; None where nothing was asked to be removed.
        estimate: a latency that nobody measured, a range with its kind; None where there is a measurement.
        kind: where its time comes from, as ``latency.kind``; "emulated" without a latency: the processor was emulated,
            so that outputs and precisions are told and no figure of time is. None where nothing was to be timed.
        board: how a Jetson was set while it was measured; None elsewhere.
        error: class and message of what stopped this target while others went on; None where it was served.
        benchmark: what LiteRT's own tool measured on a device without a Python, in its own figures; no latency then.
        gates: what became of each gate, those among them that nobody could judge.
    """

    target: str
    device: str
    backend: str
    bundle: str | None = None
    passed: bool = False
    failures: tuple[Failure, ...] = ()
    precision: Precision
    size_bytes: int | None = None
    source_size_bytes: int | None = None
    parity: Parity | None = None
    accuracy: Accuracy | None = None
    latency: Latency | None = None
    realtime: Realtime | None = None
    memory: Memory | None = None
    build: Mapping[str, Any] | None = None
    seconds: float | None = None
    notes: tuple[str, ...] = ()
    buckets: tuple[GraphResult, ...] = ()
    graphs: tuple[GraphResult, ...] = ()
    preflight: tuple[Mapping[str, Any], ...] = ()
    pruning: Mapping[str, Any] | None = None
    estimate: Mapping[str, Any] | None = None
    energy: Energy | None = None
    kind: Kind | None = None
    benchmark: Mapping[str, Any] | None = None
    board: Board | None = None
    error: Mapping[str, str] | None = None
    gates: tuple[Judgement, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Failed if a gate did, passed if all that matters was judged, else not measured."""
        if self.failures:
            return "failed"
        return "passed" if self.passed else "not measured"


def with_gates(result: Result, gates: Sequence[Judgement]) -> Result:
    """The result with more gates, and with what they make of it."""
    every = (*result.gates, *gates)
    failures = tuple(dict.fromkeys((*result.failures, *failed(gates))))
    passed = not failures and overall(every) == "passed"
    return replace(result, gates=every, failures=failures, passed=passed)


@dataclass(frozen=True)
class Report:
    """The ``--json`` object of convert, check and profile.

    Attributes:
        phases: where the time went, the slowest first; empty where nobody took it.
    """

    model: Mapping[str, Any]
    results: tuple[Result, ...]
    schema: int = field(default=SCHEMA)
    phases: tuple[Phase, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every gate of every result passed."""
        return all(result.passed for result in self.results)

    @property
    def failed(self) -> bool:
        """Whether a gate of a result failed."""
        return any(result.verdict == "failed" for result in self.results)

    @property
    def unjudged(self) -> tuple[Judgement, ...]:
        """Gates that the user asked for and nobody could judge."""
        every = (gate for result in self.results for gate in result.gates)
        return tuple(gate for gate in every if gate.verdict == "not measured" and gate.asked == "flag")

    @property
    def exit_code(self) -> int:
        """Of a command: the highest code of the errors that stopped targets, else 1 if a gate failed.

        Else :data:`NOT_MEASURED` if one that the user asked for could not be judged here, else 0.
        """
        stopped = [exit_code_of(result.error) for result in self.results if result.error is not None]
        fallback = 1 if self.failed else NOT_MEASURED if self.unjudged else 0
        return max(stopped, default=fallback)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        results = [{**to_json(result), "verdict": result.verdict} for result in self.results]
        told = {"schema": self.schema, "model": to_json(self.model), "results": results}
        return {**told, "phases": to_json(self.phases)} if self.phases else told


def joined(reports: Sequence[Report], order: Sequence[str]) -> Report:
    """Reports of one model in several sets of sizes as one.

    Args:
        order: names of targets, in which the results stand.
    """
    model = dict(reports[0].model)
    model["graphs"] = list(dict.fromkeys(name for report in reports for name in report.model["graphs"]))
    model["buckets"] = {
        name: list(dict.fromkeys(graph for report in reports for graph in report.model["buckets"].get(name, ())))
        for name in dict.fromkeys(name for report in reports for name in report.model["buckets"])
    }
    results = sorted((r for report in reports for r in report.results), key=lambda result: order.index(result.target))
    return Report(model, tuple(results))


def graph_results(
    spec: ModelSpec, parities: Mapping[str, Parity], latency: Latency | None
) -> tuple[tuple[GraphResult, ...], tuple[GraphResult, ...]]:
    """What the graphs of a model gave, as ``buckets`` and ``graphs`` of a :class:`Result`."""
    if len(spec.graphs) == 1 and not spec.buckets:
        return (), ()
    times = (latency.graphs if latency is not None else None) or {}
    sizes = {name: bucket.sizes(spec.graph(name)) for bucket in spec.buckets for name in bucket.graphs}
    rows = [
        GraphResult(
            name=graph.name,
            sizes=sizes.get(graph.name, {}),
            parity=parities[graph.name].outputs if graph.name in parities else None,
            p50_ms=times[graph.name].p50_ms if graph.name in times else _only(spec, latency),
        )
        for graph in spec.graphs
    ]
    return tuple(row for row in rows if row.sizes), tuple(row for row in rows if not row.sizes)


def _only(spec: ModelSpec, latency: Latency | None) -> float | None:
    return latency.p50_ms if latency is not None and len(spec.graphs) == 1 else None
