"""The ``edgeattn`` command. One file per command: parse, one library call, print.

The file of a command is imported when that command is called, and none imports a framework, numpy or rich before it
runs: ``edgeattn --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from edgeattn.cli.console import INTERRUPTED, exit_codes, tell_error
from edgeattn.cli.ending import output_failed, refuse_arguments, words_of
from edgeattn.cli.ending import run as run_to_the_end  # a command is called run
from edgeattn.cli.renamed import renamed_flags
from edgeattn.cli.settings import read_settings
from edgeattn.printable import one_line
from edgeattn.traces import leave_none

__all__ = [
    "main",
]

NAME = "edgeattn"
COMPLETING = "_EDGEATTN_COMPLETE"  # set by the completion script of a shell
USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]  # click's, or that of the click in newer typers

COMMANDS: Mapping[str, str] = {
    "convert": "Make a verified bundle of MODEL for each target: prune, quantize, convert, check, measure.",
    "prune": "Remove heads, neurons and layers for measured milliseconds; the smaller model is a MODEL for convert.",
    "quantize": "Find the fastest precision that keeps the metric; save the engine's files and the plan for convert.",
    "check": "Verify a bundle: hashes, golden outputs, parity, metric, size, real-time contract.",
    "profile": "Measure a bundle or a model, here or on devices, or estimate it: latency, real time, memory.",
    "inspect": "Tell in seconds what would fail or be slow on each target, and what can be pruned.",
    "run": "Ask a bundle: a text, a picture, a sound or a table in, an answer with labels out.",
    "stream": "Transcribe a recording as it streams, with partial results.",
    "selftest": "On the device: verify a bundle and replay its golden inputs.",
    "models": "What is built in.",
    "tasks": "Which kinds of task there are: their data and what is measured.",
    "targets": "What bundles can be made for; calibrate this machine, prepare an emulated one.",
    "doctor": "What this machine can run, and what to install for the rest.",
    "train": "Train a built-in model from data.",
    "demo": "Convert the built-in speech model for three targets, stream through each, print the table.",
}
"""Command -> its line in ``edgeattn --help``. Each is a function of its name in the file of its name."""


class Commands(TyperGroup):
    """The commands: a name and a line of help each, until one is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that is called, from its file, and its arguments under the names that they have today."""
        name, found, rest = super().resolve_command(ctx, args)
        if name is None or found is None:
            return name, found, rest
        return name, load_command(name), renamed_flags(name, rest)


app = typer.Typer(
    name=NAME,
    cls=Commands,
    help="Attention models on edge devices: pruned, quantized, converted, verified, measured.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def load_command(name: str) -> Any:
    """A command with all its options, as typer runs it."""
    from edgeattn.cli.common import command_of  # with the options that every command takes

    return command_of(name)


def _print_version(asked: bool) -> None:
    if asked:
        from edgeattn import __version__
        from edgeattn.cli.console import say

        say(f"{NAME} {__version__}")
        raise typer.Exit


@app.callback()
def _edgeattn(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of the command itself."""


def _loaded_when_called() -> None:
    """Stands for a command whose file is not loaded; see :class:`Commands`."""


for _name, _line in COMMANDS.items():
    app.command(_name, help=_line)(_loaded_when_called)


def main() -> None:
    """Entry point of the ``edgeattn`` script: settings from edgeattn.toml become defaults, flags win."""
    leave_none("onnxruntime")  # a MODEL of the user's may import it before we do
    sys.exit(run_to_the_end(dispatch))


def dispatch() -> None:
    """The command of the command line, with the settings of edgeattn.toml; leaves by SystemExit."""
    words = sys.argv[1:]
    command = typer.main.get_command(app)
    with exit_codes("--json" in words):
        refuse_arguments(words)
        defaults = {} if COMPLETING in os.environ else read_settings(COMMANDS, lambda name: load_command(name).params)
        refuse_arguments(words_of(defaults))
    try:
        status = command(prog_name=NAME, default_map=defaults, standalone_mode=False)
    except SystemExit as ended:  # typer's own, of an output that nobody reads: 1 would tell of a gate
        sys.exit(output_failed() or ended.code)
    except USAGE_ERROR as error:
        sys.exit(usage_error(error, defaults))
    except typer.Abort:
        sys.exit(INTERRUPTED)
    if status == 1 and {"--install-completion", "--show-completion"} & set(words):
        status = 2  # a shell that typer does not know; 1 would tell of a gate
    sys.exit(status if isinstance(status, int) else 0)


def usage_error(error: Any, defaults: Mapping[str, Mapping[str, Any]]) -> int:
    """Say what is wrong with the command line, or with edgeattn.toml: typer prints a word of it as it is.

    Args:
        defaults: of edgeattn.toml, which may ask for JSON.
    """
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        called = "" if error.ctx is None else error.ctx.info_name
        as_json = "--json" in sys.argv[1:] or bool(defaults.get(called, {}).get("as_json"))
        usage = "" if error.ctx is None else error.ctx.get_usage()
        tell_error("UsageError", one_line(error.format_message()), as_json, before=usage)
    return int(error.exit_code)
