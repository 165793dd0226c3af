"""What the engines' tools print stays away from the terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings

import pytest

from edgeattn.guards.silence import silenced


def chatter() -> None:
    sys.stdout.write("written\n")
    os.write(1, b"from C++ on stdout\n")
    os.write(2, b"from C++ on stderr\n")
    warnings.warn("deprecated", FutureWarning, stacklevel=1)
    logging.getLogger("vendor").error("logged")
    sys.stderr.write("error\n")


def test_nothing_gets_out(capfd: pytest.CaptureFixture[str]) -> None:
    sys.stdout.write("before\n")
    with silenced():
        chatter()
    sys.stdout.write("after\n")
    assert capfd.readouterr() == ("before\nafter\n", "")


def test_nothing_gets_out_where_stdout_is_no_descriptor(capsys: pytest.CaptureFixture[str]) -> None:
    with silenced():
        chatter()
    assert capsys.readouterr() == ("", "")


def test_an_error_brings_what_was_said() -> None:
    def fail() -> None:
        with silenced():
            chatter()
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken") as caught:
        fail()
    assert "from C++ on stderr" in caught.value.__notes__[-1]


def test_environment_and_logging_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEATTN_TEST_A", "old")
    monkeypatch.delenv("EDGEATTN_TEST_B", raising=False)
    with silenced({"EDGEATTN_TEST_A": "new", "EDGEATTN_TEST_B": "new"}):
        assert os.environ["EDGEATTN_TEST_A"] == os.environ["EDGEATTN_TEST_B"] == "new"
    assert os.environ["EDGEATTN_TEST_A"] == "old"
    assert "EDGEATTN_TEST_B" not in os.environ
    assert logging.root.manager.disable == 0


@pytest.mark.parametrize("failing", [False, True])
def test_a_logging_handler_made_inside_still_writes_after(failing: bool, capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("edgeattn.tests.vendor")
    with contextlib.suppress(ArithmeticError), silenced():
        handler = logging.StreamHandler()
        logger.addHandler(handler)
        logger.error("inside")
        if failing:
            raise ArithmeticError
    try:
        logger.error("after")
    finally:
        logger.removeHandler(handler)
    assert capfd.readouterr() == ("", "after\n")
