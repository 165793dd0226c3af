"""``python -m edgeattn.runtimes``: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgeattn.bundle import zip_bundle
from edgeattn.runtimes import __main__ as command
from edgeattn.runtimes import open_session
from edgeattn.runtimes.selftest import as_json_text, as_lines, make_golden, selftest
from edgeattn.spec import to_json
from tests.runtimes.test_selftest import golden_inputs, make_bundle
from tests.runtimes.tiny import tiny_spec

Files = Callable[[str], Path]
ROOT = Path(__file__).parents[2]

# A replay that says that it has begun, and then waits for its end.
WAITING = """
import runpy, sys, time
from edgeattn.runtimes import selftest

def wait(*_):
    sys.stderr.write("begun\\n")
    sys.stderr.flush()
    time.sleep(60)

selftest.replay_golden = wait
runpy.run_module("edgeattn.runtimes", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def good(tiny_file: Files, tmp_path: Path) -> Path:
    return make_bundle(tmp_path, "onnxruntime", tiny_file("onnxruntime"))


def test_a_replay_that_passes_is_told_as_the_library_tells_it(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = selftest(good)
    assert command.main(["selftest", str(good)]) == 0
    assert capsys.readouterr().out == as_lines(result) + "\n"
    assert command.main(["selftest", str(good), "--json", "--threads", "2", "--backend", "onnxruntime"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"schema": 1, **to_json(result), "threads": 2, "load_ms": told["load_ms"]}
    assert json.loads(as_json_text(result))["outputs"]["main.log_probs"]["passed"] is True


def test_a_replay_that_differs_exits_1_and_names_the_output(
    tiny_file: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_session("onnxruntime", {"main": tiny_file("onnxruntime")}, tiny_spec()) as session:
        golden = make_golden(session, golden_inputs())
    golden["main.out.log_probs"] *= 1.01  # 40 dB, and 60 are wanted
    assert command.main(["selftest", str(make_bundle(tmp_path, "onnxruntime", tiny_file("onnxruntime"), golden))]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("FAILED main.log_probs: 40.")
    assert last.endswith("FAILED")


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((), "InputError", "required: COMMAND; usage: python -m edgeattn.runtimes"),
        (("selftest",), "InputError", "required: BUNDLE; usage: python -m edgeattn.runtimes selftest"),
        (("selftest", "x", "--threads", "two"), "InputError", "--threads: invalid int value: 'two'"),
        (("selftest", "missing.edge"), "BundleError", "missing.edge: no such bundle"),
        (("selftest", "a\x1b[2J\udcff.edge"), "BundleError", r"a\x1b[2J\udcff.edge"),
    ],
)
def test_what_cannot_be_done_exits_2_in_one_line_and_in_json(
    arguments: tuple[str, ...], kind: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([*arguments, "--json"]) == 2
    told, line = capsys.readouterr()
    assert json.loads(told)["error"]["type"] == kind
    assert line.startswith("error: ")
    assert message in line
    assert len(line.splitlines()) == 1
    assert command.main(arguments) == 2
    assert not capsys.readouterr().out


def test_a_bug_of_ours_is_no_failed_gate(
    good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def break_down(*_: object) -> None:
        raise AssertionError("nobody thought of this")

    monkeypatch.setattr(command, "selftest", break_down)
    assert command.main(["selftest", str(good)]) == 70
    assert "nobody thought of this\nthis is a bug in edgeattn" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_ends_it_and_leaves_no_unpacked_bundle(number: int, code: int, good: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job ignores it
    process = subprocess.Popen(
        [sys.executable, "-c", heard + WAITING, "selftest", str(zip_bundle(good, tmp_path / "tiny.zip"))],
        env={**os.environ, "TMPDIR": str(scratch), "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == "begun\n"
        assert list(scratch.iterdir())
        process.send_signal(number)
        _, told = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in told
    assert not list(scratch.iterdir())


@pytest.mark.parametrize(
    ("redirected", "code", "told"),
    [
        (">/dev/full", 2, "error: No space left on device\n"),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
        ("| true", 141, ""),
    ],
)
def test_an_output_that_nobody_takes_ends_as_shells_expect(redirected: str, code: int, told: str, good: Path) -> None:
    line = f'"$0" -m edgeattn.runtimes selftest "$1" {redirected}'
    if redirected.startswith("|"):  # the reader is gone before there is anything to read
        line = f'{{ sleep 1; "$0" -m edgeattn.runtimes selftest "$1"; }} {redirected}; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", line, sys.executable, str(good)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (code, told)


def test_lines_and_json_take_whatever_figures_there_are(good: Path) -> None:
    result = selftest(good)
    output = replace(result.outputs["main.log_probs"], sqnr_db=float("nan"), max_abs=float("inf"), passed=False)
    broken = replace(result, outputs={"main.log_probs": output}, passed=False)
    assert as_lines(broken).splitlines()[0] == "FAILED main.log_probs: nan dB"
    told = json.loads(as_json_text(broken))["outputs"]["main.log_probs"]
    assert told == {"sqnr_db": None, "max_abs": None, "passed": False}
