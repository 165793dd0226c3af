"""check, profile and convert: three verdicts in tables, JSON and exit codes, by the right clock and the right data."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.bundle import BundleDraft, read_manifest
from tests.cli.conftest import Command
from tests.conversions import BUNDLES, Converted

pytestmark = pytest.mark.slow

QUICK = ("--duration", "0s")
BRIEF = ("--runs", "5", *QUICK)


@pytest.fixture
def mobile(converted: Converted) -> Path:
    """The small attention module for phones, on a machine that is none."""
    return converted.out / f"small-attention.{BUNDLES['mobile']}"


@pytest.fixture
def wrong(converted: Converted, tmp_path: Path) -> Path:
    """The same inputs with other labels: each sample's is one class too high."""
    with np.load(converted.data) as file:
        np.savez(tmp_path / "wrong.npz", tokens=file["tokens"], target_scores=(file["target_scores"] + 1) % 4)
    return tmp_path / "wrong.npz"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Samples that nobody measured the source on."""
    tokens = np.random.default_rng(9).standard_normal((10, 8, 16)).astype(np.float32)
    np.savez(tmp_path / "other.npz", tokens=tokens, target_scores=np.arange(10) % 4)
    return tmp_path / "other.npz"


def gates(result: Any) -> dict[str, Any]:
    return {row["gate"]: row for row in result["gates"]}


def test_wrong_labels_fail_whatever_the_file_is_called(edgeattn: Command, small_bundle: Path, wrong: Path) -> None:
    outcome = edgeattn("check", small_bundle, "--data", wrong, *QUICK, "--json")
    assert outcome.code == 1, outcome.err
    (result,) = outcome.json["results"]
    assert result["verdict"] == gates(result)["accuracy"]["verdict"] == "failed"
    assert (result["accuracy"]["source"], result["accuracy"]["deployed"]) == (100.0, 0.0)


def test_a_record_that_has_grown_is_read_and_one_of_another_form_refused(
    edgeattn: Command, converted: Converted, small_bundle: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(small_bundle)
    later = {**manifest.measured, "accuracy": {**manifest.measured["accuracy"], "of_a_later_version": 1}}
    for name, measured, code in (("later", later, 0), ("broken", {"accuracy": 5}, 2)):
        copy = tmp_path / f"{name}.cpu.edge"
        with BundleDraft(copy) as draft:
            shutil.copytree(small_bundle, draft.path, dirs_exist_ok=True)
            draft.write_manifest(replace(manifest, measured=measured))
            draft.publish()
        assert edgeattn("check", copy, "--data", converted.data, *QUICK).code == code


def test_other_data_is_not_gated_and_the_exit_code_says_so(edgeattn: Command, small_bundle: Path, other: Path) -> None:
    outcome = edgeattn("check", small_bundle, "--data", other, *QUICK)
    assert outcome.code == 5
    text = " ".join(outcome.out.split())
    assert "not measured" in text
    assert "not gated: the manifest's metric of the source is of 32 samples of small_attention.npz" in text
    assert "asked for and not judged here: accuracy (exit 5)" in outcome.err


@pytest.mark.parametrize(
    ("limits", "code", "verdict"),
    [
        (("--min-metric", 0, "--max-metric", 100), 0, "passed"),
        (("--min-metric", 100), 1, "failed"),
        (("--min-metric", 0, "--max-drop", 1), 5, "not measured"),
    ],
)
def test_the_metric_of_any_data_can_be_held_to_a_number(
    edgeattn: Command, small_bundle: Path, other: Path, limits: tuple[object, ...], code: int, verdict: str
) -> None:
    outcome = edgeattn("check", small_bundle, "--data", other, *limits, *QUICK, "--json")
    assert (outcome.code, outcome.json["results"][0]["verdict"]) == (code, verdict)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--min-metric", 9), "--min-metric: the metric is measured on data, and none is given: give --data"),
        (("--max-metric", 9), "--max-metric: the metric is measured on data"),
        (("--data", "DATA", "--min-metric", 9, "--max-metric", 8), "no metric is at least 9"),
        (("--data", "DATA", "--max-metric", "nan"), "--max-metric must be a number, got NaN"),
    ],
)
def test_limits_that_mean_nothing_are_refused_before_anything_is_measured(
    edgeattn: Command, converted: Converted, small_bundle: Path, arguments: tuple[object, ...], message: str
) -> None:
    given = [converted.data if argument == "DATA" else argument for argument in arguments]
    outcome = edgeattn("check", small_bundle, *given, *QUICK)
    assert outcome.code == 2
    assert message in outcome.error
    assert "golden" not in outcome.err


def test_without_labels_there_is_no_metric_and_no_pass(edgeattn: Command, small_bundle: Path, other: Path) -> None:
    with np.load(other) as file:
        np.savez(other.with_name("bare.npz"), tokens=file["tokens"])
    outcome = edgeattn("check", small_bundle, "--data", other.with_name("bare.npz"), *QUICK)
    assert outcome.code == 5
    assert "no metric" in outcome.out
    assert "bare.npz holds no labels" in " ".join(outcome.out.split())


def test_check_and_profile_tell_hashes_golden_outputs_and_whose_candidates_these_are(
    edgeattn: Command, small_bundle: Path
) -> None:
    for arguments in (("check", small_bundle, *QUICK), ("profile", small_bundle, *BRIEF)):
        outcome = edgeattn(*arguments)
        assert outcome.code == 0, outcome.err
        assert "cpu: hashes: 3 files, all hashes right" in outcome.out
        assert "cpu: golden: 6 steps at >= " in outcome.out
        assert "dB (bound " in outcome.out
        assert "candidates at conversion, measured then on" in outcome.out
    assert "no metric" in edgeattn("check", small_bundle, *QUICK).out
    found = edgeattn("profile", small_bundle, *BRIEF, "--json").json["results"][0]
    assert found["precision"]["tried_on"]
    assert [gates(found)[name]["verdict"] for name in ("hashes", "golden")] == ["passed", "passed"]


@pytest.mark.parametrize(
    ("command", "deadline", "code", "verdict", "word"),
    [
        ("check", "100s", 5, "not measured", "should keep"),
        ("profile", "100s", 5, "not measured", "should keep"),
        ("check", "0.001us", 1, "failed", "would miss"),
    ],
)
def test_a_phones_deadline_is_not_decided_by_this_machines_clock(
    edgeattn: Command, mobile: Path, command: str, deadline: str, code: int, verdict: str, word: str
) -> None:
    quick = QUICK if command == "check" else BRIEF
    outcome = edgeattn(command, mobile, "--deadline", deadline, *quick, "--json")
    assert outcome.code == code, outcome.err
    (result,) = outcome.json["results"]
    row = gates(result)["deadline"]
    assert (result["verdict"], row["verdict"], row["asked"]) == (verdict, verdict, "flag")
    assert row["got"].startswith("estimated ")
    assert word in row["got"]
    assert result["latency"]["kind"] == "measured"  # here, which the notes say
    assert "timed here, and this machine is not android-arm64" in result["notes"]


def test_naming_this_machine_does_not_make_it_a_phone(edgeattn: Command, mobile: Path) -> None:
    outcome = edgeattn("check", mobile, "--deadline", "100s", "--device", "local", *QUICK, "--json")
    assert outcome.code == 5
    assert "and android-arm64 is aarch64" in gates(outcome.json["results"][0])["deadline"]["why"]


@pytest.mark.parametrize(("deadline", "code", "verdict"), [("100s", 0, "passed"), ("0.001us", 1, "failed")])
def test_profile_judges_this_machines_deadline_by_its_clock(
    edgeattn: Command, small_bundle: Path, deadline: str, code: int, verdict: str
) -> None:
    outcome = edgeattn("profile", small_bundle, "--deadline", deadline, *BRIEF, "--json")
    (result,) = outcome.json["results"]
    assert (outcome.code, result["verdict"]) == (code, verdict)
    assert "p99" in gates(result)["deadline"]["got"] + gates(result)["deadline"]["wanted"]


@pytest.mark.parametrize(("deadline", "code"), [((), 0), (("--deadline", "100s"), 5), (("--deadline", "0.001us"), 1)])
def test_an_estimate_never_passes(edgeattn: Command, mobile: Path, deadline: tuple[str, ...], code: int) -> None:
    outcome = edgeattn("profile", mobile, "--target", "pixel-8", *deadline, "--json")
    assert outcome.code == code, outcome.err
    (result,) = outcome.json["results"]
    assert result["passed"] is False
    assert result["verdict"] == ("failed" if code == 1 else "not measured")
    assert gates(result)["golden"]["why"] == "an estimate runs nothing"


def test_convert_writes_what_no_clock_here_can_judge_and_exits_5(edgeattn: Command, kept: Converted) -> None:
    arguments = ("convert", kept.reference, "--precision", "fp32", *QUICK, "--target", "mobile", "--json")
    outcome = edgeattn(*arguments, "--target", "jetson", "--deadline", "100s")
    assert outcome.code == 5, outcome.err
    for result in outcome.json["results"]:
        assert (result["verdict"], gates(result)["deadline"]["verdict"]) == ("not measured", "not measured")
        assert "should keep" in gates(result)["deadline"]["got"]
        assert Path(result["bundle"]).is_dir()
    missed = edgeattn(*arguments, "--deadline", "0.001us", "--out", "other")
    assert missed.code == 1
    assert not Path("other").exists()
    plain = edgeattn(*arguments, "--out", "plain")
    assert (plain.code, plain.json["results"][0]["verdict"]) == (0, "passed")
