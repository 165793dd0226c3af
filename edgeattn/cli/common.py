"""How a command is made of its file, and the options that every one takes beside its own."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer

from edgeattn.cli.console import set_loudness


def command_of(name: str) -> Any:
    """The command of the function ``name``, or of the app, in ``edgeattn/cli/NAME.py``."""
    set_loudness("normal")
    module = importlib.import_module(f"edgeattn.cli.{name}")
    own = getattr(module, "app", None) or _app_of(name, getattr(module, name))
    command: Any = typer.main.get_command(own)
    command.name = name
    for each in (command, *getattr(command, "commands", {}).values()):
        each.params += typer.main.get_command(_app_of(name, _loudness_options)).params
        each.help = as_written(each.help and joined_lines(each.help))
        for parameter in each.params:
            if getattr(parameter, "help", None):
                parameter.help = as_written(parameter.help)
    return command


def as_written(text: str | None) -> str | None:
    r"""A text that rich shows as it stands: ``[user@]`` is no tag of its markup.

    >>> print(as_written("ssh://[user@]host[:port]"))
    ssh://\[user@]host[:port]
    """
    return text and re.sub(r"\[(?=[a-z#/@][^\[\]]*\])", r"\\[", text)


def joined_lines(text: str) -> str:
    r"""A docstring whose paragraphs are lines, which wrap where a terminal ends.

    >>> joined_lines("One\n    line.\n\n    Two.")
    'One line.\n\nTwo.'
    """
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in inspect.cleandoc(text).split("\n\n"))


def _app_of(name: str, function: Callable[..., None]) -> typer.Typer:
    app = typer.Typer(add_completion=False)
    app.command(name)(function)
    return app


def _set_loudness(context: typer.Context, parameter: typer.CallbackParam, value: bool) -> None:
    """Flags win over edgeattn.toml, and come first; two of them contradict each other."""
    if not value or context.resilient_parsing:
        return
    source = context.get_parameter_source(str(parameter.name))
    before = context.meta.setdefault("edgeattn.loudness", parameter.name)
    if before == parameter.name:
        set_loudness("quiet" if parameter.name == "quiet" else "verbose")
    elif source is not None and source.name == "COMMANDLINE":
        raise typer.BadParameter("--verbose and --quiet contradict each other: leave one out")


def _loudness_options(
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            callback=_set_loudness,
            expose_value=False,
            help="Also what engines and their tools say, and where an error comes from.",
        ),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            callback=_set_loudness,
            expose_value=False,
            help="No progress and no notes: results and errors alone.",
        ),
    ] = False,
) -> None:
    """The options of how much is told on stderr."""  # fmt: skip
