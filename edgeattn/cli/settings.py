"""edgeattn.toml: options that a project keeps, one table per command, spelled as the flags are, and one per target."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import typer

from edgeattn.cli.options import milliseconds
from edgeattn.cli.renamed import renamed_settings
from edgeattn.errors import InputError, unknown_name

SETTINGS = Path("edgeattn.toml")
TARGETS = "targets"
TARGET_KEYS = ("device", "deadline", "precision", "bucket", "prune")  # of a [targets.NAME] table


@dataclass(frozen=True)
class TargetTable:
    """A ``[targets.NAME]`` table: what one target has for itself, as the flags of the same names are written.

    Attributes:
        devices: empty for none.
        deadline_ms, precision, bucket, prune: None for what all targets have.
    """

    devices: tuple[str, ...] = ()
    deadline_ms: float | None = None
    precision: str | None = None
    bucket: tuple[str, ...] | None = None
    prune: str | None = None


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
    long = ((opt, parameter) for parameter in parameters for opt in parameter.opts)
    return {opt.lstrip("-"): parameter for opt, parameter in long if opt.startswith("--") or opt[0] != "-"}


def read_settings(
    commands: Collection[str], parameters: Callable[[str], Iterable[Parameter]]
) -> dict[str, dict[str, Any]]:
    """Defaults per command from ./edgeattn.toml; empty where there is no such file.

    Args:
        commands: their names.
        parameters: of a command; asked for those that have a table.

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
                    _target_table(name, inner)
            own = {key: value for key, value in table.items() if not isinstance(value, dict)}
        if command not in commands:
            raise InputError(f"{SETTINGS}: {unknown_name('table', command, commands)}")
        options[command] = _options(command, own, parameters)
    return options


def read_targets() -> dict[str, TargetTable]:
    """The ``[targets.NAME]`` tables of ./edgeattn.toml, names as they are written there.

    Raises:
        InputError: as :func:`read_settings`.
    """
    tables = _tables().get(TARGETS, {})
    return {name: _target_table(name, table) for name, table in tables.items() if isinstance(table, dict)}


def _tables() -> dict[str, Any]:
    if not SETTINGS.is_file():
        return {}
    from edgeattn.guards.plain import read_toml

    return read_toml(SETTINGS, "settings file")


def _target_table(target: str, table: dict[str, Any]) -> TargetTable:
    where = f"{SETTINGS}: [{TARGETS}.{target}]"
    for key in table:
        if key not in TARGET_KEYS:
            raise InputError(f"{where}: {unknown_name('option', key, TARGET_KEYS)}")
    if not table:
        raise InputError(f"{where}: the table is empty; it takes {', '.join(TARGET_KEYS)}")
    forms = {
        "device": 'as for --device, such as "ssh://pi@board", or a list of such texts',
        "bucket": 'as for --bucket, such as "seq=64,128", or a list of such texts',
    }
    lists = {key: _texts(f"{where}: {key} must be {form}", table[key]) for key, form in forms.items() if key in table}
    for key, example in (("precision", "fp16"), ("prune", "speedup=1.5")):
        if key in table and not (isinstance(table[key], str) and table[key]):
            raise InputError(f'{where}: {key} must be a text as for --{key}, such as "{example}"')
    deadline = None
    if "deadline" in table:
        try:
            if isinstance(table["deadline"], bool):
                raise typer.BadParameter(f"expected a time such as 40ms or 0.3s, got {table['deadline']}")
            deadline = milliseconds(table["deadline"])
        except typer.BadParameter as error:
            raise InputError(f"{where}: deadline: {error}") from error
    return TargetTable(
        lists.get("device", ()), deadline, table.get("precision"), lists.get("bucket"), table.get("prune")
    )


def _texts(message: str, value: Any) -> tuple[str, ...]:
    """One text or a list of them.

    Raises:
        InputError: with the message.
    """
    texts = [value] if isinstance(value, str) else value
    if not (isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)):
        raise InputError(message)
    return tuple(texts)


def _options(command: str, table: Any, parameters: Callable[[str], Iterable[Parameter]]) -> dict[str, Any]:
    where = f"{SETTINGS}: [{command}]"
    if not isinstance(table, dict):
        raise InputError(f"{where} must be a table of options")
    known, options = settings_of(parameters(command)), {}
    for key, value in renamed_settings(command, table, where).items():
        parameter = known.get(key.replace("_", "-"))
        if parameter is None or parameter.name is None:
            raise InputError(f"{where}: {unknown_name('option', key, known)}")
        alone = getattr(parameter, "multiple", False) and not isinstance(value, list)
        options[parameter.name] = [value] if alone else value
    return options
