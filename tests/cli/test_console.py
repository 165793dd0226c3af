"""Errors become one line and the right exit code."""

from __future__ import annotations

import io
import json
import logging
import math
import re
import sys
import warnings
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import typer

from edgeattn.cli import main
from edgeattn.cli.console import exit_codes, note, print_json, print_table, progress_bar, save_picture, say, say_over
from edgeattn.errors import DeviceError, InputError, UnsupportedError
from edgeattn.results.gates import Failure
from edgeattn.results.report import Candidate, Precision, Report, Result


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


# --- text of others ---------------------------------------------------------------------------------------------------

HOSTILE = "\x1b[2J[red]all passed[/red]\x9b31m\u202e\u200b\ud800 :smile: [link=http://example.invalid]x[/link]"
SHOWN = r"\x1b[2J[red]all passed[/red]\x9b31m\u202e\u200b\ud800 :smile: [link=http://example.invalid]x[/link]"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def hostile_report() -> Report:
    """A result whose every text is somebody's."""
    result = Result(
        target=HOSTILE,
        device=HOSTILE,
        backend=HOSTILE,
        bundle=f"{HOSTILE}.edge",
        passed=False,
        failures=(Failure("parity", HOSTILE, HOSTILE),),
        precision=Precision(asked=HOSTILE, shipped=HOSTILE, executed=None, candidates=(candidate("a"), candidate("b"))),
        notes=(HOSTILE,),
    )
    return Report({"name": HOSTILE}, (result,))


def candidate(name: str) -> Candidate:
    return Candidate(
        precision="int8", latency_ms=1.0, accuracy=None, size_bytes=1, kept=False, why=HOSTILE, scheme=name + HOSTILE
    )


def obeyed(text: str) -> set[str]:
    return {c for c in text if not c.isprintable() and c not in "\n\t"}


def test_what_a_command_says_is_printable(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    note(HOSTILE)
    with pytest.raises(typer.Exit), exit_codes(as_json=False):
        raise InputError(f"no graph {HOSTILE}\nerror: none")
    told = capsys.readouterr()
    assert told.out == f"{SHOWN}\n"
    assert told.err == f"{SHOWN}\nerror: no graph {SHOWN} error: none\n"


def test_what_libraries_write_meanwhile_is_printable(capsys: pytest.CaptureFixture[str]) -> None:
    with exit_codes(as_json=False):
        logging.StreamHandler().emit(logging.makeLogRecord({"msg": HOSTILE}))
        sys.stderr.write(warnings.formatwarning(HOSTILE, UserWarning, "somebody.py", 1))  # as showwarning does
        sys.stdout.write(f"{HOSTILE}\n")
    told = capsys.readouterr()
    assert not obeyed(told.out + told.err)
    assert (told.out.count(SHOWN), told.err.count(SHOWN)) == (1, 2)


def test_a_bug_shows_its_lines_printable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), exit_codes(as_json=False):
        raise KeyError(HOSTILE)
    assert not obeyed(capsys.readouterr().err)


def test_a_table_shows_names_as_they_are_and_obeys_none(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(hostile_report())
    told = capsys.readouterr().out
    assert not obeyed(told)
    assert "[red]all passed" in told.replace("\n", "")
    assert f"bundle: {SHOWN}.edge\n" in told


def test_a_terminal_gets_our_colours_and_no_escape_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    print_table(hostile_report())
    told = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert told != terminal.getvalue()
    assert not obeyed(told)
    assert "\x1b]8" not in terminal.getvalue()


def test_a_progress_bar_shows_a_phase_as_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm-256color")
    with progress_bar() as bar:
        bar.begin(HOSTILE, 2)
        bar.advance()
    told = re.sub(r"\x1b\[\??[0-9;]*[A-Za-z]|\r", "", terminal.getvalue())
    assert not obeyed(told)
    assert r"\x1b[2J[red]all passed[/red]\x9b31m" in told
    assert "\x1b[2J" not in terminal.getvalue()


def test_a_line_that_is_said_over_holds_no_escape_but_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    with exit_codes(as_json=False):
        say_over(f"one{HOSTILE}", "")
        say_over("two\nthree\r", "\n")
    assert terminal.getvalue() == f"\r\x1b[Kone{SHOWN}\r\x1b[Ktwo three\n"


def test_json_is_what_every_reader_takes(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({HOSTILE: [math.nan, -math.inf, 1.5, HOSTILE, None, True], "n": (1, {"deep": math.inf})})
    told = capsys.readouterr().out
    assert told.isascii()
    assert not obeyed(told)
    found = json.loads(told, parse_constant=pytest.fail)
    key = HOSTILE.replace("\ud800", "\\ud800")
    assert found == {key: [None, None, 1.5, key, None, True], "n": [1, {"deep": None}]}
    json.dumps(found, ensure_ascii=False).encode()


def test_a_picture_of_the_table_is_xml_that_shows_names_as_they_are(tmp_path: Path) -> None:
    save_picture(hostile_report(), tmp_path / "table.svg")
    text = "".join(ET.parse(tmp_path / "table.svg").getroot().itertext())
    assert not obeyed(text.replace("\xa0", " "))
    assert "[red]all" in text


def test_a_picture_is_readable_in_a_column_of_800_pixels_and_fetches_nothing(tmp_path: Path) -> None:
    save_picture(hostile_report(), tmp_path / "table.svg")
    picture = (tmp_path / "table.svg").read_text(encoding="utf-8")
    width = float(ET.fromstring(picture).attrib["viewBox"].split()[2])
    (size,) = {float(found) for found in re.findall(r"matrix \{[^}]*font-size: ([\d.]+)px", picture)}
    assert size * 800 / width >= 12  # pixels, about what a README sets its code in
    assert "url(" not in re.sub(r"url\(#", "", picture)


def test_a_wrong_command_line_is_told_printable(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    for words in (["check", "--\x1b[2J"], ["models", "\x9bmore"], ["nothing\u202e"], ["convert", "--deadline", "\x1b"]):
        monkeypatch.setattr(sys, "argv", ["edgeattn", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        assert ended.value.code == 2
        assert not obeyed(told.out + told.err)
        assert "error: " in told.err
