"""However a command is ended from outside, it exits as shells expect, and nothing of it is left running or lying."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from edgeattn.errors import DataError
from edgeattn.printable import MAX_MESSAGE
from tests.cli.conftest import ROOT, Command
from tests.conversions import BUNDLES, Converted

pytestmark = pytest.mark.slow

# A shell starts its background jobs with SIGINT ignored, and so may whoever runs these tests.
HEARD = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
PROGRAM = HEARD + "from edgeattn.cli import main; main()"
NOHUP = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); from edgeattn.cli import main; main()"
QUICK = ("--precision", "fp32", "--duration", "0s")


def environment(scratch: Path) -> dict[str, str]:
    scratch.mkdir(exist_ok=True)
    more = {"TMPDIR": str(scratch), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **more}


@contextlib.contextmanager
def converting(
    reference: str, folder: Path, phase: str, more: Sequence[str] = QUICK, program: str = PROGRAM
) -> Iterator[subprocess.Popen[str]]:
    """A conversion that has just begun a phase."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, "convert", reference, *more, "--out", str(folder / "out")],
        env=environment(folder / "scratch"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        assert any(phase in line for line in process.stderr), "the phase came"
        yield process
    finally:
        process.kill()
        process.communicate()


def children_of(pid: int) -> set[int]:
    """All processes below one."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found, waiting = set(), [pid]
    while waiting:
        above = waiting.pop()
        below = {child for child, parent in parents.items() if parent == above}
        found |= below
        waiting += below
    return found


def running(pids: set[int]) -> set[int]:
    alive = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                alive.add(pid)
    return alive


def gone(pids: set[int]) -> bool:
    give_up = time.monotonic() + 20
    while running(pids) and time.monotonic() < give_up:
        time.sleep(0.05)
    return not running(pids)


@pytest.mark.parametrize(
    ("number", "phase"),
    [
        (signal.SIGTERM, "preflight"),
        (signal.SIGHUP, "fp32 with openvino"),
        (signal.SIGTERM, "cpu: profile"),
    ],
)
def test_a_signal_cleans_up_and_exits_as_shells_count(
    converted: Converted, tmp_path: Path, number: signal.Signals, phase: str
) -> None:
    with converting(converted.reference, tmp_path, phase) as process:
        if "profile" in phase:
            time.sleep(0.5)  # the measuring process is there by now
        below = children_of(process.pid)
        process.send_signal(number)
        process.send_signal(number)  # as timeout(1) does: the process, then its group
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + number, ""), err
    assert err.endswith(f"ended by {number.name}; nothing half-written is left\n")
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "scratch").iterdir()) == []
    assert gone(below)


def test_a_killed_run_leaves_no_process_and_the_next_run_removes_the_rest(
    edgeattn: Command, kept: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = ("--precision", "fp32", "--duration", "60s", "--deadline", "10s")
    with converting(kept.reference, tmp_path, "cpu: profile", slow) as process:
        give_up = time.monotonic() + 20
        while not children_of(process.pid) and time.monotonic() < give_up:
            time.sleep(0.02)
        below = children_of(process.pid)
        process.kill()
        process.communicate(timeout=60)
    assert below
    assert gone(below)
    left = [path for place in ("out", "scratch") for path in (tmp_path / place).iterdir()]
    assert len([path for path in left if path.name.startswith((".small-attention.cpu.edge.", "edgeattn-"))]) == 2
    for marker in tmp_path.glob("*/*/.edgeattn-room"):
        os.utime(marker, (time.time() - 60,) * 2)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    outcome = edgeattn("convert", kept.reference, *QUICK, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"small-attention.{BUNDLES['cpu']}"]
    assert not list((tmp_path / "scratch").glob("edgeattn-*"))


def test_a_hangup_that_is_ignored_stays_ignored(converted: Converted, tmp_path: Path) -> None:
    with converting(converted.reference, tmp_path, "preflight", program=NOHUP) as process:
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=120)
    assert process.returncode == 0


SWALLOWS = """\
import signal, sys
from edgeattn.cli import ending

def work():
    try:
        signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt:
        sys.exit(70)

code = ending.run(work)
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
sys.exit(code)
"""


def test_a_signal_that_a_library_swallows_still_ends_the_command() -> None:
    # In a process of its own: pytest's faulthandler has an alternate stack that is too small for a signal's frame on
    # processors with AMX.
    done = subprocess.run([sys.executable, "-c", SWALLOWS], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "ended by SIGTERM; nothing half-written is left\n")


def shell(line: str, tmp_path: Path) -> tuple[int, str]:
    """Status and stderr of a line of bash in which ``edgeattn`` is ours."""
    ours = f'edgeattn() {{ "{sys.executable}" -c "from edgeattn.cli import main; main()" "$@"; }}; '
    done = subprocess.run(
        ["bash", "-c", ours + line], cwd=tmp_path, env=environment(tmp_path / "tmp"), capture_output=True, text=True
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("edgeattn models > /dev/full", "No space left on device"),
        ("edgeattn --help > /dev/full", "No space left on device"),
        ("edgeattn doctor --json > /dev/full", "No space left on device"),
        ("edgeattn doctor > /dev/full", "No space left on device"),
        ("edgeattn models >&-", "Bad file descriptor"),
    ],
)
def test_an_output_that_is_full_is_exit_2_and_one_line(tmp_path: Path, line: str, reason: str) -> None:
    assert shell(line, tmp_path) == (2, f"error: stdout: {reason}; the result was not told\n")


@pytest.mark.parametrize("command", ["models", "models --json", "--help"])
def test_an_output_that_nobody_reads_is_no_failed_gate(tmp_path: Path, command: str) -> None:
    line = f"edgeattn {command} | true; exit ${{PIPESTATUS[0]}}"
    assert shell(line, tmp_path) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("edgeattn models >&- 2>&-", 2),
        ("edgeattn models 2>&- > /dev/null", 0),
        ("edgeattn models <&- > /dev/null", 0),
        ("edgeattn inspect nothing.onnx 2> /dev/full", 2),
        ("edgeattn inspect nothing.onnx --json > /dev/full 2> /dev/full", 2),
    ],
)
def test_closed_and_full_streams_hide_no_verdict(tmp_path: Path, line: str, status: int) -> None:
    assert shell(line, tmp_path) == (status, "")


def test_a_stderr_that_fails_changes_nothing(kept: Converted, tmp_path: Path) -> None:
    line = f"edgeattn convert {kept.reference} {' '.join(QUICK)} --out out --json 2> /dev/full > report.json"
    assert shell(line, tmp_path) == (0, "")
    assert json.loads((tmp_path / "report.json").read_text())["results"][0]["passed"]
    assert (tmp_path / f"out/small-attention.{BUNDLES['cpu']}").is_dir()


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("a\0b.onnx", "NUL"),
        ("caf\udce9.onnx", "not UTF-8"),
        ("x" * 100_000, "100000 characters, more than 2048"),
        ("y" * 300 + ".onnx", "File name too long"),
        ("z/" * 1_000 + "model.onnx", "no such file"),
    ],
    ids=["nul", "surrogate", "long", "long name", "long path"],
)
@pytest.mark.parametrize("command", ["inspect", "convert", "check", "selftest", "stream"])
def test_an_argument_that_can_be_no_name_is_one_short_error(
    edgeattn: Command, command: str, argument: str, words: str
) -> None:
    outcome = edgeattn(command, argument, *(["x.wav"] if command == "stream" else []))
    assert outcome.code == 2
    assert len(outcome.err) < 4_000
    if command in ("inspect", "convert"):
        assert words in outcome.error
    else:
        assert outcome.error


def test_settings_are_held_to_the_same(edgeattn: Command, tmp_path: Path) -> None:
    (tmp_path / "edgeattn.toml").write_text('[convert]\ndata = "a\\u0000b"\n')
    outcome = edgeattn("convert")
    assert outcome.code == 2
    assert "NUL" in outcome.error


def test_messages_are_bounded_and_keep_both_ends() -> None:
    message = str(DataError("expected this, got " + "x" * 1_000_000 + "; do that"))
    assert len(message) <= MAX_MESSAGE
    assert message.startswith("expected this, got ")
    assert message.endswith("; do that")
    assert "characters in all" in message
