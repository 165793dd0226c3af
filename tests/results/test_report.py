"""Results: the JSON object that design promises, and tables that mark what was not measured."""

from __future__ import annotations

import io
import json
import math
from dataclasses import fields, replace

import pytest
from rich.console import Console

from edgeattn.cli.layout import laid_out
from edgeattn.evaluation.accuracy import Accuracy
from edgeattn.evaluation.parity import OutputParity, Parity
from edgeattn.profiling.figures import Latency, Memory, Realtime
from edgeattn.results.gates import Failure
from edgeattn.results.grid import Grid
from edgeattn.results.report import Candidate, Precision, Report, Result, joined, with_gates
from edgeattn.results.tables import candidate_table, table
from edgeattn.results.verdicts import Judgement

LATENCY = Latency(
    kind="measured",
    p50_ms=1.0,
    p90_ms=2.0,
    p99_ms=3.0,
    max_ms=4.0,
    runs=100,
    threads=1,
    warmup_ms=5.0,
    load_ms=60.0,
    affinity=(0, 1),
)
FULL = Result(
    target="cpu",
    device="a processor",
    backend="openvino",
    bundle="out/x.cpu.edge",
    passed=True,
    failures=(),
    precision=Precision(
        asked="auto",
        shipped="fp16",
        executed={"MatMul": {"float16": 3}},
        candidates=(Candidate(precision="fp16", latency_ms=1.0, accuracy=5.0, size_bytes=9, kept=True, why="why"),),
    ),
    size_bytes=1_500_000,
    source_size_bytes=3_000_000,
    parity=Parity("float32 source in torch", 500, {"y": OutputParity(1e-5, 92.0)}),
    accuracy=Accuracy(metric="wer", source=5.0, deployed=5.5, ci95=(4.0, 7.0), samples=60, data="a sample"),
    latency=LATENCY,
    realtime=Realtime(hop_ms=320.0, deadline_ms=320.0, rtf=0.004, misses=0, chunks=15, max_backlog_ms=1.5, paced=True),
    memory=Memory(10**8, 10**6, 10**3),
)
BARE = Result(
    target="jetson",
    device="a host",
    backend="tensorrt",
    bundle=None,
    passed=False,
    failures=(Failure("parity", "a", "b"),),
    precision=Precision(asked="auto", shipped="fp16"),
)
# design.md, Results
KEYS = {
    "": {
        "target", "device", "backend", "bundle", "passed", "failures", "precision", "size_bytes", "source_size_bytes",
        "parity", "accuracy", "latency", "realtime", "memory",
    },
    "precision": {"asked", "shipped", "executed", "candidates"},
    "parity": {"reference", "steps", "outputs"},
    "accuracy": {"metric", "source", "deployed", "ci95", "samples", "data"},
    "latency": {"kind", "p50_ms", "p90_ms", "p99_ms", "max_ms", "runs", "threads", "warmup_ms", "load_ms"},
    "realtime": {"hop_ms", "deadline_ms", "rtf", "misses", "max_backlog_ms", "paced"},
    "memory": {"rss_bytes", "weights_bytes", "state_bytes"},
}  # fmt: skip


def text_of(*results: Result) -> str:
    return text(table(results))


def text(grid: Grid, width: int = 200) -> str:
    out = io.StringIO()
    Console(file=out, width=width, no_color=True).print(laid_out(grid, width))
    return out.getvalue()


@pytest.mark.parametrize("part", KEYS)
def test_a_result_has_the_promised_keys(part: str) -> None:
    found = json.loads(json.dumps(Report({}, (FULL,)).to_json(), allow_nan=False))["results"][0]
    assert set(found[part] if part else found) >= KEYS[part]


def test_a_report_is_schema_model_and_results() -> None:
    found = Report({"name": "x"}, (FULL, BARE)).to_json()
    assert (found["schema"], found["model"], len(found["results"])) == (1, {"name": "x"}, 2)
    assert found["results"][1]["failures"] == [{"gate": "parity", "wanted": "a", "got": "b"}]


def test_an_absent_figure_is_null() -> None:
    found = Report({}, (BARE,)).to_json()["results"][0]
    given = {
        "target",
        "device",
        "backend",
        "passed",
        "failures",
        "precision",
        "notes",
        "buckets",
        "graphs",
        "preflight",
        "gates",
        "verdict",
    }
    assert {name for name, value in found.items() if value is not None} == given
    assert {field.name for field in fields(Result)} | {"verdict"} == set(found)


def test_no_figure_is_nan_or_infinite() -> None:
    strange = replace(FULL, latency=replace(LATENCY, p99_ms=math.nan), seconds=math.inf)
    found = json.loads(json.dumps(Report({}, (strange,)).to_json(), allow_nan=False))["results"][0]
    assert found["latency"]["p99_ms"] is None
    assert found["seconds"] is None


def test_a_report_passes_when_every_result_does() -> None:
    assert Report({}, (FULL, FULL)).passed
    assert not Report({}, (FULL, BARE)).passed


def test_the_table_says_what_failed_and_what_is_absent() -> None:
    text = text_of(FULL, BARE)
    assert "FAILED" in text
    assert "passed" in text
    assert "jetson: parity: wanted a, got b" in text
    assert "0 of 15" in text
    assert "1.50 MB" in text
    assert "0.50x" in text


def test_the_table_has_three_verdicts_and_says_what_was_not_judged() -> None:
    unjudged = [
        Judgement("hashes", "passed", "x", "9 files, all hashes right"),
        Judgement("accuracy", "not measured", "a metric", "", "no data", "no"),
        Judgement("deadline", "not measured", "5 ms", "estimated 1.6 to 8.1 ms: may miss 5 ms", "no phone"),
    ]
    text = text_of(FULL, BARE, with_gates(replace(FULL, target="mobile", accuracy=None), unjudged))
    assert all(verdict in text for verdict in ("passed", "FAILED", "not measured", "no metric"))
    assert "mobile: deadline: not measured: wanted 5 ms; estimated 1.6 to 8.1 ms: may miss 5 ms; no phone" in text
    assert "mobile: hashes: 9 files, all hashes right" in text


@pytest.mark.parametrize(
    ("tried_on", "title"),
    [(None, "candidates"), ("a board [1]", "candidates at conversion, measured then on a board [1];")],
)
def test_candidates_of_another_run_are_headed_as_such(tried_on: str | None, title: str) -> None:
    result = replace(FULL, precision=replace(FULL.precision, tried_on=tried_on))
    told = text(candidate_table([result]))
    assert told.startswith(title)
    assert ("at conversion" in told) == (tried_on is not None)


def test_reports_of_several_sizes_are_one_in_the_order_of_the_targets() -> None:
    first = Report({"name": "x", "graphs": ["a_8"], "buckets": {"a": ["a_8"]}}, (FULL,))
    second = Report({"name": "x", "graphs": ["a_4", "a_8"], "buckets": {"a": ["a_4", "a_8"]}}, (BARE,))
    both = joined([first, second], ["jetson", "cpu"])
    assert both.results == (BARE, FULL)
    assert both.model == {"name": "x", "graphs": ["a_8", "a_4"], "buckets": {"a": ["a_8", "a_4"]}}
    assert joined([first], ["cpu"]) == first


@pytest.mark.parametrize("kind", ["emulated", "estimated"])
def test_a_time_that_was_not_measured_says_so_in_every_table(kind: str) -> None:
    other = replace(FULL, latency=replace(LATENCY, kind=kind))  # type: ignore[arg-type]
    assert kind in text_of(other)
    assert kind not in text_of(FULL)


def test_an_emulated_run_has_no_time_and_says_why() -> None:
    emulated = replace(FULL, latency=None, realtime=None, kind="emulated")
    assert "emulated" in text_of(emulated)
    assert " ms" not in text_of(emulated)
    assert Report({}, (emulated,)).to_json()["results"][0]["kind"] == "emulated"


def test_names_with_brackets_are_not_markup() -> None:
    assert "[core]" in text_of(replace(FULL, device="AMD [core] 5"))
