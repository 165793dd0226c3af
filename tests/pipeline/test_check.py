"""What the gates make of evidence: one sequence, whether it was found on this machine or on a device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from edgeattn.bundle import FileEntry, Manifest
from edgeattn.evaluation.parity import OutputParity, Parity
from edgeattn.evaluation.probing import Deviation
from edgeattn.jobs.evaluate import Evaluation
from edgeattn.pipeline.check import CheckOptions, Evidence, judged
from edgeattn.pipeline.steps.adversarial import Adversary
from edgeattn.pipeline.steps.baseline import Baseline
from edgeattn.pipeline.steps.runs import BundleRun, run_there
from edgeattn.profiling.figures import Latency, Memory, Profile
from edgeattn.results.gates import Gates
from edgeattn.runtimes.selftest import OutputCheck, SelftestResult
from edgeattn.targets.devices import Inventory, parse_device
from tests.small import small_manifest

PATH = Path("small.edge")
INT8: dict[str, dict[str, int]] = {"MatMulInteger": {"int8": 1}}
FLOAT: dict[str, dict[str, int]] = {"MatMul": {"float32": 1}}
BOARD = Inventory("3.11", "python3", "Linux", "arm64", "glibc 2.36", "Raspberry Pi 5", "", {}, 1, 1)
EVERY = ["hashes", "golden", "parity", "adversarial", "accuracy", "executed", "deadline", "size"]


class Tried:
    """Stands for the probes of a source: one was tried."""

    def told(self) -> str:
        return "1 unusual input compared with the source"


def manifest(**changes: Any) -> Manifest:
    """Of an int8 bundle."""
    return replace(small_manifest(), precision={"asked": "auto", "shipped": "int8", "candidates": []}, **changes)


def golden(decibels: float = 80.0) -> SelftestResult:
    check = OutputCheck(decibels, 0.0, decibels >= 60.0)
    return SelftestResult("x", "onnxruntime", "1.2", 1, 3, 60.0, {"main.y": check}, INT8, check.passed, 1.0)


def profile(**changes: Any) -> Profile:
    latency = Latency(
        kind="measured", p50_ms=1.0, p90_ms=1.0, p99_ms=2.0, max_ms=2.0, runs=5, threads=1, warmup_ms=1.0, load_ms=1.0,
        affinity=(0,),
    )  # fmt: skip
    made = Profile(
        device="by hand", backend="onnxruntime", engine_version="1.2", latency=latency, realtime=None,
        memory=Memory(1, 1, 1), executed=INT8,
    )  # fmt: skip
    return replace(made, **changes)


def parity(decibels: float = 40.0) -> Parity:
    return Parity("float32 source in torch", 3, {"y": OutputParity(0.1, decibels)})


def evidence(run: BundleRun, **changes: Any) -> Evidence:
    """Beside a source that the outputs agree with, and no data."""
    source = Baseline({}, {}, None, None, adversary=cast(Adversary, Tried()))
    found = Evidence(run=run, source=source, data=None, evaluated=Evaluation({"main": parity()}, None))
    return replace(found, **changes)


def here(**changes: Any) -> BundleRun:
    return replace(BundleRun(golden=golden(), profile=profile(), away=""), **changes)


def there(found: Inventory = BOARD, measured: Profile | None = None) -> BundleRun:
    return run_there(parse_device("ssh://pi@board"), golden(), measured, found)


OPTIONS = CheckOptions(gates=Gates(deadline_ms=5.0, max_size_bytes=10))


@pytest.mark.parametrize("run", [here(), there(measured=profile())], ids=["here", "on a device"])
def test_the_same_gates_judge_a_bundle_in_one_order_wherever_it_ran(run: BundleRun) -> None:
    result = judged(PATH, manifest(), evidence(run), OPTIONS)
    assert [row.gate for row in result.gates] == EVERY
    assert {row.gate: row.verdict for row in result.gates} == dict.fromkeys(EVERY, "passed") | {
        "accuracy": "not measured"
    }
    assert result.passed  # nobody asked for a metric
    assert (result.latency, result.parity) == (profile().latency, parity())


@pytest.mark.parametrize(
    ("gate", "found"),
    [
        ("golden", evidence(here(golden=golden(59.0)))),
        ("parity", evidence(here(), evaluated=Evaluation({"main": parity(-300.0)}, None))),
        (
            "adversarial",
            evidence(
                here(), evaluated=Evaluation({"main": parity()}, None, (Deviation("main", "zeros", "y", "NaN", True),))
            ),
        ),
        ("executed", evidence(here(profile=profile(executed=FLOAT)))),
        ("deadline", evidence(here(profile=profile(latency=replace(profile().latency, p99_ms=6.0))))),
    ],
)
def test_each_gate_fails_by_its_own_evidence(gate: str, found: Evidence) -> None:
    recorded = {
        "parity": {"reference": parity().reference, "steps": 3, "outputs": {"y": {"max_abs": 0.1, "sqnr_db": 40.0}}}
    }
    result = judged(PATH, manifest(measured=recorded), found, OPTIONS)
    assert [failure.gate for failure in result.failures] == [gate]


def test_a_bundle_that_is_too_large_fails() -> None:
    large = manifest(files={"main.onnx": FileEntry("0" * 64, 11)})
    assert [failure.gate for failure in judged(PATH, large, evidence(here()), OPTIONS).failures] == ["size"]


def test_without_source_and_data_only_what_they_would_tell_is_missing() -> None:
    found = evidence(here(), source=None, evaluated=Evaluation({}, None))
    result = judged(PATH, manifest(), found, OPTIONS)
    assert [row.gate for row in result.gates] == [gate for gate in EVERY if gate not in ("parity", "adversarial")]
    assert result.parity is None


def test_an_emulated_processor_tells_what_it_computes_and_no_time() -> None:
    result = judged(PATH, manifest(), evidence(there(replace(BOARD, emulator="qemu"))), OPTIONS)
    assert [row.gate for row in result.gates] == EVERY
    assert [(row.verdict, row.why.partition(":")[0]) for row in result.gates if row.gate == "deadline"] == [
        ("not measured", "its processor is emulated (qemu)")
    ]
    assert (result.kind, result.latency, result.precision.executed) == ("emulated", None, INT8)
    assert result.device == "arm64, emulated by qemu"
    assert result.notes[-1] == "on ssh://pi@board (Raspberry Pi 5)"


def test_a_clock_that_says_nothing_of_the_target_judges_no_deadline_and_is_told() -> None:
    result = judged(PATH, manifest(), evidence(here(away="this machine is not a phone")), OPTIONS)
    (deadline,) = [row for row in result.gates if row.gate == "deadline"]
    assert deadline.verdict == "not measured"
    assert result.notes[0] == "timed here, and this machine is not a phone"
    assert result.latency is not None  # told, and judged by nobody
