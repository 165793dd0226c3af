"""``edgeattn`` where the packages of its command line are, and where they are not."""

from __future__ import annotations

import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec

import pytest

from edgeattn import __main__ as entry
from edgeattn import cli


@pytest.mark.parametrize(
    ("absent", "words"),
    [(("typer",), "needs typer:"), (("rich",), "needs rich:"), (("typer", "rich"), "needs typer and rich:")],
)
def test_absent_packages_of_the_command_line_are_named_with_the_pip_command(
    absent: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec

    def found(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name in absent else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", found)
    for arguments in (["models"], ["models", "--json"]):
        monkeypatch.setattr(sys, "argv", ["edgeattn", *arguments])
        with pytest.raises(SystemExit) as ended:
            entry.main()
        assert ended.value.code == 2
        out, line = capsys.readouterr()
        assert words in line
        assert "pip install 'edgeattn[cli]'" in line
        assert len(line.splitlines()) == 1
        message = json.loads(out)["error"]["message"] if "--json" in arguments else out
        assert message == (line.removeprefix("error: ").rstrip("\n") if "--json" in arguments else "")


def test_with_its_packages_it_is_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(cli, "main", lambda: called.append("main"))
    entry.main()
    assert called == ["main"]
