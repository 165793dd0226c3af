"""A slice of the attacks; ``python -m tests.attacks`` is the long run."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attacks.kinds import KINDS
from tests.attacks.run import ROOT, batch
from tests.attacks.worker import Outcome, judge

pytestmark = pytest.mark.slow

SEED = 13
SLOW = ("device", "onnx", "ort", "pt2", "tflite")
FRAMEWORKS = ("ai_edge_litert", "onnx", "onnxruntime", "soundfile", "torch")  # make or run what attacks start from


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    """Some attacks of each kind, one process for all: most of the time is imports."""
    for name in FRAMEWORKS:
        pytest.importorskip(name, reason="makes or runs what attacks start from")
    fast = tuple(kind for kind in KINDS if kind not in SLOW)
    return [*batch(fast, SEED, 0, 30), *batch(SLOW, SEED, 0, 15)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_attacks_end_with_one_printable_line_and_the_right_exit_code(outcomes: list[Outcome], kind: str) -> None:
    own = [outcome for outcome in outcomes if outcome.kind == kind]
    problems = [
        f"python -m tests.attacks --kind {kind} --seed {SEED} --index {one.index}: {one.problem}\n{one.said}"
        for one in own
        if one.problem
    ]
    assert not problems, "\n".join(problems)
    assert len(own) == (15 if kind in SLOW else 30)


def test_the_script_itself_ends_as_it_does_in_one_process(tmp_path: Path) -> None:
    for index, kind in enumerate(("manifest", "settings")):
        folder = tmp_path / kind
        folder.mkdir()
        attack = KINDS[kind](random.Random(index), folder, str(tmp_path / "mark"))
        program = f"import sys; sys.argv = ['edgeattn', *{list(attack.words)!r}]; from edgeattn.cli import main; main()"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True)
        assert judge(done.returncode, done.stdout, done.stderr, "--json" in attack.words) == []
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("code", "out", "err", "problem"),
    [
        (70, b"", b"Traceback (most recent call last):\n", "exit 70"),
        (2, b"", b"error: \x1b[31mred\n", "stderr holds ['\\x1b']"),
        (2, b"", "error: \u202ereversed\n".encode(), "stderr holds ['\\u202e']"),
        (2, b"", b"error: " + b"x" * 4_000, "an error of 4007 characters"),
        (0, b"\xff\n", b"", "stdout is no UTF-8"),
        (3, b"", b"", "an error that says nothing"),
    ],
)
def test_the_oracle_sees_what_it_is_for(code: int, out: bytes, err: bytes, problem: str) -> None:
    assert problem in judge(code, out, err, as_json=False)


@pytest.mark.parametrize("out", [b'{"a": NaN}', b'{"a": 1e999}', b'{"a": 1, "a": 2}', b"{", b'{"a": "\\ud800"}'])
def test_the_oracle_knows_what_is_no_json(out: bytes) -> None:
    assert judge(0, out, b"", as_json=True)
