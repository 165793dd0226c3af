"""What the command line keeps to: short flags, one name per option, help that wraps, completion, quiet and verbose."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeattn import __version__
from edgeattn.cli import COMMANDS, load_command
from edgeattn.cli.doctor import PROGRAMS, tool_extras
from edgeattn.cli.renamed import RENAMED
from edgeattn.guards.plain import read_toml
from tests.cli.conftest import ROOT, Command
from tests.conversions import Converted

QUICK = ("--duration", "0s", "--precision", "fp32")


def commands() -> dict[str, Any]:
    """Every command, those of a group as ``group command``."""
    every = {name: load_command(name) for name in COMMANDS}
    groups = {name: command for name, command in every.items() if hasattr(command, "commands")}
    return every | {f"{name} {sub}": each for name, group in groups.items() for sub, each in group.commands.items()}


def flags(command: Any) -> set[str]:
    return {flag for parameter in command.params for flag in parameter.opts}


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_of_a_command_is_the_first_of_its_help(name: str) -> None:
    first = load_command(name).help.split("\n\n")[0]
    assert first.replace("\\[", "[") == COMMANDS[name]


@pytest.mark.parametrize("name", ["--help", *COMMANDS, "targets calibrate", "targets prepare"])
def test_h_is_help(edgeattn: Command, name: str) -> None:
    words = [] if name == "--help" else name.split()
    short, long = edgeattn(*words, "-h"), edgeattn(*words, "--help")
    assert (short.code, short.out) == (0, long.out)
    assert "Usage: edgeattn" in short.out


def test_the_version_is_told(edgeattn: Command) -> None:
    assert edgeattn("--version").out == f"edgeattn {__version__}\n"


def test_brackets_in_help_are_no_markup(edgeattn: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    told = " ".join(edgeattn("check", "--help").out.split())
    for words in ("ssh://[user@]host[:port]", "adb:[serial]"):
        assert words in told


@pytest.mark.parametrize("name", ["convert", "check", "prune", "quantize", "profile"])
def test_a_long_help_has_panels_and_fits_a_terminal(edgeattn: Command, name: str) -> None:
    lines = edgeattn(name, "--help").out.splitlines()
    assert sum(line.startswith("╭─") for line in lines) >= 4
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)  # nothing is cut


def test_the_same_letter_means_the_same_everywhere() -> None:
    letters: dict[str, set[str]] = {}
    for name, command in commands().items():
        for parameter in command.params:
            for short in (flag for flag in parameter.opts if flag[0] == "-" and flag[1] != "-"):
                letters.setdefault(short, set()).add(max(parameter.opts, key=len))
        assert {"-v", "--verbose", "-q", "--quiet"} <= flags(command), name
        for short, long in (("-o", "--out"), ("-t", "--target")):
            assert (short in flags(command)) == (long in flags(command)), name
    assert letters == {"-o": {"--out"}, "-t": {"--target"}, "-v": {"--verbose"}, "-q": {"--quiet"}}


# --- one name per idea ------------------------------------------------------------------------------------------------


def test_old_names_stand_for_options_that_are_there_and_are_none_themselves() -> None:
    every = commands()
    for name, table in RENAMED.items():
        known = set().union(*(flags(command) for key, command in every.items() if key.split()[0] == name))
        for old, new in table.items():
            assert f"--{new.name}" in known
            assert f"--{old}" not in known


@pytest.mark.parametrize("words", [("--paced-seconds", "-3"), ("--paced-seconds=-3",)])
def test_an_old_flag_is_taken_as_the_new_one_with_a_notice(edgeattn: Command, words: tuple[str, ...]) -> None:
    outcome = edgeattn("check", "x.edge", *words)
    assert outcome.code == 2
    assert "--paced-seconds is called --duration now, as 5s; the old name goes with the next version" in outcome.err
    assert "Invalid value for '--duration': expected a time such as 90s or 2min, got '-3s'" in outcome.err


def test_an_old_setting_is_taken_as_the_new_one_with_a_notice(edgeattn: Command, small_bundle: Path) -> None:
    Path("edgeattn.toml").write_text("[profile]\npaced_seconds = 0\nruns = 3\n")
    outcome = edgeattn("profile", small_bundle, "--json")
    assert outcome.code == 0, outcome.err
    assert "edgeattn.toml: [profile]: paced-seconds is called duration now, as 5s" in outcome.err
    Path("edgeattn.toml").write_text("[profile]\npaced-seconds = 3\nduration = 'soon'\n")
    assert "got 'soon'" in edgeattn("profile", small_bundle).err  # the new name is the one that counts


def test_what_stands_after_two_dashes_is_no_flag(edgeattn: Command) -> None:
    outcome = edgeattn("check", "--", "--paced-seconds")
    assert "--paced-seconds: " in outcome.error
    assert "is called" not in outcome.err


# --- usage errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["convert", "--no-such-flag"], "No such option: --no-such-flag"),
        (["no-such-command"], "No such command 'no-such-command'"),
        (["check"], "Missing argument"),
        (["check", "x", "--deadline", "soon"], "expected a time such as 40ms or 0.3s, got 'soon'"),
        (["targets", "calibrate", "--threads", "0"], "Invalid value for '--threads'"),
        (["models", "-v", "-q"], "--verbose and --quiet contradict each other"),
    ],
)
def test_usage_errors_are_an_object_where_json_is_asked_for(edgeattn: Command, words: list[str], message: str) -> None:
    outcome = edgeattn(*words, "--json")
    assert outcome.code == 2
    assert outcome.json["schema"] == 1
    assert outcome.json["error"]["type"] == "UsageError"
    assert message in outcome.json["error"]["message"]
    assert outcome.error == f"error: {outcome.json['error']['message']}"


def test_usage_errors_are_an_object_where_the_settings_ask_for_json(edgeattn: Command) -> None:
    Path("edgeattn.toml").write_text("[check]\njson = true\n")
    assert edgeattn("check").json["error"]["type"] == "UsageError"
    assert edgeattn("profile", "--runs", "0").out == ""


# --- quiet and verbose ------------------------------------------------------------------------------------------------


def test_quiet_leaves_results_and_errors(edgeattn: Command, kept: Converted) -> None:
    plain = edgeattn("convert", kept.reference, *QUICK, "--out", "a")
    assert "loading" in plain.err
    quiet = edgeattn("convert", kept.reference, *QUICK, "-o", "b", "-q")
    assert (quiet.code, quiet.err) == (0, "")
    assert "bundle: b/" in quiet.out
    assert edgeattn("convert", "missing.py", "-q").err == edgeattn("convert", "missing.py").error + "\n"


def test_quiet_may_stand_in_the_settings_and_a_flag_wins(edgeattn: Command) -> None:
    Path("edgeattn.toml").write_text("[convert]\nquiet = true\n")
    assert "loading" not in edgeattn("convert", "missing.py").err
    told = edgeattn("convert", "missing.py", "-v").err
    assert "loading" in told
    assert "Traceback" in told


def test_verbose_tells_where_an_error_comes_from_and_ends_with_the_command(edgeattn: Command) -> None:
    told = edgeattn("convert", "missing.py", "--verbose", "--json")
    assert told.code == 2
    assert "Traceback (most recent call last)" in told.err
    assert told.json["error"]["type"] == "ModelError"  # stdout stays the object's
    assert "Traceback" not in edgeattn("convert", "missing.py").err


# --- completion -------------------------------------------------------------------------------------------------------

INIT = "import sys; sys.argv[0] = 'edgeattn'; from edgeattn.cli import main; main()"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A directory with an ``edgeattn`` that a shell can call, and a home."""
    program = tmp_path / "bin" / "edgeattn"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{INIT}" "$@"\n')
    program.chmod(0o755)
    return tmp_path


def bash(script: Path, program: str) -> subprocess.CompletedProcess[str]:
    found = shutil.which("bash")
    if found is None:
        pytest.skip("needs bash")
    environment = {
        "PATH": f"{script / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(script),
        "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))),
    }
    words = [found, "--norc", "--noprofile", "-c", program]
    return subprocess.run(words, cwd=script, env=environment, capture_output=True, text=True)


def test_the_installed_completion_completes(script: Path) -> None:
    installed = bash(script, "edgeattn --install-completion; true")  # true: bash itself must stay, it is looked for
    assert installed.returncode == 0, installed.stderr
    assert "completion installed in" in installed.stdout
    assert f"source '{script}/.bash_completions/edgeattn.sh'" in (script / ".bashrc").read_text()
    ask = (
        'complete_line() { COMP_WORDS=("$@"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=();'
        ' _edgeattn_completion edgeattn; echo "${COMPREPLY[*]}"; }\n'
    )
    lines = {
        "edgeattn con": "convert",
        "edgeattn convert --acc": "--accept-unproved",
        "edgeattn convert -t jetson-orin-nano": "jetson-orin-nano jetson-orin-nano-super",
        "edgeattn convert --precision int8-n": "int8-nncf",
        "edgeattn convert --backend li": "litert",
        "edgeattn check x.edge --device qe": "qemu:aarch64",
        "edgeattn targets cal": "calibrate",
    }
    program = f". {script}/.bash_completions/edgeattn.sh\n{ask}" + "".join(f"complete_line {line}\n" for line in lines)
    done = bash(script, program)
    assert done.returncode == 0, done.stderr
    assert [line.split() for line in done.stdout.splitlines()] == [answer.split() for answer in lines.values()]


def test_completion_does_not_mind_wrong_settings(script: Path) -> None:
    (script / "edgeattn.toml").write_text("[no-such-command]\n")
    done = bash(script, "COMP_WORDS='edgeattn che' COMP_CWORD=1 _EDGEATTN_COMPLETE=complete_bash edgeattn")
    assert done.stdout.split() == ["check"]


# --- doctor -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_doctor_prints_commands_that_can_be_copied(
    edgeattn: Command, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    find, tools = importlib.util.find_spec, tool_extras()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in tools else find(name, *rest))
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.setenv("COLUMNS", columns)
    lines = [line.strip() for line in edgeattn("doctor").out.splitlines()]
    for module, extra in tool_extras().items():
        assert f"{module}: pip install 'edgeattn[{extra}]'" in lines
    for program, found in PROGRAMS.items():
        assert f"{program}: {found.install}" in lines


def test_doctor_looks_for_all_that_commands_ask_for(edgeattn: Command) -> None:
    assert {"transformers", "matplotlib"} <= set(tool_extras())
    assert {"adb", "ssh", "qemu-aarch64-static"} == set(PROGRAMS)
    extras = read_toml(ROOT / "pyproject.toml", "project file")["project"]["optional-dependencies"]
    for module, extra in tool_extras().items():
        packages = " ".join(extras[extra]).replace("-", "_")
        assert module in packages, (module, extra)  # the extra that is named brings it
    told = edgeattn("doctor", "--json").json
    assert set(told["tools"]) == set(tool_extras())
    for name, program in told["programs"].items():
        assert program["path"] == shutil.which(name)


def test_the_help_of_all_loads_no_command() -> None:
    """It costs what typer and rich cost: its bar is 1.3 times a bare program of theirs."""
    program = (
        "import sys; sys.argv = ['edgeattn', '--help']\n"
        "from edgeattn.cli import COMMANDS, main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "loaded = [name for name in COMMANDS if f'edgeattn.cli.{name}' in sys.modules]\n"
        "loaded += [name for name in ('importlib.metadata', 'numpy', 'tempfile') if name in sys.modules]\n"
        "print(loaded, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "[]\n"
