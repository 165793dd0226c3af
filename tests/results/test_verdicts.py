"""What becomes of a gate: passed, failed, or not measured; and whose clock and whose samples decide it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.errors import InputError
from edgeattn.evaluation.accuracy import Accuracy
from edgeattn.evaluation.arrays import ArrayData, ArraySample
from edgeattn.evaluation.data import Data
from edgeattn.evaluation.identity import digests
from edgeattn.evaluation.speech import SpeechData, Utterance
from edgeattn.profiling.contract import MeasureOptions
from edgeattn.results import verdicts
from edgeattn.results.gates import Failure, Gates
from edgeattn.results.report import Precision, Report, Result, with_gates
from edgeattn.results.verdicts import (
    Asked,
    Deadline,
    Judgement,
    Verdict,
    accuracy_judged,
    deadline_foreseen,
    deadline_of,
    elsewhere,
    executed_judged,
    golden_judged,
    judged,
    overall,
)
from edgeattn.runtimes.selftest import OutputCheck, SelftestResult
from edgeattn.targets import Target, get_target, host_target, known_target
from edgeattn.targets.roofline import Estimate
from tests.small import small_manifest, small_spec


def gate(verdict: Verdict, asked: Asked = "default") -> Judgement:
    return Judgement("deadline", verdict, "5 ms", "6 ms", asked=asked)


BASE = Result(
    target="cpu",
    device="x",
    backend="openvino",
    bundle=None,
    passed=True,
    failures=(),
    precision=Precision(asked="auto", shipped="fp32"),
)


@pytest.mark.parametrize(
    ("gates", "verdict"),
    [
        ([], "passed"),
        ([gate("passed")], "passed"),
        ([gate("passed"), gate("not measured")], "not measured"),
        ([gate("passed"), gate("not measured", "flag")], "not measured"),
        ([gate("passed"), gate("not measured", "no")], "passed"),
        ([gate("not measured", "flag"), gate("failed")], "failed"),
    ],
)
def test_a_bundle_passes_only_if_all_that_matters_was_judged(gates: list[Judgement], verdict: str) -> None:
    assert overall(gates) == verdict
    result = with_gates(BASE, gates)
    assert (result.verdict, result.passed, bool(result.failures)) == (
        verdict,
        verdict == "passed",
        verdict == "failed",
    )
    report = Report({}, (result,))
    assert (report.passed, report.failed) == (verdict == "passed", verdict == "failed")
    assert report.to_json()["results"][0]["verdict"] == verdict
    assert [row["asked"] for row in report.to_json()["results"][0]["gates"]] == [one.asked for one in gates]


def test_only_what_the_user_asked_for_and_nobody_judged_is_told_to_a_script() -> None:
    rows = [gate("not measured", "flag"), gate("not measured"), gate("not measured", "no"), gate("passed", "flag")]
    assert Report({}, (with_gates(BASE, rows),)).unjudged == (rows[0],)


def test_gates_that_come_later_count_as_well() -> None:
    failed = with_gates(with_gates(BASE, [gate("failed")]), [gate("passed")])
    assert (failed.verdict, failed.failures) == ("failed", (Failure("deadline", "5 ms", "6 ms"),))
    unjudged = with_gates(with_gates(BASE, [gate("not measured")]), [gate("passed")])
    assert unjudged.verdict == "not measured"


def test_a_gate_without_failures_is_a_row_that_passed() -> None:
    failure = Failure("parity", "a", "b")
    assert judged("parity", [failure], "", "") == [Judgement("parity", "failed", "a", "b")]
    assert judged("parity", [], "a", "c") == [Judgement("parity", "passed", "a", "c")]


def replayed(decibels: float, passed: bool) -> SelftestResult:
    outputs = {"main.y": OutputCheck(112.3, 1e-6, True), "main.z": OutputCheck(decibels, 1e-3, passed)}
    return SelftestResult("x", "litert", "2.3", 1, 6, 60.0, outputs, {}, passed, 1.0)


def test_golden_outputs_tell_their_steps_their_worst_and_their_bound() -> None:
    (kept,) = golden_judged(replayed(80.0, True))
    assert (kept.verdict, kept.got) == ("passed", "6 steps at >= 80.0 dB (bound 60 dB) with litert 2.3")
    (lost,) = golden_judged(replayed(59.0, False))
    assert (lost.verdict, lost.wanted, lost.got) == ("failed", "main.z at SQNR >= 60 dB", "59.0 dB")
    (none,) = golden_judged(None)
    assert (none.verdict, none.why) == ("not measured", "the bundle holds none: convert it again")


def test_what_a_substitute_executes_is_no_verdict_on_integers() -> None:
    assert executed_judged("fp32", [], told=True) == []
    assert [row.verdict for row in executed_judged("int8", [], told=True)] == ["passed"]
    assert [(row.verdict, row.asked) for row in executed_judged("int8", [], told=False)] == [("not measured", "no")]


# --- time -------------------------------------------------------------------------------------------------------------


def estimate(low: float, high: float) -> Estimate:
    return Estimate(
        target="pixel-8",
        engine="litert",
        threads=1,
        low_ms=low,
        mid_ms=math.sqrt(low * high),
        high_ms=high,
        bound_by={},
        ops=(),
        needs_bytes=None,
        fits=None,
        source="an example",
    )


@pytest.mark.parametrize("asked", ["flag", "default"])
@pytest.mark.parametrize(
    ("low", "high", "verdict", "got"),
    [
        (1.6, 3.1, "not measured", "estimated 1.6 to 3.1 ms: should keep 5 ms"),
        (1.6, 5.0, "not measured", "estimated 1.6 to 5 ms: should keep 5 ms"),
        (1.6, 8.1, "not measured", "estimated 1.6 to 8.1 ms: may miss 5 ms"),
        (5.0, 8.1, "not measured", "estimated 5 to 8.1 ms: may miss 5 ms"),
        (6.1, 8.1, "failed", "estimated 6.1 to 8.1 ms: would miss 5 ms"),
    ],
)
def test_an_estimate_can_fail_a_deadline_and_never_pass_it(
    low: float, high: float, verdict: str, got: str, asked: Asked
) -> None:
    row = deadline_foreseen(Deadline(5.0, "asked for", asked), "pixel-8", estimate(low, high), "no phone is here")
    assert (row.gate, row.verdict, row.got, row.asked) == ("deadline", verdict, got, asked)
    assert "no phone is here: give --device" in row.why


def test_without_an_estimate_nothing_is_known_and_it_says_why() -> None:
    row = deadline_foreseen(Deadline(5.0, "asked for", "flag"), "mine", "no bandwidth", "no board is here")
    assert (row.verdict, row.got) == ("not measured", "")
    assert row.why.endswith("no estimate either: no bandwidth")


def test_a_deadline_is_asked_for_or_the_targets_or_the_hop() -> None:
    spec, none, measure = small_spec(), Gates(), MeasureOptions()
    own = replace(get_target("pixel-8"), default_deadline_ms=40.0)
    assert deadline_of(spec, own, Gates(deadline_ms=5.0), measure) == Deadline(5.0, "asked for", "flag")
    assert deadline_of(spec, own, none, measure) == Deadline(40.0, "default of pixel-8", "default")
    assert spec.stream is not None
    hop = 1e3 * float(spec.stream.hop_seconds)
    assert deadline_of(spec, None, none, measure) == Deadline(hop, "the stream's hop", "default")
    still = replace(spec, stream=None)
    assert deadline_of(still, None, none, measure) is None
    assert deadline_of(still, None, none, MeasureOptions(hop_ms=20.0)) == Deadline(20.0, "the hop", "flag")


def host(arch: str, *isa: Any) -> Target:
    known = host_target()
    return replace(known, cpu=replace(known.cpu, arch=arch, isa=isa))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "machine", "here", "named", "why"),
    [
        ("cpu", None, host("x86_64", "avx2"), False, ""),
        ("cpu", {"arch": "x86_64", "isa": ["avx2"]}, host("x86_64", "avx2", "fma"), False, ""),
        (
            "cpu",
            {"arch": "aarch64", "isa": []},
            host("x86_64", "avx2"),
            False,
            "this machine is x86_64 and the machine",
        ),
        ("cpu", {"arch": "aarch64", "isa": []}, host("x86_64", "avx2"), True, ""),  # named: this very machine
        ("cpu", {"arch": "x86_64", "isa": ["avx512"]}, host("x86_64", "avx2"), False, "it has no avx512"),
        ("cpu", {"arch": "x86_64", "isa": ["avx512"]}, host("x86_64", "avx2"), True, ""),
        ("cpu", ["strange"], host("x86_64"), False, ""),
        ("pixel-8", None, host("x86_64", "avx2"), False, "this machine is not pixel-8"),
        ("pixel-8", None, host("x86_64", "avx2"), True, "this machine is x86_64 and pixel-8 is aarch64"),
        (
            "raspberry-pi-5",
            None,
            host("aarch64", "neon", "fp16", "dotprod"),
            False,
            "this machine is not raspberry-pi-5",
        ),
        ("raspberry-pi-5", None, host("aarch64", "neon", "fp16", "dotprod"), True, ""),
        ("raspberry-pi-5", None, host("aarch64", "neon"), True, "it has no dotprod, fp16"),
        ("my-board", None, host("aarch64"), False, "this machine is not my-board"),
        ("my-board", None, host("aarch64"), True, ""),  # a file of the user's own: the user knows
    ],
)
def test_this_machines_clock_judges_this_machine_alone(
    monkeypatch: pytest.MonkeyPatch, target: str, machine: object, here: Target, named: bool, why: str
) -> None:
    monkeypatch.setattr(verdicts, "host_target", lambda: here)
    provenance = {} if machine is None else {"machine": machine}
    found = elsewhere(replace(small_manifest(), target=target, provenance=provenance), named)
    assert why in found if why else found == ""


# --- the metric -------------------------------------------------------------------------------------------------------

RECORDED = Accuracy(
    metric="accuracy",
    source=97.0,
    deployed=96.8,
    ci95=(95.0, 98.0),
    samples=400,
    data="test.npz",
    inputs_sha256="inputs",
    labelled_sha256="labelled",
)
SAME = replace(RECORDED, source=None)
CHANCE = 10.0


@pytest.mark.parametrize(
    ("found", "verdict", "why"),
    [
        (SAME, "passed", ""),
        (replace(SAME, data="copy.npz"), "passed", ""),  # the same samples, whatever they are called
        (replace(SAME, deployed=96.4), "failed", ""),
        (replace(SAME, labelled_sha256="shuffled", deployed=CHANCE), "failed", "and the labels are not"),
        (replace(SAME, labelled_sha256="shuffled", deployed=CHANCE, data="copy.npz"), "failed", "the labels are not"),
        (replace(SAME, labelled_sha256="mended"), "not measured", "proves nothing"),
        (replace(SAME, labelled_sha256="x", inputs_sha256="y", deployed=CHANCE), "failed", "holds other samples"),
        (replace(SAME, labelled_sha256="x", inputs_sha256="y"), "not measured", "holds other samples"),
        (
            replace(SAME, labelled_sha256="x", inputs_sha256="y", data="new.npz", deployed=CHANCE),
            "not measured",
            "of 400 samples of test.npz, this one of 400 samples of new.npz",
        ),
        (replace(SAME, labelled_sha256="x", inputs_sha256="y", samples=50), "not measured", "this one of 50 samples"),
        (replace(SAME, metric="wer"), "not measured", "the manifest's metric is accuracy, this one wer"),
    ],
)
def test_without_the_model_a_metric_is_held_to_the_recorded_one_of_the_same_samples(
    found: Accuracy, verdict: str, why: str
) -> None:
    figures, (row,) = accuracy_judged(found, RECORDED, Gates(), "flag")
    assert (row.gate, row.verdict, row.asked) == ("accuracy", verdict, "flag")
    assert why in row.why
    assert figures.source == (97.0 if verdict != "not measured" else None)


def test_a_bundle_without_digests_is_compared_by_name_and_says_so() -> None:
    old = replace(RECORDED, inputs_sha256=None, labelled_sha256=None)
    _, (row,) = accuracy_judged(SAME, old, Gates(), "flag")
    assert (row.verdict, row.why) == ("passed", "the same data by name alone")
    _, (row,) = accuracy_judged(replace(SAME, deployed=CHANCE), old, Gates(), "flag")
    assert row.verdict == "failed"


@pytest.mark.parametrize("recorded", [None, replace(RECORDED, source=None)])
def test_without_a_metric_of_the_source_nothing_is_gated(recorded: Accuracy | None) -> None:
    _, (row,) = accuracy_judged(SAME, recorded, Gates(), "flag")
    assert (row.verdict, row.asked) == ("not measured", "flag")
    assert row.why.startswith("not gated: the manifest holds no metric of the source")


def test_a_source_that_was_measured_beside_it_counts_and_not_the_record() -> None:
    _, (row,) = accuracy_judged(replace(SAME, source=96.9), replace(RECORDED, source=10.0), Gates(), "flag")
    assert row.verdict == "passed"
    _, (row,) = accuracy_judged(replace(SAME, source=99.0), None, Gates(), "flag")
    assert row.verdict == "failed"


@pytest.mark.parametrize(
    ("low", "high", "passes"),
    [(96.8, None, [True]), (96.9, None, [False]), (None, 96.8, [True]), (None, 96.7, [False]), (90, 97, [True, True])],
)
def test_absolute_gates_need_no_source(low: float | None, high: float | None, passes: list[bool]) -> None:
    _, rows = accuracy_judged(SAME, None, Gates(min_metric=low, max_metric=high), "flag")
    assert [row.verdict == "passed" for row in rows if row.gate == "metric"] == passes
    (relative,) = [row for row in rows if row.gate == "accuracy"]
    assert (relative.verdict, relative.asked) == ("not measured", "no")  # the user said what to hold it to
    _, rows = accuracy_judged(SAME, None, Gates(min_metric=low, max_metric=high, max_drop_asked=True), "flag")
    assert rows[0].asked == "flag"


@pytest.mark.parametrize("name", ["max_drop", "min_metric", "max_metric", "deadline_ms"])
def test_a_gate_that_is_no_number_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="must be a number, got NaN"):
        replace(Gates(), **{name: math.nan})  # type: ignore[arg-type]


def test_limits_that_nothing_can_keep_are_refused() -> None:
    with pytest.raises(InputError, match=r"no metric is at least 9 .* and at most 8"):
        Gates(min_metric=9.0, max_metric=8.0)


# --- which samples ----------------------------------------------------------------------------------------------------


def arrays(labels: list[int], dtype: str = "float32") -> Data:
    samples = [ArraySample({"x": np.full((1, 2), i, dtype)}, {"y": np.array(n)}) for i, n in enumerate(labels)]
    return ArrayData("x.npz", (), tuple(samples))


def test_a_digest_is_of_the_samples_and_not_of_their_order() -> None:
    data = arrays([0, 1, 2, 1])
    assert isinstance(data, ArrayData)
    assert digests(data) == digests(replace(data, origin="y.npz", evaluation=data.evaluation[::-1]))
    fewer = replace(data, evaluation=data.evaluation[:3])
    twice = replace(data, evaluation=(*data.evaluation, data.evaluation[0]))
    assert len({digests(one) for one in (data, fewer, twice)}) == 3


def test_shuffled_labels_are_the_same_inputs_with_another_digest() -> None:
    inputs, labelled = digests(arrays([0, 1, 2, 1]))
    others = digests(arrays([1, 0, 2, 1]))
    assert others[0] == inputs
    assert others[1] != labelled
    assert digests(arrays([0, 1, 2, 1], "float64"))[0] != inputs


def test_speech_is_told_apart_by_its_samples_and_its_words() -> None:
    def said(level: float, *words: str) -> SpeechData:
        return SpeechData("x", (), (Utterance(np.full(4, level, np.float32), words),))

    first = digests(said(0.5, "yes", "no"))
    assert digests(said(0.5, "yes no"))[0] == first[0]
    assert len({digests(said(0.5, *words)) for words in (("yes", "no"), ("yes no",), ("no", "yes"), ())}) == 4
    assert digests(said(0.25, "yes", "no"))[0] != first[0]


def test_an_estimate_that_cannot_be_made_is_a_reason_and_no_error(tmp_path: Path) -> None:
    found = verdicts.foreseen(tmp_path / "missing.edge", get_target("pixel-8"), 1)
    assert isinstance(found, str)
    assert "no such bundle" in found


def test_the_target_of_a_bundle_is_a_name_and_never_a_file(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text("not read")
    assert [known_target(name) for name in (str(own), "own.toml", "my-board", "")] == [None] * 4
    found = known_target("pixel-8")
    assert found is not None
    assert found.name == "pixel-8"
