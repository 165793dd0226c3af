"""The tables that people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeattn.evaluation.accuracy import PERCENT, told_text
from edgeattn.evaluation.parity import OutputParity, Parity
from edgeattn.printable import one_line
from edgeattn.results.grid import ABSENT, Column, Grid, Row
from edgeattn.results.report import GraphResult, Result
from edgeattn.results.verdicts import Verdict

LONGEST_REASON = 1_000  # characters; a bundle may hold any text
NEARLY_ALL = 0.99  # of an output, beyond which what is left is little to judge by
COLUMNS = (
    *(Column(name=name) for name in ("target", "engine", "precision")),
    Column(name="size", right=True),
    *(Column(name=name) for name in ("parity", "metric")),
    *(Column(name=name, right=True) for name in ("p50 / p99", "RTF", "late")),
    *(Column(name=name) for name in ("measured on", "verdict")),
)
VERDICTS: Mapping[Verdict, tuple[str, str]] = {
    "passed": ("passed", "green"),
    "failed": ("FAILED", "red"),
    "not measured": ("not measured", "yellow"),
}
"""Verdict -> its words in a table, and their style."""
TOLD = ("hashes", "golden", "adversarial")  # gates that are told although they passed


def table(results: Sequence[Result]) -> Grid:
    """The results, each followed by its parts."""
    rows = []
    for result in results:
        words, style = VERDICTS[result.verdict]
        rows.append(Row(cells=(*_cells(result), words), styles={"verdict": style}))
        rows += [Row(cells=_part_cells(part), part=True) for part in (*result.buckets, *result.graphs)]
    return Grid(columns=COLUMNS, rows=tuple(rows), heading=("target", "verdict"), caption=_caption(results))


def candidate_table(results: Sequence[Result]) -> Grid:
    """Every candidate of every target: what it gave, and why it ships or not.

    Of a bundle that exists they are what its conversion saw: the heading says so, and on which device that was.
    """
    then = dict.fromkeys(result.precision.tried_on for result in results if result.precision.candidates)
    title = "candidates"
    if None not in then:
        title = f"candidates at conversion, measured then on {' and '.join(map(str, then))}; none of it is of this run"
    rows = []
    for result in results:
        for row in result.precision.candidates:
            lost = ABSENT
            if row.drop is not None and row.drop_upper is not None:
                lost = f"{row.drop:+.2f} ({row.drop_upper:+.2f})"
            cells = (
                result.target,
                row.scheme or row.precision,
                ABSENT if row.latency_ms is None else f"{row.latency_ms:.2f}",
                ABSENT if row.accuracy is None else told_text(row.accuracy, _unit(result)),
                lost,
                ABSENT if row.size_bytes is None else f"{row.size_bytes / 1e6:.2f} MB",
                "yes" if row.kept else "",
                one_line(row.why, LONGEST_REASON),
            )
            rows.append(Row(cells=cells, style="bold" if row.kept else ""))
    columns = (
        *(Column(name=name) for name in ("target", "candidate")),
        *(Column(name=name, right=True) for name in ("ms", "metric", "lost (at most)", "size")),
        Column(name="ships"),
        Column(name="why", prose=True),
    )
    return Grid(columns=columns, rows=tuple(rows), grouped=True, title=title)


def pruning_table(results: Sequence[Result]) -> Grid:
    """What was removed for each target, and the time and the metric before and after."""
    rows = []
    for result in results:
        facts = result.pruning
        if facts is None:
            continue
        score, parameters = facts.get("score"), facts["parameters"]
        ms = ABSENT if facts["pruned_ms"] is None else f"{facts['unpruned_ms']:.2f} -> {facts['pruned_ms']:.2f} ms"
        cells = (
            result.target,
            facts["asked"],
            kept_text(facts),
            f"{parameters['original'] / 1e6:.2f} -> {parameters['pruned'] / 1e6:.2f} M",
            _times(facts["predicted_speedup"], f"\n{facts['kind']}"),
            _times(facts["speedup"], f"\n{ms}"),
            _times(facts.get("shipped_speedup")),
            ABSENT if score is None else _score_text(score),
        )
        rows.append(Row(cells=cells))
    columns = (
        *(Column(name=name) for name in ("target", "asked", "kept")),
        *(Column(name=name, right=True) for name in ("parameters", "foreseen", "measured", "with quantization")),
        Column(name="metric"),
    )
    return Grid(columns=columns, rows=tuple(rows), title="pruning")


def _score_text(score: Mapping[str, Any]) -> str:
    after = told_text(score["pruned"], score.get("unit", PERCENT))
    return f"{score['metric']} {score['original']:.2f} -> {after}"


def kept_text(facts: Mapping[str, Any]) -> str:
    """What stayed of each kind: ``heads 18 of 24, neurons 900 of 1536, layers 4 of 6``."""
    words = []
    for kind, name in (("attention", "heads"), ("feedforward", "neurons")):
        rows = [row for row in facts.get("units", ()) if row["kind"] == kind]
        if rows:
            words.append(f"{name} {sum(r['kept'] for r in rows)} of {sum(r['groups'] for r in rows)}")
    stacks = facts.get("layers", {}).values()
    if stacks:
        words.append(f"layers {sum(len(s['kept']) for s in stacks)} of {sum(s['layers'] for s in stacks)}")
    return "\n".join(words)


def _times(value: float | None, more: str = "") -> str:
    return ABSENT if value is None else f"{value:.2f}x{more}"


def _cells(result: Result) -> tuple[str, ...]:
    latency, realtime = result.latency, result.realtime
    timing = ABSENT
    if latency is not None:
        mark = "" if latency.kind == "measured" else f"\n{latency.kind}"
        timing = f"{latency.p50_ms:.2f} / {latency.p99_ms:.2f} ms{mark}"
    elif result.estimate is not None:
        timing = f"{result.estimate['low_ms']:.3g} to {result.estimate['high_ms']:.3g} ms\n{result.estimate['kind']}"
        if result.estimate["fits"] is False:
            timing += "\nmemory too small"
    elif result.benchmark is not None:
        timing = f"mean {result.benchmark['mean_ms']:.2f} ms\n{result.benchmark['tool']}"
    elif result.kind is not None:
        timing = f"{ABSENT}\n{result.kind}"
    return (
        result.target,
        result.backend,
        result.precision.shipped,
        _size(result),
        _parity(result.parity),
        _metric(result),
        timing,
        ABSENT if realtime is None else f"{realtime.rtf:.4f}",
        ABSENT if realtime is None or realtime.misses is None else f"{realtime.misses} of {realtime.chunks}",
        result.device,
    )


def _part_cells(row: GraphResult) -> tuple[str, ...]:
    sizes = " ".join(f"{dim}={size}" for dim, size in row.sizes.items())
    parity = ABSENT if not row.parity else _worst(row.parity)
    timing = ABSENT if row.p50_ms is None else f"{row.p50_ms:.2f} ms"
    cells = {"target": f"  {row.name}", "engine": sizes, "parity": parity, "p50 / p99": timing}
    return tuple(cells.get(column.name, "") for column in COLUMNS)


def _size(result: Result) -> str:
    if result.size_bytes is None:
        return ABSENT
    size = f"{result.size_bytes / 1e6:.2f} MB"
    if result.source_size_bytes:
        size += f"\n{result.size_bytes / result.source_size_bytes:.2f}x"
    return size


def _parity(parity: Parity | None) -> str:
    return ABSENT if parity is None or not parity.outputs else _worst(parity.outputs)


def _worst(outputs: Mapping[str, OutputParity]) -> str:
    largest = max(output.max_abs for output in outputs.values())
    lowest = min(output.sqnr_db for output in outputs.values())
    return f"{largest:.1e}\n{lowest:.0f} dB"


def _left_out(parity: Parity | None) -> list[str]:
    """How much of an output is hidden or padded, and therefore no part of its SQNR."""
    outputs = {} if parity is None else parity.outputs
    return [
        f"{100 * figures.left_out:.3g} % of {name} mark hidden or padded places, equal in both and no part of its SQNR"
        + ("; what is left says little of the weights" if figures.left_out > NEARLY_ALL else "")
        for name, figures in outputs.items()
        if figures.left_out
    ]


def _unit(result: Result) -> str:
    return PERCENT if result.accuracy is None else result.accuracy.unit


def _metric(result: Result) -> str:
    accuracy = result.accuracy
    if accuracy is None:
        return "no metric" if any(gate.gate == "accuracy" for gate in result.gates) else ABSENT
    low, high = accuracy.ci95
    source = "" if accuracy.source is None else f"source {accuracy.source:.2f}, "
    cell = f"{accuracy.metric} {accuracy.text(accuracy.deployed)}\n{source}CI {low:.1f}..{high:.1f}"
    for name, beside in accuracy.others.items():
        cell += f"\n{name} {beside.deployed:.2f}"
    if accuracy.drop_upper is None:
        return cell
    verdict = "" if accuracy.proved is None else ", proved" if accuracy.proved else ", not proved"
    return f"{cell}\nlost: {accuracy.drop_upper:.2f} at most{verdict}"


def _caption(results: Sequence[Result]) -> str:
    lines = []
    for result in results:
        lines += [f"{result.target}: {failure}" for failure in result.failures]
        untold = [g for g in result.gates if g.verdict == "not measured" and (g.asked != "no" or g.gate == "accuracy")]
        lines += [f"{result.target}: {gate}" for gate in untold]
        lines += [f"{result.target}: {g}" for g in result.gates if g.gate in TOLD and g.verdict == "passed"]
        lines += [f"{result.target}: {note}" for note in result.notes]
        lines += [f"{result.target}: {note}" for note in _left_out(result.parity)]
    data = sorted({f"{r.accuracy.samples} samples of {r.accuracy.data}" for r in results if r.accuracy is not None})
    lines += [f"metric: {entry}; CI: 95 %" for entry in data]
    legend = {
        "p50 / p99: one chunk or call": any(result.latency is not None for result in results),
        "late: chunks or calls past their deadline in the paced run": any(r.realtime is not None for r in results),
    }
    told = "; ".join(words for words, needed in legend.items() if needed)
    return "\n".join([*lines, *[told] * bool(told)])
