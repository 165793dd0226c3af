"""edgeattn.toml: options that a project keeps, one table per command, spelled as the flags are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from edgeattn.errors import InputError, unknown_name

SETTINGS = Path("edgeattn.toml")


class Parameter(Protocol):
    """What is needed of click's parameters; typer may bring a click of its own."""

    @property
    def name(self) -> str | None:
        """Of the function's argument."""

    @property
    def opts(self) -> list[str]:
        """Flags as they are typed; an argument has its name alone."""


def settings_of(parameters: Iterable[Parameter]) -> dict[str, Parameter]:
    """The settings that a command takes, by the names that its flags (and arguments) have on the command line."""
    return {opt.lstrip("-"): parameter for parameter in parameters for opt in parameter.opts}


def read_settings(commands: Mapping[str, Mapping[str, Parameter]]) -> dict[str, dict[str, Any]]:
    """Defaults per command from ./edgeattn.toml; empty where there is no such file.

    Args:
        commands: command name -> what :func:`settings_of` tells.

    Raises:
        InputError: for a file that is no TOML, or an unknown table or option in it.
    """
    if not SETTINGS.is_file():
        return {}
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with SETTINGS.open("rb") as file:
            tables = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{SETTINGS}: not a TOML file ({error})") from error
    return {command: _options(command, table, commands) for command, table in tables.items()}


def _options(command: str, table: Any, commands: Mapping[str, Mapping[str, Parameter]]) -> dict[str, Any]:
    if command not in commands:
        raise InputError(f"{SETTINGS}: {unknown_name('table', command, commands)}")
    if not isinstance(table, dict):
        raise InputError(f"{SETTINGS}: [{command}] must be a table of options")
    options = {}
    for key, value in table.items():
        parameter = commands[command].get(key.replace("_", "-"))
        if parameter is None or parameter.name is None:
            raise InputError(f"{SETTINGS}: [{command}]: {unknown_name('option', key, commands[command])}")
        alone = getattr(parameter, "multiple", False) and not isinstance(value, list)
        options[parameter.name] = [value] if alone else value
    return options
