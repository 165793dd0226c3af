"""edgeattn.toml: options that a project keeps, one table per command, spelled as the flags are; devices per target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from edgeattn.errors import InputError, unknown_name

SETTINGS = Path("edgeattn.toml")
TARGETS = "targets"
TARGET_KEYS = ("device",)  # of a [targets.NAME] table


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
    tables = _tables()
    options = {}
    for command, table in tables.items():
        own = table
        if command == TARGETS and isinstance(table, dict):  # the tables in it are targets, not options of the command
            for name, inner in table.items():
                if isinstance(inner, dict):
                    _devices(name, inner)
            own = {key: value for key, value in table.items() if not isinstance(value, dict)}
        options[command] = _options(command, own, commands)
    return options


def read_devices() -> dict[str, tuple[str, ...]]:
    """Devices per target from the ``[targets.NAME]`` tables of ./edgeattn.toml, names as they are written there.

    Raises:
        InputError: as :func:`read_settings`.
    """
    tables = _tables().get(TARGETS, {})
    return {name: _devices(name, table) for name, table in tables.items() if isinstance(table, dict)}


def _tables() -> dict[str, Any]:
    if not SETTINGS.is_file():
        return {}
    from edgeattn.plain import read_toml

    return read_toml(SETTINGS, "settings file")


def _devices(target: str, table: dict[str, Any]) -> tuple[str, ...]:
    """The devices of a ``[targets.NAME]`` table."""
    where = f"{SETTINGS}: [{TARGETS}.{target}]"
    for key in table:
        if key not in TARGET_KEYS:
            raise InputError(f"{where}: {unknown_name('option', key, TARGET_KEYS)}")
    value = table.get("device", [])
    devices = [value] if isinstance(value, str) else value
    if not (isinstance(devices, list) and devices and all(isinstance(text, str) for text in devices)):
        raise InputError(f'{where}: device must be as for --device, such as "ssh://pi@board", or a list of such texts')
    return tuple(devices)


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
