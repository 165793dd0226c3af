"""Errors become one line and the right exit code."""

from __future__ import annotations

import pytest
import typer

from edgeattn.cli.console import exit_codes
from edgeattn.errors import DeviceError, InputError, UnsupportedError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("x"), 2),
        (DeviceError("x"), 3),
        (UnsupportedError("x"), 4),
        (KeyboardInterrupt(), 130),
        (KeyError("x"), 70),
    ],
)
def test_every_kind_of_end_has_its_exit_code(error: BaseException, code: int) -> None:
    with pytest.raises(typer.Exit) as ended, exit_codes(as_json=False):
        raise error
    assert ended.value.exit_code == code


def test_a_bug_shows_where_it_is_and_is_no_failed_gate(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), exit_codes(as_json=False):
        raise ZeroDivisionError("planted")
    told = capsys.readouterr().err
    assert "ZeroDivisionError: planted" in told
    assert "bug in edgeattn" in told
