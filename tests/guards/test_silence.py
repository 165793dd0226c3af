"""What tools say, as a command asks for it: all of it on stderr, or without an engine's INFO lines."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeattn.guards import silence
from edgeattn.guards.silence import silenced, without_info


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    silence.tell_all(False)
    silence.drop_info(False)


def speak() -> None:
    sys.stdout.write("to stdout\n")
    sys.stdout.flush()
    os.write(1, b"from C\n")
    os.write(2, b"to stderr\n")


def test_what_is_silenced_goes_to_stderr_for_who_wants_all_of_it(capfd: pytest.CaptureFixture[str]) -> None:
    with silenced():
        speak()
    assert capfd.readouterr() == ("", "")
    silence.tell_all(True)
    with silenced():
        speak()
    said = capfd.readouterr()
    assert said.out == ""
    assert sorted(said.err.splitlines()) == ["from C", "to stderr", "to stdout"]
    speak()
    assert capfd.readouterr() == ("to stdout\nfrom C\n", "to stderr\n")  # as before


@pytest.mark.parametrize("dropping", [False, True])
def test_info_lines_are_dropped_where_a_command_says_so(capfd: pytest.CaptureFixture[str], dropping: bool) -> None:
    silence.drop_info(dropping)
    with contextlib.suppress(KeyError), without_info():
        os.write(2, b"INFO: Created a delegate.\nERROR: a real one\nno INFO: either\n")
        raise KeyError
    os.write(2, b"INFO: after\n")
    kept = "ERROR: a real one\nno INFO: either\nINFO: after\n"
    assert capfd.readouterr().err == ("" if dropping else "INFO: Created a delegate.\n") + kept


def test_a_closed_stderr_is_left_closed() -> None:
    program = (
        "import os; from edgeattn.guards import silence; silence.drop_info(True); os.close(2)\n"
        "with silence.without_info(): print('done')\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n")
