"""The ``edgeattn`` command. One file per command: parse, one library call, print.

No command imports a framework, numpy or rich before it runs: ``edgeattn --help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from edgeattn.cli import (
    check,
    convert,
    demo,
    doctor,
    inspect,
    models,
    profile,
    prune,
    quantize,
    selftest,
    stream,
    targets,
    train,
)
from edgeattn.cli.console import INTERRUPTED, exit_codes, note
from edgeattn.cli.ending import output_failed, refuse_arguments, run, words_of
from edgeattn.cli.settings import read_settings, settings_of
from edgeattn.printable import one_line
from edgeattn.traces import leave_none

USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]  # click's, or that of the click in newer typers

app = typer.Typer(
    name="edgeattn",
    help="Attention models on edge devices: pruned, quantized, converted, verified, measured.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

COMMANDS: dict[str, Callable[..., None]] = {
    "convert": convert.convert,
    "prune": prune.prune,
    "quantize": quantize.quantize,
    "check": check.check,
    "profile": profile.profile,
    "inspect": inspect.inspect,
    "stream": stream.stream,
    "selftest": selftest.selftest,
    "models": models.models,
    "doctor": doctor.doctor,
    "train": train.train,
    "demo": demo.demo,
}
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(targets.app)


def main() -> None:
    """Entry point of the ``edgeattn`` script: settings from edgeattn.toml become defaults, flags win."""
    leave_none("onnxruntime")  # a MODEL of the user's may import it before we do
    sys.exit(run(dispatch))


def dispatch() -> None:
    """The command of the command line, with the settings of edgeattn.toml; leaves by SystemExit."""
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    with exit_codes("--json" in sys.argv[1:]):
        refuse_arguments(sys.argv[1:])
        defaults = read_settings({name: settings_of(c.params) for name, c in command.commands.items()})
        refuse_arguments(words_of(defaults))
    try:
        status = command(default_map=defaults, standalone_mode=False)
    except SystemExit as ended:  # typer's own, of an output that nobody reads: 1 would tell of a gate
        sys.exit(output_failed() or ended.code)
    except USAGE_ERROR as error:
        sys.exit(usage_error(error))
    except typer.Abort:
        sys.exit(INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


def usage_error(error: Any) -> int:
    """Say what is wrong with the command line, or with edgeattn.toml: typer prints a word of it as it is."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        usage = error.ctx.get_usage() if error.ctx is not None else ""
        note("\n".join(filter(None, (usage, f"error: {one_line(error.format_message())}"))))
    return int(error.exit_code)
