"""No page names a command, an option, a target or a program that is gone: the command line itself parses them."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from edgeattn.cli import USAGE_ERROR, app
from edgeattn.cli.renamed import RENAMED
from edgeattn.targets import get_target
from tests.docs.pages import PAGES, ROOT, blocks, spans

COMMAND: Any = typer.main.get_command(app)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
OF_OTHERS = {  # named in the pages: options of programs that are not edgeattn's
    "--count", "--seed",  # tests.attacks
    "--data", "--engine", "--peers", "--resume", "--rounds", "--samples", "--weights",  # benchmarks
    "--strict",  # mkdocs
}  # fmt: skip
OPTIONS_OF_GIT = {"--oneline"}


def lines_of(page: str) -> Iterator[tuple[str, str]]:
    """Place and command line, of blocks and of code in the text; a line may go on after a backslash."""
    for block in blocks(page):
        if block.language in ("", "sh", "bash"):
            yield from ((block.place, line.strip()) for line in block.code.replace("\\\n", " ").splitlines())
    yield from ((page, span) for span in spans(page))


def commands(page: str, program: str) -> list[tuple[str, list[str]]]:
    """Command lines of a program, without comments and without what stands for more of the same."""
    found = []
    for place, line in lines_of(page):
        if line.startswith(f"{program} "):
            plain = re.sub(r"\$\([^)]*\)", "DIRECTORY", line)  # what another program prints
            words = shlex.split(plain, comments=True)[len(program.split()) :]
            found.append((place, [word for word in words if word != "..."]))
    return found


def parse(words: list[str]) -> tuple[Any, dict[str, Any]]:
    """The command that a line calls and its parameters, by the parser of the command line; nothing is run.

    Raises:
        USAGE_ERROR: for what the command line would refuse.
    """
    if not words or words[0] == "COMMAND":  # `edgeattn --help`, and what stands for any command
        return COMMAND, {}
    if words[0].startswith("-"):  # of no command, such as --install-completion: it is carried out while it is parsed
        assert words[0] in {name for parameter in COMMAND.params for name in parameter.opts}
        return COMMAND, {}
    command, context = COMMAND, COMMAND.make_context("edgeattn", list(words))
    while hasattr(command, "commands"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        if hasattr(command, "commands") and not rest:  # `edgeattn targets` alone lists them
            return command, {}
        context = command.make_context(name, rest, parent=context)
    return command, context.params


EVERY = [(place, words) for page in PAGES for place, words in commands(page, "edgeattn")]


@pytest.mark.parametrize(("place", "words"), EVERY, ids=[f"{place} {' '.join(words)}" for place, words in EVERY])
def test_every_command_line_of_the_pages_parses(place: str, words: list[str]) -> None:
    words = [word.partition("|")[0] for word in words if word != "--help"]  # MODEL|BUNDLE
    try:
        _, parameters = parse(words)
    except USAGE_ERROR as error:
        if ":" not in place and type(error).__name__ == "MissingParameter":
            return  # in the text a command may be called by its name and an option alone
        raise
    for name in parameters.get("target") or []:
        if not name.isupper() and not name.endswith(".toml"):
            get_target(name)


def test_a_command_line_that_is_gone_does_not_parse() -> None:
    for words in (["convert", "m.py", "--shrink"], ["shrink", "m.py"], ["check", "b.edge", "--deadline", "soon"]):
        with pytest.raises(USAGE_ERROR, match=r"No such|soon"):
            parse(words)


def test_the_pages_name_commands_at_all() -> None:
    """The search itself: README and the page of quickstarts alone name this many."""
    assert len(commands("README.md", "edgeattn")) >= 10
    assert len(commands("index.md", "edgeattn")) >= 12
    assert len(EVERY) >= 60


def options_of(command: Any) -> set[str]:
    """All options of a command and of those under it."""
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    context = typer.Context(command)
    below = (command.resolve_command(context, [name])[1] for name in getattr(command, "commands", {}))  # as when called
    return own.union(*map(options_of, below), {"--help"})


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CONTRIBUTING.md"])
def test_every_option_that_a_page_names_is_one(page: str) -> None:
    known = options_of(COMMAND)
    named = {
        option for span in spans(page) if not span.startswith(("pip ", "make ")) for option in OPTION.findall(span)
    }
    named |= options_in(page, "edgeattn")  # also old names, which the command line may still take
    if page == "cli.md":
        named -= {f"--{old}" for renamed in RENAMED.values() for old in renamed}  # listed there, beside today's
    others = options_in(page, "python")
    assert others <= OF_OTHERS
    assert named - known - others - OF_OTHERS - OPTIONS_OF_GIT == set()


def options_in(page: str, program: str) -> set[str]:
    """Options in the command lines of a program."""
    return {option for _, words in commands(page, program) for word in words for option in OPTION.findall(word)}


def test_every_program_of_python_that_a_page_names_is_there() -> None:
    modules = [words[1] for page in PAGES for _, words in commands(page, "python") if words[0] == "-m"]
    files = [words[0] for page in PAGES for _, words in commands(page, "python") if words[0].endswith(".py")]
    assert len(modules) > 5
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []
    assert [name for name in files if not (ROOT / name).is_file()] == []


def test_every_target_of_make_that_a_page_names_is_one() -> None:
    rules = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = {word for page in PAGES for _, words in commands(page, "make") for word in words if word.isalpha()}
    assert {"demo", "test", "docs"} <= named
    assert named - rules == set()


def test_every_file_of_the_tree_that_a_page_names_is_there() -> None:
    path = re.compile(r"(?:edgeattn|converters|quantize|runtimes|targets|tests|benchmarks|docs)/[\w./*-]+")
    named = [(page, found[0]) for page in PAGES for span in spans(page) if (found := path.match(span))]
    assert len(named) >= 15
    assert [(page, name) for page, name in named if not any(ROOT.glob(name))] == []
