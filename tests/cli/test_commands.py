"""What every command keeps: exit codes, one JSON object on stdout, one line per error, quick help."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.bundle import MANIFEST
from edgeattn.cli import COMMANDS
from tests.cli.conftest import ROOT, Command
from tests.conversions import BUNDLES, Converted

QUICK = ("--duration", "0s")
HEAVY = (
    "numpy", "torch", "onnx", "onnxruntime", "openvino", "ai_edge_litert", "litert_torch", "tensorrt", "tensorrt_rtx",
    "nncf", "soundfile", "rich.progress", "rich.live", "edgeattn.runtimes", "edgeattn.pipeline.convert",
)  # fmt: skip


def damage(bundle: Path, to: Path) -> Path:
    """A copy with one bit of its largest file flipped."""
    copy = shutil.copytree(bundle, to)
    largest = max((p for p in copy.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    return copy


def rewrite(bundle: Path, to: Path, **changes: Any) -> Path:
    """A copy with other fields in its manifest."""
    copy = shutil.copytree(bundle, to)
    values = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps({**values, **changes}))
    return copy


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_loads_no_framework(arguments: list[str]) -> None:
    program = (
        f"import sys; sys.argv = ['edgeattn', *{arguments!r}]\n"
        "from edgeattn.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")
    assert "Usage" in done.stdout


def test_help_names_every_command(edgeattn: Command) -> None:
    text = edgeattn("--help").out
    assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize("arguments", [["no-such-command"], ["convert", "--no-such-flag"], ["check"], ["stream", "x"]])
def test_wrong_usage_exits_2(edgeattn: Command, arguments: list[str]) -> None:
    outcome = edgeattn(*arguments)
    assert (outcome.code, outcome.out) == (2, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "x", "--deadline", "soon"],
        ["check", "x", "--max-size", "4 parsecs"],
        ["check", "x", "--max-drop", "-1"],
        ["convert", "--samples", "0"],
        ["convert", "--duration", "-3s"],
        ["convert", "--time-budget", "2"],
        ["quantize", "x", "--recover", "soon"],
        ["profile", "x", "--threads", "0"],
    ],
)
def test_a_value_that_makes_no_sense_exits_2(edgeattn: Command, arguments: list[str]) -> None:
    outcome = edgeattn(*arguments)
    assert outcome.code == 2
    assert "Invalid value" in outcome.err


def test_convert_writes_a_bundle_and_one_object(edgeattn: Command, kept: Converted, tmp_path: Path) -> None:
    outcome = edgeattn("convert", kept.reference, "--data", kept.data, "--precision", "fp16", *QUICK, "--json")
    assert outcome.code == 0, outcome.err
    (result,) = outcome.json["results"]
    assert (result["passed"], result["precision"]["shipped"]) == (True, "fp16")
    assert (tmp_path / result["bundle"]).is_dir()
    assert "baseline" in outcome.err  # the log of a run that no terminal watches


def test_convert_prints_every_candidate_and_why(edgeattn: Command, kept: Converted) -> None:
    outcome = edgeattn("convert", kept.reference, "--data", kept.data, *QUICK)
    assert outcome.code == 0, outcome.err
    for recipe in ("fp32", "fp16", "int8-static", "int8-dynamic"):
        assert recipe in outcome.out
    assert "fastest float; not proved: " in outcome.out  # the samples are few


@pytest.mark.slow
def test_quantize_saves_a_plan_and_one_object(edgeattn: Command, converted: Converted, tmp_path: Path) -> None:
    arguments = ("quantize", converted.reference, "--data", converted.data, "--precision", "int8-static", "--json")
    outcome = edgeattn(*arguments, "--out", "result")
    assert outcome.code == 0, outcome.err
    (result,) = outcome.json["results"]
    assert (result["precision"]["shipped"], result["bundle"]) == ("int8", None)
    folder = tmp_path / "result" / "small-attention.cpu.quantized"
    assert {path.name for path in folder.iterdir()} == {"main.xml", "main.bin", "plan.toml", "quantize.json"}
    again = edgeattn(*arguments, "--out", "result")
    assert again.code == 2
    assert "exists; remove it, choose another --out, or pass --force" in again.error
    assert edgeattn(*arguments, "--out", "result", "--force", "--plan", folder / "plan.toml").code == 0


@pytest.mark.slow
def test_sizes_come_from_the_command_line_or_from_the_settings(edgeattn: Command, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="conversion needs edgeattn[convert]")
    (tmp_path / "encoder.py").write_text("from tests.several import masked_encoder as model\n")
    (tmp_path / "calls.py").write_text(
        "import numpy as np\n\n\ndef samples():\n    for n in range(1, 17):\n"
        "        yield {'ids': np.arange(n), 'mask': np.ones(n, np.int64), 'target_pooled': np.array(1)}\n"
    )
    (tmp_path / "edgeattn.toml").write_text('[convert]\nbucket = ["seq=16,8"]\n')
    common = ("--precision", "fp32", "--backend", "onnxruntime", "--data", "calls.py:samples", *QUICK, "--json")
    outcome = edgeattn("convert", "encoder.py", *common)
    assert outcome.code == 0, outcome.err
    (result,) = outcome.json["results"]
    assert [(row["name"], row["sizes"]) for row in result["buckets"]] == [
        ("main_8", {"seq": 8}),
        ("main_16", {"seq": 16}),
    ]
    assert result["accuracy"]["source"] == result["accuracy"]["deployed"]
    assert outcome.json["model"]["buckets"] == {"main": ["main_8", "main_16"]}
    again = edgeattn("convert", "encoder.py", "--bucket", "seq=4", "--out", "other", *common)
    assert again.code == 2  # the command line wins, and a sample of 5 tokens is longer than 4
    assert "ids[4] has shape (5,), the model takes (1, 4) or less" in again.error
    checked = edgeattn("check", result["bundle"], "--model", "encoder.py", "--duration", "0s", "--json")
    assert checked.code == 0, checked.err
    assert all(row["parity"] for row in checked.json["results"][0]["buckets"])
    profiled = edgeattn("profile", result["bundle"], "--runs", "5", "--json")
    assert [row["p50_ms"] > 0 for row in profiled.json["results"][0]["buckets"]] == [True, True]


def test_convert_prints_a_table_with_the_bundles(edgeattn: Command, kept: Converted) -> None:
    outcome = edgeattn(
        "convert", kept.reference, "--data", kept.data, "--precision", "fp32", *QUICK, "--target", "jetson"
    )
    assert outcome.code == 0, outcome.err
    assert "jetson-orin-nano" in outcome.out
    assert "bundle: out/small-attention.jetson-orin-nano.edge" in outcome.out


def test_an_alias_of_a_target_is_the_same_target(edgeattn: Command, kept: Converted) -> None:
    names = ("--target", "jetson", "--target", "jetson-orin-nano")
    outcome = edgeattn("convert", kept.reference, "--data", kept.data, "--precision", "fp32", *QUICK, *names, "--json")
    assert outcome.code == 0, outcome.err
    assert len(outcome.json["results"]) == 1


@pytest.mark.slow
def test_a_failed_gate_exits_1_and_writes_nothing(edgeattn: Command, kept: Converted, tmp_path: Path) -> None:
    arguments = ("convert", kept.reference, "--precision", "fp32", *QUICK, "--max-size", "1kB", "--json")
    outcome = edgeattn(*arguments)
    assert outcome.code == 1
    (result,) = outcome.json["results"]
    assert (result["passed"], result["bundle"]) == (False, None)
    assert [failure["gate"] for failure in result["failures"]] == ["size"]
    assert not (tmp_path / "out").exists()
    assert edgeattn(*arguments, "--keep-failed").code == 1
    assert (tmp_path / "out/small-attention.cpu.edge").is_dir()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["streaming-confomer"], 2, "unknown model 'streaming-confomer', did you mean 'streaming-conformer'?"),
        (["missing.py"], 2, "missing.py: no such file"),
        (["net.onnx"], 2, "net.onnx: no such file"),
        ([".", "--target", "jetsno"], 2, "unknown target 'jetsno', did you mean 'jetson'? Valid: android-arm64, "),
        (
            ["MODEL", "--precision", "int4"],
            2,
            "unknown precision 'int4', did you mean 'int8'? Valid: auto, fp16, fp32, int4-weights, int8, int8-dynamic,",
        ),
        (["MODEL", "--backend", "tflite"], 4, "unknown engine 'tflite'"),
        (["MODEL", "--data", "missing"], 2, "missing: no such data"),
        (["MODEL", "--target", "lean.toml", "--precision", "int8"], 4, "litert on lean has no int8; it has fp32"),
        (["MODEL", "--target", "missing.toml"], 2, "missing.toml: the target file cannot be read"),
        (["MODEL", "--plan", "no.toml"], 2, "no.toml: the plan cannot be read (No such file or directory)"),
        (["MODEL", "--plan", "wrong.toml"], 2, "wrong.toml: plan.rules[0]: field 'treatment' is missing"),
        (["MODEL", "--plan", "idle.toml", "--precision", "fp16"], 2, "--plan is for int8 and --precision is fp16"),
        (["MODEL", "--recover", "1min", "--precision", "fp32"], 2, "--recover is for int8 and --precision is fp32"),
        (["MODEL", "--recover", "1min"], 2, "--recover trains on --data, which is not given"),
        (["MODEL", "--calibration-samples", "9"], 2, "no data: 9 calibration samples were asked for and 0 are there"),
        (
            ["MODEL", "--precision", "int8-nncf", "--target", "mobile"],
            4,
            "litert on android-arm64 has no int8-nncf",
        ),
        (["MODEL", "--precision", "int8-static"], 4, "static int8 takes the ranges of its activations from data"),
        (["MODEL", "--out", "file/out"], 2, "cannot be written: Not a directory"),
        (["MODEL", "--bucket", "seq"], 2, "--bucket seq: expected NAME=SIZE,SIZE such as seq=64,128,256"),
        (["MODEL", "--bucket", "seq=0"], 2, "bucket seq: sizes are whole numbers from 1 to"),
        (["MODEL", "--bucket", "seq=16"], 2, "bucket seq=16: forward of graph 'main' refuses it"),
        (["MODEL", "--fill", "tokens=1"], 2, "nothing is padded without --bucket"),
        (["streaming-conformer", "--bucket", "feats.1=64"], 2, "is a stream: its chunk has one size"),
    ],
)
def test_convert_refuses_in_one_line_with_the_right_code(
    edgeattn: Command, kept: Converted, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "lean.toml").write_text(
        'name = "lean"\ntitle = "x"\nbackends = ["litert"]\n[precisions]\nlitert = ["fp32"]\n'
        '[cpu]\narch = "aarch64"\ncores = 1\nisa = []\nsource = "x"\n[memory]\nsource = "x"\n'
    )
    (tmp_path / "wrong.toml").write_text('[[rules]]\npattern = "a"\n')
    (tmp_path / "idle.toml").write_text('[[rules]]\npattern = "encoder.*"\ntreatment = "float"\n')
    before = sorted(tmp_path.iterdir())
    outcome = edgeattn("convert", *[kept.reference if a == "MODEL" else a for a in arguments], *QUICK, "--json")
    assert outcome.code == code
    assert message in outcome.error
    assert outcome.json["error"]["message"] == outcome.error.removeprefix("error: ")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokens": np.zeros((4, 7, 16), np.float32)}, r"tokens\[0\] has shape (7, 16), the model takes (1, 8, 16)"),
        ({"token": np.zeros((4, 8, 16), np.float32)}, "array 'token' is neither an input (tokens) nor a target"),
        ({"tokens": np.full((4, 8, 16), np.nan, np.float32)}, r"tokens\[0\] holds NaN"),
    ],
)
def test_data_that_does_not_fit_is_refused(
    edgeattn: Command, kept: Converted, tmp_path: Path, changed: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "data.npz", allow_pickle=False, **changed)
    outcome = edgeattn("convert", kept.reference, "--data", "data.npz", *QUICK)
    assert outcome.code == 2
    assert message.replace("\\", "") in outcome.error


@pytest.mark.parametrize(
    ("missing", "target", "extra"), [("torch", "cpu", "convert"), ("litert_torch", "mobile", "tflite")]
)
def test_a_missing_extra_is_one_line_with_the_command(
    edgeattn: Command, converted: Converted, monkeypatch: pytest.MonkeyPatch, missing: str, target: str, extra: str
) -> None:
    real = importlib.import_module

    def without(name: str, package: str | None = None) -> Any:
        if name.split(".", maxsplit=1)[0] == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    outcome = edgeattn("convert", converted.reference, "--target", target, "--precision", "fp32", *QUICK)
    assert outcome.code == 2
    assert f"pip install 'edgeattn[{extra}]'" in outcome.error
    assert not Path("out").exists()


def test_a_missing_engine_is_one_line_with_the_command(
    edgeattn: Command, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "openvino" else real(name, *rest)
    )
    outcome = edgeattn("selftest", small_bundle)
    assert outcome.code == 2
    assert "openvino is not installed: pip install openvino" in outcome.error


def test_a_full_temporary_directory_is_one_line(
    edgeattn: Command, kept: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tempfile.mkdtemp

    def full(suffix: str | None = None, prefix: str | None = None, dir: Path | None = None) -> str:  # noqa: A002
        if prefix == "edgeattn-":  # of TMPDIR; what is published lies beside its destination
            raise OSError(28, "No space left on device", "/tmp/edgeattn-x")
        return there(suffix, prefix, dir)

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    outcome = edgeattn("convert", kept.reference, "--precision", "fp32", *QUICK)
    assert outcome.code == 2
    assert outcome.error == "error: /tmp/edgeattn-x: No space left on device"


@pytest.mark.slow
def test_ctrl_c_exits_130_and_leaves_nothing(converted: Converted, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    # A shell starts its background jobs with SIGINT ignored, and Python then leaves it so.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{heard}; from edgeattn.cli import main; main()"]
    arguments = ["convert", converted.reference, "--precision", "fp32", *QUICK, "--out", str(tmp_path / "out")]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "scratch"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "fp32 with openvino" in line:
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, ""), err
    assert "interrupted; nothing half-written is left" in err
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "scratch").glob("edgeattn-*"))


def test_check_measures_and_passes(edgeattn: Command, converted: Converted, small_bundle: Path) -> None:
    outcome = edgeattn(
        "check", small_bundle, "--model", converted.reference, "--data", converted.data, *QUICK, "--json"
    )
    assert outcome.code == 0, outcome.err
    (result,) = outcome.json["results"]
    assert result["parity"]["steps"] == 32
    assert result["accuracy"]["source"] == 100.0
    assert result["latency"]["p50_ms"] > 0


def test_check_compares_with_what_convert_recorded(edgeattn: Command, converted: Converted, small_bundle: Path) -> None:
    outcome = edgeattn("check", small_bundle, "--data", converted.data, *QUICK, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["results"][0]["accuracy"]["source"] == 100.0  # the same samples as when it was made


@pytest.mark.parametrize(
    ("flag", "value", "gate"), [("--max-size", "1kB", "size"), ("--deadline", "0.001us", "deadline")]
)
def test_check_exits_1_when_a_gate_fails(
    edgeattn: Command, small_bundle: Path, flag: str, value: str, gate: str
) -> None:
    outcome = edgeattn("check", small_bundle, flag, value, *QUICK, "--json")
    assert outcome.code == 1
    assert [failure["gate"] for failure in outcome.json["results"][0]["failures"]] == [gate]


def test_check_without_json_names_the_failed_gate(edgeattn: Command, small_bundle: Path) -> None:
    outcome = edgeattn("check", small_bundle, "--max-size", "1kB", *QUICK)
    assert outcome.code == 1
    assert "FAILED" in outcome.out
    assert "size: wanted at most 1000 bytes" in outcome.out


@pytest.mark.parametrize("command", ["check", "profile", "selftest"])
@pytest.mark.parametrize("case", ["missing", "changed", "future", "outside"])
def test_a_bad_bundle_is_refused_in_one_line(
    edgeattn: Command, small_bundle: Path, tmp_path: Path, command: str, case: str
) -> None:
    path = tmp_path / "bad.edge"
    entry = {"sha256": "0" * 64, "size": 1}
    message = {
        "missing": "bad.edge: no such bundle",
        "changed": "was changed",
        "future": "format version 99, this edgeattn reads up to 3; update edgeattn",
        "outside": "'../../etc/passwd' is not a path inside the bundle",
    }[case]
    if case == "changed":
        damage(small_bundle, path)
    elif case == "future":
        rewrite(small_bundle, path, format_version=99)
    elif case == "outside":
        rewrite(small_bundle, path, files={"../../etc/passwd": entry})
    outcome = edgeattn(command, path, "--json")
    assert outcome.code == 2
    assert message in outcome.error
    assert outcome.json["error"]["type"] == "BundleError"


@pytest.mark.parametrize("command", ["check", "profile", "selftest"])
def test_an_unknown_engine_lists_the_valid_ones(edgeattn: Command, small_bundle: Path, command: str) -> None:
    outcome = edgeattn(command, small_bundle, "--backend", "openvin")
    assert outcome.code == 2
    assert "did you mean 'openvino'? Valid: litert, onnxruntime, openvino, tensorrt" in outcome.error


def test_a_device_that_is_not_here_exits_3(edgeattn: Command, converted: Converted) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has an NVIDIA GPU")
    outcome = edgeattn("selftest", converted.out / f"small-attention.{BUNDLES['jetson']}")
    assert outcome.code == 3
    assert "onnxruntime" in outcome.error  # what can replay it here


def test_selftest_passes_and_tells_what_ran(edgeattn: Command, small_bundle: Path) -> None:
    outcome = edgeattn("selftest", small_bundle, "--json")
    assert outcome.code == 0
    assert outcome.json["passed"] is True
    assert outcome.json["executed"]
    assert "passed" in edgeattn("selftest", small_bundle).out


def test_profile_with_layers_gives_the_slowest(edgeattn: Command, small_bundle: Path) -> None:
    outcome = edgeattn("profile", small_bundle, "--runs", "20", *QUICK, "--layers", "--json")
    assert outcome.code == 0, outcome.err
    latency = outcome.json["results"][0]["latency"]
    times = [layer["microseconds"] for layer in latency["layers"]]
    assert times == sorted(times, reverse=True)
    assert times[0] > 0
    assert latency["runs"] == 20


def test_profile_for_people_tells_load_and_memory(edgeattn: Command, small_bundle: Path) -> None:
    outcome = edgeattn("profile", small_bundle, "--runs", "20", *QUICK, "--layers")
    assert outcome.code == 0
    assert re.search(r"load \d+ ms, first call [\d.]+ ms, 20 runs on 1 thread", outcome.err)
    assert " us  " in outcome.out


def test_profile_of_a_substitute_says_emulated(edgeattn: Command, converted: Converted) -> None:
    path = converted.out / f"small-attention.{BUNDLES['jetson']}"
    outcome = edgeattn("profile", path, "--runs", "5", *QUICK, "--backend", "onnxruntime", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["results"][0]["latency"]["kind"] == "emulated"


def test_doctor_tells_engines_and_processor(edgeattn: Command) -> None:
    outcome = edgeattn("doctor", "--json")
    assert outcome.code == 0
    engines = {engine["name"]: engine for engine in outcome.json["engines"]}
    assert set(engines) == {"openvino", "litert", "onnxruntime", "tensorrt"}
    assert all(engine["install"] for engine in engines.values())
    assert outcome.json["cpu"]["cores"] >= 1
    assert isinstance(outcome.json["cpu"]["int8_dot"], bool)
    assert outcome.json["tools"]["torch"]["present"] is True
    text = edgeattn("doctor").out
    assert "openvino" in text


def test_models_and_targets_are_listed(edgeattn: Command) -> None:
    assert [model["name"] for model in edgeattn("models", "--json").json["models"]] == ["streaming-conformer"]
    names = [target["name"] for target in edgeattn("targets", "--json").json["targets"]]
    assert {"cpu", "jetson-orin-nano", "raspberry-pi-5", "pixel-8"} <= set(names)
    assert "streaming-conformer" in edgeattn("models").out
    assert "jetson-orin-nano" in edgeattn("targets").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["streaming-confomer", "--data", "."],
            "unknown model 'streaming-confomer', did you mean 'streaming-conformer'?",
        ),
        (["streaming-conformer", "--data", "missing"], "missing"),
        (["streaming-conformer", "--data", "empty"], "empty"),
        (["streaming-conformer", "--data", "wrong"], "transcripts.tsv:1: the header lacks path"),
    ],
)
def test_train_refuses_what_it_cannot_use(
    edgeattn: Command, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong/fsdd").mkdir(parents=True)
    (tmp_path / "wrong/fsdd/transcripts.tsv").write_text("file,text\n")
    outcome = edgeattn("train", *arguments, "--steps", "1")
    assert outcome.code == 2
    assert message in outcome.error
    assert not (tmp_path / "training").exists() or not list((tmp_path / "training").iterdir())


@pytest.mark.parametrize("refused", [False, True])
def test_no_color_is_honoured(
    edgeattn: Command, small_bundle: Path, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    if refused:
        monkeypatch.setenv("NO_COLOR", "1")
    else:
        monkeypatch.delenv("NO_COLOR", raising=False)
    text = edgeattn("profile", small_bundle, "--runs", "3", *QUICK).out
    coloured = re.search(r"\x1b\[[\d;]*\b[349][0-7]", text) is not None
    assert coloured == (not refused)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("adb:", "needs Android's adb on this machine: apt install adb"),
        ("ssh://board", "needs OpenSSH's ssh on this machine: apt install openssh-client"),
        ("qemu:aarch64", "no qemu-aarch64-static on this machine: apt install qemu-user-static"),
    ],
)
def test_a_device_that_nothing_here_can_reach_exits_3(
    edgeattn: Command, small_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, message: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = edgeattn("profile", small_bundle, "--device", device, "--json")
    assert outcome.code == 3
    assert outcome.json["error"]["type"] == "DeviceError"
    assert message in outcome.error


def alone(*words: object) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own: an engine tells of itself once."""
    program = [sys.executable, "-c", "from edgeattn.cli import main; main()", *map(str, words)]
    return subprocess.run(program, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("command", [("check", *QUICK), ("profile", "--runs", 3, *QUICK)])
@pytest.mark.parametrize("target", BUNDLES)
def test_no_engine_tells_of_itself_unless_it_is_asked(
    converted: Converted, target: str, command: tuple[object, ...]
) -> None:
    other = ("--backend", "onnxruntime") if target == "jetson" else ()
    done = alone(command[0], converted.out / f"small-attention.{BUNDLES[target]}", *command[1:], *other)
    assert done.returncode in {0, 1}, done.stderr
    assert not [line for line in done.stderr.splitlines() if re.match(r"INFO|WARNING|\[|[WIE]\d{4}", line)]


def test_an_engine_tells_of_itself_to_who_asks(converted: Converted) -> None:
    done = alone("check", converted.out / f"small-attention.{BUNDLES['mobile']}", *QUICK, "-v")
    assert "INFO: Created TensorFlow Lite" in done.stderr


def test_a_model_that_is_not_built_in_cannot_be_trained(edgeattn: Command, tmp_path: Path) -> None:
    outcome = edgeattn("train", "streaming-confomer", "--data", tmp_path, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "streaming-conformer" in outcome.error  # what was meant
    assert not (tmp_path / "out").exists()
