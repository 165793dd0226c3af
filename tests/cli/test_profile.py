"""profile of a model that is no bundle yet, and devices that edgeattn.toml names per target."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from edgeattn.errors import InputError
from tests.cli.conftest import Command
from tests.conversions import Converted

pytestmark = pytest.mark.slow

QUICK = ("--runs", "5", "--duration", "0s")


def test_a_model_is_estimated_for_devices_that_are_not_here_and_measured_on_this_one_in_one_table(
    edgeattn: Command, kept: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "temporary"  # others' files come and go in the shared one
    own.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    outcome = edgeattn(
        "profile", kept.reference, "--target", "jetson", "--target", "pixel-8", "--target", "cpu", *QUICK, "--json"
    )
    assert outcome.code == 0, outcome.err
    nano, pixel, cpu = outcome.json["results"]
    assert [row["target"] for row in (nano, pixel, cpu)] == ["jetson-orin-nano", "pixel-8", "cpu"]
    assert [row["backend"] for row in (nano, pixel, cpu)] == ["tensorrt", "litert", "openvino"]
    for row in (nano, pixel):
        assert row["latency"] is None
        assert row["estimate"]["kind"] == row["kind"] == "estimated"
        assert 0 < row["estimate"]["low_ms"] < row["estimate"]["high_ms"]
    assert cpu["estimate"] is None
    assert cpu["latency"]["kind"] == "measured"
    assert cpu["latency"]["runs"] == 5
    for row in (nano, pixel, cpu):
        assert row["precision"]["shipped"] == "fp32"
        assert row["bundle"] is None
        assert row["accuracy"] is None
        assert "in float32: precision was not chosen and accuracy not checked" in row["notes"][0]
    assert outcome.json["model"]["name"] == "small-attention"
    assert not list(own.glob("edgeattn-*"))
    assert not list(Path().glob("*.edge"))


def test_the_table_for_people_says_what_bounds_an_estimate(edgeattn: Command, kept: Converted) -> None:
    outcome = edgeattn("profile", kept.reference, "--target", "pixel-8")
    assert outcome.code == 0, outcome.err
    assert "estimated" in outcome.out
    assert "pixel-8: bound by" in outcome.err


@pytest.mark.slow
def test_without_a_model_it_is_the_built_in_one_and_says_so(edgeattn: Command) -> None:
    outcome = edgeattn("profile", "--target", "jetson", "--json")
    assert outcome.code == 0, outcome.err
    assert "no BUNDLE or MODEL given: streaming-conformer, streaming Conformer-CTC" in outcome.err
    assert outcome.json["model"]["name"] == "streaming-conformer"
    assert outcome.json["results"][0]["target"] == "jetson-orin-nano"


def test_of_several_targets_one_that_fails_does_not_stop_the_others(edgeattn: Command, kept: Converted) -> None:
    targets = ("--target", "raspberry-pi-5", "--target", "intel-n100")
    outcome = edgeattn("profile", kept.reference, *targets, "--backend", "openvino", "--json")
    assert outcome.code == 4
    pi, n100 = outcome.json["results"]
    assert pi["failures"][0]["gate"] == "target"
    assert "openvino" in pi["failures"][0]["got"]
    assert n100["verdict"] == "not measured"  # an estimate passes nothing
    alone = edgeattn("profile", kept.reference, "--target", "raspberry-pi-5", "--backend", "openvino", "--json")
    assert (alone.code, alone.json["error"]["type"]) == (4, "UnsupportedError")


def test_a_model_that_is_none_is_refused(edgeattn: Command) -> None:
    outcome = edgeattn("profile", "stream-conformer", "--target", "jetson")
    assert outcome.code == 2
    assert "did you mean 'streaming-conformer'" in outcome.error


def test_the_sizes_of_a_bundle_are_its_own(edgeattn: Command, small_bundle: Path) -> None:
    outcome = edgeattn("profile", small_bundle, "--bucket", "seq=8")
    assert outcome.code == 2
    assert "--bucket, --fill and --set are for a MODEL" in outcome.error


def test_devices_beside_several_targets_are_refused(edgeattn: Command) -> None:
    outcome = edgeattn("profile", "m.py", "--target", "jetson", "--target", "cpu", "--device", "ssh://board")
    assert outcome.code == 2
    assert "does not say whose it is" in outcome.error


# --- devices per target in edgeattn.toml --------------------------------------------------------------------------

NOWHERE = "ssh://127.0.0.1:1"


def test_a_bundle_is_measured_on_the_devices_of_its_target(edgeattn: Command, small_bundle: Path) -> None:
    Path("edgeattn.toml").write_text(f'[targets.cpu]\ndevice = ["local", "{NOWHERE}"]\n')
    outcome = edgeattn("profile", small_bundle, *QUICK, "--json")
    assert outcome.code == 3
    here, there = outcome.json["results"]
    assert here["latency"]["kind"] == "measured"
    assert there["device"] == NOWHERE
    assert there["failures"][0]["gate"] == "device"


def test_a_flag_wins_and_another_target_has_no_part_in_it(edgeattn: Command, small_bundle: Path) -> None:
    Path("edgeattn.toml").write_text(f'[targets.cpu]\ndevice = "{NOWHERE}"\n[targets.jetson]\ndevice = "ssh://board"\n')
    assert edgeattn("profile", small_bundle, *QUICK).code == 3
    assert edgeattn("profile", small_bundle, *QUICK, "--device", "local").code == 0
    Path("edgeattn.toml").write_text('[targets.jetson]\ndevice = "ssh://board"\n')
    assert edgeattn("profile", small_bundle, *QUICK).code == 0


def test_check_goes_to_the_one_device_of_its_target(edgeattn: Command, small_bundle: Path) -> None:
    Path("edgeattn.toml").write_text(f'[targets.cpu]\ndevice = "{NOWHERE}"\n')
    outcome = edgeattn("check", small_bundle, "--duration", "0s")
    assert outcome.code == 3
    assert NOWHERE in outcome.error
    assert edgeattn("check", small_bundle, "--duration", "0s", "--device", "local").code == 0
    Path("edgeattn.toml").write_text(f'[targets.cpu]\ndevice = ["{NOWHERE}", "local"]\n')
    outcome = edgeattn("check", small_bundle, "--duration", "0s")
    assert outcome.code == 2
    assert f"names 2 devices for cpu: choose one, as --device {NOWHERE}" in outcome.error


def test_a_model_is_measured_on_the_device_of_each_target(edgeattn: Command, kept: Converted) -> None:
    Path("edgeattn.toml").write_text(f'[targets.jetson]\ndevice = "{NOWHERE}"\n')
    outcome = edgeattn("profile", kept.reference, "--target", "jetson", "--target", "pixel-8", "--json")
    assert outcome.code == 3
    nano, pixel = outcome.json["results"]
    assert (nano["device"], nano["failures"][0]["gate"]) == (NOWHERE, "device")
    assert pixel["estimate"] is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[targets.jetson]\ndevcie = "local"\n', "[targets.jetson]: unknown option 'devcie', did you mean 'device'?"),
        ("[targets.jetson]\n", "the table is empty; it takes device, deadline, precision, bucket, prune"),
        ("[targets.jetson]\ndevice = 3\n", "[targets.jetson]: device must be as for --device"),
        ("[targets.jetson]\ndevice = []\n", "[targets.jetson]: device must be as for --device"),
        ("[targets.jetson]\ndevice = [1]\n", "[targets.jetson]: device must be as for --device"),
        ("[targets]\njetson = 3\n", "[targets]: unknown option 'jetson'"),
    ],
)
def test_a_wrong_table_is_refused_by_every_command(edgeattn: Command, text: str, message: str) -> None:
    Path("edgeattn.toml").write_text(text)
    outcome = edgeattn("models")
    assert outcome.code == 2
    assert message in outcome.error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[targets.jetsno]\ndevice = "local"\n', "[targets.jetsno]: unknown target 'jetsno', did you mean 'jetson'?"),
        (
            '[targets.jetson]\ndevice = "local"\n[targets.jetson-orin-nano]\ndevice = "ssh://a"\n',
            "[targets.jetson-orin-nano]: jetson-orin-nano has two tables; keep one",
        ),
        ('[targets.cpu]\ndevice = "board"\n', "expected one of local, ssh://"),
    ],
)
def test_a_target_or_a_device_that_is_none_is_refused_where_it_is_used(
    edgeattn: Command, small_bundle: Path, text: str, message: str
) -> None:
    Path("edgeattn.toml").write_text(text)
    outcome = edgeattn("profile", small_bundle, *QUICK, "--json")
    assert outcome.code == 2
    assert message in outcome.error
    assert json.loads(outcome.out)["error"]["type"] == "InputError"


def test_options_of_the_targets_command_stand_beside_the_tables(edgeattn: Command) -> None:
    Path("edgeattn.toml").write_text('[targets]\njson = true\n[targets.jetson]\ndevice = "ssh://board"\n')
    outcome = edgeattn("targets")
    assert outcome.code == 0
    assert outcome.json["targets"]


def test_calls_that_are_asked_for_are_all_timed_and_others_have_ten_seconds(
    edgeattn: Command, monkeypatch: pytest.MonkeyPatch, small_bundle: str
) -> None:
    from edgeattn.cli import profile

    asked: list[Any] = []

    def stop(*given: object) -> None:
        asked.append(given[2])
        raise InputError("enough")

    monkeypatch.setattr(profile, "of_bundle", stop)
    assert edgeattn("profile", small_bundle, "--runs", "400").code == 2
    assert edgeattn("profile", small_bundle).code == 2
    assert [(one.runs, one.most_seconds) for one in asked] == [(400, 0.0), (300, 10.0)]
