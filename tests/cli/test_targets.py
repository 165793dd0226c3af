"""``edgeattn targets``: the list, calibrating this machine, preparing an emulated one."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path

import pytest

from edgeattn import targets
from edgeattn.pipeline import calibrate as calibrating
from edgeattn.pipeline.calibrate_models import Size, of_size
from edgeattn.spec import to_json
from edgeattn.targets import get_target, list_targets
from edgeattn.targets.calibration import calibration_path, read_calibration
from edgeattn.targets.devices.qemu_root import EMULATOR, FACTS, Root, python_of, requirements
from tests.cli.conftest import Command
from tests.processors import needs_int8_dot


def test_the_table_shows_what_estimates_are_made_from(edgeattn: Command) -> None:
    outcome = edgeattn("targets")
    assert outcome.code == 0
    rows = {line.split("│")[1].strip(): line for line in outcome.out.splitlines() if line.count("│") > 3}
    assert set(rows) == {target.name for target in list_targets()}
    cells = [cell.strip() for cell in rows["raspberry-pi-4"].split("│")][-6:-1]
    # 12.8 GB/s; 4 cores of 1.8 GHz with 8 float32 and 16 int8 operations a cycle, and no float16.
    assert cells == ["4 GiB", "13", "58", "-", "115"]
    assert "peaks that estimates are made from" in outcome.err


def test_json_tells_every_fact_of_every_target_with_its_source(edgeattn: Command) -> None:
    told = {target["name"]: target for target in edgeattn("targets", "--json").json["targets"]}
    nano = told["jetson-orin-nano-super"]
    target = get_target("jetson-orin-nano-super")
    assert target.power is not None
    assert nano["power"]["modes"] == list(target.power.modes)
    assert [release["tensorrt"] for release in nano["software"]] == [one.tensorrt for one in target.software]
    assert nano["accelerator"]["multiprocessors"] == 8
    assert nano["cpu"]["clusters"][0]["fp32"] == 16
    assert nano["kernels"]["channels"] == 16
    assert all(nano[group]["source"] for group in ("cpu", "memory", "accelerator", "peaks", "kernels", "power"))


def test_a_near_miss_of_an_engine_is_suggested(edgeattn: Command) -> None:
    outcome = edgeattn("targets", "calibrate", "--backend", "openvin")
    assert (outcome.code, outcome.out) == (2, "")
    assert "unknown engine 'openvin', did you mean 'openvino'?" in outcome.error


def test_an_engine_that_cannot_be_calibrated_here_is_refused(
    edgeattn: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    outcome = edgeattn("targets", "calibrate", "--backend", "tensorrt", "--json")
    assert outcome.code == 2
    assert outcome.json["error"]["type"] == "MissingExtraError"
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
@needs_int8_dot
def test_calibrating_keeps_what_it_measured(edgeattn: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    few = functools.partial(calibrating.calibrate, loads=(of_size(Size(8, 64, 1)), of_size(Size(48, 96, 1))))
    monkeypatch.setattr(calibrating, "calibrate", few)
    outcome = edgeattn("targets", "calibrate", "--backend", "onnxruntime", "--json")
    assert outcome.code == 0, outcome.err
    told = outcome.json
    assert told["path"] == str(calibration_path(1))
    kept = read_calibration()
    assert kept is not None
    assert list(kept.engines) == list(told["calibration"]["engines"]) == ["onnxruntime"]
    models = told["calibration"]["engines"]["onnxruntime"]["models"]
    assert [(m["name"], m["precision"]) for m in models] == [
        (name, precision) for name in ("encoder 8x64x1", "encoder 48x96x1") for precision in ("fp32", "int8")
    ]
    assert all(m["measured_ms"] > 0 for m in models)


def test_a_bundle_is_estimated_for_devices_that_are_not_here_and_says_so(edgeattn: Command, small_bundle: Path) -> None:
    done = edgeattn("profile", small_bundle, "--target", "x86-avx512-vnni", "--target", "intel-n100", "--json")
    assert done.code == 0, done.err
    results = done.json["results"]
    assert [row["target"] for row in results] == ["x86-avx512-vnni", "intel-n100"]
    for row in results:
        assert row["latency"] is None
        assert row["estimate"]["kind"] == "estimated"
        assert 0 < row["estimate"]["low_ms"] < row["estimate"]["mid_ms"] < row["estimate"]["high_ms"]
    # The slower of two processors is not the faster one.
    assert results[0]["estimate"]["mid_ms"] < results[1]["estimate"]["mid_ms"]
    people = edgeattn("profile", small_bundle, "--target", "x86-avx512-vnni")
    assert "estimated" in people.out
    refused = edgeattn("profile", small_bundle, "--target", "intel-n100", "--device", "ssh://board")
    assert refused.code == 2
    assert "leave one out" in refused.error
    other = edgeattn("profile", small_bundle, "--target", "jetson")
    assert other.code in (2, 4)
    assert "openvino" in other.error


@pytest.mark.parametrize(
    ("size", "fits", "told"),
    [(8 * 2**30, True, "which fits its memory"), (1000, False, "MORE THAN ITS MEMORY")],
)
def test_an_estimate_tells_whether_the_memory_is_large_enough(
    edgeattn: Command, small_bundle: Path, tmp_path: Path, size: int, fits: bool, told: str
) -> None:
    text = (Path(targets.__file__).parent / "intel-n100.toml").read_text(encoding="utf-8")
    changed, count = re.subn(r"(?m)^bytes = .*$", f"bytes = {size}", text)
    assert count == 1
    board = tmp_path / "board.toml"
    board.write_text(changed, encoding="utf-8")
    row = edgeattn("profile", small_bundle, "--target", board, "--json").json["results"][0]
    assert row["estimate"]["fits"] is fits
    assert row["estimate"]["needs_bytes"] > 1000
    assert any("its memory is too small: weights, states and activations need" in n for n in row["notes"]) is not fits
    people = edgeattn("profile", small_bundle, "--target", board)
    assert people.code == 0
    assert told in people.err
    assert ("memory too small" in people.out) is not fits


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["local"], "only qemu:aarch64 is prepared, got 'local'"),
        (["ssh://board"], "only qemu:aarch64 is prepared"),
        (["qemu:riscv64"], "expected one of local, ssh://"),
        (["qemu:aarch64/a/root", "--root", "b"], "names a folder and --root another one"),
    ],
)
def test_what_cannot_be_prepared_is_refused(edgeattn: Command, words: list[str], message: str) -> None:
    outcome = edgeattn("targets", "prepare", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.error


def test_a_prepared_root_is_told_with_what_is_in_it(edgeattn: Command, tmp_path: Path) -> None:
    if shutil.which(EMULATOR) is None:
        pytest.skip(f"needs {EMULATOR}: apt install qemu-user-static")
    facts = Root("cortex-a76", "3.11.2", "2.36", requirements(), {"libc6": "2.36-9"}, {"numpy": "2.4.6"})
    (tmp_path / FACTS).write_text(json.dumps(to_json(facts)))
    python_of(tmp_path).write_text("#!/bin/sh\n")
    told = edgeattn("targets", "prepare", f"qemu:aarch64{tmp_path}", "--json").json
    assert (told["path"], told["reused"]) == (str(tmp_path), True)
    assert told["root"]["distributions"] == {"numpy": "2.4.6"}
    outcome = edgeattn("targets", "prepare", "qemu:aarch64", "--root", tmp_path)
    assert outcome.out == ""
    assert "Python 3.11.2 for aarch64 on an emulated cortex-a76, glibc 2.36" in outcome.err
    assert f"was there: {tmp_path}" in outcome.err
