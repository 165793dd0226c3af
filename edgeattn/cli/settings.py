"""edgeattn.toml: options that a project keeps, one table per command, spelled as the flags are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from edgeattn.errors import InputError, unknown_name

SETTINGS = Path("edgeattn.toml")


def read_settings(commands: Mapping[str, Collection[str]]) -> dict[str, dict[str, Any]]:
    """Defaults per command from ./edgeattn.toml; empty where there is no such file.

    Args:
        commands: command name -> its parameter names.

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


def _options(command: str, table: Any, commands: Mapping[str, Collection[str]]) -> dict[str, Any]:
    if command not in commands:
        raise InputError(f"{SETTINGS}: {unknown_name('table', command, commands)}")
    if not isinstance(table, dict):
        raise InputError(f"{SETTINGS}: [{command}] must be a table of options")
    options = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in commands[command]:
            valid = [parameter.replace("_", "-") for parameter in commands[command]]
            raise InputError(f"{SETTINGS}: [{command}]: {unknown_name('option', key, valid)}")
        options[name] = value
    return options
